"""``gradiometer check``: run a command to its first step, stop it there, and read what the step showed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradiometer import __version__, launch
from gradiometer.errors import GradiometerError
from gradiometer.halting import Halted, halt_at_first_step
from gradiometer.preflight import Preflight, read
from gradiometer.record.folder import create_folder
from gradiometer.record.run import load

STDERR = 2


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
        KeyboardInterrupt: somebody interrupted it; the command is stopped and its files are put back.
    """
    command = tuple(launch.resolve(words))
    with tempfile.TemporaryDirectory(prefix="gradiometer-") as base:
        folder = create_folder(Path(base) / "check", command, __version__)
        halted = halt_at_first_step(command, folder, curvature=curvature, seconds=seconds, stdout=STDERR)
        if halted.interrupted:
            raise KeyboardInterrupt
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


def _remarks(halted: Halted) -> tuple[str, ...]:
    remarks: list[str] = []
    if halted.restored:
        remarks.append(f"Put back as it was before the check: {_list(halted.restored)}.")
    remarks += [f"Not put back: {path} ({why})." for path, why in halted.not_restored]
    if halted.created:
        remarks.append(f"The command itself made, before its first step: {_list(halted.created)}.")
    if halted.ready and len(halted.ready) < halted.world:
        remarks.append(f"Only {len(halted.ready)} of {halted.world} ranks came to their first step.")
    return tuple(remarks)


def _list(paths: Sequence[Path]) -> str:
    shown = [str(path) for path in paths[:6]]
    return ", ".join(shown) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
