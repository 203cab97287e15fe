"""Poor initialisation: the weights were far too small or too large for their activation before the first step.

What it finds:
    Layers whose initial weights have not the size that keeps a signal and a gradient the same from layer to layer, many
    of them in a row, and a profile along depth at the first step that shows it.

Why it hurts:
    Every layer multiplies the signal on its way forward and the gradient on its way back by nearly the same factor. A
    factor of 0.4 (PyTorch's default under a ReLU) leaves a hundred-millionth after twenty layers; 2.5 makes a hundred
    million of it.

How we tell:
    Of each dense layer or convolution with a known activation behind it, sigma_w = rms of the weights times the square root
    of the inputs per unit, against the critical value at which the factor is one: sqrt(2) for ReLU, 1 for tanh, and for GELU
    or SiLU the value at the size of signal that was measured. The factors are multiplied over the layers (added, in
    decades) and held against what was measured at step 0: only where the signal or the gradient really shrinks or
    grows by as much in the same direction is it a finding, so skip connections and gates, which make another size
    right, do not count; nor do layers next to a normalisation, nor sigmoid and softplus, for which no size is right. It
    is the root of what vanishes, explodes or collapses afterwards: an error where the training fails, where it stays
    extreme, or where it lasts and more than half of the loss is left; else a warning, and a note where it healed. Bounded
    activations do not explode: behind weights four times too large they are flat, which is measured as their saturation.

When it is wrong:
    Weights that were loaded rather than drawn, whose size means something else.

What helps:
    - He initialisation for ReLU (kaiming_normal_ with nonlinearity="relu"), Xavier with gain 1 for tanh
    - LSUV, which scales each layer by what it measures
    - normalisation between the layers, or residual connections

References:
    Glorot & Bengio 2010; He et al. 2015; Poole et al. 2016; Schoenholz et al. 2017; Mishkin & Matas 2016 (LSUV).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from gradiometer.record.depth import falls_towards_input, falls_towards_output
from gradiometer.record.trace import SETTLE, BoolArray, FloatArray, IntArray, Trace
from gradiometer.rules.judging import Case, each_network, factor, hidden_sites
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "poor-initialization"

SHRINKS: Final = 3.0
"""Decades lost over the network, measured: the level of vanishing gradient and signal collapse."""
GROWS: Final = 1.5
"""Decades gained over the network, measured: the level of exploding gradient."""
SHRINKS_EXTREME: Final = 6.0
"""As for vanishing gradient: below what half precision resolves."""
GROWS_EXTREME: Final = 4.0
"""As for exploding gradient: 10,000 times."""
EXPLAINED: Final = 0.5
"""Ours: the weights must account for at least half of the decades; finite width and biases make up the rest."""
MIN_LAYERS: Final = 2
"""Behind the first one, whose factor acts on the data; with one layer no factor is multiplied."""
LARGE: Final = 4.0
"""Ours: times the critical size; a bounded activation is then flat nearly everywhere, whatever the data are."""
FLAT_SHARE: Final = 0.6
"""Ours: share of the outputs of such layers that is saturated; trained healthy tanh networks stay below a half."""
LEARNED_WELL: Final = 0.9
"""Ours: a loss that fell by nine tenths, counted from what guessing costs, did not suffer from it."""
NOT_DRAWN: Final = 1e-6
"""Share of the second moment in which units differ: theory speaks of weights that were drawn, not of copies."""
OFF_SCALE: Final = 0.05
"""Ours: decades by which a layer's factor must differ from one (12 %) to be named."""

_LINES: Final = {
    "relu": math.sqrt(2.0),
    "leakyrelu": math.sqrt(2.0 / 1.0001),
    "prelu": math.sqrt(2.0 / 1.0625),
    "linear": 1.0,
}
"""Critical sigma_w of activations made of two straight lines, sqrt(2 / (1 + slope^2)), slopes as PyTorch's defaults."""
_BOUNDED: Final = ("tanh", "hardtanh", "softsign", "erf")
_SMOOTH: Final = ("gelu", "silu", "mish", "hardswish", "elu", "selu", "celu", "relu6")
_WORDS: Final = {
    "relu": "ReLU",
    "leakyrelu": "LeakyReLU",
    "prelu": "PReLU",
    "relu6": "ReLU6",
    "gelu": "GELU",
    "silu": "SiLU",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "linear": "layers without activation",
}

_HELPS_SMALL: Final = (
    "initialise with the gain of the activation (He for ReLU, Xavier with gain 1 for tanh)",
    "scale each layer by what it measures (LSUV)",
    "put normalisation between the layers, or add residual connections",
)
_HELPS_LARGE: Final = (
    "scale the initial weights down to the gain of the activation (He for ReLU, Xavier with gain 1 for tanh)",
    "scale each layer by what it measures (LSUV)",
    "put normalisation between the layers",
)
HELPS: Final = _HELPS_SMALL


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer whose right size is known.

    Attributes:
        site: its output.
        behind: the output of its activation.
        activation: kind of that.
        sigma, critical: the size of its weights, and the one that keeps a gradient as it is.
        decades: by which it multiplies the gradient.
    """

    site: int
    behind: int
    activation: str
    sigma: float
    critical: float
    decades: float


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the network that has it worst; see the module's text."""
    if not trace.steps.size or trace.steps[0] != 0:
        return []
    return each_network(trace, _judge)


