"""Plateau: the loss is flat although gradients arrive and steps are taken.

What it finds:
    A loss that has not fallen and does not fall, in a network through which signal and gradient pass and whose weights
    move as weights do.

Why it hurts:
    The explorer walks and gets nowhere: a saddle, a symmetric start, a task whose labels do not follow from its inputs, or
    gradients that cancel. Rescaling the steps does not help, as their length is not what is wrong.

How we tell:
    By exclusion, of what can be measured: the loss did not fall clearly, its last half has no slope, the weights have
    travelled at least half of their size, no step threw them, nothing vanishes, explodes, goes blind or dies along depth.
    It is an error only where the loss stands at the level of guessing (ln of the number of classes) for long, and never
    left it. Else a flat loss may be all there is to reach: a training that was resumed when it had converged, or noise, and
    it is a warning.

When it is wrong:
    A resumed training; a loss that rightly does not fall. Some tasks stay flat for long and then fall at once.

What helps:
    - fitting ten examples first: if that fails too, the loss or the gradient path is wrong
    - checking that labels belong to their inputs (a shuffle of one and not of the other)
    - another initialisation, or a larger learning rate for a while, where it is a saddle
    - a larger batch, where gradients cancel

References:
    Dauphin et al. 2014 (saddle points); Shalev-Shwartz et al. 2017, "Failures of gradient-based deep learning".
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.trace import LONG_STEP, SETTLE, Trace
from gradiometer.rules.judging import plural
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "plateau"

MIN_STEPS: Final = 100
"""Fewer steps may be the flat beginning of any training."""
LONG: Final = 400
"""Steps from which a loss that never left the level of guessing is an error while the training goes on. Ours: parities of a
few bits stay flat for some three hundred steps and then fall."""
STRAIGHT: Final = 0.5
"""An overshoot above this is a slope that goes on after the step. Where three of four steps find one and the loss stands all
the same, it is neither noise nor the bottom."""
WHOLE_SLOPE: Final = 0.8
"""Above this the steps are simply short: that is a learning rate which is too low."""
MIN_LOOKS: Final = 8
"""Overshoots, of the second half of the looks, that it takes to say so."""
FLAT: Final = 0.03
"""Fall of the loss over the last half of the run, as a share of its start, below which it is flat (ours)."""
CREEP: Final = 0.2
"""A loss that creeps up by less than this share of its start over the last half gets nowhere as one that stands (ours)."""
DRIFT_SIGMA: Final = 4.0
"""A fall of this many standard errors is a fall, however small."""
A_LITTLE: Final = 0.05
"""A loss that has fallen by this share has learned something: where labels are noisy that may be all there is (ours)."""
MIN_WAY: Final = 0.5
"""Sum of update / weight below which the steps are too short to tell (the same level as for a low learning rate)."""
RISE: Final = 1.0
"""A loss that rose to twice its first value was thrown, and is no plateau."""

HELPS: Final = (
    "try to fit ten examples: if that fails too, the loss or the path of the gradient is wrong",
    "check that the labels belong to their inputs, and that the inputs carry what is asked for",
    "start from another initialisation, or raise the learning rate for a while",
    "use a larger batch",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    losses = trace.only_losses
    if losses is None or trace.steps_seen < MIN_STEPS or not trace.stalled or not trace.pace.size:
        return []
    drift, error = losses.drift(), losses.drift_error()
    if not np.isfinite(drift) or losses.value.size < MIN_STEPS or trace.warming_up:
        return []
    flat = -CREEP < drift < FLAT and drift < DRIFT_SIGMA * error + 0.1 * FLAT
    settled = trace.steps >= SETTLE
    sizes = trace.typical_step[settled]
    sizes = sizes[np.isfinite(sizes)]
    sane = sizes.size > 0 and trace.travel >= MIN_WAY and float(sizes.max()) < LONG_STEP
    thrown = losses.above_start >= RISE
    sound = bool(settled.any()) and bool(trace.sound_depth[settled].mean() > 0.5)
    if not flat or not sane or thrown or not sound:
        return []
    level = " at the level of guessing" if trace.at_chance else ""
    sentence = (
        f"The loss stands still{level}: over the last half of {plural(trace.steps_seen, 'step', 'steps')} it fell by "
        f"{max(100 * drift, 0.0):.1f} % of its start, although gradients pass through every layer and the weights move."
    )
    overshoot = trace.overshoot[np.isfinite(trace.overshoot)]
    late = overshoot[overshoot.size // 2 :]
    if overshoot.size >= MIN_LOOKS and float(np.percentile(overshoot, 25)) >= WHOLE_SLOPE:
        return []
    straight = late.size >= MIN_LOOKS and float(np.percentile(late, 25)) >= STRAIGHT
    nothing = trace.learning.fall < A_LITTLE
    long_enough = trace.steps_seen >= LONG or not trace.running  # one that has ended will not fall any more
    evidence = [
        Evidence(
            "fall of the loss over the last half of the run, as a share of its start",
            drift,
            FLAT,
            "ours",
            f"a fall beyond {FLAT:g}, or beyond {DRIFT_SIGMA:g} standard errors ({error:.1g} each)",
        ),
        Evidence("sum over all steps of update / weight", trace.travel, MIN_WAY, "ours", "weights that do not move"),
    ]
    if overshoot.size:
        claim = "middle overshoot (near 0: noise, one batch's gradient says nothing about the next; near 1: a steady slope)"
        evidence.append(Evidence(claim, float(np.median(overshoot)), float("nan"), "a quadratic bowl"))
    last = int(trace.ledger.step[-1])
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR if long_enough and nothing and (trace.at_chance or straight) else Severity.WARNING,
        confidence=0.6,
        sites=(),
        steps=(int(losses.step[0]), last),
        sentence=sentence,
        evidence=tuple(evidence),
        helps=HELPS,
        peak=last,
    )
    return [finding]
