"""``gradiometer check``: run a command to its first step, stop it there, and read what the step showed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradiometer import __version__, launch
from gradiometer.errors import GradiometerError
from gradiometer.halting import Halted, halt_at_first_step
from gradiometer.preflight import Preflight, read
from gradiometer.record.folder import RUNS_FOLDER, create_folder
from gradiometer.record.run import load

STDERR = 2


class InterruptedCheck(Exception):  # noqa: N818  not an error: somebody wanted it
    """Somebody ended the check.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True)
class Checkup:
    """What came of checking a command.

    Attributes:
        command: what was run.
        preflight: the reading; None if the command could not be checked.
        reason: why not; empty otherwise.
        hint: what to do about it.
        remarks: sentences about what was put back and what was left.
    """

    command: tuple[str, ...]
    preflight: Preflight | None
    reason: str = ""
    hint: str = ""
    remarks: tuple[str, ...] = ()


def check_up(words: Sequence[str], *, curvature: bool = False, seconds: float | None = None) -> Checkup:
    """Run a command until its first optimizer step would happen, stop it, and judge.

    Args:
        words: a training script and its arguments, or any command.
        curvature: whether to measure the largest curvature.
        seconds: give up after this long; None waits.

    Raises:
        GradiometerError: the command cannot be started.
        InterruptedCheck: somebody interrupted it; the command is stopped and its files are put back.
    """
    command = tuple(launch.resolve(words))
    with _folder() as base:
        folder = create_folder(base / "check", command, __version__)
        halted = halt_at_first_step(command, folder, curvature=curvature, seconds=seconds, stdout=STDERR)
        if halted.interrupted:
            raise InterruptedCheck(halted.signal or 2)
        remarks = _remarks(halted)
        if halted.refused:
            return Checkup(command, None, halted.refused, "", remarks)
        if halted.timed_out and not halted.ready:
            reason = f"after {halted.seconds:.0f} s the first optimizer step had not come."
            return Checkup(command, None, reason, "Give it longer, or make what comes before the first step shorter.", remarks)
        try:
            return Checkup(command, read(folder), remarks=remarks)
        except GradiometerError:
            return Checkup(command, None, launch.explain_silence(load(folder)), "", remarks)


@contextlib.contextmanager
def _folder() -> Generator[Path]:
    """A folder on the file system of the command's files, so that they can be kept by a link; gone afterwards.

    What could not be put back stays in it.
    """
    parent = RUNS_FOLDER.parent
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        base = Path(tempfile.mkdtemp(prefix="check-", dir=parent))
    except OSError:  # the folder may not be written: a copy elsewhere does it too
        base = Path(tempfile.mkdtemp(prefix="gradiometer-check-"))
    try:
        yield base
    finally:
        if not any((base / "check" / kept).is_dir() for kept in ("journal", "set-aside")):
            shutil.rmtree(base, ignore_errors=True)
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()  # only if it is empty


def _remarks(halted: Halted) -> tuple[str, ...]:
    remarks: list[str] = []
    if halted.restored:
        remarks.append(f"Put back as it was before the check: {_list(halted.restored)}.")
    remarks += [f"Not put back: {path} ({why})." for path, why in halted.not_restored]
    if halted.created:
        remarks.append(f"The command itself made, before its first step: {_list(halted.created)}.")
    if halted.alive:
        remarks.append(f"Still running: process {', '.join(map(str, halted.alive))}.")
    if halted.ready and len(halted.ready) < halted.world:
        remarks.append(f"Only {len(halted.ready)} of {halted.world} ranks came to their first step.")
    return tuple(remarks)


def _list(paths: Sequence[Path]) -> str:
    shown = [str(path) for path in paths[:6]]
    return ", ".join(shown) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
