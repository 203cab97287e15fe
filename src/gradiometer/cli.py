"""The command line. Each command is a few lines: the work is done in the rooms below."""

from __future__ import annotations

import ast
import contextlib
import io
import shlex
from collections.abc import Callable, Generator
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Final, Never

import typer
from rich.console import Console
from rich.markup import escape

from gradiometer import __version__
from gradiometer.errors import GradiometerError
from gradiometer.record.folder import RUNS_FOLDER, create_folder, list_runs
from gradiometer.types import Severity, VerdictWord

if TYPE_CHECKING:
    from gradiometer.monitor import Announcement
    from gradiometer.report.summary import Summary
    from gradiometer.trial.race import Board

USAGE_STATUS: Final = 2
"""Exit status when gradiometer was used wrongly; the command's own status is passed on otherwise."""

LOOPBACK: Final = "127.0.0.1"

CHECK_PAGE: Final = Path("gradiometer-check.html")

app = typer.Typer(
    name="gradiometer",
    help="Find, explain, predict and cure vanishing and exploding gradients in deep networks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_AS_GIVEN = {"ignore_unknown_options": True, "allow_interspersed_args": False}


class Format(StrEnum):
    """Formats of a report."""

    TEXT = "text"
    HTML = "html"
    JSON = "json"


def main() -> Never:
    """Entry point: every error a user can cause is one sentence and what to do."""
    try:
        app(standalone_mode=True)
    except GradiometerError as error:
        _complain(error)
        raise SystemExit(USAGE_STATUS) from None
    raise SystemExit(0)


def _complain(error: GradiometerError) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]gradiometer:[/] {escape(str(error))}")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gradiometer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(context_settings=_AS_GIVEN)
def run(
    command: Annotated[
        list[str], typer.Argument(metavar="CMD", help="A training script and its arguments, or -- and any command.")
    ],
    out: Annotated[Path | None, typer.Option(help=f"Run folder; a new one under {RUNS_FOLDER} by default.")] = None,
    overhead: Annotated[
        float, typer.Option(metavar="PERCENT", help="Share of the training's time that watching may take.")
    ] = 1.0,
    every: Annotated[int | None, typer.Option(metavar="N", help="Look closely at every N-th step, whatever it costs.")] = None,
    prescription: Annotated[
        Path | None,
        typer.Option("--with", metavar="PRESCRIPTION", help="Treat the models that are trained, as the file says."),
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Record and summarise only; write no report.html.")] = False,
) -> None:
    """Watch a training without a change to its code, then say what is wrong with it.

    
    gradiometer run train.py --epochs 3
    gradiometer run --out runs/a -- torchrun --nproc-per-node 2 train.py
    gradiometer run -- python -m package.train
    gradiometer run --with prescription.json train.py

    The exit status is the command's own; the summary goes to standard error.
    """
    from gradiometer import launch
    from gradiometer.monitor import Monitor

    if not 0.0 < overhead <= 100.0:
        raise GradiometerError(f"--overhead is {overhead:g}.", "Give a percentage above 0 and at most 100, such as 1.")
    if every is not None and every < 1:
        raise GradiometerError(f"--every is {every}.", "Give a number of steps, at least 1.")
    resolved = launch.resolve(command)
    if prescription is not None:
        from gradiometer.remedies.prescription import read

        read(prescription)  # what is wrong with it is told before anything starts
    folder = create_folder(out, resolved, __version__)
    monitor = Monitor(folder, _announce)
    share = overhead / 100.0
    outcome = launch.launch(resolved, folder, overhead=share, every=every, prescription=prescription, tick=monitor.tick)
    launch.note(folder, monitor.facts())
    _after_the_run(lambda: _conclude(folder, html=not no_report))
    raise typer.Exit(outcome.status)


def _announce(announcement: Announcement) -> None:
    """One line on standard error, while the training runs."""
    from gradiometer.report.text import plain

    where = f"at step {announcement.step}" if announcement.step >= 0 else "now"
    typer.echo(f"gradiometer, {where}: {announcement.rule}. {plain(announcement.sentence)}", err=True)


def _after_the_run(conclude: Callable[[], object]) -> None:
    """Report on a run that has ended. Whatever goes wrong here, the command's exit status is kept."""
    try:
        conclude()
    except GradiometerError as error:
        _complain(error)
    except Exception as error:  # noqa: BLE001  a report that cannot be made must not change how the command ended
        reason = f"{type(error).__name__}: {error}"
        _complain(GradiometerError(f"The report could not be made ({reason}).", "The record is kept; please report this."))


def _conclude(folder: Path, *, html: bool) -> None:
    """Summarise a run on standard error and write its report."""
    from gradiometer.report.text import print_summary

    summary = _summary(folder)
    console = Console(stderr=True)
    print_summary(summary, console)
    if html:
        console.print(f"Report: {_write_html(summary, folder / 'report.html')}", soft_wrap=True, markup=False, highlight=False)


def _summary(folder: Path) -> Summary:
    from gradiometer.launch import explain_silence
    from gradiometer.record.run import load
    from gradiometer.report.summary import summarise

    loaded = load(folder)
    return summarise(loaded, explain_silence(loaded))


def _write_html(summary: Summary, path: Path) -> Path:
    from gradiometer.report import html, write

    return write(path, html.render(summary))


class FailOn(StrEnum):
    """How bad a finding must be to fail a check."""

    ERROR = "error"
    WARNING = "warning"


@app.command(context_settings=_AS_GIVEN)
def check(
    command: Annotated[
        list[str], typer.Argument(metavar="CMD", help="A training script and its arguments, or -- and any command.")
    ],
    format: Annotated[Format, typer.Option("--format", "-f", help="text, html or json.")] = Format.TEXT,  # noqa: A002
    output: Annotated[Path | None, typer.Option("-o", "--output", help=f"File to write; html goes to {CHECK_PAGE}.")] = None,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with 1 from this severity on.")] = FailOn.ERROR,
    curvature: Annotated[
        bool, typer.Option("--curvature", help="Measure the largest curvature too: which learning rates are stable?")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up when the first step has not come by then.")
    ] = None,
) -> None:
    """Predict, before training, what will vanish or explode.

    
    gradiometer check train.py --epochs 3
    gradiometer check --format json -- torchrun --nproc-per-node 2 train.py

    Your command runs until its first optimizer step would happen and is stopped there. What it changed of your files
    until then is put back. Exit status: 0 well, 1 sick, 2 could not be checked. The command's output goes to standard error.
    """
    from gradiometer.checkup import InterruptedCheck, check_up

    try:
        outcome = check_up(command, curvature=curvature, seconds=timeout)
    except InterruptedCheck as interrupted:
        raise typer.Exit(128 + interrupted.number) from None
    if outcome.preflight is None:
        raise GradiometerError(f"Could not be checked: {outcome.reason}", outcome.hint)
    from gradiometer.report import check as formats

    found, remarks = outcome.preflight, outcome.remarks
    if format is Format.JSON:
        _emit(formats.render_json(found, outcome.command, remarks), output)
    elif format is Format.HTML:
        from gradiometer.report import write

        typer.echo(write(output or CHECK_PAGE, formats.render_html(found, shlex.join(outcome.command), __version__, remarks)))
    elif output is None:
        formats.print_check(found, Console(), remarks)
    else:
        file = io.StringIO()
        formats.print_check(found, Console(file=file, width=120), remarks)
        _emit(file.getvalue(), output)
    if found.verdict is VerdictWord.UNKNOWN:
        raise typer.Exit(USAGE_STATUS)
    raise typer.Exit(int(found.fails(Severity(fail_on.value))))


@app.command(context_settings=_AS_GIVEN)
def cure(
    command: Annotated[
        list[str], typer.Argument(metavar="CMD", help="A training script and its arguments, or -- and any command.")
    ],
    steps: Annotated[int, typer.Option(metavar="N", help="Optimizer steps of a full trial.")] = 300,
    budget: Annotated[
        int | None, typer.Option(metavar="N", help="Optimizer steps of all trials together; 20 full trials by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="K", help="Seeds over which the cure must hold.")] = 3,
    jobs: Annotated[
        int | None, typer.Option(metavar="J", help="Trials at a time; as many as processors, at most 4, and 1 with a GPU.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="REMEDY", help="Use only this remedy; may be repeated.")] = None,
    without: Annotated[list[str] | None, typer.Option(metavar="REMEDY", help="Leave this remedy out; may be repeated.")] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="text, html or json.")] = Format.TEXT,  # noqa: A002
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for everything; one that was begun is gone on with.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Run the trials in this folder itself, one at a time, instead of in copies.")
    ] = False,
) -> None:
    """Find the smallest change that makes a training work, and prove it beside an untreated run.

    
    gradiometer cure train.py --epochs 3
    gradiometer cure --steps 500 --out cures/a -- python -m package.train

    Each trial is your own command in a fresh process and a scratch copy of this folder, treated before its first step and
    ended after N steps. What cures is left as a change of your code and as a prescription that `gradiometer run --with` takes.
    Exit status: 0 cured or already well, 1 no cure found, 2 could not be run.
    """
    from gradiometer.trial import command as curing
    from gradiometer.trial.prescribe import Choice
    from gradiometer.trial.race import BUDGET, Board, Plan
    from gradiometer.trial.result import Outcome

    folder = (out if out is not None else curing.new_folder()).absolute()
    plan = Plan(steps, BUDGET * steps if budget is None else budget, seeds, curing.default_jobs() if jobs is None else jobs)
    wishes = curing.Wishes(plan, Choice(tuple(only or ()), tuple(without or ())), folder, in_place)
    board = Board()
    with _shown(board, folder):
        found = curing.cure_command(command, wishes, board=board)
    from gradiometer.report import cure as formats
    from gradiometer.report import write

    page = write(folder / "cure.html", formats.render_html(found))
    if format is Format.JSON:
        typer.echo(formats.render_json(found), nl=False)
    elif format is Format.HTML:
        typer.echo(page)
    else:
        formats.print_cure(found, Console())
        typer.echo(f"Report: {page}")
    if found.outcome is Outcome.INTERRUPTED:
        raise typer.Exit(130)
    raise typer.Exit(int(found.outcome is Outcome.NO_CURE))


@contextlib.contextmanager
def _shown(board: Board, folder: Path) -> Generator[None]:
    """Show a race on standard error while it runs: a live table on a terminal, a line for every trial elsewhere."""
    from rich.live import Live

    from gradiometer.report.cure import line, live

    console = Console(stderr=True)
    if console.is_terminal:
        with Live(get_renderable=lambda: live(board, folder), console=console, refresh_per_second=4, transient=True):
            yield
        return
    board.back = lambda trial: typer.echo(f"gradiometer: {line(trial)}", err=True)
    yield


@app.command()
def report(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A run folder, or the name of a run; the newest run by default.")
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="text, html or json.")] = Format.TEXT,  # noqa: A002
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write; html goes to DIR/report.html.")] = None,
) -> None:
    """Report on a recorded run, also on one that is still going on."""
    summary = _summary(_find_run(folder))
    if format is Format.HTML:
        typer.echo(_write_html(summary, output or summary.run.folder / "report.html"))
    elif format is Format.JSON:
        from gradiometer.report import json

        _emit(json.render(summary), output)
    elif output is None:
        from gradiometer.report.text import print_summary

        print_summary(summary, Console())
    else:
        from gradiometer.report.text import print_summary

        file = io.StringIO()
        print_summary(summary, Console(file=file, width=120))
        _emit(file.getvalue(), output)


