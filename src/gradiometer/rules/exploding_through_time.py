"""Exploding through time: every step of a sequence makes the gradient larger.

What it finds:
    A recurrent layer over whose steps the gradient of its last state grows by decades on its way back in time.

Why it hurts:
    The recurrent weights are used at every step, so their gradient is the sum over all of them: the earliest ones drown the
    rest, and a small change of the weights changes the last state beyond recognition. The loss has walls: one step
    against such a wall throws the weights far away.

How we tell:
    For nn.RNN, nn.LSTM and nn.GRU the gradient of the last state with respect to earlier ones, an eighth of the sequence
    at a time; for a cell that is called in a loop, the gradients of its outputs in the order of the calls. It is an error
    where the loss does not fall or is no number any more, or where it lasts and less than half of the loss is gone at the
    end; a warning where the training copes, with clipping say.

When it is wrong:
    A loop in which early steps feed many losses: their gradients add up, which is growth by the number of steps, about
    one or two decades.

What helps:
    - clip the norm of the gradient (for recurrent networks that is the rule, not the exception)
    - orthogonal recurrent weights, or a spectral radius of at most 1
    - an LSTM or GRU
    - shorter stretches of back-propagation through time

References:
    Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.trace import Trace
from gradiometer.rules.judging import Case, broke_the_start, factor, span_from_start, when, worst_case
from gradiometer.rules.recurrence import Recurrence, recurrences
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "exploding-through-time"

WARN_DECADES: Final = 2.5
"""Ours: gradients of a hundred losses that add up make two decades without any growth."""
EXTREME_DECADES: Final = 4.0
"""As for exploding gradient: the first look alone counts where the training fails, as the next may find no number."""
HELPS: Final = (
    "clip the norm of the gradient",
    "initialise the recurrent weights orthogonal, with a spectral radius of at most 1",
    "use an LSTM or a GRU",
    "lower the learning rate, or back-propagate through fewer steps",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the recurrent layer that has it worst; see the module's text."""
    return worst_case(_judge(trace, layer) for layer in recurrences(trace))


def _judge(trace: Trace, layer: Recurrence) -> Case | None:
    span = span_from_start(trace, layer.rises >= WARN_DECADES, layer.known, layer.rises >= EXTREME_DECADES)
    if span is None:
        return None
    look = int(span.looks[np.argmax(layer.rises[span.looks])])
    step, rise = int(trace.steps[look]), float(layer.rises[look])
    fails = (trace.suffers and span.at_end) or (trace.stalled and (span.at_end or broke_the_start(trace, span)))
    clipped = bool(np.isfinite(trace.ledger["clip_threshold"]).any())
    sentence = (
        f"The gradient of `{layer.sites[0]}` grows through time: by {rise:.1f} decades over {layer.length} steps on its way "
        f"back (a factor of {factor(rise / layer.length)} per step), {when(span)}."
    )
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR if fails else Severity.WARNING,
        confidence=0.85,
        sites=layer.sites,
        steps=(span.first, span.last),
        sentence=sentence,
        evidence=(
            Evidence(
                "decades (log10) by which the gradient is larger at an early step of time than at the last ones, "
                f"at step {step}",
                rise,
                WARN_DECADES,
                "ours; Pascanu et al. 2013 describe the growth",
                f"a growth below {WARN_DECADES:g} decades in most looks",
            ),
        ),
        helps=HELPS[1:] if clipped else HELPS,
        starts=layer.sites[-1],
        shows=layer.sites[: max(1, len(layer.sites) // 2)],
        peak=step,
    )
    return Case(finding, rise)
