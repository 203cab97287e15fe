"""What is propagated along a blueprint, for every sample at once, and the small laws that operations share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from gradiometer.record.blueprint import SAMPLE_LIMIT, SAMPLE_STEP, Node, Spread
from gradiometer.record.ledger import FloatArray
from gradiometer.theory.activations import Activation, activation

SAMPLES: Final = 24
"""Copies of a network that are followed at once, each with noise of its own."""
TINY: Final = 1e-250

Profile = tuple[FloatArray, ...]
"""How a square is spread over the positions of an image, for each axis, with mean one; empty where it is even."""


@dataclass(slots=True)
class State:
    """Statistics of a signal for every sample: mean square, mean, and 1 - c in its two forms."""

    square: FloatArray
    mean: FloatArray
    apart: FloatArray
    anywhere: FloatArray
    pairs: FloatArray
    profile: Profile = ()

    @property
    def varying(self) -> FloatArray:
        """Mean square about the mean over units."""
        return np.maximum(self.square - self.mean**2, TINY)


@dataclass(slots=True)
class Back:
    """Squared gradient for every sample, how much of it is shared, and how alike two are.

    Attributes:
        log: natural logarithm of the part that random weights carry.
        along: product of signal and gradient, summed over the units of an example. A positively homogeneous network
            carries it through unchanged (Euler's identity), whatever its weights: the gradient is never less than this
            over the size of the signal.
        shared: share of the gradient that is the mean over (example, position).
        overlap: mean squared cosine of two (example, position).
        profile: how it is spread over positions.
    """

    log: FloatArray
    along: FloatArray
    shared: FloatArray
    overlap: FloatArray
    profile: Profile = ()


def measured_state(output: Spread | None) -> State:
    """What was measured of an output, for every sample; NaN where nothing was."""
    if output is None:
        lost = np.full(SAMPLES, np.nan)
        return State(lost, lost, lost, lost, np.zeros(SAMPLES))
    numbers = (output.square, output.mean, output.apart, output.apart_anywhere, output.pairs)
    square, mean, apart, anywhere, pairs = (np.full(SAMPLES, v) for v in numbers)
    return State(square, mean, apart, anywhere, pairs)


def spatial(numbers: Mapping[str, float], profile: Profile, *, backward: bool = False) -> tuple[float, Profile]:
    """What the padding of a convolution takes from a square that is spread like ``profile``, and how it leaves it.

    Positions at the border meet fewer weights; after some layers the middle carries most, and the factor is the largest
    eigenvalue of the taps rather than their mean.
    """
    factor, left = 1.0, list[FloatArray]()
    axis = 0
    while f"in{axis}" in numbers:
        taps = _taps(*(int(numbers[f"{name}{axis}"]) for name in ("in", "out", "taps", "stride", "padding", "dilation")),
                     transposed=bool(numbers["transposed"]))  # fmt: skip
        matrix = taps.T if backward else taps
        given = profile[axis] if axis < len(profile) and profile[axis].size == matrix.shape[1] else np.ones(matrix.shape[1])
        made = matrix @ given
        whole = made.sum() / given.sum() if backward else made.mean() / given.mean()
        factor *= float(whole) / numbers[f"taps{axis}"]
        left.append(made / made.mean() if made.mean() else np.ones(made.size))
        axis += 1
    return factor, tuple(left)


@cache
def _taps(size_in: int, size_out: int, taps: int, stride: int, padding: int, dilation: int, *, transposed: bool) -> FloatArray:
    """Which input position meets which output position, (out, in), 0 or 1."""
    outer, inner = (size_in, size_out) if transposed else (size_out, size_in)
    met = np.zeros((outer, inner))
    for tap in range(taps):
        at = np.arange(outer) * stride - padding + tap * dilation
        inside = (at >= 0) & (at < inner)
        met[np.flatnonzero(inside), at[inside]] += 1.0
    return met.T if transposed else met


def likeness(apart: FloatArray, count: int) -> FloatArray:
    """Mean squared correlation of two (example, position) pairs, those with themselves included."""
    c = np.nan_to_num(1.0 - apart, nan=1.0)
    return np.asarray(1.0 / count + (1.0 - 1.0 / count) * np.clip(c, -1.0, 1.0) ** 2)


def sampled_likeness(likeness: FloatArray, share: FloatArray | float) -> FloatArray:
    """A mean squared correlation after one more layer of finite width.

    (1 - r^2)^2 / n is the sampling variance of a correlation r over n units: what is independent becomes a little alike,
    layer by layer, until all gradients of a deep narrow network lie along one direction.
    """
    known = np.clip(likeness, 0.0, 1.0)
    return np.asarray(known + (1.0 - known) ** 2 * share)


def crossing(parts: Sequence[FloatArray], whole: FloatArray) -> FloatArray:
    """Relative variance that products of independent parts add to the square of their sum, times the width."""
    squares = sum((p * p for p in parts), np.zeros(SAMPLES))
    return np.nan_to_num(2.0 * (1.0 - squares / np.maximum(whole, TINY) ** 2))


def weighted(weights: Sequence[FloatArray], values: Sequence[FloatArray], whole: FloatArray) -> FloatArray:
    """Sum of weights times values over the whole; what has no weight may be unknown."""
    parts = [np.where(w > 0.0, w * v, 0.0) for w, v in zip(weights, values, strict=True)]
    return sum(parts, np.zeros(SAMPLES)) / np.maximum(whole, TINY)


def function_of(node: Node) -> Activation:
    """The function of an activation, by name or by its samples."""
    if node.samples:
        return _sampled(node.kind, node.samples)
    return activation(node.function, **dict(node.numbers))


def _sampled(name: str, samples: Sequence[float]) -> Activation:
    """An activation known by its values on a grid; straight lines beyond it."""
    y = np.asarray(samples, dtype=np.float64)
    x = np.linspace(-SAMPLE_LIMIT, SAMPLE_LIMIT, y.size)
    steps = np.diff(y) / SAMPLE_STEP
    middle = (x[:-1] + x[1:]) / 2

    def f(u: FloatArray) -> FloatArray:
        inside = np.interp(u, x, y)
        beyond = np.where(u < x[0], (u - x[0]) * steps[0], 0.0) + np.where(u > x[-1], (u - x[-1]) * steps[-1], 0.0)
        return np.asarray(inside + beyond)

    def slope(u: FloatArray) -> FloatArray:
        return np.asarray(np.interp(u, middle, steps))

    return Activation(name, f, slope)
