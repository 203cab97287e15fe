"""Mean-field theory against published values, values computed to more digits elsewhere, and laws that must hold.

Random networks are drawn in tests/test_theory_meanfield.py.

Tables are printed to five or six digits and are compared to half a unit of the last one.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradiometer.errors import GradiometerError
from gradiometer.theory import chain, finite_width, structures
from gradiometer.theory.activations import ACTIVATIONS, activation
from gradiometer.theory.criticality import (
    backward_gain,
    critical_initialisation,
    edge_at,
    edge_of_chaos,
    half_stable_points,
    unit_variance_gain,
)
from gradiometer.theory.meanfield import MeanField, pair_moment, pair_slope_moment, second_moment, slope_moment
from gradiometer.theory.quadrature import expectation, nodes, pair_expectation

SMOOTH = ["tanh", "erf", "sigmoid", "gelu", "silu", "softplus", "mish", "sin"]


def rounded(value: float) -> object:
    """A number as printed: equal within half a unit of its last digit."""
    digits = repr(value).partition(".")[2]
    return pytest.approx(value, abs=0.51 * 10.0 ** -len(digits))


# ---- activations -------------------------------------------------------------------------------------------------------


TORCH = {
    "linear": lambda x: x * 1.0,
    "erf": torch.erf,
    "sin": torch.sin,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "sigmoid_centred": lambda x: torch.sigmoid(x) - 0.5,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "logsigmoid": nn.functional.logsigmoid,
}


@pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: row.name)
def test_activations_are_those_of_torch(row) -> None:
    act = activation(row.name)
    x = torch.linspace(-9.013, 9.02, 2000, dtype=torch.float64, requires_grad=True)  # beside every kink
    y = TORCH.get(row.name, getattr(nn.functional, row.name, None))(x)
    y.sum().backward()
    assert np.allclose(act.f(x.detach().numpy()), y.detach().numpy(), rtol=1e-7, atol=1e-9)
    assert np.allclose(
        act.slope(x.detach().numpy()), x.grad.numpy(), rtol=1e-6, atol=1e-9
    )  # torch's own are rounded here and there


def test_a_function_of_your_own_gets_its_slope_and_its_kinks() -> None:
    act = activation(lambda u: np.where(u < -0.7, -0.7, np.minimum(u, 1.3)))
    assert act.kinks == pytest.approx((-0.7, 1.3), abs=1e-6)
    assert act.slope(np.array([-1.0, 0.0, 2.0])) == pytest.approx([0.0, 1.0, 0.0], abs=1e-8)
    scalar = activation(lambda u: math.tanh(u) if u > -100 else -1.0)  # takes no arrays
    assert MeanField(scalar, 1.5, 0.3).chi(1.0) == pytest.approx(MeanField("tanh", 1.5, 0.3).chi(1.0), rel=1e-8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: activation("rleu"), "No activation is called 'rleu'."),
        (lambda: activation("relu", alpha=2.0), "relu has no parameter 'alpha'."),
        (lambda: activation(lambda u: u * np.log(np.abs(u))), "at"),
        (lambda: MeanField("tanh", 0.0), "sigma_w must be a positive number"),
        (lambda: MeanField("tanh", 1.0, -1.0), "sigma_b must be"),
        (lambda: MeanField("tanh", 1.0, keep=0.0), "keep must lie in (0, 1]"),
        (lambda: MeanField("tanh", 1.0).correlation(1.5, 1.0), "A correlation lies between -1 and 1"),
        (lambda: MeanField("relu", 2.0).q_star, "The variance has no fixed point"),
        (lambda: MeanField("tanh", 1.0).layers_until(1.0), "factor must be"),
        (lambda: edge_of_chaos("tanh", -1.0), "q must be a positive number"),
        (lambda: edge_at("tanh", -0.1), "sigma_b must be"),
        (lambda: expectation(np.tanh, -1.0), "A variance must be"),
        (lambda: structures.initialisation("xavierr", 10), "No initialisation is called"),
        (lambda: structures.dropout_factors(0.0), "keep must lie"),
        (lambda: structures.delta_orthogonal((4, 8, 3, 3)), "cannot keep 8 input channels apart"),
        (lambda: structures.delta_orthogonal((8, 8, 2, 3)), "has no middle"),
        (lambda: structures.batch_norm_growth_linear(3), "no finite mean growth"),
        (lambda: chain.chain_gain("tanh", [1.0], [], 0.0), "There are 1 weights and 0 biases."),
        (lambda: finite_width.log_variance("relu", 1.0, 0), "at least one unit"),
    ],
)
def test_bad_input_is_one_clear_sentence(make, words: str) -> None:
    with pytest.raises(GradiometerError) as error:
        make()
    assert words in error.value.message
    assert "\n" not in str(error.value)


# ---- quadrature --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1e-16, 1e-6, 0.3, 1.0, 45.0, 1e4, 1e6])
def test_quadrature_is_exact_where_there_is_a_closed_form(q: float) -> None:
    z, w = nodes(q)
    assert w.sum() == pytest.approx(1.0, abs=1e-13)
    assert w @ z**2 == pytest.approx(1.0, abs=1e-12)
    erf, relu = activation("erf"), activation("relu")
    assert expectation(lambda u: erf.f(u) ** 2, q) == pytest.approx(2 / math.pi * math.asin(2 * q / (1 + 2 * q)), rel=1e-12)
    assert expectation(lambda u: erf.slope(u) ** 2, q) == pytest.approx(4 / math.pi / math.sqrt(1 + 4 * q), rel=1e-11)
    assert expectation(lambda u: relu.f(u) ** 2, q, relu.kinks) == pytest.approx(q / 2, rel=1e-12)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "erf"])
@pytest.mark.parametrize("c", [-1.0, -0.6, 0.0, 0.3, 0.9, 0.999, 1.0])
def test_pair_quadrature_is_exact_where_there_is_a_closed_form(name: str, c: float) -> None:
    act = activation(name)
    q = 1.7
    assert pair_expectation(act.f, act.f, q, q, c, act.kinks) == pytest.approx(pair_moment(act, q, c), rel=1e-9, abs=1e-12)
    if abs(c) < 1.0:
        exact = pair_slope_moment(act, q, c)
        assert pair_expectation(act.slope, act.slope, q, q, c, act.kinks) == pytest.approx(exact, rel=1e-7)


# ---- closed forms and laws ---------------------------------------------------------------------------------------------


@given(st.floats(-1.0, 1.0), st.floats(1e-3, 1e3))
def test_relu_correlation_map(c: float, q: float) -> None:
    """Cho & Saul 2009; the variance does not matter."""
    field = MeanField("relu", math.sqrt(2.0))
    expected = (math.sqrt(max(1 - c * c, 0.0)) + c * (math.pi - math.acos(c))) / math.pi
    assert field.correlation(c, q) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert field.length(q) == pytest.approx(q, rel=1e-12)
    assert field.correlation_slope(c, q) == pytest.approx(1 - math.acos(c) / math.pi, rel=1e-9, abs=1e-12)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(SMOOTH), st.floats(0.05, 20.0))
def test_two_forms_of_chi_parallel_agree_for_smooth_activations(name: str, q: float) -> None:
    field = MeanField(name, 1.3)
    step = 1e-5 * q
    assert field.chi_parallel(q) == pytest.approx((field.length(q + step) - field.length(q - step)) / (2 * step), rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["tanh", "gelu", "hardtanh", "elu", "sigmoid"]), st.floats(0.1, 8.0), st.floats(0.0, 0.98))
def test_laws_of_the_correlation_map(name: str, q: float, c: float) -> None:
    field = MeanField(name, 1.4, 0.2)
    assert field.correlation(1.0, q) == pytest.approx(1.0, abs=1e-9)  # equal inputs stay equal
    assert field.correlation(c + 0.02, q) >= field.correlation(c, q) - 1e-10
    assert field.correlation_slope(1.0, q) * field.length(q) / q == pytest.approx(field.chi(q), rel=1e-7)
    assert MeanField(name, 1.4, 0.2, keep=0.9).correlation(1.0, q) < 1.0  # two masks differ


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["tanh", "erf", "hardtanh", "softsign", "elu", "selu", "gelu", "silu"]), st.floats(0.01, 30.0))
def test_the_edge_of_chaos_is_critical(name: str, q: float) -> None:
    point = edge_of_chaos(name, q)
    if point is None:
        return
    field = MeanField(name, point.sigma_w, point.sigma_b)
    assert field.chi(q) == pytest.approx(1.0, rel=1e-9)
    assert field.length(q) == pytest.approx(q, rel=1e-9)


# ---- the table of critical points --------------------------------------------------------------------------------------

BIASES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
EDGE = {
    "tanh": ((1.12254, 0.15369, 0.782), (1.19340, 0.27330, 0.678), (1.30415, 0.51208, 0.543), (1.39558, 0.76347, 0.452),
             (1.54967, 1.31794, 0.333), (1.85559, 3.0364, 0.186)),
    "erf": ((0.99369, 0.14515, 0.775), (1.05559, 0.25321, 0.664), (1.15280, 0.46576, 0.518), (1.23367, 0.68877, 0.421),
            (1.37133, 1.18327, 0.297), (1.64875, 2.74489, 0.154)),
    "hardtanh": ((1.00885, 0.17705, 0.885), (1.02570, 0.25915, 0.761), (1.06861, 0.42329, 0.570), (1.11614, 0.60157, 0.442),
                 (1.21315, 1.01338, 0.288), (1.43969, 2.38781, 0.132)),
    "softsign": ((1.36105, 0.06863, 0.710), (1.51287, 0.15396, 0.621), (1.72963, 0.35833, 0.516), (1.89749, 0.59964, 0.449),
                 (2.16623, 1.17693, 0.363), (2.66742, 3.09832, 0.250)),
    "elu": ((1.13187, 0.18917, 0.892), (1.17615, 0.43783, 0.871), (1.22925, 1.10693, 0.860), (1.26311, 2.03454, 0.863),
            (1.30611, 4.88663, 0.881), (1.35798, 21.7776, 0.927)),
    "selu": ((0.82201, 0.14065, 0.834), (0.87191, 0.30894, 0.787), (0.93748, 0.71705, 0.743), (0.98369, 1.22197, 0.725),
             (1.04964, 2.55551, 0.720), (1.14792, 8.39909, 0.763)),
    "sigmoid": ((10.14956, 45.630, 0.060), (10.15046, 45.646, 0.060), (10.15403, 45.712, 0.060), (10.15997, 45.823, 0.060),
                (10.17886, 46.174, 0.060), (10.26499, 47.800, 0.058)),
    "gelu": ((1.85190, 0.0752, 1.064), (1.72708, 0.1835, 1.098), (1.54701, 0.5756, 1.095), (1.45047, 1.4249, 1.046),
             (1.39987, 6.4341, 0.986), (1.40594, 82.313, 0.989)),
    "silu": ((1.90501, 0.1136, 1.043), (1.82005, 0.2597, 1.072), (1.67953, 0.6895, 1.099), (1.57562, 1.3996, 1.094),
             (1.45695, 4.4281, 1.046), (1.40251, 39.3946, 0.987)),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGE)
@pytest.mark.parametrize("index", range(len(BIASES)))
def test_edge_of_chaos_table(name: str, index: int) -> None:
    sigma_w, q, chi_parallel = EDGE[name][index]
    (point,) = edge_at(name, BIASES[index])
    assert point.sigma_w == pytest.approx(sigma_w, abs=0.51e-5)
    assert point.q == rounded(q)
    assert point.chi_parallel == pytest.approx(chi_parallel, abs=0.6e-3)
    assert point.stable is (chi_parallel < 1.0)


@pytest.mark.parametrize(
    ("name", "sigma_w"),
    [("tanh", 1.0), ("erf", 0.886227), ("hardtanh", 1.0), ("softsign", 1.0), ("elu", 1.0), ("gelu", 2.0), ("silu", 2.0)],
)
def test_the_edge_without_biases(name: str, sigma_w: float) -> None:
    first = edge_at(name, 0.0)[0]
    assert first.sigma_w == rounded(sigma_w)
    assert first.q == 0.0


def test_the_edge_of_selu_without_biases_sees_both_sides_of_its_kink() -> None:
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    assert edge_at("selu", 0.0)[0].sigma_w == pytest.approx((0.5 * scale**2 * (1 + alpha**2)) ** -0.5, rel=1e-6)


def test_other_critical_points() -> None:
    (sigmoid,) = edge_at("sigmoid", 0.0)
    assert sigmoid.sigma_w == pytest.approx(10.14926371, rel=1e-8)
    assert sigmoid.q == rounded(45.6243)
    assert edge_at("sigmoid", 1.0)[0].sigma_w == pytest.approx(10.265, abs=6e-4)
    assert edge_at("sigmoid", 2.0)[0].sigma_w == pytest.approx(10.576, abs=6e-4)
    (tanh,) = edge_at("tanh", math.sqrt(0.05))
    assert tanh.sigma_w == rounded(1.327010)
    assert tanh.sigma_w**2 == pytest.approx(1.76096, abs=1e-5)
    assert tanh.q == rounded(0.570048)
    assert edge_at("relu", 0.0)[0].sigma_w == pytest.approx(math.sqrt(2.0), rel=1e-12)
    assert edge_at(activation("leaky_relu", negative_slope=0.01), 0.0)[0].sigma_w == rounded(1.414143)
    assert edge_at(activation("leaky_relu", negative_slope=0.2), 0.0)[0].sigma_w == rounded(1.386750)
    assert edge_at("linear", 0.0)[0].sigma_w == 1.0
    assert edge_at("relu", 0.1) == ()
    assert edge_at("sigmoid_centred", 0.0)[0].sigma_w == pytest.approx(4.0, rel=1e-9)


@pytest.mark.parametrize("bias", [0.0, *BIASES])
def test_softplus_has_no_edge(bias: float) -> None:
    assert edge_at("softplus", bias) == ()
    act = activation("softplus")
    for q, square in ((1.0, -2.14), (100.0, -8.7)):
        needed = q - second_moment(act, q) / slope_moment(act, q)
        assert needed == pytest.approx(square, rel=0.01)
        assert edge_of_chaos("softplus", q) is None


@pytest.mark.parametrize(
    ("name", "weight", "bias", "q"),
    [("gelu", 1.98305826, 0.17292239, 3.5615528), ("silu", 1.98800468, 0.55514317, 14.3201736)],
)
def test_half_stable_points(name: str, weight: float, bias: float, q: float) -> None:
    """Roberts, Yaida & Hanin 2022, table of critical points."""
    (point,) = half_stable_points(name)
    assert point.sigma_w**2 == pytest.approx(weight, abs=2e-8)
    assert point.sigma_b**2 == pytest.approx(bias, abs=2e-8)
    assert point.q == pytest.approx(q, rel=1e-6)


def test_a_critical_initialisation_is_never_one_that_signals_run_away_from() -> None:
    assert critical_initialisation("tanh").stable
    for name, bias, sigma_w, q in (
        ("gelu", 0.45, 1.40350, 4.560),
        ("gelu", 0.6, 1.39863, 12.08),
        ("silu", 0.8, 1.40657, 18.11),
    ):
        point = critical_initialisation(name, bias)
        assert point.sigma_w == rounded(sigma_w)
        assert point.q == pytest.approx(q, rel=1e-3)
    for name, least in (("gelu", "0.42"), ("silu", "0.75")):
        assert critical_initialisation(name).stable
        with pytest.raises(GradiometerError, match="signals run away") as error:
            critical_initialisation(name, 0.2)
        assert least in error.value.hint
    with pytest.raises(GradiometerError, match="softplus has no critical initialisation"):
        critical_initialisation("softplus")


def test_the_trap_of_gelu_and_silu() -> None:
    """chi_1 = 1 at a repelling length: from below the signal collapses, from above it explodes."""
    gelu = MeanField("gelu", 1.72708, 0.1)
    low, high = gelu.fixed_points
    assert (low.stable, high.stable) == (True, False)
    assert gelu.length_limit(0.15) == pytest.approx(0.0547, abs=1e-4)
    assert low.chi == pytest.approx(0.839, abs=1e-3)
    assert gelu.length_limit(0.5) == math.inf
    assert gelu.chi(1e8) == pytest.approx(1.49, abs=5e-3)
    silu = MeanField("silu", 1.82005, 0.1)
    assert silu.fixed_points[0].q == pytest.approx(0.0797, abs=1e-4)
    assert silu.fixed_points[0].chi == pytest.approx(0.889, abs=1e-3)
    assert silu.chi(1e8) == pytest.approx(1.66, abs=5e-3)
    assert MeanField("gelu", 1.5, 0.3).length_limit(1e-3) == math.inf
    assert MeanField("gelu", 1.5, 0.3).chi(1e8) == pytest.approx(1.125, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "gain", "chi"),
    [
        ("tanh", 1.59254, 1.178), ("erf", 1.46717, 1.226), ("hardtanh", 1.39204, 1.323), ("softsign", 2.33753, 1.244),
        ("gelu", 1.53353, 1.072), ("silu", 1.67653, 1.067), ("elu", 1.24520, 1.036), ("selu", 1.0, 1.071575),
        ("softplus", 1.04187, 0.318), ("sigmoid", 1.84623, 0.153),
    ],
)  # fmt: skip
def test_unit_variance_gains_do_not_keep_the_gradient(name: str, gain: float, chi: float) -> None:
    found = unit_variance_gain(name)
    assert found == pytest.approx(gain, abs=0.51e-5)
    assert MeanField(name, found).chi(1.0) == pytest.approx(chi, abs=0.6e-3)


@pytest.mark.parametrize(
    ("name", "gain"),
    [("tanh", 1.46741), ("gelu", 1.48111), ("silu", 1.62332), ("elu", 1.22343), ("selu", 0.96603), ("sigmoid", 4.72265)],
)
def test_backward_gains(name: str, gain: float) -> None:
    assert backward_gain(name) == rounded(gain)


def test_unit_variance_is_repelling_for_gelu_and_silu() -> None:
    assert MeanField("gelu", unit_variance_gain("gelu")).chi_parallel(1.0) == pytest.approx(1.144, abs=6e-4)
    assert MeanField("silu", unit_variance_gain("silu")).chi_parallel(1.0) == pytest.approx(1.173, abs=6e-4)


# ---- gains by initialisation -------------------------------------------------------------------------------------------

DEFAULT, XAVIER, HE = 3**-0.5, 1.0, math.sqrt(2.0)


@pytest.mark.parametrize(
    ("name", "sigma_w", "chi", "gain", "layers"),
    [
        ("sigmoid", DEFAULT, 0.0200078, 0.14145, 7.1),
        ("sigmoid", XAVIER, 0.0557207, 0.23605, 9.6),
        ("sigmoid", HE, 0.100977, 0.31777, 12.1),
        ("tanh", DEFAULT, 0.3333, 0.57735, 25.2),
        ("tanh", HE, 1.10553, 1.05144, 275),
        ("tanh", 5 / 3, 1.20983, 1.09992, 145),
        ("relu", DEFAULT, 0.1667, 0.40825, 15.4),
        ("relu", XAVIER, 0.5, 0.70711, 39.9),
        (activation("leaky_relu", negative_slope=0.2), DEFAULT, 0.17333, 0.4163, 15.8),
        ("gelu", DEFAULT, 0.08333, 0.28868, 11.1),
        ("gelu", XAVIER, 0.25, 0.5, 19.9),
        ("silu", HE, 0.5, 0.70711, 39.9),
        ("elu", DEFAULT, 0.3333, 0.57735, 25.2),
        ("selu", DEFAULT, 0.69915, 0.83615, 77),
        ("selu", XAVIER, 1.071575, 1.03517, 400),
        ("softplus", DEFAULT, 0.08690, 0.29479, 11.3),
        ("softplus", XAVIER, 0.28872, 0.53733, 22.2),
        ("hardtanh", DEFAULT, 0.3333, 0.57735, 25.2),
        ("hardtanh", HE, 1.34074, 1.15790, 94),
    ],
)
def test_gain_per_layer_by_initialisation(name, sigma_w: float, chi: float, gain: float, layers: float) -> None:
    field = MeanField(name, sigma_w)
    assert field.chi(field.q_star) == pytest.approx(chi, rel=3e-4 if chi in (0.3333, 0.1667) else 1e-5 / chi + 1e-5)
    assert field.gain == pytest.approx(gain, abs=1.1e-5 if gain != 0.4163 else 6e-5)
    factor = 1e-6 if gain < 1 else 1e6
    assert field.layers_until(factor) == pytest.approx(layers, abs=0.6 if layers > 50 else 0.06)
    assert field.layers_until(1.0 / factor) == math.inf
    # 27.63 / |ln chi| in short
    assert field.layers_until(factor) == pytest.approx(27.631 / abs(math.log(field.chi(field.q_star))), rel=1e-4)


def test_gains_that_are_one_or_have_no_limit() -> None:
    assert MeanField("relu", HE).gain == pytest.approx(1.0, rel=1e-12)
    assert MeanField(activation("leaky_relu", negative_slope=0.2), HE).chi(1.0) == pytest.approx(1.0198**2, rel=1e-4)
    nielsen = MeanField("sigmoid", 1.0, 1.0)
    assert nielsen.chi(nielsen.q_star) == rounded(0.0419597)
    assert nielsen.gain == rounded(0.204841)
    assert nielsen.layers_until(1e-6) == pytest.approx(8.7, abs=0.06)
    half = MeanField("selu", 0.75)
    assert half.q_star == pytest.approx(0.0230, abs=1e-4)
    assert half.chi(half.q_star) == pytest.approx(1.00367, abs=1e-5)
    for name in ("selu", "elu", "softplus"):  # lengths grow without bound, slower and slower
        with pytest.raises(GradiometerError, match="no fixed point"):
            _ = MeanField(name, HE).q_star


@pytest.mark.parametrize(
    ("name", "sigma_w", "layers"),
    [
        ("gelu", DEFAULT, 12), ("gelu", XAVIER, 21), ("gelu", HE, 46), ("silu", DEFAULT, 12), ("silu", XAVIER, 21),
        ("silu", HE, 43), ("selu", DEFAULT, 70), ("softplus", HE, 174),
    ],
)  # fmt: skip
def test_layers_from_a_variance_of_one(name: str, sigma_w: float, layers: int) -> None:
    assert MeanField(name, sigma_w).layers_until(1e-6, 1.0) == layers


def test_elu_explodes_slowly_with_he() -> None:
    assert MeanField("elu", HE).layers_until(1e6, 1.0) == 1055


@pytest.mark.parametrize(("sigma_w", "chi"), [(8, 0.7948), (12, 1.1756), (15, 1.4592), (20, 1.9307)])
def test_large_sigmoid_weights(sigma_w: float, chi: float) -> None:
    field = MeanField("sigmoid", sigma_w)
    assert field.chi(field.q_star) == rounded(chi)


def test_sigmoid_asymptotes() -> None:
    large = MeanField("sigmoid", 400.0)
    assert large.chi(large.q_star) == pytest.approx(400.0 / (6 * math.sqrt(math.pi)), rel=1e-2)
    small = MeanField("sigmoid", 0.01)
    assert small.chi(small.q_star) == pytest.approx(0.01**2 / 16, rel=1e-3)


@pytest.mark.parametrize(("fan_in", "std"), [(30, 1.853), (64, 1.269), (100, 1.015), (256, 0.634), (784, 0.362), (1024, 0.317)])
def test_weights_at_which_a_sigmoid_network_explodes(fan_in: int, std: float) -> None:
    assert edge_at("sigmoid", 0.0)[0].sigma_w / math.sqrt(fan_in) == pytest.approx(std, abs=6e-4)


# ---- depth scales ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma_w", "chi", "c", "xi"),
    [(1.0, 0.75903, 1.0, 3.63), (1.3, 0.98451, 1.0, 64.1), (1.5, 1.09234, 0.567, 15.1), (1.7, 1.19298, 0.324, 9.46),
     (2.0, 1.34240, 0.165, 6.98), (2.5, 1.59475, 0.072, 5.31)],
)  # fmt: skip
def test_depth_scales_of_tanh(sigma_w: float, chi: float, c: float, xi: float) -> None:
    """The slice sigma_b^2 = 0.05 of Schoenholz et al. 2017."""
    field = MeanField("tanh", sigma_w, math.sqrt(0.05))
    assert field.chi(field.q_star) == pytest.approx(chi, abs=0.6e-5)
    assert field.c_star == pytest.approx(c, abs=6e-4)
    assert field.xi_correlation == pytest.approx(xi, abs=0.06 if xi > 10 else 0.006)
    if sigma_w == 1.0:
        assert field.xi_length == pytest.approx(1.75, abs=6e-3)
    if chi < 1.0:
        assert field.xi_correlation == pytest.approx(field.xi_gradient, rel=1e-6)
        assert field.trainable_depth() == pytest.approx(min(6 * field.xi_correlation, field.layers_until(1e-6)))
    else:
        assert field.xi_gradient < 0.0


def test_chaotic_tanh_without_biases() -> None:
    field = MeanField("tanh", 2.0)
    assert field.chi(field.q_star) == rounded(1.36267)
    assert field.c_star == 0.0
    assert field.xi_correlation == pytest.approx(7.98, abs=6e-3)


def test_critical_tanh_decays_like_one_over_depth() -> None:
    field = MeanField("tanh", 1.0)
    q, found = 1.0, {}
    for layer in range(1, 101):
        q = field.length(q)
        found[layer] = q
    assert found[10] == rounded(0.052200)
    assert found[50] == rounded(0.0102193)
    assert found[100] == rounded(0.00506902)
    assert field.layers_until(1e-6, 1.0) > 1000  # it does not vanish exponentially


def test_relu_forgets_its_input_slowly() -> None:
    field = MeanField("relu", HE)
    c, ratios = 0.0, {}
    for layer in range(1, 1001):
        c = field.correlation(c, 1.0)
        ratios[layer] = (1 - c) / (9 * math.pi**2 / (2 * layer**2))
    for layer, ratio in ((10, 0.29), (30, 0.57), (100, 0.81), (300, 0.92), (1000, 0.97)):
        assert ratios[layer] == pytest.approx(ratio, abs=6e-3)


def test_dropout_leaves_no_edge() -> None:
    field = MeanField("tanh", edge_at("tanh", 0.2)[0].sigma_w, 0.2, keep=0.9)
    assert field.c_star < 0.99
    assert field.xi_correlation < 50
    assert structures.dropout_factors(1.0) == (1.0, 1.0)


# ---- the scalar chain --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("w", "width"),
    [(4, 0.0), (4.5, 0.3081), (5, 0.3850), (6, 0.4390), (8, 0.4407), (10, 0.4127), (20, 0.2887), (50, 0.1548), (100, 0.0917)],
)
def test_where_a_sigmoid_unit_keeps_the_gradient(w: float, width: float) -> None:
    """Nielsen 2015, chapter 5."""
    assert chain.keeping_width(w) == pytest.approx(width, abs=0.51e-4)
    found = chain.keeping_interval(w, -2.0)
    assert found is not None
    for a in found:
        assert chain.gain("sigmoid", w, a, -2.0) == pytest.approx(1.0, rel=1e-9)


def test_the_widest_interval_of_the_chain() -> None:
    weights = np.linspace(6.5, 7.3, 4001)
    widths = [chain.keeping_width(float(w)) for w in weights]
    assert weights[int(np.argmax(widths))] == pytest.approx(chain.WIDEST_WEIGHT, abs=2e-4)
    assert max(widths) == pytest.approx(chain.WIDEST, abs=0.51e-6)
    assert chain.keeping_interval(3.99) is None
    assert chain.gain("sigmoid", 12.0, 0.0) == pytest.approx(3.0)  # at most |w| / 4


def test_a_chain_multiplies_its_gains() -> None:
    product, gains = chain.chain_gain("sigmoid", [3.0, -2.0, 1.0], [0.1, 0.2, -0.3], 0.4)
    x = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    y = x
    for w, b in ((3.0, 0.1), (-2.0, 0.2), (1.0, -0.3)):
        y = torch.sigmoid(w * y + b)
    y.backward()
    assert product == pytest.approx(abs(float(x.grad)), rel=1e-12)
    assert len(gains) == 3


# ---- structures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "growth"), [("relu", math.pi / (math.pi - 1)), ("tanh", 1.1778), ("linear", 1.0)])
def test_batch_norm_growth(name: str, growth: float) -> None:
    """Yang et al. 2019; tests/test_published.py measures it in networks of finite batch and width."""
    assert structures.batch_norm_growth(name) == pytest.approx(growth, rel=1e-4)
    assert structures.batch_norm_growth_linear(16) == rounded(1.077)


@given(st.floats(0.1, 3.0), st.integers(1, 200))
def test_a_balanced_branch_bounds_the_growth(sigma_w: float, layers: int) -> None:
    branch = structures.balanced_branch(layers)
    chi = structures.residual_chi("relu", math.sqrt(2.0), 1.0, branch)
    assert 1.0 <= chi**layers <= math.e + 1e-9
    assert structures.residual_chi("relu", sigma_w, 1.0, 0.0) == 1.0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 6), st.sampled_from([1, 3, 5]), st.floats(0.1, 3.0))
def test_delta_orthogonal_kernels_are_isometries(inputs: int, more: int, extent: int, gain: float) -> None:
    kernel = structures.delta_orthogonal((inputs + more, inputs, extent, 3), gain)
    x = torch.tensor(np.random.default_rng(0).standard_normal((2, inputs, 5, 4)))
    y = nn.functional.conv2d(x, torch.tensor(kernel), padding=(extent // 2, 1))
    assert float(y.norm()) == pytest.approx(gain * float(x.norm()), rel=1e-9)


@pytest.mark.parametrize("name", ["pytorch", "xavier", "he", "lecun", "orthogonal"])
def test_initialisations_are_those_of_torch(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(300, 600)
    if name == "xavier":
        nn.init.xavier_normal_(layer.weight)
    elif name == "he":
        nn.init.kaiming_normal_(layer.weight)
    elif name == "lecun":
        nn.init.normal_(layer.weight, std=300**-0.5)
    elif name == "orthogonal":
        nn.init.orthogonal_(layer.weight)
    sigma_w, sigma_b = structures.initialisation(name, 300, 600)
    assert float(layer.weight.detach().std()) * math.sqrt(300) == pytest.approx(sigma_w, rel=0.01)
    if name == "pytorch":
        assert float(layer.bias.detach().std()) == pytest.approx(sigma_b, rel=0.1)
        assert sigma_w**2 == pytest.approx(1 / 3)


def test_padding_takes_its_share() -> None:
    assert structures.padded_share(4, 3) == pytest.approx((1 + 2 * math.cos(math.pi / 5)) / 3, rel=1e-12)
    assert structures.padded_share(1, 3) == pytest.approx(1 / 3)
    assert structures.convolution_fan_in(16, (3, 3), 2) == 72


def test_norm_factors_by_autograd() -> None:
    torch.manual_seed(0)
    x = 3.0 * torch.randn(400, 64, dtype=torch.float64)
    x.requires_grad_(True)
    g = torch.randn(400, 64, dtype=torch.float64)
    nn.functional.layer_norm(x, (64,)).backward(g)
    factor = float(x.grad.square().sum() / g.square().sum())
    # the mean of 1 / variance over examples is 1 + 2/64 over one over the mean
    assert factor == pytest.approx(structures.layer_norm_factor(9.0, 64) * (1 + 2 / 64), rel=0.03)
    assert structures.rms_norm_factor(9.0, 64) == pytest.approx((1 - 1 / 64) / 9.0, rel=1e-4)


def test_recurrent_networks_through_time() -> None:
    rng = np.random.default_rng(0)
    n, steps, sigma_w, drive = 400, 30, 1.2, 0.3
    w = rng.standard_normal((n, n)) * sigma_w / math.sqrt(n)
    h, slopes = np.zeros(n), []
    for _ in range(40 + steps):
        u = w @ np.tanh(h) + math.sqrt(drive) * rng.standard_normal(n)
        slopes.append(1 - np.tanh(h) ** 2)
        h = u
    delta = rng.standard_normal(n)
    start = delta @ delta
    for s in reversed(slopes[-steps:]):
        delta = s * (w.T @ delta)
    measured = (delta @ delta / start) ** (1 / steps)
    assert measured == pytest.approx(structures.recurrent_chi("tanh", sigma_w, drive), rel=0.05)
    bound = structures.recurrent_bound(w, 1.0, steps)
    assert math.sqrt(delta @ delta / start) <= bound
    assert structures.spectral_radius(w) <= np.linalg.norm(w, 2) + 1e-9
    assert structures.recurrent_bound(0.9 * np.eye(3), 1.0, 50) == pytest.approx(0.9**50)
    assert structures.forget_gate_memory(1.0, 10) == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item() ** 10, rel=1e-6)


# ---- finite width ------------------------------------------------------------------------------------------------------


def test_log_variance_of_one_layer() -> None:
    """Hanin & Nica 2020: 5/n for ReLU, 2/n for a line; tests/test_published.py draws such networks."""
    assert finite_width.log_variance("relu", 1.0, 100) == pytest.approx(0.05, rel=1e-9)
    assert finite_width.log_variance("linear", 1.0, 100) == pytest.approx(0.02, rel=1e-9)
    assert finite_width.log_variance("linear", 1.0, 100, orthogonal=True) == pytest.approx(0.0, abs=1e-12)
    assert finite_width.mean_and_deviation([5 / 64] * 30) == pytest.approx((-75 / 64, 1.5309), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "bias", "orthogonal", "gaussian"),
    [("tanh", 0.05, 0.073, 1.073), ("tanh", 0.2, 0.307, 1.307), ("erf", 0.2, 0.317, 1.317), ("hardtanh", 0.05, 0.018, 1.018),
     ("hardtanh", 0.2, 0.142, 1.142), ("relu", 0.0, 1.0, 2.0)],
)  # fmt: skip
def test_spread_of_the_jacobian(name: str, bias: float, orthogonal: float, gaussian: float) -> None:
    """Pennington et al. 2017."""
    (point,) = edge_at(name, bias)
    assert finite_width.jacobian_variance(name, point.q, 1, orthogonal=True) == pytest.approx(orthogonal, abs=6e-4)
    assert finite_width.jacobian_variance(name, point.q, 10) == pytest.approx(10 * gaussian, abs=6e-3)


def test_shattered_gradients() -> None:
    found = finite_width.shattering(50)
    for layers, value in ((1, 0.5), (2, 0.3016), (4, 0.1416), (8, 0.0500), (16, 0.0133), (24, 0.0055), (50, 0.0009)):
        assert found[layers - 1] == pytest.approx(value, abs=0.6e-4)
    # unscaled branches measured at width 500: the theory is that of infinite width
    residual = finite_width.residual_shattering(24, 1.0)
    for layers, value in ((1, 0.756), (2, 0.564), (4, 0.355), (8, 0.163), (16, 0.063), (24, 0.034)):
        assert residual[layers - 1] == pytest.approx(value, abs=0.03)
    for layers in (4, 8, 16, 50):  # no shattering
        assert finite_width.residual_shattering(layers, layers**-0.5)[-1] == pytest.approx(0.65, abs=0.03)
