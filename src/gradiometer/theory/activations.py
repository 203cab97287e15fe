"""The activation functions the theory knows: one table, and a way to bring your own.

Names and default parameters are those of ``torch.nn.functional``. All functions are vectorised, work in float64 and do
not overflow for any argument a quadrature meets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import special

from gradiometer.errors import GradiometerError

FloatArray = npt.NDArray[np.float64]
Elementwise = Callable[[FloatArray], FloatArray]

SELU_ALPHA: Final = 1.6732632423543772
"""Klambauer et al. (2017), "Self-Normalizing Neural Networks", eq. 14."""

SELU_SCALE: Final = 1.0507009873554805
"""Klambauer et al. (2017), eq. 14."""

_SQRT_2PI: Final = 2.5066282746310002
_SQRT_PI: Final = 1.7724538509055159


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation function with its derivative. Two are equal if their names, parameters and sources are.

    Attributes:
        name: as ``torch.nn.functional`` spells it; the function's own name for a function you brought.
        f: the function, elementwise on float64.
        slope: its derivative; at a kink any one-sided value.
        kinks: points where f, its slope or its curvature jumps: integrals over f are split there.
        parameters: names and values of what shapes it, sorted by name.
        source: the function it was made from, if you brought it.
    """

    name: str
    f: Elementwise = field(compare=False, repr=False)
    slope: Elementwise = field(compare=False, repr=False)
    kinks: tuple[float, ...] = field(default=(), compare=False)
    parameters: tuple[tuple[str, float], ...] = ()
    source: Callable[..., Any] | None = field(default=None, repr=False)

    def parameter(self, name: str) -> float:
        """Value of one parameter; KeyError if it has none of that name."""
        return dict(self.parameters)[name]


Shape = tuple[Elementwise, Elementwise, tuple[float, ...]]
"""Function, derivative, kinks."""


@dataclass(frozen=True, slots=True)
class ActivationRow:
    """A row of the table.

    Attributes:
        name: as ``torch.nn.functional`` spells it.
        make: parameters to function, derivative and kinks.
        formula: what it is, in one line.
        defaults: parameters and their values in torch.
    """

    name: str
    make: Callable[..., Shape]
    formula: str
    defaults: tuple[tuple[str, float], ...] = ()


def _density(x: FloatArray) -> FloatArray:
    return np.exp(-0.5 * x * x) / _SQRT_2PI


def _linear() -> Shape:
    return lambda x: x * 1.0, np.ones_like, ()


def _leaky_relu(negative_slope: float = 0.0) -> Shape:
    return (
        lambda x: np.where(x > 0.0, x, negative_slope * x),
        lambda x: np.where(x > 0.0, 1.0, negative_slope),
        (0.0,),
    )


def _relu() -> Shape:
    return _leaky_relu(0.0)


def _hardtanh(min_val: float, max_val: float) -> Shape:
    if not min_val < max_val:
        raise GradiometerError(f"hardtanh needs min_val < max_val, not {min_val:g} and {max_val:g}.")
    return (
        lambda x: np.clip(x, min_val, max_val),
        lambda x: np.where((x > min_val) & (x < max_val), 1.0, 0.0),
        (min_val, max_val),
    )


def _relu6() -> Shape:
    return _hardtanh(0.0, 6.0)


def _elu(alpha: float, scale: float = 1.0, width: float = 1.0) -> Shape:
    def f(x: FloatArray) -> FloatArray:
        return scale * np.where(x > 0.0, x, alpha * np.expm1(np.minimum(x, 0.0) / width))

    def slope(x: FloatArray) -> FloatArray:
        return scale * np.where(x > 0.0, 1.0, alpha / width * np.exp(np.minimum(x, 0.0) / width))

    return f, slope, (0.0,)


def _selu() -> Shape:
    return _elu(SELU_ALPHA, SELU_SCALE)


def _celu(alpha: float) -> Shape:
    if not alpha > 0.0:
        raise GradiometerError(f"celu needs a positive alpha, not {alpha:g}.")
    return _elu(alpha, width=alpha)


