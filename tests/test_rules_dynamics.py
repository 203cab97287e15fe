"""Rules about what the steps do to the loss: each on its case, on what looks like it and is well, and on every prefix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

import traces
from gradiometer.record.frames import Flag
from gradiometer.record.ledger import Learning
from gradiometer.record.losses import losses_of
from gradiometer.record.trace import Trace
from gradiometer.rules import (
    clipping_always_on,
    divergence,
    learning_rate_too_high,
    learning_rate_too_low,
    loss_spike,
    oscillation,
    plateau,
    skipped_steps,
    stale_second_moment,
)
from gradiometer.types import Finding, Severity
from traces import make, ramp

STEPS = 400
LOOKS = (*range(12), *range(14, 60, 4), *range(60, STEPS, 15))
SITES = 9
WEIGHTS = 5
MODULES = (
    clipping_always_on,
    divergence,
    learning_rate_too_high,
    learning_rate_too_low,
    loss_spike,
    oscillation,
    plateau,
    skipped_steps,
    stale_second_moment,
)
CHANCE = [*traces.stack(4)[:-1], traces.output("head", units=10)]


def noisy(level: np.ndarray | float, noise: float = 0.02, seed: int = 0, steps: int = STEPS) -> np.ndarray:
    """A loss with the noise of mini-batches, a share of its level."""
    random = np.random.default_rng(seed)
    return np.broadcast_to(level, (steps,)) * np.exp(noise * random.standard_normal(steps))


HEALTHY = noisy(np.geomspace(2.3, 0.05, STEPS), 0.15)
STUCK = noisy(math.log(10), 0.01)


def run(
    loss: np.ndarray = HEALTHY,
    *,
    step: ArrayLike = -2.0,
    overshoot: ArrayLike = 0.4,
    rate: np.ndarray | float = 0.1,
    looks: Sequence[int] = LOOKS,
    sites: Any = CHANCE,
    optimizer: Mapping[str, Any] | None = None,
    each_step: Mapping[str, Any] | None = None,
    **more: Any,
) -> Trace:
    """A training of 400 steps: update / weight (log10) and overshoot are given for each look."""
    looks = [k for k in looks if k < loss.size]
    sizes = np.broadcast_to(np.asarray(step, dtype=np.float64), (len(looks),))
    after = np.full(loss.size, np.nan)
    bends = np.broadcast_to(np.asarray(overshoot, dtype=np.float64), (len(looks),))
    for k, bend in zip(looks, bends, strict=True):
        if k + 1 < loss.size:
            after[k + 1] = bend
    signals: dict[str, Any] = {"overshoot": after, "learning_rate": rate, **(each_step or {})}
    told = {"event": "optimizer", "step": 0, "index": 0, "kind": "SGD", "options": {"lr": 0.1}, **(optimizer or {})}
    return make(sites, looks=looks, loss=loss, update=sizes[:, None], each_step=signals, events=[told], **more)


def at_looks(first: Sequence[float], later: float) -> list[float]:
    """A value for each of the first looks, and one for all others."""
    return [*first, *[later] * (len(LOOKS) - len(first))]


def found(module: Any, trace: Trace) -> Finding:
    findings: list[Finding] = module.find(trace)
    assert len(findings) == 1
    return findings[0]


def all_of(trace: Trace) -> dict[str, Severity]:
    """Every finding of every rule of this file."""
    return {f.rule: f.severity for module in MODULES for f in module.find(trace)}


def test_a_healthy_training_is_silent() -> None:
    assert all_of(run()) == {}


# ---- the learning rate -------------------------------------------------------------------------------------------------

THROWN = at_looks([-1.0, 0.2, 0.7, 0.1, -0.4, -0.9], -1.8)
BLOWN = np.concatenate([[2.3, 2.3, 30.0, 75.0, 20.0, 12.0, 6.0], STUCK[7:]])


def test_steps_that_throw_the_weights() -> None:
    finding = found(learning_rate_too_high, run(BLOWN, step=THROWN, overshoot=at_looks([-3.0, -0.5, -1.2], 0.0)))
    assert finding.severity is Severity.ERROR
    assert finding.confidence == 0.9
    assert finding.steps == (0, 5), "it began at the first step, before units died of it"
    assert finding.peak == 2
    assert "at step 2 the middle weight matrix moved by 5 times its size" in finding.sentence
    assert "the loss rose to 33 times its start" in finding.sentence
    assert finding.sites == ("fc0.weight", "fc1.weight", "fc2.weight", "fc3.weight", "head.weight")


def test_it_is_seen_before_the_loss_is_no_number() -> None:
    loss = np.array([0.9, 2.4, 16.0, 6e7, np.inf, *[np.nan] * 40])
    trace = run(loss, step=at_looks([-1.0, 0.0, 0.8, 6.2], np.nan)[: len([k for k in LOOKS if k < 45])], overshoot=-7.0)
    assert found(learning_rate_too_high, trace).severity is Severity.ERROR
    assert found(learning_rate_too_high, trace.until(3)).severity is Severity.ERROR, "while the loss is still finite"


def test_a_catapult_is_a_warning() -> None:
    loss = HEALTHY.copy()
    loss[2:6] = [10.0, 8.0, 5.0, 3.0]
    finding = found(learning_rate_too_high, run(loss, step=THROWN, overshoot=at_looks([-2.0, -1.0], 0.3)))
    assert finding.severity is Severity.WARNING
    assert "came down again" in finding.sentence


def test_it_begins_where_the_learning_rate_was_raised() -> None:
    loss = np.concatenate([HEALTHY[:251], [40.0], noisy(60.0)[252:]])
    rate = np.where(np.arange(STEPS) < 250, 0.1, 10.0)
    sizes = [-2.0 if k < 250 else 0.0 for k in LOOKS]
    finding = found(learning_rate_too_high, run(loss, step=sizes, rate=rate, overshoot=-2.0))
    assert 250 not in LOOKS
    assert finding.steps[0] == 250


def test_a_constant_answer_is_no_recovery() -> None:
    """The loss came down to the variance of the targets; the layers before have no gradient any more."""
    loss = noisy(0.07)
    loss[:5] = [0.24, 3.0, 12.0, 1.0, 0.2]
    cut = np.where(np.arange(SITES) < 6, -np.inf, 0.0)
    gradient = np.stack([np.zeros(SITES) if k < 3 else cut for k in range(len(LOOKS))])
    trace = run(loss, step=THROWN, overshoot=at_looks([-2.0, -1.0], 0.0), gradient=gradient, sites=4)
    assert trace.learned
    assert found(learning_rate_too_high, trace).severity is Severity.ERROR
    assert found(learning_rate_too_high, run(loss, step=THROWN, sites=4)).severity is Severity.WARNING


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(run(STUCK, step=-2.0, overshoot=-0.8), id="bouncing with steps of a usual length"),
        pytest.param(run(HEALTHY, step=-0.6, overshoot=-0.9), id="long steps before a normalisation, and it learns"),
        pytest.param(run(HEALTHY, step=-1.6, overshoot=-1.1), id="edge of stability"),
        pytest.param(run(STUCK, step=at_looks([0.0], -2.0), overshoot=0.4), id="one long step, no rise"),
        pytest.param(
            run(BLOWN, step=THROWN, overshoot=-1.0, gradient=ramp(SITES, 6.0, 0.0)), id="the network exploded at step 0 already"
        ),
        pytest.param(run(BLOWN, step=np.nan), id="updates unknown"),
        pytest.param(
            run(
                np.concatenate([HEALTHY[:255], [900.0], noisy(2.3)[256:]]),
                step=[-2.0 if k < 255 else 1.0 for k in LOOKS],
                overshoot=-2.0,
            ),
            id="a corrupt batch first, and long steps after it",
        ),
    ],
)
def test_no_learning_rate_too_high(trace: Trace) -> None:
    assert learning_rate_too_high.find(trace) == []


def unsound(first: float, second: float) -> Trace:
    """A gradient that is multiplied along depth before the first step, which has this length and leads to this loss."""
    loss = np.concatenate([[2.3, second, 60.0, 20.0], STUCK[4:]])
    return run(loss, step=at_looks([first, 0.7, 0.1, -0.4], -1.8), overshoot=0.0, gradient=ramp(SITES, 6.0, 0.0))


def test_a_first_step_that_blew_up_is_too_long_whatever_the_network_was() -> None:
    finding = found(learning_rate_too_high, unsound(0.2, 75.0))
    assert finding.severity is Severity.ERROR
    assert finding.steps[0] == 0
    assert learning_rate_too_high.find(unsound(-0.1, 75.0)) == [], "by less than the size of the weights"
    assert learning_rate_too_high.find(unsound(0.2, 2.3)) == [], "the loss blew up later"


def undone(longest: float, *, later: float = -9.0) -> Trace:
    """A network in order until its second step, which is this long; no step ends beyond the bottom."""
    blind = np.full((len(LOOKS), SITES), 0.5)
    blind[2:] = 10.0 ** ramp(SITES, -0.3, later)
    return run(STUCK, step=at_looks([-2.0, longest], -2.0), overshoot=0.2, varying=blind)


def test_a_network_that_one_step_of_a_third_of_its_size_undid() -> None:
    finding = found(learning_rate_too_high, undone(-0.4))
    assert finding.severity is Severity.ERROR
    assert finding.steps == (1, 1)
    assert "moved by 0.4 times its size" in finding.sentence
    assert learning_rate_too_high.find(undone(-0.6)) == [], "a quarter"
    assert learning_rate_too_high.find(undone(-0.4, later=-1.0)) == [], "it is still in order"


CREEPING = noisy(np.linspace(2.31, 2.26, STEPS), 0.003)


def test_steps_too_short() -> None:
    finding = found(learning_rate_too_low, run(CREEPING, step=-4.0, overshoot=0.9))
    assert finding.severity is Severity.ERROR
    assert finding.steps == (0, STEPS - 1)
    assert "no weight matrix can have moved by more than 4 %" in finding.sentence
    assert "still falls steadily" in finding.sentence
    assert all_of(run(CREEPING, step=-4.0, overshoot=0.9)) == {"learning-rate-too-low": Severity.ERROR}


def test_steps_too_short_to_be_seen_in_the_loss() -> None:
    finding = found(learning_rate_too_low, run(STUCK, step=-6.0, overshoot=0.3))
    assert finding.severity is Severity.ERROR
    assert "has hardly moved" in finding.sentence


def test_slow_but_learning_is_a_warning() -> None:
    loss = noisy(np.linspace(2.3, 1.5, STEPS), 0.02)
    assert found(learning_rate_too_low, run(loss, step=-3.5, overshoot=0.9)).severity is Severity.WARNING


def test_a_schedule_that_ran_out() -> None:
    rate = 0.1 * 0.9 ** np.arange(STEPS)
    sizes = [max(-2.0 + k * math.log10(0.9), -12.0) for k in LOOKS]
    finding = found(learning_rate_too_low, run(STUCK, step=sizes, rate=rate))
    assert finding.severity is Severity.ERROR
    assert finding.steps == (66, STEPS - 1)
    assert "stand still from step 66 on, for 84 % of the run" in finding.sentence
    assert finding.helps[0].startswith("make the schedule as long as the run")


def test_a_learning_rate_of_zero() -> None:
    finding = found(learning_rate_too_low, run(STUCK, step=-np.inf, rate=0.0, overshoot=np.nan))
    assert finding.severity is Severity.ERROR
    assert "never more than zero" in finding.sentence


def ran_out(stop: int, low: float, bottom: int | None = None) -> Trace:
    """A learning rate that is zero from step ``stop`` on; by then, or by step ``bottom``, the loss has fallen to ``low``."""
    bottom = bottom or stop
    loss = noisy(np.concatenate([np.linspace(2.3, low, bottom), np.full(STEPS - bottom, low)]))
    going = np.arange(STEPS) < stop
    return run(loss, step=[-2.0 if going[k] else -np.inf for k in LOOKS], rate=np.where(going, 0.1, 0.0))


def test_a_schedule_that_ran_out_while_the_loss_fell() -> None:
    finding = found(learning_rate_too_low, ran_out(120, 1.0))
    assert finding.severity is Severity.WARNING, "more than half of the loss is gone"
    assert "while the loss was still falling" in finding.sentence
    cut_short = found(learning_rate_too_low, ran_out(120, 1.3))
    assert cut_short.severity is Severity.ERROR, "less than half"
    assert cut_short.steps == (120, STEPS - 1)
    assert "for 70 % of the run" in cut_short.sentence
    assert "while the loss was still falling" in cut_short.sentence
    assert found(learning_rate_too_low, ran_out(220, 1.3)).severity is Severity.WARNING, (
        "less than half of the run is behind it"
    )
    going_on = replace(ran_out(120, 1.3), running=True)
    assert found(learning_rate_too_low, going_on).severity is Severity.WARNING, "the rate may be raised again"
    assert learning_rate_too_low.find(ran_out(190, 0.5, 60)) == [], "it had arrived"


def test_steps_that_leave_the_whole_slope_behind_are_too_short_however_far_they_went() -> None:
    trace = run(STUCK, step=-2.0, overshoot=0.9)
    assert trace.travel > 1.0
    assert "after three of four steps 90 % or more of the slope is still there" in found(learning_rate_too_low, trace).sentence
    assert all_of(trace) == {"learning-rate-too-low": Severity.ERROR}, "and no plateau"
    assert all_of(replace(trace, running=True)) == {"learning-rate-too-low": Severity.WARNING}
    number = run(noisy(0.31), step=-2.0, overshoot=0.9, sites=4)
    assert all_of(number) == {"learning-rate-too-low": Severity.ERROR}, "nor need the loss be at chance"
    assert all_of(run(noisy(np.linspace(2.3, 1.5, STEPS)), step=-2.0, overshoot=0.9)) == {}, "it learns"


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(run(STUCK, step=-2.0, overshoot=0.75), id="three quarters of the slope"),
        pytest.param(
            run(STUCK, step=-2.0, overshoot=[0.9 if k % 3 else 0.5 for k in range(len(LOOKS))]), id="two steps of three"
        ),
        pytest.param(run(STUCK, step=-2.0, overshoot=at_looks([0.9] * 7, np.nan)), id="seven looks"),
    ],
)
def test_a_plateau_where_the_slope_does_bend(trace: Trace) -> None:
    assert all_of(trace) == {"plateau": Severity.ERROR}


COSINE = 0.5 * (1.0 + np.cos(np.pi * np.arange(STEPS) / STEPS))


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(run(STUCK, step=-4.0, overshoot=-0.5), id="steps that end beyond the bottom"),
        pytest.param(run(HEALTHY, step=-4.0, overshoot=0.9), id="fine-tuning that works"),
        pytest.param(run(CREEPING, step=-4.0, overshoot=0.9, gradient=ramp(SITES, -8.0, 0.0)), id="a vanishing gradient"),
        pytest.param(run(CREEPING, step=-4.0, overshoot=0.9, varying=10.0 ** ramp(SITES, -0.3, -9.0)), id="a blind network"),
        pytest.param(run(CREEPING, step=-4.0, overshoot=0.9, weight_gradient=-np.inf), id="no gradient"),
        pytest.param(
            replace(run(CREEPING, step=-4.0, rate=np.linspace(1e-6, 1e-3, STEPS)), running=True), id="still warming up"
        ),
        pytest.param(run(CREEPING[:40], step=-4.0), id="a run of a few steps"),
        pytest.param(run(HEALTHY, rate=COSINE, step=[-2.0 + math.log10(COSINE[k]) for k in LOOKS]), id="a cosine to zero"),
        pytest.param(
            run(
                noisy(0.2), step=[-2.0 if k < 200 else -np.inf for k in LOOKS], rate=np.where(np.arange(STEPS) < 200, 1.0, 0.0)
            ),
            id="not watched from its start, and converged",
        ),
        pytest.param(run(noisy(0.3, 0.1), step=-4.0, overshoot=0.02), id="resumed when it had converged: noise"),
        pytest.param(run(BLOWN, step=-2.0, overshoot=0.9), id="whole slopes after a rise"),
        pytest.param(run(STUCK, step=-2.0, overshoot=0.9, gradient=ramp(SITES, -8.0, 0.0)), id="whole slopes that vanish"),
    ],
)
def test_no_learning_rate_too_low(trace: Trace) -> None:
    assert Severity.ERROR not in [f.severity for f in learning_rate_too_low.find(trace)]


# ---- plateau and oscillation -------------------------------------------------------------------------------------------


def test_a_plateau_at_the_level_of_guessing() -> None:
    finding = found(plateau, run(STUCK))
    assert finding.severity is Severity.ERROR
    assert "at the level of guessing" in finding.sentence
    assert all_of(run(STUCK)) == {"plateau": Severity.ERROR}
    short = run(STUCK[:300])
    assert found(plateau, replace(short, running=True)).severity is Severity.WARNING, "parities stay flat for that long"
    assert found(plateau, short).severity is Severity.ERROR, "it has ended there"


def test_a_warm_up_that_outlasts_the_run_is_too_low() -> None:
    """A scheduler that is stepped once an epoch and was made for steps."""
    assert (
        found(learning_rate_too_low, run(CREEPING, step=-4.0, rate=np.linspace(1e-6, 1e-3, STEPS))).severity is Severity.ERROR
    )


def test_a_network_that_long_steps_undid_is_ill_of_its_learning_rate() -> None:
    blind = np.ones((len(LOOKS), SITES))
    blind[2:] = 10.0 ** ramp(SITES, -0.3, -9.0)
    trace = run(STUCK, step=-0.5, overshoot=-1.2, varying=blind)
    assert found(learning_rate_too_high, trace).severity is Severity.ERROR


def test_a_coin_that_is_guessed_is_at_chance() -> None:
    assert found(plateau, run(noisy(math.log(2), 0.002), sites=4)).severity is Severity.ERROR


def test_any_other_flat_loss_is_a_warning() -> None:
    assert found(plateau, run(noisy(0.31), sites=4)).severity is Severity.WARNING


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(run(HEALTHY), id="learning"),
        pytest.param(run(noisy(np.geomspace(2.3, 1e-3, STEPS))[::1]), id="converged"),
        pytest.param(run(noisy(np.linspace(2.45, 2.25, STEPS), 0.005)), id="slow, but falling"),
        pytest.param(run(STUCK, step=-4.0), id="steps too short to tell"),
        pytest.param(run(BLOWN, step=THROWN), id="thrown"),
        pytest.param(run(STUCK, gradient=ramp(SITES, -9.0, 0.0)), id="vanishing"),
        pytest.param(run(STUCK, signal=ramp(SITES, 0.0, -9.0)), id="collapsed"),
        pytest.param(run(STUCK, dead=0.95), id="dead"),
        pytest.param(run(STUCK[:80]), id="too short"),
        pytest.param(run(STUCK, each_step={"optimizer": np.arange(STEPS) % 2}), id="two that play against each other"),
        pytest.param(run(np.random.default_rng(0).normal(0.0, 1.0, STEPS)), id="a policy gradient"),
    ],
)
def test_no_plateau(trace: Trace) -> None:
    assert plateau.find(trace) == []


SWINGING = np.concatenate([[1.0] * 3, 1.0 + 0.3 * (-1.0) ** np.arange(STEPS - 3)])


def test_oscillation() -> None:
    finding = found(oscillation, run(SWINGING, overshoot=-0.8, sites=4))
    assert finding.severity is Severity.ERROR
    assert finding.steps == (200, STEPS - 1)
    learned = np.concatenate([np.geomspace(2.3, 0.2, 200), 0.2 + 0.19 * (-1.0) ** np.arange(200)])
    assert found(oscillation, run(noisy(learned), overshoot=-0.8)).severity is Severity.WARNING


def waves(depth: float, level: float = 0.3) -> np.ndarray:
    return noisy(level * (1.0 + depth * np.sin(np.arange(STEPS) / 15.0)), 0.1)


def heavy(loss: np.ndarray, momentum: float = 0.99) -> Trace:
    loss = np.concatenate([np.geomspace(1.0, loss[0], 20), loss[20:]])
    return run(loss, optimizer={"options": {"lr": 0.1, "momentum": momentum}}, sites=4)


def test_oscillation_of_a_heavy_momentum() -> None:
    finding = found(oscillation, heavy(waves(0.5)))
    assert finding.severity is Severity.ERROR
    assert "momentum of 0.99" in finding.sentence
    assert "some 100 gradients" in finding.sentence


def log_waves(depth: float, length: float = 60.0, noise: float = 0.1) -> np.ndarray:
    """Sine waves of the log loss, of this length in steps."""
    return noisy(0.3 * np.exp(depth * np.sin(2.0 * np.pi * np.arange(STEPS) / length)), noise)


@pytest.mark.parametrize("length", [8.0, 25.0, 75.0])
def test_waves_of_one_length_whatever_it_is(length: float) -> None:
    finding = found(oscillation, heavy(log_waves(0.5, length)))
    assert finding.severity is Severity.ERROR
    assert finding.steps == (STEPS // 3, STEPS - 1)
    size, share = finding.evidence[0].value, finding.evidence[1].value
    assert size == pytest.approx(0.5 / math.sqrt(2.0), rel=0.1)
    assert 0.7 < share <= 1.0


def jumping(count: int, level: float = 1.0, first: int = 60) -> np.ndarray:
    """A loss that starts at 1 and stands at a level, from which it jumps so many times, evenly spread."""
    loss = noisy(level, 0.03)
    loss[np.linspace(first, STEPS - 10, count).astype(int)] += 2.0
    loss[:3] = 1.0
    return loss


def jumpy(loss: np.ndarray, step: ArrayLike = -2.0) -> Trace:
    trace = run(loss, step=step, sites=4)
    assert trace.only_losses is not None
    assert len(trace.only_losses.spikes) == np.count_nonzero(loss > 2.0), "every jump is one"
    return trace


def test_oscillation_in_jumps() -> None:
    finding = found(oscillation, jumpy(jumping(15, 0.4)))
    assert finding.severity is Severity.ERROR
    assert finding.steps == (60, STEPS - 1)
    assert "The loss jumps 15 times, from step 60 to the end" in finding.sentence
    assert "it stands at 40 % of its start, and a quarter of the steps are 0.01 of the weights or more" in finding.sentence
    assert found(oscillation, jumpy(jumping(12))).severity is Severity.ERROR
    third = [-2.0 if k % 3 == 0 else -3.0 for k in range(len(LOOKS))]
    assert found(oscillation, jumpy(jumping(15), third)).severity is Severity.ERROR, "a third of the steps are long"


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(jumpy(jumping(11)), id="few jumps"),
        pytest.param(jumpy(jumping(15, first=150)), id="none in the first third"),
        pytest.param(jumpy(jumping(15, 0.1)), id="a level near zero"),
        pytest.param(jumpy(jumping(15), -2.3), id="steps of a usual length"),
        pytest.param(jumpy(jumping(15), [-2.0 if k % 5 == 0 else -3.0 for k in range(len(LOOKS))]), id="few long steps"),
        pytest.param(jumpy(jumping(15) * np.linspace(1.0, 0.5, STEPS) ** 0.5), id="a level that falls"),
        pytest.param(jumpy(jumping(15), np.nan), id="steps unknown"),
    ],
)
def test_no_oscillation_in_jumps(trace: Trace) -> None:
    assert oscillation.find(trace) == []


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(run(noisy(np.geomspace(2.3, 0.1, STEPS), 0.4), overshoot=-1.0), id="bouncing that declines"),
        pytest.param(run(noisy(1.0, 0.4), overshoot=0.1, sites=4), id="noise of small batches"),
        pytest.param(run(noisy(1.0, 0.01), overshoot=-0.8, sites=4), id="no swings to speak of"),
        pytest.param(run(noisy(1.0, 0.4), overshoot=np.nan, sites=4), id="overshoot unknown"),
        pytest.param(
            run(noisy(np.concatenate([np.geomspace(2.3, 0.01, 200), np.full(200, 0.01)]), 0.5), overshoot=-0.8), id="done"
        ),
        pytest.param(heavy(waves(0.5), 0.9), id="waves, and a usual momentum"),
        pytest.param(heavy(waves(0.0)), id="heavy momentum without waves"),
        pytest.param(heavy(waves(0.5, 0.01)), id="waves far below the start"),
        pytest.param(heavy(noisy(np.geomspace(0.9, 0.05, STEPS)) * waves(0.3, 1.0)), id="waves that decline"),
        pytest.param(heavy(log_waves(0.5), 0.9), id="waves of the log, and a usual momentum"),
        pytest.param(heavy(log_waves(0.0, noise=0.4)), id="heavy momentum, and nothing but noise"),
        pytest.param(heavy(log_waves(0.5, noise=1.5)), id="waves that drown in noise"),
        pytest.param(heavy(log_waves(0.1, noise=0.02)), id="waves of a few percent"),
        pytest.param(heavy(noisy(np.geomspace(1.0, 0.2, STEPS), 0.01)), id="a steady fall"),
        pytest.param(heavy(log_waves(0.5, 300.0)), id="less than one wave: a trend that bends"),
    ],
)
def test_no_oscillation(trace: Trace) -> None:
    assert oscillation.find(trace) == []


# ---- divergence and spikes ---------------------------------------------------------------------------------------------


def test_divergence() -> None:
    loss = np.concatenate([np.geomspace(1.0, 0.3, 100), np.geomspace(0.3, 50.0, 300)])
    finding = found(divergence, run(noisy(loss), sites=4))
    assert finding.severity is Severity.ERROR
    assert 150 < finding.steps[0] < 190, "from where it last crossed its start"
    assert "times its start and stays there" in finding.sentence


def test_a_small_rise_needs_a_fault_to_be_an_error() -> None:
    loss = noisy(np.concatenate([np.full(20, 1.0), np.full(STEPS - 20, 4.0)]))
    assert found(divergence, run(loss, sites=4)).severity is Severity.WARNING
    climbing = found(divergence, run(loss, overshoot=-1.5, sites=4))
    assert climbing.severity is Severity.ERROR
    assert "climbed" in climbing.sentence
    thrown = found(divergence, run(loss, step=THROWN, sites=4))
    assert "moved by 5 times its size" in thrown.sentence
    weight = np.linspace(0.0, 1.0, len(LOOKS))[:, None]
    assert "has grown to 10 times its size" in found(divergence, run(loss, weight=weight, sites=4)).sentence


def test_a_training_that_comes_undone() -> None:
    gone = np.concatenate([np.geomspace(2.3, 0.2, 200), np.linspace(0.2, 2.3, 100), np.full(100, 2.3)])
    finding = found(divergence, run(noisy(gone)))
    assert finding.severity is Severity.ERROR
    assert "given back 100 %" in finding.sentence
    half = np.concatenate([np.geomspace(2.3, 0.2, 200), np.full(200, 1.5)])
    assert found(divergence, run(noisy(half))).severity is Severity.ERROR, "more than half of the loss is left"
    less = np.concatenate([np.geomspace(2.3, 0.2, 200), np.full(200, 0.9)])
    assert divergence.find(run(noisy(less))) == [], "a third of it"


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(run(STUCK), id="flat"),
        pytest.param(run(BLOWN, step=THROWN), id="blown up and back"),
        pytest.param(run(noisy(5.0, 1.0)), id="much noise"),
        pytest.param(
            run(noisy(np.linspace(0.7, 9.0, STEPS)), each_step={"optimizer": np.arange(STEPS) % 2}, step=THROWN), id="a GAN"
        ),
        pytest.param(run(np.random.default_rng(1).normal(0.0, 1.0, STEPS)), id="a policy gradient"),
        pytest.param(run(-HEALTHY[::-1]), id="a log density that goes on below zero"),
        pytest.param(
            run(noisy(np.concatenate([np.geomspace(2.3, 0.01, 300), np.full(100, 0.05)]), 0.3)), id="overfitting no more"
        ),
    ],
)
def test_no_divergence(trace: Trace) -> None:
    assert divergence.find(trace) == []


def spiked(at: int = 250, height: float = 3.0, lasts: int = 20, base: np.ndarray = HEALTHY) -> np.ndarray:
    loss = base.copy()
    loss[at : at + lasts] = np.maximum(height * np.exp(-4.0 * np.arange(lasts) / lasts), loss[at : at + lasts])
    return loss


def test_a_spike_that_passes() -> None:
    finding = found(loss_spike, run(spiked()))
    assert finding.severity is Severity.WARNING
    assert finding.steps[0] == finding.peak == 250
    assert "beyond its start; it comes down within" in finding.sentence


def test_a_spike_that_ruins_the_rest() -> None:
    loss = np.concatenate([HEALTHY[:250], noisy(2.3, 0.02)[250:]])
    finding = found(loss_spike, run(loss))
    assert finding.severity is Severity.ERROR
    assert finding.steps == (250, STEPS - 1)
    assert "does not come down again" in finding.sentence


def test_a_spike_that_comes_down_halfway_ruins_the_rest_too() -> None:
    loss = np.concatenate([HEALTHY[:250], 300.0 * np.exp(-np.arange(12.0)), noisy(1.8, 0.02)[262:]])
    finding = found(loss_spike, run(loss))
    assert finding.severity is Severity.ERROR
    assert finding.sentence.endswith("does not come down to where it was.")


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(HEALTHY, id="noise"),
        pytest.param(noisy(np.geomspace(2.3, 1e-4, STEPS), 1.0), id="heavy tails of a tiny loss"),
        pytest.param(spiked(lasts=1), id="one corrupt batch"),
        pytest.param(spiked(at=5), id="how trainings begin"),
        pytest.param(spiked(height=0.5, lasts=5), id="small against what was learned"),
        pytest.param(noisy(1.0, 0.5), id="noise of small batches"),
        pytest.param(np.random.default_rng(1).standard_t(2, STEPS), id="a policy gradient with heavy tails"),
    ],
)
def test_no_loss_spike(loss: np.ndarray) -> None:
    assert loss_spike.find(run(loss)) == []


ADAM = {"kind": "AdamW", "options": {"lr": 1e-3, "betas": [0.9, 0.999]}}


def moments(where: Mapping[int, float], otherwise: float = 1.0) -> np.ndarray:
    """moment_ratio of every parameter such that its RMS is as given at these looks."""
    rms = np.array([where.get(k, otherwise) for k in LOOKS])
    columns = np.where(np.arange(SITES + WEIGHTS) >= SITES, 4096.0, np.nan)
    return rms[:, None] ** 2 * columns


def test_a_stale_second_moment() -> None:
    assert 255 in LOOKS
    trace = run(spiked(at=258), optimizer=ADAM, more={"moment_ratio": moments({255: 4.0})})
    finding = found(stale_second_moment, trace)
    assert finding.severity is Severity.WARNING
    assert finding.steps == (255, 258)
    assert finding.sites[0] == "fc0.weight"
    assert "4.0 times" in finding.sentence
    ruined = np.concatenate([HEALTHY[:258], noisy(2.3)[258:]])
    worse = run(ruined, optimizer=ADAM, more={"moment_ratio": moments({255: 4.0})})
    assert found(stale_second_moment, worse).severity is Severity.ERROR


def thrown(size: float, at: int = 270) -> Trace:
    """A spike at step 262 that passes, and one step of this length, at a look."""
    sizes = [size if k == at else -2.0 for k in LOOKS]
    return run(spiked(at=262), optimizer=ADAM, step=sizes, more={"moment_ratio": moments({255: 4.0})})


def test_a_stale_second_moment_that_threw_the_weights() -> None:
    assert {255, 270, 285} < set(LOOKS)
    finding = found(stale_second_moment, thrown(0.0))
    assert finding.severity is Severity.ERROR, "the loss comes down, but what was learned is gone"
    assert "steps of up to 1 times the size of the weights followed, and it came down within" in finding.sentence
    for harmless in (thrown(-0.4), thrown(0.0, at=285), thrown(0.0, at=240)):
        assert found(stale_second_moment, harmless).severity is Severity.WARNING


def test_a_stale_second_moment_between_the_looks() -> None:
    norm = np.ones(STEPS)
    norm[255:258] = [3.0, 6.0, 12.0]
    finding = found(
        stale_second_moment,
        run(spiked(at=258), optimizer=ADAM, more={"moment_ratio": moments({})}, each_step={"grad_norm": norm}),
    )
    assert finding.sites == ()
    assert finding.steps == (257, 258)


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(run(HEALTHY, optimizer=ADAM, more={"moment_ratio": moments({255: 4.0})}), id="no damage"),
        pytest.param(
            run(spiked(at=258), optimizer=ADAM, more={"moment_ratio": moments({})}), id="a spike, and a moment up to date"
        ),
        pytest.param(
            run(spiked(at=255), optimizer=ADAM, more={"moment_ratio": moments({255: 9.0})}), id="in the step of the jump"
        ),
        pytest.param(run(spiked(at=258), optimizer=ADAM, more={"moment_ratio": moments({120: 9.0})}), id="long before"),
        pytest.param(run(spiked(at=258)), id="no Adam"),
        pytest.param(
            run(
                spiked(at=258),
                optimizer=ADAM,
                more={"moment_ratio": moments({255: 9.0})},
                rate=np.where(np.arange(STEPS) < 250, 1e-3, 1e-1),
            ),
            id="the learning rate was raised",
        ),
    ],
)
def test_no_stale_second_moment(trace: Trace) -> None:
    assert stale_second_moment.find(trace) == []


# ---- clipping and skipped steps ----------------------------------------------------------------------------------------


def clipped(loss: np.ndarray, norm: float, **more: Any) -> Trace:
    flags = dict.fromkeys(range(loss.size), Flag.PRE_CLIP)
    norms = noisy(norm, 0.2, steps=loss.size)
    return run(loss, flags=flags, each_step={"grad_norm": norms, "clip_threshold": 1.0}, **more)


def test_clipping_that_starves() -> None:
    finding = found(clipping_always_on, clipped(STUCK, 400.0, step=-4.0, overshoot=0.8))
    assert finding.severity is Severity.ERROR
    assert "clipped in 100 % of the steps, to 0.0025 of its norm" in finding.sentence
    assert "no weight matrix can have moved by more than 4 %" in finding.sentence


def test_clipping_by_a_lot_is_no_more_than_worth_knowing() -> None:
    assert found(clipping_always_on, clipped(STUCK, 400.0)).severity is Severity.WARNING
    assert found(clipping_always_on, clipped(HEALTHY, 400.0)).severity is Severity.INFO
    adam = found(clipping_always_on, clipped(STUCK, 400.0, step=-4.0, overshoot=0.8, optimizer=ADAM))
    assert adam.severity is Severity.INFO
    assert "AdamW divides by the size of its gradients" in adam.sentence


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(clipped(STUCK, 5.0, step=-4.0), id="in every step, but by little"),
        pytest.param(clipped(STUCK, 0.3, step=-4.0), id="never"),
        pytest.param(run(STUCK, step=-4.0, each_step={"grad_norm": 400.0}), id="no clipping"),
        pytest.param(clipped(STUCK[:15], 400.0), id="too short"),
    ],
)
def test_no_clipping(trace: Trace) -> None:
    assert clipping_always_on.find(trace) == []


def test_a_scaler_that_skips_nearly_everything() -> None:
    flags = {step: Flag.SKIPPED for step in range(STEPS) if step % 8}
    finding = found(skipped_steps, run(STUCK, flags=flags, each_step={"loss_scale": 2.0}))
    assert finding.severity is Severity.ERROR
    assert "skipped 70 of the last 80 steps" in finding.sentence
    assert finding.evidence[1].value == 2.0


def test_a_scaler_that_skips_many() -> None:
    flags = {step: Flag.SKIPPED for step in range(STEPS) if step % 5 == 0}
    assert found(skipped_steps, run(flags=flags)).severity is Severity.WARNING


def test_a_script_that_never_steps() -> None:
    none: dict[str, Any] = {"optimizer": {}, "each_step": {"optimizer": -1.0}}
    still = run(STUCK, weight=np.zeros((len(LOOKS), 1)), **none)
    never = replace(still, events=())
    finding = found(skipped_steps, never)
    assert finding.severity is Severity.ERROR
    assert finding.sentence.startswith("No step is ever taken: after 400 backward passes")
    moving = run(STUCK, weight=np.linspace(0.0, 0.1, len(LOOKS))[:, None], **none)
    assert skipped_steps.find(replace(moving, events=())) == [], "weights that the script moves by itself"
    assert skipped_steps.find(run(STUCK, weight=np.zeros((len(LOOKS), 1)))) == [], "an optimizer was seen"
    assert skipped_steps.find(never.until(30)) == []


@pytest.mark.parametrize(
    "skipped",
    [
        pytest.param(range(12), id="the search for a scale"),
        pytest.param(range(0, STEPS, 90), id="now and then"),
        pytest.param((), id="none"),
    ],
)
def test_no_skipped_steps(skipped: Sequence[int]) -> None:
    assert skipped_steps.find(run(flags=dict.fromkeys(skipped, Flag.SKIPPED))) == []


# ---- what is known of the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "learned"),
    [
        pytest.param(np.linspace(-100.0, -110.0, 200) + np.sin(np.arange(200.0)) / 5, True, id="a log density"),
        pytest.param(np.linspace(5.0, -1.0, 200), True, id="through zero"),
        pytest.param(np.linspace(1.0, 0.9, 200), False, id="by a tenth"),
        pytest.param(np.random.default_rng(0).normal(-100.0, 3.0, 200), False, id="noise below zero"),
    ],
)
def test_learning_on_either_side_of_zero(loss: np.ndarray, learned: bool) -> None:
    assert Learning.from_losses(loss).clear is learned


def test_a_policy_gradient_is_neither_learned_nor_stalled() -> None:
    trace = run(np.random.default_rng(0).normal(0.0, 1.0, STEPS), sites=4)
    assert trace.learning.signless
    assert not trace.learned
    assert not trace.stalled


def test_losses_in_turns() -> None:
    loss = np.empty(STEPS)
    loss[::2], loss[1::2] = 0.7, np.geomspace(3.0, 0.1, STEPS // 2)
    trace = run(loss, each_step={"optimizer": np.arange(STEPS) % 2})
    first, second = losses_of(trace.ledger)
    assert first.value.tolist() == [0.7] * (STEPS // 2)
    assert second.step[0] == 1
    assert trace.learned
    flat = run(STUCK, each_step={"optimizer": np.arange(STEPS) % 2})
    assert not flat.stalled, "losses that play against each other may rightly stand still"
    phases = run(loss, each_step={"optimizer": np.arange(STEPS) >= 200})
    assert phases.only_losses is not None, "one after the other is no turns"


def test_the_way_travelled() -> None:
    trace = run(step=-3.0)
    assert trace.travel == pytest.approx(STEPS * 1e-3)
    assert np.allclose(trace.pace, -3.0)
    assert run(step=-np.inf).travel < 1e-8
    assert math.isnan(run(step=np.nan).travel)


def test_drift_is_the_fall_of_a_steady_slope() -> None:
    losses = run(np.linspace(2.0, 1.0, STEPS)).only_losses
    assert losses is not None
    assert losses.drift(0.5) == pytest.approx(0.25, rel=0.1)
    assert losses.drift(1.0) == pytest.approx(0.5, rel=0.1)
    assert losses.spikes == ()


def changing(*parts: tuple[float, float, int], noise: float = 0.8) -> np.ndarray:
    """A noisy loss, part by part: from one level to another in so many steps."""
    return noisy(np.concatenate([np.geomspace(*part) for part in parts]), noise, steps=sum(part[2] for part in parts))


FIRST_TASK = (2.3, 0.05, 150), (0.05, 0.05, 50)


def test_a_task_that_changes_under_a_noisy_loss() -> None:
    better = run(changing(*FIRST_TASK, (8.0, 2.2, 200)), sites=4)
    assert better.task_changed == 200
    assert better.relearned
    assert not better.learned
    assert not better.stalled, "it ends above its start, and has learned the new task"
    flat = run(changing(*FIRST_TASK, (8.0, 8.0, 200)), sites=4)
    assert flat.task_changed == 200
    assert not flat.relearned
    assert flat.stalled


def test_of_several_tasks_the_last_one_counts() -> None:
    trace = run(changing((1.0, 0.02, 120), (2.0, 1.0, 140), (50.0, 20.0, 140), noise=0.2), sites=4)
    assert trace.task_changed == 260
    assert trace.until(259).task_changed == 120


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(run(changing((0.05, 0.05, STEPS)), sites=4), id="noise"),
        pytest.param(run(changing(*FIRST_TASK, (20.0, 0.05, 30), (0.05, 0.05, 170)), sites=4), id="it comes down again"),
        pytest.param(run(changing(*FIRST_TASK, (0.05, 20.0, 200)), sites=4), id="it climbs"),
        pytest.param(run(changing(*FIRST_TASK, (0.4, 0.4, 200)), sites=4), id="a small jump"),
        pytest.param(run(changing(*FIRST_TASK, (20.0, 20.0, 15)), sites=4), id="too young to tell"),
        pytest.param(
            run(changing(*FIRST_TASK, (20.0, 20.0, 200)), sites=4, step=[-0.9 if k == 195 else -2.0 for k in LOOKS]),
            id="thrown",
        ),
    ],
)
def test_no_change_of_the_task(trace: Trace) -> None:
    assert trace.task_changed == -1
    assert not trace.relearned


def test_a_training_suffers_that_has_not_lost_half_of_its_loss() -> None:
    third = run(noisy(np.geomspace(2.3, 1.5, STEPS)))
    assert third.learned
    assert third.suffers
    assert not replace(third, running=True).suffers, "it may yet get there"
    assert not run(noisy(np.geomspace(2.3, 1.0, STEPS))).suffers
    assert run(STUCK).suffers
    assert not run(changing(*FIRST_TASK, (8.0, 2.2, 200)), sites=4).suffers, "it learned the new task"
    assert not run(noisy(1.0), each_step={"optimizer": np.arange(STEPS) % 2}).suffers, "losses that play against each other"
    assert not run(np.random.default_rng(0).normal(0.0, 1.0, STEPS), sites=4).suffers, "a policy gradient"


def test_the_way_back_from_a_huge_loss_is_no_progress() -> None:
    huge = run(np.geomspace(6.0, 0.5, STEPS))  # logits of size 1 that know nothing cost hypot(ln 10, sqrt(2 ln 10)) = 3.1
    assert huge.learning.fall > 0.9
    assert huge.fall_from_guessing == pytest.approx(1.0 - huge.learning.end / math.log(10))
    usual = run(np.geomspace(2.2, 1.0, STEPS))
    assert usual.fall_from_guessing == usual.learning.fall, "it began below what guessing costs"
    other = run(np.geomspace(200.0, 2.0, STEPS))
    assert other.fall_from_guessing == other.learning.fall, "no cross entropy of such logits"
    number = run(np.geomspace(6.0, 1.0, STEPS), sites=4)
    assert number.classes == 1
    assert number.fall_from_guessing == number.learning.fall, "one output is no choice"


def test_warming_up() -> None:
    up = np.minimum(np.arange(STEPS) / 300.0, 1.0)
    assert run(rate=up).until(250).warming_up
    assert not run(rate=np.minimum(np.arange(STEPS) / 40.0, 1.0)).warming_up
    assert not run(rate=0.1).warming_up
    assert not run(rate=COSINE).warming_up


# ---- laws --------------------------------------------------------------------------------------------------------------


def cases() -> dict[str, Callable[[float], Trace]]:
    """Every disease, with the loss multiplied by a factor."""
    ruined = np.concatenate([HEALTHY[:250], noisy(2.3)[250:]])
    diverging = noisy(np.concatenate([np.geomspace(1.0, 0.3, 100), np.geomspace(0.3, 50.0, 300)]))
    bends = at_looks([-3.0, -0.5, -1.2], 0.0)
    return {
        "healthy": lambda k: run(k * HEALTHY, sites=4),
        "too high": lambda k: run(k * BLOWN, step=THROWN, overshoot=bends, sites=4),
        "too low": lambda k: run(k * CREEPING, step=-4.0, overshoot=0.9, sites=4),
        "plateau": lambda k: run(k * noisy(0.31), sites=4),
        "oscillation": lambda k: run(k * SWINGING, overshoot=-0.8, sites=4),
        "jumps": lambda k: run(k * jumping(15), sites=4),
        "waves": lambda k: run(
            k * np.append(1.0, log_waves(0.5, 25.0)), optimizer={"options": {"lr": 0.1, "momentum": 0.99}}, sites=4
        ),
        "spike": lambda k: run(k * spiked(), sites=4),
        "ruined": lambda k: run(k * ruined, sites=4, optimizer=ADAM, more={"moment_ratio": moments({240: 5.0})}),
        "divergence": lambda k: run(k * diverging, sites=4),
        "clipped": lambda k: clipped(k * STUCK, 400.0, step=-4.0, overshoot=0.8, sites=4),
        "policy": lambda k: run(k * np.random.default_rng(3).normal(0.0, 1.0, STEPS), sites=4),
    }


CASES = cases()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("times", [1000.0, 2.0**-12])
def test_a_loss_of_another_size_is_the_same_loss(name: str, times: float) -> None:
    plain, scaled = CASES[name](1.0), CASES[name](times)
    assert [f.evidence[0].value for m in MODULES for f in m.find(scaled)] == pytest.approx(
        [f.evidence[0].value for m in MODULES for f in m.find(plain)], rel=1e-6
    )
    assert all_of(scaled) == all_of(plain)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.integers(-1, STEPS))
def test_every_prefix_can_be_judged(name: str, step: int) -> None:
    trace = CASES[name](1.0).until(step)
    for module in MODULES:
        for finding in module.find(trace):
            assert finding.rule == module.NAME
            assert 0 <= finding.steps[0] <= finding.steps[1] <= max(step, 0) + 1
            assert finding.peak >= 0
            assert finding.sentence.endswith(".")
            assert not re.search(r"\bnan\b|\binf\b|  ", finding.sentence)
            assert finding.helps == module.HELPS or module.HELPS
            assert all(e.claim and e.source for e in finding.evidence)


@settings(max_examples=60, deadline=None)
@given(st.integers(6, STEPS))
def test_a_healthy_training_has_no_error_at_any_moment(step: int) -> None:
    assert Severity.ERROR not in all_of(run().until(step)).values()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_no_rule_raises_whatever_the_record_holds(seed: int) -> None:
    random = np.random.default_rng(seed)
    steps = int(random.integers(0, 150))
    looks = [k for k in range(steps) if random.random() < random.choice([0.02, 0.3])]
    with np.errstate(over="ignore"):
        loss = random.choice([1.0, -3.0, 1e300, 0.0, 1e-300]) * np.exp(
            random.choice([0.0, 0.5, 20.0]) * random.normal(size=steps)
        )
    loss = np.where(random.random(steps) < random.choice([0.0, 0.2]), random.choice([np.nan, np.inf, 0.0, -1.0], steps), loss)

    def any_of(low: float, high: float, size: int) -> np.ndarray:
        wild = random.random(size) < random.choice([0.0, 0.2, 1.0])
        return np.where(wild, random.choice([np.nan, np.inf, -np.inf, 0.0], size), random.uniform(low, high, size))

    trace = run(
        loss,
        looks=looks,
        step=any_of(-8.0, 2.0, len(looks)),
        overshoot=any_of(-3.0, 2.0, len(looks)),
        rate=any_of(0.0, 1.0, steps),
        flags={k: Flag.SKIPPED | Flag.PRE_CLIP for k in range(steps) if random.random() < random.choice([0.0, 0.6])},
        optimizer=[ADAM, {"options": {"momentum": 0.99}}, {"options": {"momentum": 1.0}}, {"options": 3}][
            random.integers(0, 4)
        ],
        sites=int(random.integers(0, 5)),
        each_step={
            "grad_norm": any_of(0.0, 9.0, steps),
            "clip_threshold": any_of(0.0, 1.0, steps),
            "optimizer": random.choice([np.nan, 0.0, 1.0], steps),
        },
        weight=any_of(-2.0, 2.0, len(looks))[:, None],
    )
    for module in MODULES:
        for finding in module.find(trace):
            assert not re.search(r"\bnan\b|\binf\b|  ", finding.sentence)
            assert finding.steps[0] <= finding.steps[1]
