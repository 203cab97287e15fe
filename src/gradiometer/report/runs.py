"""The table of past runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from gradiometer.errors import GradiometerError
from gradiometer.record.run import load
from gradiometer.report.text import plain
from gradiometer.rules.diagnosis import examine


def table(folders: Sequence[Path]) -> Table:
    """One row a run. A run that cannot be read has its reason in place of the verdict."""
    made = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("run", "started", "command", "exit", "steps", "verdict"):
        made.add_column(name, no_wrap=name in ("run", "exit"), justify="right" if name in ("exit", "steps") else "left")
    for folder in folders:
        try:
            run = load(folder)
            diagnosis = examine(run.trace)
        except GradiometerError as error:
            made.add_row(Text(plain(str(folder))), "", "", "", "", Text(plain(error.message), style="dim"))
            continue
        first = f": {diagnosis.findings[0].rule}" if diagnosis.findings else ""
        status = run.info.get("status")
        made.add_row(
            Text(plain(str(folder))),
            str(run.info.get("started", ""))[:16].replace("T", " "),
            Text(plain(shlex.join(str(w) for w in run.info.get("command", []))), overflow="ellipsis"),
            "" if status is None else str(status),
            str(run.trace.steps_seen),
            Text(f"{diagnosis.verdict.value}{first}"),
        )
    return made
