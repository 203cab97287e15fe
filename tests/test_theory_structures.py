"""Structures against simulations, torch and laws; what `test_theory.py` has is not repeated."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradiometer.errors import GradiometerError
from gradiometer.theory import structures
from gradiometer.theory.activations import activation
from gradiometer.theory.meanfield import MeanField

# ---- initialisations -------------------------------------------------------------------------------------------------

DRAW = {
    "xavier": (nn.init.xavier_uniform_, nn.init.xavier_normal_),
    "he": (
        lambda w, g: nn.init.kaiming_uniform_(w, nonlinearity="relu").mul_(g),
        lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="relu").mul_(g),
    ),
    "lecun": (lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="linear").mul_(g),),
    "orthogonal": (nn.init.orthogonal_,),
}


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize(("fan_in", "fan_out"), [(500, 200), (200, 500), (300, 300)])
def test_every_draw_of_torch_has_the_scale_of_the_table(name: str, fan_in: int, fan_out: int) -> None:
    torch.manual_seed(0)
    for draw in DRAW[name]:
        with torch.no_grad():
            weights = draw(torch.empty(fan_out, fan_in), 1.7)
        sigma_w, sigma_b = structures.initialisation(name, fan_in, fan_out, 1.7)
        assert float(weights.std()) * math.sqrt(fan_in) == pytest.approx(sigma_w, rel=0.01)
        assert sigma_b == 0.0


@pytest.mark.parametrize("fan_in", [8, 72, 700])
def test_default_of_linear_and_convolution(fan_in: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(fan_in, 60_000 // fan_in)]
    if fan_in % 9 == 0:
        layers.append(nn.Conv2d(fan_in // 9, 60_000 // fan_in, 3))
    sigma_w, sigma_b = structures.initialisation("pytorch", fan_in)
    assert (sigma_w**2, sigma_b**2) == pytest.approx((1 / 3, 1 / (3 * fan_in)), rel=1e-12)
    for layer in layers:
        assert float(layer.weight.detach().std()) * math.sqrt(fan_in) == pytest.approx(sigma_w, rel=0.02)
        assert float(layer.weight.detach().abs().max()) <= fan_in**-0.5
        assert float(layer.bias.detach().std()) == pytest.approx(sigma_b, rel=0.15)
        assert float(layer.bias.detach().abs().max()) <= fan_in**-0.5


@given(st.sampled_from(structures.INITIALISATIONS), st.integers(1, 4096), st.integers(1, 4096), st.floats(0.1, 5.0))
def test_a_gain_scales_weights_and_nothing_else(row: structures.Initialisation, fan_in: int, fan_out: int, gain: float) -> None:
    one, bias = row.scales(fan_in, fan_out, 1.0)
    scaled, same = row.scales(fan_in, fan_out, gain)
    assert same == bias
    assert scaled == pytest.approx(one if row.name == "pytorch" else gain * one, rel=1e-12)
    assert structures.initialisation(row.name, fan_in, fan_out, gain) == (scaled, same)


# ---- dropout and skips -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 1.0), st.floats(0.2, 3.0), st.floats(0.1, 5.0))
def test_dropout_multiplies_forward_and_backward_alike_and_keeping_all_is_neutral(
    keep: float, sigma_w: float, q: float
) -> None:
    square, product = structures.dropout_factors(keep)
    plain, dropped = MeanField("tanh", sigma_w), MeanField("tanh", sigma_w, keep=keep)
    assert dropped.length(q) == pytest.approx(square * plain.length(q), rel=1e-12)
    assert dropped.chi(q) == pytest.approx(square * plain.chi(q), rel=1e-12)
    assert product == 1.0
    assert structures.dropout_factors(1.0) == (1.0, 1.0)


def test_dropout_of_torch_has_these_factors() -> None:
    torch.manual_seed(0)
    x = torch.ones(2, 200_000, requires_grad=True)
    y = nn.functional.dropout(x, 0.3)
    y.sum().backward()
    square, product = structures.dropout_factors(0.7)
    assert float(y.detach().square().mean()) == pytest.approx(square, rel=0.01)
    assert float((y[0] * y[1]).detach().mean()) == pytest.approx(product, rel=0.01)
    assert float(x.grad.square().mean()) == pytest.approx(square, rel=0.01)


@given(st.integers(1, 10_000))
def test_balanced_branches_come_up_to_e_and_not_beyond(layers: int) -> None:
    grown = layers * math.log1p(structures.balanced_branch(layers) ** 2)
    assert math.log(2.0) - 1e-12 <= grown <= 1.0


@pytest.mark.parametrize("branch", [1.0, 0.3])
def test_residual_networks_grow_as_told(branch: float) -> None:
    """x + s W relu(x), width 400, 10 layers, mean of the logarithm over 24 seeds (standard error 0.006 a layer)."""
    n, depth, logs = 400, 10, []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(n)
        start, steps = x @ x, []
        for _ in range(depth):
            w = rng.standard_normal((n, n)) * math.sqrt(2.0 / n)
            steps.append((w, x > 0.0))
            x = x + branch * w @ np.maximum(x, 0.0)
        g = rng.standard_normal(n)
        before = g @ g
        for w, on in reversed(steps):
            g = g + branch * on * (w.T @ g)
        logs.append((math.log(x @ x / start), math.log(g @ g / before)))
    forward, backward = np.mean(logs, axis=0) / depth
    chi = structures.residual_chi("relu", math.sqrt(2.0), 1.0, branch)
    assert chi == pytest.approx(1.0 + branch**2)
    assert forward == pytest.approx(math.log(chi), abs=0.025)
    assert backward == pytest.approx(math.log(chi), abs=0.025)


# ---- normalisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_norm_factors_of_one_vector_are_exact_on_average(name: str) -> None:
    """Mean over directions of the squared gradient, which is the squared Frobenius norm of the Jacobian over its size."""
    torch.manual_seed(1)
    size, gamma, eps = 12, 1.3, 1e-12
    x = (2.0 * torch.randn(size, dtype=torch.float64) + 0.7).requires_grad_(True)
    weight = torch.full((size,), gamma, dtype=torch.float64)

    def norm(v: torch.Tensor) -> torch.Tensor:
        if name == "layer":
            return nn.functional.layer_norm(v, (size,), weight, eps=eps)
        return nn.functional.rms_norm(v, (size,), weight, eps=eps)

    jacobian = torch.autograd.functional.jacobian(norm, x)
    measured = float(jacobian.square().sum()) / size
    v = x.detach()
    if name == "layer":
        told = structures.layer_norm_factor(float(v.var(correction=0)), size, gamma, eps)
    else:
        told = structures.rms_norm_factor(float(v.square().mean()), size, gamma, eps)
    assert measured == pytest.approx(told, rel=1e-9)


# ---- convolutions ----------------------------------------------------------------------------------------------------


def test_fan_in_is_that_of_torch() -> None:
    for groups, kernel in ((1, (3,)), (2, (3, 5)), (4, (1, 3, 3))):
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1](8, 16, kernel, groups=groups)
        assert structures.convolution_fan_in(8, kernel, groups) == nn.init._calculate_correct_fan(layer.weight, "fan_in")


@pytest.mark.parametrize(("size", "kernel"), [(8, 3), (5, 5), (3, 7)])
def test_zero_padding_costs_this_share_per_layer(size: int, kernel: int) -> None:
    """Mean square through 40 linear layers, positions followed exactly."""
    half = kernel // 2
    q, share = np.ones(size), 0.0
    for _ in range(60):
        new = np.array([q[max(i - half, 0) : i + half + 1].sum() / kernel for i in range(size)])
        share, q = new.sum() / q.sum(), new
    assert structures.padded_share(size, kernel) == pytest.approx(share, rel=1e-6)


@given(st.integers(1, 60), st.sampled_from([1, 3, 5, 7]))
def test_laws_of_padding(size: int, kernel: int) -> None:
    share = structures.padded_share(size, kernel)
    assert 1.0 / kernel - 1e-12 <= share <= 1.0 + 1e-12
    assert structures.padded_share(size + 1, kernel) >= share - 1e-12
    assert structures.padded_share(size, 1) == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 5), st.lists(st.sampled_from([1, 3, 5]), min_size=1, max_size=3), st.floats(0.1, 3.0))
def test_delta_orthogonal_is_an_orthogonal_matrix_in_the_middle_and_nothing_else(
    inputs: int, more: int, kernel: list[int], gain: float
) -> None:
    shape = (inputs + more, inputs, *kernel)
    weights = structures.delta_orthogonal(shape, gain, np.random.default_rng(3))
    assert weights.shape == shape
    middle = weights[(slice(None), slice(None), *(extent // 2 for extent in kernel))]
    assert middle.T @ middle == pytest.approx(gain**2 * np.eye(inputs), abs=1e-12 * gain**2 + 1e-12)
    assert np.count_nonzero(weights) == np.count_nonzero(middle)
    assert np.array_equal(weights, structures.delta_orthogonal(shape, gain, np.random.default_rng(3)))


def test_the_orthogonal_matrix_has_no_preferred_sign() -> None:
    """Haar measure: without fixing the signs of QR the diagonal would be all negative."""
    rng = np.random.default_rng(0)
    corners = [structures.delta_orthogonal((4, 4, 1), 1.0, rng)[0, 0, 0] for _ in range(800)]
    assert np.mean(corners) == pytest.approx(0.0, abs=0.06)
    assert np.var(corners) == pytest.approx(1 / 4, rel=0.15)


# ---- through time ----------------------------------------------------------------------------------------------------


def test_input_calms_a_recurrent_network() -> None:
    chis = [structures.recurrent_chi("tanh", 1.5, drive) for drive in (0.0, 0.1, 0.5, 2.0, 10.0)]
    assert chis == sorted(chis, reverse=True)
    assert chis[0] > 1.0 > chis[-1]
    assert structures.recurrent_chi("tanh", 1.5, 0.5) == pytest.approx(structures.recurrent_chi("tanh", 1.5, 0.25, 0.5))


def test_the_singular_value_bounds_what_the_spectral_radius_does_not() -> None:
    """W has no eigenvalue but 0, and the gradient still explodes: its tanh units are saturated at half of the steps."""
    w = 3.0 * np.array([[1.0, -1.0], [1.0, -1.0]])
    steps = 12
    product = np.eye(2)
    for _ in range(steps):
        product = np.diag([1.0, 0.0]) @ w.T @ product
    assert structures.spectral_radius(w) == pytest.approx(0.0, abs=1e-6)
    assert np.linalg.norm(product, 2) > 3.0**steps
    assert np.linalg.norm(product, 2) <= structures.recurrent_bound(w, 1.0, steps)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 8), st.floats(0.1, 2.0), st.integers(0, 1000))
def test_the_bound_holds_for_every_recurrent_network(n: int, steps: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, act = scale * rng.standard_normal((n, n)), activation("sigmoid")
    h, product = rng.standard_normal(n), np.eye(n)
    for _ in range(steps):
        product = w @ np.diag(act.slope(h)) @ product
        h = w @ act.f(h) + rng.standard_normal(n)
    assert np.linalg.norm(product, 2) <= structures.recurrent_bound(w, 0.25, steps) * (1 + 1e-9) + 1e-300


@given(st.floats(-20.0, 20.0), st.integers(0, 50), st.integers(0, 50))
def test_forget_gates_multiply(bias: float, first: int, second: int) -> None:
    whole = structures.forget_gate_memory(bias, first + second)
    assert whole == pytest.approx(
        structures.forget_gate_memory(bias, first) * structures.forget_gate_memory(bias, second), rel=1e-9, abs=1e-300
    )
    assert structures.forget_gate_memory(0.0, first) == 0.5**first


def test_the_cell_of_an_lstm_remembers_as_told() -> None:
    cell = nn.LSTM(1, 1).double()
    with torch.no_grad():
        for weights in (cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0):
            weights.zero_()
        cell.bias_ih_l0[1] = 1.0  # gates: input, forget, cell, output
    c0 = torch.ones(1, 1, 1, dtype=torch.float64, requires_grad=True)
    _, (_, c) = cell(torch.zeros(10, 1, 1, dtype=torch.float64), (torch.zeros_like(c0), c0))
    c.sum().backward()
    assert float(c0.grad) == pytest.approx(structures.forget_gate_memory(1.0, 10), rel=1e-12)


# ---- batch normalisation with few examples ---------------------------------------------------------------------------


@given(st.integers(4, 3000))
def test_few_examples_have_closed_forms_for_straight_lines(batch: int) -> None:
    assert structures.batch_norm_growth("linear", batch) == pytest.approx(structures.batch_norm_growth_linear(batch), rel=1e-9)
    c = -1.0 / (batch - 1)
    pair = (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / (2 * math.pi)
    both = (1 - math.acos(c) / math.pi) / 2
    trace = (batch - 1) / 2 - 1 + ((batch - 1) * (both + pair) + 1) / batch
    exact = batch * trace / ((batch - 3) * (batch - 1) * (0.5 - pair))
    assert structures.batch_norm_growth("relu", batch) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("name", ["tanh", "gelu", "hardtanh", "selu", "sigmoid"])
def test_many_examples_are_the_limit_of_few(name: str) -> None:
    growths = [structures.batch_norm_growth(name, batch) for batch in (4, 8, 32, 256, 10**6)]
    assert growths == sorted(growths, reverse=True)
    assert growths[-1] == pytest.approx(structures.batch_norm_growth(name), rel=1e-5)


@pytest.mark.parametrize(("name", "batch"), [("relu", 8), ("relu", 16), ("tanh", 16), ("linear", 16), ("gelu", 12)])
def test_batch_norm_networks_grow_as_told(name: str, batch: int) -> None:
    """14 layers of width 400, the growth away from both ends, two seeds."""
    n, depth, found, act = 400, 14, [], activation(name)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        x, steps = rng.standard_normal((batch, n)), []
        for _ in range(depth):
            w = rng.standard_normal((n, n)) / math.sqrt(n)
            h = x @ w
            h = h - h.mean(axis=0)
            scale = np.sqrt((h**2).mean(axis=0))
            y = h / scale
            steps.append((w, scale, y))
            x = act.f(y)
        g, sizes = rng.standard_normal((batch, n)), []
        for w, scale, y in reversed(steps):
            g = g * act.slope(y)
            g = (g - g.mean(axis=0) - y * (g * y).mean(axis=0)) / scale @ w.T
            sizes.append(math.log((g**2).sum()))
        found.append((sizes[-4] - sizes[2]) / (depth - 6))
    assert math.exp(np.mean(found)) == pytest.approx(structures.batch_norm_growth(name, batch), rel=0.02)


@pytest.mark.parametrize(("batch", "growth", "within"), [(512, 1.4663, 0.004), (128, 1.4726, 0.006), (16, 1.6109, 0.02)])
def test_measured_growth_of_relu_networks(batch: int, growth: float, within: float) -> None:
    """14 layers of width 512 (computed here); growth over so few layers still holds something of the first ones."""
    assert structures.batch_norm_growth("relu", batch) == pytest.approx(growth, rel=within)


# ---- borders and bad input -------------------------------------------------------------------------------------------


def test_extremes_do_not_overflow() -> None:
    assert structures.forget_gate_memory(-1000.0, 3) == 0.0
    assert structures.forget_gate_memory(1000.0, 10**6) == 1.0
    assert structures.recurrent_bound(5.0 * np.eye(2), 1.0, 1000) == math.inf
    assert structures.recurrent_bound(0.2 * np.eye(2), 1.0, 1000) == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: structures.initialisation("pytorch", 0), "fan_in and fan_out must be at least 1"),
        (lambda: structures.initialisation("xavier", 3, 0), "fan_in and fan_out must be at least 1"),
        (lambda: structures.initialisation("he", 3, 3, math.nan), "gain must be a positive number"),
        (lambda: structures.delta_orthogonal((4,)), "is no shape of weights"),
        (lambda: structures.delta_orthogonal((4, 0, 3)), "is no shape of weights"),
        (lambda: structures.convolution_fan_in(8, (3, 3), 0), "must be at least 1"),
        (lambda: structures.convolution_fan_in(8, (3, 3), 3), "cannot be split into 3 groups"),
        (lambda: structures.padded_share(4, 2), "The kernel must be odd"),
        (lambda: structures.layer_norm_factor(-1.0, 8), "variance + eps must be a positive number"),
        (lambda: structures.layer_norm_factor(1.0, 2), "leaves no gradient"),
        (lambda: structures.rms_norm_factor(math.nan, 8), "square + eps must be a positive number"),
        (lambda: structures.rms_norm_factor(1.0, 1), "leaves no gradient"),
        (lambda: structures.batch_norm_growth("relu", 3), "no finite mean growth"),
        (lambda: structures.batch_norm_growth(lambda u: 0.0 * u + 1.0), "the same for every input"),
        (lambda: structures.balanced_branch(0), "at least one layer"),
        (lambda: structures.recurrent_chi("tanh", 1.0, -1.0), "drive is a variance"),
        (lambda: structures.recurrent_bound(np.zeros((2, 3)), 1.0, 3), "square and finite"),
        (lambda: structures.recurrent_bound(np.eye(2), 1.0, -1), "must be at least 0"),
        (lambda: structures.spectral_radius(np.full((2, 2), math.nan)), "square and finite"),
        (lambda: structures.forget_gate_memory(math.nan, 3), "bias must be a number"),
    ],
)
def test_bad_input_is_one_clear_sentence(make: Callable[[], object], words: str) -> None:
    with pytest.raises(GradiometerError) as error:
        make()
    assert words in error.value.message
    assert "\n" not in str(error.value)
