"""Skipped steps: a gradient scaler that drops the steps instead of finding a scale.

What it finds:
    Steps that the optimizer did not take, because a gradient was not finite at the loss scale that was tried; and a script
    that computes gradients and never takes a step with them.

Why it hurts:
    Training in float16 multiplies the loss so that small gradients survive, and halves the factor whenever one overflows.
    A few lost steps are the price of that search. Where most are lost, the training stands still without a single NaN in
    it, and the loss curve only looks flat.

How we tell:
    The share of skipped steps among the last ones (a fifth of the run, at least twenty). The search at the start costs
    some ten steps and one in about two thousand afterwards, and is not counted. It is an error where half of the last
    steps are lost, a warning from a tenth on. Where backward passes were seen and never a step of an optimizer, and no
    weight has changed by the last bit, nobody steps: a condition that never holds, a call that is missing.

When it is wrong:
    A script that skips steps on purpose with the scaler's own means (by making gradients infinite).

What helps:
    - bfloat16, which has the range of float32 and needs no loss scale
    - the operation whose result float16 cannot hold (a sum over many elements, an exponential), run in float32
    - a smaller learning rate or clipping, where the gradients grow before they overflow

References:
    Micikevicius et al. 2018, "Mixed precision training" (loss scaling).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.frames import Flag
from gradiometer.record.trace import Trace
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "skipped-steps"

ERROR_SHARE: Final = 0.5
"""A loss scale that is searched for costs some ten steps; where half of the last ones are skipped it finds none."""
WARN_SHARE: Final = 0.1
"""Ours: two hundred times what a scaler needs that doubles its scale every 2000 steps."""
LAST_STEPS: Final = 20
"""From how many steps on that is judged, and how many of the last are counted at least."""
MANY_BACKWARDS: Final = 50
"""Backward passes from which it is no accumulation of gradients for a first step (ours)."""

HELPS: Final = (
    "train in bfloat16, which needs no loss scale",
    "find the operation whose result float16 cannot hold, and run it in float32",
    "lower the learning rate or clip the gradient norm (after unscaling it)",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    if never := _never_taken(trace):
        return never
    skipped = trace.ledger.has(Flag.SKIPPED)
    last = skipped[-max(LAST_STEPS, skipped.size // 5) :]
    share = float(last.mean()) if last.size else 0.0
    # a live look at the first steps sees the search for a scale
    searching = skipped.size < 3 * LAST_STEPS
    if skipped.size < LAST_STEPS or share < (ERROR_SHARE if searching else WARN_SHARE):
        return []
    steps = trace.ledger.step[skipped]
    still = share >= ERROR_SHARE
    # the search for a scale is over by then, or the run is
    certain = still and not (trace.running and searching)
    sentence = (
        f"The gradient scaler skipped {int(last.sum())} of the last {last.size} steps, because a gradient was not finite at "
        + ("any loss scale it tried: the training stands still." if still else "the loss scale it tried.")
    )
    evidence = [
        Evidence(
            "share of the last steps that were skipped",
            share,
            ERROR_SHARE if still else WARN_SHARE,
            "ours; a scaler at work skips one step in about two thousand (Micikevicius et al. 2018)",
            "fewer skips",
        )
    ]
    scale = trace.ledger["loss_scale"]
    scale = scale[np.isfinite(scale) & (scale > 0.0)]
    if scale.size:
        evidence.append(Evidence("loss scale at the last step", float(scale[-1]), float("nan"), "the gradient scaler"))
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR if certain else Severity.WARNING,
        confidence=1.0,
        sites=(),
        steps=(int(steps[0]), int(trace.ledger.step[-1])),
        sentence=sentence,
        evidence=tuple(evidence),
        helps=HELPS,
        peak=int(steps[0]),
    )
    return [finding]


def _never_taken(trace: Trace) -> list[Finding]:
    """Gradients are computed, and the weights are to the last bit what they were."""
    if trace.optimizers or trace.steps_seen < MANY_BACKWARDS or not trace.stalled:
        return []
    if not bool(np.all(trace.ledger["optimizer"] < 0.0)):  # a number below zero: no optimizer, the backward pass counts
        return []
    squares = trace.values["weight_sumsq"][:, trace.weights]
    known = squares[:, np.isfinite(squares).all(axis=0)] if squares.size else squares
    if known.shape[0] < 2 or not known.shape[1] or bool((known != known[0]).any()):
        return []
    last = int(trace.ledger.step[-1])
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR,
        confidence=0.9,
        sites=(),
        steps=(0, last),
        sentence=f"No step is ever taken: after {trace.steps_seen} backward passes every weight is what it was at the start.",
        evidence=(
            Evidence(
                "backward passes without a step of an optimizer",
                float(trace.steps_seen),
                float(MANY_BACKWARDS),
                "ours",
                "a weight that has moved",
            ),
        ),
        helps=("look at the condition under which optimizer.step() is called", *HELPS[2:]),
        peak=0,
    )
    return [finding]
