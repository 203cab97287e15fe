"""Mean-field signal propagation through a layer h = W phi(x) + b that is repeated, in the limit of infinite width.

W has independent entries of variance sigma_w^2 / fan_in and b of variance sigma_b^2 (Poole et al. 2016; Schoenholz et al.
2017). q is the variance of a pre-activation, c the correlation of the pre-activations of two inputs. chi is the factor of
*squared* gradients; `MeanField.gain` is the factor of their norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, cast

import numpy as np
from scipy import optimize

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import Activation, Elementwise, FloatArray, activation
from gradiometer.theory.quadrature import expectation, nodes, pair_expectation

LEAST_Q: Final = 1e-32
"""Stands for the limit q -> 0, where moments have one."""

MOST_Q: Final = 1e16
"""Stands for the limit q -> infinity."""

SMALLEST_Q: Final = 1e-8
LARGEST_Q: Final = 1e8
"""Fixed points are looked for between these; further out if the weights or biases are that large or small."""

START_Q: Final = 1.0
"""Variance from which a network is followed if none is given: that of standardised inputs."""

TRAINABLE_SCALES: Final = 6.0
"""A network trains as far as about six depth scales of the correlation (Schoenholz et al. 2017)."""

VANISHED: Final = 1e-12
"""Factor of the squared gradient at which it counts as gone: a millionth of the norm."""

MOST_LAYERS: Final = 10_000
"""What has not happened to a gradient that is followed layer by layer after so many of them never does."""

TOUCH: Final = 1e-11
"""A length map that comes this close to q (relatively) has a fixed point there: rounding can tell no better."""

_PER_DECADE: Final = 10  # points of the grid on which fixed points are looked for
_NOISE: Final = 1e-13  # relative rounding error of a length
_NEUTRAL: Final = 1e-9  # lengths that change by less in a layer stay
_MARGINAL: Final = 1e-6  # slopes this close to 1 do not say whether a fixed point attracts
_NEAR: Final = 0.05  # relative distance of the map from q at which more fixed points may hide between those of the grid
_FINE: Final = 200  # points of the finer grid there: 199 steps, a prime, never meet those of the other grid
_FIRST_LAYERS: Final = 32  # followed one by one before the sign of q' - q decides
_STILL: Final = 1e-11  # relative change that tells which way the variance goes
_SIDES: Final = (1e-3, 1e-2, 1e-1, 1.0)  # relative distances at which a marginal fixed point is tried
_ABOVE_ZERO: Final = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1)  # variances at which a marginal fixed point at zero is tried
_CLOSEST: Final = 1e-8  # correlations closer to 1 are 1


# ---- moments of an activation ----------------------------------------------------------------------------------------


def straight_lines(act: Activation) -> tuple[float, float] | None:
    """Slopes above and below zero of an activation that consists of two straight lines; None for any other."""
    if act.source is not None:
        return None
    match act.name:
        case "linear":
            return 1.0, 1.0
        case "relu":
            return 1.0, 0.0
        case "leaky_relu":
            return 1.0, act.parameter("negative_slope")
        case _:
            return None


def _is_erf(act: Activation) -> bool:
    return act.name == "erf" and act.source is None


def _variance(q: float) -> float:
    """The variance, cut to what stands for infinity."""
    if not q >= 0.0:
        raise GradiometerError(f"A variance must be a number of at least 0, not {q}.")
    return min(q, MOST_Q)


def _correlation(c: float) -> float:
    if not abs(c) <= 1.0 + 1e-9:
        raise GradiometerError(f"A correlation lies between -1 and 1, not at {c}.")
    return min(1.0, max(-1.0, c))


def second_moment(act: Activation, q: float) -> float:
    """E phi(sqrt(q) z)^2 over z ~ N(0, 1); in closed form for straight lines and erf (Williams 1997)."""
    q = _variance(q)
    if (lines := straight_lines(act)) is not None:
        return 0.5 * (lines[0] ** 2 + lines[1] ** 2) * q
    if _is_erf(act):
        return 2.0 / math.pi * math.asin(2.0 * q / (1.0 + 2.0 * q))
    return expectation(lambda u: act.f(u) ** 2, q, act.kinks)


def slope_moment(act: Activation, q: float) -> float:
    """E phi'(sqrt(q) z)^2; at q = 0 the limit, which sees both sides of a kink at zero."""
    q = _variance(q)
    if (lines := straight_lines(act)) is not None:
        return 0.5 * (lines[0] ** 2 + lines[1] ** 2)
    if _is_erf(act):
        return 4.0 / math.pi / math.sqrt(1.0 + 4.0 * q)
    return expectation(lambda u: act.slope(u) ** 2, max(q, LEAST_Q), act.kinks)


