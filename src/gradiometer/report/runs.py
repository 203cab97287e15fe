"""The table of past runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from gradiometer.errors import GradiometerError
from gradiometer.record.run import Run, load
from gradiometer.report.text import plain
from gradiometer.rules.diagnosis import examine


def table(base: Path, folders: Sequence[Path]) -> Table:
    """One row for each run folder in ``base``. A run that cannot be read has its reason in place of the verdict."""
    made = Table(box=None, padding=(0, 1), header_style="bold", title=f"Runs in {base}", title_justify="left")
    for name in ("run", "started", "exit", "steps", "verdict"):
        made.add_column(name, no_wrap=True, justify="right" if name in ("exit", "steps") else "left")
    made.add_column("command", no_wrap=True, overflow="ellipsis")
    for folder in folders:
        try:
            run = load(folder)
            diagnosis = examine(run.trace)
        except GradiometerError as error:
            made.add_row(Text(plain(folder.name)), "", "", "", "unreadable", Text(plain(error.message), style="dim"))
            continue
        first = f": {diagnosis.findings[0].rule}" if diagnosis.findings else ""
        status = run.info.get("status")
        made.add_row(
            Text(plain(folder.name)),
            str(run.info.get("started", ""))[:16].replace("T", " "),
            "" if status is None else str(status),
            str(run.trace.steps_seen),
            diagnosis.verdict.value + first,
            Text(plain(_command(run))),
        )
    return made


def _command(run: Run) -> str:
    """The command as one line, the interpreter without its path."""
    words = [str(word) for word in run.info.get("command", [])]
    if words and Path(words[0]).name.startswith("python"):
        words[0] = Path(words[0]).name
    return shlex.join(words)
