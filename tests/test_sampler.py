"""When to look: the budget holds, looks are dense first and reach over the whole training, trouble is looked at."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gradiometer.probe.sampler import ALLOWANCE, FIRST_LOOKS, FORCED_LOOKS, Sampler


def play(sampler: Sampler, steps: int, step_seconds: float, look_seconds: float, stride: int = 1) -> tuple[list[int], float]:
    """A training on a virtual clock; returns the looked-at steps and the probe's own seconds."""
    elapsed = own = 0.0
    looks: list[int] = []
    for step in range(steps):
        if sampler.look_at(step, elapsed, own, stride):
            looks.append(step)
            own += look_seconds
            elapsed += look_seconds
            sampler.looked(step, look_seconds, stride)
        elapsed += step_seconds
    return looks, own


@settings(max_examples=60, deadline=None)
@given(
    fraction=st.floats(0.001, 0.2),
    steps=st.integers(1, 3000),
    step_seconds=st.floats(1e-4, 1.0),
    look_share=st.floats(0.1, 4.0),
)
def test_the_cost_stays_within_the_budget(fraction: float, steps: int, step_seconds: float, look_share: float) -> None:
    look_seconds = look_share * step_seconds
    looks, own = play(Sampler(fraction), steps, step_seconds, look_seconds)
    once = max(ALLOWANCE + look_seconds, FIRST_LOOKS * look_seconds)
    assert own <= fraction * (steps * step_seconds + own) + once + 1e-9
    assert looks[0] == 0


@settings(max_examples=30, deadline=None)
@given(step_seconds=st.floats(1e-3, 0.1), look_share=st.floats(0.5, 30.0))
def test_the_first_looks_are_taken_whatever_they_cost(step_seconds: float, look_share: float) -> None:
    looks, _ = play(Sampler(0.01), 600, step_seconds, look_share * step_seconds)
    assert len(looks) >= 5, "enough to tell what lasts from what heals"
    assert looks[-1] >= 100, "and they reach into the training"


def test_looks_are_dense_first_and_never_end() -> None:
    looks, _ = play(Sampler(0.01), 20_000, 0.01, 0.01)
    gaps = [b - a for a, b in pairwise(looks)]
    assert looks[:3] == [0, 1, 2]
    assert max(gaps) < 1500
    assert looks[-1] > 19_000
    assert sum(step < 100 for step in looks) > sum(10_000 <= step < 10_100 for step in looks)


def test_every_overrides_the_budget_and_thins_with_the_record() -> None:
    assert play(Sampler(0.01, 7), 30, 0.01, 10.0)[0] == [0, 7, 14, 21, 28]
    assert play(Sampler(0.01, 7), 30, 0.01, 10.0, stride=2)[0] == [0, 14, 28]


def test_trouble_is_looked_at_a_bounded_number_of_times() -> None:
    sampler = Sampler(1e-6)
    play(sampler, 5000, 0.001, 0.1)  # the first series is spent, and the budget overdrawn
    forced = 0
    for step in range(5000, 6000):
        sampler.trouble()
        forced += sampler.look_at(step, 5.0, 1e9, 1)
    assert forced == FORCED_LOOKS


def test_norms_cannot_starve_the_looks() -> None:
    """A cheap norm at every step would take whatever a look waits for."""
    sampler = Sampler(0.01)
    elapsed = own = 0.0
    late = 0
    for step in range(20_000):
        if sampler.look_at(step, elapsed, own, 1):
            own, elapsed = own + 0.02, elapsed + 0.02
            sampler.looked(step, 0.02, 1)
            late += step > 5000
        elif sampler.norm_fits(0.0005, elapsed):
            own, elapsed = own + 0.0005, elapsed + 0.0005
            sampler.took_norm(0.0005)
        elapsed += 0.01
    assert late > 20
    assert own < 0.01 * elapsed + ALLOWANCE + 0.02