def pair_moment(act: Activation, q: float, c: float) -> float:
    """E phi(u1) phi(u2) for two Gaussians of variance q and correlation c (straight lines: Cho & Saul 2009)."""
    q, c = _variance(q), _correlation(c)
    if (lines := straight_lines(act)) is not None:
        up, down = lines  # phi = (up - down) relu + down x
        rectified = (math.sqrt(1.0 - c * c) + c * (math.pi - math.acos(c))) / (2.0 * math.pi)
        return q * ((up - down) ** 2 * rectified + (up - down) * down * c + down**2 * c)
    if _is_erf(act):
        return 2.0 / math.pi * math.asin(2.0 * q * c / (1.0 + 2.0 * q))
    return pair_expectation(act.f, act.f, q, q, c, act.kinks)


def pair_slope_moment(act: Activation, q: float, c: float) -> float:
    """E phi'(u1) phi'(u2)."""
    q, c = _variance(q), _correlation(c)
    if (lines := straight_lines(act)) is not None:
        up, down = lines
        return (up - down) ** 2 * 0.5 * (1.0 - math.acos(c) / math.pi) + (up - down) * down + down**2
    if _is_erf(act):
        return 4.0 / math.pi / math.sqrt((1.0 + 2.0 * q) ** 2 - (2.0 * q * c) ** 2)
    q = max(q, LEAST_Q)
    return pair_expectation(act.slope, act.slope, q, q, c, act.kinks)


def length_slope_moment(act: Activation, q: float) -> float:
    """Derivative of E phi(sqrt(q) z)^2 by q, E phi phi' z / sqrt(q): the form that holds with kinks too."""
    q = max(_variance(q), LEAST_Q)
    if straight_lines(act) is not None:
        return slope_moment(act, q)
    if _is_erf(act):
        return 4.0 / math.pi / ((1.0 + 2.0 * q) * math.sqrt(1.0 + 4.0 * q))
    z, w = nodes(q, act.kinks)
    u = math.sqrt(q) * z
    return float(w @ (act.f(u) * act.slope(u) * z)) / math.sqrt(q)


