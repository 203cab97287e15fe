"""The scalar chain: the closed form of the textbook against the brute search it replaces."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from gradiometer.errors import GradiometerError
from gradiometer.theory import chain
from gradiometer.theory.activations import activation

WEIGHTS = st.floats(4.01, 200.0).flatmap(lambda w: st.sampled_from([w, -w]))


@given(WEIGHTS, st.floats(-20.0, 20.0))
def test_inside_the_interval_the_gradient_is_kept_and_outside_it_is_not(w: float, b: float) -> None:
    found = chain.keeping_interval(w, b)
    assert found is not None
    low, high = found
    size = high - low
    assert chain.keeping_width(w) == pytest.approx(size, rel=1e-6)
    assert (low + high) / 2 == pytest.approx(-b / w, abs=1e-9)
    for share in (0.001, 0.3, 0.5, 0.999):
        assert chain.gain("sigmoid", w, low + share * size, b) >= 1.0
    for outside in (low - 0.001 * size - 1e-9, high + 0.001 * size + 1e-9):
        assert chain.gain("sigmoid", w, outside, b) < 1.0


@pytest.mark.parametrize("w", [4.5, 6.894151, 20.0, 100.0])
def test_the_width_is_that_of_a_search(w: float) -> None:
    edge = optimize.brentq(lambda a: chain.gain("sigmoid", w, a) - 1.0, 0.0, 50.0 / w, xtol=1e-14)
    assert chain.keeping_width(w) == pytest.approx(2 * edge, rel=1e-9)


def test_the_widest_interval_to_all_printed_digits() -> None:
    """Nielsen 2015, chapter 5: about 0.45 at about 6.9."""
    best = optimize.minimize_scalar(
        lambda w: -chain.keeping_width(w), bounds=(5, 9), method="bounded", options={"xatol": 1e-10}
    )
    assert best.x == pytest.approx(chain.WIDEST_WEIGHT, abs=0.51e-6)
    assert -best.fun == pytest.approx(chain.WIDEST, abs=0.51e-6)
    # where its derivative is zero: w dz/dw = z with z the half width in units of the pre-activation
    w = best.x
    z = w * chain.keeping_width(w) / 2
    assert math.sqrt(1 - 4 / w) * z == pytest.approx(1.0, rel=1e-6)


@given(st.floats(-4.0, 4.0), st.floats(-9.0, 9.0), st.floats(-9.0, 9.0))
def test_no_weight_of_size_four_or_less_makes_a_sigmoid_unit_grow_the_gradient(w: float, a: float, b: float) -> None:
    assert chain.gain("sigmoid", w, a, b) <= abs(w) / 4 + 1e-15
    assert chain.keeping_interval(w, b) is None or abs(w) == chain.LEAST_WEIGHT
    assert chain.keeping_width(w) == 0.0


@given(st.floats(-30.0, 30.0), st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_laws_of_the_gain(w: float, a: float, b: float) -> None:
    assert chain.gain("sigmoid", w, a, b) == pytest.approx(chain.gain("sigmoid", -w, a, -b), rel=1e-9)  # even slope
    assert chain.gain("linear", w, a, b) == abs(w)
    # sigmoid(x) = (1 + tanh(x / 2)) / 2
    assert chain.gain("sigmoid", w, a, b) == pytest.approx(chain.gain("tanh", w / 2, a, b / 2) / 2, rel=1e-9)


@given(st.lists(st.tuples(st.floats(-5.0, 5.0), st.floats(-2.0, 2.0)), min_size=1, max_size=8), st.floats(-2.0, 2.0))
def test_a_chain_can_be_cut_anywhere(units: list[tuple[float, float]], a: float) -> None:
    weights, biases = [w for w, _ in units], [b for _, b in units]
    whole, gains = chain.chain_gain("tanh", weights, biases, a)
    assert len(gains) == len(units)
    assert whole == pytest.approx(math.prod(gains), rel=1e-12)
    cut = len(units) // 2
    middle = a
    for w, b in units[:cut]:
        middle = float(activation("tanh").f(np.array([w * middle + b]))[0])
    first, _ = chain.chain_gain("tanh", weights[:cut], biases[:cut], a)
    second, _ = chain.chain_gain("tanh", weights[cut:], biases[cut:], middle)
    assert first * second == pytest.approx(whole, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    "make",
    [
        lambda: chain.gain("tanh", math.nan, 0.0),
        lambda: chain.gain("tanh", 1.0, math.inf),
        lambda: chain.chain_gain("tanh", [1.0, 2.0], [0.0, math.nan], 0.1),
        lambda: chain.keeping_interval(math.nan),
        lambda: chain.keeping_width(math.inf),
    ],
)
def test_numbers_must_be_finite(make: Callable[[], object]) -> None:
    with pytest.raises(GradiometerError, match=r"must be a finite number, not (nan|inf)\."):
        make()
