"""Vanishing gradient: the layers near the input receive almost no gradient.

What it finds:
    The gradient of the loss with respect to module outputs is smaller near the input than near the output by several
    decades, either by a steady factor per layer or by a fall at one place.

Why it hurts:
    Weights move in proportion to their gradient. The first layers, which everything later depends on, stand still: the
    explorer stands on a plateau and the compass needle does not move. Below the resolution of the number format the
    gradient is exactly zero and no step size helps.

How we tell:
    A ratio along depth, never an absolute norm: log10 of the L2 norm of the output gradient, upper envelopes from both
    ends, so that residual branches that rightly carry little do not count. It must last beyond the first five steps.
    The slope per site is a Theil-Sen fit with its 95 % interval. Where no output gradient was seen (hidden behind a
    custom autograd function, or a compiled model), the gradients of the weight matrices stand in, with less confidence.

When it is wrong:
    A branch that is executed first and gets a small gradient by design (a conditioning network) can look like the
    input end. Two networks trained together with losses of very different scale can look like one.

What helps:
    - an activation that does not saturate (ReLU, GELU) with the initialisation made for it (He)
    - batch normalisation between the layers (layer normalisation does not help a deep sigmoid network)
    - residual connections
    - weights at the critical scale of the activation: sigma_w = 1 for tanh, sqrt(2) for ReLU
    - fewer layers

References:
    Hochreiter 1991; Bengio, Simard, Frasconi 1994; Glorot & Bengio 2010; Schoenholz et al. 2017.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.depth import ZERO_DECADES, fall_towards_input, slope_along_depth
from gradiometer.record.trace import FloatArray, IntArray, Trace
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "vanishing-gradient"

WARN_DECADES: Final = 3.0
"""theory.md D1.2 proposes 3; healthy trainings of the calibration half of the zoo stay below 2 (benchmarks/detection.py)."""
ERROR_DECADES: Final = 6.0
"""theory.md D1.2: six decades are below what bfloat16 or float16 resolve; an error whatever the loss does."""
WEIGHT_WARN_DECADES: Final = 4.0
"""For weight gradients, which also carry the size of the layer's input: one decade more."""

_HELPS: Final = (
    "use an activation that does not saturate (ReLU, GELU) with He initialisation",
    "put batch normalisation between the layers",
    "add residual connections around blocks of layers",
    "scale the weights to the critical point of the activation",
    "use fewer layers",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    index = trace.outputs
    y = trace.log10_gradient[:, index]
    if np.isfinite(y).sum(axis=1, initial=0).max(initial=0) >= 3:
        return _judge(trace, index, y, WARN_DECADES, "outputs", 0.95)
    weights = np.array([i for i in trace.parameters if trace.sites[i].units > 1 and _is_matrix(trace, i)], dtype=np.int64)
    return _judge(trace, weights, trace.log10_weight_gradient[:, weights], WEIGHT_WARN_DECADES, "weights", 0.6)


def _is_matrix(trace: Trace, i: int) -> bool:
    return trace.sites[i].kind not in ("0-d", "1-d")


def _judge(trace: Trace, index: IntArray, y: FloatArray, warn: float, what: str, confidence: float) -> list[Finding]:
    falls = np.array([fall_towards_input(row) for row in y])
    span = trace.span(falls >= warn)
    if span is None:
        return []
    look = span.looks[int(np.argmax(falls[span.looks]))]
    row, fall = y[look], float(falls[look])
    exact = fall >= ZERO_DECADES
    extreme = fall >= ERROR_DECADES and span.at_end
    severity = Severity.ERROR if extreme or (span.at_end and not trace.learned) else Severity.WARNING
    fit = slope_along_depth(row)
    level = np.nanmax(np.where(np.isfinite(row), row, -np.inf))
    starved = np.flatnonzero(row < level - warn)
    source = int(np.flatnonzero(row >= level - 1.0)[0])
    starved = starved[starved < source] if (starved < source).any() else starved
    names = trace.names(index)
    layers = max(sum(trace.sites[index[i]].role in (Role.LINEAR, Role.RECURRENT) for i in range(source + 1)), 1)
    per_layer = "" if exact else f" (about {10 ** (fall / layers):.3g} times per layer over {layers} layers)"
    how = "is exactly zero before" if exact else f"shrinks by {fall:.1f} decades on its way from"
    to = f" `{names[source]}`" + ("" if exact else f" back to `{names[starved[0]]}`")
    since = f"from step {span.first}" + ("" if span.at_end else f" until step {span.last}")
    sentence = f"The gradient {how}{to}{per_layer}, {since}: {len(starved)} of {len(names)} {what} get almost none."
    if not span.at_end and trace.learned:
        sentence += f" It recovered: the training was stalled until about step {span.last}."
    unit = f"log10 of the L2 norm of the gradient of {what}, output end minus input end, at step {int(trace.steps[look])}"
    evidence = [
        Evidence(
            unit,
            fall,
            warn,
            "theory.md D1.2, calibrated on the calibration half of the zoo",
            f"a fall below {warn:g} decades in most looks",
        ),
        Evidence(
            f"decades per site along depth, Theil-Sen, 95 % interval {fit.low:.3f} to {fit.high:.3f}, {fit.sites} sites",
            fit.slope,
            0.0,
            "Sen 1968",
            "an interval that contains 0 means no steady factor: look for one guilty place",
        ),
        *_cause(trace, int(look)),
    ]
    return [
        Finding(
            rule=NAME,
            severity=severity,
            confidence=confidence if fit.clear or exact else confidence - 0.15,
            sites=tuple(names[i] for i in starved),
            steps=(span.first, span.last),
            sentence=sentence,
            evidence=tuple(evidence),
            helps=_HELPS,
            starts=names[source],
            shows=tuple(names[i] for i in starved),
        )
    ]


def _cause(trace: Trace, look: int) -> list[Evidence]:
    """What the activations themselves contribute: their slope against the steepest it can be."""
    activations = trace.with_role(Role.ACTIVATION)
    slope = trace.slope[look, activations]
    if not np.isfinite(slope).any():
        return []
    return [
        Evidence(
            "median over activations of rms slope / steepest slope (1: not saturated, the weights or the activation's own "
            "slope are too small; near 0: saturated or dead)",
            float(np.nanmedian(slope)),
            0.5,
            "theory.md D1.4",
            "",
        )
    ]
