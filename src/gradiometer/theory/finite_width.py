"""What finite width does: how far the logarithm of a gradient wanders from its mean-field value, and shattering."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import Activation, Elementwise, activation
from gradiometer.theory.meanfield import MeanField, slope_moment
from gradiometer.theory.quadrature import expectation


def slope_kurtosis(which: str | Elementwise | Activation, q: float) -> float:
    """E phi'^4 / (E phi'^2)^2 for pre-activations of variance q: 1 for a line, 2 for ReLU."""
    act = activation(which)
    return expectation(lambda u: act.slope(u) ** 4, q, act.kinks) / slope_moment(act, q) ** 2


def log_variance(which: str | Elementwise | Activation, q: float, width: int, *, orthogonal: bool = False) -> float:
    """Variance of ln |J v|^2 that one layer of ``width`` units adds; the mean is less than ln chi by half of it.

    (3 kappa - 1) / n for Gaussian weights: 5/n for ReLU, 2/n for a linear layer (Hanin & Nica 2020, theorem 1);
    3 (kappa - 1) / n for orthogonal ones, kappa being `slope_kurtosis`.
    """
    if width < 1:
        raise GradiometerError(f"A layer has at least one unit, not {width}.")
    kappa = slope_kurtosis(which, q)
    return (3.0 * (kappa - 1.0) if orthogonal else 3.0 * kappa - 1.0) / width


def jacobian_variance(which: str | Elementwise | Activation, q: float, layers: int, *, orthogonal: bool = False) -> float:
    """Variance of the squared singular values of the Jacobian of ``layers`` critical layers.

    L (E phi'^4 / (E phi'^2)^2 - 1 - s1) with s1 = 0 for orthogonal and -1 for Gaussian weights (Pennington et al. 2017,
    eq. 19). Isometry needs orthogonal weights and a nearly linear activation; ReLU cannot have it.
    """
    return layers * (slope_kurtosis(which, q) - (1.0 if orthogonal else 0.0))


def shattering(layers: int) -> tuple[float, ...]:
    """Correlation of the gradients with respect to two orthogonal inputs of a ReLU network, after 1 to ``layers`` layers.

    The product over layers of 1 - acos(c_l) / pi, with c_l from the correlation map (Balduzzi et al. 2017, derived here). It
    halves at first, and falls like L^-3 later, because c_l goes to 1.
    """
    if layers < 1:
        raise GradiometerError(f"There must be at least one layer, not {layers}.")
    field = MeanField("relu", math.sqrt(2.0))
    return _product(layers, lambda c: field.correlation(c, 1.0), lambda c: 1.0 - math.acos(min(c, 1.0)) / math.pi)


def residual_shattering(layers: int, branch: float) -> tuple[float, ...]:
    """The same for residual layers x + s relu(W x), He weights, in the limit of infinite width.

    The correlation of two gradients is multiplied by (1 + s^2 r) / (1 + s^2), r being the plain layer's factor; that of two
    signals moves from c to (c + s^2 f(c)) / (1 + s^2), f being the plain layer's map.
    """
    if layers < 1:
        raise GradiometerError(f"There must be at least one layer, not {layers}.")
    field, share = MeanField("relu", math.sqrt(2.0)), branch**2

    def signal(c: float) -> float:
        return (c + share * field.correlation(c, 1.0)) / (1.0 + share)

    return _product(layers, signal, lambda c: (1.0 + share * (1.0 - math.acos(min(c, 1.0)) / math.pi)) / (1.0 + share))


def _product(layers: int, signal: Callable[[float], float], gradient: Callable[[float], float]) -> tuple[float, ...]:
    c, product = 0.0, 1.0
    found: list[float] = []
    for _ in range(layers):
        product *= gradient(c)
        found.append(product)
        c = min(signal(c), 1.0)
    return tuple(found)


def mean_and_deviation(variances: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of ln |J v|^2 about its mean-field value, for layers that each add one of these variances."""
    total = sum(variances)
    return -total / 2.0, math.sqrt(total)
