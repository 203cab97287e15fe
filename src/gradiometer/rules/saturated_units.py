"""Saturated units: bounded activations that sit in their flat parts.

What it finds:
    Hidden layers whose sigmoid, tanh or clipped activations are nearly all at an end of their range.

Why it hurts:
    There the slope is almost zero, and the chain rule multiplies by it: what is behind learns nothing. Unlike a small
    initial slope this is made by weights or inputs that are too large.

How we tell:
    Share of elements beyond .05/.95 (sigmoid), .97 (tanh) or at the ends (clipped), in hidden layers, lasting beyond the
    first five steps; and the rms slope against the steepest one. An activation after the last layer with weights of its
    network is an output and may saturate when the training has converged. A few saturated activations in a network that
    learns may well be gates and are only a note; it is a warning when most of all activations are saturated. It is an error
    when the training keeps more than half of its loss and most of them are, or nearly all of the first one, which all of
    the input goes through.

When it is wrong:
    Gates (LSTM-like, attention-like, squeeze-and-excite) that have learned to be open or shut.

What helps:
    - smaller initial weights
    - inputs scaled to unit variance
    - normalisation before the activation
    - an activation that does not saturate

References:
    Glorot & Bengio 2010; LeCun et al. 1998 (Efficient BackProp).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.frames import Group
from gradiometer.record.trace import IntArray, Trace
from gradiometer.rules.judging import seen, when
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "saturated-units"

WARN_SHARE: Final = 0.75
"""Half would be a natural level; trained healthy tanh networks come near that."""
SHUT_SHARE: Final = 0.95
"""Ours: one unit of twenty still has a slope."""
ERROR_SHARE: Final = 0.9
"""Our level: one unit in ten is left to pass a gradient."""

HELPS: Final = (
    "initialise with smaller weights",
    "scale the inputs to zero mean and unit variance",
    "put normalisation before the activation",
    "use an activation that does not saturate (ReLU, GELU)",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, over all hidden layers; see the module's text."""
    index = _hidden(trace)
    share = trace.saturated_share[:, index]
    ill = np.asarray(share >= WARN_SHARE)
    span = trace.span(np.any(ill, axis=1), seen(trace, Group.OUTPUT, index))
    if span is None:
        return []
    strength = np.where(ill, share, 0.0).sum(axis=1)
    look, onset = int(span.looks[np.argmax(strength[span.looks])]), int(span.looks[0])
    step, worst = int(trace.steps[look]), np.flatnonzero(ill[look])
    names = trace.names(index)
    top = int(worst[np.argmax(share[look, worst])])
    most = 2 * len(worst) > len(trace.with_role(Role.ACTIVATION))
    # whatever the others do: all of the input goes through the first one; later ones may be gates
    front = int(trace.with_role(Role.ACTIVATION)[0])
    shut = bool((share[look, index == front] >= SHUT_SHARE).any())
    severity = Severity.INFO if trace.learned and not most else Severity.WARNING
    if span.at_end and (trace.stalled or ((most or shut) and trace.suffers)) and share[look, top] >= ERROR_SHARE:
        severity = Severity.ERROR
    slope = float(trace.slope[look, index[top]])
    sentence = f"{100 * share[look, top]:.0f} % of `{names[top]}` is saturated, {when(span)}"
    if np.isfinite(slope):
        sentence += f": the slope there is {slope:.2g} of the steepest"
    if len(worst) > 1:
        sentence += f"; {len(worst)} of {len(names)} bounded activations are more than {100 * WARN_SHARE:.0f} % saturated"
    evidence = [
        Evidence(
            f"share of the elements of {names[top]} in the flat part, at step {step}",
            float(share[look, top]),
            WARN_SHARE,
            "our level; well runs of the calibration half of the zoo stay below 0.1",
            f"a share below {WARN_SHARE:g} in most looks",
        )
    ]
    if np.isfinite(slope):
        claim = "rms slope there as a share of the steepest"
        evidence.append(Evidence(claim, slope, float("nan"), "Glorot & Bengio 2010", "a slope near 1"))
    finding = Finding(
        rule=NAME,
        severity=severity,
        confidence=0.9,
        sites=tuple(names[int(i)] for i in worst),
        steps=(span.first, span.last),
        sentence=sentence + ".",
        evidence=tuple(evidence),
        helps=HELPS,
        starts=names[int(np.flatnonzero(ill[onset])[0])],
        shows=tuple(names[int(i)] for i in worst),
        peak=step,
    )
    return [finding]


def _hidden(trace: Trace) -> IntArray:
    """Bounded activations that a layer with weights follows in their network."""
    hidden: list[int] = []
    for chain in trace.chains:
        weights = [i for i in chain if trace.sites[int(i)].role in (Role.LINEAR, Role.RECURRENT, Role.ATTENTION)]
        last = int(weights[-1]) if weights else len(trace.sites)
        bounded = (int(i) for i in chain if np.isfinite(trace.saturated_share[:, i]).any())
        hidden += [i for i in bounded if i < last and trace.sites[i].role is Role.ACTIVATION]
    return np.array(sorted(hidden), dtype=np.int64)
