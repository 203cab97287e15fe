"""Run: the folder of one recorded command."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gradiometer.errors import GradiometerError
from gradiometer.record import frames
from gradiometer.record.folder import RUN_FILE
from gradiometer.record.reading import read_trace
from gradiometer.record.trace import Trace


@dataclass(frozen=True)
class Run:
    """A folder with ``run.json``, one record file per rank and ``events.jsonl``.

    Attributes:
        folder: where it lies.
        info: what ``run.json`` says: ``command``, ``started``, ``gradiometer``, and once it has ended ``status``, ``seconds``.
    """

    folder: Path
    info: Mapping[str, Any]

    @cached_property
    def trace(self) -> Trace:
        """The numbers, read from disk once. A run that is still going on may be read; call `load` again for more."""
        return replace(read_trace(self.folder), running=self.running)

    @property
    def running(self) -> bool:
        """Whether its command has not ended yet, as far as is known; a watch from inside a script is read as it is."""
        command = [str(word) for word in self.info.get("command", [])]
        return "status" not in self.info and bool(command) and not command[0].startswith("gradiometer.watch")

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @cached_property
    def process(self) -> Mapping[str, Any]:
        """Header of the first record file (python, torch, rank, argv of the training process); empty if there is none."""
        files = frames.rank_files(self.folder)
        return frames.read_header(files[0])[0] if files else {}


def load(folder: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    Args:
        folder: a folder made by ``gradiometer run`` or ``gradiometer.watch``.

    Raises:
        GradiometerError: there is no such folder, it is no run, or it was made by another version.
    """
    path = Path(folder)
    if not path.is_dir():
        raise GradiometerError(f"There is no run folder {path}.", "`gradiometer runs` lists the runs of this directory.")
    try:
        info = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GradiometerError(f"{path} is not a run: it has no {RUN_FILE}.", "`gradiometer runs` lists the runs.") from None
    except (ValueError, OSError) as error:
        raise GradiometerError(f"{path / RUN_FILE} cannot be read ({error}).", "Record the training again.") from error
    if not isinstance(info, dict) or info.get("schema") != frames.SCHEMA:
        found = info.get("schema") if isinstance(info, dict) else "nothing"
        raise GradiometerError(
            f"{path} was recorded with record format {found}; this version reads format {frames.SCHEMA}.",
            "Read it with the gradiometer version that made it, or record the training again.",
        )
    return Run(path, info)
