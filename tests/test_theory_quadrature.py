"""Gaussian expectations against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import activation
from gradiometer.theory.meanfield import pair_moment, pair_slope_moment
from gradiometer.theory.quadrature import expectation, nodes, pair_expectation

VARIANCES = st.floats(-16.0, 8.0).map(lambda t: 10.0**t)
CORRELATIONS = st.one_of(st.floats(-1.0, 1.0), st.floats(-15.0, -1.0).map(lambda t: 1.0 - 10.0**t))


@given(VARIANCES, st.lists(st.floats(-50.0, 50.0), max_size=4))
def test_moments_of_a_gaussian(q: float, kinks: list[float]) -> None:
    z, w = nodes(q, kinks)
    assert w.sum() == pytest.approx(1.0, abs=1e-13)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        assert w @ z**power == pytest.approx(moment, abs=1e-12)


@given(VARIANCES)
def test_erf_in_closed_form(q: float) -> None:
    """Williams 1997."""
    act = activation("erf")
    square = 2.0 / math.pi * math.asin(2.0 * q / (1.0 + 2.0 * q))
    assert expectation(lambda u: act.f(u) ** 2, q) == pytest.approx(square, rel=1e-12)
    assert expectation(lambda u: act.slope(u) ** 2, q) == pytest.approx(4.0 / math.pi / math.sqrt(1.0 + 4.0 * q), rel=1e-12)


@given(st.floats(1e-3, 1e6))
def test_hardtanh_in_closed_form(q: float) -> None:
    """A step at +-1 is exact too: panels end there."""
    act, s = activation("hardtanh"), math.sqrt(q)
    inside = math.erf(1.0 / s / math.sqrt(2.0))
    square = q * (inside - 2.0 / s * math.exp(-0.5 / q) / math.sqrt(2.0 * math.pi)) + 1.0 - inside
    assert expectation(lambda u: act.slope(u) ** 2, q, act.kinks) == pytest.approx(inside, rel=1e-12)
    assert expectation(lambda u: act.f(u) ** 2, q, act.kinks) == pytest.approx(square, rel=1e-11)


@given(VARIANCES)
def test_relu_in_closed_form(q: float) -> None:
    act = activation("relu")
    assert expectation(lambda u: act.f(u) ** 2, q, act.kinks) == pytest.approx(0.5 * q, rel=1e-12)
    assert expectation(act.f, q, act.kinks) == pytest.approx(math.sqrt(q / (2.0 * math.pi)), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(VARIANCES, CORRELATIONS)
def test_pairs_in_closed_form(q: float, c: float) -> None:
    """Arc-cosine kernels (Cho & Saul 2009) and the arc sine of erf (Williams 1997)."""
    for act in (activation("relu"), activation("leaky_relu", negative_slope=0.3), activation("erf")):
        values = pair_expectation(act.f, act.f, q, q, c, act.kinks)
        assert values == pytest.approx(pair_moment(act, q, c), rel=1e-11, abs=1e-13 * pair_moment(act, q, 1.0))
        slopes = pair_expectation(act.slope, act.slope, q, q, c, act.kinks)
        # 1 - c is only known to 1e-16: the slopes of a steep erf feel that
        assert slopes == pytest.approx(pair_slope_moment(act, q, c), rel=1e-7, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 100.0), st.floats(0.01, 100.0), st.floats(-1.0, 1.0))
def test_pairs_of_different_variances(q1: float, q2: float, c: float) -> None:
    relu, erf = activation("relu"), activation("erf")
    kernel = (math.sqrt(1.0 - c * c) + c * (math.pi - math.acos(c))) / (2.0 * math.pi)
    assert pair_expectation(relu.f, relu.f, q1, q2, c, (0.0,)) == pytest.approx(
        math.sqrt(q1 * q2) * kernel, rel=1e-10, abs=1e-12 * math.sqrt(q1 * q2)
    )
    arc = 2.0 / math.pi * math.asin(2.0 * c * math.sqrt(q1 * q2) / math.sqrt((1.0 + 2.0 * q1) * (1.0 + 2.0 * q2)))
    assert pair_expectation(erf.f, erf.f, q1, q2, c) == pytest.approx(arc, rel=1e-10, abs=1e-12)
    # Stein: E u1 g(u2) = cov E g'(u2)
    mixed = pair_expectation(lambda u: u, erf.f, q1, q2, c)
    assert mixed == pytest.approx(c * math.sqrt(q1 * q2) * expectation(erf.slope, q2), rel=1e-10, abs=1e-11)


@pytest.mark.parametrize("name", ["tanh", "hardtanh", "selu", "gelu", "softsign", "sigmoid"])
@pytest.mark.parametrize("q", [1e-6, 0.4, 30.0])
def test_the_ends_of_the_correlation(name: str, q: float) -> None:
    act = activation(name)
    square = expectation(lambda u: act.f(u) ** 2, q, act.kinks)
    mean = expectation(act.f, q, act.kinks)
    mirrored = expectation(lambda u: act.f(u) * act.f(-u), q, (*act.kinks, *(-k for k in act.kinks)))
    for c, value in ((1.0, square), (1.0 - 1e-15, square), (0.0, mean**2), (-1.0, mirrored)):
        assert pair_expectation(act.f, act.f, q, q, c, act.kinks) == pytest.approx(value, rel=1e-11, abs=1e-13 * square)


def test_a_variance_of_zero() -> None:
    assert expectation(lambda u: u + 2.0, 0.0) == pytest.approx(2.0, abs=1e-13)
    assert pair_expectation(np.cos, np.cos, 0.0, 0.0, 0.3) == pytest.approx(1.0, abs=1e-12)
    assert pair_expectation(np.cos, np.cos, 1.0, 0.0, 0.3) == pytest.approx(math.exp(-0.5), abs=1e-12)


@pytest.mark.parametrize("c", [5e-324, -1e-300, 1e-90])
def test_a_correlation_next_to_none(c: float) -> None:
    assert pair_expectation(np.tanh, np.tanh, 0.1, 0.1, c) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("q", [-1.0, math.nan, math.inf])
def test_a_variance_is_a_finite_number_of_at_least_zero(q: float) -> None:
    with pytest.raises(GradiometerError, match="variance must be a finite number of at least 0"):
        nodes(q)
    with pytest.raises(GradiometerError, match="variance"):
        expectation(np.tanh, q)
    with pytest.raises(GradiometerError, match="variance"):
        pair_expectation(np.tanh, np.tanh, 1.0, q, 0.0)


@pytest.mark.parametrize("c", [-1.1, 1.1, math.nan])
def test_a_correlation_lies_between_minus_one_and_one(c: float) -> None:
    with pytest.raises(GradiometerError, match="correlation lies between -1 and 1"):
        pair_expectation(np.tanh, np.tanh, 1.0, 1.0, c)
