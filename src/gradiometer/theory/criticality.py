"""Critical initialisation: weights and biases at which the gradient neither shrinks nor grows (the edge of chaos)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import Activation, Elementwise, FloatArray, activation
from gradiometer.theory.meanfield import (
    LEAST_Q,
    MeanField,
    length_slope_moment,
    root_between,
    second_moment,
    slope_moment,
    straight_lines,
)

SMALLEST_Q: Final = 1e-8
LARGEST_Q: Final = 1e8
"""Points of the edge are looked for between these variances."""

_SCAN: Final = 161  # points of the grid: 10 a decade
_NOISE: Final = 1e-12  # relative rounding error
_NO_SLOPE: Final = 1e-12  # a mean square slope (or value) below this is none


@dataclass(frozen=True, slots=True)
class CriticalPoint:
    """A point of the edge of chaos: chi_1 = 1 at a fixed point of the length map.

    Attributes:
        sigma_w, sigma_b: the initialisation.
        q: the fixed point.
        chi_parallel: slope of the length map there.
        stable: whether variances on both sides flow to it, or at least stay: a network does not get to any other.
    """

    sigma_w: float
    sigma_b: float
    q: float
    chi_parallel: float
    stable: bool


def _point(act: Activation, sigma_w: float, sigma_b: float, q: float) -> CriticalPoint:
    field = MeanField(act, sigma_w, sigma_b)
    return CriticalPoint(sigma_w, sigma_b, q, field.chi_parallel(q), field.attracts(q))


def edge_of_chaos(which: str | Elementwise | Activation, q: float) -> CriticalPoint | None:
    """The point of the edge whose fixed point is ``q``, in closed form; None where no real weights and biases make one.

    sigma_w^2 = 1 / E phi'^2 and sigma_b^2 = q - sigma_w^2 E phi^2 (Hayou et al. 2019, in parametric form). chi_1 = 1 says
    nothing about whether a network gets there: see `CriticalPoint.stable`.

    Args:
        which: activation.
        q: variance of a pre-activation, above 0.

    Raises:
        GradiometerError: q is not a positive number.
    """
    if not (math.isfinite(q) and q > 0.0):
        raise GradiometerError(f"q must be a positive number, not {q}.")
    act = activation(which)
    slope = slope_moment(act, q)
    if slope < _NO_SLOPE:
        return None
    bias = q - second_moment(act, q) / slope
    if bias < -_NOISE * q:
        return None
    return _point(act, 1.0 / math.sqrt(slope), math.sqrt(max(bias, 0.0)), q)


def edge_at(which: str | Elementwise | Activation, sigma_b: float) -> tuple[CriticalPoint, ...]:
    """All points of the edge with this ``sigma_b``, by their q; none for softplus.

    For ``sigma_b`` = 0 an activation with phi(0) = 0 has a point at q = 0: at a kink there, 1 / sigma_w is the root mean
    square of both slopes. Two straight lines (ReLU, leaky ReLU, linear) have one point, at any q, listed with q = 1.

    Args:
        which: activation.
        sigma_b: standard deviation of the biases, at least 0.

    Raises:
        GradiometerError: sigma_b is negative or not finite.
    """
    act = activation(which)
    _check_bias(sigma_b)
    return _edge_on(act, _curve(act), sigma_b)


def _check_bias(sigma_b: float) -> None:
    if not (math.isfinite(sigma_b) and sigma_b >= 0.0):
        raise GradiometerError(f"sigma_b must be a number of at least 0, not {sigma_b}.")


@dataclass(frozen=True, slots=True)
class _Curve:
    """Moments of an activation on a grid of t = ln q; empty for straight lines."""

    t: FloatArray
    square: FloatArray
    slope: FloatArray


def _curve(act: Activation) -> _Curve:
    t = np.linspace(math.log(SMALLEST_Q), math.log(LARGEST_Q), _SCAN) if straight_lines(act) is None else np.empty(0)
    return _Curve(
        t,
        np.array([second_moment(act, math.exp(x)) for x in t]),
        np.array([slope_moment(act, math.exp(x)) for x in t]),
    )


def _edge_on(act: Activation, curve: _Curve, sigma_b: float) -> tuple[CriticalPoint, ...]:
    if straight_lines(act) is not None:
        if sigma_b > 0.0:
            return ()  # the variance grows by sigma_b^2 at every layer
        return (_point(act, 1.0 / math.sqrt(slope_moment(act, 1.0)), 0.0, 1.0),)

    def rest(t: float) -> float:
        """How much too small q is, in units of q."""
        q = math.exp(t)
        return 1.0 - (second_moment(act, q) / slope_moment(act, q) + sigma_b**2) / q

    found: list[CriticalPoint] = []
    if sigma_b == 0.0 and second_moment(act, 0.0) < LEAST_Q and (slope := slope_moment(act, 0.0)) >= _NO_SLOPE:
        found.append(_point(act, 1.0 / math.sqrt(slope), 0.0, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = 1.0 - (curve.square / curve.slope + sigma_b**2) / np.exp(curve.t)
    values[curve.slope < _NO_SLOPE] = math.nan
    for t in _roots(rest, curve.t, values):
        q = math.exp(t)
        found.append(_point(act, 1.0 / math.sqrt(slope_moment(act, q)), sigma_b, q))
    return tuple(found)


def _roots(f: Callable[[float], float], t: FloatArray, values: FloatArray) -> list[float]:
    """Where a function with these values at these places crosses zero; what is within rounding of zero is no crossing."""
    clear = np.flatnonzero(~(np.abs(values) <= _NOISE)).tolist()
    return [root_between(f, float(t[i]), float(t[j])) for i, j in pairwise(clear) if values[i] * values[j] < 0.0]


def half_stable_points(which: str | Elementwise | Activation) -> tuple[CriticalPoint, ...]:
    """Points of the edge with chi_parallel = 1 too: GELU and SiLU have one (Roberts, Yaida & Hanin 2022).

    The variance is drawn to such a point from one side and driven away on the other. The edge is unstable on one side of it
    and stable on the other. Straight lines are critical at every variance: none is listed.
    """
    act = activation(which)
    if straight_lines(act) is not None:
        return ()

    def excess(t: float) -> float:
        """Slope of the length map above 1, whether or not a real sigma_b makes q a fixed point."""
        q = math.exp(t)
        slope = slope_moment(act, q)
        return length_slope_moment(act, q) / slope - 1.0 if slope >= _NO_SLOPE else math.nan

    t = np.linspace(math.log(SMALLEST_Q), math.log(LARGEST_Q), _SCAN)
    roots = _roots(excess, t, np.array([excess(x) for x in t]))
    points = (edge_of_chaos(act, math.exp(x)) for x in roots)
    return tuple(point for point in points if point is not None)


BIASES: Final = (0.2, 0.1, 0.3, 0.5, 0.45, 0.6, 0.8, 1.0, 1.5, 2.0)
"""Values of sigma_b tried in this order where none is asked for. At 0.2 lengths settle within a few layers, and the slopes of
saturating units are still nearly alike."""


def critical_initialisation(which: str | Elementwise | Activation, sigma_b: float | None = None) -> CriticalPoint:
    """A point of the edge of chaos that a network flows to.

    Args:
        which: activation.
        sigma_b: standard deviation of the biases; by default the first of `BIASES` that has a stable point, and 0 for
            ReLU, leaky ReLU and linear.

    Raises:
        GradiometerError: there is no stable point: softplus has none at all, GELU and SiLU none for small biases.
    """
    act = activation(which)
    if sigma_b is None:
        tried = (0.0,) if straight_lines(act) is not None else BIASES
    else:
        _check_bias(sigma_b)
        tried = (sigma_b,)
    unstable, curve = False, _curve(act)
    for bias in tried:
        points = _edge_on(act, curve, bias)
        stable = [p for p in points if p.stable]
        unstable |= len(points) > len(stable)
        if stable:
            return stable[-1]
    at = f" with sigma_b = {sigma_b:g}" if sigma_b is not None else ""
    if unstable:
        least = min((p.sigma_b for p in half_stable_points(act)), default=math.nan)
        more = "" if math.isnan(least) else f"Take sigma_b of at least {math.ceil(100.0 * least) / 100.0:.2f}, or p"
        raise GradiometerError(
            f"{act.name}{at} has critical points, but signals run away from them: the network would explode or die.",
            f"{more or 'P'}ut normalisation between the layers.",
        )
    raise GradiometerError(
        f"{act.name}{at} has no critical initialisation.", "Put normalisation between the layers, or skip connections."
    )


def unit_variance_gain(which: str | Elementwise | Activation) -> float:
    """sigma_w (sigma_b = 0) that keeps a pre-activation variance of 1: what forward-only initialisers aim at.

    Raises:
        GradiometerError: the activation is zero.
    """
    return _gain(act := activation(which), second_moment(act, 1.0), "value")


def backward_gain(which: str | Elementwise | Activation) -> float:
    """sigma_w that keeps the squared gradient where pre-activations have variance 1.

    Raises:
        GradiometerError: the activation is constant.
    """
    return _gain(act := activation(which), slope_moment(act, 1.0), "slope")


def _gain(act: Activation, moment: float, what: str) -> float:
    if moment < _NO_SLOPE:
        raise GradiometerError(f"No weights make up for {act.name}: its {what} is zero at every input.")
    return 1.0 / math.sqrt(moment)
