"""The trial room: one run of the user's own command, in a scratch copy of its folder, treated or not, for so many steps.

The command runs in a session of its own, in a copy of the working folder, so that nothing it writes by a relative path (or
by an absolute one inside the folder) is the user's. What it prints is kept beside its record. However it ends, no process
of it is left: they are found by the run folder in their environment, and ended one by one, by their id.

A trial is a pure value in and out (`Order` to `Trial`), so any backend of joblib may run it: in this process, in others,
or on other machines that see the same files.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gradiometer import __version__
from gradiometer.errors import GradiometerError
from gradiometer.launch import BOOT, Outcome, explain_silence, note_outcome, probe_environment
from gradiometer.record.folder import create_folder
from gradiometer.remedies import prescription as prescriptions
from gradiometer.trial.result import PRESCRIPTION_FILE, TRIAL_FILE, Ending, Place, Trial, read, write
from gradiometer.types import Prescription

OVERHEAD: Final = 0.05
"""Share of a trial's time that the probe may take: trials are short, and must be read well."""
TICK: Final = 0.1
"""Seconds between two looks at a running trial."""
LARGE: Final = 50 << 20
"""Bytes from which on a file is linked into the scratch copy instead of copied."""
MOST: Final = 2 << 30
"""Bytes that a scratch copy may have."""
WRITTEN: Final = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".pkl", ".h5", ".log", ".csv", ".jsonl", ".db", ".sqlite")
"""Files that trainings write, which are copied whatever their size: a link would lead to the user's own."""
SKIPPED: Final = (
    *(".git", ".hg", ".svn", ".gradiometer", "__pycache__", "node_modules", ".ipynb_checkpoints"),
    *(".pytest_cache", ".ruff_cache", ".mypy_cache", ".tox", ".nox"),
)
"""Folders that no training reads."""
PATIENCE: Final = 10.0
"""A treated trial may take this many times as long as the control before it is ended ..."""
GRACE: Final = 60.0
"""... and this many seconds more."""
STOP_FILE: Final = "stop"
"""In the folder of the cure: every trial ends when it sees it, on whatever machine."""
OUTPUT_FILE: Final = "output.txt"
RUN_FOLDER: Final = "run"
WORK_FOLDER: Final = "work"
TAIL: Final = 2000
"""Characters of a command's last words that are kept in a sentence."""


@dataclass(frozen=True, slots=True)
class Order:
    """A trial that is to be run.

    Attributes:
        name: of its folder.
        prescription: what to treat with; None for an untreated run.
        seed: added to every seed that the training sets.
        steps: optimizer steps.
        bin_steps: steps that are one entry of the loss curve.
        early: whether it is judged as a training that would go on.
        expected: steps after which an end of its own is none before its time; ``steps`` unless the training is shorter.
        limit: seconds after which it is ended; None waits.
    """

    name: str
    prescription: Prescription | None
    seed: int
    steps: int
    bin_steps: int
    early: bool = False
    expected: int = 0
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """Where and how the trials of a cure are run.

    Attributes:
        command: from `gradiometer.launch.resolve`.
        cwd: folder it is run in, absolute.
        folder: of the cure, absolute; every trial is a folder in its ``trials``.
        environment: of the command, the probe's part included (see `room`).
        in_place: run in ``cwd`` itself instead of a copy.
    """

    command: tuple[str, ...]
    cwd: str
    folder: str
    environment: Mapping[str, str]
    in_place: bool = False

    def of(self, name: str) -> Path:
        """Folder of a trial."""
        return trial_folder(Path(self.folder), name)


def trial_folder(folder: Path, name: str) -> Path:
    """Folder of a trial within that of its cure."""
    return folder / "trials" / name


def room(command: Sequence[str], folder: Path, *, threads: int | None, in_place: bool) -> Room:
    """The room for a command in this process's folder and environment.

    Args:
        command: from `gradiometer.launch.resolve`.
        folder: of the cure.
        threads: that each training may use, where the user's environment does not say; None leaves it alone.
        in_place: run in the folder itself instead of a copy.
    """
    environment = probe_environment(folder.absolute(), OVERHEAD, None)
    environment = {name: value for name, value in environment.items() if not name.startswith("GRADIOMETER_")}
    environment["GRADIOMETER_OVERHEAD"] = repr(OVERHEAD)
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment.setdefault(name, str(threads))
    return Room(tuple(command), str(Path.cwd()), str(folder.absolute()), environment, in_place)


# ---- one trial ---------------------------------------------------------------------------------------------------------


