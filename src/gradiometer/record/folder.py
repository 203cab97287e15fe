"""The run folder: where it lies and its ``run.json``. Standard library only: the probe makes folders too."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from gradiometer.errors import GradiometerError
from gradiometer.record.frames import SCHEMA

RUNS_FOLDER: Final = Path(".gradiometer") / "runs"
RUN_FILE: Final = "run.json"


def create_folder(folder: Path | None, command: Sequence[str], version: str) -> Path:
    """Make a new run folder and its ``run.json``.

    Args:
        folder: where; None makes a new one under ``.gradiometer/runs``. An existing folder must hold no run yet.
        command: the command that is recorded.
        version: of gradiometer.

    Raises:
        GradiometerError: the folder cannot be written or already holds a run.
    """
    started = datetime.now(UTC)
    if folder is None:
        folder = RUNS_FOLDER / f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    info: dict[str, Any] = {
        "schema": SCHEMA,
        "gradiometer": version,
        "command": list(command),
        "cwd": str(Path.cwd()),
        "started": started.isoformat(timespec="seconds"),
    }
    try:
        if (folder / RUN_FILE).exists():
            raise GradiometerError(f"{folder} already holds a run.", "Give --out another folder, or remove that one.")
        folder.mkdir(parents=True, exist_ok=True)
        write_info(folder, info)
    except OSError as error:
        raise GradiometerError(
            f"The run folder {folder} cannot be written ({error.strerror or error}).", "Give --out a folder that you may write."
        ) from error
    return folder


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Write ``run.json`` atomically."""
    temporary = folder / f"{RUN_FILE}.tmp"
    temporary.write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / RUN_FILE)


def list_runs(base: Path = RUNS_FOLDER) -> list[Path]:
    """Run folders under ``base``, oldest first; folders that hold no run are left out."""
    if not base.is_dir():
        return []
    return sorted(p for p in base.iterdir() if (p / RUN_FILE).is_file())
