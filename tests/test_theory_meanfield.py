"""Mean-field maps against closed forms, a table computed independently, published curves, laws, and random networks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import ACTIVATIONS, Activation, activation
from gradiometer.theory.criticality import edge_at
from gradiometer.theory.meanfield import (
    TRAINABLE_SCALES,
    FixedPoint,
    MeanField,
    length_slope_moment,
    pair_moment,
    pair_slope_moment,
    second_moment,
    slope_moment,
)
from gradiometer.theory.quadrature import nodes

NAMES = [row.name for row in ACTIVATIONS]
SMOOTH = [row.name for row in ACTIVATIONS if not activation(row.name).kinks]
DEFAULT, XAVIER, HE = math.sqrt(1 / 3), 1.0, math.sqrt(2.0)
VARIANCES = st.floats(-4.0, 3.0).map(lambda t: 10.0**t)


def printed(text: str) -> object:
    """The number that was printed: equal to it within half a unit of its last digit."""
    digits = len(text.partition(".")[2])
    return pytest.approx(float(text), rel=0.0, abs=0.5001 * 10.0**-digits)


# ---- closed forms ----------------------------------------------------------------------------------------------------

CLOSED = ["linear", "relu", "leaky_relu", "erf"]


def hidden(name: str) -> Activation:
    """The same function under a name that no closed form knows."""
    act = activation(name, negative_slope=0.3) if name == "leaky_relu" else activation(name)
    return Activation("hidden", act.f, act.slope, act.kinks)


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("q", [1e-6, 0.3, 7.0, 1e4])
def test_closed_forms_are_what_quadrature_gives(name: str, q: float) -> None:
    act = activation(name, negative_slope=0.3) if name == "leaky_relu" else activation(name)
    other = hidden(name)
    for moment in (second_moment, slope_moment, length_slope_moment):
        assert moment(act, q) == pytest.approx(moment(other, q), rel=1e-11)
    for c in (-1.0, -0.6, 0.0, 0.3, 0.95, 1.0):
        assert pair_moment(act, q, c) == pytest.approx(pair_moment(other, q, c), rel=1e-10, abs=1e-13 * second_moment(act, q))
        assert pair_slope_moment(act, q, c) == pytest.approx(pair_slope_moment(other, q, c), rel=1e-9, abs=1e-12)


def test_closed_forms_go_by_the_function_and_not_by_its_name() -> None:
    def relu(x: np.ndarray) -> np.ndarray:
        return np.tanh(x)

    assert MeanField(relu, 1.5).length(1.0) == pytest.approx(MeanField("tanh", 1.5).length(1.0), rel=1e-12)


@given(st.floats(-1.0, 1.0), VARIANCES)
def test_relu_at_its_critical_scale(c: float, q: float) -> None:
    """c' = [sqrt(1 - c^2) + c (pi - arccos c)] / pi, of slope 1 - arccos(c) / pi."""
    field = MeanField("relu", HE)
    assert field.correlation(c, q) == pytest.approx((math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi, rel=1e-6)
    assert field.correlation_slope(c, q) == pytest.approx(1.0 - math.acos(c) / math.pi, rel=1e-6, abs=1e-12)
    assert field.length(q) == pytest.approx(q, rel=1e-12)
    assert field.length_limit(q) == q
    assert field.fixed_points == ()


def test_relu_correlations_converge_like_one_over_depth_squared() -> None:
    field, c, ratios = MeanField("relu", HE), 0.0, dict[int, float]()
    for layer in range(1, 1001):
        c = field.correlation(c, 1.0)
        ratios[layer] = (1.0 - c) / (4.5 * math.pi**2 / layer**2)
    for layer, text in ((10, ".29"), (30, ".57"), (100, ".81"), (300, ".92"), (1000, ".97")):
        assert ratios[layer] == printed(text)


def test_tanh_lengths_die_like_one_over_depth() -> None:
    field, q, lengths = MeanField("tanh", 1.0), 1.0, dict[int, float]()
    for layer in range(1, 101):
        q = field.length(q)
        lengths[layer] = q
    assert lengths[10] == pytest.approx(0.05220008278702869, rel=1e-10)
    for layer, text in ((10, ".052200"), (50, ".0102193"), (100, ".00506902")):
        assert lengths[layer] == printed(text)
    assert field.layers_until(1e-6) == math.inf
    assert field.layers_until(1e-6, 1.0) == math.inf  # 10^12 layers would do it
    assert field.layers_until(0.1, 1.0) < 1000.0


@pytest.mark.parametrize(("chi", "r"), [(0.3, 1e-6), (0.9, 1e-6), (0.5, 1e-3)])
def test_layers_until_at_the_fixed_point(chi: float, r: float) -> None:
    field = MeanField("linear", math.sqrt(chi))
    assert field.layers_until(r) == pytest.approx(math.log(r) / (0.5 * math.log(chi)), rel=1e-12)
    assert field.layers_until(r, 1.0) == math.ceil(field.layers_until(r))
    assert field.layers_until(1.0 / r) == field.layers_until(1.0 / r, 1.0) == math.inf
    assert MeanField("linear", math.sqrt(0.3)).layers_until(1e-6) == pytest.approx(27.63 / abs(math.log(0.3)), rel=1e-3)


# ---- gain per layer by initialisation --------------------------------------------------------------------------------

LEAKY = activation("leaky_relu", negative_slope=0.2)
GAINS = [  # activation, sigma_w, chi, gain, layers until the norm is 10^-6 or 10^6
    ("sigmoid", DEFAULT, ".0200078", ".14145", "7.1"),
    ("sigmoid", XAVIER, ".0557207", ".23605", "9.6"),
    ("sigmoid", HE, ".100977", ".31777", "12.1"),
    ("tanh", DEFAULT, ".3333", ".57735", "25.2"),
    ("tanh", XAVIER, "1.00000", "1.00000", None),
    ("tanh", HE, "1.10553", "1.05144", "275"),
    ("tanh", 5 / 3, "1.20983", "1.09992", "145"),
    ("relu", DEFAULT, ".1667", ".40825", "15.4"),
    ("relu", XAVIER, ".5", ".70711", "39.9"),
    ("relu", HE, "1.00000", "1.00000", None),
    (LEAKY, DEFAULT, ".1733", ".4163", None),
    ("gelu", DEFAULT, ".08333", ".28868", "11.1"),
    ("gelu", XAVIER, ".25", ".5", "19.9"),
    ("gelu", HE, ".5", ".70711", "39.9"),
    ("silu", DEFAULT, ".08333", ".28868", "11.1"),
    ("silu", XAVIER, ".25", ".5", "19.9"),
    ("silu", HE, ".5", ".70711", "39.9"),
    ("elu", DEFAULT, ".3333", ".57735", "25.2"),
    ("elu", XAVIER, "1.00000", "1.00000", None),
    ("selu", DEFAULT, ".69915", ".83615", "77"),
    ("selu", XAVIER, "1.071575", "1.03517", "400"),
    ("softplus", DEFAULT, ".08690", ".29479", "11.3"),
    ("softplus", XAVIER, ".28872", ".53733", "22.2"),
    ("hardtanh", DEFAULT, ".3333", ".57735", "25.2"),
    ("hardtanh", XAVIER, "1.00000", "1.00000", None),
    ("hardtanh", HE, "1.34074", "1.15790", "94"),
]


@pytest.mark.parametrize(("which", "sigma_w", "chi", "gain", "layers"), GAINS)
def test_gain_per_layer(which: str | Activation, sigma_w: float, chi: str, gain: str, layers: str | None) -> None:
    field = MeanField(which, sigma_w)
    assert field.chi(field.q_star) == printed(chi)
    assert field.gain == printed(gain)
    if layers is not None:
        assert field.layers_until(1e-6 if field.gain < 1.0 else 1e6) == printed(layers)


@pytest.mark.parametrize(
    ("name", "sigma_w", "factor", "layers"),
    [
        ("gelu", DEFAULT, 1e-6, 12),
        ("gelu", XAVIER, 1e-6, 21),
        ("gelu", HE, 1e-6, 46),
        ("silu", DEFAULT, 1e-6, 12),
        ("silu", XAVIER, 1e-6, 21),
        ("silu", HE, 1e-6, 43),
        ("selu", DEFAULT, 1e-6, 70),
        ("selu", HE, 1e6, 211),
        ("softplus", HE, 1e-6, 174),
        ("elu", HE, 1e6, 1055),
    ],
)
def test_layers_from_a_variance_of_one(name: str, sigma_w: float, factor: float, layers: int) -> None:
    field = MeanField(name, sigma_w)
    assert field.layers_until(factor, 1.0) == layers
    q, total = 1.0, 0.0
    for _ in range(layers):
        total, q = total + math.log(field.chi(q)), field.length(q)
    assert abs(total) >= 2.0 * abs(math.log(factor)) > abs(total) - abs(math.log(field.chi(q))) - 1e-2


def test_leaky_relu_with_he() -> None:
    field = MeanField(LEAKY, HE)
    assert math.sqrt(field.chi(1.0)) == printed("1.0198")
    assert field.length_limit(1.0) == math.inf


def test_the_sigmoid_of_nielsen() -> None:
    """Weights N(0, 1/n) and biases N(0, 1), Nielsen 2015."""
    field = MeanField("sigmoid", 1.0, 1.0)
    assert field.chi(field.q_star) == printed(".0419597")
    assert field.gain == printed(".204841")
    assert field.layers_until(1e-6) == printed("8.7")


def test_selu_with_the_gain_of_torch() -> None:
    field = MeanField("selu", 0.75)
    assert field.q_star == printed(".0230")
    assert field.chi(field.q_star) == printed("1.00367")


@pytest.mark.parametrize(("name", "after", "chi"), [("elu", 4825.0, "1.0057"), ("softplus", 587.0, ".967")])
def test_he_makes_elu_and_softplus_grow_without_end(name: str, after: float, chi: str) -> None:
    """Slowly: after 5000 layers one is here."""
    field = MeanField(name, HE)
    assert field.length_limit(1.0) == math.inf
    assert all(not p.stable for p in field.fixed_points)
    assert field.length(after) > after
    assert field.chi(after) == printed(chi)
    assert field.chi(math.inf) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(GradiometerError, match=r"The variance has no fixed point for .*It grows without bound"):
        _ = field.q_star


def test_pytorch_default_is_a_third() -> None:
    """Uniform on +-1/sqrt(fan_in)."""
    fan_in = 100
    assert fan_in * np.random.default_rng(0).uniform(-1, 1, 200_000).var() / fan_in == pytest.approx(DEFAULT**2, rel=0.01)


# ---- sigmoid with large weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma_w", "chi"), [(8.0, ".7948"), (12.0, "1.1756"), (15.0, "1.4592"), (20.0, "1.9307")])
def test_large_sigmoid_weights(sigma_w: float, chi: str) -> None:
    field = MeanField("sigmoid", sigma_w)
    assert field.chi(field.q_star) == printed(chi)
    assert (field.c_star == 1.0) == (sigma_w < 10.14926371)


def test_sigmoid_explodes_from_the_edge_on() -> None:
    assert MeanField("sigmoid", 10.149).gain < 1.0 < MeanField("sigmoid", 10.150).gain


def test_sigmoid_asymptotes() -> None:
    small, large = MeanField("sigmoid", 0.01), MeanField("sigmoid", 2000.0)
    assert small.chi(small.q_star) == pytest.approx(0.01**2 / 16.0, rel=1e-4)
    assert large.chi(large.q_star) == pytest.approx(2000.0 / (6.0 * math.sqrt(math.pi)), rel=1e-3)
    assert 1.0 / (6.0 * math.sqrt(math.pi)) == printed(".094")


# ---- depth scales ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma_w", "chi", "c", "xi"),
    [
        (1.0, ".75903", "1", "3.63"),
        (1.3, ".98451", "1", "64.1"),
        (1.5, "1.09234", ".567", "15.1"),
        (1.7, "1.19298", ".324", "9.46"),
        (2.0, "1.34240", ".165", "6.98"),
        (2.5, "1.59475", ".072", "5.31"),
    ],
)
def test_depth_scales_of_tanh(sigma_w: float, chi: str, c: str, xi: str) -> None:
    """The slice sigma_b^2 = 0.05 of Schoenholz et al. 2017."""
    field = MeanField("tanh", sigma_w, math.sqrt(0.05))
    assert field.chi(field.q_star) == printed(chi)
    assert field.c_star == printed(c)
    assert field.correlation(field.c_star) == pytest.approx(field.c_star, abs=1e-10)
    assert field.correlation_slope(field.c_star) < 1.0
    assert field.xi_correlation == printed(xi)
    assert field.xi_gradient == pytest.approx(-1.0 / math.log(field.chi(field.q_star)), rel=1e-12)
    assert (field.xi_gradient > 0.0) == (sigma_w < 1.4)
    gone = 2.0 * math.log(1e-6) / math.log(field.chi(field.q_star)) if field.gain < 1.0 else math.inf
    assert field.trainable_depth() == pytest.approx(min(TRAINABLE_SCALES * field.xi_correlation, gone), rel=1e-12)
    if sigma_w == 1.0:
        assert field.xi_length == printed("1.75")
    if sigma_w < 1.4:
        assert field.xi_correlation == pytest.approx(field.xi_gradient, rel=1e-9)


