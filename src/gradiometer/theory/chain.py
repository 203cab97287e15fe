"""The scalar chain of the textbook: one unit a layer, a' = phi(w a + b) (Nielsen 2015, chapter 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import Activation, Elementwise, activation

LEAST_WEIGHT: Final = 4.0
"""|w| below which a sigmoid unit shrinks the gradient whatever its input: its slope is at most 1/4."""
WIDEST_WEIGHT: Final = 6.894151
"""|w| at which the interval of inputs that do not shrink the gradient is widest (computed here)."""
WIDEST: Final = 0.447743
"""Its width (computed here)."""


def gain(which: str | Elementwise | Activation, w: float, a: float, b: float = 0.0) -> float:
    """Factor |w phi'(w a + b)| by which one unit of the chain multiplies the gradient.

    Args:
        which: activation.
        w: weight.
        a: activation of the unit before.
        b: bias.

    Raises:
        GradiometerError: a number is not finite.
    """
    _finite(w=w, a=a, b=b)
    slope = activation(which).slope(np.array([w * a + b], dtype=np.float64))
    return abs(w * float(slope[0]))


def chain_gain(
    which: str | Elementwise | Activation, weights: Sequence[float], biases: Sequence[float], a: float
) -> tuple[float, tuple[float, ...]]:
    """Product of the gains along a chain, and the gain of every unit, from the first.

    Args:
        which: activation.
        weights: of the units, in order.
        biases: of the units, in order.
        a: input.

    Raises:
        GradiometerError: not as many biases as weights, or a number is not finite.
    """
    if len(weights) != len(biases):
        raise GradiometerError(f"There are {len(weights)} weights and {len(biases)} biases.", "Give one of each for a unit.")
    act = activation(which)
    gains: list[float] = []
    for w, b in zip(weights, biases, strict=True):
        gains.append(gain(act, w, a, b))
        a = float(act.f(np.array([w * a + b], dtype=np.float64))[0])
    return math.prod(gains), tuple(gains)


def keeping_interval(w: float, b: float = 0.0) -> tuple[float, float] | None:
    """Activations a for which a sigmoid unit does not shrink the gradient, |w sigma'(w a + b)| >= 1; None if there is none.

    sigma'(z) >= 1/|w| for |z| <= ln(|w| (1 + sqrt(1 - 4/|w|)) / 2 - 1).

    Raises:
        GradiometerError: a number is not finite.
    """
    _finite(w=w, b=b)
    size = abs(w)
    if size < LEAST_WEIGHT:
        return None
    half = math.log(size * (1.0 + math.sqrt(1.0 - 4.0 / size)) / 2.0 - 1.0) / size
    middle = -b / w
    return middle - half, middle + half


def keeping_width(w: float) -> float:
    """Width of `keeping_interval`, (2/|w|) ln(|w| (1 + sqrt(1 - 4/|w|)) / 2 - 1); 0 below |w| = 4."""
    found = keeping_interval(w)
    return found[1] - found[0] if found is not None else 0.0


def _finite(**numbers: float) -> None:
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise GradiometerError(f"{name} must be a finite number, not {value}.")
