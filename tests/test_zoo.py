"""The zoo: labels are borne out by outcomes, halves are split by family, and a part of it runs under the probe here.

The whole of it, with every seed, is benchmarks/detection.py and benchmarks/outcomes.py.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from gradiometer.rules import RULES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import detection  # noqa: E402
import zoo  # noqa: E402

ALL = zoo.read_labels()
RUNS = [run for run in ALL if not run.reference]  # benchmarks/detection.py runs the references too
SICK = [run for run in RUNS if run.sick]
WELL = [run for run in RUNS if not run.sick]
AT_A_TIME = 2


def first_of_each(runs: list[zoo.ZooRun], key: str) -> list[zoo.ZooRun]:
    found: dict[str, zoo.ZooRun] = {}
    for run in runs:
        found.setdefault(getattr(run, key), run)
    return list(found.values())


NOT_HERE = ("shattered-gradient",)
"""What is left of the gradients' similarity wavers from look to look about the rule's level, and which steps are looked at
depends on the speed of the machine: the benchmark says how often it is found, a test could not."""

# of the calibration half one sick training for each rule, one well training of every second family; what the rules do not get
# right in the evaluation half is for the benchmark to say
KNOWN_MISS = ("friedman_swinging",)
"""Swings of a noisy regression under a momentum of 0.99, found in some records and not in others: the label is weak."""
BUILDING = [run for run in RUNS if run.half == "calibration" and run.name not in KNOWN_MISS]
CHOSEN = [
    run
    for run in (
        *first_of_each([run for run in BUILDING if run.sick], "rule"),
        *first_of_each([run for run in BUILDING if not run.sick], "family")[::2],
    )
    if run.rule not in NOT_HERE
]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    """Two scripts at a time, of those that were selected, in the order of their tests."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = {call.params["run"].name for call in calls if call is not None and "run" in call.params}
    base = tmp_path_factory.mktemp("zoo")

    def observe(run: zoo.ZooRun) -> detection.Result:
        folder = base / re.sub(r"\W", "-", run.name)
        return detection.judge(run, folder, *detection.execute(run, folder, run.seeds[0]), run.seeds[0])

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {run.name: pool.submit(observe, run) for run in CHOSEN if run.name in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.zoo
@pytest.mark.parametrize("run", CHOSEN, ids=lambda r: r.name)
def test_what_is_said_of_it(run: zoo.ZooRun, results: dict[str, Future[detection.Result]]) -> None:
    result = results[run.name].result()
    assert result.verdict == run.label, result.sentences
    assert result.right_cause is not False, result.sentences
    assert result.right_site is not False, result.sentences


def test_the_zoo_is_large_and_varied() -> None:
    assert len(SICK) >= 40
    assert len(WELL) >= 40
    for rule in RULES:
        families = {run.family for run in SICK if run.rule == rule.name}
        assert len(families) >= 2, f"{rule.name}: {families}"
    assert len({run.name for run in RUNS}) == len(RUNS)


def test_the_halves_are_split_by_family() -> None:
    halves = tomllib.loads((zoo.ZOO / "halves.toml").read_text(encoding="utf-8"))
    assert not set(halves["calibration"]) & set(halves["evaluation"])
    for run in RUNS:
        assert run.family in halves[run.half], run.name


def test_every_script_has_a_label_and_none_knows_of_us() -> None:
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "zoo").glob("*.py")}
    assert set(scripts) == {run.script for run in RUNS}
    assert not [name for name, text in scripts.items() if "gradiometer" in text]


def test_every_label_is_borne_out_by_its_outcomes() -> None:
    outcomes = {run.name: run.outcomes for run in ALL}
    assert all(len(run.outcomes) == len(run.seeds) >= 3 for run in ALL)
    assert [name for name, right in zoo.right_by_outcome(ALL, outcomes).items() if not right] == []


@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.name)
def test_every_label_is_complete(run: zoo.ZooRun) -> None:
    assert run.metric
    assert run.better in ("higher", "lower")
    assert run.onset in ("start", "later")
    if run.sick:
        assert run.cause
        names = {rule.name for rule in RULES}
        assert {run.rule, *run.accept, *run.also} <= names
    else:
        assert run.bar_source


@pytest.mark.parametrize(
    ("outcome", "reference", "better", "worse"),
    [
        (0.85, 0.9, "higher", False),
        (0.79, 0.9, "higher", True),
        (1.2, 1.0, "lower", False),
        (1.3, 1.0, "lower", True),
        (float("nan"), 1.0, "lower", True),
        (-1.0, -1.05, "lower", False),
        (-0.5, -1.0, "lower", True),
    ],
)
def test_what_clearly_worse_means(outcome: float, reference: float, better: str, worse: bool) -> None:
    assert zoo.clearly_worse(outcome, reference, better) is worse


@pytest.mark.parametrize(
    ("line", "number"),
    [("test accuracy 0.8822", 0.8822), ("valid loss 1.3e-05", 1.3e-5), ("step 3: mse -2", -2.0), ("no number", float("nan"))],
)
def test_the_outcome_is_the_last_number(line: str, number: float) -> None:
    assert zoo.last_number(line) == pytest.approx(number, nan_ok=True)


def test_a_nan_is_an_outcome() -> None:
    assert zoo.last_number("test mse nan") != zoo.last_number("test mse nan")