def test_chaos_without_biases() -> None:
    field = MeanField("tanh", 2.0)
    assert field.chi(field.q_star) == printed("1.36267")
    assert field.c_star == 0.0
    assert field.xi_correlation == printed("7.98")


def test_a_depth_scale_is_how_fast_it_settles() -> None:
    field = MeanField("tanh", 1.7, math.sqrt(0.05))
    q, c = field.q_star, field.c_star
    near = [c + 1e-3]
    for _ in range(10):
        near.append(field.correlation(near[-1], q))
    assert (near[10] - c) / (near[0] - c) == pytest.approx(math.exp(-10.0 / field.xi_correlation), rel=1e-2)
    lengths = [q * 1.001]
    for _ in range(5):
        lengths.append(field.length(lengths[-1]))
    assert (lengths[5] - q) / (lengths[0] - q) == pytest.approx(math.exp(-5.0 / field.xi_length), rel=1e-2)


def test_the_gradient_may_be_gone_before_correlations_are() -> None:
    field = MeanField("tanh", 0.9)  # from q0 = 9 the first layers saturate
    assert field.trainable_depth() == pytest.approx(6.0 * field.xi_correlation)
    steep = MeanField("sigmoid", 0.05, 3.0)
    assert steep.trainable_depth(9.0) == min(6.0 * steep.xi_correlation, steep.layers_until(1e-6, 9.0))
    assert field.layers_until(1e-6, 9.0) < field.layers_until(1e-6)