def _judge(trace: Trace, chain: IntArray) -> Case | None:
    layers = _layers(trace, chain)
    # the factor of the first layer acts on the data and on the gradient of the data, which nobody needs
    layers = layers[1:] if layers and _is_first(trace, chain, layers[0].site) else layers
    if len(layers) < MIN_LAYERS:
        return None
    return _drifts(trace, chain, layers) or _flat(trace, layers)


def _drifts(trace: Trace, chain: IntArray, layers: list[_Layer]) -> Case | None:
    """Weights that make signal or gradient shrink or grow along depth, and do."""
    predicted = sum(layer.decades for layer in layers)
    shrinks = predicted < 0.0
    warn, extreme = (SHRINKS, SHRINKS_EXTREME) if shrinks else (GROWS, GROWS_EXTREME)
    measured = _measured(trace, chain, shrinks=shrinks)
    if not measured.size or not measured[0] >= warn or abs(predicted) < EXPLAINED * min(measured[0], warn * 2.0):
        return None
    guilty = [layer for layer in layers if (layer.decades < -OFF_SCALE if shrinks else layer.decades > OFF_SCALE)]
    if len(guilty) < MIN_LAYERS:
        return None
    now = _now(trace, measured)
    severity = Severity.WARNING
    if trace.stalled or now >= extreme or (trace.suffers and now >= warn):
        severity = Severity.ERROR
    elif trace.learned and now < warn:
        severity = Severity.INFO
    last = _last(trace, np.asarray(measured >= warn))
    change = "lost" if shrinks else "gained"
    effect = f"that makes {abs(predicted):.1f} decades {change} along depth; {measured[0]:.1f} were measured."
    if severity is Severity.INFO:
        effect += f" The training grew out of it after step {last}."
    evidence = (
        Evidence(
            f"decades {change} over {len(layers)} layers by the size of the weights alone",
            abs(predicted),
            warn,
            "mean-field theory",
        ),
        Evidence(
            f"decades {change} along depth, the larger of signal and gradient, measured at step 0",
            float(measured[0]),
            warn,
            "the levels of the rules on gradients and signals",
            "a profile that is level",
        ),
    )
    return Case(_finding(trace, guilty, severity, last, effect, evidence), float(measured[0]))


def _flat(trace: Trace, layers: list[_Layer]) -> Case | None:
    """Weights so large that the bounded activations behind them are flat from the start."""
    guilty = [layer for layer in layers if layer.activation in _BOUNDED and layer.sigma >= LARGE * layer.critical]
    if len(guilty) < MIN_LAYERS:
        return None
    shares = trace.saturated_share[:, [layer.behind for layer in guilty]]
    known = ~np.isnan(shares)
    flat = np.where(known.any(axis=1), np.where(known, shares, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1), np.nan)
    if not flat[0] >= FLAT_SHARE:
        return None
    severity = Severity.WARNING
    if trace.stalled or (_now(trace, flat) >= FLAT_SHARE and trace.fall_from_guessing < LEARNED_WELL):
        severity = Severity.ERROR
    last = _last(trace, np.asarray(flat >= FLAT_SHARE))
    effect = f"{100 * flat[0]:.0f} % of what is behind them is saturated at step 0."
    evidence = Evidence(
        "share of the outputs of the activations behind these layers that is saturated, at step 0",
        float(flat[0]),
        FLAT_SHARE,
        "ours; Glorot & Bengio 2010 describe it",
        "a share below it",
    )
    return Case(_finding(trace, guilty, severity, last, effect, (evidence,)), float(flat[0]))


def _now(trace: Trace, measured: FloatArray) -> float:
    """The last of the measured values after the first steps; 0 where there is none."""
    settled = np.flatnonzero((trace.steps >= SETTLE) & np.isfinite(measured))
    return float(measured[settled[-1]]) if settled.size else 0.0


def _last(trace: Trace, held: BoolArray) -> int:
    """The last step of the stretch from the first look on in which it held."""
    return int(trace.steps[(int(np.argmin(held)) if not held.all() else held.size) - 1])


