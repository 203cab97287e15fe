"""Exploding gradient: the gradient grows layer by layer on its way back to the input.

What it finds:
    The gradient of the loss with respect to module outputs is larger near the input than near the output by decades.

Why it hurts:
    The explorer stands at a cliff: a step as long as the slope is steep throws them across the range. The first layers
    take steps far too large while the last ones take reasonable ones, and no single learning rate suits both.

How we tell:
    A ratio along depth, never an absolute norm (a loss that is summed instead of averaged has norms in the thousands
    and is well). The same two ends as for vanishing, read the other way round; a steady growth needs a Theil-Sen slope
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

from gradiometer.record.depth import falls_towards_output, output_end, slope_along_depth
from gradiometer.record.frames import Group
from gradiometer.record.trace import IntArray, Trace
from gradiometer.rules.judging import (
    Case,
    broke_the_start,
    each_network,
    factor,
    layers_between,
    seen,
    severity_of,
    span_from_start,
    when,
)
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "exploding-gradient"

WARN_DECADES: Final = 1.5
"""A pre-norm transformer has about one decade by design; well runs of the calibration half of the zoo stay below 1.2."""
ERROR_DECADES: Final = 4.0
"""A learning rate that suits the last layer is 10,000 times too large for the first; an error if it lasts."""
MIN_LAYERS: Final = 4
"""Over fewer layers than this, less than `ERROR_DECADES` is a matter of single layers (a regression onto large targets has
large weights), not of a factor that depth multiplies."""
LOUD_DECADES: Final = 0.5
"""Sites within this many decades of the largest gradient are where it shows."""

HELPS: Final = (
    "scale the weights down to the critical point of the activation",
    "add normalisation, or residual connections with scaled branches",
    "clip the gradient norm to what a normal step has",
    "lower the learning rate",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the network that has it worst; see the module's text."""
    return each_network(trace, _judge)


def _judge(trace: Trace, index: IntArray) -> Case | None:
    y = trace.log10_gradient[:, index]
    y = np.where(np.isfinite(y), y, np.nan)  # exact zeros are another disease
    rises = falls_towards_output(y)
    fits = [slope_along_depth(row) if rise >= WARN_DECADES else None for row, rise in zip(y, rises, strict=True)]
    steady = np.array([fit is not None and fit.high < 0.0 for fit in fits], dtype=np.bool_)
    extreme = rises >= ERROR_DECADES
    deep = layers_between(trace, int(index[0]), int(index[-1])) >= MIN_LAYERS
    held = (rises >= WARN_DECADES) & ((steady & deep) | extreme)
    span = span_from_start(trace, held, seen(trace, Group.GRADIENT, index), extreme)
    if span is None:
        return None
    look = int(span.looks[np.argmax(rises[span.looks])])
    step, row, rise = int(trace.steps[look]), y[look], float(rises[look])
    fit = slope_along_depth(row)
    severity = severity_of(trace, span, extreme=rise >= ERROR_DECADES)
    if broke_the_start(trace, span):
        severity = Severity.ERROR
    names = trace.names(index)
    loud = np.flatnonzero(row >= np.nanmax(row) - LOUD_DECADES)
    first = int(loud[0])
    end = output_end(row)
    guilty = [i for i in range(first, end + 1) if np.isfinite(row[i])]
    layers = layers_between(trace, int(index[first]), int(index[end]))
    each = f"a factor of {factor(rise / layers)} per layer over {layers} layers" if layers > 1 else "within one layer"
    sentence = (
        f"The gradient grows by {rise:.1f} decades (a factor of {factor(rise)}) on its way from `{names[end]}` back to "
        f"`{names[first]}`: {each}, {when(span)}."
    )
    if not span.at_end and trace.learned:
        sentence += " It healed by itself."
    evidence = [
        Evidence(
            "decades (log10) by which the L2 norm of the gradient of outputs is larger near the input than near the output, "
            f"at step {step}",
            rise,
            WARN_DECADES,
            "checked on the calibration half of the zoo",
            f"a growth below {WARN_DECADES:g} decades in most looks",
        )
    ]
    if np.isfinite(fit.slope):
        claim = f"decades per site along depth (Theil-Sen, 95 % interval {fit.low:.3f} to {fit.high:.3f}, {fit.sites} sites)"
        evidence.append(Evidence(claim, fit.slope, 0.0, "Sen 1968", "an interval that contains 0 means no steady factor"))
    finding = Finding(
        rule=NAME,
        severity=severity,
        confidence=0.9 if fit.clear else 0.7,
        sites=tuple(names[i] for i in guilty),
        steps=(span.first, span.last),
        sentence=sentence,
        evidence=tuple(evidence),
        helps=HELPS,
        starts=names[end],
        shows=tuple(names[int(i)] for i in loud),
        peak=step,
    )
    return Case(finding, rise)
