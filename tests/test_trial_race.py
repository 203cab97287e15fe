"""The race: what is tried, in which order, at what cost, and what wins. No training: a theatre plays the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import joblib
import numpy as np
import pytest

from gradiometer.errors import GradiometerError
from gradiometer.record.trace import Trace
from gradiometer.remedies import NAMES, remedy
from gradiometer.remedies.base import Symptoms
from gradiometer.rules.diagnosis import examine
from gradiometer.trial.race import BUDGET, Board, Plan, Raced, key, race
from gradiometer.trial.result import Candidate, Ending, NotTried, Outcome, Promise, Trial, Word
from gradiometer.trial.scratch import Order
from gradiometer.types import Prescription, Safety, Treatment, VerdictWord
from traces import make
from trials import Course, Theatre, candidate, sick, well

TRAINING, MODEL = Safety.CHANGES_TRAINING, Safety.CHANGES_MODEL
SICK = Course(2.3, ("vanishing-gradient",))
CURES = Course(0.05)
PLAN = Plan(steps=300, budget=BUDGET * 300)


def run(
    candidates: Sequence[Candidate],
    courses: Mapping[str, Course],
    plan: Plan = PLAN,
    trace_of=sick,
    board: Board | None = None,
    length: int = 10**9,
) -> Raced:
    theatre = Theatre({"": SICK, **courses}, plan.steps, length)
    return race(plan, theatre, trace_of, lambda _: (candidates, [NotTried("x", "no")]), board)


def names(raced: Raced) -> list[str]:
    return [arm.label for arm in raced.arms]


def lengths(raced: Raced, name: str) -> list[int]:
    return [t.steps for arm in raced.arms if arm.label == name for t in arm.trials]


def test_a_training_that_is_well_is_left_alone() -> None:
    raced = run([candidate("a")], {"": Course(0.05), "a": CURES}, trace_of=well)
    assert raced.outcome is Outcome.WELL
    assert not raced.arms
    assert raced.spent == 300


def test_a_loss_that_stands_still_is_raced_for_though_nothing_that_is_known_ails_it() -> None:
    def standing(_: str) -> Trace:
        return make(8, loss=np.full(120, 2.3))

    assert examine(standing("")).verdict is VerdictWord.WELL
    seen: list[Symptoms] = []

    def propose(symptoms: Symptoms) -> tuple[list[Candidate], list[NotTried]]:
        seen.append(symptoms)
        return [candidate("a")], []

    raced = race(PLAN, Theatre({"": Course(2.3), "a": CURES}, 300, 10**9), standing, propose)
    assert raced.outcome is Outcome.CURED
    assert seen[0].rules[0] == "plateau"
    plans = [remedy(name).plan(seen[0]) for name in NAMES]
    assert any(t.remedy == "optimizer" and t.settings["change"] == "lr" for plan in plans for t in plan)


def test_the_one_that_cures_wins_and_is_held_against_the_control_over_three_seeds() -> None:
    raced = run([candidate(n) for n in "abcd"], {"a": SICK, "b": SICK, "c": CURES, "d": Course(1.5, ("plateau",))})
    assert raced.outcome is Outcome.CURED
    best = raced.arms[raced.best]
    assert best.label == "c"
    assert best.verdict.word is Word.CURED
    assert best.verdict.seeds == 3
    assert {t.seed for t in raced.control} == {0, 1, 2}
    assert {t.seed for t in best.trials if t.steps == 300} == {0, 1, 2}
    assert "`c` cures it" in raced.sentence
    assert NotTried("x", "no") in raced.not_tried


def test_halving_gives_full_trials_to_few() -> None:
    raced = run([candidate(n) for n in "abcd"], {"a": Course(2.2), "b": Course(2.1), "c": Course(1.9), "d": Course(1.5)})
    assert lengths(raced, "a") == [75]
    assert lengths(raced, "d")[:3] == [75, 150, 300]
    assert lengths(raced, "c") == [75, 150]


def test_the_spent_steps_are_those_that_were_taken_and_never_above_the_budget() -> None:
    for budget in (1800, 2100, 2700, 6000):
        raced = run(
            [candidate(f"r{k}") for k in range(30)],
            {f"r{k}": Course(2.3 - 0.01 * k, ("plateau",)) for k in range(30)},
            Plan(steps=300, budget=budget),
        )
        taken = sum(t.taken for t in (*raced.control, *(t for arm in raced.arms for t in arm.trials)))
        assert raced.spent == taken <= budget
        assert raced.outcome is Outcome.NO_CURE


def test_a_budget_that_proves_nothing_is_refused() -> None:
    with pytest.raises(GradiometerError, match="too small"):
        run([candidate("a")], {"a": CURES}, Plan(steps=300, budget=1700))
    with pytest.raises(GradiometerError, match="--steps"):
        run([candidate("a")], {"a": CURES}, Plan(steps=3))
    with pytest.raises(GradiometerError, match="--seeds"):
        run([candidate("a")], {"a": CURES}, Plan(seeds=0))


def test_what_leaves_no_doubt_ends_the_race_when_nothing_less_invasive_waits() -> None:
    first = [candidate("a"), candidate("b", MODEL), candidate("c", MODEL), candidate("d", MODEL)]
    rest = [candidate(f"r{k}", TRAINING) for k in range(8)]
    raced = run([*first, *rest], {"a": CURES, **dict.fromkeys("bcd", SICK), **{f"r{k}": SICK for k in range(8)}})
    assert set(names(raced)) == set("abcd")
    assert lengths(raced, "a") == [75, 300, 300, 300], "the rung between is left out"
    assert {n.label for n in raced.not_tried} == {"x", *(f"r{k}" for k in range(8))}
    assert raced.spent == 300 + 4 * 75 + 300 + 4 * 300


def test_what_is_less_invasive_is_tried_before_a_deep_cut_is_believed() -> None:
    wave = [candidate("cut", MODEL), *(candidate(n, MODEL) for n in "bcd")]
    waiting = [candidate("gentle"), candidate("futile", promise=Promise.CANNOT), candidate("deeper", MODEL)]
    courses = {"cut": CURES, **dict.fromkeys("bcd", SICK), "futile": CURES, "deeper": CURES}
    gentle = run([*wave, *waiting], {**courses, "gentle": CURES})
    assert gentle.arms[gentle.best].label == "gentle"
    assert "futile" not in names(gentle), "theory says that it cannot help"
    assert "deeper" not in names(gentle)
    dull = run([*wave, *waiting], {**courses, "gentle": Course(2.0)})
    assert dull.arms[dull.best].label == "cut"
    assert lengths(dull, "gentle") == [75], "behind the champion at the first rung"


def test_a_deeper_cut_must_earn_its_place() -> None:
    pair = [candidate("cut", MODEL), candidate("gentle")]
    close = run(pair, {"cut": Course(0.05), "gentle": Course(0.06)})
    assert close.arms[close.best].label == "gentle"
    both_work = run(pair, {"cut": Course(0.0001), "gentle": Course(0.06)})
    assert both_work.arms[both_work.best].label == "gentle", "a loss that is lower still is no reason to cut deeper"
    far = run(pair, {"cut": Course(0.01), "gentle": Course(0.9)})
    assert far.arms[far.best].label == "cut"


def test_luck_with_one_seed_is_no_cure_and_the_next_finalist_gets_its_chance() -> None:
    lucky = Course(0.02, seeds={1: 2.3, 2: 2.3})
    raced = run([candidate("a"), candidate("b")], {"a": lucky, "b": Course(0.5)})
    assert {arm.label: arm.verdict.word for arm in raced.arms} == {"a": Word.NO_HELP, "b": Word.CURED}
    assert raced.arms[raced.best].label == "b", "what was left behind gets a second chance"
    assert lengths(raced, "b") == [75, 300, 300, 300]
    wave = [candidate("a"), candidate("x"), candidate("y"), candidate("z"), candidate("b", MODEL)]
    courses = {"a": lucky, **dict.fromkeys("xyz", SICK), "b": CURES}
    raced = run(wave, courses)
    assert raced.arms[raced.best].label == "b", "what waited gets its chance when the favourite is disproved"
    assert {arm.label: arm.verdict.word for arm in raced.arms}["a"] is Word.NO_HELP


def test_what_does_not_fit_is_told_and_costs_nothing() -> None:
    raced = run([candidate("a"), candidate("b")], {"a": Course(ending=Ending.REFUSED), "b": CURES})
    assert raced.arms[raced.best].label == "b"
    failed = next(arm for arm in raced.arms if arm.label == "a")
    assert failed.verdict.word is Word.FAILED
    assert failed.verdict.sentence == "It does not fit."
    assert [t.steps for t in failed.trials] == [75]


def test_nothing_helps() -> None:
    raced = run([candidate("a"), candidate("b")], {"a": SICK, "b": Course(1.9, ("plateau",))})
    assert raced.outcome is Outcome.NO_CURE
    assert raced.best == -1
    assert raced.sentence.startswith("None of the 2 treatments that were tried cures it. Closest came `b`.")
    only = run([candidate("a")], {"a": SICK})
    assert only.sentence.startswith("`a`, the only treatment that was tried, does not cure it.")
    assert run([], {}).sentence == "Nothing that is known was worth a trial."


def test_a_race_with_waves_of_one_is_one_full_trial_after_the_other_until_something_cures() -> None:
    plan = Plan(steps=300, budget=6000, wave=1, any_cure=True)
    raced = run([candidate("a"), candidate("b", MODEL), candidate("c")], {"a": SICK, "b": CURES, "c": CURES}, plan)
    assert raced.arms[raced.best].label == "b"
    assert names(raced) == ["b", "a"]
    assert lengths(raced, "a") == [300]


def test_with_one_seed_the_first_pair_decides() -> None:
    raced = run([candidate("a")], {"a": CURES}, Plan(steps=300, budget=6000, seeds=1))
    assert raced.outcome is Outcome.CURED
    assert raced.spent == 600
    assert "with one seed" in raced.sentence


def test_a_training_that_is_shorter_than_a_trial() -> None:
    raced = run([candidate("a"), candidate("b")], {"a": CURES, "b": SICK}, length=120)
    assert raced.steps == 120
    assert raced.outcome is Outcome.CURED
    assert lengths(raced, "b") == [30]


def test_a_control_that_cannot_be_run() -> None:
    with pytest.raises(GradiometerError, match="untreated training could not be run: It does not fit"):
        run([candidate("a")], {"": Course(ending=Ending.FAILED)})


def test_two_candidates_with_one_label_have_names_of_their_own() -> None:
    one = Prescription((Treatment("clip", {"kind": "norm"}),))
    other = Prescription((Treatment("clip", {"kind": "norm"}, ("encoder.*",)),))
    assert one.label == other.label
    assert key(one) != key(other)
    assert key(None) == "control"
    assert key(one) == key(Prescription((Treatment("clip", {"kind": "norm"}),), "another reason"))


class Interrupting(Theatre):
    def __call__(self, order: Order) -> Trial:
        if order.prescription is not None and order.prescription.label == "c":
            raise KeyboardInterrupt
        return super().__call__(order)


def test_an_interruption_leaves_what_is_known() -> None:
    courses = {"": SICK, "a": Course(1.5), "b": SICK, "c": CURES}
    raced = race(PLAN, Interrupting(courses, 300), sick, lambda _: ([candidate(n) for n in "abc"], []))
    assert raced.outcome is Outcome.INTERRUPTED
    assert set(names(raced)) == {"a", "b"}
    assert raced.best == -1
    assert "goes on from here" in raced.sentence


def test_the_board_is_kept_up_to_date() -> None:
    board = Board()
    seen: list[tuple[int, int]] = []
    board.back = lambda _: seen.append((board.spent, len(board.running)))
    raced = run([candidate("a"), candidate("b")], {"a": CURES, "b": Course(ending=Ending.REFUSED)}, board=board)
    assert board.spent == raced.spent == seen[-1][0]
    assert board.control is not None
    states = {row.candidate.prescription.label: row.state for row in board.rows.values()}
    assert states == {"a": "nothing ill", "b": "refused"}
    assert not board.running


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_every_backend_comes_to_the_same_verdict(backend: str) -> None:
    candidates = [candidate(n, s) for n, s in zip("abcdef", [MODEL, TRAINING] * 3, strict=True)]
    courses = {"a": CURES, "b": Course(0.4), "c": SICK, "d": Course(1.5, ("plateau",)), "e": Course(0.5), "f": SICK}
    alone = run(candidates, courses)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        together = run(candidates, courses)
    assert together == alone


def test_the_record_of_the_control_is_asked_for_by_its_name() -> None:
    asked: list[str] = []

    def trace_of(name: str) -> Trace:
        asked.append(name)
        return sick()

    run([candidate("a")], {"a": CURES}, trace_of=trace_of)
    assert asked == ["control.300.s0"]
