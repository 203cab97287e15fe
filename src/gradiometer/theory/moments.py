"""Gaussian moments of an activation for many scales at once, fast enough to forecast a whole network.

`gradiometer.theory.quadrature` is exact and meant for one number at a time. A forecast needs thousands, to a per mille:
one fixed grid, dense near zero on a logarithmic scale, serves every scale, and Hermite coefficients give the correlation
map in a form that keeps its precision where two inputs have become almost the same (1 - c of 1e-16).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from gradiometer.record.ledger import FloatArray
from gradiometer.theory.activations import Activation

DEGREE: Final = 40
"""Hermite coefficients that are kept; what is left of the variance is given one exponent that fits the slope at c = 1."""
STEP: Final = 0.02
REACH: Final = 8.0
FINEST: Final = 1e-6


@cache
def _grid() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Points z, Gaussian weights, and weights times the orthonormal Hermite polynomials (points x degrees)."""
    edge = float(np.arcsinh(REACH / FINEST))
    t = np.arange(-edge, edge + STEP / 2, STEP)
    t -= t[np.argmin(np.abs(t))]  # a point at zero, where most kinks are
    z = FINEST * np.sinh(t)
    w = FINEST * np.cosh(t) * np.exp(-0.5 * z * z)
    w /= w.sum()
    basis = np.empty((z.size, DEGREE + 1))
    basis[:, 0], basis[:, 1] = 1.0, z
    for k in range(1, DEGREE):
        basis[:, k + 1] = (z * basis[:, k] - np.sqrt(k) * basis[:, k - 1]) / np.sqrt(k + 1)
    return z, w, basis * w[:, None]


@dataclass(frozen=True, slots=True)
class Moments:
    """What an activation does to Gaussian inputs u = mean + scale z, for M of them; every array has shape (M,).

    Attributes:
        mean: E f(u).
        square: E f(u)^2.
        slope_square: E f'(u)^2, the activation's part of chi (Schoenholz et al. 2017, eq. 9).
        slope_kurtosis: E f'^4 / (E f'^2)^2; 2 for a rectifier, 1 for a line.
        kurtosis: E f^4 / (E f^2)^2.
        elasticity: d ln E f^2 / d ln scale^2.
        carried: E f^2 f'^2 / E f^2, the part of chi for a gradient that lies along the output: 1 for ReLU, where chi has 1/2.
    """

    mean: FloatArray
    square: FloatArray
    slope_square: FloatArray
    slope_kurtosis: FloatArray
    kurtosis: FloatArray
    elasticity: FloatArray
    carried: FloatArray
    _spectrum: FloatArray
    _slope_spectrum: FloatArray
    _square_spectrum: FloatArray
    _slope_square_spectrum: FloatArray
    _steepness: FloatArray

    def apart(self, apart: FloatArray) -> FloatArray:
        """Share of E f^2 that differs between two inputs whose z differ by ``apart`` = 1 - correlation."""
        total = _differs(self._spectrum, apart, self._steepness)
        return np.asarray(total / self.square)

    def slope_likeness(self, apart: FloatArray) -> FloatArray:
        """E f'(u1) f'(u2) / E f'^2: what the activation leaves of the likeness of two gradients."""
        return 1.0 - _differs(self._slope_spectrum, apart) / self.slope_square

    def square_likeness(self, apart: FloatArray) -> FloatArray:
        """E f(u1)^2 f(u2)^2 / (E f^2)^2, from 1 (nothing in common) to `kurtosis`."""
        return self.kurtosis - _differs(self._square_spectrum, apart) / self.square**2

    def slope_square_likeness(self, apart: FloatArray) -> FloatArray:
        """The same for f'."""
        return self.slope_kurtosis - _differs(self._slope_square_spectrum, apart) / self.slope_square**2


def moments(activation: Activation, mean: FloatArray, scale: FloatArray) -> Moments:
    """Moments of an activation.

    Args:
        activation: the function.
        mean: shape (M,), mean of the Gaussian input over units.
        scale: shape (M,), its standard deviation, not negative.
    """
    z, w, basis = _grid()
    u = mean[:, None] + scale[:, None] * z
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        f, s = activation.f(u), activation.slope(u)
        f2, s2 = f * f, s * s
        square, slope_square = f2 @ w, s2 @ w
        a, b = f @ basis, s @ basis
        elastic = scale * ((f * s * z) @ w) / square
        kurtosis, slope_kurtosis = (f2 * f2) @ w / square**2, (s2 * s2) @ w / slope_square**2
        spectrum = _closed(a * a, square)
        steepness = scale**2 * slope_square
        return Moments(
            mean=a[:, 0],
            square=square,
            slope_square=slope_square,
            slope_kurtosis=np.maximum(slope_kurtosis, 1.0),
            kurtosis=np.maximum(kurtosis, 1.0),
            elasticity=elastic,
            carried=(f2 * s2) @ w / square,
            _spectrum=spectrum,
            _slope_spectrum=_closed(b * b, slope_square),
            _square_spectrum=_closed((f2 @ basis) ** 2, kurtosis * square**2),
            _slope_square_spectrum=_closed((s2 @ basis) ** 2, slope_kurtosis * slope_square**2),
            _steepness=steepness,
        )


def _closed(spectrum: FloatArray, whole: FloatArray) -> FloatArray:
    """A power spectrum (M, K) with what its K terms leave of the whole in one more column."""
    rest = np.maximum(whole - spectrum.sum(axis=1), 0.0)
    return np.concatenate([spectrum, rest[:, None]], axis=1)


def _differs(spectrum: FloatArray, apart: FloatArray, steepness: FloatArray | None = None) -> FloatArray:
    """Sum over k of spectrum_k (1 - c^k), c = 1 - apart, without losing what is small (Mehler's formula)."""
    k = np.arange(spectrum.shape[1], dtype=np.float64)
    exponents = np.broadcast_to(k, spectrum.shape).copy()
    if steepness is not None:  # d/dc at c = 1 is scale^2 E f'^2: the rest gets the exponent that makes it so
        known = spectrum[:, :-1] @ k[:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            fitted = (steepness - known) / spectrum[:, -1]
        exponents[:, -1] = np.where(np.isfinite(fitted) & (fitted > k[-1]), np.minimum(fitted, 1e9), k[-1])
    c = 1.0 - apart[:, None]
    with np.errstate(divide="ignore", invalid="ignore", under="ignore", over="ignore"):
        close = -np.expm1(exponents * np.log1p(-apart[:, None]))
        whole = np.rint(exponents)
        far = 1.0 - np.sign(c) ** whole * np.abs(c) ** whole
    return np.asarray((spectrum * np.where(c > 0.0, close, far)).sum(axis=1))
