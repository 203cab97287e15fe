"""The trial room: nothing of the user's is overwritten, no process is left, and what was run is not run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradiometer.errors import GradiometerError
from gradiometer.launch import BOOT
from gradiometer.trial import scratch
from gradiometer.trial.result import Ending, Trial, write
from gradiometer.trial.scratch import Order, Room, claim, copy_tree, perform, room
from gradiometer.types import Prescription, Treatment

PYTHON = sys.executable
ORDER = Order("control.30.s0", None, 0, 30, 1)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "x.txt").write_text("data")
    (folder / "train.py").write_text("print('hi')\n")
    monkeypatch.chdir(folder)
    return folder


def here(folder: Path, script: str, *arguments: str, in_place: bool = False) -> Room:
    Path("train.py").write_text(script)
    return room([PYTHON, "train.py", *arguments], folder / "cure", threads=None, in_place=in_place)


def said(place: Room, order: Order = ORDER) -> str:
    return (place.of(order.name) / scratch.OUTPUT_FILE).read_text()


# ---- the copy ----------------------------------------------------------------------------------------------------------


def test_what_a_trial_writes_is_not_the_users(project: Path, tmp_path: Path) -> None:
    (project / "model.pt").write_text("trained for a week")
    script = f"""
import os
open("model.pt", "w").write("scratch")
open("new.txt", "w").write("scratch")
os.remove("data/x.txt")
open({str(project / "model.pt")!r}[:0] + os.sys.argv[1], "w").write("scratch")
print(os.getcwd())
"""
    place = here(tmp_path, script, f"{project}/model.pt")
    trial = perform(place, ORDER)
    assert trial.ending is Ending.FAILED
    assert "never imported torch" in trial.trouble
    assert (project / "model.pt").read_text() == "trained for a week"
    assert (project / "data" / "x.txt").read_text() == "data"
    assert not (project / "new.txt").exists()
    assert said(place).strip() == str(place.of(ORDER.name) / "work")
    assert not (place.of(ORDER.name) / "work").exists()


def test_in_place_is_what_it_says(project: Path, tmp_path: Path) -> None:
    place = here(tmp_path, "open('new.txt', 'w').write('here')", in_place=True)
    perform(place, ORDER)
    assert (project / "new.txt").read_text() == "here"


def test_what_is_copied_linked_and_left_out(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "LARGE", 100)
    (project / "big.npy").write_bytes(bytes(200))
    (project / "big.pt").write_bytes(bytes(200))
    for name in (".git", "__pycache__", ".gradiometer", "venv", "cure"):
        (project / name).mkdir()
        (project / name / "file").write_text("x")
    (project / "venv" / "pyvenv.cfg").write_text("")
    (project / "outside").symlink_to(tmp_path)
    (project / "inside").symlink_to("data/x.txt")
    (project / "absolute").symlink_to(project / "data")
    os.mkfifo(project / "pipe")
    links = copy_tree(project, tmp_path / "copy", project / "cure")
    copy = tmp_path / "copy"
    assert {p.name for p in copy.iterdir()} == {
        *("data", "train.py", "big.npy", "big.pt", "venv", "outside", "inside", "absolute")
    }
    assert (copy / "big.npy").readlink() == project / "big.npy"
    assert not (copy / "big.pt").is_symlink(), "trainings write such files"
    assert (copy / "venv").readlink() == project / "venv"
    assert (copy / "outside").readlink() == tmp_path
    assert (copy / "inside").resolve() == copy / "data" / "x.txt"
    assert (copy / "absolute").resolve() == copy / "data"
    assert [link.path for link in links] == [project / "big.npy"]


def test_a_trial_that_writes_to_a_linked_file_ends_the_race(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "LARGE", 100)
    (project / "big.npy").write_bytes(bytes(200))
    place = here(tmp_path, "open('big.npy', 'r+b').write(b'1' * 300)")
    with pytest.raises(GradiometerError, match=r"writes to .*big\.npy, which is too large"):
        perform(place, ORDER)


def test_a_folder_that_is_too_large_is_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "MOST", 2)
    with pytest.raises(GradiometerError, match="too much to copy"):
        copy_tree(project, tmp_path / "copy", tmp_path / "cure")


def test_paths_in_the_command_lead_to_the_copy(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # what the user has set is kept
        monkeypatch.delenv(name, raising=False)
    (project / "venv" / "bin").mkdir(parents=True)
    (project / "venv" / "pyvenv.cfg").write_text("")
    (project / "venv" / "bin" / "python").write_text("")
    (project / ".git").mkdir()
    (project / ".git" / "config").write_text("")
    monkeypatch.setenv("PYTHONPATH", f"{project}/lib:/elsewhere")
    words = [
        *(f"{project}/venv/bin/python", f"--data={project}/data", f"{project}", f"{project}-other/x"),
        *(f"{project}/data/x.txt:{project}/out", f"{project}/.git/config", "relative"),
    ]
    place = room(words, tmp_path / "cure", threads=2, in_place=False)
    work = tmp_path / "work"
    copy_tree(project, work, tmp_path / "cure")
    command, environment = scratch._moved(place, work)  # pyright: ignore[reportPrivateUsage]
    assert command == [
        *(f"{project}/venv/bin/python", f"--data={work}/data", f"{work}", f"{project}-other/x"),
        *(f"{work}/data/x.txt:{work}/out", f"{project}/.git/config", "relative"),
    ]
    assert environment["PYTHONPATH"].split(":") == [str(BOOT), f"{work}/lib", "/elsewhere"]
    assert environment["OMP_NUM_THREADS"] == "2"


def test_the_users_own_number_of_threads_is_kept(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("GRADIOMETER_STEPS", "3")
    place = room(["true"], tmp_path, threads=2, in_place=False)
    assert place.environment["OMP_NUM_THREADS"] == "7"
    assert "GRADIOMETER_STEPS" not in place.environment, "of a race that this one is part of"
    assert project == Path(place.cwd)


# ---- what the command is told --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("project")
def test_the_variables_of_a_trial(tmp_path: Path) -> None:
    place = here(tmp_path, "import os; print({k: v for k, v in os.environ.items() if k.startswith('GRADIOMETER_')})")
    order = Order("t.30.s2", Prescription((Treatment("clip", {"kind": "norm"}),)), 2, 30, 1)
    perform(place, order)
    told = eval(said(place, order))
    folder = place.of("t.30.s2")
    assert told["GRADIOMETER_RUN"] == str(folder / "run")
    assert told["GRADIOMETER_STEPS"] == "30"
    assert told["GRADIOMETER_SEED_SHIFT"] == "2"
    assert json.loads(Path(told["GRADIOMETER_PRESCRIPTION"]).read_text())["treatments"][0]["remedy"] == "clip"
    perform(place, ORDER)
    plain = eval(said(place))
    assert not plain.keys() & {"GRADIOMETER_PRESCRIPTION", "GRADIOMETER_SEED_SHIFT"}


@pytest.mark.usefixtures("project")
def test_a_crash_is_told_with_its_last_words(tmp_path: Path) -> None:
    trial = perform(here(tmp_path, "raise RuntimeError('out of cheese')"), ORDER)
    assert trial.ending is Ending.FAILED
    assert "failed with status 1" in trial.trouble
    assert "RuntimeError: out of cheese" in trial.trouble


@pytest.mark.usefixtures("project")
def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    place = room(["/no/such/program"], tmp_path / "cure", threads=None, in_place=False)
    trial = perform(place, ORDER)
    assert trial.ending is Ending.FAILED
    assert "cannot be started" in trial.trouble


# ---- no orphan -----------------------------------------------------------------------------------------------------------

# a daemon of its own session, whose parent is gone, and a child that ignores signals
CROWD = """
import os, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({0!r} + sys.argv[1], 'w'); time.sleep(600)"
for k in range(2):
    code = "import sys; " + child.format(sys.argv[1])
    subprocess.Popen([sys.executable, "-c", code, str(k)], start_new_session=bool(k))
