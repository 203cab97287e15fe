"""`gradiometer cure` from end to end: a sick script, its cure, its proof, its edit; and the same in a notebook."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradiometer
from gradiometer.errors import GradiometerError
from gradiometer.remedies.base import Symptoms
from gradiometer.report import cure as formats
from gradiometer.trial.command import Wishes, cure_command
from gradiometer.trial.prescribe import Choice, Proposer, proposer
from gradiometer.trial.race import Plan
from gradiometer.trial.result import Candidate, Cure, NotTried, Outcome, Word, read
from test_trial_scratch import alive

SCRIPT = Path(__file__).parent / "scripts" / "faint.py"
CLI = [sys.executable, "-m", "gradiometer"]
STEPS = 60

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the sick script in it, where the process is too."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(SCRIPT, folder / "train.py")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def wishes(out: Path, seeds: int = 2, jobs: int | None = 2) -> Wishes:
    return Wishes(Plan(STEPS, 20 * STEPS, seeds, jobs), Choice(), out)


def first(count: int, *only: str) -> Proposer:
    """The first candidates of theory: every trial is a process, and takes its seconds."""

    def propose(symptoms: Symptoms) -> tuple[Sequence[Candidate], Sequence[NotTried]]:
        candidates, left_out = proposer(Choice(only))(symptoms)
        return candidates[:count], left_out

    return propose


def gist(cure: Cure) -> Any:
    """What does not depend on a clock."""
    arms = [(a.label, a.verdict.word, a.verdict.loss, [(t.name, t.taken, t.curve) for t in a.trials]) for a in cure.arms]
    return cure.outcome, cure.sentence, cure.spent, arms, cure.edit


@pytest.fixture(scope="module")
def cured(project: Path) -> Cure:
    return cure_command(["train.py"], wishes(project / "cures" / "a"), propose=first(2, "initialise"))


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_a_sick_training_is_cured(cured: Cure, project: Path) -> None:
    assert cured.outcome is Outcome.CURED
    assert cured.cure is not None
    verdict = cured.cure.verdict
    assert verdict.word is Word.CURED
    assert verdict.seeds == 2
    assert verdict.loss_end < 1.5 < 2.2 < verdict.control_end
    assert cured.control[0].roots == ("vanishing-gradient",)
    assert all(t.metrics for t in cured.control), "the script evaluates"
    assert cured.spent <= cured.budget
    assert {p.name for p in project.iterdir()} == {"train.py", "cures"}, "what the trials wrote is gone"
    assert {p.name for p in Path(cured.folder).iterdir()} == {"cure.json", "plan.json", "prescription.json", "trials"}


def test_the_same_seed_has_the_same_batches_and_another_has_others(cured: Cure) -> None:
    zero, one = cured.control
    assert zero.curve != one.curve
    assert {t.seed for t in cured.control} == {0, 1}


def test_everything_is_on_disk_and_is_gone_on_with(cured: Cure, project: Path) -> None:
    folder = Path(cured.folder)
    again = read(Cure, folder / "cure.json")
    assert gist(again) == gist(cured)
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/trial.json")}
    began = time.monotonic()
    resumed = cure_command(["train.py"], wishes(folder), propose=first(2, "initialise"))
    assert gist(resumed) == gist(cured)
    assert time.monotonic() - began < 10.0
    assert {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/trial.json")} == stamps, "nothing was run again"
    with pytest.raises(GradiometerError, match="another command"):
        cure_command(["train.py", "--well"], wishes(folder))
    del project


def test_the_prescription_trains_without_a_change_of_the_code(cured: Cure, project: Path) -> None:
    command = [*CLI, "run", "--no-report", "--out", str(project / "cures" / "run"), "--with"]
    done = subprocess.run(
        [*command, f"{cured.folder}/prescription.json", "--", sys.executable, "train.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    trace = gradiometer.load(project / "cures" / "run").trace
    assert trace.learned
    (project / "log.txt").unlink()


def test_the_edit_trains_as_the_trial_did(project: Path, tmp_path: Path) -> None:
    """With SELU nothing is drawn that the trial did not draw: the edited script has the very losses of the trial."""
    cure = cure_command(["train.py"], wishes(project / "cures" / "selu", seeds=1), propose=first(1, "activation"))
    assert cure.outcome is Outcome.CURED, cure.sentence
    assert not cure.edit.notes
    shutil.copy(project / "train.py", tmp_path / "train.py")
    subprocess.run(["git", "apply"], input=cure.edit.diff, cwd=tmp_path, check=True, text=True)
    text = (tmp_path / "train.py").read_text()
    assert "gradiometer" not in text
    assert "nn.Sigmoid()" not in text
    out = tmp_path / "run"
    run = [*CLI, "run", "--no-report", "--out", str(out), "--", sys.executable, "train.py"]
    subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
    trace = gradiometer.load(out).trace
    assert trace.learned
    assert trace.learning.end < 0.5


def test_text_json_and_html(cured: Cure) -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    formats.print_cure(cured, console)
    text = console.export_text()
    assert "CURED" in text
    assert "Untreated: vanishing-gradient." in text
    assert f"gradiometer run --with cures/a/prescription.json -- {sys.executable} train.py" in text.replace("\n", "")
    assert "Not tried:" in text
    console.file.close()
    data = json.loads(formats.render_json(cured), parse_constant=lambda word: pytest.fail(word))
    assert data["schema"] == 1
    assert data["outcome"] == "cured"
    assert data["prescription"]["treatments"][0]["remedy"] == "initialise"
    assert data["arms"][data["best"]]["verdict"]["word"] == "cured"
    page = formats.render_html(cured)
    for part in ("figure-before", "figure-after", "figure-dumbbell", "figure-losses", 'id="race"', 'id="edit"'):
        assert part in page
    assert "Cured" in page


# ---- clusters --------------------------------------------------------------------------------------------------------------


def test_a_dask_cluster_of_two_workers_comes_to_the_verdict_of_loky(cured: Cure, project: Path) -> None:
    distributed = pytest.importorskip("distributed")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dask's own
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
            ) as cluster,
            distributed.Client(cluster),
            joblib.parallel_config(backend="dask"),
        ):
            found = cure_command(["train.py"], wishes(project / "cures" / "dask", jobs=None), propose=first(2, "initialise"))
    assert gist(found) == gist(cured)


# ---- the command line --------------------------------------------------------------------------------------------------------


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, "cure", *arguments], cwd=folder, capture_output=True, text=True)


def test_exit_0_for_what_is_well(project: Path) -> None:
    done = run(project, "--steps", "200", "--out", "cures/well", "--", sys.executable, "train.py", "--well")
    assert done.returncode == 0, done.stderr
    assert "ALREADY WELL" in done.stdout
    assert (project / "cures" / "well" / "cure.html").exists()
    assert "untreated, 200 steps" in done.stderr


def test_exit_1_for_no_cure(project: Path) -> None:
    out = ("--steps", "40", "--seeds", "1", "--out", "cures/none", "--format", "json")
    done = run(project, *out, "--only", "optimizer", "--only", "clip", "--only", "regularise", "train.py")
    assert done.returncode == 1, done.stderr
    data = json.loads(done.stdout)
    assert data["outcome"] == "no cure"
    assert data["best"] == -1
    assert data["prescription"] is None
    reasons = {one["label"]: one["reason"] for one in data["not_tried"]}
    assert "too little, which it leaves so" in reasons["clip"], "clipping cannot cure what vanishes"
    assert "--only" in reasons["initialise"]
    assert not (project / "cures" / "none" / "prescription.json").exists()


def test_remedies_explain_themselves() -> None:
    listed = subprocess.run([*CLI, "explain"], capture_output=True, text=True, check=True).stdout
    assert "Rules:" in listed
    assert "put another activation function in the place of the hidden ones" in listed
    told = subprocess.run([*CLI, "explain", "fewer-layers"], capture_output=True, text=True, check=True).stdout
    assert "What it does:" in told
    assert "When it does not:" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.py",), "There is no script missing.py"),
        (("--steps", "5", "train.py"), "--steps is 5"),
        (("--only", "prayer", "--steps", "40", "--seeds", "1", "train.py"), "There is no remedy 'prayer'"),
        (("--steps", "40", "--", sys.executable, "-c", "print(1)"), "never imported torch"),
        (("--", sys.executable, "-I", "train.py"), "-I, which keeps Gradiometer out"),
    ],
)
def test_exit_2_for_what_could_not_be_run(project: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(project, "--out", str(tmp_path / "cure"), *arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")
def test_ctrl_c_leaves_a_usable_result_and_no_process(project: Path) -> None:
    out = project / "cures" / "interrupted"
    command = [*CLI, "cure", "--steps", "200", "--jobs", "2", "--out", str(out), "--", sys.executable, "train.py"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as race:
        end = time.monotonic() + 120
        # the control is done, and treated runs are under way
        while not (list(out.glob("trials/control*/trial.json")) and alive(f"GRADIOMETER_RUN={out}/trials")):
            assert time.monotonic() < end
            time.sleep(0.02)
        os.killpg(race.pid, signal.SIGINT)
        said, complaints = race.communicate(timeout=60)
    assert race.returncode == 130, complaints
    assert b"INTERRUPTED" in said
    assert b"Traceback" not in complaints
    assert not alive(str(out))
    found = read(Cure, out / "cure.json")
    assert found.outcome is Outcome.INTERRUPTED
    assert found.control[0].roots == ("vanishing-gradient",)
    assert not list(out.glob("trials/*/work"))


# ---- notebooks -------------------------------------------------------------------------------------------------------------


def faint(depth: int = 10) -> tuple[nn.Module, torch.optim.Optimizer]:
    layers: list[nn.Module] = []
    for k in range(depth):
        layers += [nn.Linear(16 if k == 0 else 32, 32), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    return model, torch.optim.Adam(model.parameters(), lr=0.003)


def easy(count: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 16, generator=g)
    labels = torch.randint(0, 10, (count, 64), generator=g)
    return [(centres[y] + 0.3 * torch.randn(64, 16, generator=g), y) for y in labels]


def test_in_a_notebook() -> None:
    torch.set_num_threads(1)
    before = torch.random.get_rng_state()
    cure = gradiometer.cure(faint, easy(), F.cross_entropy, steps=STEPS, seeds=2, only=("initialise",))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert cure.outcome is Outcome.CURED
    assert cure.cure is not None
    assert cure.cure.verdict.seeds == 2
    assert cure.folder == ""
    assert cure.command == ()
    model, optimizer = faint()
    assert cure.prescription is not None
    assert gradiometer.treat(model, optimizer, cure.prescription, inputs=easy()[0][0])
    assert formats.render_html(cure)


def test_a_notebook_that_is_well_or_makes_no_sense(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    well = gradiometer.cure(lambda: faint(1), easy(), F.cross_entropy, steps=100, out=tmp_path / "cure")
    assert well.outcome is Outcome.WELL
    assert read(Cure, tmp_path / "cure" / "cure.json").outcome is Outcome.WELL
    with pytest.raises(GradiometerError, match="no pair"):
        gradiometer.cure(lambda: faint()[0], easy(), F.cross_entropy)  # type: ignore[arg-type,return-value]
    with pytest.raises(GradiometerError, match="There is no batch"):
        gradiometer.cure(faint, list, F.cross_entropy)
    with pytest.raises(GradiometerError, match="no remedy 'prayer'"):
        gradiometer.cure(faint, easy(), F.cross_entropy, steps=40, only=("prayer",))