# ---- the theory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """A variance that the length map leaves as it is.

    Attributes:
        q: the variance.
        chi_parallel: slope of the length map there.
        chi: factor of the squared gradient per layer there.
        stable: whether variances on both sides flow to it, or at least stay.
    """

    q: float
    chi_parallel: float
    chi: float
    stable: bool


@dataclass(frozen=True)
class MeanField:
    """A layer, repeated without end, and its maps.

    Attributes:
        activation: a name, a function of an array, or an `Activation`.
        sigma_w: standard deviation of a weight times the square root of fan_in, above 0.
        sigma_b: standard deviation of a bias, at least 0.
        keep: probability with which dropout keeps a unit, in (0, 1]; what it keeps is divided by it.
        branch: None for a plain layer F; the scale s for a residual layer x + s F(x).

    Raises:
        GradiometerError: a parameter is out of its range, or the activation is not known.
    """

    activation: str | Elementwise | Activation
    sigma_w: float
    sigma_b: float = 0.0
    keep: float = 1.0
    branch: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma_w) and self.sigma_w > 0.0):
            raise GradiometerError(f"sigma_w must be a positive number, not {self.sigma_w}.")
        if not (math.isfinite(self.sigma_b) and self.sigma_b >= 0.0):
            raise GradiometerError(f"sigma_b must be a number of at least 0, not {self.sigma_b}.")
        if not 0.0 < self.keep <= 1.0:
            raise GradiometerError(f"keep must lie in (0, 1], not at {self.keep}.", "It is the share of units that stay.")
        if self.branch is not None and not math.isfinite(self.branch):
            raise GradiometerError(f"branch must be a finite number or None, not {self.branch}.")
        self.act  # noqa: B018 - an activation that is none fails here

    @cached_property
    def act(self) -> Activation:
        """The activation itself."""
        return activation(self.activation)

    # ---- maps --------------------------------------------------------------------------------------------------------

    def length(self, q: float) -> float:
        """Length map q -> q' (Poole et al. 2016, eq. 3; dropout divides the activation's part by ``keep``)."""
        made = self.sigma_w**2 / self.keep * second_moment(self.act, q) + self.sigma_b**2
        return made if self.branch is None else q + self.branch**2 * made

    def chi(self, q: float) -> float:
        """Factor of the squared gradient per layer, chi_1 = sigma_w^2 E phi'^2 (Schoenholz et al. 2017).

        Args:
            q: variance of the pre-activation; infinity for the limit.
        """
        made = self.sigma_w**2 / self.keep * slope_moment(self.act, q)
        return made if self.branch is None else 1.0 + self.branch**2 * made

    def chi_parallel(self, q: float) -> float:
        """Slope dq'/dq of the length map, by sigma_w^2 E phi phi' z / sqrt(q)."""
        made = self.sigma_w**2 / self.keep * length_slope_moment(self.act, q)
        return made if self.branch is None else 1.0 + self.branch**2 * made

    def correlation(self, c: float, q: float | None = None) -> float:
        """Correlation map c -> c' of two inputs of the same variance (Poole et al. 2016, eq. 5).

        Two dropout masks have nothing in common: with dropout even c = 1 does not stay.

        Args:
            c: correlation, -1 to 1.
            q: variance of both before the layer; `q_star` by default.
        """
        q, c = self._at(q), _correlation(c)
        off = self.sigma_w**2 * pair_moment(self.act, q, c) + self.sigma_b**2
        if self.branch is not None:
            off = c * q + self.branch**2 * off
        return off / self.length(q)

    def correlation_slope(self, c: float, q: float | None = None) -> float:
        """Slope of the correlation map; at a fixed point of the length map sigma_w^2 E phi'(u1) phi'(u2).

        Where q is zero there is no correlation to speak of: it is the slope of the covariance.

        Args:
            c: correlation, -1 to 1.
            q: variance of both before the layer; `q_star` by default.
        """
        zero = (self.q_star if q is None else q) == 0.0
        q, c = self._at(q), _correlation(c)
        slope = self.sigma_w**2 * pair_slope_moment(self.act, q, c)
        if self.branch is not None:
            slope = 1.0 + self.branch**2 * slope
        return slope if zero else slope * q / self.length(q)

    def _at(self, q: float | None) -> float:
        """A variance at which correlations have a meaning."""
        return max(_variance(self.q_star if q is None else q), LEAST_Q)

    # ---- lengths deep in the network ---------------------------------------------------------------------------------

    @cached_property
    def fixed_points(self) -> tuple[FixedPoint, ...]:
        """Fixed points of the length map, smallest first, by root finding.

        Iterating the map finds neither a repelling one nor, in any sensible time, a marginal one. Zero is listed, with the
        slopes of that limit, where the map leaves it alone. A map that leaves every variance alone (ReLU at its critical
        scale) has no single fixed points: none is listed.
        """
        found = [0.0] if self.length(0.0) < LEAST_Q else []
        low, high = SMALLEST_Q, LARGEST_Q * max(1.0, self.sigma_w**2, self.sigma_b**2)
        if self.sigma_b > 0.0:
            low = min(low, max(0.5 * self.sigma_b**2, LEAST_Q))
        t = np.linspace(math.log(low), math.log(high), math.ceil(_PER_DECADE * math.log10(high / low)) + 1)
        rest = np.array([self._rest(x) for x in t])
        if (np.abs(rest) < _NEUTRAL).all():
            return ()
        t, rest = t[np.abs(rest) > _NOISE], rest[np.abs(rest) > _NOISE]
        fine = _worth_a_closer_look(t, rest)
        if fine.size:
            t, rest = np.concatenate([t, fine]), np.concatenate([rest, [self._rest(x) for x in fine]])
            order = np.argsort(t)
            t, rest = t[order], rest[order]
            t, rest = t[np.abs(rest) > _NOISE], rest[np.abs(rest) > _NOISE]
        for i in np.flatnonzero(rest[:-1] * rest[1:] < 0.0):
            found.append(math.exp(root_between(self._rest, float(t[i]), float(t[i + 1]))))
        for i in range(1, rest.size - 1):
            found += self._touching(t[i - 1 : i + 2].tolist(), rest[i - 1 : i + 2].tolist())
        return tuple(FixedPoint(q, self.chi_parallel(q), self.chi(q), self.attracts(q)) for q in sorted(found))

    def _rest(self, t: float) -> float:
        """Relative change of the variance e^t in a layer."""
        return self.length(math.exp(t)) / math.exp(t) - 1.0

    def _touching(self, t: list[float], rest: list[float]) -> list[float]:
        """Fixed points between three neighbours of one sign, the middle one closest to zero: two, one that touches, none."""
        sign = math.copysign(1.0, rest[1])
        before, middle, after = (sign * r for r in rest)
        if not (0.0 < middle < _NEAR and before > middle <= after):
            return []
        x = _lowest(lambda x: sign * self._rest(x), t[0], t[2])
        least = sign * self._rest(x)
        if least < -TOUCH:
            return [math.exp(root_between(self._rest, t[0], x)), math.exp(root_between(self._rest, x, t[2]))]
        return [math.exp(x)] if least < TOUCH else []

    def attracts(self, q: float) -> bool:
        """Whether variances around a fixed point ``q`` flow to it, or at least stay where they are.

        The slope of the length map decides; where it is 1, the map itself on both sides does. A half-stable point, which
        attracts from one side only, does not attract.
        """
        slope = self.chi_parallel(q)
        if abs(slope - 1.0) > _MARGINAL:
            return abs(slope) < 1.0
        return (
            self._drift(_ABOVE_ZERO if q == 0.0 else [q * (1.0 + d) for d in _SIDES])
            <= 0.0
            <= self._drift([] if q == 0.0 else [q / (1.0 + d) for d in _SIDES])
        )

    def _drift(self, places: tuple[float, ...] | list[float]) -> float:
        """Relative change of the variance at the first place where it clearly changes; 0 if it does at none."""
        changes = (self.length(q) / q - 1.0 for q in places)
        return next((change for change in changes if abs(change) > _STILL), 0.0)

    def length_limit(self, q0: float) -> float:
        """Where the variance goes from ``q0``: to a fixed point, to 0, or to infinity."""
        q = _variance(q0)
        new = self.length(q)
        if abs(new - q) <= _NOISE * 10.0 * q:
            return q0
        points = [p.q for p in self.fixed_points]
        for _ in range(_FIRST_LAYERS):  # a map that is not monotone may leave for another fixed point at first
            if not SMALLEST_Q <= new <= LARGEST_Q or abs(new - q) <= _NEUTRAL * q:
                break
            q, new = new, self.length(new)
        if new > q:
            return min((p for p in points if p >= q * (1.0 - _NEUTRAL)), default=math.inf)
        return max((p for p in points if p <= q * (1.0 + _NEUTRAL)), default=0.0)

    @cached_property
    def q_star(self) -> float:
        """The variance deep in a network whose inputs are standardised: where it goes from 1.

        Raises:
            GradiometerError: to infinity.
        """
        limit = self.length_limit(START_Q)
        if limit == math.inf:
            raise GradiometerError(
                f"The variance has no fixed point for {self.act.name}, sigma_w = {self.sigma_w:g}, sigma_b = {self.sigma_b:g}.",
                "It grows without bound: give a q, or smaller weights.",
            )
        return limit

    @cached_property
    def c_star(self) -> float:
        """`correlation_limit` at `q_star`."""
        return self.correlation_limit()

    def correlation_limit(self, q: float | None = None) -> float:
        """The correlation deep in the network: the attracting fixed point of the correlation map.

        1 in the ordered phase; below 1 in the chaotic one, and with dropout. There is one only: for c >= 0 the map is convex,
        a power series with positive coefficients.

        Args:
            q: variance; `q_star` by default.
        """
        if self.keep == 1.0 and self.correlation_slope(1.0, q) <= 1.0 + 1e-12:
            return 1.0

        def rest(c: float) -> float:
            return self.correlation(c, q) - c

        if rest(0.0) < _NOISE * 10.0:
            return 0.0
        upper = 1.0 - _CLOSEST
        return root_between(rest, 0.0, upper) if rest(upper) < 0.0 else 1.0

    # ---- scales ------------------------------------------------------------------------------------------------------

    @property
    def xi_length(self) -> float:
        """Depth scale, in layers, over which the variance settles: -1 / ln |chi_parallel| (Schoenholz et al. 2017)."""
        return _scale(abs(self.chi_parallel(self.q_star)))

    @cached_property
    def xi_correlation(self) -> float:
        """Depth scale over which correlations settle: -1 / ln of the correlation map's slope at `c_star`."""
        return _scale(self.correlation_slope(self.c_star))

    @property
    def xi_gradient(self) -> float:
        """Depth scale of the *squared* gradient, -1 / ln chi_1: layers per factor e; negative where it explodes."""
        return _scale(self.chi(self.q_star))

    @property
    def gain(self) -> float:
        """Factor of the gradient's norm per layer deep in the network, sqrt(chi_1)."""
        return math.sqrt(self.chi(self.q_star))

    def layers_until(self, factor: float, q0: float | None = None) -> float:
        """Layers until the norm of the gradient has changed by ``factor``; infinity if it never does.

        Args:
            factor: below 1 for a gradient that shrinks, above 1 for one that grows.
            q0: variance at the first layer; the product of chi along the way then decides, and the answer is whole. By
                default the network is taken at `q_star` throughout: ln factor / (0.5 ln chi_1).

        Raises:
            GradiometerError: the factor is not positive, or is 1.
        """
        if not (factor > 0.0 and math.isfinite(factor)) or factor == 1.0:
            raise GradiometerError(f"factor must be a positive number other than 1, not {factor}.")
        wanted = 2.0 * math.log(factor)
        if q0 is None:
            return _steps(wanted, _log(self.chi(self.q_star)))
        total, q = 0.0, _variance(q0)
        for layer in range(1, MOST_LAYERS + 1):
            each = _log(self.chi(q))
            total += each
            if total / wanted >= 1.0:
                return float(layer)
            new = self.length(q)
            if abs(new - q) <= _NOISE * 10.0 * q or not LEAST_Q < new < MOST_Q:  # settled: the rest is a straight line
                rest = _steps(wanted - total, _log(self.chi(new)))
                return layer + float(np.ceil(rest - _NEUTRAL))
            q = new
        return math.inf

    def trainable_depth(self, q0: float | None = None) -> float:
        """Layers that such a network can have and still train (Schoenholz et al. 2017).

        Six depth scales of the correlation, or the layers until the gradient is gone (`VANISHED`), whichever are fewer.

        Args:
            q0: variance at the first layer; `q_star` throughout by default.
        """
        return min(TRAINABLE_SCALES * self.xi_correlation, self.layers_until(math.sqrt(VANISHED), q0))


