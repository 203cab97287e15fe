"""Landscapes: losses of one or two weights with exact value, gradient and curvature, to walk on.

Most are formulas. Two are the loss of a real network along directions in its space of weights (`network_plane`). All are
defined everywhere, not only in the part that is drawn; far outside they may overflow to infinity, without a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from scipy import special

from gradiometer.errors import GradiometerError
from gradiometer.lab import network_plane
from gradiometer.record.ledger import FloatArray

Function = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Landscape:
    """A loss f of d = 1 or 2 weights. Two are equal if their names and numbers of weights are.

    Attributes:
        name: key.
        dimensions: d.
        label: what people call it.
        law: its formula or what it is made of, in a sentence.
        domain: lowest and highest coordinate of the part that is drawn, for each weight.
        start: where a descent begins unless it is told otherwise.
        minima: places of its lowest points inside the domain, where they are known and isolated.
        f: points (..., d) -> values (...).
        slope: points (..., d) -> gradients (..., d); at a kink a one-sided one, as autograd gives it.
        bend: points (..., d) -> Hessians (..., d, d).
    """

    name: str
    dimensions: int
    label: str = field(compare=False)
    law: str = field(compare=False)
    domain: tuple[tuple[float, float], ...] = field(compare=False)
    start: tuple[float, ...] = field(compare=False)
    minima: tuple[tuple[float, ...], ...] = field(compare=False)
    f: Function = field(compare=False, repr=False)
    slope: Function = field(compare=False, repr=False)
    bend: Function = field(compare=False, repr=False)

    def value(self, points: FloatArray) -> FloatArray:
        """Values of f at points (..., d), shape (...)."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.f(points)

    def gradient(self, points: FloatArray) -> FloatArray:
        """Gradient of f at points (..., d), shape (..., d)."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.slope(points)

    def hessian(self, points: FloatArray) -> FloatArray:
        """Second derivatives of f at points (..., d), shape (..., d, d)."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.bend(points)

    def curvature(self, points: FloatArray) -> FloatArray:
        """Largest eigenvalue of the Hessian at points (..., d), shape (...): f'' in one dimension; NaN where it is none.

        Gradient descent with rate r is unstable where r times this is above 2 (for a quadratic; Cohen et al. 2021).
        """
        bends = self.hessian(points)
        if self.dimensions == 1:
            return bends[..., 0, 0]
        a, b, c = bends[..., 0, 0], bends[..., 0, 1], bends[..., 1, 1]
        with np.errstate(over="ignore", invalid="ignore"):
            return 0.5 * (a + c) + np.hypot(0.5 * (a - c), b)

    def along(self, share: float, axis: int = 0) -> float:
        """The coordinate at a share (0 to 1) of the way across the domain."""
        low, high = self.domain[axis]
        return low + share * (high - low)


# ---- one weight --------------------------------------------------------------------------------------------------------


def _one(
    name: str,
    label: str,
    law: str,
    domain: tuple[float, float],
    start: float,
    minima: tuple[float, ...],
    derivatives: tuple[Function, Function, Function],
) -> Landscape:
    """A landscape of one weight from f, f' and f'' of arrays of any shape."""
    f, slope, bend = derivatives
    return Landscape(
        name,
        1,
        label,
        law,
        (domain,),
        (start,),
        tuple((m,) for m in minima),
        lambda p: f(p[..., 0]),
        lambda p: slope(p[..., 0])[..., None],
        lambda p: bend(p[..., 0])[..., None, None],
    )


def _plateau() -> Landscape:
    def f(x: FloatArray) -> FloatArray:
        return np.tanh(x) ** 2

    def slope(x: FloatArray) -> FloatArray:
        # 1 - tanh^2 = sech^2, which keeps its digits where tanh is 1 to the last one
        return 2.0 * np.tanh(x) * _sech2(x)

    def bend(x: FloatArray) -> FloatArray:
        return 2.0 * _sech2(x) * (1.0 - 3.0 * np.tanh(x) ** 2)

    law = "f(x) = tanh²(x), the squared error of a saturating neuron: far out |f′| = 8 e^(−2|x|)."
    return _one("plateau", "plateau", law, (-5.0, 5.0), 3.5, (0.0,), (f, slope, bend))


def _sech2(x: FloatArray) -> FloatArray:
    decay = np.exp(-2.0 * np.abs(x))
    return 4.0 * decay / (1.0 + decay) ** 2


