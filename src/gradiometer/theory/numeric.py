"""An activation from any function of a number: its derivative and its kinks, found numerically."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import Activation, Elementwise, FloatArray

SCAN: Final = 30.0
"""Kinks are looked for between -30 and 30."""

_CELL: Final = 1.0 / 512.0  # width of the cells scanned
_COARSE: Final = 8  # cells in a coarse one
_FINEST: Final = 1e-6  # cells at which a candidate must still show its jump
_STEP: Final = 1e-3  # of the central difference: its error is h^4 f^(5) / 30 + 1e-16 |f| / h, about 1e-12
_ASIDE: Final = 1e-9  # how far right of a kink its derivative is taken: the value at a jump may be neither side's
_SMALL: Final = 1e-6  # jumps below this share of the slopes around are noise
_TRIED: Final = 400  # candidates looked at
_FUZZ: Final = 1e-9  # kinks this close to a number of six digits are that number

_CENTRAL: Final = ((-2.0, 1.0 / 12.0), (-1.0, -8.0 / 12.0), (1.0, 8.0 / 12.0), (2.0, -1.0 / 12.0))
_ONE_SIDED: Final = ((0.0, -25.0 / 12.0), (1.0, 4.0), (2.0, -3.0), (3.0, 4.0 / 3.0), (4.0, -0.25))


def _elementwise(function: Callable[..., Any]) -> Elementwise:
    """The function on float64 arrays, vectorised if need be, with every value checked to be finite."""
    if not callable(function):
        raise GradiometerError(f"An activation is a name or a function, not {function!r}.")
    name = _name(function)
    probe = np.array([-1.5, 0.25, 2.0])
    kind: np.dtype[Any] | None = None  # of the answer to an array, if that is an array of numbers
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # arrays of one element taken for numbers
            answer: Any = np.asarray(function(probe.copy()))
        if answer.shape == probe.shape and np.issubdtype(answer.dtype, np.number):
            kind = answer.dtype
    except Exception:  # noqa: BLE001 - whatever the user's function raises for an array, it may still take numbers
        kind = None
    if kind is not None and kind.kind == "f" and kind.itemsize < 8:
        raise GradiometerError(
            f"The activation {name} answers a float64 array with {kind}.", "Keep float64: the derivative needs all the digits."
        )
    call: Callable[..., Any] = function if kind is not None else np.vectorize(function, otypes=[np.float64])

    def f(x: FloatArray) -> FloatArray:
        try:
            with np.errstate(all="ignore"):
                made = np.asarray(call(np.array(x, dtype=np.float64)))
                if np.iscomplexobj(made):
                    raise TypeError("it makes complex numbers")
                y = np.asarray(made, dtype=np.float64)
        except Exception as error:
            raise GradiometerError(
                f"The activation {name} fails: {error}.", "It must take a float64 array or a float, and return the same."
            ) from error
        if y.shape != np.shape(x):
            raise GradiometerError(f"The activation {name} turns the shape {np.shape(x)} into {y.shape}.")
        bad = ~np.isfinite(y)
        if bad.any():
            where = np.asarray(x, dtype=np.float64)[bad]
            at = float(where[np.argmin(np.abs(where))])
            value = float(y[bad][np.argmin(np.abs(where))])
            raise GradiometerError(f"The activation {name} is {value} at {at:.6g}.", "It must be finite at every number.")
        return y

    single = np.concatenate([f(probe[i : i + 1]) for i in range(probe.size)])
    if not np.allclose(f(probe), single, rtol=1e-12, atol=1e-300):
        raise GradiometerError(
            f"The activation {name} is not elementwise: its value at one number depends on the others.",
            "Softmax and normalisations are not activations of one number.",
        )
    return f


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _settle(x: float) -> float:
    """The number itself, or the one of few digits it is but for rounding."""
    return round(x, 6) + 0.0 if abs(x - round(x, 6)) < _FUZZ else x


def _narrow(f: Elementwise, left: float, right: float) -> float | None:
    """The kink between two points, or None if the function is smooth there."""
    first, before = math.nan, 0.0
    while True:
        x = np.linspace(left, right, 17)
        cell = (right - left) / 16.0
        y = f(x)
        slopes = np.diff(y) / cell
        bends = np.abs(slopes[2:] - slopes[:-2])  # about the middle cell i + 1
        i = int(np.argmax(bends))
        bend = float(bends[i])
        if math.isnan(first):
            first = bend
        scale = 1.0 + float(np.abs(slopes).max())
        if bend < _SMALL * (1.0 + min(abs(float(slopes[0])), abs(float(slopes[-1])))):
            return None
        if cell < _FINEST:
            break
        before = scale
        left, right = float(x[i]), float(x[i + 3])
    if bend < 0.5 * first:
        return None  # smooth: the change of slope shrinks with the cell
    low, high = float(x[i]), float(x[i + 3])
    if float(np.abs(slopes).max()) > 3.0 * before and abs(float(y[i + 3] - y[i])) > 1e-4:
        return _settle(_step_at(f, low, high))
    turn = float(slopes[i] - slopes[i + 2])  # where the two tangents meet
    return _settle(low + (float(y[i + 3] - y[i]) - float(slopes[i + 2]) * 3.0 * cell) / turn)


def _step_at(f: Elementwise, low: float, high: float) -> float:
    """Where the value jumps, by bisection."""
    below, above = (float(v) for v in f(np.array([low, high])))
    for _ in range(40):
        middle = 0.5 * (low + high)
        value = float(f(np.array([middle]))[0])
        if abs(value - below) < abs(value - above):
            low = middle
        else:
            high = middle
    return high


def find_kinks(f: Elementwise) -> tuple[float, ...]:
    """Points in (-30, 30) where f or its slope jumps, in increasing order.

    A change of slope that does not shrink with the cell it is measured on is a kink. Jumps of the slope below 1e-6 are
    not seen, nor are kinks closer to each other than about 0.01, nor jumps of the curvature.
    """
    x = np.arange(-SCAN / _CELL - _COARSE, SCAN / _CELL + _COARSE + 1.0) * _CELL
    y = f(x)
    slopes = np.diff(y) / _CELL
    fine = np.abs(slopes[2:] - slopes[:-2])  # about cell j + 1, whose left edge is x[j + 1]
    wide = np.abs(y[2 * _COARSE + 1 :] - y[_COARSE + 1 : -_COARSE] - y[_COARSE : -_COARSE - 1] + y[: -2 * _COARSE - 1])
    wide /= _COARSE * _CELL  # of coarse cells on both sides of the cell from x[COARSE + j] to x[COARSE + j + 1]
    fine = fine[_COARSE - 1 : _COARSE - 1 + wide.size]
    floor = _SMALL * (1.0 + np.minimum(np.abs(slopes[: wide.size]), np.abs(slopes[-wide.size :])))
    candidates = np.flatnonzero((fine > 0.4 * wide) & (fine > floor))
    found: list[float] = []
    for j in candidates[np.argsort(-fine[candidates], kind="stable")][:_TRIED]:
        left = float(x[_COARSE + j])
        if any(abs(left - kink) < 3.0 * _CELL for kink in found):
            continue
        kink = _narrow(f, left - _CELL, left + 2.0 * _CELL)
        if kink is not None and all(abs(kink - other) > _FUZZ for other in found):
            found.append(kink)
    return tuple(sorted(found))


def difference_slope(f: Elementwise, kinks: tuple[float, ...]) -> Elementwise:
    """The derivative of f by differences of fourth order that never reach across a kink.

    Nor across zero, where activations glued together by hand often bend. The error is about 1e-12 for a function of the
    scale of an activation; at a kink it is the derivative to the right.
    """
    borders = np.array([-np.inf, *sorted({0.0, *kinks}), np.inf])

    def slope(x: FloatArray) -> FloatArray:
        flat = np.asarray(x, dtype=np.float64).reshape(-1)
        piece = np.searchsorted(borders, flat, side="right") - 1
        flat = np.where(flat == borders[piece], flat + _ASIDE, flat)
        below, above = flat - borders[piece], borders[np.minimum(piece + 1, borders.size - 1)] - flat
        h = np.minimum(_STEP * np.maximum(1.0, np.sqrt(np.abs(flat))), (below + above) / 10.0)
        central = np.minimum(below, above) > 2.5 * h
        side = np.where(above >= below, 1.0, -1.0)
        result = np.empty_like(flat)
        for mask, rule, sign in ((central, _CENTRAL, np.ones_like(flat)), (~central, _ONE_SIDED, side)):
            if mask.any():
                step = (sign * h)[mask]
                result[mask] = sum(weight * f(flat[mask] + place * step) for place, weight in rule) / step
        return result.reshape(np.shape(x))

    return slope


def numeric_activation(function: Callable[..., Any]) -> Activation:
    """An `Activation` from a function of a float64 array or of a float.

    Args:
        function: elementwise; one that takes single numbers only is vectorised.

    Raises:
        GradiometerError: it fails, is not elementwise, or is not finite at some number, which is named.
    """
    f = _elementwise(function)
    kinks = find_kinks(f)
    return Activation(_name(function), f, difference_slope(f, kinks), kinks, source=function)
