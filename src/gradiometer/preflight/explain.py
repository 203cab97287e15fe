"""The chain rule of a network in words: what each kind of layer multiplies the gradient by, and what that comes to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gradiometer.preflight.judge import VANISHING
from gradiometer.record.blueprint import Node, Op
from gradiometer.rules.judging import factor
from gradiometer.theory.forecast import NodeForecast

STEADY: Final = 0.02
"""Decades per layer below which the gradient keeps its size, as far as theory can tell (docs/forecast.md: its error)."""
MILLIONTH: Final = 6.0


@dataclass(frozen=True, slots=True)
class ChainRule:
    """How a gradient changes layer by layer.

    Attributes:
        sentence: in words; empty where theory has nothing to say.
        per_layer: decades per layer with weights, negative when it shrinks; NaN if unknown.
        trainable_depth: layers until the gradient has lost `VANISHING` decades or its size has grown by as many; infinity if
            it keeps its size, NaN if unknown.
    """

    sentence: str
    per_layer: float
    trainable_depth: float


UNKNOWN: Final = ChainRule("", math.nan, math.nan)


def chain_rule(nodes: Sequence[Node], forecast: Sequence[NodeForecast]) -> ChainRule:
    """What theory says of the layers between the first and the last one with weights.

    Args:
        nodes: operations of one network, in order of execution.
        forecast: of each of them.
    """
    weighted = [i for i, node in enumerate(nodes) if node.op is Op.LINEAR]
    if len(weighted) < 3:
        return UNKNOWN
    inner = range(weighted[0], weighted[-1] + 1)
    low, high = forecast[weighted[0]].gradient, forecast[weighted[-1]].gradient
    if not (math.isfinite(low.middle) and math.isfinite(high.middle)):
        return UNKNOWN
    layers = len(weighted) - 1
    total = low.middle - high.middle
    per_layer = total / layers
    depth = VANISHING / abs(per_layer) if abs(per_layer) > STEADY else math.inf
    inside = [(nodes[i], forecast[i]) for i in inner]
    acts = Counter(node.function for node, _ in inside if node.op is Op.ACTIVATION)
    norms = any(node.op in (Op.BATCH_NORM, Op.LAYER_NORM, Op.RMS_NORM) for node, _ in inside)
    skips = any(node.op is Op.ADD and len(node.inputs) > 1 for node, _ in inside)
    alone = len(acts) == 1 and not norms and not skips
    kind = f"{acts.most_common(1)[0][0]} layer" if alone else "layer"
    sentence = f"Each {kind} multiplies the gradient by {factor(per_layer)}"
    if alone:
        slopes = [k.slope for node, k in inside if node.op is Op.ACTIVATION and not math.isnan(k.slope)]
        gains = [k.backward_gain for node, k in inside[1:] if node.op is Op.LINEAR and math.isfinite(k.backward_gain)]
        if slopes and gains:
            sentence += f": slope {_typical(slopes)} × weight gain {_typical([10.0**g for g in gains])}"
    sentence += f"; after {layers} layers {_power(total)}."
    if not alone and abs(total) < 1.0:  # what little is left may come from one place
        return ChainRule(f"Over {layers} layers the gradient changes by {_power(total)}.", per_layer, math.inf)
    if math.isfinite(depth):
        way = "shrinks" if per_layer < 0.0 else "grows"
        sentence += f" The depth this initialisation can train is about {max(math.floor(depth), 1)}"
        sentence += (
            f" (there it {way} a thousandfold); at {max(round(MILLIONTH / abs(per_layer)), 1)} layers it is a millionfold."
        )
    return ChainRule(sentence, per_layer, depth)


def _typical(values: Sequence[float]) -> str:
    """The geometric mean, as people write it."""
    return factor(float(np.mean(np.log10(np.maximum(values, 1e-300)))))


def _power(decades: float) -> str:
    if abs(decades) < 2.0:
        return f"×{10.0**decades:.2g}"
    return f"10^{decades:.1f}" if abs(decades) < 10.0 else f"10^{decades:.0f}"
