"""Correlation maps as power series: one quadrature gives the map at every correlation.

E phi(u1) phi(u2) = sum over k of a_k^2 c^k, where a_k = E phi(sqrt(q) z) he_k(z) and he_k are the orthonormal Hermite
polynomials (Mehler's formula; Daniely, Frostig & Singer 2016 call it the dual activation). `theory.pair_moment` integrates
anew for every c, which is exact for kinks too but takes milliseconds; a page that follows 200 layers while a slider moves
has microseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from scipy import interpolate

from gradiometer.theory.activations import Activation, FloatArray, activation
from gradiometer.theory.finite_width import slope_kurtosis
from gradiometer.theory.meanfield import pair_moment, second_moment, slope_moment, straight_lines
from gradiometer.theory.quadrature import nodes

TERMS: Final = 48
"""Terms of the series that are kept; what is left over is one more power of c that makes value and slope at c = 1 exact."""

_NO_REST: Final = 1e-13  # share of the second moment that is rounding


def squares(act: Activation, q: float, terms: int = TERMS) -> FloatArray:
    """a_k^2 for k = 0 to terms - 1, shape (terms,)."""
    z, w = nodes(q, act.kinks)
    values = w * act.f(math.sqrt(q) * z)
    table = np.empty((terms, z.size))
    table[0], table[1] = 1.0, z
    for k in range(2, terms):
        table[k] = (z * table[k - 1] - math.sqrt(k - 1.0) * table[k - 2]) / math.sqrt(k)
    return np.asarray((table @ values) ** 2)


def with_rest(series: FloatArray, square: FloatArray, slope: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weight and power of the last term: those that make the sum and its slope at c = 1 what they should be.

    Args:
        series: a_k^2, shape (terms, ...).
        square: E phi^2, shape (...).
        slope: q E phi'^2, shape (...).
    """
    k = np.arange(len(series)).reshape(-1, *(1,) * (series.ndim - 1))
    rest = np.maximum(square - series.sum(axis=0), 0.0)
    left = slope - (k * series).sum(axis=0)
    real = rest > _NO_REST * square
    power = np.where(real, np.maximum(left, 0.0) / np.where(real, rest, 1.0), 0.0)
    return np.where(real, rest, 0.0), np.maximum(power, float(len(series)))


DECADES: Final = 6.0
"""Variances from 10^-6 to 10^6 are tabled. Beyond them an activation is taken as the straight lines that it looks like."""

_POINTS: Final = 121


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Moments of an activation as functions of t = log10 q, interpolated from `theory`'s on a grid (to about 1e-5).

    Attributes:
        act: the activation.
        square: E phi^2 / q.
        slope: E phi'^2.
        kurtosis: E phi'^4 / (E phi'^2)^2.
        series: a_k^2 / q, shape (..., TERMS).
    """

    act: Activation
    square: interpolate.CubicSpline
    slope: interpolate.CubicSpline
    kurtosis: interpolate.CubicSpline
    series: interpolate.CubicSpline

    def at(self, t: float) -> At:
        """All of them at one variance."""
        inside = min(DECADES, max(-DECADES, t))
        square, slope = float(self.square(inside)), float(self.slope(inside))
        series = np.asarray(self.series(inside)) if straight_lines(self.act) is None else np.empty(0)
        rest, power = with_rest(series, np.array(square), np.array(slope)) if series.size else (np.zeros(()), np.ones(()))
        return At(self.act, square, slope, float(self.kurtosis(inside)), series, float(rest), float(power))


@dataclass(frozen=True, slots=True, eq=False)
class At:
    """Moments at one variance; see `Moments`.

    Attributes:
        rest, power: the last term of the series of E phi phi / q.
    """

    act: Activation
    square: float
    slope: float
    kurtosis: float
    series: FloatArray
    rest: float
    power: float

    def pair(self, c: float) -> float:
        """E phi(u1) phi(u2) / q at correlation c; theory's closed form for straight lines."""
        if not self.series.size:
            return pair_moment(self.act, 1.0, c)
        return float(np.polynomial.polynomial.polyval(c, self.series)) + self.rest * abs(c) ** self.power


@lru_cache(maxsize=16)
def moments(name: str) -> Moments:
    """The table of an activation of that name."""
    act = activation(name)
    t = np.linspace(-DECADES, DECADES, _POINTS)
    q = (10.0**t).tolist()
    # relative to q, so that what is proportional to it is smooth
    return Moments(
        act,
        interpolate.CubicSpline(t, [second_moment(act, v) / v for v in q]),
        interpolate.CubicSpline(t, [slope_moment(act, v) for v in q]),
        interpolate.CubicSpline(t, [slope_kurtosis(act, v) for v in q]),
        interpolate.CubicSpline(t, np.array([squares(act, v) / v for v in q])),
    )
