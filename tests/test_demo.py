"""The demo: what ails the script is found, cured, and the whole training learns with the prescription and with the edit."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import gradiometer
from gradiometer import demo
from gradiometer.errors import GradiometerError
from gradiometer.trial.command import CURES_FOLDER, Wishes
from gradiometer.trial.prescribe import Choice
from gradiometer.trial.race import Plan
from gradiometer.trial.result import Outcome

CASE = demo.Case("small", "A small one", ("--width", "64", "--depth", "16"))
STEPS = 150


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[demo.Played, Path, str]:
    """A small training played; the folder of the project, and what was printed."""
    project = tmp_path_factory.mktemp("demo") / "project"
    file = io.StringIO()
    wishes = Wishes(Plan(steps=60, budget=600, seeds=2, jobs=2), Choice(only=("activation",)))
    (played,) = demo.play(project, Console(file=file, width=100), (CASE,), steps=STEPS, wishes=wishes)
    return played, project, file.getvalue()


def accuracy(said: str) -> float:
    found = re.search(r"training accuracy ([0-9.]+)", said)
    assert found is not None
    return float(found[1])


@pytest.mark.processes
def test_it_goes_from_chance_to_learning_by_a_verified_change(shown: tuple[demo.Played, Path, str]) -> None:
    played, project, printed = shown
    assert accuracy(played.before) < 0.25
    assert played.cure.outcome is Outcome.CURED
    assert played.cure.control[0].roots == ("vanishing-gradient",)
    assert accuracy(played.after) > 0.9
    assert all((project / page).is_file() for page in played.pages)
    assert len(played.pages) == 3
    assert "+    layers += [layer, nn." in printed, "the edit"
    assert re.search(rf"{accuracy(played.before):.3f} → {accuracy(played.after):.3f}", printed)
    assert "untreated, 60 steps: loss" in printed, "a line for every trial where there is no terminal"
    assert Path.cwd() != project
    assert gradiometer.load(project / ".gradiometer" / "runs" / "small-cured").info["status"] == 0


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("patch") is None, reason="needs patch")
def test_the_printed_edit_alone_makes_the_script_learn(shown: tuple[demo.Played, Path, str], tmp_path: Path) -> None:
    _, project, _ = shown
    for name in ("digits_train.py", "digits.npz"):
        shutil.copy(project / name, tmp_path)
    diff = json.loads((project / CURES_FOLDER / "small" / "cure.json").read_text())["edit"]["diff"]
    subprocess.run(["patch", "-p1"], input=diff, text=True, cwd=tmp_path, check=True, capture_output=True)
    command = [sys.executable, "digits_train.py", *CASE.arguments, "--steps", str(STEPS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert accuracy(done.stdout) > 0.9


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "digits_train.py").write_text("mine")
    with pytest.raises(GradiometerError, match="is not empty"):
        demo.play(tmp_path, Console(file=io.StringIO()))
    assert (tmp_path / "digits_train.py").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["digits_train.py"]


def test_the_number_of_threads_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(demo.THREADS, "3")
    with demo._one_thread():
        assert os.environ[demo.THREADS] == "3", "what the user says holds"
    assert os.environ[demo.THREADS] == "3"
    monkeypatch.delenv(demo.THREADS)
    with demo._one_thread():
        assert os.environ[demo.THREADS] == "1"
    assert demo.THREADS not in os.environ
