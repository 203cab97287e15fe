"""The command line as a user meets it: statuses, sentences, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import gradiometer
from gradiometer.rules import RULES

SCRIPT = """
import sys, torch
torch.manual_seed(0)
layers = []
for _ in range(12):
    layers += [torch.nn.Linear(16, 16), torch.nn.Sigmoid()]
model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x, y = torch.randn(64, 16), torch.randint(0, 2, (64,))
for _ in range(int(sys.argv[1])):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
print("trained", *sys.argv[1:])
sys.exit(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
"""


def cli(words: Sequence[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", "TERM": "dumb", **more}
    command = [sys.executable, "-m", "gradiometer", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a script and one finished run of it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "train.py").write_text(SCRIPT)
    done = cli(["run", "--out", "first", "train.py", "30", "3"], folder)
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    (folder / "status").write_text(str(done.returncode))
    return folder


def test_run_keeps_the_status_and_the_output_and_reports_on_standard_error(place: Path) -> None:
    assert (place / "status").read_text() == "3"
    assert (place / "stdout").read_text() == "trained 30 3\n"
    said = (place / "stderr").read_text()
    assert "SICK" in said
    assert "vanishing-gradient" in said
    assert "first/report.html" in said
    assert (place / "first" / "report.html").stat().st_size > 10_000
    assert gradiometer.load(place / "first").info["status"] == 3


def test_no_report_writes_none_and_a_new_folder_is_made(place: Path) -> None:
    done = cli(["run", "--no-report", "--every", "5", "--", sys.executable, "train.py", "20"], place)
    assert done.returncode == 0
    (folder,) = (place / ".gradiometer" / "runs").iterdir()
    assert not (folder / "report.html").exists()
    assert gradiometer.load(folder).trace.steps.tolist() == [0, 5, 10, 15]
    listed = cli(["runs"], place)
    assert folder.name in listed.stdout
    assert "sick: vanishing-gradient" in listed.stdout
    newest = cli(["report"], place)
    assert newest.stdout.count("SICK") == 1
    assert cli(["report", folder.name], place).stdout == newest.stdout, "a run may be given by its name"


def test_reports_of_a_run_in_every_format(place: Path) -> None:
    text = cli(["report", "first"], place)
    assert text.returncode == 0
    assert "SICK" in text.stdout
    data = json.loads(cli(["report", "first", "--format", "json"], place).stdout)
    assert (data["schema"], data["verdict"], data["run"]["status"]) == (1, "sick", 3)
    done = cli(["report", "first", "--format", "html", "-o", "page.html"], place)
    assert done.stdout.strip() == "page.html"
    assert (place / "page.html").read_text().startswith("<!doctype html>")
    cli(["report", "first", "--format", "json", "-o", "report.json"], place)
    assert json.loads((place / "report.json").read_text()) == data
    cli(["report", "first", "-o", "report.txt"], place)
    assert "SICK" in (place / "report.txt").read_text()


def test_reporting_does_not_import_torch(place: Path) -> None:
    code = (
        "import sys\nfrom gradiometer.cli import app\n"
        "for f in ('text', 'json', 'html'):\n"
        "    app(['report', 'first', '--format', f, '-o', 'x.' + f], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["run", "nowhere.py"], 2, "There is no script nowhere.py"),
        (["run", "--", "no-such-command"], 2, "There is no command no-such-command"),
        (["run", "--overhead", "0", "train.py"], 2, "--overhead is 0. Give a percentage"),
        (["run", "--every", "0", "train.py"], 2, "--every is 0. Give a number of steps"),
        (["run", "--out", "first", "train.py", "1"], 2, "first already holds a run"),
        (["run", "--out", "train.py/x", "train.py", "1"], 2, "cannot be written"),
        (["run"], 2, "Missing argument"),
        (["report", "nowhere"], 2, "There is no run folder nowhere"),
        (["report", "."], 2, "has no run.json"),
        (["report", "first", "-f", "json", "-o", "no/where.json"], 2, "no/where.json cannot be written"),
        (["report", "first", "-o", "no/where.txt"], 2, "no/where.txt cannot be written"),
        (["report", "first", "--format", "pdf"], 2, "'pdf' is not one of"),
        (["runs", "first"], 2, "There are no runs under first"),
        (["explain", "bad-luck"], 2, "There is no rule 'bad-luck'"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_get_one_sentence(words: list[str], status: int, sentence: str, place: Path) -> None:
    done = cli(words, place)
    assert done.returncode == status
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_damaged_record_is_said_not_raised(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text((place / "first" / "run.json").read_text())
    (folder / "rank0-1.frames").write_bytes(b"not a record")
    done = cli(["report", str(folder)], place)
    assert done.returncode == 2
    assert "is not a Gradiometer record" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_version_and_rules(place: Path) -> None:
    assert cli(["--version"], place).stdout == f"gradiometer {gradiometer.__version__}\n"
    assert "gradiometer run train.py --epochs 3" in cli(["run", "--help"], place).stdout
    listed = cli(["explain"], place).stdout
    for rule in RULES:
        assert rule.name in listed
    explained = cli(["explain", "input-blindness"], place).stdout
    for heading in ("What it finds", "Why it hurts", "How we tell", "When it is wrong", "What helps", "References"):
        assert heading in explained