def _finding(
    trace: Trace, guilty: list[_Layer], severity: Severity, last: int, effect: str, evidence: tuple[Evidence, ...]
) -> Finding:
    typical = guilty[len(guilty) // 2]
    ratio = float(np.median([math.log10(layer.sigma / layer.critical) for layer in guilty]))
    names = trace.names([layer.site for layer in guilty])
    shrinks = ratio < 0.0
    sentence = (
        f"The initial weights of {len(guilty)} layers (`{names[0]}` first) are too {'small' if shrinks else 'large'} for "
        f"{_WORDS.get(typical.activation, typical.activation)}, {factor(ratio)} times the size that keeps a gradient as it is: "
    )
    size = Evidence(
        f"sigma_w = rms of the weights x sqrt(inputs per unit) of {names[len(names) // 2]}, at step 0",
        typical.sigma,
        typical.critical,
        "Schoenholz et al. 2017 (chi = 1); He et al. 2015 for ReLU",
        "weights at the critical size with the same profile along depth",
    )
    return Finding(
        rule=NAME,
        severity=severity,
        confidence=0.95,
        sites=names,
        steps=(0, last),
        sentence=sentence + effect,
        evidence=(size, *evidence),
        helps=_HELPS_SMALL if shrinks else _HELPS_LARGE,
        starts=names[0],
        shows=names,
        peak=0,
    )


def _measured(trace: Trace, chain: IntArray, *, shrinks: bool) -> FloatArray:
    """Decades by which gradient or signal shrink (or grow) along depth, the larger of the two; shape (S,), NaN unknown."""
    gradient, signal = trace.log10_gradient[:, chain], trace.log10_signal[:, hidden_sites(trace, chain)]
    if shrinks:
        return np.fmax(falls_towards_input(gradient), falls_towards_output(signal))
    gradient, signal = (np.where(np.isfinite(y), y, np.nan) for y in (gradient, signal))
    return np.fmax(falls_towards_output(gradient), falls_towards_input(signal))


def _is_first(trace: Trace, chain: IntArray, site: int) -> bool:
    dense = [int(i) for i in chain if trace.sites[int(i)].role is Role.LINEAR]
    return bool(dense) and site == dense[0]


def _layers(trace: Trace, chain: IntArray) -> list[_Layer]:
    """Layers with a right size, in order of execution; the head, which no activation follows, is none."""
    weights = {
        (trace.sites[int(i)].model, trace.sites[int(i)].module): int(i)
        for i in trace.parameters
        if trace.sites[int(i)].fan_in and trace.sites[int(i)].name.endswith("weight") and trace.sites[int(i)].trainable
    }
    found: list[_Layer] = []
    for k, i in enumerate(chain):
        site = trace.sites[int(i)]
        weight = weights.get((site.model, site.module))
        if site.role is not Role.LINEAR or weight is None or "Transpose" in site.kind or site.kind == "Bilinear":
            continue
        if trace.unit_difference[0, weight] < NOT_DRAWN:
            continue
        behind, activation = _behind(trace, chain, k)
        if not activation or (k and trace.sites[int(chain[k - 1])].role is Role.NORM):
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            rms = math.sqrt(trace.values["weight_sumsq"][0, weight] / trace.values["weight_count"][0, weight])
            q = trace.values["output_sumsq"][0, i] / trace.values["output_count"][0, i]
        sigma = rms * math.sqrt(trace.sites[weight].fan_in)
        if not (math.isfinite(sigma) and sigma > 0.0 and math.isfinite(q)):
            continue
        critical, decades = _scale(activation, round(sigma, 3), round(math.log10(q), 1) if q > 0.0 else -8.0)
        if math.isfinite(decades):
            found.append(_Layer(int(i), behind, activation, sigma, critical, decades))
    return found


def _behind(trace: Trace, chain: IntArray, k: int) -> tuple[int, str]:
    """The activation right behind a layer (site and kind), ``linear`` where another layer follows; empty where neither does."""
    square = trace.values["output_sumsq"][0]
    for i in (int(j) for j in chain[k + 1 :]):
        site = trace.sites[i]
        if site.role is Role.CONTAINER and square[i] == square[chain[k]]:
            continue  # the container of this layer: the very same numbers
        if site.role is Role.LINEAR:
            return i, "linear" if not any(trace.sites[int(j)].role is Role.ACTIVATION for j in chain) else ""
        kind = site.kind.lower().removesuffix("()").replace("_", "")
        known = kind in _LINES or kind in _BOUNDED or kind in _SMOOTH
        return i, kind if site.role is Role.ACTIVATION and known else ""
    return -1, ""


@cache
def _scale(activation: str, sigma: float, log10_q: float) -> tuple[float, float]:
    """The critical sigma_w of an activation, and the decades by which a layer of this sigma multiplies the gradient's norm.

    For a bounded activation at the fixed point that such weights lead to (inputs out of scale are no matter of weights); for
    an unbounded smooth one at the size of signal that was measured, as far as it matters.
    """
    if activation in _LINES:
        return _LINES[activation], math.log10(sigma / _LINES[activation])
    from gradiometer.theory.activations import activation as named
    from gradiometer.theory.meanfield import MeanField, slope_moment

    if activation in _BOUNDED:
        act = named(activation)
        critical = 1.0 / math.sqrt(slope_moment(act, 0.0))
        if sigma <= critical:
            return critical, math.log10(sigma / critical)
        return critical, math.log10(MeanField(act, sigma, 0.0).gain)
    slope = slope_moment(named(activation), 10.0 ** min(max(log10_q, -8.0), 8.0))
    return (1.0 / math.sqrt(slope), math.log10(sigma * math.sqrt(slope))) if slope > 0.0 else (math.nan, math.nan)