def perform(here: Room, order: Order) -> Trial:
    """Run a trial, unless its folder says that it was run already.

    Raises:
        GradiometerError: the scratch copy cannot be made, or the trial wrote to a file of the user's.
    """
    folder = here.of(order.name)
    if (done := finished(folder)) is not None:
        return done
    if (Path(here.folder) / STOP_FILE).exists():
        return _blank(order, Ending.INTERRUPTED, "The race was stopped.")
    shutil.rmtree(folder, ignore_errors=True)
    run = create_folder(folder / RUN_FOLDER, here.command, __version__)
    work = folder / WORK_FOLDER
    try:
        if here.in_place:
            command, cwd, environment, links = list(here.command), here.cwd, dict(here.environment), []
        else:
            links = copy_tree(Path(here.cwd), work, Path(here.folder))
            command, environment = _moved(here, work)
            cwd = str(work)
        environment |= {"GRADIOMETER_RUN": str(run), "GRADIOMETER_STEPS": str(order.steps), "PWD": cwd}
        if order.seed:
            environment["GRADIOMETER_SEED_SHIFT"] = str(order.seed)
        if order.prescription is not None:
            prescriptions.write(order.prescription, folder / PRESCRIPTION_FILE)
            environment["GRADIOMETER_PRESCRIPTION"] = str(folder / PRESCRIPTION_FILE)
        ended = _run(command, cwd, environment, folder, Path(here.folder) / STOP_FILE, order.limit)
        _check_links(links)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    trial = read_trial(order, folder, ended, (str(work), here.cwd))
    write(folder / TRIAL_FILE, trial)
    return trial


def finished(folder: Path) -> Trial | None:
    """The trial of a folder, if it came to an end of its own; None where there is none, or it was interrupted."""
    if not (folder / TRIAL_FILE).exists():
        return None
    trial = read(Trial, folder / TRIAL_FILE)
    return trial if trial.ending is not Ending.INTERRUPTED else None


@dataclass(frozen=True, slots=True)
class Ended:
    """How the command of a trial ended.

    Attributes:
        status: as a shell reports it; None if it was not left to end.
        seconds: how long it ran.
        stopped: ``time`` (it took too long), ``stop`` (somebody stopped the race), or empty.
        error: why it could not be started; empty otherwise.
    """

    status: int | None
    seconds: float
    stopped: str = ""
    error: str = ""


def _run(
    command: Sequence[str], cwd: str, environment: Mapping[str, str], folder: Path, stop: Path, limit: float | None
) -> Ended:
    began = time.monotonic()
    run = folder / RUN_FOLDER
    with (folder / OUTPUT_FILE).open("wb") as output:
        try:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is for the race, which ends its trials itself
            )
        except OSError as error:
            return Ended(None, 0.0, error=f"{command[0]} cannot be started ({error.strerror}).")
    stopped = ""
    try:
        while not _has_ended(child) and not stopped:
            if limit is not None and time.monotonic() - began > limit:
                stopped = "time"
            elif stop.exists():
                stopped = "stop"
            else:
                time.sleep(TICK)
    finally:
        end_all(run, child)
    seconds = time.monotonic() - began
    code = child.returncode
    status = None if stopped else code if code >= 0 else 128 - code
    if status is not None:
        note_outcome(run, Outcome(status, -code if code < 0 else None, seconds, interrupted=False))
    return Ended(status, seconds, stopped)


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether the command has ended. Its process is left as it is where the system can: so long its id is nobody else's."""
    if sys.platform == "linux":
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    return child.poll() is not None


# ---- no orphan ---------------------------------------------------------------------------------------------------------


def end_all(run: Path, child: subprocess.Popen[bytes] | None = None) -> None:
    """End every process of a trial: those of its session, and (Linux) those with its run folder in their environment.

    Args:
        run: its run folder.
        child: its command, which is waited for; None where another process has started it.
    """
    if child is not None:
        if sys.platform == "linux" or child.poll() is None:  # on Linux it has not been waited for: the id is its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    mark = f"GRADIOMETER_RUN={run}".encode()
    for _ in range(20):  # one that is starting others is caught with them the next time
        if not _end_marked(mark):
            return
        time.sleep(0.01)


def _end_marked(mark: bytes) -> bool:
    """Kill each process whose environment holds this; whether there was one."""
    if sys.platform != "linux":
        return False
    found = False
    for name in os.listdir("/proc"):  # noqa: PTH208  some hundred entries, often
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            handle = os.pidfd_open(int(name))  # from here on it is this very process, and no later one of its number
        except OSError:
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    found = True
        except OSError:  # it has ended, or is somebody else's
            pass
        finally:
            os.close(handle)
    return found