# ---- fixed points ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sigma_w", "sigma_b", "low", "chi", "beyond"),
    [("gelu", edge_at("gelu", 0.1)[0].sigma_w, 0.1, ".0547", ".839", "1.49"), ("silu", 1.82, 0.1, ".0797", ".889", "1.66")],
)
def test_the_trap_of_gelu_and_silu(name: str, sigma_w: float, sigma_b: float, low: str, chi: str, beyond: str) -> None:
    """chi = 1 at a fixed point that repels: signals shrink from below it, and grow without end from above."""
    field = MeanField(name, sigma_w, sigma_b)
    stable, unstable = field.fixed_points
    assert (stable.stable, unstable.stable) == (True, False)
    assert stable.q == printed(low)
    assert stable.chi == printed(chi)
    assert unstable.chi == pytest.approx(1.0, abs=1e-4)
    assert unstable.chi_parallel > 1.0
    assert field.length_limit(0.15) == stable.q
    assert field.length_limit(0.5) == math.inf
    assert field.chi(math.inf) == printed(beyond)


def test_gelu_without_any_fixed_point() -> None:
    field = MeanField("gelu", 1.5, 0.3)
    assert field.fixed_points == ()
    assert field.length_limit(1e-9) == field.length_limit(1.0) == math.inf
    assert field.chi(math.inf) == printed("1.125")


