"""The demo: two real trainings of one script, each with the other disease, diagnosed, cured, and trained again."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gradiometer import __version__
from gradiometer.data import DEMO_DATA, DEMO_SCRIPT
from gradiometer.errors import GradiometerError
from gradiometer.launch import launch, resolve
from gradiometer.record.folder import RUNS_FOLDER, create_folder
from gradiometer.record.reading import last_step
from gradiometer.record.run import load
from gradiometer.report import cure as cures
from gradiometer.report import html, write
from gradiometer.report.summary import summarise
from gradiometer.report.text import print_summary
from gradiometer.trial.command import CURES_FOLDER, MOST_JOBS, Wishes, cure_command
from gradiometer.trial.race import Board, Plan
from gradiometer.trial.result import PRESCRIPTION_FILE, Cure, Outcome

FOLDER: Final = Path(".gradiometer") / "demo"
STEPS: Final = 600
"""Of a whole training; the trials of the cure are half as long."""
WISHES: Final = Wishes(Plan(jobs=max(1, min(MOST_JOBS, os.cpu_count() or 1))))
"""The cure as the command has it, though its trials run side by side also where there is a GPU: the script uses none."""
THREADS: Final = "OMP_NUM_THREADS"
_ACCURACY: Final = re.compile(r"training accuracy ([0-9.]+), test accuracy ([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Case:
    """One training of the demo."""

    name: str
    title: str
    arguments: tuple[str, ...] = ()


CASES: Final = (
    Case("vanishing", "Twenty sigmoid layers on handwritten digits, initialised as PyTorch does"),
    Case("exploding", "The same script with large weights (sigma_w = 16)", ("--sigma", "16")),
)


@dataclass(frozen=True, slots=True)
class Played:
    """What came of one training of the demo.

    Attributes:
        case: which it was.
        before: what the training said of itself.
        cure: what was found.
        after: what the whole training said with the prescription; empty where nothing cures it.
        pages: reports, in the order in which they were written.
    """

    case: Case
    before: str
    cure: Cure
    after: str
    pages: tuple[Path, ...]


def play(
    out: Path | None, console: Console, cases: Sequence[Case] = CASES, *, steps: int = STEPS, wishes: Wishes = WISHES
) -> tuple[Played, ...]:
    """Watch both trainings fail, cure each, and run each again with its prescription.

    Args:
        out: folder for a project of the demo's own, with the script, its data and all that comes of them; None makes a new
            one under ``.gradiometer/demo``.
        console: where to print.
        cases: the trainings.
        steps: of a whole training.
        wishes: what a cure may cost and use.

    Raises:
        GradiometerError: a training failed, or a folder cannot be written.
    """
    project = _project(out)
    with contextlib.chdir(project), _one_thread():
        played = tuple(_play(n, len(cases), case, steps, wishes, console) for n, case in enumerate(cases, 1))
    console.print()
    console.print(_table(played))
    console.print(
        f"Everything is in {project}: the script, its records, the cures. The reports, for a browser:", soft_wrap=True
    )
    for path in (page for one in played for page in one.pages):
        console.print(f"  {project / path}", soft_wrap=True, highlight=False)
    console.print("Now yours: [bold]gradiometer run train.py[/], and if it is ill [bold]gradiometer cure train.py[/]")
    return played


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    """While the block runs, trainings use one thread each, if nobody has said how many.

    The script's matrices are small, and threads that wait for each other on a busy machine make it ten times slower.
    """
    given = os.environ.get(THREADS)
    os.environ.setdefault(THREADS, "1")
    try:
        yield
    finally:
        if given is None:
            del os.environ[THREADS]


def _project(out: Path | None) -> Path:
    """A folder with the script and its data, as a user may have one."""
    folder = (out if out is not None else FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise GradiometerError(f"{folder} is not empty.", "Give --out a new folder.")
        for source in (DEMO_SCRIPT, DEMO_DATA):
            shutil.copyfile(source, folder / source.name)
    except OSError as error:
        raise GradiometerError(
            f"{folder} cannot be written ({error.strerror or error}).", "Give --out another folder."
        ) from error
    return folder


def _play(number: int, count: int, case: Case, steps: int, wishes: Wishes, console: Console) -> Played:
    words = [DEMO_SCRIPT.name, "--steps", str(steps), *case.arguments]
    console.print()
    console.print(f"[bold]{number} of {count}  {case.title}[/]")
    _as_if(console, "run", *words)
    run = RUNS_FOLDER / case.name
    before = _train(words, run, steps, console)
    summary = summarise(load(run))
    print_summary(summary, console)
    pages = [write(run / "report.html", html.render(summary))]
    console.print()
    _as_if(console, "cure", *words)
    cure = _cure(words, replace(wishes, out=CURES_FOLDER / case.name), console)
    cures.print_cure(cure, console)
    pages.append(write(CURES_FOLDER / case.name / "cure.html", cures.render_html(cure)))
    after = ""
    if cure.prescription is not None:
        prescription = CURES_FOLDER / case.name / PRESCRIPTION_FILE
        console.print()
        _as_if(console, "run", "--with", str(prescription), *words)
        run = RUNS_FOLDER / f"{case.name}-cured"
        after = _train(words, run, steps, console, prescription)
        pages.append(write(run / "report.html", html.render(summarise(load(run)))))
    return Played(case, before, cure, after, tuple(pages))


def _as_if(console: Console, *words: str) -> None:
    console.print(f"[dim]as if by: gradiometer {' '.join(words)}[/]", soft_wrap=True, highlight=False)


def _train(words: Sequence[str], run: Path, steps: int, console: Console, prescription: Path | None = None) -> str:
    """Run the script under a progress bar fed from its record; returns the last line it printed."""
    command = resolve(words)
    folder = create_folder(run, command, __version__)
    output = folder / "output.txt"
    columns = (TextColumn("training"), BarColumn(), TextColumn("step {task.completed:.0f} of {task.total:.0f}"))
    with output.open("w", encoding="utf-8") as file, Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("training", total=steps)
        outcome = launch(
            command,
            folder,
            overhead=0.01,
            every=None,
            prescription=prescription,
            stdout=file.fileno(),
            tick=lambda: progress.update(task, completed=last_step(folder) + 1),
        )
        progress.update(task, completed=last_step(folder) + 1)
    if outcome.status:
        raise GradiometerError(f"The demo's training ended with status {outcome.status}.", f"What it printed is in {output}.")
    lines = output.read_text(encoding="utf-8").splitlines()
    said = lines[-1] if lines else "nothing"
    console.print(f"The training said: {said}", soft_wrap=True, highlight=False)
    return said


def _cure(words: Sequence[str], wishes: Wishes, console: Console) -> Cure:
    """The cure, with its race as a live table; where there is no terminal to draw on, with a line for every trial."""
    board = Board()
    folder = wishes.out or CURES_FOLDER
    if not console.is_terminal:
        board.back = lambda trial: console.print(cures.line(trial), soft_wrap=True, highlight=False)
    table = Live(get_renderable=lambda: cures.live(board, folder), console=console, refresh_per_second=4, transient=True)
    with table:
        cure = cure_command(words, wishes, board=board)
    if cure.outcome is Outcome.INTERRUPTED:
        raise GradiometerError("The demo was interrupted.", f"What was known by then is in {folder.absolute()}.")
    return cure


def _table(played: Sequence[Played]) -> Table:
    """The accuracies before and after."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for heading in ("", "the change", "training accuracy", "test accuracy"):
        table.add_column(heading)
    for one in played:
        cells: list[tuple[str, str]] = []
        label = one.cure.prescription.label if one.cure.prescription is not None else f"none: {one.cure.outcome.value}"
        for said in (one.before, one.after):
            found = _ACCURACY.search(said)
            cells.append((found[1], found[2]) if found else ("?", "?"))
        train, test = (" → ".join(pair) for pair in zip(*cells, strict=True))
        table.add_row(one.case.name, label, f"[bold]{train}[/]", test)
    return table
