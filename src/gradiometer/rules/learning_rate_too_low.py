"""Learning rate too low: the training walks the right way in steps too short to arrive.

What it finds:
    Updates so small that over the whole run no weight can have moved far, while the loss creeps down or stands; and
    updates that all but stopped (a schedule that ran out) long before the training had got anywhere.

Why it hurts:
    The compass is right and the traveller shuffles. Nothing in the loss curve tells this from a plateau, and the cure is
    the opposite of the one for a curve that is flat because the steps are too long.

How we tell:
    By the way travelled: the sum over all steps of update / weight, for the weight matrix that moves most. Below a half, no
    layer can have become anything else than it was. The slope along a step must be the same after it as before it, or
    nearly so (overshoot above 0), the loss must not have risen, and signal and gradient must pass through the network:
    else something else holds the training up. A learning rate that is still warming up is not judged. Stopping early is
    told by updates and learning rate that have fallen to a thousandth while a third of the run or more was still to come.
    It is an error where the loss has not fallen clearly and either stands at the level of guessing or still falls as
    steadily as at first: a loss that levels off may be all there is to reach. However far the weights went: where three of
    four steps find four fifths of their slope still there behind them, and the loss has not fallen, the steps were
    a fifth of what the slope allows or less. A schedule that ran out is an error too where less than half of the loss was
    gone when it did.

When it is wrong:
    Fine-tuning moves weights little on purpose; it is judged by its loss only. A run that was stopped after a few steps.

What helps:
    - a learning rate ten times higher; then again, until the loss bounces, and back by a factor of 3
    - a schedule whose length is the length of the run (a decay per step where one per epoch was meant, is a common slip)
    - Adam, whose steps do not shrink with the gradient

References:
    CS231n notes (update / weight about 1e-3: lower, and the learning rate may be too low); Bengio 2012, "Practical
    recommendations for gradient-based training".
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.losses import Losses
from gradiometer.record.trace import SETTLE, STANDSTILL, Trace
from gradiometer.rules.judging import factor, plural, size
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "learning-rate-too-low"

SHORT_STEP: Final = -3.0
"""log10 of update / weight of the matrix that moves most; a thousandth is usual for the middle one (CS231n notes)."""
SHORT_WAY: Final = 0.5
"""Sum of update / weight. Ours: in sweeps over learning rates whatever had learned well had gone further."""
STEADY: Final = 0.6
"""A loss that still falls at least this share of its first pace is not levelling off (ours)."""
DRIFT_SIGMA: Final = 3.0
"""Standard errors by which the loss must fall over the last half to count as falling."""
STOPPED: Final = -3.0
"""log10 of what is left of updates and learning rate once a schedule has run out. A cosine spends 2 % of its length there,
three steps of a factor of 10 never get there."""
STOPPED_SHARE: Final = 0.3
"""Share of the run that lies behind the stop."""
STRAIGHT: Final = 0.5
"""A middle overshoot above this says that the steps could be longer even if the loss is too noisy to show a fall (ours)."""
WHOLE_SLOPE: Final = 0.8
"""Overshoot that three of four steps stay above: a step that is a fifth of the way to the bottom (ours)."""
MANY_LOOKS: Final = 8
"""Overshoots that it takes to say so."""
RISE: Final = 1.0
"""A loss that rose to twice its first value is not creeping down."""
STOPPED_EARLY: Final = 0.5
"""Share of the run behind the stop that is an error where less than half of the loss was gone."""
UNDER_WAY: Final = 0.1
"""Share of its start that the loss of a training that learns still fell over the last half, to be worth a word."""
HALF: Final = 0.5
"""A loss that has fallen by half is on its way (ours)."""
MIN_LOOKS: Final = 3
"""Overshoots that it takes to speak of a middle one."""
MIN_STEPS: Final = 50
"""A run shorter than this may simply have been stopped."""

HELPS: Final = (
    "raise the learning rate by a factor of 10, and again until the loss bounces; then go back by a factor of 3",
    "make the schedule as long as the run",
    "use Adam, whose steps do not shrink with the gradient",
)
_HELPS_STOPPED: Final = (
    "make the schedule as long as the run; a decay meant for every epoch may be applied at every step",
    "keep a floor under the learning rate until the loss levels off",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    losses = trace.only_losses
    if losses is None or trace.steps_seen < MIN_STEPS or not trace.pace.size:
        return []
    return _stopped(trace) or _slow(trace, losses)


def _stopped(trace: Trace) -> list[Finding]:
    """A schedule that ran out."""
    pace, rate, step = trace.pace, trace.ledger["learning_rate"], trace.ledger.step
    if not np.isfinite(rate).any() or trace.warming_up:
        return []
    largest = float(np.nanmax(rate))
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.log10(np.nan_to_num(rate) / largest) if largest > 0.0 else np.full(rate.shape, -np.inf)
    moving = np.flatnonzero((left > STOPPED) & (pace > STANDSTILL))
    stop = int(step[moving[-1]]) + 1 if moving.size else int(step[0])
    share = (step[-1] + 1 - stop) / (step[-1] + 1)
    if share < STOPPED_SHARE or not _has_gradient(trace, stop):
        return []
    before = trace.until(stop - 1).only_losses if stop else None
    falling = before is not None and before.drift() > DRIFT_SIGMA * before.drift_error()
    levelled = before is not None and before.value.size >= MIN_STEPS and not falling
    cut_short = share >= STOPPED_EARLY and trace.suffers and not levelled
    if trace.learned and not falling and not cut_short:
        return []  # it had arrived
    # a flat loss that is not at chance may have been at its end when the run was resumed
    far = trace.at_chance or falling or not moving.size
    severity = Severity.ERROR if (trace.stalled and far) or (trace.learned and cut_short) else Severity.WARNING
    last = float(left[-1])
    how = "zero" if np.isneginf(last) else f"{factor(last)} of its largest"
    what = "it was never more than zero" if np.isneginf(left).all() else f"the learning rate has fallen to {how}"
    sentence = f"The weights stand still from step {stop} on, for {100 * share:.0f} % of the run: {what}"
    course = "while the loss was still falling" if falling else f"and the loss has fallen by {100 * trace.learning.fall:.0f} %"
    sentence += ", and the loss has hardly fallen by then." if trace.stalled else f", {course}."
    evidence = (
        Evidence(
            "share of the run in which the learning rate is below a thousandth of its largest, or the updates are zero",
            float(share),
            STOPPED_SHARE,
            "ours; a cosine over the length of the run spends 2 % of it there",
            "a loss that had levelled off before",
        ),
        _way(trace),
    )
    return [_finding(trace, (stop, int(step[-1])), stop, sentence, severity, evidence, _HELPS_STOPPED, 0.95)]


def _slow(trace: Trace, losses: Losses) -> list[Finding]:
    """Steps too short from the start."""
    middle = float(np.median(trace.pace))
    settled = trace.steps >= SETTLE
    sound = bool(np.mean(trace.sound_depth[settled]) > 0.5) if settled.any() else False
    overshoot = trace.overshoot[np.isfinite(trace.overshoot)]
    left = float(np.percentile(overshoot, 25)) if overshoot.size >= MANY_LOOKS else float("nan")
    lasts = bool(trace.sound_depth[-max(1, trace.steps.size // 4) :].all())  # else what fell ill on the way is the cause
    straight = lasts and trace.stalled and not trace.learned and left >= WHOLE_SLOPE and losses.above_start < RISE
    short = middle <= SHORT_STEP and trace.travel <= SHORT_WAY
    if not (short or straight) or not sound or (trace.running and trace.warming_up):
        return []
    known = overshoot.size >= MIN_LOOKS
    bend = float(np.median(overshoot)) if known else float("nan")
    drift, error = losses.drift(), losses.drift_error()
    if (known and bend <= 0.0) or not np.isfinite(drift) or not _has_gradient(trace, 0):
        return []
    falling = drift > DRIFT_SIGMA * error
    whole = losses.drift(1.0)
    steady = falling and whole > 0.0 and drift >= STEADY * whole
    if trace.stalled and (steady or (trace.at_chance and known) or (straight and not short)):
        severity = Severity.WARNING if trace.running else Severity.ERROR
    elif (trace.stalled and (falling or (known and bend > STRAIGHT))) or (
        falling and drift > UNDER_WAY and losses.learning.fall < HALF
    ):
        severity = Severity.WARNING
    else:
        return []
    run = plural(trace.steps_seen, "step", "steps")
    moved = f"so that over {run} no weight matrix can have moved by more than {100 * trace.travel:.2g} % of its size"
    if not short:
        moved = f"and after three of four steps {100 * left:.0f} % or more of the slope is still there"
    course = "still falls steadily" if falling else "has hardly moved"
    sentence = f"The steps are too short: update / weight is {size(middle)} where it is largest, {moved}; the loss {course}."
    evidence = [
        _way(trace),
        Evidence(
            "update / weight of the weight matrix that moves most, at the middle step",
            10.0**middle,
            10.0**SHORT_STEP,
            "CS231n notes: about 1e-3",
            "ten times the learning rate makes the loss bounce, not fall faster",
        ),
    ]
    if known:
        claim = "middle overshoot: slope along a step after it against before it (1: the step could be longer)"
        evidence.append(Evidence(claim, bend, 0.0, "a quadratic bowl", "values below 0"))
    if not short:
        claim = "overshoot that three of four steps stay above"
        evidence.append(Evidence(claim, left, WHOLE_SLOPE, "ours", "a slope that bends along the steps"))
    steps = (int(trace.steps[0]), int(trace.ledger.step[-1]))
    return [_finding(trace, steps, steps[1], sentence, severity, tuple(evidence), HELPS, 0.8 if known else 0.6)]


def _has_gradient(trace: Trace, since: int) -> bool:
    """Whether some weight that could move has a gradient in most of the looks from ``since`` on."""
    looks = trace.steps >= since
    gradients = trace.log10_weight_gradient[looks][:, trace.weights]
    known = ~np.isnan(gradients).all(axis=1)
    there = np.isfinite(gradients[known]).any(axis=1)
    return there.size > 0 and float(np.mean(there)) > 0.5


def _way(trace: Trace) -> Evidence:
    return Evidence(
        "sum over all steps of update / weight, of the weight matrix that moves most at each (drawn between the looks)",
        trace.travel,
        SHORT_WAY,
        "ours, from sweeps over learning rates on the calibration half of the zoo",
        "a loss as low as a higher learning rate reaches",
    )


def _finding(
    trace: Trace,
    steps: tuple[int, int],
    peak: int,
    sentence: str,
    severity: Severity,
    evidence: tuple[Evidence, ...],
    helps: tuple[str, ...],
    confidence: float,
) -> Finding:
    names = trace.names(trace.weights)
    return Finding(
        rule=NAME,
        severity=severity,
        confidence=confidence,
        sites=names,
        steps=(min(steps), max(steps)),
        sentence=sentence,
        evidence=evidence,
        helps=helps,
        starts=names[0] if names else "",
        shows=names,
        peak=max(peak, 0),
    )