@pytest.mark.parametrize(
    ("name", "weight", "bias", "q"),
    [
        ("gelu", 1.98305825743754, 0.17292239075606, 3.5615528),
        ("silu", 1.98800467826949, 0.55514317072153, 14.3201736),
    ],
)
def test_a_fixed_point_that_is_only_touched(name: str, weight: float, bias: float, q: float) -> None:
    """Half-stable points: the length map touches the diagonal without crossing it."""
    field = MeanField(name, math.sqrt(weight), math.sqrt(bias))
    (touched,) = [p for p in field.fixed_points if abs(p.q - q) < 1e-3 * q]
    assert touched.q == pytest.approx(q, rel=1e-5)
    assert touched.chi_parallel == pytest.approx(1.0, abs=1e-9)
    assert touched.chi == pytest.approx(1.0, abs=1e-6)
    assert not touched.stable
    (other,) = [p for p in field.fixed_points if p is not touched]
    assert other.stable
    sides = [field.length(q * x) - q * x for x in (0.995, 1.005)]
    assert sides[0] * sides[1] > 0.0
    assert field.length_limit(50.0) == (touched.q if name == "gelu" else other.q)


def test_plain_iteration_does_not_get_to_a_half_stable_point() -> None:
    """From below it creeps, and towards another one."""
    field, q = MeanField("gelu", math.sqrt(1.98305826), math.sqrt(0.17292239)), 1.0
    for _ in range(3000):
        q = field.length(q)
    assert q == pytest.approx(2.754425, abs=1e-5)
    assert field.length_limit(1.0) == pytest.approx(3.035013, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(NAMES), st.floats(0.3, 4.0), st.floats(0.0, 1.0), st.floats(-3.0, 3.0).map(lambda t: 10.0**t))
