"""Finite width against simulations and laws; what `test_theory.py` has is not repeated."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradiometer.errors import GradiometerError
from gradiometer.theory import finite_width
from gradiometer.theory.activations import activation
from gradiometer.theory.criticality import edge_at


def orthogonal(rng: np.random.Generator, draws: int, n: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((draws, n, n)))
    return q * np.sign(np.einsum("mii->mi", r))[:, None, :]


def logs(name: str, sigma_w: float, sigma_b: float, q: float, n: int, depth: int, draws: int, kind: str) -> np.ndarray:
    """ln |J v|^2 of random networks that start at variance q, shape (draws,)."""
    rng, act = np.random.default_rng(0), activation(name)
    h, v = rng.standard_normal((2, draws, n))
    h *= np.sqrt(q * n / (h**2).sum(axis=1, keepdims=True))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    for _ in range(depth):
        w = orthogonal(rng, draws, n) if kind == "orthogonal" else rng.standard_normal((draws, n, n)) / math.sqrt(n)
        v = sigma_w * np.einsum("mij,mj->mi", w, act.slope(h) * v)
        h = sigma_w * np.einsum("mij,mj->mi", w, act.f(h)) + sigma_b * rng.standard_normal((draws, n))
    return np.log((v**2).sum(axis=1))


@pytest.mark.parametrize(("name", "kind"), [("relu", "gaussian"), ("linear", "gaussian"), ("relu", "orthogonal")])
def test_gradients_wander_as_told(name: str, kind: str) -> None:
    """Hanin & Nica 2020; 1000 networks of width 50 and depth 8: five standard errors of the variance are 22 %."""
    n, depth = 50, 8
    sigma_w = edge_at(name, 0.0)[0].sigma_w
    found = logs(name, sigma_w, 0.0, 1.0, n, depth, 1000, kind)
    mean, deviation = finite_width.mean_and_deviation(
        [finite_width.log_variance(name, 1.0, n, orthogonal=kind == "orthogonal")] * depth
    )
    assert np.var(found) == pytest.approx(deviation**2, rel=0.22)
    assert np.mean(found) == pytest.approx(mean, abs=4.5 * deviation / math.sqrt(1000))


@pytest.mark.parametrize("name", ["tanh", "hardtanh", "relu"])
@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
def test_singular_values_of_a_jacobian_spread_as_told(name: str, kind: str) -> None:
    """Pennington et al. 2017; one critical layer and four of width 300."""
    rng, act = np.random.default_rng(0), activation(name)
    point = edge_at(name, 0.0 if name == "relu" else 0.2)[-1]
    n = 300
    for depth in (1, 4):
        spreads = []
        for _ in range(3):
            h, jacobian = math.sqrt(point.q) * rng.standard_normal(n), np.eye(n)
            for _ in range(depth):
                w = point.sigma_w * (orthogonal(rng, 1, n)[0] if kind == "orthogonal" else rng.standard_normal((n, n)) / n**0.5)
                jacobian = w @ (act.slope(h)[:, None] * jacobian)
                h = w @ act.f(h) + point.sigma_b * rng.standard_normal(n)
            squares = np.linalg.svd(jacobian, compute_uv=False) ** 2
            spreads.append(np.var(squares) / np.mean(squares) ** 2)
        told = finite_width.jacobian_variance(name, point.q, depth, orthogonal=kind == "orthogonal")
        assert np.mean(spreads) == pytest.approx(told, rel=0.12)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["tanh", "relu", "gelu", "hardtanh", "sigmoid"]), st.floats(0.01, 30.0), st.integers(1, 4096))
def test_laws_of_the_spread(name: str, q: float, width: int) -> None:
    kurtosis = finite_width.slope_kurtosis(name, q)
    assert kurtosis >= 1.0 - 1e-12  # Jensen
    gaussian, exact = (finite_width.log_variance(name, q, width, orthogonal=o) for o in (False, True))
    assert gaussian - exact == pytest.approx(2.0 / width, rel=1e-9)  # what Gaussian weights alone add
    assert finite_width.log_variance(name, q, 2 * width) == pytest.approx(gaussian / 2, rel=1e-12)
    assert finite_width.jacobian_variance(name, q, 6) == pytest.approx(6 * finite_width.jacobian_variance(name, q, 1))


def test_shattering_falls_with_the_cube_of_depth_in_the_end() -> None:
    found = finite_width.shattering(4000)
    assert list(found) == sorted(found, reverse=True)
    assert math.log2(found[999] / found[1999]) == pytest.approx(3.0, abs=0.05)
    assert math.log2(found[1999] / found[3999]) == pytest.approx(3.0, abs=0.03)
    assert found[0] == 0.5


@given(st.floats(0.0, 3.0), st.integers(1, 60))
def test_skips_never_shatter_more_than_a_plain_network(branch: float, layers: int) -> None:
    residual, plain = finite_width.residual_shattering(layers, branch), finite_width.shattering(layers)
    assert len(residual) == layers
    assert residual[0] == pytest.approx((1 + branch**2 / 2) / (1 + branch**2), rel=1e-12)
    assert residual[0] >= plain[0] - 1e-12
    assert finite_width.residual_shattering(layers, 0.0) == (1.0,) * layers


@pytest.mark.parametrize(("layers", "branch"), [(8, 1.0), (16, 0.25), (8, 0.5)])
def test_gradients_of_residual_networks_are_as_alike_as_told(layers: int, branch: float) -> None:
    """x + s W relu(x) from two orthogonal inputs, width 300, 30 seeds."""
    n, found = 300, []
    rng = np.random.default_rng(0)
    for _ in range(30):
        x = math.sqrt(n) * np.linalg.qr(rng.standard_normal((n, 2)))[0]
        steps = []
        for _ in range(layers):
            w = branch * math.sqrt(2.0 / n) * rng.standard_normal((n, n))
            steps.append((w, x > 0.0))
            x = x + w @ np.maximum(x, 0.0)
        g = np.repeat(rng.standard_normal((n, 1)), 2, axis=1)
        for w, on in reversed(steps):
            g = g + on * (w.T @ g)
        found.append(g[:, 0] @ g[:, 1] / np.linalg.norm(g[:, 0]) / np.linalg.norm(g[:, 1]))
    assert np.mean(found) == pytest.approx(finite_width.residual_shattering(layers, branch)[-1], abs=0.05)


# ---- a variance that wanders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "bias"), [("tanh", 0.2), ("tanh", 0.5), ("hardtanh", 0.3)])
def test_a_wandering_variance_adds_to_the_spread_of_gradients(name: str, bias: float) -> None:
    """1500 networks of width 50 and depth 20 (standard error 4 %); the plain formula is well below."""
    point, n, draws = edge_at(name, bias)[-1], 50, 1500
    each = (np.var(logs(name, point.sigma_w, bias, point.q, n, 20, draws, "gaussian")) / 20).item()
    told = finite_width.settled_log_variance(name, point.sigma_w, bias, n)
    plain = finite_width.log_variance(name, point.q, n)
    assert told > 1.1 * plain
    assert each == pytest.approx(told, rel=0.15)
    assert each > 1.05 * plain


def test_straight_lines_have_nothing_to_add() -> None:
    assert finite_width.settled_log_variance("relu", math.sqrt(2.0), 0.0, 100) == pytest.approx(5 / 100, rel=1e-12)
    assert finite_width.settled_log_variance("linear", 1.0, 0.0, 100) == pytest.approx(2 / 100, rel=1e-12)


# ---- borders and bad input -------------------------------------------------------------------------------------------


def test_no_signal_is_the_limit_of_a_small_one() -> None:
    assert finite_width.slope_kurtosis("relu", 0.0) == pytest.approx(2.0, rel=1e-9)
    assert finite_width.slope_kurtosis("tanh", 0.0) == pytest.approx(1.0, rel=1e-9)
    assert finite_width.log_variance("relu", 0.0, 100) == pytest.approx(0.05, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: finite_width.slope_kurtosis(lambda u: 0.0 * u, 1.0), "is flat at q = 1"),
        (lambda: finite_width.slope_kurtosis("tanh", -1.0), "A variance must be"),
        (lambda: finite_width.jacobian_variance("tanh", 1.0, 0), "at least one layer"),
        (lambda: finite_width.residual_shattering(3, math.nan), "branch must be a finite number"),
        (lambda: finite_width.settled_log_variance("tanh", 1.0, 0.0, 100), "does not settle"),
        (lambda: finite_width.settled_log_variance("tanh", 1.3, 0.2, 0), "at least one unit"),
    ],
)
def test_bad_input_is_one_clear_sentence(make: Callable[[], object], words: str) -> None:
    with pytest.raises(GradiometerError) as error:
        make()
    assert words in error.value.message
    assert "\n" not in str(error.value)
