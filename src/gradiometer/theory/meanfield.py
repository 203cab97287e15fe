"""Mean-field signal propagation through a layer h = W phi(x) + b that is repeated, in the limit of infinite width.

W has independent entries of variance sigma_w^2 / fan_in and b of variance sigma_b^2 (Poole et al. 2016; Schoenholz et al.
2017). q is the variance of a pre-activation, c the correlation of the pre-activations of two inputs. Everything about
gradients is for *squared* norms; `MeanField.gain` is the factor for the norm itself.
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
from gradiometer.theory.activations import Activation, Elementwise, activation
from gradiometer.theory.quadrature import expectation, nodes, pair_expectation

SMALLEST_Q: Final = 1e-8
LARGEST_Q: Final = 1e8
"""Range in which fixed points of the length map are looked for."""
LEAST_Q: Final = 1e-16
"""Stands for the limit q -> 0 where a moment has one."""
_SCAN: Final = 161
TRAINABLE_SCALES: Final = 6.0
"""A network trains as far as about six depth scales of the correlation (Schoenholz et al. 2017, section 4)."""
VANISHED: Final = 1e-12
"""Factor of the squared gradient at which it is called gone: a millionth of the norm."""
_MOST_LAYERS: Final = 100_000
_FLAT: Final = 1e-9


def second_moment(act: Activation, q: float) -> float:
    """E phi(sqrt(q) z)^2; in closed form where there is one (erf: Williams 1997)."""
    closed = straight_lines(act)
    if closed is not None:
        up, down = closed
        return 0.5 * (up**2 + down**2) * q
    if act.name == "erf":
        return 2.0 / math.pi * math.asin(2.0 * q / (1.0 + 2.0 * q))
    return expectation(lambda u: act.f(u) ** 2, q, act.kinks)


def slope_moment(act: Activation, q: float) -> float:
    """E phi'(sqrt(q) z)^2; in closed form where there is one."""
    closed = straight_lines(act)
    if closed is not None:
        up, down = closed
        return 0.5 * (up**2 + down**2)
    if act.name == "erf":
        return 4.0 / math.pi / math.sqrt(1.0 + 4.0 * q)
    # at a kink at zero the limit of small q sees both sides
    return expectation(lambda u: act.slope(u) ** 2, max(q, LEAST_Q), act.kinks)


def pair_moment(act: Activation, q: float, c: float) -> float:
    """E phi(u1) phi(u2) for two Gaussians of variance q and correlation c (arc-cosine kernel: Cho & Saul 2009)."""
    closed = straight_lines(act)
    if closed is not None:
        up, down = closed
        # phi = (up - down) relu + down x
        rectified = (math.sqrt(max(1.0 - c * c, 0.0)) + c * (math.pi - math.acos(c))) / (2.0 * math.pi)
        crossed = c / 2.0
        return q * ((up - down) ** 2 * rectified + 2.0 * (up - down) * down * crossed + down**2 * c)
    if act.name == "erf":
        return 2.0 / math.pi * math.asin(2.0 * q * c / (1.0 + 2.0 * q))
    return pair_expectation(act.f, act.f, q, q, c, act.kinks)


def pair_slope_moment(act: Activation, q: float, c: float) -> float:
    """E phi'(u1) phi'(u2)."""
    closed = straight_lines(act)
    if closed is not None:
        up, down = closed
        both = 0.5 * (1.0 - math.acos(c) / math.pi)
        return (up - down) ** 2 * both + (up - down) * down + down**2
    if act.name == "erf":
        return 4.0 / math.pi / math.sqrt((1.0 + 2.0 * q) ** 2 - (2.0 * q * c) ** 2)
    return pair_expectation(act.slope, act.slope, q, q, c, act.kinks)


def straight_lines(act: Activation) -> tuple[float, float] | None:
    """Slopes above and below zero of an activation that is two straight lines; None for any other."""
    match act.name:
        case "linear":
            return 1.0, 1.0
        case "relu":
            return 1.0, 0.0
        case "leaky_relu":
            return 1.0, act.parameter("negative_slope")
        case _:
            return None


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """A variance that the length map leaves as it is.

    Attributes:
        q: the variance.
        chi_parallel: slope of the length map there; below 1 it attracts.
        chi: factor of the squared gradient per layer there.
    """

    q: float
    chi_parallel: float
    chi: float

    @property
    def stable(self) -> bool:
        """Whether a network flows to it."""
        return self.chi_parallel < 1.0