def test_where_a_length_goes(name: str, sigma_w: float, sigma_b: float, q0: float) -> None:
    """Following the map layer by layer never leads away from the limit."""
    field = MeanField(name, sigma_w, sigma_b)
    limit = field.length_limit(q0)
    for p in field.fixed_points:
        assert isinstance(p, FixedPoint)
        assert field.length(p.q) == pytest.approx(p.q, rel=1e-7, abs=1e-30)
        assert field.length_limit(p.q) == pytest.approx(p.q, rel=1e-9)
    q, logs = q0, [math.log(q0)]
    for _ in range(30):
        q = field.length(q)
        logs.append(math.log(max(q, 1e-300)))
    if limit == 0.0:
        assert logs[-1] <= logs[0]
    elif limit == math.inf:
        assert logs[-1] >= logs[0]
    else:
        assert abs(logs[-1] - math.log(limit)) <= abs(logs[0] - math.log(limit)) + 1e-9
        assert any(limit == pytest.approx(p.q, rel=1e-9) for p in field.fixed_points) or limit == q0


def test_zero_is_a_fixed_point_where_nothing_is_added() -> None:
    assert MeanField("tanh", 0.9).fixed_points == (FixedPoint(0.0, pytest.approx(0.81), pytest.approx(0.81), True),)
    zero, other = MeanField("tanh", 1.2).fixed_points
    assert (zero.q, zero.stable, other.stable) == (0.0, False, True)
    assert MeanField("tanh", 1.0).fixed_points[0].stable  # marginal, and attracting
    assert not MeanField("gelu", 2.0).fixed_points[0].stable  # marginal, and repelling
    assert all(p.q > 0.0 for p in MeanField("tanh", 1.0, 0.1).fixed_points + MeanField("sigmoid", 1.0).fixed_points)
    assert MeanField("tanh", 0.9).length_limit(0.0) == 0.0
    assert MeanField("linear", 0.5).length_limit(3.0) == 0.0


@pytest.mark.parametrize("sigma_b", [1e-9, 1e-5, 1e3, 1e6])
def test_fixed_points_far_out(sigma_b: float) -> None:
    field = MeanField("hardtanh", 0.5, sigma_b)
    (point,) = field.fixed_points
    assert field.length(point.q) == pytest.approx(point.q, rel=1e-9)
    assert field.length_limit(1.0) == point.q


# ---- residual layers and dropout -------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(["tanh", "relu", "gelu"]), st.floats(0.05, 2.0), VARIANCES, st.floats(0.0, 1.0))
def test_a_residual_layer(name: str, s: float, q: float, c: float) -> None:
    plain, residual = MeanField(name, 1.3, 0.2), MeanField(name, 1.3, 0.2, branch=s)
    assert residual.length(q) == pytest.approx(q + s**2 * plain.length(q), rel=1e-12)
    assert residual.chi(q) == pytest.approx(1.0 + s**2 * plain.chi(q), rel=1e-12)
    assert residual.chi_parallel(q) == pytest.approx(1.0 + s**2 * plain.chi_parallel(q), rel=1e-12)
    both = (c * q + s**2 * plain.length(q) * plain.correlation(c, q)) / (q + s**2 * plain.length(q))
    assert residual.correlation(c, q) == pytest.approx(both, rel=1e-9, abs=1e-12)
    assert residual.length_limit(q) == math.inf