def _gelu() -> Shape:
    return lambda x: x * special.ndtr(x), lambda x: special.ndtr(x) + x * _density(x), ()


def _gelu_tanh() -> Shape:
    k, cubic = np.sqrt(2.0 / np.pi), 0.044715

    def f(x: FloatArray) -> FloatArray:
        return x * special.expit(2.0 * k * (x + cubic * x**3))

    def slope(x: FloatArray) -> FloatArray:
        gate = special.expit(2.0 * k * (x + cubic * x**3))
        other = special.expit(-2.0 * k * (x + cubic * x**3))
        return gate + x * gate * other * 2.0 * k * (1.0 + 3.0 * cubic * x**2)

    return f, slope, ()


def _silu() -> Shape:
    return (
        lambda x: x * special.expit(x),
        lambda x: special.expit(x) * (1.0 + x * special.expit(-x)),
        (),
    )


def _mish() -> Shape:
    def slope(x: FloatArray) -> FloatArray:
        gate = np.tanh(np.logaddexp(0.0, x))
        return gate + x * (1.0 - gate * gate) * special.expit(x)

    return lambda x: x * np.tanh(np.logaddexp(0.0, x)), slope, ()


def _softplus(beta: float) -> Shape:
    if not beta > 0.0:
        raise GradiometerError(f"softplus needs a positive beta, not {beta:g}.")
    return lambda x: np.logaddexp(0.0, beta * x) / beta, lambda x: special.expit(beta * x), ()


def _sigmoid() -> Shape:
    return special.expit, lambda x: special.expit(x) * special.expit(-x), ()


def _sigmoid_centred() -> Shape:
    return lambda x: 0.5 * np.tanh(0.5 * x), lambda x: special.expit(x) * special.expit(-x), ()


def _hardsigmoid() -> Shape:
    return (
        lambda x: np.clip(x / 6.0 + 0.5, 0.0, 1.0),
        lambda x: np.where((x > -3.0) & (x < 3.0), 1.0 / 6.0, 0.0),
        (-3.0, 3.0),
    )


def _tanh() -> Shape:
    return np.tanh, lambda x: 4.0 * special.expit(2.0 * x) * special.expit(-2.0 * x), ()


def _hardswish() -> Shape:
    return (
        lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
        lambda x: np.where(x >= 3.0, 1.0, np.where(x <= -3.0, 0.0, x / 3.0 + 0.5)),
        (-3.0, 3.0),
    )


def _softsign() -> Shape:
    return lambda x: x / (1.0 + np.abs(x)), lambda x: (1.0 + np.abs(x)) ** -2.0, (0.0,)


def _erf() -> Shape:
    return special.erf, lambda x: 2.0 / _SQRT_PI * np.exp(-x * x), ()


def _logsigmoid() -> Shape:
    return lambda x: -np.logaddexp(0.0, -x), lambda x: special.expit(-x), ()


def _tanhshrink() -> Shape:
    def f(x: FloatArray) -> FloatArray:
        y = np.minimum(x * x, 0.01)  # the series serves |x| < 0.1, where the difference would cancel
        series = 1 / 3 - y * (2 / 15 - y * (17 / 315 - y * (62 / 2835 - y * (1382 / 155925 - y * 21844 / 6081075))))
        return np.where(np.abs(x) < 0.1, x * y * series, x - np.tanh(x))

    return f, lambda x: np.tanh(x) ** 2, ()


def _sin() -> Shape:
    return np.sin, np.cos, ()


