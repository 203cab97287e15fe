"""The zoo: every script runs under the probe, and what the rules say is held against its label (zoo/labels.toml)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import detection  # noqa: E402

ALL = detection.read_labels()
RUNS = [run for run in ALL if "(reference)" not in run.name]  # benchmarks/detection.py runs the references too
AT_A_TIME = 2


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[detection.Result]]]:
    """Two scripts at a time, of those that were selected, in the order of their tests."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = {call.params["run"].name for call in calls if call is not None and "run" in call.params}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {run.name: pool.submit(detection.observe, run) for run in RUNS if run.name in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.zoo
@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.name)
def test_what_is_said_of_it(run: detection.ZooRun, results: dict[str, Future[detection.Result]]) -> None:
    result = results[run.name].result()
    if run.label == "well":
        assert not result.errors, result.sentences
        assert not result.warnings, result.sentences
    else:
        assert result.verdict == "sick"
        assert result.right_rule, result.sentences
        assert result.right_sites, result.sentences


def test_the_zoo_is_large_and_varied() -> None:
    sick = [r for r in RUNS if r.label == "sick"]
    well = [r for r in RUNS if r.label == "well"]
    assert len(sick) >= 8
    assert len(well) >= 8
    assert {r.rule for r in sick} == {rule.name for rule in detection.gradiometer.rules.RULES}
    families: dict[str, set[str]] = {}
    for run in RUNS:
        families.setdefault(run.family, set()).add(run.half)
    assert all(len(halves) == 1 for halves in families.values()), "the halves are split by family"
    assert {r.half for r in sick} == {r.half for r in well} == {"calibration", "evaluation"}


def test_every_script_has_a_label_and_none_knows_of_us() -> None:
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "zoo").glob("*.py")}
    assert set(scripts) == {run.script for run in RUNS}
    assert not [name for name, text in scripts.items() if "gradiometer" in text]


def test_every_label_is_decided_by_an_outcome() -> None:
    references = {run.script: run for run in ALL if "(reference)" in run.name}
    for run in RUNS:
        assert run.metric
        assert run.label == "well" or (run.script in references and run.cause and run.rule and run.sites)