while not all(os.path.exists(sys.argv[1] + str(k)) for k in range(2)):
    time.sleep(0.01)
if os.fork():
    os._exit(0) if len(sys.argv) > 2 else time.sleep(600)
os.setsid()
time.sleep(600)
"""


def alive(mark: str) -> list[int]:
    """Processes whose environment holds this (Linux)."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")


@linux
@pytest.mark.processes
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("how", ["ends", "time", "stop"])
def test_no_process_is_left(how: str, tmp_path: Path) -> None:
    place = here(tmp_path, CROWD, str(tmp_path / "up"), *(["x"] if how == "ends" else []))
    limit = 1.5 if how == "time" else None
    order = Order("a.30.s0", None, 0, 30, 1, limit=limit)
    if how == "stop":
        code = (
            f"import time, pathlib\nwhile not pathlib.Path({str(tmp_path / 'up1')!r}).exists(): time.sleep(0.01)\n"
            f"pathlib.Path({str(tmp_path / 'cure' / 'stop')!r}).touch()"
        )
        with subprocess.Popen([PYTHON, "-c", code]):
            trial = perform(place, order)
        assert trial.ending is Ending.INTERRUPTED
    else:
        trial = perform(place, order)
        assert trial.ending is Ending.FAILED
        assert ("many times the control" in trial.trouble) == (how == "time")
    assert not alive(str(place.of("a.30.s0")))