def end_trials(folder: Path) -> None:
    """End all trials of a cure that run on this machine, whoever started them, and remove their scratch copies."""
    for run in folder.glob(f"trials/*/{RUN_FOLDER}"):
        if not (run.parent / TRIAL_FILE).exists():
            end_all(run.absolute())
            shutil.rmtree(run.parent / WORK_FOLDER, ignore_errors=True)


# ---- the scratch copy --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """A file of the user's that a scratch copy leads to, as it was before the trial."""

    path: Path
    size: int
    changed: int


def copy_tree(source: Path, target: Path, leave_out: Path) -> list[Link]:
    """Copy a working folder for a trial.

    Files of more than `LARGE` bytes are linked, unless trainings write such files; virtual environments are linked as a
    whole; version control and caches are left out. A link in the folder that leads out of it stays what it is.

    Args:
        source: the user's folder.
        target: where to; made.
        leave_out: a folder that may lie in it and is no part of it: that of the cure.

    Returns:
        Large files that are linked.

    Raises:
        GradiometerError: it is too large, or cannot be read or written.
    """
    source, leave_out = source.resolve(), leave_out.resolve()
    links: list[Link] = []
    total = 0
    target.mkdir(parents=True)
    try:
        for here, folders, files in os.walk(source):
            there = target / Path(here).relative_to(source)
            for name in list(folders):
                path = Path(here, name)
                if name in SKIPPED or path == leave_out:
                    folders.remove(name)
                elif path.is_symlink():
                    folders.remove(name)
                    (there / name).symlink_to(_within(path, source, target))
                elif (path / "pyvenv.cfg").exists() or (path / "conda-meta").is_dir():
                    folders.remove(name)
                    (there / name).symlink_to(path)
                else:
                    (there / name).mkdir()
            for name in files:
                path = Path(here, name)
                if path.is_symlink():
                    (there / name).symlink_to(_within(path, source, target))
                    continue
                facts = path.stat()
                if not stat.S_ISREG(facts.st_mode):
                    continue
                if facts.st_size > LARGE and path.suffix.lower() not in WRITTEN:
                    (there / name).symlink_to(path)
                    links.append(Link(path, facts.st_size, facts.st_mtime_ns))
                    continue
                total += facts.st_size
                if total > MOST:
                    raise GradiometerError(
                        f"The folder {source} holds more than {MOST >> 30} GB: too much to copy for every trial.",
                        "Run it from the training's own folder, or with --in-place.",
                    )
                shutil.copy2(path, there / name)
    except OSError as error:
        raise GradiometerError(
            f"The folder {source} cannot be copied ({error.strerror or error}: {error.filename}).",
            "Make room, or run with --in-place.",
        ) from error
    return links


def _within(link: Path, source: Path, target: Path) -> str:
    """Where a symbolic link of the user's leads from the copy: to the same place, or, inside the folder, to its copy."""
    goal = link.readlink()
    if goal.is_absolute():
        return str(target / goal.relative_to(source)) if goal.is_relative_to(source) else str(goal)
    whole = Path(os.path.normpath(link.parent / goal))
    return str(goal) if whole.is_relative_to(source) else str(whole)


def _check_links(links: Sequence[Link]) -> None:
    for link in links:
        try:
            facts = link.path.stat()
            same = (facts.st_size, facts.st_mtime_ns) == (link.size, link.changed)
        except OSError:
            same = False
        if not same:
            raise GradiometerError(
                f"The training writes to {link.path}, which is too large to be copied for a trial.",
                "Move it out of the folder, or let the training write elsewhere.",
            )


def _moved(here: Room, work: Path) -> tuple[list[str], dict[str, str]]:
    """The command and its environment with absolute paths in the folder led to their copies."""
    source = here.cwd.rstrip("/")

    def copied(match: re.Match[str]) -> str:
        path = match.group(2)
        inside = work / path.lstrip("/")
        # what was left out or linked (an interpreter in a virtual environment) is where it was
        through_link = any((work / part).is_symlink() for part in Path(path.lstrip("/")).parents)
        known = inside.exists() or not Path(source + path).exists()
        return f"{match.group(1)}{work}{path}" if known and not through_link else match.group(0)

    # at the start of a word or behind =, : or ,
    pattern = re.compile(f"(^|[=:,]){re.escape(source)}((?:/[^:,]*)?)(?=$|[:,])")
    searched = here.environment.get("PYTHONPATH", "").split(os.pathsep)
    searched = [entry if entry == str(BOOT) else pattern.sub(copied, entry) for entry in searched]
    command = [pattern.sub(copied, word) for word in here.command]
    return command, {**here.environment, "PYTHONPATH": os.pathsep.join(searched)}


