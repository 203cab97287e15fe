"""Laws of the arithmetic along depth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradiometer.record.depth import (
    ZERO_DECADES,
    end_width,
    fall_towards_input,
    fall_towards_output,
    falls_towards_input,
    falls_towards_output,
    output_end,
    slope_along_depth,
)

NUMBERS = st.floats(-40, 40, width=32)
ANY = st.one_of(NUMBERS, st.just(-math.inf), st.just(math.nan))
CHAINS = hnp.arrays(np.float64, st.integers(0, 40), elements=NUMBERS)
CHAINS_WITH_GAPS = hnp.arrays(np.float64, st.integers(0, 40), elements=ANY)


@given(CHAINS_WITH_GAPS)
def test_the_two_ends_mirror_each_other(y: np.ndarray) -> None:
    assert fall_towards_input(y) == pytest.approx(fall_towards_output(y[::-1]), nan_ok=True)


@given(CHAINS_WITH_GAPS)
def test_a_fall_is_never_negative_and_nan_only_without_sites(y: np.ndarray) -> None:
    fall = fall_towards_input(y)
    assert math.isnan(fall) if np.count_nonzero(~np.isnan(y)) < 3 else 0.0 <= fall <= 80.0


@given(CHAINS_WITH_GAPS, st.floats(-30, 30))
def test_a_constant_factor_changes_nothing(y: np.ndarray, shift: float) -> None:
    assert fall_towards_input(y + shift) == pytest.approx(fall_towards_input(y), abs=1e-9, nan_ok=True)
    assert fall_towards_output(y + shift) == pytest.approx(fall_towards_output(y), abs=1e-9, nan_ok=True)


@given(CHAINS_WITH_GAPS, st.integers(0, 40))
def test_unknown_sites_are_as_if_they_were_not_there(y: np.ndarray, at: int) -> None:
    assert fall_towards_input(np.insert(y, min(at, y.size), math.nan)) == pytest.approx(fall_towards_input(y), nan_ok=True)


@given(CHAINS)
def test_it_falls_to_one_end_at_most(y: np.ndarray) -> None:
    """The highest site lies in one end only, or in neither; it cannot be missing in both and low in both."""
    if y.size >= 3:
        width = end_width(y.size)
        top = float(y.max())
        if y[:width].max() == top:
            assert fall_towards_input(y) == 0.0
        if y[-width:].max() == top:
            assert fall_towards_output(y) == 0.0


@given(st.integers(3, 60), st.floats(0.01, 2.0))
def test_a_steady_chain_loses_its_total(count: int, per_site: float) -> None:
    y = per_site * np.arange(count)
    fall = fall_towards_input(y)
    assert fall == pytest.approx(y[-1] - y[end_width(count) - 1])
    assert fall_towards_output(y) == 0.0


def test_a_steady_chain_of_a_hundred_loses_nine_tenths() -> None:
    assert fall_towards_input(np.linspace(-10.0, 0.0, 101)) == pytest.approx(9.1)


def test_one_odd_site_is_not_an_end() -> None:
    y = np.zeros(20)
    y[0] = -9.0
    assert fall_towards_input(y) == 0.0
    y[1] = -9.0
    assert fall_towards_input(y) == 9.0


def test_quiet_branches_do_not_count() -> None:
    trunk_and_branches = np.tile([0.0, -math.inf, -math.inf, -12.0], 10)
    assert fall_towards_input(trunk_and_branches) == 0.0
    assert fall_towards_output(trunk_and_branches) == 0.0


def test_exact_zeros() -> None:
    half = np.array([-math.inf] * 5 + [0.0] * 5)
    assert fall_towards_input(half) == ZERO_DECADES
    assert fall_towards_output(half) == 0.0
    assert fall_towards_input(np.full(10, -math.inf)) == 0.0


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 5), st.integers(0, 12)), elements=ANY))
def test_many_rows_are_as_one_at_a_time(y: np.ndarray) -> None:
    assert falls_towards_input(y) == pytest.approx([fall_towards_input(row) for row in y], nan_ok=True)
    assert falls_towards_output(y) == pytest.approx([fall_towards_output(row) for row in y], nan_ok=True)
    assert falls_towards_input(y).shape == (y.shape[0],)


@given(st.integers(0, 500))
def test_the_ends_never_overlap(count: int) -> None:
    assert end_width(count) >= 1
    assert count < 2 or 2 * end_width(count) <= count


@given(CHAINS_WITH_GAPS)
def test_the_output_end_is_known_and_near_the_output(y: np.ndarray) -> None:
    known = np.flatnonzero(~np.isnan(y))
    at = output_end(y)
    if not known.size:
        assert at == -1
    else:
        assert at in known[-end_width(known.size) :]


# ---- slope -------------------------------------------------------------------------------------------------------------


@given(st.integers(4, 400), st.floats(-3, 3), st.floats(-20, 20))
def test_an_exact_line_has_its_slope_inside_its_interval(count: int, slope: float, offset: float) -> None:
    fit = slope_along_depth(offset + slope * np.arange(count))
    assert fit.slope == pytest.approx(slope, abs=1e-9)
    assert fit.low - 1e-9 <= slope <= fit.high + 1e-9
    assert fit.sites == min(count, 300)


@given(hnp.arrays(np.float64, st.integers(4, 40), elements=NUMBERS))
def test_the_interval_holds_the_slope_and_turns_with_the_chain(y: np.ndarray) -> None:
    fit, turned = slope_along_depth(y), slope_along_depth(y[::-1])
    assert fit.low <= fit.slope <= fit.high
    assert turned.slope == pytest.approx(-fit.slope, abs=1e-9)


@given(hnp.arrays(np.float64, st.integers(0, 40), elements=ANY), st.floats(-20, 20))
def test_the_slope_does_not_know_the_scale(y: np.ndarray, shift: float) -> None:
    assert slope_along_depth(y + shift).slope == pytest.approx(slope_along_depth(y).slope, abs=1e-9, nan_ok=True)


def test_a_third_of_wild_sites_does_not_turn_the_slope() -> None:
    y = -0.2 * np.arange(30)
    y[[3, 9, 14, 20, 26]] = 7.0
    fit = slope_along_depth(y)
    assert fit.slope == pytest.approx(-0.2, abs=0.05)
    assert fit.clear


def test_noise_has_no_clear_slope() -> None:
    assert not slope_along_depth(np.random.default_rng(0).normal(size=40)).clear


def test_too_few_sites_have_no_slope() -> None:
    fit = slope_along_depth(np.array([1.0, math.nan, 2.0, -math.inf, 3.0]))
    assert math.isnan(fit.slope)
    assert fit.sites == 3
    assert not fit.clear