CLIFF_GENTLE: Final = 0.3
CLIFF_STEEP: Final = 30.0
CLIFF_EDGE: Final = 0.02
"""Slope on the gentle side, slope of the wall, width of the edge between them."""
_CLIFF_FOOT: Final = CLIFF_EDGE * math.log(CLIFF_STEEP / CLIFF_GENTLE)


def _cliff_value(x: FloatArray) -> FloatArray:
    return CLIFF_GENTLE * x + (CLIFF_GENTLE + CLIFF_STEEP) * CLIFF_EDGE * np.logaddexp(0.0, -x / CLIFF_EDGE)


def _cliff_slope(x: FloatArray) -> FloatArray:
    return CLIFF_GENTLE - (CLIFF_GENTLE + CLIFF_STEEP) * special.expit(-x / CLIFF_EDGE)


def _cliff_bend(x: FloatArray) -> FloatArray:
    near = special.expit(-x / CLIFF_EDGE)
    return (CLIFF_GENTLE + CLIFF_STEEP) / CLIFF_EDGE * near * (1.0 - near)


def _cliff() -> Landscape:
    law = (
        f"A slope of {CLIFF_GENTLE:g} leads down to the foot of a wall with a slope of {CLIFF_STEEP:g} "
        "(the picture of Pascanu, Mikolov, Bengio 2013)."
    )
    derivatives = (_cliff_value, _cliff_slope, _cliff_bend)
    return _one("cliff", "cliff", law, (-1.0, 9.0), 7.5, (_CLIFF_FOOT,), derivatives)


TILT: Final = 0.3
"""Slope that makes one of the two wells the deeper one."""


def _double_well() -> Landscape:
    roots = np.sort(np.roots([4.0, 0.0, -4.0, TILT]).real)
    law = f"f(x) = (x² − 1)² + {TILT:g} x + 0.35: two wells, the left one deeper, a pass between them."
    return _one(
        "double-well",
        "double well",
        law,
        (-2.0, 2.0),
        1.4,
        (float(roots[0]),),
        (
            lambda x: (x * x - 1.0) ** 2 + TILT * x + 0.35,
            lambda x: 4.0 * x * (x * x - 1.0) + TILT,
            lambda x: 12.0 * x * x - 4.0,
        ),
    )


def _bowl() -> Landscape:
    law = "f(x) = x²/2: one curvature everywhere, f″ = 1."
    return _one("bowl", "bowl", law, (-4.0, 4.0), 2.8, (0.0,), (lambda x: 0.5 * x * x, lambda x: 1.0 * x, np.ones_like))


def _quartic() -> Landscape:
    law = "f(x) = x⁴/4: no curvature at the bottom, more and more of it further out."
    derivatives: tuple[Function, Function, Function] = (lambda x: 0.25 * x**4, lambda x: x**3, lambda x: 3.0 * x * x)
    return _one("quartic", "quartic", law, (-4.0, 4.0), 2.8, (0.0,), derivatives)


def _rectifier() -> Landscape:
    law = "f(x) = (max(x, 0) − 1)²/2, the squared error of a ReLU neuron: a bowl where it is on, exactly flat where it is off."
    return _one(
        "rectifier",
        "ReLU neuron",
        law,
        (-3.0, 3.0),
        2.1,
        (1.0,),
        (
            lambda x: 0.5 * (np.maximum(x, 0.0) - 1.0) ** 2,
            lambda x: np.where(x > 0.0, x - 1.0, 0.0),
            lambda x: np.where(x > 0.0, 1.0, 0.0),
        ),
    )


CHAIN_GOAL: Final = -2.0
"""First weight at which a chain of sigmoid neurons meets its target."""