def _find_run(given: Path | None) -> Path:
    if given is None:
        known = list_runs()
        if not known:
            raise GradiometerError(f"There are no runs under {RUNS_FOLDER}.", "`gradiometer run train.py` makes one.")
        return known[-1]
    named = RUNS_FOLDER / given
    return named if not given.exists() and given.name == str(given) and named.is_dir() else given


def _emit(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
    else:
        from gradiometer.report import write

        write(output, text)


@app.command()
def runs(
    base: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder that holds run folders.")] = RUNS_FOLDER,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="Show the newest N.")] = 20,
) -> None:
    """List past runs, the newest last."""
    from gradiometer.report.runs import table

    found = list_runs(base)
    if not found:
        raise GradiometerError(f"There are no runs under {base}.", "`gradiometer run train.py` makes one.")
    Console().print(table(base, found[-limit:]))


@app.command()
def lab(
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the lab as pages that need no server, and end.")
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", help="Port to listen on; any free one by default.")] = 0,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; this machine only by default.")
    ] = LOOPBACK,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the link; open no browser.")] = False,
) -> None:
    """Open the lab: vanishing and exploding gradients to play with, in a browser on this machine."""
    if export is not None:
        from gradiometer.app.export import export as write_lab

        typer.echo(write_lab(export, tell=lambda line: typer.echo(line, err=True)))
        return
    _server().serve("/", address=host, port=port, browser=not no_browser)


