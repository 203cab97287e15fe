"""The verdict: when a treatment is a cure, and when it is none."""

from __future__ import annotations

import math

import pytest

from gradiometer.trial.result import Ending, Trial, Word
from gradiometer.trial.verdict import against, beyond_doubt, direction, end_of, interval, judge, level
from trials import curve, trial

NAN = math.nan
STEPS = 60
SICK = ("vanishing-gradient", "plateau")


def stuck(seed: int = 0, **fields: object) -> Trial:
    return trial(*curve(2.3, 2.3, STEPS, seed + 100, 0.02), treated=False, seed=seed, errors=SICK, **fields)  # type: ignore[arg-type]


def learns(seed: int = 0, end: float = 0.2, **fields: object) -> Trial:
    return trial(*curve(2.3, end, STEPS, seed, 0.05), seed=seed, **fields)  # type: ignore[arg-type]


CONTROLS = [stuck(seed) for seed in range(3)]


def test_cured_when_nothing_is_ill_and_the_loss_is_better_over_seeds() -> None:
    verdict = judge(CONTROLS, [learns(seed) for seed in range(3)], STEPS)
    assert verdict.word is Word.CURED
    assert verdict.gone
    assert verdict.seeds == 3
    assert verdict.loss.high < 0.0
    assert verdict.loss_end < 0.5 < verdict.control_end
    assert verdict.sentence.startswith("Loss 0.")
    assert "3 seeds" in verdict.sentence
    assert "nothing ill is found any more" in verdict.sentence


def test_what_is_still_ill_is_no_cure() -> None:
    verdict = judge(CONTROLS, [learns(0), learns(1), learns(2, errors=("plateau",))], STEPS)
    assert verdict.word is Word.HELPS
    assert verdict.left == ("plateau",)
    assert not verdict.new
    assert verdict.gone, "the root is gone"
    assert "plateau is still found" in verdict.sentence


def test_a_new_disease_is_no_cure() -> None:
    verdict = judge(CONTROLS, [learns(seed, errors=("divergence",)) for seed in range(3)], STEPS)
    assert verdict.word is Word.HELPS
    assert verdict.new == ("divergence",)
    assert "divergence has come instead" in verdict.sentence


def test_a_loss_within_the_noise_is_no_cure() -> None:
    verdict = judge(CONTROLS, [trial(*curve(2.3, 2.3, STEPS, seed, 0.02), seed=seed) for seed in range(3)], STEPS)
    assert verdict.word is Word.NO_HELP
    assert verdict.loss.low < 0.0 < verdict.loss.high


def test_one_seed_of_three_is_luck() -> None:
    treated = [learns(0), *(trial(*curve(2.3, 2.31, STEPS, seed, 0.02), seed=seed) for seed in (1, 2))]
    assert judge(CONTROLS[:1], treated[:1], STEPS).word is Word.CURED
    assert judge(CONTROLS, treated, STEPS).word is Word.NO_HELP


def test_cures_of_different_strength_are_cures() -> None:
    """On a logarithmic scale three seeds that end at 0.02, 0.3 and 1 are all over the place."""
    treated = [learns(seed, end) for seed, end in enumerate((0.02, 0.3, 1.0))]
    verdict = judge(CONTROLS, treated, STEPS)
    assert verdict.word is Word.CURED
    assert verdict.loss.high < 0.0
    barely = [learns(seed, end) for seed, end in enumerate((0.02, 0.3, 2.25))]
    assert judge(CONTROLS, barely, STEPS).word is Word.NO_HELP


def test_a_worse_loss_is_harm() -> None:
    worse = [trial(*curve(2.3, 5.0, STEPS, seed), seed=seed) for seed in range(3)]
    assert judge(CONTROLS, worse, STEPS).word is Word.HARMFUL
    lost = [trial(*curve(2.3, 1.0, STEPS)[:-3], NAN, NAN, NAN, seed=seed) for seed in range(3)]
    verdict = judge(CONTROLS, lost, STEPS)
    assert verdict.word is Word.HARMFUL
    assert "no number any more" in verdict.sentence


def test_held_out_data_that_suffer_make_it_harmful() -> None:
    controls = [stuck(seed, metrics={"held-out loss (cross_entropy, train.py:9)": 1.0 + 0.01 * seed}) for seed in range(3)]
    treated = [learns(seed, metrics={"held-out loss (cross_entropy, train.py:9)": 2.0 + 0.02 * seed}) for seed in range(3)]
    verdict = judge(controls, treated, STEPS)
    assert verdict.word is Word.HARMFUL
    assert verdict.harmed == ("held-out loss (cross_entropy, train.py:9)",)
    assert "worse than without it" in verdict.sentence
    better = [learns(seed, metrics={"held-out loss (cross_entropy, train.py:9)": 0.5}) for seed in range(3)]
    assert judge(controls, better, STEPS).word is Word.CURED


