"""The edge of chaos against a table computed independently, published values, and the laws that define it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import ACTIVATIONS, activation
from gradiometer.theory.criticality import (
    BIASES,
    CriticalPoint,
    backward_gain,
    critical_initialisation,
    edge_at,
    edge_of_chaos,
    half_stable_points,
    unit_variance_gain,
)
from gradiometer.theory.meanfield import MeanField, second_moment, slope_moment

WITH_AN_EDGE = [row.name for row in ACTIVATIONS if row.name not in ("softplus", "logsigmoid")]


def printed(text: str) -> object:
    """The number that was printed: equal to it within half a unit of its last digit."""
    digits = len(text.partition(".")[2])
    return pytest.approx(float(text), rel=0.0, abs=0.5001 * 10.0**-digits)


# ---- the table -------------------------------------------------------------------------------------------------------

COLUMNS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # sigma_b
TABLE = {  # sigma_w; q; chi_parallel
    "tanh": "1.12254;.15369;.782 1.19340;.27330;.678 1.30415;.51208;.543 1.39558;.76347;.452 1.54967;1.31794;.333"
    " 1.85559;3.0364;.186",
    "erf": ".99369;.14515;.775 1.05559;.25321;.664 1.15280;.46576;.518 1.23367;.68877;.421 1.37133;1.18327;.297"
    " 1.64875;2.74489;.154",
    "hardtanh": "1.00885;.17705;.885 1.02570;.25915;.761 1.06861;.42329;.570 1.11614;.60157;.442 1.21315;1.01338;.288"
    " 1.43969;2.38781;.132",
    "softsign": "1.36105;.06863;.710 1.51287;.15396;.621 1.72963;.35833;.516 1.89749;.59964;.449 2.16623;1.17693;.363"
    " 2.66742;3.09832;.250",
    "elu": "1.13187;.18917;.892 1.17615;.43783;.871 1.22925;1.10693;.860 1.26311;2.03454;.863 1.30611;4.88663;.881"
    " 1.35798;21.7775;.927",
    "selu": ".82201;.14065;.834 .87191;.30894;.787 .93748;.71705;.743 .98369;1.22197;.725 1.04964;2.55551;.720"
    " 1.14792;8.39909;.763",
    "sigmoid": "10.14956;45.630 10.15046;45.646 10.15403;45.712 10.15997;45.823 10.17886;46.174 10.26499;47.800",
    "gelu": "1.85190;.0752;1.064 1.72708;.1835;1.098 1.54701;.5756;1.095 1.45047;1.4249;1.046 1.39987;6.4341;.986"
    " 1.40594;82.313;.989",
    "silu": "1.90501;.1136;1.043 1.82005;.2597;1.072 1.67953;.6895;1.099 1.57562;1.3996;1.094 1.45695;4.4281;1.046"
    " 1.40251;39.3946;.987",
}
CELLS = [(name, bias, cell) for name, row in TABLE.items() for bias, cell in zip(COLUMNS, row.split(), strict=True)]


@pytest.mark.parametrize(("name", "sigma_b", "cell"), CELLS)
def test_the_edge_at_a_bias(name: str, sigma_b: float, cell: str) -> None:
    (point,) = edge_at(name, sigma_b)
    numbers = (point.sigma_w, point.q, point.chi_parallel)
    for number, text in zip(numbers, cell.split(";"), strict=False):
        assert number == printed(text)
    assert point.sigma_b == sigma_b
    assert point.stable == (point.chi_parallel < 1.0)
    assert point.stable == (name not in ("gelu", "silu") or sigma_b >= (0.5 if name == "gelu" else 1.0))


@pytest.mark.parametrize(
    ("name", "sigma_w", "stable"),
    [
        ("tanh", "1.000000", True),
        ("erf", "0.886227", True),
        ("hardtanh", "1.000000", True),
        ("softsign", "1.000000", True),
        ("elu", "1.000000", True),
        ("selu", "0.690486", True),
        ("gelu", "2.000000", False),
        ("silu", "2.000000", False),
    ],
)
def test_the_edge_without_biases(name: str, sigma_w: str, stable: bool) -> None:
    (point,) = edge_at(name, 0.0)
    assert point.sigma_w == printed(sigma_w)
    assert (point.q, point.stable) == (0.0, stable)
    assert point.chi_parallel == pytest.approx(1.0, abs=1e-9)


def test_at_a_kink_at_zero_both_slopes_count() -> None:
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    (point,) = edge_at("selu", 0.0)
    assert point.sigma_w == pytest.approx(1.0 / math.sqrt(0.5 * scale**2 * (1.0 + alpha**2)), rel=1e-9)


def test_sigmoid() -> None:
    (point,) = edge_at("sigmoid", 0.0)
    assert point.sigma_w == printed("10.14926371")
    assert point.q == printed("45.6243")
    assert point.chi_parallel == printed(".060")
    assert edge_at("sigmoid", 1.0)[0].sigma_w == printed("10.265")
    assert edge_at("sigmoid", 2.0)[0].sigma_w == printed("10.576")
    (centred,) = edge_at("sigmoid_centred", 0.0)  # every pre-activation at zero: the rule of |w| > 4
    assert centred.sigma_w == pytest.approx(4.0, rel=1e-9)


@pytest.mark.parametrize(
    ("fan_in", "std"), [(30, "1.853"), (64, "1.269"), (100, "1.015"), (256, ".634"), (784, ".362"), (1024, ".317")]
)
def test_weights_at_which_a_sigmoid_network_explodes(fan_in: int, std: str) -> None:
    assert edge_at("sigmoid", 0.0)[0].sigma_w / math.sqrt(fan_in) == printed(std)


def test_tanh_in_the_slice_of_schoenholz() -> None:
    """Schoenholz et al. 2017 use sigma_b^2 = 0.05."""
    (point,) = edge_at("tanh", math.sqrt(0.05))
    assert point.sigma_w == printed("1.327010")
    assert point.sigma_w**2 == printed("1.760955")
    assert point.q == printed(".570048")


@pytest.mark.parametrize(
    ("name", "parameters", "sigma_w"),
    [
        ("relu", {}, math.sqrt(2.0)),
        ("linear", {}, 1.0),
        ("leaky_relu", {"negative_slope": 0.01}, math.sqrt(2.0 / 1.0001)),
        ("leaky_relu", {"negative_slope": 0.2}, math.sqrt(2.0 / 1.04)),
    ],
)
def test_straight_lines_have_a_single_point(name: str, parameters: dict[str, float], sigma_w: float) -> None:
    act = activation(name, **parameters)
    (point,) = edge_at(act, 0.0)
    assert point.sigma_w == pytest.approx(sigma_w, rel=1e-12)
    assert (point.sigma_b, point.stable) == (0.0, True)
    assert critical_initialisation(act) == point
    assert edge_at(act, 0.1) == ()
    for q in (1e-3, 1.0, 1e3):
        any_q = edge_of_chaos(act, q)
        assert any_q is not None
        assert (any_q.sigma_w, any_q.sigma_b) == pytest.approx((sigma_w, 0.0), abs=1e-12)


def test_leaky_relu_as_printed() -> None:
    assert edge_at("leaky_relu", 0.0)[0].sigma_w == printed("1.414143")
    assert edge_at(activation("leaky_relu", negative_slope=0.2), 0.0)[0].sigma_w == printed("1.386750")


@pytest.mark.parametrize(("q", "text"), [(1e-10, "-1.92"), (1.0, "-2.14"), (100.0, "-8.7")])
def test_softplus_has_no_edge(q: float, text: str) -> None:
    act = activation("softplus")
    assert q - second_moment(act, q) / slope_moment(act, q) == printed(text)  # would-be sigma_b^2
    assert edge_of_chaos(act, q) is None


@pytest.mark.parametrize("sigma_b", [0.0, *COLUMNS])
def test_softplus_has_no_edge_at_any_bias(sigma_b: float) -> None:
    assert edge_at("softplus", sigma_b) == ()


# ---- stability -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weight", "bias", "q", "sigma_b"),
    [
        ("gelu", "1.98305826", "0.17292239", "3.5615528", "0.4158"),
        ("silu", "1.98800468", "0.55514317", "14.3201736", "0.7451"),
    ],
)
def test_half_stable_points(name: str, weight: str, bias: str, q: str, sigma_b: str) -> None:
    """Roberts, Yaida & Hanin 2022, chapter 5."""
    (point,) = half_stable_points(name)
    assert point.sigma_w**2 == printed(weight)
    assert point.sigma_b**2 == printed(bias)
    assert point.q == printed(q)
    assert point.sigma_b == printed(sigma_b)
    assert point.chi_parallel == pytest.approx(1.0, abs=1e-9)
    assert not point.stable
    field = MeanField(name, point.sigma_w, point.sigma_b)
    assert point.q == pytest.approx(min((p.q for p in field.fixed_points), key=lambda found: abs(found - point.q)), rel=1e-6)


@pytest.mark.parametrize("name", ["tanh", "erf", "elu", "selu", "softsign", "sigmoid", "relu", "softplus"])
def test_others_have_no_half_stable_point(name: str) -> None:
    assert half_stable_points(name) == ()


@pytest.mark.parametrize(
    ("name", "sigma_b", "sigma_w", "q"),
    [("gelu", 0.45, "1.40350", "4.560"), ("gelu", 0.6, "1.39863", "12.08"), ("silu", 0.8, "1.40657", "18.11")],
)
def test_points_that_gelu_and_silu_can_use(name: str, sigma_b: float, sigma_w: str, q: str) -> None:
    point = critical_initialisation(name, sigma_b)
    assert point.sigma_w == printed(sigma_w)
    assert point.q == printed(q)
    assert point.stable


@pytest.mark.parametrize("name", WITH_AN_EDGE)
def test_a_critical_initialisation_is_one_that_a_network_gets_to(name: str) -> None:
    if name == "tanhshrink":  # flat at zero, a line further out: nothing settles
        with pytest.raises(GradiometerError, match="signals run away"):
            critical_initialisation(name)
        return
    point = critical_initialisation(name)
    field = MeanField(name, point.sigma_w, point.sigma_b)
    assert point.stable
    assert field.length_limit(1.0) == pytest.approx(point.q, rel=1e-6)
    assert field.chi(point.q) == pytest.approx(1.0, rel=1e-9)
    assert point.sigma_b in (0.0, *BIASES)


@pytest.mark.parametrize(("name", "least"), [("gelu", "0.42"), ("silu", "0.75"), ("mish", "0.31")])
@pytest.mark.parametrize("sigma_b", [0.0, 0.1, 0.3])
def test_an_unstable_point_is_never_prescribed(name: str, least: str, sigma_b: float) -> None:
    assert edge_at(name, sigma_b)
    with pytest.raises(GradiometerError, match=f"{name} with sigma_b = {sigma_b:g} has critical points") as caught:
        critical_initialisation(name, sigma_b)
    assert caught.value.hint == f"Take sigma_b of at least {least}, or put normalisation between the layers."
    assert critical_initialisation(name, float(least)).stable


def test_softplus_is_told_so_in_one_sentence() -> None:
    for sigma_b in (None, 0.2):
        with pytest.raises(GradiometerError) as caught:
            critical_initialisation("softplus", sigma_b)
        assert "has no critical initialisation." in caught.value.message
        assert caught.value.hint == "Put normalisation between the layers, or skip connections."


# ---- gains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gain", "chi"),
    [
        ("tanh", "1.59254", "1.178"),
        ("erf", "1.46717", "1.226"),
        ("hardtanh", "1.39204", "1.323"),
        ("softsign", "2.33753", "1.244"),
        ("gelu", "1.53353", "1.072"),
        ("silu", "1.67653", "1.067"),
        ("elu", "1.24520", "1.036"),
        ("selu", "1.00000", "1.071575"),
        ("softplus", "1.04187", ".318"),
        ("sigmoid", "1.84623", ".153"),
    ],
)
def test_gains_that_keep_the_variance(name: str, gain: str, chi: str) -> None:
    found = unit_variance_gain(name)
    field = MeanField(name, found)
    assert found == printed(gain)
    assert field.length(1.0) == pytest.approx(1.0, rel=1e-12)
    assert field.chi(1.0) == printed(chi)
    if name in ("gelu", "silu"):
        assert field.chi_parallel(1.0) == printed("1.144" if name == "gelu" else "1.173")
        assert not field.attracts(1.0)


@pytest.mark.parametrize(
    ("name", "gain"),
    [
        ("tanh", "1.46741"),
        ("gelu", "1.48111"),
        ("silu", "1.62332"),
        ("elu", "1.22343"),
        ("selu", ".96603"),
        ("sigmoid", "4.72265"),
    ],
)
def test_gains_that_keep_the_gradient(name: str, gain: str) -> None:
    found = backward_gain(name)
    assert found == printed(gain)
    assert MeanField(name, found).chi(1.0) == pytest.approx(1.0, rel=1e-12)


# ---- laws ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WITH_AN_EDGE), st.floats(-5.0, 3.0).map(lambda t: 10.0**t))
def test_at_the_edge_chi_is_one_and_the_length_stays(name: str, q: float) -> None:
    point = edge_of_chaos(name, q)
    if point is None:
        return
    field = MeanField(name, point.sigma_w, point.sigma_b)
    assert field.chi(q) == pytest.approx(1.0, rel=1e-12)
    assert field.length(q) == pytest.approx(q, rel=1e-10)
    assert field.chi_parallel(q) == point.chi_parallel
    assert field.attracts(q) == point.stable


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["tanh", "hardtanh", "elu", "selu", "softsign", "gelu", "silu"]), st.floats(0.02, 1.5))
def test_the_two_ways_to_the_edge_meet(name: str, sigma_b: float) -> None:
    for point in edge_at(name, sigma_b):
        other = edge_of_chaos(name, point.q)
        assert other is not None
        assert (other.sigma_w, other.sigma_b) == pytest.approx((point.sigma_w, sigma_b), rel=1e-7)


def test_a_function_of_your_own() -> None:
    (own,), (named,) = edge_at(lambda x: np.tanh(x), 0.1), edge_at("tanh", 0.1)
    assert (own.sigma_w, own.q, own.chi_parallel) == pytest.approx((named.sigma_w, named.q, named.chi_parallel), rel=1e-8)


@pytest.mark.parametrize("q", [0.0, -1.0, math.nan, math.inf])
def test_q_is_a_positive_number(q: float) -> None:
    with pytest.raises(GradiometerError, match="q must be a positive number"):
        edge_of_chaos("tanh", q)


@pytest.mark.parametrize("sigma_b", [-0.1, math.nan, math.inf])
def test_sigma_b_is_a_number_of_at_least_zero(sigma_b: float) -> None:
    with pytest.raises(GradiometerError, match="sigma_b must be a number of at least 0"):
        edge_at("tanh", sigma_b)
    with pytest.raises(GradiometerError, match="sigma_b must be a number of at least 0"):
        critical_initialisation("tanh", sigma_b)


def test_a_constant_has_neither_gain_nor_edge() -> None:
    with pytest.raises(GradiometerError, match="its slope is zero"):
        backward_gain(lambda x: 0.0 * x + 1.0)
    with pytest.raises(GradiometerError, match="its value is zero"):
        unit_variance_gain(lambda x: 0.0 * x)
    assert edge_of_chaos(lambda x: 0.0 * x + 1.0, 1.0) is None
    assert edge_at(lambda x: 0.0 * x + 1.0, 0.1) == ()


def test_names_are_checked() -> None:
    for call in (edge_at, edge_of_chaos, critical_initialisation):
        with pytest.raises(GradiometerError, match="No activation is called"):
            call("no such", 0.1)


def test_a_point_is_a_value() -> None:
    assert edge_at("erf", 0.1) == edge_at("erf", 0.1)
    assert isinstance(hash(edge_at("erf", 0.1)[0]), int)
    assert isinstance(edge_at("erf", 0.1)[0], CriticalPoint)
