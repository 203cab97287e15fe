"""Divergence: the loss ends far above where it was.

What it finds:
    A finite loss that rose far above its start and stayed there, or that gave back most of what it had fallen.

Why it hurts:
    The training has lost more than it ever learned, and a finite number hides it: nothing is NaN, no error is raised, and
    the last checkpoint is the worst.

How we tell:
    Medians, not single losses: the last fifth against the first losses, and against the lowest level of the run, beyond
    the noise. It is an error where the loss ends at twice its start or more and the steps are seen to be at fault (weights
    thrown or grown, or steps that climb), or at ten times its start; or where it had fallen by half and has given back
    so much that it counts as not learned. It is a warning where only part of that is seen.

When it is wrong:
    Losses that play against each other (a GAN, two optimizers in turns) are not judged. The value loss of a reinforcement
    learner grows with its rewards: a warning there may mean success. A curriculum that gets harder raises the loss too.

What helps:
    - a lower learning rate, or a schedule that lowers it
    - clipping the gradient norm
    - going back to the last checkpoint before the rise

References:
    Pascanu, Mikolov, Bengio 2013; Goodfellow, Bengio, Courville 2016, ch. 8 (cliffs).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.losses import Losses
from gradiometer.record.trace import LONG_STEP, Trace
from gradiometer.rules.judging import factor
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "divergence"

RISE: Final = 1.0
"""The loss ends at twice its start. Ours: no training of the calibration half of the zoo that is well ends above it."""
FAR: Final = 9.0
"""Ten times its start: an error whatever the steps look like."""
GIVEN_BACK: Final = 0.5
"""Share of its fall that the loss has given back at the end (ours)."""
FELL: Final = 0.5
"""Share by which it must have fallen for that to count."""
NOISE_SIGMA: Final = 5.0
"""Robust deviations of a single loss by which the end stands out."""
GROWN: Final = 3.0
"""The middle weight matrix has grown to this many times its size (ours; healthy trainings reach twice)."""
CLIMBING: Final = 0.25
"""Share of the looks at which a step climbed (overshoot below -1)."""
MIN_STEPS: Final = 20
"""Steps that it takes to say that it stays."""

HELPS: Final = (
    "lower the learning rate, or let a schedule lower it",
    "clip the gradient norm",
    "go back to the last checkpoint before the rise",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    losses = trace.only_losses
    if losses is None or losses.value.size < MIN_STEPS or not losses.unit or losses.learning.signless or trace.relearned:
        return []
    return _above_the_start(trace, losses) or _given_back(trace, losses)


def _above_the_start(trace: Trace, losses: Losses) -> list[Finding]:
    moved = losses.learning
    rise = (moved.end - moved.start) / losses.unit
    last = losses.value[-max(3, losses.value.size // 5) :]
    stays = float(np.mean(last > moved.start)) >= 0.9
    # the noise of a loss that diverges grows with it
    if not np.isfinite(rise) or rise < RISE or not stays:
        return []
    fault = _fault(trace)
    certain = (bool(fault) or rise >= FAR) and not trace.too_early
    severity = Severity.ERROR if certain else Severity.WARNING
    times = factor(float(np.log10(1.0 + rise)))
    sentence = f"The training diverges: the loss ends at {times} times its start and stays there"
    sentence += f"; {fault[0][0].lower()}{fault[0][1:]}." if fault else "."
    begin = _last_crossing(losses, moved.start)
    evidence = [
        Evidence(
            "how far the loss ends above its start, as a share of it (medians)",
            rise,
            RISE,
            "checked on the calibration half of the zoo",
            "a loss that comes down again",
        )
    ]
    if fault:
        evidence.append(fault[1])
    return [_finding(trace, begin, losses, sentence, severity, evidence)]


def _given_back(trace: Trace, losses: Losses) -> list[Finding]:
    moved = losses.learning
    if not losses.blocks.size:
        return []
    best = float(losses.blocks.min())
    fell = (moved.start - best) / losses.unit
    back = (moved.end - best) / (moved.start - best) if moved.start > best else 0.0
    # of medians of a part, whose noise is that of a single loss over the root of their number
    each = max(losses.value.size / losses.blocks.size, 1.0) if float(losses.value.min()) >= 0.0 else 1.0
    beyond = moved.end - best > NOISE_SIGMA * 1.2533 * max(losses.block_noise, moved.noise) / float(np.sqrt(each))
    nothing = moved.end == 0.0  # the loss of a policy gradient, where nothing is left to be better than
    if fell < FELL or back < GIVEN_BACK or not beyond or nothing:
        return []
    severity = Severity.ERROR if trace.suffers else Severity.WARNING
    begin = _last_crossing(losses, best + 0.25 * (moved.start - best))
    what = f"the loss has given back {100 * min(back, 1.0):.0f} % of what it had fallen"
    sentence = f"The training came undone: {what}, from step {begin} on."
    evidence = Evidence(
        "share of its fall that the loss has given back at the end",
        back,
        GIVEN_BACK,
        "ours",
        "a loss that comes down again, or a task that was made harder",
    )
    return [_finding(trace, begin, losses, sentence, severity, [evidence])]


def _fault(trace: Trace) -> tuple[str, Evidence] | None:
    """What the steps did, if that is measured."""
    size = trace.typical_step
    if np.isfinite(size).any() and float(np.nanmax(size)) >= LONG_STEP:
        look = int(np.nanargmax(size))
        words = f"At step {trace.steps[look]} the middle weight matrix moved by {factor(float(size[look]))} times its size"
        claim = f"update / weight of the middle weight matrix at step {trace.steps[look]}"
        return words, Evidence(claim, float(10.0 ** min(size[look], 300.0)), 10.0**LONG_STEP, "CS231n notes: about 1e-3")
    weights = np.sqrt(trace.values["weight_sumsq"][:, trace.weights])
    if weights.shape[0] > 1 and weights.shape[1]:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            growth = weights[-1] / weights[0]
        growth = growth[np.isfinite(growth)]
        if growth.size and float(np.median(growth)) >= GROWN:
            words = f"The middle weight matrix has grown to {np.median(growth):.3g} times its size"
            claim = "growth of the middle weight matrix from the first look to the last"
            return words, Evidence(claim, float(np.median(growth)), GROWN, "ours; healthy trainings reach twice")
    overshoot = trace.overshoot[np.isfinite(trace.overshoot)]
    climbing = float(np.mean(overshoot < -1.0)) if overshoot.size >= 3 else 0.0
    if climbing >= CLIMBING:
        words = f"{100 * climbing:.0f} % of the steps looked at climbed"
        return words, Evidence("share of the looks with an overshoot below -1", climbing, CLIMBING, "ours")
    return None


def _last_crossing(losses: Losses, level: float) -> int:
    """The step from which on the loss stays above a level, but for single batches."""
    value = losses.value
    triple = np.median(np.lib.stride_tricks.sliding_window_view(value, 3), axis=1)
    low = np.flatnonzero(triple <= level)
    return int(losses.step[min(low[-1] + 2, value.size - 1)]) if low.size else int(losses.step[0])


def _finding(trace: Trace, begin: int, losses: Losses, sentence: str, severity: Severity, evidence: list[Evidence]) -> Finding:
    return Finding(
        rule=NAME,
        severity=severity,
        confidence=0.9,
        sites=(),
        steps=(begin, max(int(trace.ledger.step[-1]), begin)),
        sentence=sentence,
        evidence=tuple(evidence),
        helps=HELPS,
        peak=int(losses.step[np.argmax(losses.value)]),
    )