@pytest.mark.parametrize(
    ("name", "way"),
    [("test_accuracy", 1), ("AUC", 1), ("val_loss", -1), ("RMSE", -1), ("held-out loss (mse_loss, a.py:3)", -1), ("lr", 0)],
)
def test_which_way_a_metric_is_better(name: str, way: int) -> None:
    assert direction(name) == way


def test_a_metric_with_one_seed_must_be_worse_by_a_tenth() -> None:
    slightly = judge([stuck(metrics={"accuracy": 0.5})], [learns(metrics={"accuracy": 0.47})], STEPS)
    assert slightly.word is Word.CURED
    clearly = judge([stuck(metrics={"accuracy": 0.5})], [learns(metrics={"accuracy": 0.4})], STEPS)
    assert clearly.word is Word.HARMFUL


@pytest.mark.parametrize("ending", [Ending.REFUSED, Ending.FAILED])
def test_what_could_not_be_run_has_failed(ending: Ending) -> None:
    verdict = judge(CONTROLS, [trial(ending=ending)], STEPS)
    assert verdict.word is Word.FAILED
    assert verdict.sentence == "It crashed."


def test_one_seed_is_judged_by_the_noise_within_the_run() -> None:
    assert judge([stuck()], [learns()], STEPS).word is Word.CURED
    noisy = trial(*curve(2.3, 2.2, STEPS, 3, 0.3))
    assert judge([stuck()], [noisy], STEPS).word is Word.NO_HELP


def test_a_control_that_was_thrown_counts_with_its_start() -> None:
    thrown = [trial(*curve(2.3, 10.0 ** (5 + 8 * seed), STEPS), treated=False, seed=seed, errors=SICK) for seed in range(3)]
    dead = [trial(2.3, *[NAN] * (STEPS - 1), treated=False, seed=seed, errors=SICK) for seed in range(3)]
    for controls in (thrown, dead):
        verdict = judge(controls, [learns(seed) for seed in range(3)], STEPS)
        assert verdict.word is Word.CURED
        assert verdict.control_end == pytest.approx(2.3, rel=0.2)


def test_a_control_that_never_had_a_loss_counts_with_the_treated_start() -> None:
    dead = trial(*[NAN] * STEPS, treated=False, errors=("nonfinite",))
    assert judge([dead], [learns()], STEPS).word is Word.CURED
    assert judge([dead], [trial(*curve(2.3, 2.3, STEPS))], STEPS).word is Word.NO_HELP


def test_losses_below_zero_are_compared_by_their_difference() -> None:
    controls = [trial(*(-1.0 + 0.01 * k for k in range(STEPS)), treated=False, seed=s, errors=SICK) for s in range(3)]
    treated = [trial(*(-1.0 - (3.0 + s) * k / STEPS for k in range(STEPS)), seed=s) for s in range(3)]
    assert judge(controls, treated, STEPS).word is Word.CURED
    assert judge(treated, controls, STEPS).word is Word.HELPS or judge(treated, controls, STEPS).loss.above


def test_losses_that_take_turns_cannot_be_compared() -> None:
    verdict = judge(CONTROLS[:1], [learns(several=True)], STEPS)
    assert verdict.word is Word.NO_HELP
    assert math.isnan(verdict.loss.middle)
    assert "cannot be compared" in verdict.sentence


def test_time_per_step_is_told() -> None:
    assert judge([stuck(step_time=0.01)], [learns(step_time=0.015)], STEPS).cost == pytest.approx(1.5)


def test_runs_are_compared_at_the_same_step() -> None:
    control, treated = learns(1, treated=False), learns(2)
    early = against(control, treated, STEPS // 4)
    assert level(control, STEPS // 4) > level(control, STEPS)
    assert abs(early.middle) < 0.2
    assert end_of(treated, STEPS // 4) == treated.curve[12:15]


def test_beyond_doubt() -> None:
    assert beyond_doubt(stuck(), learns(), STEPS)
    assert not beyond_doubt(stuck(), learns(end=1.8), STEPS), "less than half of the way"
    assert not beyond_doubt(stuck(), learns(errors=("plateau",)), STEPS)
    assert not beyond_doubt(learns(end=0.1, treated=False), learns(end=0.15), STEPS), "no better than the control"


def test_the_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.middle == 2.0
    assert found.high - found.middle == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert math.isinf(interval([1.0]).high)
