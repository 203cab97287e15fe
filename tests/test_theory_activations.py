"""The table of activations against torch, and functions of your own."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import ACTIVATIONS, ALIASES, activation

TORCH: dict[str, Callable[..., torch.Tensor]] = {
    "linear": lambda x: 1.0 * x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "sigmoid_centred": lambda x: torch.sigmoid(x) - 0.5,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "softsign": F.softsign,
    "erf": torch.erf,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "sin": torch.sin,
}
NAMES = [row.name for row in ACTIVATIONS]
PARAMETERS = [
    ("leaky_relu", {"negative_slope": 0.2}),
    ("elu", {"alpha": 2.5}),
    ("celu", {"alpha": 0.5}),
    ("softplus", {"beta": 2.0}),
    ("hardtanh", {"min_val": -2.0, "max_val": 0.5}),
]
GRID = np.linspace(-30.0, 30.0, 1201) + 0.0123  # clear of the kinks
TOLERANCE = {"softplus": 3e-9, "hardsigmoid": 4e-8}  # torch goes straight above beta x = 20; takes 1/6 in single precision
EVERYWHERE = 1e-12


def both(act_name: str, **parameters: float) -> None:
    act = activation(act_name, **parameters)
    x = torch.tensor(GRID, requires_grad=True)
    y = TORCH[act_name](x, **parameters)
    (slope,) = torch.autograd.grad(y.sum(), x)
    limit = TOLERANCE.get(act_name, EVERYWHERE)
    np.testing.assert_allclose(act.f(GRID), y.detach().numpy(), rtol=limit, atol=limit)
    np.testing.assert_allclose(act.slope(GRID), slope.numpy(), rtol=limit, atol=limit)


def test_every_name_is_compared() -> None:
    assert sorted(TORCH) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_value_and_slope_are_those_of_torch(name: str) -> None:
    both(name)


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS)
def test_parameters_are_those_of_torch(name: str, parameters: dict[str, float]) -> None:
    both(name, **parameters)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_slopes_are_finite_for_every_number_and_keep_the_shape(name: str) -> None:
    act = activation(name)
    x = np.array([[-1e8, -1e3, -40.0, -1e-300], [1e-300, 40.0, 1e3, 1e8]])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert act.f(x).shape == x.shape
        assert act.slope(x).shape == x.shape
    assert np.isfinite(act.f(x)).all()
    assert np.isfinite(act.slope(x)).all()


@pytest.mark.parametrize("name", NAMES)
def test_kinks_are_where_the_slope_or_the_curvature_jumps(name: str) -> None:
    act, h = activation(name), 1e-5
    curvature = lambda x: (act.slope(np.array([x + h])) - act.slope(np.array([x - h])))[0] / (2.0 * h)  # noqa: E731
    for kink in act.kinks:
        jump = abs(act.slope(np.array([kink + h])) - act.slope(np.array([kink - h])))[0]
        assert jump > 0.01 or abs(curvature(kink + 3.0 * h) - curvature(kink - 3.0 * h)) > 0.01
    for x in (-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0):
        if x not in act.kinks:
            assert abs(curvature(x + 3.0 * h) - curvature(x - 3.0 * h)) < 1e-3


@pytest.mark.parametrize(("spelling", "name"), [("LeakyReLU", "leaky_relu"), ("SiLU", "silu"), *ALIASES.items()])
def test_spellings(spelling: str, name: str) -> None:
    assert activation(spelling) == activation(name)


def test_an_activation_is_returned_as_it_is_and_parameters_tell_two_apart() -> None:
    leaky = activation("leaky_relu", negative_slope=0.2)
    assert activation(leaky) is leaky
    assert leaky.parameter("negative_slope") == 0.2
    assert leaky != activation("leaky_relu")
    with pytest.raises(KeyError):
        leaky.parameter("alpha")


@settings(max_examples=50, deadline=None)
@given(st.floats(-0.0999, 0.0999))
def test_tanhshrink_keeps_its_digits_near_zero(x: float) -> None:
    series = x**3 / 3 - 2 * x**5 / 15 + 17 * x**7 / 315 - 62 * x**9 / 2835 + 1382 * x**11 / 155925
    series -= 21844 * x**13 / 6081075 - 929569 * x**15 / 638512875
    assert float(activation("tanhshrink").f(np.array([x]))[0]) == pytest.approx(series, rel=1e-13, abs=1e-300)


# ---- functions of your own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_function_gets_the_slope_and_the_kinks_of_the_named_one(name: str) -> None:
    act = activation(name)
    own = activation(lambda x: act.f(x))
    x = np.concatenate([np.linspace(-12.0, 12.0, 2001) + 1e-4, [-25.0, 25.0, 1e-7, -1e-7, 3e-3]])
    np.testing.assert_allclose(own.slope(x), act.slope(x), rtol=0.0, atol=5e-11)
    if name not in ("elu", "celu", "softsign"):  # whose curvature alone jumps: that is not looked for
        assert own.kinks == act.kinks


@pytest.mark.parametrize(
    ("function", "kinks"),
    [
        (np.abs, (0.0,)),
        (lambda x: np.where(x > 0.7, 1.0, 0.0), (0.7,)),
        (lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0.0), (-0.5, 0.5)),
        (lambda x: np.maximum(x - math.pi / 7.0, 0.0), (math.pi / 7.0,)),
        (lambda x: np.clip(x, 0.0, 0.05), (0.0, 0.05)),
        (lambda x: x if x > 1 / 3 else 0.5 * x, (1 / 3,)),  # takes single numbers only
        (math.tanh, ()),
        (np.exp, ()),
        (lambda x: np.sin(100.0 * x), ()),
    ],
)
def test_kinks_are_found(function: Callable[..., object], kinks: tuple[float, ...]) -> None:
    assert activation(function).kinks == pytest.approx(kinks, abs=1e-9)


def test_a_function_of_single_numbers_is_vectorised() -> None:
    own = activation(math.tanh)
    x = np.linspace(-3.0, 3.0, 12).reshape(3, 4)
    np.testing.assert_array_equal(own.f(x), np.vectorize(math.tanh)(x))
    assert own.name == "tanh"
    assert own != activation("tanh")
    assert own == activation(math.tanh)


def test_a_function_may_write_into_its_argument() -> None:
    own, x = activation(lambda x: np.maximum(x, 0.0, out=x)), np.array([-1.0, 2.0])
    own.f(x)
    assert x.tolist() == [-1.0, 2.0]


@pytest.mark.parametrize(
    ("which", "parameters", "words"),
    [
        ("no such", {}, "No activation is called 'no such'."),
        ("relu", {"negative_slope": 0.1}, "relu has no parameter 'negative_slope'."),
        ("elu", {"alpha": math.nan}, "The parameters of elu must be finite"),
        ("celu", {"alpha": 0.0}, "celu needs a positive alpha"),
        ("softplus", {"beta": -1.0}, "softplus needs a positive beta"),
        ("hardtanh", {"min_val": 1.0}, "hardtanh needs min_val < max_val"),
        (np.tanh, {"alpha": 1.0}, "Parameters go with a name only."),
        (3, {}, "An activation is a name or a function, not 3."),
        (lambda x: np.sin(x) / x, {}, "is nan at 0."),
        (lambda x: np.where(x == 0.25, np.inf, x), {}, "is inf at 0.25."),
        (lambda x: np.exp(x) / np.exp(x).sum(), {}, "is not elementwise"),
        (lambda x: x - x.mean(), {}, "is not elementwise"),
        (lambda x: x[:1], {}, "fails"),
        (lambda x: 1j * x, {}, "complex"),
        (lambda x: np.tanh(x.astype(np.float32)), {}, "answers a float64 array with float32."),
        (torch.tanh, {}, "fails"),
    ],
)
def test_what_is_no_activation_is_said_in_one_sentence(which: object, parameters: dict[str, float], words: str) -> None:
    with pytest.raises(GradiometerError) as caught:
        activation(which, **parameters)  # type: ignore[arg-type]
    assert words in caught.value.message
    assert "\n" not in caught.value.message
