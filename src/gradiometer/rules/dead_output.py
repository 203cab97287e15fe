"""Dead output: the last layer says the same whatever the layers before it say.

What it finds:
    A network whose hidden layers tell inputs apart and whose output does not: it is constant, or no gradient at all gets
    back through it to the last layer with weights.

Why it hurts:
    The loss is the only source of gradients, and here the way back from it is shut at the first step. The usual ways to
    get there: a ReLU on the output that has gone negative for every example, a sigmoid at the end of its range, a softmax
    over one choice (which is 1, always), clamping of the output.

How we tell:
    The gradient at the last layer with weights is exactly zero in nearly every look; or the output is the same number for
    all examples of a batch, down to the rounding of the format; or a bounded activation on the output is at an end of its
    range for nearly all of them and lets a hundredth of the gradient through; while what the last layer is given varies with
    the input. It is said only where the loss does not fall: a loss that is content (a hinge loss with every example on the
    right side, a sigmoid that has learned its targets) has no gradient either, and that is the aim.

When it is wrong:
    A network with several outputs, the last of which the loss does not use.

What helps:
    - no activation on the output, and a loss that takes raw numbers (BCEWithLogitsLoss, CrossEntropyLoss)
    - one output per class under a softmax; a sigmoid for a single one
    - softplus or exp where the output must be positive: they have a slope everywhere
    - a smaller learning rate, if the output died in the first steps

References:
    Lu et al. 2019, "Dying ReLU and initialization"; PyTorch documentation, BCEWithLogitsLoss.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.frames import Group
from gradiometer.record.trace import BoolArray, FloatArray, IntArray, Trace
from gradiometer.rules.judging import Case, each_network, hidden_sites, seen, when
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "dead-output"

CONSTANT_SHARE: Final = 1e-12
"""What rounding in float32 leaves of a constant (its relative precision squared is 1e-14); no targets are so much alike."""
SIGHTED_SHARE: Final = 1e-3
"""The hidden layers must vary at least this much, as for input blindness: else the cause lies before the output."""
SATURATED_SHARE: Final = 0.99
"""Ours: hardly an example is left on which the output could change."""
BLOCKED_DECADES: Final = -2.0
"""Ours: a hundredth of the gradient that arrives at the output gets through to the head."""

HELPS: Final = (
    "put no activation on the output and use a loss on raw numbers (BCEWithLogitsLoss, CrossEntropyLoss)",
    "use a sigmoid, not a softmax, for a single output",
    "use softplus or exp where the output must be positive",
    "lower the learning rate, if the output died in the first steps",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the network that has it worst; see the module's text."""
    return each_network(trace, _judge) if trace.stalled else []


def _judge(trace: Trace, chain: IntArray) -> Case | None:
    hidden = hidden_sites(trace, chain)
    end = chain[chain > hidden[-1]] if hidden.size else chain[:0]
    end = np.array([i for i in end if trace.sites[int(i)].role is not Role.EMBEDDING], dtype=np.int64)
    if not end.size or trace.sites[int(end[0])].role is not Role.LINEAR or len(hidden) < 2:
        return None
    head = int(end[0])
    # what carries nothing at all does not vary either
    varying = np.where(np.isneginf(trace.log10_signal[:, hidden]), 0.0, trace.varying_share[:, hidden])
    share = np.array([_last_known(row) for row in varying], dtype=np.float64)
    sighted = np.asarray(share >= SIGHTED_SHARE)
    shut, saturated = _shut(trace, head), _saturated(trace, end)
    dead = (shut | _constant(trace, end) | saturated) & sighted
    span = trace.span(dead, seen(trace, Group.OUTPUT, end) & seen(trace, Group.GRADIENT, end))
    if span is None or not span.at_end:
        return None
    look = int(span.looks[-1])
    step, names = int(trace.steps[look]), trace.names(end)
    guilty = next((trace.sites[int(i)] for i in end[1:] if trace.sites[int(i)].role is Role.ACTIVATION), None)
    last = guilty.name if guilty is not None else names[-1]
    size = trace.log10_signal[look, end]
    silent = bool(np.isneginf(size[~np.isnan(size)][-1:]).all()) and not np.isnan(size).all()
    what = "is zero for every example" if silent else "is the same for every example"
    what = "is at an end of its range" if saturated[look] and not shut[look] else what
    if shut[look]:
        sentence = f"No gradient gets back through the output to `{names[0]}`, {when(span)}: not a single weight can learn"
        sentence += f"; `{last}` {what}." if silent else "."
    else:
        sentence = f"The output `{last}` {what}, {when(span)}, while the layers before it tell the inputs apart."
    evidence = [
        Evidence(
            f"share of the second moment that varies over the batch, in what the last layer is given, at step {step}",
            float(share[look]),
            SIGHTED_SHARE,
            "as for input blindness",
            "hidden layers that do not tell the inputs apart either",
        )
    ]
    if shut[look]:
        claim = f"L2 norm of the gradient at {names[0]}"
        evidence.insert(0, Evidence(claim, 0.0, float("nan"), "a fact", "a gradient other than zero"))
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR,
        confidence=0.95 if shut[look] else 0.85,
        sites=names,
        steps=(span.first, span.last),
        sentence=sentence,
        evidence=tuple(evidence),
        helps=HELPS,
        starts=last,
        shows=names,
        peak=step,
    )
    return Case(finding, float(len(span.looks)))


def _last_known(share: FloatArray) -> float:
    """The share of the last site that is known, which is what the head is given; NaN without any."""
    known = share[~np.isnan(share)]
    return float(known[-1]) if known.size else float("nan")


def _shut(trace: Trace, head: int) -> BoolArray:
    """Looks at which the gradient at the head is exactly zero, shape (S,)."""
    return np.asarray(np.isneginf(trace.log10_gradient[:, head]))


def _constant(trace: Trace, end: IntArray) -> BoolArray:
    """Looks at which the last output is one number for all examples, shape (S,)."""
    size, share = trace.log10_signal[:, end], trace.varying_share[:, end]
    # the last output is what the loss sees; one that is all zero and gets a gradient may have begun so and will move
    return np.asarray(np.isfinite(size[:, -1]) & (share[:, -1] < CONSTANT_SHARE))


def _saturated(trace: Trace, end: IntArray) -> BoolArray:
    """Looks at which a bounded activation on the output is at its ends and lets hardly any gradient through, shape (S,)."""
    share, gradient = trace.saturated_share[:, end], trace.log10_gradient[:, end]
    flat = np.where(np.isnan(share), 0.0, share) >= SATURATED_SHARE
    with np.errstate(invalid="ignore"):
        blocked = gradient[:, :1] - gradient <= BLOCKED_DECADES
    return np.asarray(np.any(flat & blocked, axis=1))