@pytest.mark.parametrize("layers", [10, 100])
def test_a_branch_of_one_over_root_depth_bounds_the_growth(layers: int) -> None:
    field = MeanField("relu", HE, branch=layers**-0.5)
    assert field.chi(1.0) ** layers == pytest.approx((1.0 + 1.0 / layers) ** layers, rel=1e-12)
    assert field.chi(1.0) ** layers < math.e
    assert field.layers_until(math.sqrt(math.e), 1.0) == layers + 1


def test_no_branch_is_the_identity() -> None:
    field = MeanField("tanh", 1.5, 0.1, branch=0.0)
    assert (field.length(0.7), field.chi(0.7), field.correlation(0.3, 0.7)) == pytest.approx((0.7, 1.0, 0.3), rel=1e-12)
    assert field.fixed_points == ()
    assert field.length_limit(0.7) == 0.7
    assert field.gain == 1.0


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["tanh", "relu", "gelu", "sigmoid"]), st.floats(0.3, 0.99), VARIANCES)
def test_dropout(name: str, keep: float, q: float) -> None:
    plain, dropped = MeanField(name, 1.3), MeanField(name, 1.3, keep=keep)
    assert dropped.length(q) == pytest.approx(plain.length(q) / keep, rel=1e-12)
    assert dropped.chi(q) == pytest.approx(plain.chi(q) / keep, rel=1e-12)
    assert dropped.correlation(1.0, q) == pytest.approx(keep, rel=1e-7)  # two masks of one input


def test_dropout_leaves_no_edge_of_chaos() -> None:
    for sigma_w in (1.0, 1.3, 1.5, 2.0):
        field = MeanField("tanh", sigma_w, 0.2, keep=0.95)
        assert 0.0 < field.c_star < 1.0
        assert field.correlation(field.c_star) == pytest.approx(field.c_star, abs=1e-10)
        assert 0.0 < field.xi_correlation < 30.0
    (point,) = edge_at("tanh", 0.2)
    assert MeanField("tanh", point.sigma_w, 0.2).xi_correlation == math.inf


# ---- laws ------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(["relu", "leaky_relu", "linear"]), VARIANCES, st.floats(1e-3, 1e3), st.floats(0.3, 3.0))
def test_straight_lines_are_homogeneous(name: str, q: float, factor: float, sigma_w: float) -> None:
    field = MeanField(name, sigma_w)
    assert field.length(factor * q) == pytest.approx(factor * field.length(q), rel=1e-12)
    assert field.chi(factor * q) == pytest.approx(field.chi(q), rel=1e-12)
    assert field.chi_parallel(q) == pytest.approx(field.length(q) / q, rel=1e-12)
    assert field.correlation(0.3, factor * q) == pytest.approx(field.correlation(0.3, q), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), VARIANCES, st.floats(0.0, 1.0))
def test_one_is_a_fixed_point_of_the_correlation_map_and_its_slope_there_is_chi(name: str, q: float, sigma_b: float) -> None:
    field = MeanField(name, 1.4, sigma_b)
    assert field.correlation(1.0, q) == pytest.approx(1.0, rel=1e-10)
    assert field.correlation_slope(1.0, q) == pytest.approx(field.chi(q) * q / field.length(q), rel=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), VARIANCES, st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3))
