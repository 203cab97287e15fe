"""Learning rate too high: steps so long that they end beyond the other side of the valley.

What it finds:
    Steps that throw the weights by a sizeable share of themselves, or that end where the slope points back the way they
    came, in a training whose loss rose above its start or bounces and does not get down.

Why it hurts:
    The gradient is a straight line laid against a curved valley. A step longer than twice the way to the bottom ends
    higher than it began; the next gradient is larger and throws further. What follows looks like other diseases: rectifiers
    that never answer again, saturated units, NaN.

How we tell:
    Four things that do not depend on the scale of the loss. How long a step is: update / weight of the middle weight
    matrix, usually a thousandth. What it met: the slope along the step after it against before it (1: straight on, 0: at
    the bottom, below -1: uphill). What the loss did: how far it rose above its start. What became of the network:
    whether signal and gradient passed through it before and no longer do. It is an error only where the training fails and
    two of them agree; a catapult at the start that the training comes down from is a warning. A network
    that multiplied its signal or gradient along depth at the very first look is ill of that, not of its learning rate.
    Nothing is said while the steps are as long as usual, whatever the loss does, nor where the loss jumped first and the
    steps grew long after it: that is a corrupt batch.

When it is wrong:
    Layers before a normalisation do not care how large their weights are, and long steps there do less harm than they
    look. A critic or a density whose loss rightly rises may seem thrown if its steps are long too.

What helps:
    - a learning rate three to ten times lower
    - a warm-up, where the first steps alone are too long
    - clipping the gradient norm, where single batches throw the weights

References:
    Cohen et al. 2021 (edge of stability: bouncing with a falling loss is healthy); Lewkowycz et al. 2020 (catapult);
    CS231n notes (update / weight about 1e-3).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.depth import falls_towards_input
from gradiometer.record.frames import Flag
from gradiometer.record.trace import LONG_STEP, BoolArray, Trace
from gradiometer.rules.judging import factor
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "learning-rate-too-high"

THROWN: Final = -0.3
"""Half of its size in one step. Ours: in sweeps over learning rates no training that learned well took steps this long."""
SHAKEN: Final = -0.5
"""A third of its size in one step."""
WHOLE: Final = 0.0
"""log10 of update / weight: all of its size in one step."""
BLOWN: Final = 9.0
"""The loss is ten times its first value right after the first step."""
RISE: Final = 1.0
"""The loss rose to twice its first value. Ours: single batches of a regression reach 1.8 times without any long step."""
RUINED: Final = 99.0
"""Ours: with weights thrown by half of their size and a loss at a hundred times its start, what there was is gone."""
BEYOND: Final = -0.3
"""Ours: an overshoot below this is a step that ended clearly beyond the bottom, whatever the noise of the batches."""
BEYOND_SHARE: Final = 0.3
"""Share of the looks at which steps end beyond the bottom. Noise alone does that in about one of five."""
NEAR: Final = 20
"""Steps within which a learning rate that was raised explains a long step (looks lie apart)."""
RAISED: Final = 2.0
"""Factor by which a learning rate is raised at once, not warmed up."""
GONE: Final = 6.0
"""Decades that the gradient has lost at the first layers when these stand still: the error level of vanishing gradients."""
HALF: Final = 0.5
"""Share of the last looks."""
MIN_LOOKS: Final = 3
"""Looks that it takes to tell bouncing from noise."""

HELPS: Final = (
    "lower the learning rate by a factor of 3 to 10",
    "warm the learning rate up over the first few hundred steps",
    "clip the gradient norm to what a normal step has",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    recovered = trace.relearned
    if recovered:  # what the loss did from there on is not the doing of the steps before
        trace = trace.until(trace.task_changed - 1)
    size = trace.typical_step
    if not trace.steps.size or not np.isfinite(size).any() or (_ill_from_the_start(trace) and not _blown_up_at_once(trace)):
        return []
    overshoot = trace.overshoot
    long = np.asarray(size >= LONG_STEP)
    if not long.any() or _after_a_jump(trace, _onset(trace, int(trace.steps[long][0]))):
        return []
    thrown = bool(np.nanmax(size) >= THROWN)
    known = np.isfinite(overshoot)
    # of the looks from the first long step on; a training that has been thrown into a flat corner bounces no more
    span = _around(long)
    beyond = np.asarray(overshoot < BEYOND) & known & span
    share = float(beyond.sum() / max(int((known & span).sum()), 1))
    bounces = share >= BEYOND_SHARE and int((known & span).sum()) >= MIN_LOOKS
    violent = bool((overshoot[known & span] < -1.0).any())
    rise = _rise(trace)
    rose = rise >= RISE
    ruined = thrown and rise >= RUINED
    failed = not recovered and (trace.stalled or ruined or (rose and (_still_up(trace) or _cut_off(trace))))
    undone = _undone(trace, int(trace.steps[long][0]))
    # shaken so, a network that was in order, is no more, and does not learn, says it twice
    shaken = undone and trace.stalled and bool(np.nanmax(size) >= SHAKEN)
    evidence_count = int(thrown) + int(bounces or violent) + int(rose) + int(undone) + int(shaken)
    if evidence_count < 2 or not (rose or failed):
        return []
    looks = np.flatnonzero(long)
    look = int(looks[np.nanargmax(size[looks])])
    severity = Severity.ERROR if failed else Severity.WARNING
    index = trace.weights
    guilty = index[np.asarray(trace.log10_update_ratio[look, index] >= LONG_STEP)]
    first, peak = _onset(trace, int(trace.steps[looks[0]])), int(trace.steps[look])
    sentence = (
        f"The learning rate is too high: at step {peak} the middle weight matrix moved by {factor(float(size[look]))} times "
        "its size (a thousandth is usual)"
    )
    if rose:
        sentence += f", and the loss rose to {_times(rise)} its start" if np.isfinite(rise) else ", and the loss blew up"
    elif bounces or violent:
        sentence += f", and {100 * share:.0f} % of the steps looked at ended beyond the bottom of their slope"
    sentence += "." if failed else "; the training came down again."
    evidence = [
        Evidence(
            f"update / weight of the middle weight matrix at step {peak}",
            float(10.0 ** min(size[look], 300.0)),
            10.0**LONG_STEP,
            "CS231n notes: about 1e-3; level checked on the calibration half of the zoo",
            "the same run with a tenth of the learning rate fails in the same way",
        )
    ]
    if (known & span).any():
        worst = float(np.nanmin(overshoot[known & span]))
        claim = "share of the steps looked at that ended beyond the bottom of their slope (overshoot below -0.3)"
        evidence.append(Evidence(claim, share, BEYOND_SHARE, "ours", "most steps end before the bottom"))
        claim = "lowest overshoot: slope along a step after it against before it"
        evidence.append(Evidence(claim, worst, -1.0, "a quadratic bowl: below -1 the step climbed"))
    if np.isfinite(rise):
        claim = "how far the loss rose above its first value, as a share of that value"
        evidence.append(Evidence(claim, rise, RISE, "checked on the calibration half of the zoo", "a loss that only falls"))
    finding = Finding(
        rule=NAME,
        severity=severity,
        confidence=0.9 if evidence_count >= 3 else 0.75,
        sites=trace.names(guilty),
        steps=(first, int(trace.steps[looks[-1]])),
        sentence=sentence,
        evidence=tuple(evidence),
        helps=HELPS,
        starts=trace.names(guilty[:1])[0] if guilty.size else "",
        shows=trace.names(guilty),
        peak=peak,
    )
    return [finding]


def _ill_from_the_start(trace: Trace) -> bool:
    """Whether the network was out of order before a step could have done anything."""
    return bool(trace.steps[0] == 0 and not trace.sound_depth[0])


def _blown_up_at_once(trace: Trace) -> bool:
    """Whether the very first step moved the weights by more than their size and the loss was far above its start after it."""
    loss = trace.ledger["loss"][:2] if trace.ledger.step.size > 1 else np.empty(0)
    if trace.only_losses is None or loss.size < 2 or not np.isfinite(loss[0]) or not trace.typical_step[0] >= WHOLE:
        return False
    return not np.isfinite(loss[1]) or bool(loss[1] - loss[0] > BLOWN * abs(loss[0]))


def _undone(trace: Trace, first: int) -> bool:
    """Whether signal and gradient passed through the network before its first long step, and no longer do at the end."""
    sound = trace.sound_depth
    before = sound[trace.steps <= first]
    return bool(before.size and before.all() and np.mean(sound[-max(3, sound.size // 4) :]) < HALF)


def _onset(trace: Trace, seen: int) -> int:
    """The step from which on steps were long: where the learning rate was raised, if that was shortly before it was seen."""
    rate = trace.ledger["learning_rate"]
    near = np.flatnonzero((trace.ledger.step > seen - NEAR) & (trace.ledger.step <= seen) & np.isfinite(rate))
    before = rate[near[:-1]] if near.size > 1 else rate[:0]
    raised = near[1:][rate[near[1:]] > RAISED * before]
    return int(trace.ledger.step[raised[0]]) if raised.size else seen


def _after_a_jump(trace: Trace, onset: int) -> bool:
    """Whether the loss had jumped before any step was long: a batch of corrupt data, whose gradient then threw the weights."""
    return any(onset - NEAR < spike.step <= onset for losses in trace.losses for spike in losses.spikes)


def _around(long: BoolArray) -> BoolArray:
    """Looks from the first long step to the last, and a few more."""
    looks = np.flatnonzero(long)
    span = np.zeros(long.shape, np.bool_)
    span[looks[0] : looks[-1] + 3] = True
    return span


def _rise(trace: Trace) -> float:
    """How far the loss rose above its first value, in its size at the start; inf where it is no number any more."""
    rises = [losses.above_start for losses in trace.losses if np.isfinite(losses.above_start)]
    largest = max(rises, default=0.0)
    return largest if largest > 0.0 or not _broken(trace) else float("inf")


def _broken(trace: Trace) -> bool:
    loss = trace.ledger["loss"] if trace.ledger.step.size else np.empty(0)
    return trace.stalled and loss.size > 0 and not np.isfinite(loss[-1])


def _still_up(trace: Trace) -> bool:
    """Whether the loss stands above twice its first value at the end of what was seen, or is no number there."""
    loss = trace.ledger["loss"]
    if not loss.size or not np.isfinite(loss[-1]):
        return loss.size > 0 and bool(trace.ledger.has(Flag.NONFINITE)[-1])
    return any(
        losses.value.size > 1 and float(np.median(losses.value[-3:])) - losses.value[0] > RISE * losses.unit
        for losses in trace.losses
    )


def _cut_off(trace: Trace) -> bool:
    """Whether most of the last looks find the first layers of a network without a gradient, which they had at first.

    Its loss may have come down to what a constant answer costs, which looks like learning.
    """
    for chain in trace.chains:
        falls = falls_towards_input(trace.log10_gradient[:, chain])
        known = falls[np.isfinite(falls)]
        if known.size > MIN_LOOKS and known[0] < GONE and np.mean(known[-max(3, known.size // 5) :] >= GONE) > 0.5:
            return True
    return False


def _times(rise: float) -> str:
    times = 1.0 + rise
    return f"{times:.1f} times" if times < 10 else f"{factor(float(np.log10(times)))} times"
