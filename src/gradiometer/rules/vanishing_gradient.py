"""Vanishing gradient: the layers near the input receive almost no gradient.

What it finds:
    The gradient of the loss with respect to module outputs is smaller near the input than near the output by several
    decades, either by a steady factor per layer or by a fall at one place.

Why it hurts:
    Weights move in proportion to their gradient. The first layers, which everything later depends on, stand still: the
    explorer stands on a plateau and the compass needle does not move. Below the resolution of the number format the
    gradient is exactly zero and no step size helps.

How we tell:
    A ratio along depth, never an absolute norm: log10 of the L2 norm of the output gradient, the most that the
    layers near the input get against the most of all others, so that residual branches that rightly carry little do not
    count. It must last beyond the first five steps.
    The slope per site is a Theil-Sen fit with its 95 % interval. Where no output gradient was seen (hidden behind a
    custom autograd function, or a compiled model), the gradients of the weight matrices stand in, with less confidence.

When it is wrong:
    A branch that is executed first and gets a small gradient by design (a conditioning network) can look like the
    input end. Networks that meet only in their loss are judged apart; two that share a layer are one.

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

from gradiometer.record.depth import ZERO_DECADES, SlopeFit, falls_towards_input, slope_along_depth
from gradiometer.record.frames import Group
from gradiometer.record.trace import SETTLE, FloatArray, IntArray, Trace
from gradiometer.rules.judging import Case, each_network, factor, layers_between, seen, severity_of, when, worst_case
from gradiometer.types import Evidence, Finding, Role

NAME: Final = "vanishing-gradient"

WARN_DECADES: Final = 3.0
"""Our level (the literature has none); well runs of the calibration half of the zoo stay below 2 (benchmarks/detection.py)."""
ERROR_DECADES: Final = 6.0
"""Six decades are below what bfloat16 or float16 resolve; an error whatever the loss does."""
WEIGHT_WARN_DECADES: Final = 4.0
"""For weight gradients, which also carry the size of the layer's input: one decade more."""

HELPS: Final = (
    "use an activation that does not saturate (ReLU, GELU) with He initialisation",
    "put batch normalisation between the layers",
    "add residual connections around blocks of layers",
    "scale the weights to the critical point of the activation",
    "use fewer layers",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the network that has it worst; see the module's text."""
    if any(_measured(trace.log10_gradient[:, chain]) for chain in trace.chains):
        return each_network(trace, _outputs)
    weights = [i for i in trace.parameters if trace.sites[i].units > 1 and trace.sites[i].kind not in ("0-d", "1-d")]
    index = np.array(weights, dtype=np.int64)
    return worst_case([_judge(trace, index, Group.PARAMETER, trace.log10_weight_gradient[:, index])])


def _measured(y: FloatArray) -> bool:
    return int(np.isfinite(y).sum(axis=1).max(initial=0)) >= 3


def _outputs(trace: Trace, chain: IntArray) -> Case | None:
    return _judge(trace, chain, Group.GRADIENT, trace.log10_gradient[:, chain])


def _judge(trace: Trace, index: IntArray, group: Group, y: FloatArray) -> Case | None:
    at_outputs = group is Group.GRADIENT
    warn, confidence = (WARN_DECADES, 0.95) if at_outputs else (WEIGHT_WARN_DECADES, 0.6)
    what = "outputs" if at_outputs else "weights"
    falls = falls_towards_input(y)
    span = trace.span(falls >= warn, seen(trace, group, index))
    if span is None:
        return None
    # what starts at zero has no gradient behind it in the first steps, by design
    settled = span.looks[trace.steps[span.looks] >= SETTLE]
    looks = settled if settled.size else span.looks
    look = int(looks[np.argmax(falls[looks])])
    step, row, fall = int(trace.steps[look]), y[look], float(falls[look])
    exact = fall >= ZERO_DECADES
    fit = slope_along_depth(row)
    level = np.max(row[np.isfinite(row)])
    source = int(np.flatnonzero(row >= level - 1.0)[0])
    starved = np.flatnonzero(row < level - warn)
    starved = starved[starved < source] if (starved < source).any() else starved
    names = trace.names(index)
    if exact:
        how = f"The gradient is exactly zero before `{names[source]}`, {when(span)}"
    else:
        layers = layers_between(trace, int(index[starved[0]]), int(index[source]))
        each = f"a factor of {factor(-fall / layers)} per layer over {layers} layers" if layers > 1 else "within one layer"
        how = f"The gradient shrinks by {fall:.1f} decades on its way from `{names[source]}` back to `{names[starved[0]]}`"
        how = f"{how} ({each}), {when(span)}"
    sentence = f"{how}: {len(starved)} of {len(names)} {what} get {'none' if exact else 'almost none'}."
    if not span.at_end and trace.learned:
        sentence += f" It recovered: the layers before stood still until about step {span.last}."
    finding = Finding(
        rule=NAME,
        severity=severity_of(trace, span, extreme=fall >= ERROR_DECADES),
        confidence=confidence if fit.clear or exact else confidence - 0.15,
        sites=tuple(names[i] for i in starved),
        steps=(span.first, span.last),
        sentence=sentence,
        evidence=(
            Evidence(
                f"decades (log10) by which the L2 norm of the gradient of {what} is smaller near the input than near the "
                f"output, at step {step}" + (" (an exact zero counts as 45)" if exact else ""),
                fall,
                warn,
                "our level, checked on the calibration half of the zoo",
                f"a fall below {warn:g} decades in most looks",
            ),
            *_slope(fit),
            *_cause(trace, index, look),
        ),
        helps=HELPS,
        starts=names[source],
        shows=tuple(names[i] for i in starved),
        peak=step,
    )
    return Case(finding, fall)


def _slope(fit: SlopeFit) -> list[Evidence]:
    if not np.isfinite(fit.slope):
        return []
    claim = f"decades per site along depth (Theil-Sen, 95 % interval {fit.low:.3f} to {fit.high:.3f}, {fit.sites} sites)"
    refute = "an interval that contains 0 means no steady factor: look for one guilty place"
    return [Evidence(claim, fit.slope, 0.0, "Sen 1968", refute)]


def _cause(trace: Trace, index: IntArray, look: int) -> list[Evidence]:
    """What the activations themselves contribute: their slope against the steepest it can be."""
    slope = trace.slope[look, [i for i in index if trace.sites[int(i)].role is Role.ACTIVATION]]
    if not np.isfinite(slope).any():
        return []
    claim = (
        "median over activations of the rms slope as a share of the steepest (near 1: not saturated, so the weights or the "
        "activation's own slope are too small; near 0: saturated or dead)"
    )
    return [Evidence(claim, float(np.nanmedian(slope)), 0.5, "Glorot & Bengio 2010")]
