"""Clipping always on: the gradient norm is cut at every step, and by a lot.

What it finds:
    A threshold for clipping that lies far below what the gradient norm usually is.

Why it hurts:
    Clipping is a harness for falls. Worn so tight that it holds at every step, it decides how long each step is: the
    training is gradient descent with steps of fixed length, and the learning rate means something else than it says.
    Too tight a one leaves steps too short to arrive anywhere.

How we tell:
    The norm before clipping over the threshold, at every step. Active in nearly all steps and by a factor of ten is a
    note where the training learns; for optimizers that divide by the size of their gradients (Adam and its kin) it stays
    a note whatever happens, as a constant factor cancels there. With plain gradient descent it is a warning where the
    loss has not fallen, and an error where besides the weights hardly moved and the slope along a step is the same after
    it as before: there was way left to go.

When it is wrong:
    Normalised gradient descent on purpose.

What helps:
    - a threshold about at the largest norm of a normal step
    - a lower learning rate, if the threshold was lowered to stop the loss from blowing up
    - unscaling gradients before clipping, where a loss scale is used

References:
    Pascanu, Mikolov, Bengio 2013; Zhang et al. 2020, "Why gradient clipping accelerates training".
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.frames import Flag
from gradiometer.record.trace import SETTLE, Trace
from gradiometer.rules.judging import factor
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "clipping-always-on"

ACTIVE_SHARE: Final = 0.9
"""Share of the steps that are clipped. Half is common with recurrent networks (Pascanu et al. 2013)."""
CUT: Final = 10.0
"""How many times the threshold the middle norm is (ours): one decade of the learning rate."""
MIN_STEPS: Final = 20
"""Clipped steps that it takes; gradients are largest in the first ones."""
SHORT_STEP: Final = -3.0
"""log10 of update / weight of the matrix that moves most, below which steps are short (CS231n notes: about 1e-3)."""
SHORT_WAY: Final = 0.5
"""Sum of update / weight over the run below which no weight can have got anywhere (as for a low learning rate)."""

_SCALE_FREE: Final = ("adam", "lamb", "lion", "rmsprop", "adagrad", "adadelta", "rprop", "adafactor", "sign", "muon", "shampoo")

HELPS: Final = (
    "raise the threshold to about the largest norm of a normal step",
    "if it was lowered because the loss blew up, lower the learning rate instead",
    "with a gradient scaler, unscale the gradients before clipping",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    if not trace.ledger.step.size:
        return []
    norm, threshold = trace.ledger["grad_norm"], trace.ledger["clip_threshold"]
    known = np.isfinite(norm) & (threshold > 0.0) & trace.ledger.has(Flag.PRE_CLIP) & (trace.ledger.step >= SETTLE)
    if np.count_nonzero(known) < MIN_STEPS:
        return []
    ratio, steps = norm[known] / threshold[known], trace.ledger.step[known]
    active, cut = float(np.mean(ratio > 1.0)), float(np.median(ratio))
    if active < ACTIVE_SHARE or cut < CUT:
        return []
    undone = _undone_by_the_optimizer(trace)
    starved = _starved(trace)
    if trace.stalled and not undone:
        severity = Severity.ERROR if starved else Severity.WARNING
    else:
        severity = Severity.INFO
    sentence = (
        f"The gradient is clipped in {100 * active:.0f} % of the steps, to {factor(-float(np.log10(cut)))} of its norm in the "
        "middle one"
    )
    if undone:
        sentence += f"; {undone} divides by the size of its gradients, so that this changes little."
    elif starved and trace.stalled:
        sentence += f": over the whole run no weight matrix can have moved by more than {100 * trace.travel:.2g} % of its size."
    else:
        sentence += ": the threshold, not the gradient, decides how long a step is."
    evidence = [
        Evidence("share of the steps whose gradient was clipped", active, ACTIVE_SHARE, "ours", "norms below the threshold"),
        Evidence("norm before clipping over the threshold, middle step", cut, CUT, "ours", "a threshold near the usual norm"),
    ]
    if np.isfinite(trace.travel):
        claim = "sum over all steps of update / weight, of the weight matrix that moves most"
        evidence.append(Evidence(claim, trace.travel, SHORT_WAY, "ours", "weights that go further"))
    finding = Finding(
        rule=NAME,
        severity=severity,
        confidence=0.9,
        sites=(),
        steps=(int(steps[0]), int(steps[-1])),
        sentence=sentence,
        evidence=tuple(evidence),
        helps=HELPS,
        peak=int(steps[np.argmax(ratio)]),
    )
    return [finding]


def _starved(trace: Trace) -> bool:
    """Whether the steps were so short that the training could not have arrived, with way left to go."""
    if not trace.pace.size or trace.travel > SHORT_WAY or float(np.median(trace.pace)) > SHORT_STEP:
        return False
    overshoot = trace.overshoot[np.isfinite(trace.overshoot)]
    return overshoot.size == 0 or float(np.median(overshoot)) > 0.0


def _undone_by_the_optimizer(trace: Trace) -> str:
    """Name of an optimizer whose steps do not depend on the scale of the gradient; empty if there is none."""
    kinds = [str(o.get("kind", "")) for o in trace.optimizers]
    return next((k for k in kinds if any(s in k.lower() for s in _SCALE_FREE)), "")
