"""The outlook: what mean-field theory expects of a network after a treatment, from the record of the untreated run.

The network is taken as the stack of weighted layers that the record shows: the size of the weights of each, the activation
behind it, a normalisation between. Along it the recursions of `gradiometer.theory.meanfield` are followed for the size of
the signal, for the share of it that differs between two inputs, and for the gradient. A treatment is another stack. Where
the untreated stack does not come out as it was measured (skip connections, gates, attention) nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Final

import numpy as np

from gradiometer.errors import GradiometerError
from gradiometer.record.depth import ZERO_DECADES
from gradiometer.record.trace import Trace
from gradiometer.theory.activations import Activation, activation
from gradiometer.theory.criticality import backward_gain, critical_initialisation
from gradiometer.theory.meanfield import MeanField, pair_moment, pair_slope_moment, second_moment, slope_moment
from gradiometer.theory.quadrature import expectation
from gradiometer.types import Finding, Role, Treatment

LEAST_LAYERS: Final = 3
"""Fewer are no depth."""
AGREES: Final = 1.5
"""Decades by which theory and measurement of the untreated run may differ ..."""
AGREES_SHARE: Final = 0.35
"""... or this share of them: weights are drawn once, and widths are finite."""
FADED: Final = -12.0
"""Decades below which a gradient is gone, by however much."""
EPS: Final = 1e-5
"""Of normalisations."""
SMALL: Final = 1e-4
"""Share that differs below which the correlation map is its tangent at 1."""
LEAST: Final = 1e-300
Q_STEP: Final = 0.25
"""Points of the grid on which moments are computed: in the natural logarithm of the variance ..."""
APART_STEP: Final = 0.125
"""... and in decades of the share that differs."""
ROUNDING: Final = 1e-14
"""What differs by less is rounding, whatever enlarges it afterwards (float32: a squared 1e-7)."""
CENTRED: Final = {"sigmoid": 4.0, "hardsigmoid": 6.0, "softplus": 2.0, "logsigmoid": 2.0}
"""Critical sigma_w, 1 / slope at zero, where biases take off what an activation is at zero."""
CENTRED_START: Final = 2.0
"""Deviation of the first pre-activation that the remedy draws there."""
_CRITICAL: Final = ("critical", "centred-sigmoid", "orthogonal")


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights, perhaps a normalisation, and an activation.

    Attributes:
        sigma_w: rms of the weights times the square root of fan_in.
        sigma_b: rms of the biases.
        act: the activation behind it.
        norm: what stands between: empty, ``batch``, ``layer`` or ``centred`` (weights whose rows have no mean).
        fan_in: inputs of a unit.
        fan_out: units.
    """

    sigma_w: float
    sigma_b: float
    act: Activation
    norm: str = ""
    fan_in: int = 1
    fan_out: int = 1


