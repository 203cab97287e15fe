"""Oscillation: the loss swings about one level and does not settle.

What it finds:
    Steps that end beyond the bottom of their slope look after look, while the loss swings and no longer falls.

Why it hurts:
    The training walks from one side of the valley to the other. It is not thrown out, so nothing breaks, but all of its
    steps are spent on crossing.

How we tell:
    Three things together, over the last half of the run: the middle overshoot is clearly below zero (the slope after a
    step points back along it, beyond what the noise of batches does), single losses swing about their level by more than a
    twentieth of what the loss was at the start, or more than half of the level itself, and the level has no downward
    slope. It is an error only where the loss has not fallen clearly. Bouncing with a loss that declines is how trainings at
    the edge of stability and with momentum work, and is not reported. With a momentum of 0.97 and more the swings are
    longer than a step: then the log of the loss, less its trend, must go up and down in waves of one length, three of
    them or more, a tenth of the level large, while the level is not yet near zero. Batches of one or a few examples swing
    the loss by themselves; there it takes jumps beyond that noise, again and again in every third of the run, steps that are
    long, and a level that has stopped falling far above zero.

When it is wrong:
    Data that come in an order (all of one class, then all of another) swing the loss by themselves.

What helps:
    - a learning rate three times lower, or a schedule that lowers it
    - less momentum
    - a larger batch, or shuffled data

References:
    Cohen et al. 2021 (edge of stability); Qian 1999 (momentum).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.losses import Losses
from gradiometer.record.trace import FloatArray, Trace
from gradiometer.rules.judging import factor
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "oscillation"

BEYOND: Final = -0.3
"""Ours: no healthy training of the calibration half of the zoo whose loss had stopped falling had a middle overshoot below."""
SWING: Final = 0.05
"""Robust deviation of single losses, as a share of the loss at the start."""
SWING_OF_LEVEL: Final = 0.5
"""The same as a share of the level they swing about."""
DRIFT_SIGMA: Final = 3.0
"""Standard errors by which the level must fall to count as falling."""
HEAVY: Final = 0.97
"""Momentum from which a step is the sum of more than thirty gradients, and the way to the bottom is overrun by as many
steps. 0.9 is usual."""
WAVES: Final = 0.1
"""Root mean square of the waves, as a share of the level (ours)."""
ONE_LENGTH: Final = 0.35
"""Share of the power of the log loss about its trend that lies in one narrow band: noise has a tenth (ours)."""
CYCLES: Final = 3
"""Waves that it takes, in the last two thirds of the run; the trend itself bends once."""
SHORTEST: Final = 4
"""Steps of the shortest wave; what is shorter goes from step to step and is found by the overshoot."""
JUMPS: Final = 12
"""Jumps of the loss in a run; single corrupt batches and their echoes make fewer (well trainings of the zoo: 6 at most)."""
JUMPS_EACH: Final = 3
"""Jumps in every third of the run: it does not settle."""
JUMP_STEP: Final = -2.2
"""log10 of update / weight of the middle matrix that a quarter of the steps go beyond (about a thousandth is usual)."""
JUMP_LEVEL: Final = 0.15
"""Level, as a share of the start, above which such jumps are no rare bad examples of a training that has arrived."""
UNDONE: Final = 0.1
"""A level below this share of the start is low enough for its waves not to matter."""
MIN_LOOKS: Final = 5
"""Overshoots in the last half of the run that it takes."""
MIN_STEPS: Final = 50
"""Shorter runs have not had the time to settle."""

HELPS: Final = (
    "lower the learning rate by a factor of 3, or let a schedule lower it",
    "lower the momentum",
    "use a larger batch, and shuffle the data",
)


_HELPS_MOMENTUM: Final = (
    "lower the momentum to 0.9, or the learning rate by the same factor as 1 - momentum was lowered",
    "let a schedule lower the learning rate",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    losses = trace.only_losses
    if losses is None or losses.value.size < MIN_STEPS or not losses.blocks.size:
        return []
    return _step_by_step(trace, losses) or _in_long_waves(trace, losses) or _in_jumps(trace, losses)


def _step_by_step(trace: Trace, losses: Losses) -> list[Finding]:
    """Single steps cross the valley."""
    half = int(losses.step[losses.step.size // 2])
    overshoot = trace.overshoot[(trace.steps >= half) & np.isfinite(trace.overshoot)]
    if overshoot.size < MIN_LOOKS or float(np.median(overshoot)) > BEYOND:
        return []
    drift, error = losses.drift(), losses.drift_error()
    level = abs(losses.learning.end)
    swing = losses.block_noise / losses.unit if losses.unit else float("nan")
    of_level = losses.block_noise / level if level else float("inf")
    if not (drift < DRIFT_SIGMA * error) or not np.isfinite(swing):
        return []
    # far below its start the swings must matter for where the loss is to be counted
    if swing < SWING or (not trace.stalled and of_level < SWING_OF_LEVEL):
        return []
    middle = float(np.median(overshoot))
    sentence = (
        f"The loss swings by {100 * swing:.0f} % of its start about one level and does not settle: from step {half} on the "
        f"slope after a step is {middle:.2g} times the slope before it, so that steps end beyond the bottom."
    )
    last = int(trace.ledger.step[-1])
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR if trace.stalled else Severity.WARNING,
        confidence=0.75,
        sites=(),
        steps=(half, last),
        sentence=sentence,
        evidence=(
            Evidence(
                "middle overshoot over the last half: slope along a step after it against before it",
                middle,
                BEYOND,
                "ours; noise of batches draws it to 0",
                "an overshoot above 0 in most looks",
            ),
            Evidence(
                "robust standard deviation of single losses about their level, as a share of the loss at the start",
                float(swing),
                SWING,
                "ours",
                "the same swings at a tenth of the learning rate (then the data swing)",
            ),
            Evidence("fall of the level over the last half, as a share of the start", drift, DRIFT_SIGMA * error, "its noise"),
        ),
        helps=HELPS,
        peak=last,
    )
    return [finding]


def _in_long_waves(trace: Trace, losses: Losses) -> list[Finding]:
    """A heavy momentum overruns the bottom by many steps, and comes back."""
    options = [o.get("options") for o in trace.optimizers]
    momentum = max((float(o.get("momentum", 0.0)) for o in options if isinstance(o, dict)), default=0.0)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    if momentum < HEAVY or not losses.unit:
        return []
    later = losses.value[losses.value.size // 3 :]
    if later.size < MIN_STEPS or not bool((later > 0.0).all()):
        return []
    share, size = _waves(np.log(later))
    level = abs(losses.learning.end)
    if size < WAVES or share < ONE_LENGTH or level < UNDONE * losses.unit:
        return []
    begin, last = int(losses.step[losses.step.size // 3]), int(trace.ledger.step[-1])
    sentence = (
        f"The loss goes up and down in waves of {100 * size:.0f} % of its level and has not settled: a momentum of "
        f"{momentum:g} makes every step the sum of some {1.0 / (1.0 - momentum):.0f} gradients and overruns the bottom."
        if momentum < 1.0
        else "The loss goes up and down in waves and has not settled: a momentum of 1 never loses its speed."
    )
    evidence = (
        Evidence("root mean square of the waves of the loss about its trend, as a share of its level", size, WAVES, "ours"),
        Evidence("share of the power about the trend in waves of one length", share, ONE_LENGTH, "ours", "0.1 is noise"),
        Evidence("momentum", momentum, HEAVY, "0.9 is usual (Qian 1999)", "the same waves at a momentum of 0.9"),
    )
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR,
        confidence=0.7,
        sites=(),
        steps=(begin, last),
        sentence=sentence,
        evidence=evidence,
        helps=_HELPS_MOMENTUM,
        peak=last,
    )
    return [finding]


def _waves(y: FloatArray) -> tuple[float, float]:
    """Of a series less its bent trend: the share of its power in the strongest narrow band, and the rms of that part."""
    x = np.linspace(-1.0, 1.0, y.size)
    rest = y - np.polyval(np.polyfit(x, y, 2), x)
    power = np.abs(np.fft.rfft(rest * np.hanning(rest.size))) ** 2
    bands = power[CYCLES : rest.size // SHORTEST]
    total = float(power[1:].sum())
    if not bands.size or not np.isfinite(total) or total <= 0.0:
        return 0.0, 0.0
    top = CYCLES + int(np.argmax(bands))
    share = float(power[max(top - 2, CYCLES - 1) : top + 3].sum()) / total
    return share, float(np.sqrt(np.mean(rest**2) * share))


def _in_jumps(trace: Trace, losses: Losses) -> list[Finding]:
    """Steps that are long for what a small batch can tell: the loss jumps again and again, to the end."""
    moved = losses.learning
    level = moved.end / losses.unit if losses.unit else float("nan")
    when = np.array([spike.step for spike in losses.spikes], dtype=np.int64)
    steps = trace.typical_step[np.isfinite(trace.typical_step)]
    if moved.signless or when.size < JUMPS or not steps.size or not level > JUMP_LEVEL:
        return []
    thirds = np.histogram(when, bins=3, range=(0, trace.steps_seen))[0]
    long = float(np.percentile(steps, 75))
    drift, error = losses.drift(), losses.drift_error()
    if int(thirds.min()) < JUMPS_EACH or long < JUMP_STEP or not drift < DRIFT_SIGMA * error:
        return []
    first, last = int(when[0]), int(trace.ledger.step[-1])
    sentence = (
        f"The loss jumps {when.size} times, from step {first} to the end, and does not settle: it stands at "
        f"{100 * level:.0f} % of its start, and a quarter of the steps are {factor(long)} of the weights or more."
    )
    evidence = (
        Evidence("jumps of the loss beyond its noise, over the run", float(when.size), float(JUMPS), "ours"),
        Evidence(
            "update / weight of the middle weight matrix that a quarter of the steps go beyond",
            10.0**long,
            10.0**JUMP_STEP,
            "CS231n notes: about 1e-3",
            "the same jumps at a tenth of the learning rate (then single examples are corrupt)",
        ),
        Evidence("fall of the level over the last half, as a share of the start", drift, DRIFT_SIGMA * error, "its noise"),
    )
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR,
        confidence=0.7,
        sites=(),
        steps=(first, last),
        sentence=sentence,
        evidence=evidence,
        helps=HELPS,
        peak=max(losses.spikes, key=lambda s: s.share).peak,
    )
    return [finding]