def _server() -> ModuleType:
    """The web server, which is an extra."""
    try:
        from gradiometer.app import server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise GradiometerError(
            f"This needs a web server, and {error.name} is not installed.", "`pip install 'gradiometer[app]'` installs it."
        ) from None
    return server


@app.command()
def explain(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A rule or a remedy; without one they are listed.")
    ] = None,
) -> None:
    """Explain a rule (what it finds, how we tell, when it is wrong) or a remedy (what it does, when it helps, when not)."""
    from gradiometer.preflight import PAGES
    from gradiometer.remedies import NAMES
    from gradiometer.rules import RULES, rule_named

    pages = {known.name: known.doc for known in RULES} | PAGES
    remedies = {known: _remedy_page(known) for known in NAMES}
    if name is not None:
        typer.echo((pages.get(name) or remedies.get(name) or rule_named(name).doc).strip())
        return
    width = max(map(len, (*pages, *remedies)))
    for heading, listed in (("Rules", pages), ("Remedies", remedies)):
        typer.echo(f"{heading}:")
        for known, text in listed.items():
            typer.echo(f"  {known:{width}}  {text.strip().splitlines()[0].split(': ', 1)[-1]}")


def _remedy_page(name: str) -> str:
    """The text of a remedy, read from its file: importing it would import torch."""
    source = files("gradiometer.remedies").joinpath(f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="New folder for all of it; one under .gradiometer/demo by default.")] = None,
) -> None:
    """Watch two real trainings that fail, cure both, and train again (about two minutes)."""
    from gradiometer.demo import play

    play(out, Console(stderr=True))