def sigmoid_chain(depth: int, weight: float, name: str = "chain", label: str = "") -> Landscape:
    """The loss of a chain of sigmoid neurons as its first weight moves.

    a_1 = sigma(x), a_(k+1) = sigma(W (a_k - 1/2)), f(x) = (a_K(x) - a_K(goal))^2 / 2. Every neuron after the first multiplies
    the gradient by W sigma'(.), at most W/4 (Nielsen 2015, ch. 5).

    Args:
        depth: neurons K, at least 1.
        weight: W of every neuron but the first.
        name: of the landscape.
        label: what people call it; by default it says depth and weight.

    Raises:
        GradiometerError: there is no neuron, or the weight is not finite.
    """
    if depth < 1 or not math.isfinite(weight):
        raise GradiometerError(f"There is no chain of {depth} neurons with weight {weight}.", "Give at least one neuron.")

    def run(x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """a_K and its first two derivatives with respect to the first weight."""
        z, dz, ddz = x, np.ones_like(x), np.zeros_like(x)
        for k in range(depth):
            a = special.expit(z)
            one = a * special.expit(-z)  # keeps its digits where a is 1 to the last one
            da, dda = one * dz, one * ((1.0 - 2.0 * a) * dz * dz + ddz)
            if k + 1 == depth:
                return a, da, dda
            z, dz, ddz = weight * (a - 0.5), weight * da, weight * dda
        raise AssertionError

    goal = float(run(np.array(CHAIN_GOAL))[0])

    def f(x: FloatArray) -> FloatArray:
        return 0.5 * (run(x)[0] - goal) ** 2

    def slope(x: FloatArray) -> FloatArray:
        a, da, _ = run(x)
        return (a - goal) * da

    def bend(x: FloatArray) -> FloatArray:
        a, da, dda = run(x)
        return da * da + (a - goal) * dda

    law = (
        f"The squared error of {depth} sigmoid neurons in a row as the weight of the first one moves; each of the others "
        f"(weight {weight:g}) multiplies the gradient by at most {weight:g}/4 = {abs(weight) / 4:g}."
    )
    called = label or f"chain of {depth} sigmoid neurons, weight {weight:g}"
    return _one(name, called, law, (-6.0, 6.0), 4.2, (CHAIN_GOAL,), (f, slope, bend))


def _network_line() -> Landscape:
    law = (
        "The loss of a real network (64-16-10, tanh) on 100 handwritten digits along a straight line in its space of weights: "
        "x = 0 is where it was trained to, x = 1 where it was initialised."
    )
    return Landscape(
        "network",
        1,
        "a real network",
        law,
        ((-1.0, 1.1),),
        (0.785,),
        (),
        lambda p: network_plane.line(p[..., 0], 0),
        lambda p: network_plane.line(p[..., 0], 1)[..., None],
        lambda p: network_plane.line(p[..., 0], 2)[..., None, None],
    )


# ---- two weights -------------------------------------------------------------------------------------------------------


def _hessian(xx: FloatArray, xy: FloatArray, yy: FloatArray) -> FloatArray:
    xx, xy, yy = np.broadcast_arrays(xx, xy, yy)
    return np.stack([np.stack([xx, xy], axis=-1), np.stack([xy, yy], axis=-1)], axis=-2)


def _plateau_2d() -> Landscape:
    def f(p: FloatArray) -> FloatArray:
        return -np.expm1(-0.5 * (p * p).sum(axis=-1))

    def slope(p: FloatArray) -> FloatArray:
        return p * np.exp(-0.5 * (p * p).sum(axis=-1, keepdims=True))

    def bend(p: FloatArray) -> FloatArray:
        x, y = p[..., 0], p[..., 1]
        near = np.exp(-0.5 * (p * p).sum(axis=-1))
        return _hessian(near * (1.0 - x * x), -near * x * y, near * (1.0 - y * y))

    law = "f = 1 − exp(−r²/2): a hollow in a plain; at distance r the slope is r exp(−r²/2)."
    return Landscape("plateau", 2, "plateau", law, ((-4.0, 4.0),) * 2, (3.1, 2.4), ((0.0, 0.0),), f, slope, bend)


_VALLEY: Final = 0.1
"""Curvature along the foot of the cliff."""


def _cliff_2d() -> Landscape:
    def f(p: FloatArray) -> FloatArray:
        return _cliff_value(p[..., 0]) + 0.5 * _VALLEY * p[..., 1] ** 2

    def slope(p: FloatArray) -> FloatArray:
        return np.stack([_cliff_slope(p[..., 0]), _VALLEY * p[..., 1]], axis=-1)

    def bend(p: FloatArray) -> FloatArray:
        x = p[..., 0]
        return _hessian(_cliff_bend(x), np.zeros_like(x), np.full_like(x, _VALLEY))

    law = (
        f"A slope of {CLIFF_GENTLE:g} leads down to the foot of a wall with a slope of {CLIFF_STEEP:g}; along it lies a valley."
    )
    domain = ((-0.5, 9.5), (-4.0, 4.0))
    return Landscape("cliff", 2, "cliff", law, domain, (7.5, 3.0), ((_CLIFF_FOOT, 0.0),), f, slope, bend)


RAVINE: Final = (0.05, 5.0)
"""Curvature along the ravine and across it: condition number 100."""


def _ravine() -> Landscape:
    cosine, sine = math.cos(math.pi / 6), math.sin(math.pi / 6)
    turn = np.array([[cosine, -sine], [sine, cosine]], dtype=np.float64)
    matrix = turn @ np.diag(RAVINE) @ turn.T

    def f(p: FloatArray) -> FloatArray:
        return 0.5 * np.einsum("...i,ij,...j->...", p, matrix, p)

    def slope(p: FloatArray) -> FloatArray:
        return p @ matrix

    def bend(p: FloatArray) -> FloatArray:
        return np.broadcast_to(matrix, (*p.shape[:-1], 2, 2))

    law = f"A quadratic with curvature {RAVINE[0]:g} along the ravine and {RAVINE[1]:g} across it."
    return Landscape("ravine", 2, "ravine", law, ((-5.0, 5.0),) * 2, (-4.0, -1.2), ((0.0, 0.0),), f, slope, bend)


_PEAKS: Final = (
    # height, centre x, centre y, width
    (3.0, 1.6, 2.6, 0.9),
    (2.6, 3.4, -0.2, 0.8),
    (3.4, -0.6, -0.4, 0.8),
    (2.2, 0.9, -2.8, 0.9),
    (2.8, -3.4, 1.0, 1.0),
    (-1.6, -2.6, -2.8, 1.2),
    (-1.0, 1.7, 0.6, 0.7),
    (1.6, -1.2, 3.8, 0.8),
)
_BASIN: Final = 0.06
_SEA: Final = 1.3
"""Added, so that the lowest place lies above zero."""


def _range() -> Landscape:
    height, east, north, width = (np.array(column, dtype=np.float64) for column in zip(*_PEAKS, strict=True))

    def parts(p: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        dx, dy = p[..., 0, None] - east, p[..., 1, None] - north
        return height * np.exp(-0.5 * (dx * dx + dy * dy) / width**2), dx / width**2, dy / width**2

    def f(p: FloatArray) -> FloatArray:
        return parts(p)[0].sum(axis=-1) + 0.5 * _BASIN * (p * p).sum(axis=-1) + _SEA

    def slope(p: FloatArray) -> FloatArray:
        bump, dx, dy = parts(p)
        return _BASIN * p - np.stack([(bump * dx).sum(axis=-1), (bump * dy).sum(axis=-1)], axis=-1)

    def bend(p: FloatArray) -> FloatArray:
        bump, dx, dy = parts(p)
        xx = (bump * (dx * dx - 1.0 / width**2)).sum(axis=-1) + _BASIN
        yy = (bump * (dy * dy - 1.0 / width**2)).sum(axis=-1) + _BASIN
        return _hessian(xx, (bump * dx * dy).sum(axis=-1), yy)

    law = "Six peaks and two hollows in a shallow basin: many valleys, one lowest place."
    return Landscape("range", 2, "mountain range", law, ((-5.0, 5.0),) * 2, (0.9, -2.7), (), f, slope, bend)


_INPUTS: Final = np.array([0.25, 0.5, 0.75, 1.0])
_Curve = Callable[[FloatArray], tuple[FloatArray, FloatArray, FloatArray]]


def _sigmoid(z: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    a = special.expit(z)
    one = a * special.expit(-z)
    return a, one, one * (1.0 - 2.0 * a)


def _relu(z: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    return np.maximum(z, 0.0), np.where(z > 0.0, 1.0, 0.0), np.zeros_like(z)


def _terrain(name: str, label: str, what: str, phi: _Curve, minima: tuple[tuple[float, float], ...]) -> Landscape:
    """Half the mean squared error of y = phi(w2 phi(w1 u)) against the same net with weights 1 and 1, on four inputs."""
    target = phi(phi(_INPUTS)[0])[0]

    def parts(p: FloatArray) -> tuple[FloatArray, tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray, FloatArray]]:
        first, second = p[..., 0, None], p[..., 1, None]
        h, dh, ddh = phi(first * _INPUTS)
        y, dy, ddy = phi(second * h)
        inner = second * dh * _INPUTS
        one = (dy * inner, dy * h)
        two = (
            ddy * inner**2 + dy * second * ddh * _INPUTS**2,
            ddy * h * inner + dy * dh * _INPUTS,
            ddy * h**2,
        )
        return y - target, one, two

    def f(p: FloatArray) -> FloatArray:
        return 0.5 * (parts(p)[0] ** 2).mean(axis=-1)

    def slope(p: FloatArray) -> FloatArray:
        error, one, _ = parts(p)
        return np.stack([(error * part).mean(axis=-1) for part in one], axis=-1)

    def bend(p: FloatArray) -> FloatArray:
        error, (a, b), (aa, ab, bb) = parts(p)
        return _hessian(*((v * w + error * u).mean(axis=-1) for v, w, u in ((a, a, aa), (a, b, ab), (b, b, bb))))

    law = f"The squared error of two {what} neurons in a row, y = φ(w₂ φ(w₁ u)), against the same two with weights 1 and 1."
    return Landscape(name, 2, label, law, ((-2.0, 6.0),) * 2, (5.0, 4.6), minima, f, slope, bend)


def _network_plane() -> Landscape:
    law = (
        "The loss of a real network (64-16-10, tanh) on 100 handwritten digits in a plane of its space of weights: (0, 0) is "
        "where it was trained to, (1, 0) where it was initialised, the other direction is random (as Li et al. 2018 draw them)."
    )
    return Landscape(
        "network",
        2,
        "a real network",
        law,
        ((-1.0, 1.4), (-1.2, 1.2)),
        (1.0, 0.9),
        (),
        lambda p: network_plane.plane(p, 0, 0),
        lambda p: np.stack([network_plane.plane(p, 1, 0), network_plane.plane(p, 0, 1)], axis=-1),
        lambda p: _hessian(network_plane.plane(p, 2, 0), network_plane.plane(p, 1, 1), network_plane.plane(p, 0, 2)),
    )


# ---- all of them -------------------------------------------------------------------------------------------------------

LANDSCAPES: Final[tuple[Landscape, ...]] = (
    _plateau(),
    _cliff(),
    _double_well(),
    _bowl(),
    _quartic(),
    _rectifier(),
    sigmoid_chain(6, 2.0, "chain", "six sigmoid neurons, weight 2"),
    sigmoid_chain(6, 8.0, "steep-chain", "six sigmoid neurons, weight 8"),
    _network_line(),
    _range(),
    _plateau_2d(),
    _cliff_2d(),
    _ravine(),
    _terrain("sigmoid", "sigmoid terrain", "sigmoid", _sigmoid, ((1.0, 1.0),)),
    _terrain("relu", "ReLU terrain", "ReLU", _relu, ()),
    _network_plane(),
)
"""Every landscape, first those of one weight."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A landscape of one weight on evenly spaced places of its domain. Arrays are not to be written to.

    Attributes:
        x: shape (n,).
        height: f there, shape (n,).
        slope: f' there, shape (n,).
        curvature: f'' there, shape (n,).
    """

    x: FloatArray
    height: FloatArray
    slope: FloatArray
    curvature: FloatArray


@lru_cache(maxsize=32)
def curve(land: Landscape, count: int = 401) -> Curve:
    """A landscape of one weight, ready to draw.

    Raises:
        GradiometerError: it has more weights.
    """
    if land.dimensions != 1:
        raise GradiometerError(f"The landscape {land.name!r} has {land.dimensions} weights.", "A curve has one.")
    x = np.linspace(*land.domain[0], count)
    at = x[:, None]
    return Curve(x, land.value(at), land.gradient(at)[:, 0], land.curvature(at))


def of_dimensions(dimensions: int) -> tuple[Landscape, ...]:
    """Landscapes of one or of two weights, in order."""
    return tuple(land for land in LANDSCAPES if land.dimensions == dimensions)


def landscape(name: str, dimensions: int = 1) -> Landscape:
    """A landscape by its name and number of weights.

    Raises:
        GradiometerError: there is none; the message lists them.
    """
    for land in of_dimensions(dimensions):
        if land.name == name:
            return land
    names = ", ".join(land.name for land in of_dimensions(dimensions))
    raise GradiometerError(f"There is no landscape {name!r} of {dimensions} weights.", f"There are: {names}.")