def test_the_correlation_map_is_monotone_and_convex_for_positive_correlations(name: str, q: float, cs: list[float]) -> None:
    field = MeanField(name, 1.4, 0.2)
    a, b, c = sorted(cs)
    fa, fb, fc = (field.correlation(x, q) for x in (a, b, c))
    assert fa <= fb + 1e-12 <= fc + 2e-12
    assert (fb - fa) * (c - b) <= (fc - fb) * (b - a) + 1e-11
    assert field.correlation_slope(b, q) >= 0.0


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SMOOTH), st.floats(-2.0, 1.5).map(lambda t: 10.0**t), st.floats(0.5, 3.0))
def test_two_forms_of_chi_parallel(name: str, q: float, sigma_w: float) -> None:
    """sigma_w^2 E phi phi' z / sqrt(q) is sigma_w^2 (E phi'^2 + E phi phi'') by Stein's lemma."""
    field, act, h = MeanField(name, sigma_w), activation(name), 1e-4
    z, w = nodes(q, act.kinks)
    u = math.sqrt(q) * z
    curvature = (8.0 * (act.slope(u + h) - act.slope(u - h)) - act.slope(u + 2 * h) + act.slope(u - 2 * h)) / (12.0 * h)
    second = sigma_w**2 * float(w @ (act.slope(u) ** 2 + act.f(u) * curvature))
    assert field.chi_parallel(q) == pytest.approx(second, rel=1e-8, abs=1e-10)  # e^-2q for a sine


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.floats(-2.0, 1.5).map(lambda t: 10.0**t))
def test_chi_parallel_is_the_slope_of_the_length_map(name: str, q: float) -> None:
    """With kinks too."""
    field, h = MeanField(name, 1.3, 0.1), 1e-3 * q
    slope = (8.0 * (field.length(q + h) - field.length(q - h)) - field.length(q + 2 * h) + field.length(q - 2 * h)) / (12.0 * h)
    assert field.chi_parallel(q) == pytest.approx(slope, rel=1e-8, abs=1e-10)


def test_a_function_of_your_own_is_as_good_as_a_name() -> None:
    own, named = (
        MeanField(lambda x: np.maximum(x, 0.1 * x), 1.3, 0.1),
        MeanField(activation("leaky_relu", negative_slope=0.1), 1.3, 0.1),
    )
    assert own.length(0.7) == pytest.approx(named.length(0.7), rel=1e-12)
    assert own.chi(0.7) == pytest.approx(named.chi(0.7), rel=1e-10)
    assert own.correlation(0.4, 0.7) == pytest.approx(named.correlation(0.4, 0.7), rel=1e-10)


