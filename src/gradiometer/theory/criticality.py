"""Critical initialisation: weights and biases at which the gradient neither shrinks nor grows (the edge of chaos)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import Activation, Elementwise, activation
from gradiometer.theory.meanfield import MeanField, root_between, second_moment, slope_moment, straight_lines

SMALLEST_Q: Final = 1e-7
LARGEST_Q: Final = 1e4
_SCAN: Final = 221


@dataclass(frozen=True, slots=True)
class CriticalPoint:
    """A point of the edge of chaos: chi_1 = 1 at a fixed point of the length map.

    Attributes:
        sigma_w, sigma_b: the initialisation.
        q: the fixed point.
        chi_parallel: slope of the length map there.
    """

    sigma_w: float
    sigma_b: float
    q: float
    chi_parallel: float

    @property
    def stable(self) -> bool:
        """Whether a network flows to this point: only then is the point worth anything as an initialisation."""
        return self.chi_parallel < 1.0 + 1e-9


def edge_of_chaos(which: str | Elementwise | Activation, q: float) -> CriticalPoint | None:
    """The point of the edge whose fixed point is ``q``, in closed form; None where it would need a negative variance.

    sigma_w^2 = 1 / E phi'^2 and sigma_b^2 = q - sigma_w^2 E phi^2 (Hayou et al. 2019, in parametric form). chi_1 = 1 says
    nothing about whether the network flows there: for GELU and SiLU it often does not, and the network explodes.

    Args:
        which: activation.
        q: variance of a pre-activation, above 0.

    Raises:
        GradiometerError: q is not a positive number.
    """
    if not (math.isfinite(q) and q > 0.0):
        raise GradiometerError(f"q must be a positive number, not {q}.")
    act = activation(which)
    weight = 1.0 / slope_moment(act, q)
    bias = q - weight * second_moment(act, q)
    if bias < -1e-12 * q:
        return None
    sigma_w, sigma_b = math.sqrt(weight), math.sqrt(max(bias, 0.0))
    return CriticalPoint(sigma_w, sigma_b, q, MeanField(act, sigma_w, sigma_b).chi_parallel(q))


def edge_at(which: str | Elementwise | Activation, sigma_b: float) -> tuple[CriticalPoint, ...]:
    """All points of the edge with this ``sigma_b``, by their q; none for softplus.

    For ``sigma_b`` = 0 an activation with phi(0) = 0 has the point q -> 0, sigma_w = 1 / |phi'(0)|; straight lines (ReLU,
    leaky ReLU, linear) have one single point, at any q, listed with q = 1.
    """
    act = activation(which)
    if sigma_b < 0.0 or not math.isfinite(sigma_b):
        raise GradiometerError(f"sigma_b must be a number of at least 0, not {sigma_b}.")
    if straight_lines(act) is not None:
        if sigma_b > 0.0:
            return ()  # the variance grows by sigma_b^2 at every layer
        return (CriticalPoint(1.0 / math.sqrt(slope_moment(act, 1.0)), 0.0, 1.0, 1.0),)

    def rest(t: float) -> float:
        q = math.exp(t)
        return q - second_moment(act, q) / slope_moment(act, q) - sigma_b**2

    found: list[CriticalPoint] = []
    origin = np.zeros(1)
    if sigma_b == 0.0 and float(act.f(origin)[0]) == 0.0:
        slope = _slope_at_zero(act)
        if slope > 0.0:
            found.append(CriticalPoint(1.0 / slope, 0.0, 0.0, 1.0))
    grid = np.linspace(math.log(SMALLEST_Q), math.log(LARGEST_Q), _SCAN)
    values = np.array([rest(float(t)) for t in grid])
    for i in np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0):
        if max(abs(values[i]), abs(values[i + 1])) < 1e-12:
            continue  # rounding about zero
        point = edge_of_chaos(act, math.exp(root_between(rest, float(grid[i]), float(grid[i + 1]))))
        if point is not None:
            found.append(CriticalPoint(point.sigma_w, sigma_b, point.q, point.chi_parallel))
    return tuple(found)


def _slope_at_zero(act: Activation) -> float:
    """Root mean square of the slope for the smallest inputs: the mean square of the two sides at a kink."""
    return math.sqrt(slope_moment(act, 0.0))


def half_stable_points(which: str | Elementwise | Activation) -> tuple[CriticalPoint, ...]:
    """Points of the edge with chi_parallel = 1 too, beyond which it is stable (GELU, SiLU: Roberts, Yaida & Hanin 2022).

    At such a point gradients and signals both keep their size only to first order, and fluctuations die out slowly.
    """
    act = activation(which)
    if straight_lines(act) is not None:
        return ()

    def slope(t: float) -> float:
        point = edge_of_chaos(act, math.exp(t))
        return math.nan if point is None else point.chi_parallel - 1.0

    grid = np.linspace(math.log(1e-3), math.log(LARGEST_Q), _SCAN)
    values = np.array([slope(float(t)) for t in grid])
    found: list[CriticalPoint] = []
    for i in np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0):
        point = edge_of_chaos(act, math.exp(root_between(slope, float(grid[i]), float(grid[i + 1]))))
        if point is not None:
            found.append(point)
    return tuple(found)


PREFERRED_BIAS: Final = 0.2
"""sigma_b that is chosen where none is asked for: a short correlation scale at the start, isometry still within reach."""
_BIASES: Final = (0.2, 0.1, 0.3, 0.5, 0.45, 0.6, 0.8, 1.0, 1.5, 2.0)


def critical_initialisation(which: str | Elementwise | Activation, sigma_b: float | None = None) -> CriticalPoint:
    """A point of the edge of chaos that a network flows to.

    Args:
        which: activation.
        sigma_b: standard deviation of the biases; by default the smallest usual one that has a stable point (0 for ReLU,
            leaky ReLU and linear).

    Raises:
        GradiometerError: there is no stable point: softplus has none at all, GELU and SiLU none for small biases.
    """
    act = activation(which)
    if sigma_b is None:
        tried = (0.0,) if straight_lines(act) is not None else _BIASES
    else:
        tried = (sigma_b,)
    unstable = False
    for bias in tried:
        points = edge_at(act, bias)
        stable = [p for p in points if p.stable]
        unstable |= len(points) > len(stable)
        if stable:
            return stable[-1]
    at = f" with sigma_b = {sigma_b:g}" if sigma_b is not None else ""
    if unstable:
        least = min((p.sigma_b for p in half_stable_points(act)), default=math.nan)
        raise GradiometerError(
            f"{act.name}{at} has critical points, but signals run away from them: the network would explode.",
            f"Take sigma_b of at least {least:.2f}, or put normalisation between the layers.",
        )
    raise GradiometerError(
        f"{act.name}{at} has no critical initialisation.", "Put normalisation between the layers, or skip connections."
    )


def unit_variance_gain(which: str | Elementwise | Activation) -> float:
    """sigma_w (sigma_b = 0) that keeps a pre-activation variance of 1: what forward-only initialisers aim at."""
    return 1.0 / math.sqrt(second_moment(activation(which), 1.0))


def backward_gain(which: str | Elementwise | Activation) -> float:
    """sigma_w that keeps the squared gradient where pre-activations have variance 1."""
    return 1.0 / math.sqrt(slope_moment(activation(which), 1.0))
