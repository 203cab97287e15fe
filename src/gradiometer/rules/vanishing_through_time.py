"""Vanishing through time: what happened early in a sequence cannot be learned from.

What it finds:
    A recurrent layer over whose steps the gradient of its last state fades by decades, in a training that fails.

Why it hurts:
    The state of step t reaches the loss through all the steps after it, and each of them multiplies the gradient. Whatever the
    early part of the sequence has to say, no weight is told so: the network learns what the last few steps can teach, and
    stops there.

How we tell:
    For nn.RNN, nn.LSTM and nn.GRU the gradient of the last state with respect to earlier ones, an eighth of the sequence
    at a time; for a cell that is called in a loop, the gradients of its outputs in the order of the calls. A ratio, never an
    absolute size. Healthy networks forget too (an untrained LSTM halves the gradient in every step, and next-word
    prediction does not need to look far back), so it is a finding only where the loss has not fallen although the weights have
    gone some way, or by no more than knowing the mean of the targets is worth.

When it is wrong:
    A training that fails for another reason, of a network that forgets as it should. A module shared over depth and called many
    times looks like time.

What helps:
    - an LSTM or GRU, with the forget gate's bias at 1 or more so that it remembers at the start
    - orthogonal or identity recurrent weights
    - a shorter way back: attention, skip connections over time, or the sequence reversed
    - shorter sequences first

References:
    Hochreiter 1991; Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013; Gers et al. 2000 and Jozefowicz et al.
    2015 (forget gate's bias); Le, Jaitly & Hinton 2015 (identity).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.depth import ZERO_DECADES
from gradiometer.record.trace import Trace
from gradiometer.rules.judging import Case, factor, moved, when, worst_case
from gradiometer.rules.recurrence import Recurrence, recurrences
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "vanishing-through-time"

WARN_DECADES: Final = 3.0
"""The level of vanishing gradient along depth: a thousandth is left."""
MOVED: Final = 0.05
"""Ours: how far a typical weight must have gone, in its own size, before a loss that stands still says anything."""

HELPS: Final = (
    "use an LSTM or a GRU, with the bias of the forget gate at 1 or more",
    "initialise the recurrent weights orthogonal or as the identity",
    "give early steps a shorter way to the loss: attention, skips over time, or the sequence reversed",
    "train on shorter sequences first",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the recurrent layer that has it worst; see the module's text."""
    if trace.too_early or not (trace.stalled or trace.knows_the_mean_only) or moved(trace) < MOVED:
        return []
    return worst_case(_judge(trace, layer) for layer in recurrences(trace))


def _judge(trace: Trace, layer: Recurrence) -> Case | None:
    span = trace.span(layer.falls >= WARN_DECADES, layer.known)
    if span is None or not (span.at_end or span.first == 0):
        return None
    look = int(span.looks[np.argmax(layer.falls[span.looks])])
    step, fall = int(trace.steps[look]), float(layer.falls[look])
    exact = fall >= ZERO_DECADES
    span_words = (
        f"{when(span)}, and the loss {'does not fall' if trace.stalled else 'stands where the mean of the targets puts it'}"
    )
    if exact:
        sentence = f"Of {layer.length} steps of time the first get no gradient at all at `{layer.sites[0]}`, {span_words}."
    else:
        sentence = (
            f"The gradient of `{layer.sites[0]}` fades through time: by {fall:.1f} decades over {layer.length} steps "
            f"(a factor of {factor(-fall / layer.length)} per step), {span_words}."
        )
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR,
        confidence=0.85,
        sites=layer.sites,
        steps=(span.first, span.last),
        sentence=sentence,
        evidence=(
            Evidence(
                "decades (log10) by which the gradient is smaller at the first step of time than at the last ones, "
                f"at step {step}" + (" (an exact zero counts as 45)" if exact else ""),
                fall,
                WARN_DECADES,
                "the level of vanishing gradient along depth",
                "a loss that falls though early steps get no gradient",
            ),
        ),
        helps=HELPS,
        starts=layer.sites[-1],
        shows=layer.sites[: max(1, len(layer.sites) // 2)],
        peak=step,
    )
    return Case(finding, fall)