def _worth_a_closer_look(t: FloatArray, rest: FloatArray) -> FloatArray:
    """More points around those where the map comes close to q and goes along with it: where fixed points come in groups."""
    size = np.abs(rest)
    crossing = np.flatnonzero(rest[:-1] * rest[1:] < 0.0)
    closest = 1 + np.flatnonzero((size[1:-1] < size[:-2]) & (size[1:-1] <= size[2:]))
    more: list[FloatArray] = []
    for i in sorted({*crossing.tolist(), *closest.tolist()}):
        left, right = max(i - 2, 0), min(i + 3, t.size - 1)
        if size[left : right + 1].max() < _NEAR and not (more and more[-1][-1] >= t[right]):
            more.append(np.linspace(t[left], t[right], _FINE)[1:-1])
    return np.unique(np.concatenate(more)) if more else np.empty(0)


def root_between(f: Callable[[float], float], low: float, high: float) -> float:
    """The root of a continuous function that changes its sign between two points (Brent's method)."""
    return cast(float, optimize.brentq(f, low, high, xtol=1e-14))


def _lowest(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is lowest between two points (Brent's method)."""
    return cast(float, optimize.fminbound(f, low, high, xtol=1e-9))


def _log(factor: float) -> float:
    return math.log(factor) if factor > 0.0 else -math.inf


def _steps(wanted: float, each: float) -> float:
    """How many steps of ``each`` make ``wanted``; infinity if none do."""
    return wanted / each if abs(each) > _NOISE * 10.0 and each * wanted > 0.0 else math.inf


def _scale(slope: float) -> float:
    """Layers in which something that is multiplied by ``slope`` per layer changes by a factor of e."""
    log = _log(slope)
    return math.inf if abs(log) < _NOISE * 10.0 else -1.0 / log