ACTIVATIONS: Final[tuple[ActivationRow, ...]] = (
    ActivationRow("linear", _linear, "x"),
    ActivationRow("relu", _relu, "max(x, 0)"),
    ActivationRow("leaky_relu", _leaky_relu, "x above 0, negative_slope x below", (("negative_slope", 0.01),)),
    ActivationRow("relu6", _relu6, "x cut to [0, 6]"),
    ActivationRow("elu", _elu, "x above 0, alpha (e^x - 1) below", (("alpha", 1.0),)),
    ActivationRow("selu", _selu, "the self-normalising ELU, scaled by 1.0507, alpha 1.6733"),
    ActivationRow("celu", _celu, "x above 0, alpha (e^(x/alpha) - 1) below", (("alpha", 1.0),)),
    ActivationRow("gelu", _gelu, "x Phi(x), Phi the normal distribution function"),
    ActivationRow("gelu_tanh", _gelu_tanh, "GELU's approximation by tanh"),
    ActivationRow("silu", _silu, "x sigmoid(x), also called swish"),
    ActivationRow("mish", _mish, "x tanh(softplus(x))"),
    ActivationRow("softplus", _softplus, "ln(1 + e^(beta x)) / beta", (("beta", 1.0),)),
    ActivationRow("sigmoid", _sigmoid, "1 / (1 + e^-x)"),
    ActivationRow("sigmoid_centred", _sigmoid_centred, "sigmoid(x) - 1/2, which is tanh(x/2) / 2; not in torch"),
    ActivationRow("hardsigmoid", _hardsigmoid, "x/6 + 1/2 cut to [0, 1]"),
    ActivationRow("tanh", _tanh, "hyperbolic tangent"),
    ActivationRow("hardtanh", _hardtanh, "x cut to [min_val, max_val]", (("max_val", 1.0), ("min_val", -1.0))),
    ActivationRow("hardswish", _hardswish, "x hardsigmoid(x)"),
    ActivationRow("softsign", _softsign, "x / (1 + |x|)"),
    ActivationRow("erf", _erf, "error function"),
    ActivationRow("logsigmoid", _logsigmoid, "ln sigmoid(x)"),
    ActivationRow("tanhshrink", _tanhshrink, "x - tanh(x)"),
    ActivationRow("sin", _sin, "sine"),
)
"""Every activation known by name. `softplus` is the exact function; torch's switches to x above beta x = 20 (2e-9)."""

ALIASES: Final = {"identity": "linear", "swish": "silu"}
"""Other names in use."""


def _key(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


_ROWS: Final = {_key(row.name): row for row in ACTIVATIONS}


def activation(which: str | Elementwise | Activation, **parameters: float) -> Activation:
    """The activation of that name, or one made from your function.

    Args:
        which: a name of the table (``leaky_relu`` and ``LeakyReLU`` are the same); an `Activation`, which is returned as
            it is; or a function of a float64 array, whose derivative and kinks are then found numerically.
        parameters: what shapes a named one, e.g. ``negative_slope=0.2``; torch's defaults for the rest.

    Raises:
        GradiometerError: no such name or parameter; a function that fails, is not elementwise, or is not finite.
    """
    if isinstance(which, str):
        key = _key(which)
        row = _ROWS.get(_key(ALIASES.get(key, key)))
        if row is None:
            names = ", ".join(row.name for row in ACTIVATIONS)
            raise GradiometerError(f"No activation is called {which!r}.", f"Known are: {names}.")
        unknown = sorted(set(parameters) - {name for name, _ in row.defaults})
        if unknown:
            takes = ", ".join(name for name, _ in row.defaults) or "no parameters"
            raise GradiometerError(f"{row.name} has no parameter {unknown[0]!r}.", f"It takes {takes}.")
        values = {**dict(row.defaults), **{name: float(value) for name, value in parameters.items()}}
        if not np.isfinite(list(values.values())).all():
            raise GradiometerError(f"The parameters of {row.name} must be finite numbers, not {values}.")
        f, slope, kinks = row.make(**values)
        return Activation(row.name, f, slope, kinks, tuple(sorted(values.items())))
    if parameters:
        raise GradiometerError("Parameters go with a name only.", "Put them into the function you pass.")
    if isinstance(which, Activation):
        return which
    from gradiometer.theory.numeric import numeric_activation

    return numeric_activation(which)
