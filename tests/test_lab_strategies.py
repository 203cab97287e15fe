"""The strategies on sick networks: each can be given, the known cures cure, and what cannot cure does not."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import gradiometer
from gradiometer.app.pages import strategies as page
from gradiometer.app.scene import Choice
from gradiometer.errors import GradiometerError
from gradiometer.lab import clinic
from gradiometer.lab.clinic import Training
from gradiometer.lab.strategies import LEVELS, PATIENTS, STRATEGIES, Board, Settings, board
from gradiometer.trial.result import Word
from gradiometer.types import Prescription, Treatment

SHORT = {name: Settings(name, seeds=1, steps=12, every=4) for name in ("vanishing", "exploding", "recurrent")}
ASKED = ("clip-norm", "rate-up", "he", "batch-norm")
"""The answers of the page's question, in order."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vanishing() -> Board:
    return board(Settings("vanishing", ASKED))


@pytest.fixture(scope="module")
def through_time() -> Board:
    return board(Settings("recurrent", ("clip-norm", "rate-down")))


# ---- training ------------------------------------------------------------------------------------------------------------


def test_a_training_is_reproduced_bit_for_bit_and_leaves_the_streams_of_random_numbers_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    dropout = Prescription((Treatment("regularise", {"kind": "dropout"}),))
    runs = [clinic.run(Training(depth=3), dropout, seed=4, steps=20, every=5) for _ in range(2)]
    assert runs[0].loss.tolist() == runs[1].loss.tolist()
    np.testing.assert_array_equal(runs[0].trace.log10_gradient, runs[1].trace.log10_gradient)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_what_is_recorded_is_what_a_watch_of_the_process_records(tmp_path) -> None:  # type: ignore[no-untyped-def]
    training = Training(depth=3, rate=0.05)
    ours = clinic.run(training, seed=2, steps=12, every=4)
    images, labels = clinic.digits()
    generator = torch.Generator().manual_seed(2)
    order = [torch.randint(clinic.LEARNERS, (training.batch,), generator=generator) for _ in range(12)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = clinic.build(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=training.rate, momentum=training.momentum)
    with gradiometer.watch(model, optimizer, out=tmp_path / "run", overhead=1.0, every=4):
        for index in order:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    theirs = gradiometer.load(tmp_path / "run").trace
    assert theirs.steps.tolist() == ours.trace.steps.tolist()
    assert [(s.name, s.role) for s in theirs.sites] == [(s.name, s.role) for s in ours.trace.sites]
    for name in ("gradient_sumsq", "output_sumsq", "weight_gradient_sumsq", "update_sumsq"):
        np.testing.assert_array_equal(theirs.values[name], ours.trace.values[name], err_msg=name)
    np.testing.assert_array_equal(theirs.ledger["loss"], ours.trace.ledger["loss"])
    np.testing.assert_array_equal(theirs.ledger["overshoot"], ours.trace.ledger["overshoot"])


def test_it_runs_in_a_thread_and_does_not_see_another_training() -> None:
    alone = clinic.run(Training(depth=3), seed=1, steps=15, every=5)
    records: list[clinic.Record] = []
    thread = threading.Thread(target=lambda: records.append(clinic.run(Training(depth=3), seed=1, steps=15, every=5)))
    other = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    data = torch.ones(8, 4)
    thread.start()
    while thread.is_alive():
        other(data).sum().backward()
    thread.join()
    assert [s.name for s in records[0].trace.sites] == [s.name for s in alone.trace.sites]
    assert records[0].loss.tolist() == alone.loss.tolist()


def test_clipping_by_norm_is_seen() -> None:
    clipped = Prescription((Treatment("clip", {"kind": "norm", "threshold": 0.05}),))
    ledger = clinic.run(Training(depth=3), clipped, steps=10, every=5).trace.ledger
    assert np.nanmax(ledger["clip_threshold"]) == pytest.approx(0.05, rel=1e-3)
    assert np.nanmin(ledger["grad_norm"]) > 0.05


@pytest.mark.parametrize(("steps", "every"), [(0, 1), (1, 0)])
def test_a_training_without_steps_is_refused(steps: int, every: int) -> None:
    with pytest.raises(GradiometerError, match="no training"):
        clinic.run(Training(), steps=steps, every=every)


# ---- strategies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORT)
def test_every_strategy_is_given_or_says_why_it_does_not_fit(name: str) -> None:
    short = board(SHORT[name])
    assert [arm.strategy for arm in short.arms] == list(STRATEGIES)
    for arm in short.arms:
        assert arm.verdict.word in LEVELS
        if arm.course.ran:
            assert arm.course.changes, arm.strategy.name
            assert arm.course.loss.shape == (1, 12)
            assert arm.course.start.shape == arm.course.end.shape == (1, len(short.places))
            assert arm.course.seconds_per_step > 0.0
        else:
            assert "cannot be given" in arm.verdict.sentence
            assert math.isnan(arm.course.right)
    fit = {arm.strategy.name for arm in short.arms if arm.course.ran}
    everywhere = {"clip-norm", "clip-value", "rate-up", "rate-down", "warm-up", "adam", "weight-decay", "dropout"}
    assert everywhere <= fit
    if name == "vanishing":
        assert fit == {s.name for s in STRATEGIES} - {"recurrent"}


def test_only_the_right_answer_to_the_question_of_the_page_cures(vanishing: Board) -> None:
    words = [vanishing.arm(name).verdict.word for name in ASKED]
    assert [k for k, word in enumerate(words) if word is Word.CURED] == [page.PAGE.question.right]
    assert words.count(Word.NO_HELP) == 3
    assert all(vanishing.arm(name).course.right < 0.2 for name in ASKED[:3])
    assert "vanishing-gradient" in vanishing.untreated.errors


def test_weights_cure_vanishing_and_regularisation_does_not() -> None:
    found = board(Settings("vanishing", ("weight-decay", "dropout", "critical")))
    assert [arm.verdict.word for arm in found.arms] == [Word.NO_HELP, Word.NO_HELP, Word.CURED]
    assert found.ranked[0].strategy.name == "critical"


def test_what_the_page_says_of_the_vanishing_patient(vanishing: Board) -> None:
    start = vanishing.untreated.typical_start
    assert start[0] == pytest.approx(-7.0, abs=0.5)  # a ten-millionth
    assert 10 ** (-start[0] / 8) == pytest.approx(7.0, rel=0.1)  # about seven times a layer
    he = vanishing.arm("he").course.typical_start
    assert 10 ** (he[0] / 8) == pytest.approx(1 / 3, rel=0.2)  # about a third a layer
    clipped = vanishing.arm("clip-norm").course
    np.testing.assert_array_equal(clipped.loss, vanishing.untreated.loss)  # no gradient is long enough to be clipped
    ratio = vanishing.arm("rate-up").course.typical_start
    np.testing.assert_array_equal(ratio, start)  # a rate multiplies all layers alike


def test_clipping_cures_what_explodes_through_time(through_time: Board) -> None:
    assert through_time.arm("clip-norm").verdict.word is Word.CURED
    assert through_time.arm("rate-down").verdict.word is Word.NO_HELP
    assert not np.isfinite(through_time.arm("rate-down").course.loss[:, -1]).any()
    assert through_time.untreated.typical_start[0] > 2.0
    assert through_time.places == ("-32", "-28", "-24", "-20", "-16", "-12", "-8", "-4", "0")


def test_the_right_weights_cure_the_exploding_patient() -> None:
    found = board(Settings("exploding", ("he", "dropout")))
    assert found.untreated.typical_start[0] > 1.5
    assert abs(found.arm("he").course.typical_start[0]) < 1.0
    assert found.arm("he").verdict.word is Word.CURED
    assert found.arm("dropout").verdict.word is Word.NO_HELP


def test_a_board_is_kept(vanishing: Board) -> None:
    assert board(Settings("vanishing", ASKED)) is vanishing


@pytest.mark.parametrize("wrong", [Settings("cold"), Settings(strategies=("leeches",)), Settings(seeds=0), Settings(steps=3)])
def test_what_is_no_board_is_a_sentence(wrong: Settings) -> None:
    with pytest.raises(GradiometerError):
        board(wrong)


# ---- page ----------------------------------------------------------------------------------------------------------------


def test_every_scene_has_the_same_exhibits_and_is_plain_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "board", lambda settings: board(SHORT[settings.patient]))
    shapes: set[tuple[tuple[str, str, int], ...]] = set()
    drawn: dict[tuple[str, str], str] = {}
    for patient in SHORT:
        for strategy in ("batch-norm", "he", "clip-norm", "recurrent"):
            scene = page.show({"patient": patient, "strategy": strategy})
            shapes.add(tuple((e.name, e.kind, len(e.figure.data)) for e in scene.exhibits))
            text = [exhibit.figure.to_json() for exhibit in scene.exhibits]
            assert all(len(one) < 300_000 for one in text)
            for one in text:
                json.loads(one, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
            drawn[patient, strategy] = "".join(text)
            for exhibit in scene.exhibits:
                assert exhibit.figure.layout.meta["title"]
                assert exhibit.figure.layout.meta["alt"]
                assert exhibit.table.lines
                assert all(len(line) == len(exhibit.table.columns) for line in exhibit.table.lines)
    assert len(shapes) == 1
    default = (str(page.PAGE.default["patient"]), str(page.PAGE.default["strategy"]))
    for patient in SHORT:
        assert patient == default[0] or drawn[patient, default[1]] != drawn[default]
    assert drawn["vanishing", "he"] != drawn[default]


def test_the_page_offers_all_patients_and_strategies() -> None:
    patient, strategy = page.PAGE.controls
    assert isinstance(patient, Choice)
    assert isinstance(strategy, Choice)
    assert [name for name, _ in patient.options] == [p.name for p in PATIENTS]
    assert [name for name, _ in strategy.options] == [s.name for s in STRATEGIES]
    for preset in page.PAGE.presets:
        assert page.PAGE.state({k: str(v) for k, v in preset.state.items()}) == {**page.PAGE.default, **preset.state}
