"""Expectations over Gaussians by composite Gauss-Legendre, exact to rounding for kinked and for steep functions alike.

Why not Gauss-Hermite: it loses all digits where an activation has a kink (hardtanh at q = 0.4: 3e-3 with 200 nodes) or
where it is steep on the scale of the Gaussian (sigmoid at q = 46: 2e-3). Here [-12, 12] is cut into panels whose edges
lie on the kinks, and which grow geometrically away from them and from zero, where saturating functions have their
transition. Each panel is integrated by a Gauss rule. A function that has structure finer than about a tenth of its
distance from zero and from all kinks (a sine at q > 10^4) is beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from gradiometer.errors import GradiometerError

FloatArray = npt.NDArray[np.float64]

REACH: Final = 12.0
"""Integrals run over |z| <= 12: what lies outside weighs 4e-33."""

PAIR_REACH: Final = 10.0
"""The same for double integrals: what lies outside weighs 2e-23."""

_ORDER: Final = 20
_PAIR_ORDER: Final = 16
_FIRST: Final = 0.5  # width of the panels next to a kink or zero, in units of u
_WIDEST: Final = 1.5  # widest panel, in standard deviations
_WAVE: Final = 4.0  # widest panel in units of u where that is affordable, for functions that oscillate
_MOST: Final = 400  # panels that are affordable
_CLOSEST: Final = 1e-12  # panels never get narrower than this share of the whole
_NO_CORRELATION: Final = 1e-100  # correlations below are none: their products with a scale would underflow
_LOG_SQRT_2PI: Final = 0.9189385332046727


@lru_cache(maxsize=8)
def _rule(order: int) -> tuple[FloatArray, FloatArray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(order)
    return 0.5 * (x + 1.0), 0.5 * w


def _march(start: float, end: float, first: float) -> list[float]:
    """Points from ``start`` towards ``end`` (both left out), each step twice as wide as the last, the first ``first``."""
    points: list[float] = []
    total, reach, side = first, abs(end - start), math.copysign(1.0, end - start)
    while total < 0.75 * reach:
        points.append(start + side * total)
        total *= 2.0
    return points


def _edges(centres: Sequence[tuple[float, float]], reach: float, widest: float) -> FloatArray:
    """Panel edges on [-reach, reach], graded towards each centre.

    Args:
        centres: place and finest scale of each.
        reach: half the length of the whole.
        widest: no panel is wider.
    """
    finest = _CLOSEST * reach
    inside = sorted({(x, max(h, finest)) for x, h in centres if abs(x) < reach})
    places = sorted({x for x, _ in inside})
    # a centre takes over the scale of a finer one nearby
    scales = [min(h + abs(x - place) for x, h in inside) for place in places]
    edges = [-reach, *places, reach]
    if places:
        edges += _march(places[0], -reach, scales[0]) + _march(places[-1], reach, scales[-1])
        for left, right, fine_left, fine_right in zip(places[:-1], places[1:], scales[:-1], scales[1:], strict=True):
            middle = 0.5 * (left + right)
            if right - left > 2.0 * min(fine_left, fine_right):
                edges += [*_march(left, middle, fine_left), middle, *_march(right, middle, fine_right)]
    found = np.unique(np.array(edges))
    parts = np.maximum(np.ceil(np.diff(found) / widest), 1.0).astype(int)
    if int(parts.max()) > 1:
        cut = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(found[:-1], found[1:], parts, strict=True)]
        found = np.concatenate([*cut, found[-1:]])
    return found


def _panels(edges: FloatArray, order: int) -> tuple[FloatArray, FloatArray]:
    """Nodes and Gaussian weights of all panels; ``edges`` (..., k) gives (..., (k - 1) order)."""
    x, w = _rule(order)
    width = np.diff(edges, axis=-1)[..., None]
    z = edges[..., :-1, None] + width * x
    weight = width * w * np.exp(-0.5 * z * z - _LOG_SQRT_2PI)
    shape = (*edges.shape[:-1], -1)
    return z.reshape(shape), weight.reshape(shape)


def _root(q: float) -> float:
    if not (math.isfinite(q) and q >= 0.0):
        raise GradiometerError(f"A variance must be a finite number of at least 0, not {q}.")
    return math.sqrt(q)


def nodes(q: float, kinks: Sequence[float] = ()) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights for E over z ~ N(0, 1) of functions of u = sqrt(q) z.

    Args:
        q: variance of u, at least 0.
        kinks: values of u at which the function is not smooth.

    Returns:
        z and weights w, both of shape (n,); the weights sum to 1 to 1e-13. The expectation of g is
        ``w @ g(sqrt(q) * z)``.

    Raises:
        GradiometerError: q is negative or not finite.
    """
    s = _root(q)
    centres = [(k / s, _FIRST / s) for k in {0.0, *kinks} if abs(k) < REACH * s]
    widest = min(_WIDEST, max(_WAVE / s, 2.0 * REACH / _MOST)) if s > 0.0 else _WIDEST
    return _panels(_edges(centres, REACH, widest), _ORDER)


