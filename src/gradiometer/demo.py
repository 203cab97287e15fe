"""The demo: two real trainings of one script, each with the other disease."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gradiometer import __version__
from gradiometer.data import DEMO_SCRIPT
from gradiometer.errors import GradiometerError
from gradiometer.launch import launch
from gradiometer.record.folder import create_folder
from gradiometer.record.reading import last_step
from gradiometer.record.run import load
from gradiometer.report import html, write
from gradiometer.report.summary import summarise
from gradiometer.report.text import print_summary

STEPS: Final = 600


@dataclass(frozen=True, slots=True)
class Case:
    """One training of the demo."""

    name: str
    title: str
    arguments: tuple[str, ...]


CASES: Final = (
    Case(
        "vanishing",
        "Twenty sigmoid layers on handwritten digits, initialised as PyTorch does",
        (),
    ),
    Case(
        "exploding",
        "The same script with large weights (sigma_w = 16)",
        ("--sigma", "16"),
    ),
)


def play(out: Path | None, console: Console) -> None:
    """Run both trainings under the probe and report on each.

    Args:
        out: folder for the two runs; None makes new ones under ``.gradiometer/runs``.
        console: where to print.

    Raises:
        GradiometerError: a training failed, or a folder cannot be written.
    """
    reports: list[tuple[Case, Path]] = []
    for number, case in enumerate(CASES, 1):
        command = [sys.executable, str(DEMO_SCRIPT), "--steps", str(STEPS), *case.arguments]
        folder = create_folder(out / case.name if out is not None else None, command, __version__)
        console.print()
        console.print(f"[bold]{number} of {len(CASES)}  {case.title}[/]")
        words = " ".join(("gradiometer run", DEMO_SCRIPT.name, "--steps", str(STEPS), *case.arguments))
        console.print(f"[dim]as if by: {words}[/]", soft_wrap=True)
        said = _train(command, folder, console)
        console.print(f"The training said: {said}")
        summary = summarise(load(folder))
        print_summary(summary, console)
        reports.append((case, write(folder / "report.html", html.render(summary))))
    console.print()
    console.print("Both trainings are the same script; only the size of the weights differs. Open the reports in a browser:")
    for case, report in reports:
        console.print(f"  {case.name:10} {report}", soft_wrap=True, highlight=False)
    console.print("Now yours: [bold]gradiometer run train.py[/]")


def _train(command: list[str], folder: Path, console: Console) -> str:
    """Run the command under a progress bar fed from its record; returns the last line it printed."""
    output = folder / "output.txt"
    columns = (TextColumn("training"), BarColumn(), TextColumn("step {task.completed:.0f} of {task.total:.0f}"))
    with output.open("w", encoding="utf-8") as file, Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("training", total=STEPS)
        outcome = launch(
            command,
            folder,
            overhead=0.01,
            every=None,
            stdout=file.fileno(),
            tick=lambda: progress.update(task, completed=last_step(folder) + 1),
        )
        progress.update(task, completed=last_step(folder) + 1)
    if outcome.status:
        raise GradiometerError(f"The demo's training ended with status {outcome.status}.", f"What it printed is in {output}.")
    lines = output.read_text(encoding="utf-8").splitlines()
    return lines[-1] if lines else "nothing"
