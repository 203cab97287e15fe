"""The doctor game: every case is what it is said to be, the score is fair, and nothing is told before the player answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from gradiometer.app.pages.doctor import PAGE, show
from gradiometer.errors import GradiometerError
from gradiometer.lab import doctor
from gradiometer.lab.doctor import CASES, DISEASES, FULL, WELL
from gradiometer.record.depth import fall_towards_input
from gradiometer.rules import RULES
from gradiometer.types import Role, VerdictWord

NUMBERS = range(1, CASES + 1)
KNOWN_CURES = {
    "vanishing": "batch-norm",
    "small-weights": "weights",
    "large-weights": "weights",
    "dead": "weights",
    "saturated": "weights",
    "rate-high": "rate-down",
    "rate-low": "rate-up",
    "symmetric": "weights",
    "disconnected": "attach",
    "blind": "batch-norm",
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _first(disease: str) -> int:
    return next(n for n in NUMBERS if doctor.case(n).disease.name == disease)


def test_every_disease_is_dealt_and_the_first_cases_differ() -> None:
    dealt = [doctor.case(n).disease.name for n in NUMBERS]
    assert set(dealt) == {d.name for d in DISEASES}
    assert len(set(dealt[:4])) == 4
    assert {rule for d in DISEASES for rule in d.rules} <= {rule.name for rule in RULES}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_case_has_the_disease_that_it_is_said_to_have(number: int) -> None:
    seen = doctor.examination(number)
    if seen.case.disease.name == WELL:
        assert seen.diagnosis.verdict is VerdictWord.WELL
        assert seen.record.accuracy > 0.95
    else:
        assert seen.diagnosis.verdict is VerdictWord.SICK
        assert set(seen.case.disease.rules).intersection(seen.found)


@pytest.mark.parametrize("disease", KNOWN_CURES)
def test_the_known_cure_cures(disease: str) -> None:
    score = doctor.score(_first(disease), disease, KNOWN_CURES[disease])
    assert (score.name_points, score.cure_points, score.points) == (FULL, FULL, 2 * FULL)


def test_scores() -> None:
    sick, well = _first("vanishing"), _first(WELL)
    assert doctor.score(sick, "vanishing", "nothing").points == FULL
    assert doctor.score(sick, "blind", "nothing").name_points == 1  # the rules find it too: it follows from the cause
    assert doctor.score(sick, "dead", "clip").points == 0
    assert doctor.score(sick, "dead", "clip", hint=True).points == 0
    assert doctor.score(sick, "vanishing", "batch-norm", hint=True).points == 2 * FULL - 1
    assert doctor.score(well, WELL, "nothing").points == 2 * FULL
    assert doctor.score(well, "vanishing", "rate-up").points == 0
    assert doctor.score(well, WELL, "attach").cure_points == 1  # changes nothing, so it does no harm


def test_what_is_not_there_is_a_sentence() -> None:
    for wrong in (
        lambda: doctor.case(0),
        lambda: doctor.case(CASES + 1),
        lambda: doctor.disease("cold"),
        lambda: doctor.cure("tea"),
    ):
        with pytest.raises(GradiometerError, match="There is no"):
            wrong()


def test_the_question_about_the_first_case() -> None:
    def fall(number: int) -> float:
        trace = doctor.examination(number).record.trace
        return fall_towards_input(trace.log10_gradient[-1, trace.with_role(Role.LINEAR)])

    assert not doctor.examination(1).record.trace.learned  # its loss does not fall
    assert fall(1) > 3.0
    slow = [n for n in NUMBERS if doctor.case(n).disease.name == "rate-low"]
    assert all(fall(n) < 1.2 for n in slow)
    assert "within about a decade" in PAGE.question.answers[PAGE.question.right]


def _text(state: dict[str, object]) -> str:
    scene = show({**PAGE.default, **state})  # type: ignore[arg-type]
    drawn = [exhibit.figure.to_json() for exhibit in scene.exhibits]
    for exhibit, text in zip(scene.exhibits, drawn, strict=True):
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
        assert exhibit.figure.layout.meta["title"]
        assert len(text) < 300_000
        assert all(len(line) == len(exhibit.table.columns) for line in exhibit.table.lines)
    tables = " ".join(" ".join((e.table.caption, *sum(e.table.lines, ()))) for e in scene.exhibits)
    return " ".join((*drawn, tables, *scene.readings)).lower()


@pytest.mark.parametrize("number", NUMBERS)
def test_nothing_is_told_before_both_answers_are_there(number: int) -> None:
    text = _text({"case": float(number), "cure": "dropout"})
    names = (
        [rule.name for rule in RULES]
        + [d.label.lower() for d in DISEASES]
        + [d.label.partition(":")[0].lower() for d in DISEASES]
    )
    names = [n for n in names if n not in ("nothing", "divergence", "plateau", "oscillation", "nonfinite")]
    assert not [name for name in names if name in text]


def test_scenes_have_the_same_exhibits_and_every_control_changes_a_figure() -> None:
    default = show(PAGE.default)
    kinds = [(e.name, e.kind) for e in default.exhibits]
    plain = [e.figure.to_json() for e in default.exhibits]
    for change in ({"case": 2.0}, {"diagnosis": "dead"}, {"cure": "adam"}, {"hint": True}):
        scene = show({**PAGE.default, **change})
        assert [(e.name, e.kind) for e in scene.exhibits] == kinds
        assert [e.figure.to_json() for e in scene.exhibits] != plain, change
    for cure in ("nothing", "weights", "adam"):
        scene = show({**PAGE.default, "diagnosis": "dead", "cure": cure})
        assert [(e.name, e.kind) for e in scene.exhibits] == kinds
        assert doctor.case(1).disease.label in scene.readings[0]


def test_a_game_is_a_function_of_its_state() -> None:
    state = {**PAGE.default, "case": 3.0, "diagnosis": "rate-high", "cure": "rate-down"}
    first = [e.figure.to_json() for e in show(state).exhibits]
    doctor._examination.cache_clear()
    doctor._treatment.cache_clear()
    assert [e.figure.to_json() for e in show(state).exhibits] == first


def test_a_weight_that_never_moves_is_said_to() -> None:
    scene = show({**PAGE.default, "case": float(_first("disconnected"))})
    movement = next(e for e in scene.exhibits if e.name == "movement")
    assert "do not move at all" in movement.figure.layout.meta["title"]
    assert any("does not move" in cell for line in movement.table.lines for cell in line)
