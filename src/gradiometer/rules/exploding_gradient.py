"""Exploding gradient: the gradient grows layer by layer on its way back to the input.

What it finds:
    The gradient of the loss with respect to module outputs is larger near the input than near the output by decades.

Why it hurts:
    The explorer stands at a cliff: a step as long as the slope is steep throws them across the range. The first layers
    take steps far too large while the last ones take reasonable ones, and no single learning rate suits both.

How we tell:
    A ratio along depth, never an absolute norm (a loss that is summed instead of averaged has norms in the thousands
    and is well). The same envelopes as for vanishing, read from the other end; a steady growth needs a Theil-Sen slope
    whose 95 % interval leaves zero out, and the growth must last beyond the first five steps.

When it is wrong:
    Pre-norm transformers with small embeddings show about one decade of growth towards the input by design: the first
    layer normalisation divides by a small number. Growth by batch normalisation without skips heals within a few steps.

What helps:
    - weights at the critical scale of the activation (He for ReLU, sigma_w = 1 for tanh)
    - residual connections with scaled branches, or normalisation
    - clipping the gradient norm, the harness that holds the step (it cures the symptom only)
    - a smaller learning rate

References:
    Pascanu, Mikolov, Bengio 2013; Schoenholz et al. 2017; Yang et al. 2019 (batch normalisation).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.depth import fall_towards_output, slope_along_depth
from gradiometer.record.trace import Trace
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "exploding-gradient"

WARN_DECADES: Final = 1.5
"""Above what pre-norm transformers and batch normalisation show in healthy trainings of the calibration half."""
ERROR_DECADES: Final = 4.0
"""A learning rate that suits the last layer is 10,000 times too large for the first; an error if it lasts."""
LOUD_DECADES: Final = 0.5
"""Sites within this many decades of the largest gradient are where it shows."""

_HELPS: Final = (
    "scale the weights down to the critical point of the activation",
    "add normalisation, or residual connections with scaled branches",
    "clip the gradient norm to what a normal step has",
    "lower the learning rate",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    index = trace.outputs
    y = trace.log10_gradient[:, index]
    finite = np.where(np.isfinite(y), y, np.nan)  # exact zeros are another disease
    rises = np.array([fall_towards_output(row) for row in finite])
    fits = [slope_along_depth(row) if rise >= WARN_DECADES else None for row, rise in zip(finite, rises, strict=True)]
    steady = np.array([fit is not None and fit.high < 0.0 for fit in fits])
    span = trace.span((rises >= WARN_DECADES) & (steady | (rises >= ERROR_DECADES)))
    if span is None:
        return []
    look = int(span.looks[int(np.argmax(rises[span.looks]))])
    row, rise, fit = finite[look], float(rises[look]), fits[look]
    assert fit is not None
    early = span.first <= 5
    lasting = span.at_end or (early and len(span.looks) >= 3)
    severity = Severity.ERROR if lasting and (not trace.learned or rise >= ERROR_DECADES) else Severity.WARNING
    names = trace.names(index)
    loud = np.flatnonzero(row >= np.nanmax(row) - LOUD_DECADES)
    end = int(np.flatnonzero(row <= np.nanmin(row[int(loud[0]) :]) + 0.2)[-1])
    guilty = np.array([i for i in range(int(loud[0]), end + 1) if np.isfinite(row[i])])
    layers = max(sum(trace.sites[index[i]].role in (Role.LINEAR, Role.RECURRENT) for i in guilty), 1)
    since = f"from step {span.first}" + ("" if span.at_end else f" until step {span.last}")
    sentence = (
        f"The gradient grows {10**rise:.3g} times ({rise:.1f} decades) on its way from `{names[end]}` back to "
        f"`{names[int(loud[0])]}`, about {10 ** (rise / layers):.3g} times per layer over {layers} layers, {since}."
    )
    return [
        Finding(
            rule=NAME,
            severity=severity,
            confidence=0.9 if fit.clear else 0.7,
            sites=tuple(names[int(i)] for i in guilty),
            steps=(span.first, span.last),
            sentence=sentence,
            evidence=(
                Evidence(
                    f"log10 |d loss / d output| (L2), input end minus output end, at step {int(trace.steps[look])}",
                    rise,
                    WARN_DECADES,
                    "calibrated on the calibration half of the zoo",
                    f"a growth below {WARN_DECADES:g} decades in most looks",
                ),
                Evidence(
                    f"decades per site towards the output, Theil-Sen, 95 % interval {fit.low:.3f} to {fit.high:.3f}, "
                    f"{fit.sites} sites",
                    fit.slope,
                    0.0,
                    "Sen 1968",
                    "an interval that contains 0 means no steady factor",
                ),
            ),
            helps=_HELPS,
            starts=names[end],
            shows=tuple(names[int(i)] for i in loud),
        )
    ]
