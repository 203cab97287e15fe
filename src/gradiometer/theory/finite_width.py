"""What finite width does: how far the logarithm of a gradient wanders from its mean-field value, and shattering."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import Activation, Elementwise, activation
from gradiometer.theory.meanfield import LEAST_Q, MeanField, slope_moment, straight_lines
from gradiometer.theory.quadrature import expectation, nodes

_SLACK: Final = 1e-6  # 1 - chi_par below which a variance wanders without bound


def slope_kurtosis(which: str | Elementwise | Activation, q: float) -> float:
    """E phi'^4 / (E phi'^2)^2 for pre-activations of variance q: 1 for a line, 2 for ReLU; at q = 0 the limit.

    Raises:
        GradiometerError: q is no variance, or the activation is flat.
    """
    act = activation(which)
    square = slope_moment(act, q)
    if square == 0.0:
        raise GradiometerError(f"{act.name} is flat at q = {q:g}: no gradient passes it.")
    # at a kink at zero the limit of small q sees both sides
    return expectation(lambda u: act.slope(u) ** 4, q if q != 0.0 else LEAST_Q, act.kinks) / square**2


def log_variance(which: str | Elementwise | Activation, q: float, width: int, *, orthogonal: bool = False) -> float:
    """Variance of ln |J v|^2 that one layer of ``width`` units adds; the mean is less than ln chi by half of it.

    (3 kappa - 1) / n for Gaussian weights: 5/n for ReLU, 2/n for a linear layer (Hanin & Nica 2020, theorem 1);
    3 (kappa - 1) / n for orthogonal ones, kappa being `slope_kurtosis`. All of it for straight lines; other activations add
    what the wandering variance of the signal does to chi, see `settled_log_variance`.
    """
    if width < 1:
        raise GradiometerError(f"A layer has at least one unit, not {width}.")
    kappa = slope_kurtosis(which, q)
    return (3.0 * (kappa - 1.0) if orthogonal else 3.0 * kappa - 1.0) / width


def settled_log_variance(which: str | Elementwise | Activation, sigma_w: float, sigma_b: float, width: int) -> float:
    """Variance of ln |J v|^2 per layer deep in a network of Gaussian weights, with the wandering of the signal's variance.

    At width n the variance q of a layer is off by e_l, e_{l+1} = chi_par e_l + noise, and each e changes ln chi. To first
    order in 1/n the sum over many layers has, per layer, (3 kappa - 1 + 2 t G + t^2 F) / n with

        t = (d ln chi / dq) / (1 - chi_par),  F = sigma_w^4 Var phi^2,  G = sigma_w^2 Cov(phi'^2, phi^2) / E phi'^2

    (computed here; `log_variance` is its first term and all of it for straight lines). It is for networks much deeper than
    1 / (1 - chi_par) layers: for critical tanh a third more than the first term.

    Args:
        which: activation.
        sigma_w: standard deviation of a weight times sqrt(fan_in).
        sigma_b: standard deviation of a bias.
        width: units n of every layer.

    Raises:
        GradiometerError: no units; a variance that has no attracting fixed point above 0, or only a marginal one.
    """
    act = activation(which)
    field = MeanField(act, sigma_w, sigma_b)
    if straight_lines(act) is not None:
        return log_variance(act, 1.0, width)
    q = field.q_star
    plain = log_variance(act, q, width)
    slack = 1.0 - field.chi_parallel(q)
    if q == 0.0 or slack < _SLACK:
        raise GradiometerError(
            f"The variance of {act.name} with sigma_w = {sigma_w:g}, sigma_b = {sigma_b:g} does not settle.",
            "Use log_variance layer by layer.",
        )
    z, w = nodes(q, act.kinks)
    f2, s2 = act.f(math.sqrt(q) * z) ** 2, act.slope(math.sqrt(q) * z) ** 2
    slope, square = float(w @ s2), float(w @ f2)
    t = float(w @ (s2 * (z * z - 1.0))) / (2.0 * q * slope) / slack
    spread = sigma_w**4 * (float(w @ (f2 * f2)) - square**2)
    shared = sigma_w**2 * (float(w @ (s2 * f2)) / slope - square)
    return plain + (2.0 * t * shared + t * t * spread) / width


def jacobian_variance(which: str | Elementwise | Activation, q: float, layers: int, *, orthogonal: bool = False) -> float:
    """Variance of the squared singular values of the Jacobian of ``layers`` critical layers.

    L (E phi'^4 / (E phi'^2)^2 - 1 - s1) with s1 = 0 for orthogonal and -1 for Gaussian weights (Pennington et al. 2017,
    eq. 19). Isometry needs orthogonal weights and a nearly linear activation; ReLU cannot have it.

    Raises:
        GradiometerError: fewer than one layer.
    """
    if layers < 1:
        raise GradiometerError(f"There must be at least one layer, not {layers}.")
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
    """The same for residual layers x + s W relu(x), He weights, in the limit of infinite width.

    The correlation of two gradients is multiplied by (1 + s^2 r) / (1 + s^2), r being the plain layer's factor; that of two
    signals moves from c to (c + s^2 f(c)) / (1 + s^2), f being the plain layer's map. Not for x + s relu(W x): its branches are
    never negative and add up, all signals become alike and gradients shatter less (0.24 instead of 0.07 after 16 layers of
    s = 1, by simulation).

    Raises:
        GradiometerError: fewer than one layer, or a scale that is no number.
    """
    if not math.isfinite(branch):
        raise GradiometerError(f"branch must be a finite number, not {branch}.")
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