@dataclass(frozen=True)
class MeanField:
    """A layer and its maps.

    Attributes:
        activation: a name, a function of an array, or an `Activation`.
        sigma_w: standard deviation of a weight times the square root of fan_in, above 0.
        sigma_b: standard deviation of a bias.
        keep: probability with which dropout keeps a unit, in (0, 1]; activations are divided by it.
        branch: None for a plain layer; for a residual layer x + s F(x) its scale s.

    Raises:
        GradiometerError: a parameter is out of its range.
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
            raise GradiometerError(f"branch must be a finite number, not {self.branch}.")

    @cached_property
    def act(self) -> Activation:
        """The activation itself."""
        return activation(self.activation)

    # ---- maps ------------------------------------------------------------------------------------------------------

    def length(self, q: float) -> float:
        """Length map q -> q' (Poole et al. 2016, eq. 3; with dropout Schoenholz et al. 2017, eq. 13)."""
        made = self.sigma_w**2 / self.keep * second_moment(self.act, q) + self.sigma_b**2
        return made if self.branch is None else q + self.branch**2 * made

    def chi(self, q: float) -> float:
        """Factor of the squared gradient per layer, chi_1 = sigma_w^2 E phi'^2 (Schoenholz et al. 2017, eq. 9)."""
        made = self.sigma_w**2 / self.keep * slope_moment(self.act, q)
        return made if self.branch is None else 1.0 + self.branch**2 * made

    def chi_parallel(self, q: float) -> float:
        """Slope dq'/dq of the length map, in the form E phi phi' z / sqrt(q), which holds with kinks too."""
        q = max(q, LEAST_Q)
        z, w = nodes(q, self.act.kinks)
        u = math.sqrt(q) * z
        made = self.sigma_w**2 / self.keep * float(w @ (self.act.f(u) * self.act.slope(u) * z)) / math.sqrt(q)
        return made if self.branch is None else 1.0 + self.branch**2 * made

    def correlation(self, c: float, q: float | None = None) -> float:
        """Correlation map c -> c' of two inputs of the same variance (Poole et al. 2016, eq. 5).

        Args:
            c: correlation, -1 to 1.
            q: variance of both before the layer; the stable fixed point by default.
        """
        q = self.q_star if q is None else q
        off = self.sigma_w**2 * pair_moment(self.act, q, _checked(c)) + self.sigma_b**2  # two masks have nothing in common
        if self.branch is not None:
            off = c * q + self.branch**2 * off
        return off / self.length(q)

    def correlation_slope(self, c: float, q: float | None = None) -> float:
        """Slope of the correlation map: sigma_w^2 E phi'(u1) phi'(u2) q / q' (chi_1 at c = 1 without dropout)."""
        q = self.q_star if q is None else q
        slope = self.sigma_w**2 * pair_slope_moment(self.act, q, _checked(c))
        if self.branch is not None:
            slope = 1.0 + self.branch**2 * slope
        return slope * q / self.length(q)

    # ---- fixed points ----------------------------------------------------------------------------------------------

    @cached_property
    def fixed_points(self) -> tuple[FixedPoint, ...]:
        """Fixed points of the length map between 1e-8 and 1e8, smallest first, by root finding.

        Iterating the map does not find them: it never reaches a marginal one and runs away from a repelling one. Zero is
        one too where ``sigma_b`` is 0 and phi(0) is 0; it is listed with the slopes of that limit. A map that is q itself
        (ReLU at its critical scale) has no single fixed points, and none is listed.
        """
        found: list[float] = []
        if self.sigma_b == 0.0 and float(self.act.f(np.zeros(1))[0]) == 0.0:
            found.append(0.0)
        grid = np.geomspace(1.1 * SMALLEST_Q, 0.9 * LARGEST_Q, _SCAN)  # round numbers are often roots: not on the grid
        rest = np.array([self.length(float(q)) / float(q) - 1.0 for q in grid])
        if (np.abs(rest) < _FLAT).all():
            return ()
        for i in np.flatnonzero(np.sign(rest[:-1]) * np.sign(rest[1:]) < 0):
            if min(abs(rest[i]), abs(rest[i + 1])) < 1e-13:
                continue  # rounding about zero
            low, high = (float(t) for t in np.log(grid[i : i + 2]))
            found.append(math.exp(root_between(lambda t: self.length(math.exp(t)) / math.exp(t) - 1.0, low, high)))
        return tuple(FixedPoint(q, self.chi_parallel(q), self.chi(q)) for q in found)

    @cached_property
    def q_star(self) -> float:
        """The variance deep in the network: its largest attracting fixed point; 1 where every variance is one.

        Raises:
            GradiometerError: the length grows without bound from everywhere.
        """
        if not self.fixed_points and abs(self.length(1.0) - 1.0) < _FLAT:
            return 1.0
        stable = [p.q for p in self.fixed_points if p.chi_parallel < 1.0 + 1e-9]
        if not stable:
            raise GradiometerError(
                f"The variance has no fixed point for {self.act.name}, sigma_w = {self.sigma_w:g}, sigma_b = {self.sigma_b:g}.",
                "It grows without bound: give a q, or smaller weights.",
            )
        return stable[-1]

    def length_limit(self, q0: float) -> float:
        """Where the variance goes from ``q0``: an attracting fixed point, 0, or infinity."""
        points = self.fixed_points
        if not points:
            return q0 if abs(self.length(q0) / q0 - 1.0) < _FLAT else math.inf if self.length(q0) > q0 else 0.0
        grows = self.length(q0) > q0
        if grows:
            above = [p.q for p in points if p.q > q0 * (1.0 + 1e-12)]
            return above[0] if above else math.inf
        below = [p.q for p in points if p.q < q0 * (1.0 - 1e-12)]
        if abs(self.length(q0) / q0 - 1.0) < 1e-12:
            return q0
        return below[-1] if below else 0.0

    @cached_property
    def c_star(self) -> float:
        """The correlation deep in the network: the attracting fixed point of the correlation map at `q_star`.

        1 in the ordered phase (chi_1 <= 1, no dropout); below 1 in the chaotic one, and with dropout.
        """
        if self.q_star == 0.0:
            return self._c_star_at_zero()

        def rest(c: float) -> float:
            return self.correlation(c) - c

        if self.keep == 1.0 and self.correlation_slope(1.0) <= 1.0 + 1e-12:
            return 1.0
        if abs(rest(0.0)) < 1e-12:
            return 0.0
        upper = 1.0 if self.keep < 1.0 else 1.0 - 1e-6
        if rest(upper) > 0.0:  # closer to one than that
            return 1.0
        lower = 0.0 if rest(0.0) > 0.0 else -1.0
        return root_between(rest, lower, upper) if rest(lower) > 0.0 else lower

    def _c_star_at_zero(self) -> float:
        return 1.0 if self.keep == 1.0 else 0.0

    # ---- scales ----------------------------------------------------------------------------------------------------

    @property
    def xi_length(self) -> float:
        """Depth scale, in layers, over which the variance settles: -1 / ln chi_parallel (infinite at 1)."""
        return _scale(self.chi_parallel(self.q_star))

    @property
    def xi_correlation(self) -> float:
        """Depth scale over which two inputs are told apart: -1 / ln of the correlation map's slope at `c_star`."""
        return _scale(self.correlation_slope(self.c_star))

    @property
    def xi_gradient(self) -> float:
        """Depth scale of the *squared* gradient, -1 / ln chi_1: layers for a factor 1/e; negative when it explodes."""
        return _scale(self.chi(self.q_star))

    @property
    def gain(self) -> float:
        """Factor of the gradient's norm per layer deep in the network, sqrt(chi_1)."""
        return math.sqrt(self.chi(self.q_star))

    def layers_until(self, factor: float, q0: float | None = None) -> float:
        """Layers until the gradient's norm has changed by ``factor``; infinity if it never does.

        Args:
            factor: below 1 for shrinking, above 1 for growing.
            q0: variance at the first layer: chi is then taken along the way. By default at the fixed point, where the
                answer need not be whole: ln factor / (0.5 ln chi_1).
        """
        if not factor > 0.0 or factor == 1.0:
            raise GradiometerError(f"factor must be positive and other than 1, not {factor}.")
        wanted = 2.0 * math.log(factor)
        if q0 is None:
            each = math.log(self.chi(self.q_star))
            return wanted / each if each * wanted > 0.0 and abs(each) > 1e-15 else math.inf
        total, q = 0.0, q0
        for layer in range(1, _MOST_LAYERS + 1):
            each = math.log(max(self.chi(q), 1e-300))
            total += each
            if (total <= wanted) if wanted < 0.0 else (total >= wanted):
                return float(layer)
            new = self.length(q)
            if not math.isfinite(new):
                return math.inf
            if abs(new - q) <= 1e-12 * q:  # settled: the rest is a straight line
                return (
                    layer + math.ceil((wanted - total) / each - 1e-9) if each * wanted > 0.0 and abs(each) > 1e-15 else math.inf
                )
            q = new
        return math.inf

    def trainable_depth(self, q0: float | None = None) -> float:
        """Layers a network of this kind can have and still train: six correlation scales, or until the gradient is gone.

        Args:
            q0: variance at the first layer; the fixed point by default.
        """
        gone = self.layers_until(math.sqrt(VANISHED), q0)
        return min(TRAINABLE_SCALES * self.xi_correlation, gone)


def root_between(f: Callable[[float], float], low: float, high: float) -> float:
    """The root of a continuous function that changes its sign between two points (Brent's method)."""
    return float(cast(float, optimize.brentq(f, low, high, xtol=1e-14)))


def _scale(slope: float) -> float:
    if slope <= 0.0:
        return 0.0
    log = math.log(slope)
    return math.inf if abs(log) < 1e-14 else -1.0 / log


def _checked(c: float) -> float:
    if not abs(c) <= 1.0 + 1e-9:
        raise GradiometerError(f"A correlation lies between -1 and 1, not at {c}.")
    return min(1.0, max(-1.0, c))
