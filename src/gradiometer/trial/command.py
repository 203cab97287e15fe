"""Curing a command: the race over its trials, and what it leaves in the folder of the cure."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final, cast

import joblib

from gradiometer import __version__
from gradiometer.errors import GradiometerError
from gradiometer.launch import catching, option_that_keeps_out, resolve
from gradiometer.record.run import load
from gradiometer.record.trace import Trace
from gradiometer.trial import scratch
from gradiometer.trial.edit import edit_for
from gradiometer.trial.prescribe import Choice, Proposer, proposer
from gradiometer.trial.race import Board, Plan, Raced, race
from gradiometer.trial.result import CURE_FILE, PRESCRIPTION_FILE, Cure, Edit, Outcome, Trial, write

CURES_FOLDER: Final = Path(".gradiometer") / "cures"
MOST_JOBS: Final = 4
"""Trials at a time if nobody says: more seldom make a race faster, as rungs are small."""
SOURCE_LIMIT: Final = 1 << 20
"""Bytes of a source file that is looked at to tell whether the code has changed."""
MOST_SOURCES: Final = 2000
"""Source files that are looked at for that."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for.

    Attributes:
        plan: what the race may cost.
        choice: which remedies may be used.
        out: folder of the cure; a new one under ``.gradiometer/cures`` by default.
        in_place: run the trials in the working folder itself, one at a time.
    """

    plan: Plan = field(default_factory=Plan)
    choice: Choice = field(default_factory=Choice)
    out: Path | None = None
    in_place: bool = False


def default_jobs() -> int:
    """How many trials run at a time if nobody says: one where there is a GPU, whose memory one training may fill."""
    import torch

    return 1 if torch.accelerator.is_available() else max(1, min(MOST_JOBS, os.cpu_count() or 1))


def cure_command(
    words: Sequence[str], wishes: Wishes = Wishes(), *, board: Board | None = None, propose: Proposer | None = None
) -> Cure:
    """Find the smallest treatment that cures a training, and prove it.

    Trials are run by joblib: under ``joblib.parallel_config(backend="dask")`` (or any other backend) they run there, if
    ``wishes.plan.jobs`` is None; all of its machines must see the same files under the same paths.

    Args:
        words: a training script and its arguments, or any command.
        wishes: what it may cost, and where it goes.
        board: kept up to date while the race runs.
        propose: candidates for the symptoms; theory's by default.

    Raises:
        GradiometerError: the command cannot be started, trains nothing, or the folder was made for another one.
    """
    command = tuple(resolve(words))
    if letter := option_that_keeps_out(command):
        raise GradiometerError(f"Python would run with -{letter}, which keeps Gradiometer out.", "Drop it.")
    plan = wishes.plan
    plan.check()
    folder = (wishes.out if wishes.out is not None else new_folder()).absolute()
    facts = {"command": list(command), "folder": str(Path.cwd()), "steps": plan.steps, "code": fingerprint(Path.cwd())}
    scratch.claim(folder, facts)
    here = scratch.room(command, folder, threads=_threads(plan.jobs, in_place=wishes.in_place), in_place=wishes.in_place)

    def trace_of(name: str) -> Trace:
        return load(here.of(name) / scratch.RUN_FOLDER).trace

    interrupted = _Once()
    with catching(interrupted), scratch.stopping(folder):
        if wishes.in_place:
            with joblib.parallel_config(backend="sequential"):
                raced = race(plan, partial(scratch.perform, here), trace_of, propose or proposer(wishes.choice), board)
        else:
            raced = race(plan, partial(scratch.perform, here), trace_of, propose or proposer(wishes.choice), board)
        if raced.outcome is Outcome.INTERRUPTED:
            scratch.stop(folder)
    return conclude(raced, plan, folder, command, _edit(raced), _notes(wishes))


class _Once:
    """Signal handler: the first signal interrupts the race; while it is being ended, more are not heard."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            raise KeyboardInterrupt


def _threads(jobs: int | None, *, in_place: bool) -> int | None:
    """Threads for each training where several share the machine; None where one has it to itself."""
    at_a_time = 1 if in_place else cast("int", joblib.effective_n_jobs(cast("int", jobs)))  # None is: as configured
    return max(1, (os.cpu_count() or 1) // at_a_time) if at_a_time > 1 else None


def new_folder() -> Path:
    """Name of a new folder for a cure."""
    return CURES_FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def fingerprint(folder: Path) -> str:
    """Of the Python files of a folder: trials of one code are not mixed with those of another."""
    digest, count = hashlib.sha256(), 0
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name not in scratch.SKIPPED and not Path(here, name, "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            path = Path(here, name)
            if path.suffix == ".py" and path.is_file() and path.stat().st_size <= SOURCE_LIMIT and count < MOST_SOURCES:
                count += 1
                digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def conclude(raced: Raced, plan: Plan, folder: Path, command: tuple[str, ...], edit: Edit, notes: tuple[str, ...] = ()) -> Cure:
    """A race as a `Cure`, written to its folder with the prescription that cures."""
    from gradiometer.remedies import prescription as prescriptions

    cure = Cure(
        outcome=raced.outcome,
        sentence=raced.sentence,
        command=command,
        cwd=str(Path.cwd()),
        steps=raced.steps,
        budget=plan.budget,
        spent=raced.spent,
        seeds=plan.seeds,
        control=raced.control,
        arms=raced.arms,
        not_tried=raced.not_tried,
        best=raced.best,
        edit=edit,
        folder=str(folder),
        version=__version__,
        notes=notes,
    )
    write(folder / CURE_FILE, cure)
    (folder / PRESCRIPTION_FILE).unlink(missing_ok=True)
    if cure.prescription is not None:
        prescriptions.write(cure.prescription, folder / PRESCRIPTION_FILE)
    return cure


def full_trial(raced: Raced) -> Trial | None:
    """The treated run of the cure with the first seed; None without a cure."""
    if raced.best < 0:
        return None
    trials = raced.arms[raced.best].trials
    return next((t for t in trials if t.seed == 0 and t.steps == raced.steps), None)


def _edit(raced: Raced) -> Edit:
    trial = full_trial(raced)
    return edit_for(trial, str(Path.cwd())) if trial is not None else Edit()


def _notes(wishes: Wishes) -> tuple[str, ...]:
    if wishes.in_place:
        return ("The trials ran in the working folder itself (--in-place): what they wrote there is still there.",)
    return ()