def test_equal_layers_are_equal() -> None:
    assert MeanField("tanh", 1.0) == MeanField("tanh", 1.0)
    assert MeanField("tanh", 1.0) != MeanField("tanh", 1.0, keep=0.5)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sigma_w": 0.0}, "sigma_w must be a positive number, not 0.0."),
        ({"sigma_w": -1.0}, "sigma_w must be a positive number"),
        ({"sigma_w": math.nan}, "sigma_w must be a positive number"),
        ({"sigma_b": -0.1}, "sigma_b must be a number of at least 0"),
        ({"keep": 0.0}, "keep must lie in (0, 1]"),
        ({"keep": 1.1}, "keep must lie in (0, 1]"),
        ({"branch": math.inf}, "branch must be a finite number"),
        ({"activation": "no such"}, "No activation is called 'no such'."),
    ],
)
def test_layers_that_do_not_exist(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(GradiometerError) as caught:
        MeanField(**{"activation": "tanh", "sigma_w": 1.0, **arguments})  # type: ignore[arg-type]
    assert words in caught.value.message


@pytest.mark.parametrize("name", ["tanh", "relu", "erf"])
def test_arguments_out_of_range(name: str) -> None:
    field = MeanField(name, 1.0)
    for c in (-1.01, 1.01, math.nan):
        with pytest.raises(GradiometerError, match="correlation lies between -1 and 1"):
            field.correlation(c, 1.0)
        with pytest.raises(GradiometerError, match="correlation lies between -1 and 1"):
            field.correlation_slope(c, 1.0)
    for q in (-1.0, math.nan):
        for call in (field.length, field.chi, field.chi_parallel, field.length_limit):
            with pytest.raises(GradiometerError, match="variance must be a number of at least 0"):
                call(q)
    for factor in (0.0, -1.0, 1.0, math.inf, math.nan):
        with pytest.raises(GradiometerError, match="factor must be a positive number other than 1"):
            field.layers_until(factor)


# ---- random networks -------------------------------------------------------------------------------------------------

WIDTH, DEPTH, SEEDS, START = 1500, 20, 4, 0.5
NETWORKS = {  # activation, sigma_w, sigma_b: at 3 % of the geometric mean of chi and, unless marginal, 5 % of q, 0.05 of c
    "sigmoid default": ("sigmoid", DEFAULT, 0.0),
    "sigmoid xavier": ("sigmoid", XAVIER, 0.0),
    "sigmoid he": ("sigmoid", HE, 0.0),
    "sigmoid nielsen": ("sigmoid", 1.0, 1.0),
    "sigmoid edge": ("sigmoid", 10.14926371, 0.0),
    "sigmoid chaos": ("sigmoid", 15.0, 0.0),
    "tanh ordered": ("tanh", 1.0, math.sqrt(0.05)),
    "tanh edge": ("tanh", 1.30415, 0.2),
    "tanh gain of torch": ("tanh", 5 / 3, 0.0),
    "selu lecun": ("selu", 1.0, 0.0),
    "relu xavier": ("relu", XAVIER, 0.0),
    "relu edge": ("relu", HE, 0.0),
    "leaky edge": (LEAKY, 1.386750, 0.0),
    "hardtanh edge": ("hardtanh", 1.06861, 0.2),
    "gelu edge": ("gelu", 1.39863, 0.6),
}
MARGINAL = ("relu xavier", "relu edge", "leaky edge", "gelu edge")  # whose length wanders


@dataclass(frozen=True)
class Drawn:
    """What random networks showed: chi in the mean of logarithms, the length and the correlations of all layers."""

    chi: float
    length: float
    correlations: np.ndarray


@pytest.fixture(scope="module")
def drawn() -> dict[str, Drawn]:
    """Every network with the same weights, up to their scale; inputs of variance q*, correlation 1/2."""
    found: dict[str, list[tuple[float, float, np.ndarray]]] = {name: [] for name in NETWORKS}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        weights = [rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / math.sqrt(WIDTH) for _ in range(DEPTH)]
        biases = [rng.standard_normal(WIDTH) for _ in range(DEPTH)]
        basis, _ = np.linalg.qr(rng.standard_normal((WIDTH, 2)))
        error = rng.standard_normal(WIDTH).astype(np.float32)
        pair = np.stack([basis[:, 0], START * basis[:, 0] + math.sqrt(1 - START**2) * basis[:, 1]], axis=1)
        for name, (which, sigma_w, sigma_b) in NETWORKS.items():
            act, h, slopes = activation(which), pair * math.sqrt(WIDTH * start(name)), []
            lengths, likeness = [], []
            for w, b in zip(weights, biases, strict=True):
                slopes.append(sigma_w * act.slope(h[:, 0]))
                h = sigma_w * (w @ act.f(h).astype(np.float32)).astype(np.float64) + sigma_b * b[:, None]
                lengths.append(float((h[:, 0] ** 2).mean()))
                likeness.append(float(h[:, 0] @ h[:, 1] / np.linalg.norm(h[:, 0]) / np.linalg.norm(h[:, 1])))
            delta, log = error, 0.0
            for w, s in zip(reversed(weights), reversed(slopes), strict=True):
                delta = (s * (w.T @ delta)).astype(np.float32)
                size = float(np.linalg.norm(delta))
                log, delta = log + 2.0 * math.log(size), delta / np.float32(size)
            log -= 2.0 * math.log(float(np.linalg.norm(error)))
            found[name].append((log / DEPTH, float(np.mean(lengths[-5:])), np.array(likeness)))
    return {
        name: Drawn(
            math.exp(np.mean([r[0] for r in runs])),
            float(np.mean([r[1] for r in runs])),
            np.mean([r[2] for r in runs], axis=0),
        )
        for name, runs in found.items()
    }


def start(name: str) -> float:
    q = MeanField(*NETWORKS[name]).q_star
    return q if q > 0.0 else 1.0


@pytest.mark.parametrize("name", NETWORKS)
def test_random_networks_do_as_the_theory_says(name: str, drawn: dict[str, Drawn]) -> None:
    field, measured = MeanField(*NETWORKS[name]), drawn[name]
    q, c, chi, length, correlations = start(name), START, list[float](), list[float](), list[float]()
    for _ in range(DEPTH):
        chi.append(math.log(field.chi(q)))
        c, q = field.correlation(c, q), field.length(q)
        length.append(q)
        correlations.append(c)
    assert measured.chi == pytest.approx(math.exp(np.mean(chi)), rel=0.03)
    assert measured.length == pytest.approx(float(np.mean(length[-5:])), rel=0.4 if name in MARGINAL else 0.05)
    # SELU's correlation map is all but the identity: deviations stay
    assert np.abs(measured.correlations - correlations).max() < (0.07 if name == "selu lecun" else 0.05)