@linux
@pytest.mark.processes
@pytest.mark.usefixtures("project")
def test_trials_of_a_worker_that_was_killed_are_ended_by_the_race(tmp_path: Path) -> None:
    place = here(tmp_path, CROWD, str(tmp_path / "up"))
    code = (
        "from gradiometer.trial.scratch import *\n"
        f"perform(Room({place.command!r}, {place.cwd!r}, {place.folder!r}, {dict(place.environment)!r}),"
        " Order('a.30.s0', None, 0, 30, 1))"
    )
    worker = subprocess.Popen([PYTHON, "-c", code])
    while not (tmp_path / "up1").exists():
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert alive(str(place.of("a.30.s0")))
    with pytest.raises(KeyboardInterrupt), scratch.stopping(tmp_path / "cure"):
        raise KeyboardInterrupt
    assert not alive(str(place.of("a.30.s0")))
    assert perform(place, Order("b.30.s0", None, 0, 30, 1)).ending is Ending.INTERRUPTED, "nothing begins any more"


# ---- again -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counting(project: Path, tmp_path: Path) -> tuple[Room, Path]:
    counter = tmp_path / "count"
    del project
    return here(tmp_path, f"open({str(counter)!r}, 'a').write('x')"), counter


def test_a_finished_trial_is_not_run_again(counting: tuple[Room, Path]) -> None:
    place, counter = counting
    first = perform(place, ORDER)
    again = perform(place, ORDER)
    assert counter.read_text() == "x"
    assert (again.name, again.ending, again.trouble) == (first.name, first.ending, first.trouble)


def test_an_interrupted_one_is(counting: tuple[Room, Path]) -> None:
    place, counter = counting
    perform(place, ORDER)
    write(place.of(ORDER.name) / "trial.json", Trial(ORDER.name, None, 0, 30, Ending.INTERRUPTED))
    perform(place, ORDER)
    (place.of(ORDER.name) / "trial.json").unlink()
    perform(place, ORDER)
    assert counter.read_text() == "xxx"


def test_a_folder_belongs_to_one_command(tmp_path: Path) -> None:
    facts = {"command": ["python", "a.py"], "steps": 300, "code": "1"}
    claim(tmp_path / "c", facts)
    (tmp_path / "c" / scratch.STOP_FILE).touch()
    claim(tmp_path / "c", facts)
    assert not (tmp_path / "c" / scratch.STOP_FILE).exists()
    with pytest.raises(GradiometerError, match=r"another command: python a\.py, not python b\.py"):
        claim(tmp_path / "c", {**facts, "command": ["python", "b.py"]})
    with pytest.raises(GradiometerError, match="another code"):
        claim(tmp_path / "c", {**facts, "code": "2"})