def expectation(g: Callable[[FloatArray], FloatArray], q: float, kinks: Sequence[float] = ()) -> float:
    """E g(sqrt(q) z) over z ~ N(0, 1).

    Raises:
        GradiometerError: q is negative or not finite.
    """
    z, w = nodes(q, kinks)
    return float(w @ g(math.sqrt(q) * z))


def pair_expectation(
    f: Callable[[FloatArray], FloatArray],
    g: Callable[[FloatArray], FloatArray],
    q1: float,
    q2: float,
    c: float,
    kinks: Sequence[float] = (),
) -> float:
    """E f(u1) g(u2) over a Gaussian pair with variances q1, q2 and correlation c.

    Args:
        f: function of the first.
        g: function of the second.
        q1: variance of the first.
        q2: variance of the second.
        c: correlation, -1 to 1 (an excess of 1e-9, as rounding leaves it, is cut).
        kinks: values at which f or g is not smooth.

    Raises:
        GradiometerError: a variance is negative or not finite, or c is no correlation.
    """
    s1, s2 = _root(q1), _root(q2)
    if not abs(c) <= 1.0 + 1e-9:
        raise GradiometerError(f"A correlation lies between -1 and 1, not at {c}.")
    c = min(1.0, max(-1.0, c)) if abs(c) > _NO_CORRELATION else 0.0
    r = math.sqrt((1.0 - c) * (1.0 + c))
    points = sorted({0.0, *kinks})
    centres = [(k / s1, _FIRST / s1) for k in points if s1 > 0.0 and abs(k) < PAIR_REACH * s1]
    # seen from the first variable, g is blurred over r / |c|
    blurred = [k / (s2 * c) for k in points if abs(k) < PAIR_REACH * s2 * abs(c)]
    if r == 0.0:
        z, w = _panels(_edges(centres + [(x, _FIRST / s2) for x in blurred], PAIR_REACH, _WIDEST), _ORDER)
        return float(w @ (f(s1 * z) * g(s2 * c * z)))
    outer = _edges(centres + [(x, r / abs(c)) for x in blurred], PAIR_REACH, _widest(s1))
    z1, w1 = _panels(outer, _PAIR_ORDER)
    inner = np.linspace(-PAIR_REACH, PAIR_REACH, math.ceil(2.0 * PAIR_REACH / _widest(s2 * r)) + 1)
    if s2 == 0.0:
        z2, w2 = _panels(inner, _PAIR_ORDER)
        return float(w1 @ f(s1 * z1)) * float(w2 @ g(0.0 * z2))
    # the panels of g in units of u2, seen from each z1
    far = 1.5 * PAIR_REACH * s2
    mesh = _edges([(k, _FIRST) for k in points], far, far) if far > _FIRST else np.array([-far, *points, far])
    seen = np.clip((mesh / s2 - c * z1[:, None]) / r, -PAIR_REACH, PAIR_REACH)
    edges = np.sort(np.concatenate([seen, np.broadcast_to(inner, (z1.size, inner.size))], axis=1), axis=1)
    z2, w2 = _panels(edges, _PAIR_ORDER)
    blur = np.einsum("ij,ij->i", w2, g(s2 * (c * z1[:, None] + r * z2)))
    return float(w1 @ (f(s1 * z1) * blur))


def _widest(s: float) -> float:
    """Widest panel of a double integral: finer for steep functions, as far as that is affordable."""
    return min(_WIDEST, max(_WAVE / s, 0.5)) if s > 0.0 else _WIDEST
