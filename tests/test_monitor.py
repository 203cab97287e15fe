"""What is said while a training runs, and what the report says of it afterwards."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradiometer
import trainings
from gradiometer import monitor as module
from gradiometer.monitor import Announcement, Monitor
from gradiometer.record.run import Run
from gradiometer.report import json as json_report
from gradiometer.report.html import render
from gradiometer.report.summary import Summary, summarise
from gradiometer.types import VerdictWord

SCRIPT = """
import time, torch
torch.manual_seed(0)
layers = []
for _ in range(14):
    layers += [torch.nn.Linear(16, 16), torch.nn.Sigmoid()]
model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x, y = torch.randn(64, 16), torch.randint(0, 2, (64,))
end = time.monotonic() + 9.0
while time.monotonic() < end:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    time.sleep(0.01)
print("trained")
"""


class Clock:
    """Stands for the time module: every reading is due, none costs anything."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 10.0
        return self.now

    @staticmethod
    def process_time() -> float:
        return 0.0


@pytest.fixture
def every_tick_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", Clock())


def watched(monitor: Monitor, folder: Path, act: type[nn.Module], depth: int, steps: int, rate: float) -> None:
    """Train a little at a time, with a reading after each part."""
    torch.manual_seed(0)
    model = trainings.mlp(act, depth)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    with gradiometer.watch(model, out=folder, every=1):
        for _ in range(steps // 5):
            trainings.fit(model, optimizer, steps=5)
            monitor.tick()


@pytest.mark.usefixtures("every_tick_reads")
def test_a_disease_is_announced_once_after_two_readings(tmp_path: Path) -> None:
    said: list[Announcement] = []
    monitor = Monitor(tmp_path / "run", said.append)
    watched(monitor, tmp_path / "run", nn.Sigmoid, 14, 40, 0.1)
    assert [a.rule for a in said] == ["vanishing-gradient"]
    assert 5 < said[0].step < 30
    assert monitor.facts()["announced"][0]["rule"] == "vanishing-gradient"


@pytest.mark.usefixtures("every_tick_reads")
def test_a_healthy_training_is_left_in_peace(tmp_path: Path) -> None:
    said: list[Announcement] = []
    monitor = Monitor(tmp_path / "run", said.append)
    watched(monitor, tmp_path / "run", nn.Tanh, 2, 80, 0.5)
    assert said == []
    assert monitor.facts() == {}


@pytest.mark.usefixtures("every_tick_reads")
@pytest.mark.parametrize("content", [None, b"", b"GRADIOM1", b"something else entirely"])
def test_a_record_that_cannot_be_read_is_no_reason_to_fail(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "rank0-1.frames").write_bytes(content)
    monitor = Monitor(tmp_path, pytest.fail)
    monitor.tick()
    assert monitor.announcements == []


def test_readings_take_no_more_than_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, readings = Clock(), []
    used = iter(range(0, 1000, 3))
    monkeypatch.setattr(clock, "process_time", lambda: float(next(used)))  # three seconds for each reading
    monkeypatch.setattr(module, "time", clock)
    monitor = Monitor(tmp_path, pytest.fail)
    monkeypatch.setattr(monitor, "_read", lambda: readings.append(clock.now))
    for _ in range(100):  # a thousand seconds
        monitor.tick()
    assert len(readings) == 4
    assert min(b - a for a, b in itertools.pairwise(readings)) >= 3.0 / module.SHARE


def summary_with(announced: list[dict[str, Any]], verdict: VerdictWord, tmp_path: Path) -> Summary:
    torch.manual_seed(0)
    model = trainings.mlp(nn.Sigmoid if verdict is VerdictWord.SICK else nn.Tanh, 14 if verdict is VerdictWord.SICK else 2)
    with gradiometer.watch(model, out=tmp_path / "run", every=1):
        trainings.fit(model, torch.optim.SGD(model.parameters(), 0.5), steps=60)
    loaded = gradiometer.load(tmp_path / "run")
    summary = summarise(Run(loaded.folder, {**loaded.info, "announced": announced}))
    assert summary.diagnosis.verdict is verdict
    return summary


def test_what_was_announced_and_stayed_is_said(tmp_path: Path) -> None:
    announced = [{"rule": "vanishing-gradient", "step": 12, "sentence": "It vanishes."}]
    summary = summary_with(announced, VerdictWord.SICK, tmp_path)
    assert summary.history == ("vanishing-gradient was announced at step 12.",)
    assert json_report.as_dict(summary)["run"]["announced"] == announced
    assert "was announced at step 12" in render(summary)


def test_what_was_announced_and_turned_out_otherwise_is_explained(tmp_path: Path) -> None:
    announced = [{"rule": "plateau", "step": 12, "sentence": "It is flat."}]
    sick = summary_with(announced, VerdictWord.SICK, tmp_path / "sick")
    assert sick.history == ("plateau was announced at step 12; with all steps seen it is vanishing-gradient.",)
    well = summary_with(announced, VerdictWord.WELL, tmp_path / "well")
    assert well.history == ("plateau was announced at step 12; the training got past it.",)


@pytest.mark.processes
def test_a_user_reads_it_while_the_training_runs(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "gradiometer", "run", "--no-report", "--out", "run", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "trained\n"
    lines = done.stderr.splitlines()
    spoken = [line for line in lines if line.startswith("gradiometer, at step ")]
    assert len(spoken) == 1
    assert "vanishing-gradient" in spoken[0]
    assert lines.index(spoken[0]) < next(i for i, line in enumerate(lines) if "SICK" in line)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["announced"][0]["rule"] == "vanishing-gradient"
    assert info["status"] == 0