@dataclass(frozen=True, slots=True)
class Stack:
    """A network as theory sees it.

    Attributes:
        layers: hidden ones in order, from the first.
        square: mean square of the first layer's output, as measured.
        apart: share of it that differs between two inputs, as measured.
        branch: scale of residual branches around every layer but the first; None without.
    """

    layers: tuple[Layer, ...]
    square: float
    apart: float
    branch: float | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected along a stack.

    Attributes:
        decades: by which the gradient changes from the last layer to the first: negative where it vanishes.
        apart: log10 of the share of the last layer's signal that differs between inputs.
        alike: log10 of how much of the likeness of two inputs' gradients is left at the first layer (Balduzzi et al. 2017).
    """

    decades: float
    apart: float
    alike: float = 0.0


# ---- the stack of a record -----------------------------------------------------------------------------------------------


def main_chain(trace: Trace, findings: tuple[Finding, ...]) -> tuple[int, ...]:
    """Sites of the network that the first finding is about, else of the longest one."""
    of = {trace.sites[int(i)].name: chain for chain in trace.chains for i in chain}
    named = (name for finding in findings for name in (finding.starts, *finding.sites) if name in of)
    found = next(named, None)
    chain = of[found] if found is not None else trace.chains[0] if trace.chains else np.empty(0, np.int64)
    return tuple(int(i) for i in chain)


def stack_of(trace: Trace, findings: tuple[Finding, ...]) -> Stack | None:
    """The network of a record as a stack; None where it is none, or theory does not describe it as it was measured."""
    if not trace.steps.size or trace.steps[0] != 0:
        return None
    chain = main_chain(trace, findings)
    roles = [trace.sites[i].role for i in chain]
    if any(role in (Role.RECURRENT, Role.ATTENTION) for role in roles) or any(trace.sites[i].call for i in chain):
        return None
    dense = [k for k, role in enumerate(roles) if role is Role.LINEAR]
    own: dict[tuple[str, str], list[int]] = {}
    for i in (int(j) for j in trace.parameters):
        own.setdefault((trace.sites[i].model, trace.sites[i].module), []).append(i)
    found = [_layer(trace, chain, k, end, own) for k, end in pairwise(dense)]
    layers = [layer for layer in found if layer is not None]
    if len(layers) < max(LEAST_LAYERS, len(found)):  # one that is not known breaks the chain
        return None
    first = chain[dense[0]]
    square = float(trace.values["output_sumsq"][0, first] / trace.values["output_count"][0, first])
    apart = float(trace.varying_share[0, first])
    if not (math.isfinite(square) and square > 0.0):
        return None
    stack = Stack(tuple(layers), square, apart if math.isfinite(apart) and apart > 0.0 else 1.0)
    measured = trace.log10_gradient[0, first] - trace.log10_gradient[0, chain[dense[-2]]]
    return stack if _agree(outlook(stack).decades, float(measured)) else None


def _agree(expected: float, measured: float) -> bool:
    if math.isnan(measured):
        return False
    measured = max(measured, -ZERO_DECADES)
    if expected < FADED and measured < FADED:
        return True
    return abs(expected - measured) <= max(AGREES, AGREES_SHARE * abs(measured))


def _layer(
    trace: Trace, chain: tuple[int, ...], start: int, end: int, parameters: Mapping[tuple[str, str], Sequence[int]]
) -> Layer | None:
    """The layer at a position of a chain, with what stands before the next; None where theory has no say."""
    site = trace.sites[chain[start]]
    own = parameters.get((site.model, site.module), ())
    weight = next((i for i in own if trace.sites[i].fan_in), None)
    bias = next((i for i in own if not trace.sites[i].fan_in), None)
    if weight is None:
        return None
    between = [trace.sites[i] for i in chain[start + 1 : end]]
    kinds = [s.kind for s in between if s.role is Role.ACTIVATION]
    norms = [s.kind.lower() for s in between if s.role is Role.NORM]
    act = known_activation(kinds[0]) if kinds else activation("linear")
    if act is None:
        return None
    rms = _rms(trace, weight)
    if not (math.isfinite(rms) and rms > 0.0):
        return None
    norm = "" if not norms else "batch" if "batch" in norms[0] else "layer"
    fan_in = trace.sites[weight].fan_in
    sigma_b = _rms(trace, bias) if bias is not None else 0.0
    return Layer(rms * math.sqrt(fan_in), sigma_b if math.isfinite(sigma_b) else 0.0, act, norm, fan_in, site.units)


def _rms(trace: Trace, parameter: int) -> float:
    with np.errstate(all="ignore"):
        return math.sqrt(float(trace.values["weight_sumsq"][0, parameter] / trace.values["weight_count"][0, parameter]))


def known_activation(kind: str) -> Activation | None:
    """The activation of a module or function of this name (``LeakyReLU``, ``relu()``); None if theory knows none."""
    name = kind.lower().removesuffix("()").replace("-", "_")
    try:
        return activation({"prelu": "leaky_relu", "rrelu": "leaky_relu", "identity": "linear"}.get(name, name))
    except GradiometerError:
        return None


# ---- along it ------------------------------------------------------------------------------------------------------------


def _moments(act: Activation, log_q: float) -> tuple[float, float, float]:
    """E phi^2, E phi'^2 and E phi at a variance given by its natural logarithm, drawn between the points of a grid.

    A quadrature for every layer would take minutes for a network of a thousand.
    """
    k, share = _between(log_q, Q_STEP)
    (s0, d0, m0), (s1, d1, m1) = _moments_at(act, k), _moments_at(act, k + 1)
    return math.exp(s0 + share * (s1 - s0)), math.exp(d0 + share * (d1 - d0)), m0 + share * (m1 - m0)


@cache
def _moments_at(act: Activation, k: int) -> tuple[float, float, float]:
    """At a point of the grid, those of squares as logarithms."""
    q = math.exp(k * Q_STEP)
    square, slope = second_moment(act, q), slope_moment(act, q)
    return math.log(max(square, LEAST)), math.log(max(slope, LEAST)), expectation(act.f, q, act.kinks)


def _pairs(act: Activation, log_q: float, apart: float) -> tuple[float, float]:
    """What an activation makes of two inputs that differ in this share of their signal, drawn between points of a grid.

    Returns:
        Share of the difference that it lets through, as a multiple of what its mean square slope would; and the share of
        the mean square slope that both inputs have in common.
    """
    i, along = _between(log_q, Q_STEP)
    j, across = _between(max(math.log10(apart), -8.0), APART_STEP)
    corners = [[_pairs_at(act, i + a, j + b) for b in (0, 1)] for a in (0, 1)]
    passed, alike = (
        (1.0 - along) * ((1.0 - across) * corners[0][0][n] + across * corners[0][1][n])
        + along * ((1.0 - across) * corners[1][0][n] + across * corners[1][1][n])
        for n in (0, 1)
    )
    return passed, alike


@cache
def _pairs_at(act: Activation, i: int, j: int) -> tuple[float, float]:
    q, apart = math.exp(i * Q_STEP), min(10.0 ** (j * APART_STEP), 1.0)
    square, slope = second_moment(act, q), max(slope_moment(act, q), LEAST)
    alike = pair_slope_moment(act, q, 1.0 - apart) / slope
    if apart < SMALL:
        return 1.0, alike
    return max(square - pair_moment(act, q, 1.0 - apart), 0.0) / (slope * q * apart), alike


def _between(x: float, step: float) -> tuple[int, float]:
    """The point of a grid at or below x, and how far x is on the way to the next."""
    k = math.floor(x / step)
    return k, x / step - k


def outlook(stack: Stack) -> Outlook:
    """Follow signal, difference and gradient along a stack."""
    first = stack.layers[0]
    q, apart = stack.square, min(stack.apart, 1.0)
    q, apart, _ = _normalised(first.norm, q, apart)
    log_chi = log_alike = 0.0
    for before, layer in pairwise(stack.layers):
        log_q = math.log(min(max(q, 1e-30), 1e16))
        square, slope, mean = _moments(before.act, log_q)
        passed, likeness = _pairs(before.act, log_q, max(apart, 1e-30))
        common = max(square - mean**2, 0.0) if layer.norm == "centred" else square
        made = layer.sigma_w**2 * common + layer.sigma_b**2
        differs = layer.sigma_w**2 * max(passed * slope * math.exp(log_q) * apart, ROUNDING * common)
        chi = layer.sigma_w**2 * slope
        if made <= 0.0:
            return Outlook(-ZERO_DECADES, -ZERO_DECADES)
        made, share, factor = _normalised(layer.norm, made, min(differs / made, 1.0))
        chi *= factor
        if stack.branch is not None:
            scale = stack.branch**2
            whole = q + scale * made
            share = min((q * apart + scale * made * share) / whole, 1.0)
            likeness = (1.0 + scale * chi * likeness) / (1.0 + scale * chi)
            made, chi = whole, 1.0 + scale * chi
        log_alike += math.log10(max(likeness, 1e-6))
        log_chi += math.log10(chi) if chi > 0.0 else -2.0 * ZERO_DECADES
        q, apart = made, share
    decades = min(max(0.5 * log_chi, -9.0 * ZERO_DECADES), 9.0 * ZERO_DECADES)
    return Outlook(decades, math.log10(max(apart, 1e-40)), log_alike)


def _normalised(norm: str, q: float, apart: float) -> tuple[float, float, float]:
    """Variance, share that differs, and factor of the squared gradient, behind a normalisation."""
    if norm == "batch":  # what all examples have in common is taken out
        varying = q * apart
        kept = varying / (varying + EPS)
        return max(kept, 1e-30), 1.0, 1.0 / (varying + EPS)
    if norm == "layer":  # over the units of one example: what all examples have in common stays
        return q / (q + EPS), apart, 1.0 / (q + EPS)
    return q, apart, 1.0


# ---- treatments ----------------------------------------------------------------------------------------------------------

Treat = Callable[[Stack, Mapping[str, str | float | bool]], "Stack | None"]


def treated(stack: Stack, treatments: tuple[Treatment, ...]) -> Stack | None:
    """The stack after treatments, given in the order of their effect; None where theory cannot follow one of them."""
    order = tuple(STACK_CHANGES)
    if any(t.sites for t in treatments) or any(t.remedy not in STACK_CHANGES for t in treatments):
        return None
    for treatment in sorted(treatments, key=lambda t: order.index(t.remedy)):
        changed = STACK_CHANGES[treatment.remedy](stack, treatment.settings)
        if changed is None:
            return None
        stack = changed
    return stack


def _same(stack: Stack, _settings: Mapping[str, str | float | bool]) -> Stack:
    """Steps are another matter than signals: clipping, learning rates and masks leave the profile along depth as it is."""
    return stack


def _activation(stack: Stack, settings: Mapping[str, str | float | bool]) -> Stack | None:
    act = known_activation(str(settings.get("to", "")))
    if act is None:
        return None
    layers = tuple(replace(layer, act=act) for layer in stack.layers)
    if act.name == "selu":  # comes with its own initialisation (Klambauer et al. 2017)
        layers = tuple(replace(layer, sigma_w=1.0, sigma_b=0.0) for layer in layers)
    return _rescaled(stack, layers)


def _normalise(stack: Stack, settings: Mapping[str, str | float | bool]) -> Stack | None:
    kind = str(settings.get("kind", "batch"))
    if kind.startswith("weight"):
        # rows without a mean, scaled so that the activation keeps a variance of one (Qiao et al. 2019; Brock et al. 2021)
        layers = tuple(replace(layer, norm="centred", sigma_w=_gain(layer.act)) for layer in stack.layers)
        return _rescaled(stack, layers)
    norm = "batch" if "batch" in kind else "layer"
    return replace(stack, layers=tuple(replace(layer, norm=norm) for layer in stack.layers))


@cache
def _gain(act: Activation) -> float:
    """Gain under which what an activation varies by has a variance of one again."""
    square, _, mean = _moments(act, 0.0)
    return 1.0 / math.sqrt(max(square - mean**2, 1e-12))


def _residual(stack: Stack, settings: Mapping[str, str | float | bool]) -> Stack:
    scale = settings.get("scale", 1.0)
    return replace(stack, branch=len(stack.layers) ** -0.5 if isinstance(scale, str) else float(scale))


def _initialise(stack: Stack, settings: Mapping[str, str | float | bool]) -> Stack | None:
    scheme, gain = str(settings.get("scheme", "critical")), settings.get("gain", 1.0)
    if scheme == "mirrored":  # the network is linear at the start (Balduzzi et al. 2017)
        if any(layer.act.name not in ("relu", "leaky_relu", "linear") for layer in stack.layers):
            return None
        layers = tuple(replace(layer, act=activation("linear"), sigma_w=float(gain), sigma_b=0.0) for layer in stack.layers)
        return _rescaled(stack, layers)
    layers = tuple(drawn for layer in stack.layers if (drawn := _drawn(scheme, float(gain), layer)) is not None)
    if len(layers) < len(stack.layers):
        return None
    fresh = _rescaled(stack, layers)
    if scheme in _CRITICAL and layers[0].act.name in CENTRED:
        return replace(fresh, square=CENTRED_START**2)
    return fresh


def _drawn(scheme: str, gain: float, layer: Layer) -> Layer | None:
    """A layer with weights of a scheme; None where theory does not know it, or it does not suit the activation."""
    sigma_b, norm = 0.0, layer.norm
    match scheme:
        case "default":
            sigma_w, sigma_b = 3**-0.5, (3.0 * layer.fan_in) ** -0.5
        case "he":
            slope = dict(layer.act.parameters).get("negative_slope", 0.0) if layer.act.name == "leaky_relu" else 0.0
            sigma_w = math.sqrt(2.0 / (1.0 + slope**2))
        case "xavier":
            sigma_w = math.sqrt(2.0 * layer.fan_in / (layer.fan_in + layer.fan_out))
        case "lsuv" if layer.act.name in CENTRED and not norm:
            sigma_w, norm = 1.0, "batch"  # each unit's mean over the batch is taken off, once
        case "lsuv":
            sigma_w = 1.0 / math.sqrt(max(_moments(layer.act, 0.0)[0], 1e-12))
        case "critical" | "centred-sigmoid" | "orthogonal" if layer.act.name in CENTRED:
            sigma_w, norm = CENTRED[layer.act.name], norm or "centred"
        case "critical" | "orthogonal":
            sigma_w, sigma_b = _critical(layer.act)
            sigma_b = 0.0 if scheme == "orthogonal" or norm else sigma_b
        case _:
            return None
    return replace(layer, sigma_w=sigma_w * gain, sigma_b=sigma_b, norm=norm)


@cache
def _critical(act: Activation) -> tuple[float, float]:
    """sigma_w and sigma_b on the edge of chaos where signals stay on it; else those that keep a gradient where q = 1."""
    try:
        point = critical_initialisation(act)
    except GradiometerError:
        return backward_gain(act), 0.0
    return point.sigma_w, point.sigma_b


def _rescaled(stack: Stack, layers: tuple[Layer, ...]) -> Stack:
    """The first layer acts on the data: what is measured behind it changes as its weights do."""
    ratio = layers[0].sigma_w / stack.layers[0].sigma_w
    return replace(stack, layers=layers, square=stack.square * ratio**2)


def _fewer(stack: Stack, settings: Mapping[str, str | float | bool]) -> Stack | None:
    count = round(float(settings.get("keep", 0.0))) or trainable_layers(stack)
    if not LEAST_LAYERS - 1 <= count < len(stack.layers):
        return None
    return replace(stack, layers=stack.layers[:count])


def trainable_layers(stack: Stack) -> int:
    """How many layers of this kind train (Schoenholz et al. 2017), at least two."""
    layer = stack.layers[len(stack.layers) // 2]
    try:
        depth = MeanField(layer.act, layer.sigma_w, layer.sigma_b).trainable_depth()
    except GradiometerError:
        depth = 6.0
    return max(2, math.floor(depth)) if math.isfinite(depth) else len(stack.layers)


STACK_CHANGES: Final[Mapping[str, Treat]] = {
    "fewer-layers": _fewer,
    "activation": _activation,
    "normalise": _normalise,
    "residual": _residual,
    "initialise": _initialise,
    "regularise": _same,
    "optimizer": _same,
    "clip": _same,
}
"""What a remedy does to a stack; a remedy that is not in it is not followed by theory."""
