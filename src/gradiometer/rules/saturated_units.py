"""Saturated units: bounded activations that sit in their flat parts.

What it finds:
    Hidden layers whose sigmoid, tanh or clipped activations are nearly all at an end of their range.

Why it hurts:
    There the slope is almost zero, and the chain rule multiplies by it: what is behind learns nothing. Unlike a small
    initial slope this is made by weights or inputs that are too large.

How we tell:
    Share of elements beyond .05/.95 (sigmoid), .97 (tanh) or at the ends (clipped), in hidden layers, lasting beyond the
    first five steps; and the rms slope against the steepest one. An activation after the last weight layer is an output
    and may saturate when the training has converged.

When it is wrong:
    Gates (LSTM-like, attention-like) that have learned to be open or shut.

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

from gradiometer.record.trace import Trace
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "saturated-units"

WARN_SHARE: Final = 0.75
"""theory.md D1.4 proposes 0.5; trained healthy tanh networks come near that."""
ERROR_SHARE: Final = 0.9
"""theory.md D1.4."""

_HELPS: Final = (
    "initialise with smaller weights",
    "scale the inputs to zero mean and unit variance",
    "put normalisation before the activation",
    "use an activation that does not saturate (ReLU, GELU)",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, over all hidden layers; see the module's text."""
    weights = trace.with_role(Role.LINEAR, Role.RECURRENT)
    last_weight = int(weights[-1]) if weights.size else len(trace.sites)
    index = np.array([i for i in trace.with_role(Role.ACTIVATION) if i < last_weight], dtype=np.int64)
    share = trace.saturated_share[:, index]
    with np.errstate(invalid="ignore"):
        ill = np.asarray(share >= WARN_SHARE)
    span = trace.span(np.any(ill, axis=1)) if index.size else None
    if span is None:
        return []
    strength = np.nansum(np.where(ill, share, 0.0), axis=1)
    look = int(span.looks[int(np.argmax(strength[span.looks]))])
    worst = np.flatnonzero(ill[look])
    names = trace.names(index)
    top = int(worst[np.argmax(share[look, worst])])
    lasting = span.at_end and not trace.learned
    severity = Severity.ERROR if lasting and share[look, top] >= ERROR_SHARE else Severity.WARNING
    onset = int(span.looks[0])
    start = int(np.flatnonzero(ill[onset])[0])
    slope = trace.slope[look, index[top]]
    since = f"from step {span.first}" + ("" if span.at_end else f" until step {span.last}")
    sentence = (
        f"{100 * share[look, top]:.0f} % of `{names[top]}` is saturated ({since}): its slope is {slope:.2g} of the steepest"
        + (
            f"; {len(worst)} of {len(names)} activations are more than {100 * WARN_SHARE:.0f} % saturated."
            if len(worst) > 1
            else "."
        )
    )
    return [
        Finding(
            rule=NAME,
            severity=severity,
            confidence=0.9,
            sites=tuple(names[int(i)] for i in worst),
            steps=(span.first, span.last),
            sentence=sentence,
            evidence=(
                Evidence(
                    f"share of the elements of {names[top]} in the flat part, at step {int(trace.steps[look])}",
                    float(share[look, top]),
                    WARN_SHARE,
                    "theory.md D1.4, raised on the calibration half of the zoo",
                    f"a share below {WARN_SHARE:g} in most looks",
                ),
                Evidence("rms slope / steepest slope there", float(slope), 0.3, "own", "a slope near 1"),
            ),
            helps=_HELPS,
            starts=names[start],
            shows=tuple(names[int(i)] for i in worst),
        )
    ]