# ---- reading it --------------------------------------------------------------------------------------------------------


def read_trial(order: Order, folder: Path, ended: Ended, moved: tuple[str, str]) -> Trial:
    """What a trial showed.

    Args:
        order: what was run.
        folder: of the trial.
        ended: how its command ended.
        moved: the folder it ran in, and the user's folder that this stands for.
    """
    from gradiometer.record.run import load
    from gradiometer.trial.reading import as_trial

    loaded = load(folder / RUN_FOLDER)
    try:
        trial = as_trial(order.name, order.prescription, order.seed, order.steps, order.bin_steps, loaded.trace, order.early)
    except GradiometerError as error:
        return Trial(
            order.name, order.prescription, order.seed, order.steps, Ending.FAILED, error.message, seconds=ended.seconds
        )
    trial = replace(trial, seconds=ended.seconds, places=_home(trial, moved))
    if trial.ending is not Ending.RAN:  # the remedy does not fit
        return trial
    if ended.stopped == "stop":
        return replace(trial, ending=Ending.INTERRUPTED, trouble="The race was stopped.")
    if ended.stopped == "time":
        return replace(
            trial, ending=Ending.FAILED, trouble=f"It was ended after {ended.seconds:.0f} s, many times the control's."
        )
    if ended.error:
        return replace(trial, ending=Ending.FAILED, trouble=ended.error)
    if ended.status and trial.taken < (order.expected or order.steps):
        return replace(trial, ending=Ending.FAILED, trouble=f"{explain_silence(loaded)} {_last_words(folder)}".strip())
    if not trial.taken:
        return replace(trial, ending=Ending.FAILED, trouble=explain_silence(loaded))
    return trial


def _blank(order: Order, ending: Ending, trouble: str, seconds: float = math.nan) -> Trial:
    return Trial(order.name, order.prescription, order.seed, order.steps, ending, trouble, seconds=seconds)


def _home(trial: Trial, moved: tuple[str, str]) -> tuple[Place, ...]:
    work, cwd = moved
    return tuple(replace(place, file=_relative(place.file, (work, cwd))) for place in trial.places)


def _relative(file: str, bases: Sequence[str]) -> str:
    for base in bases:
        if file.startswith(base.rstrip("/") + "/"):
            return file[len(base.rstrip("/")) + 1 :]
    return file


def _last_words(folder: Path) -> str:
    """The last line that the command printed, as a sentence; empty if there is none."""
    with contextlib.suppress(OSError):
        lines = (folder / OUTPUT_FILE).read_text(encoding="utf-8", errors="replace")[-TAIL:].strip().splitlines()
        if lines:
            return f"It said: {lines[-1].strip()[:300]}"
    return ""


# ---- the same cure again -----------------------------------------------------------------------------------------------

PLAN_FILE: Final = "plan.json"


def claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """Make the folder of a cure, or go on in one that was made for the same.

    Args:
        folder: of the cure.
        facts: what all its trials depend on, as JSON can hold it.

    Raises:
        GradiometerError: it was made for something else, or cannot be written.
    """
    path = folder / PLAN_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STOP_FILE).unlink(missing_ok=True)
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            for name, value in facts.items():
                if before.get(name) != value:
                    raise GradiometerError(
                        f"{folder} holds a cure with another {name}: {_short(before.get(name))}, not {_short(value)}.",
                        "Give --out another folder, or repeat the command as it was.",
                    )
        else:
            path.write_text(json.dumps(dict(facts), indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise GradiometerError(f"The folder {folder} cannot be used ({error}).", "Give --out another folder.") from error


def _short(value: Any) -> str:
    text = " ".join(str(v) for v in value) if isinstance(value, list) else str(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


@contextlib.contextmanager
def stopping(folder: Path) -> Generator[None]:
    """While the block runs, an interruption ends all trials of a cure: on this machine at once, on others when they see it."""
    try:
        yield
    except BaseException:
        stop(folder)
        raise


def stop(folder: Path) -> None:
    """End all trials of a cure."""
    with contextlib.suppress(OSError):
        (folder / STOP_FILE).touch()
    end_trials(folder)
