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
    longer than a step: then the level itself (medians of ten steps) must go up and down in waves that are coherent, a tenth
    of it large, and no lower at the end than half of what they were.

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
from gradiometer.record.trace import Trace
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
"""Robust deviation of the level about its slope, as a share of the level (ours)."""
COHERENT: Final = 0.4
"""Correlation of the level with itself one part later: waves have it, noise does not (ours)."""
WAVE_PART: Final = 10
"""Steps whose median is the level."""
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
    return _step_by_step(trace, losses) or _in_long_waves(trace, losses)


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
    parts = np.array([np.median(p) for p in np.array_split(losses.value, max(losses.value.size // WAVE_PART, 1))])
    later = parts[parts.size // 3 :]
    if later.size < 12:
        return []
    x = np.arange(later.size)
    slope, offset = np.polyfit(x, later, 1)
    waves = later - (slope * x + offset)
    level, spread = abs(float(np.median(later))), float(np.sqrt(np.mean(waves**2)))
    if not np.isfinite(spread) or not spread or not level:
        return []
    coherence = float(np.mean(waves[1:] * waves[:-1]) / spread**2)
    third = max(later.size // 3, 1)
    lasting = float(np.median(later[-third:])) > 0.5 * float(np.median(later[:third]))
    if spread < WAVES * level or coherence < COHERENT or not lasting or level < UNDONE * losses.unit:
        return []
    begin, last = int(losses.step[losses.step.size // 3]), int(trace.ledger.step[-1])
    sentence = (
        f"The loss goes up and down in waves of {100 * spread / level:.0f} % of its level and does not settle: a momentum of "
        f"{momentum:g} makes every step the sum of some {1.0 / (1.0 - momentum):.0f} gradients and overruns the bottom."
        if momentum < 1.0
        else "The loss goes up and down in waves and does not settle: a momentum of 1 never loses its speed."
    )
    evidence = (
        Evidence("waves of the level (medians of ten steps) about its slope, as a share of it", spread / level, WAVES, "ours"),
        Evidence("correlation of the level with itself ten steps later", coherence, COHERENT, "ours", "0 is noise"),
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
