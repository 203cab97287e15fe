"""A cure as text, live table, JSON and HTML. The JSON format is that of ``cure.json`` (docs/report-json.md)."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule as Line
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from gradiometer.errors import GradiometerError
from gradiometer.figures import cure as figures
from gradiometer.figures.heatmap import heatmap
from gradiometer.figures.scale import number
from gradiometer.figures.tables import gradient_table
from gradiometer.record.reading import last_step
from gradiometer.record.run import load
from gradiometer.record.trace import Trace
from gradiometer.report.html import card, page, panel
from gradiometer.report.text import plain, show
from gradiometer.rules import diagnose
from gradiometer.trial.result import PRESCRIPTION_FILE, Arm, Cure, Outcome, Promise, Trial, Word
from gradiometer.trial.result import plain as as_plain
from gradiometer.trial.scratch import RUN_FOLDER, trial_folder
from gradiometer.types import Finding
from gradiometer.words import counted

if TYPE_CHECKING:
    from gradiometer.trial.race import Board, Row  # imports joblib

MOST_ARMS: Final = 12
MOST_LEFT_OUT: Final = 8
_WORDS: Final = {
    Outcome.CURED: ("bold white on green4", "CURED"),
    Outcome.WELL: ("bold white on green4", "ALREADY WELL"),
    Outcome.NO_CURE: ("bold white on red3", "NO CURE"),
    Outcome.INTERRUPTED: ("bold black on yellow3", "INTERRUPTED"),
}
_TONES: Final = {Outcome.CURED: "well", Outcome.WELL: "well", Outcome.NO_CURE: "sick", Outcome.INTERRUPTED: "unknown"}
_TITLES: Final = {
    Outcome.CURED: "Cured",
    Outcome.WELL: "Already well",
    Outcome.NO_CURE: "No cure",
    Outcome.INTERRUPTED: "Interrupted",
}
_STYLES: Final = {
    Word.CURED: "bold green",
    Word.PROMISING: "green",
    Word.HELPS: "yellow",
    Word.BEHIND: "dim",
    Word.NO_HELP: "dim",
    Word.HARMFUL: "red",
    Word.FAILED: "red",
}


# ---- text --------------------------------------------------------------------------------------------------------------


def print_cure(cure: Cure, console: Console) -> None:
    """Print a cure to a console."""
    show(console, renderable(cure))


def renderable(cure: Cure) -> RenderableType:
    """The cure as something rich can print."""
    style, word = _WORDS[cure.outcome]
    parts: list[RenderableType] = [
        Line("gradiometer cure", style="dim"),
        Text.assemble((f" {word} ", style), " ", (plain(cure.sentence), "bold")),
    ]
    for mark in [m for t in cure.control[:1] for m in t.findings if not m.because and m.severity.value == "error"]:
        parts.append(Text.assemble(("Untreated: ", "dim"), f"{mark.rule}. ", plain(mark.sentence)))
    if cure.arms:
        parts += [Text(), _table(cure)]
    if cure.cure is not None:
        parts += [Text(), *_edit(cure)]
    if cure.not_tried:
        parts += [Text(), *_left_out(cure)]
    parts += [Text(), Text(plain(" ".join(basis(cure))), style="dim")]
    parts += [Text(plain(note), style="yellow") for note in cure.notes]
    return Group(*parts)


def _table(cure: Cure) -> RenderableType:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("treatment", overflow="fold", min_width=28)
    table.add_column("trials", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("ratio (95 %)", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=18)
    if cure.control:
        control = cure.control[0]
        ill = ", ".join(control.roots)
        end = next((a.verdict.control_end for a in cure.arms if math.isfinite(a.verdict.control_end)), math.nan)
        trials = f"{len(cure.control)} x {control.taken}"
        table.add_row("untreated", trials, number(end), "", "", Text(f"ill: {ill}" if ill else "", "red"))
    for arm in cure.arms[:MOST_ARMS]:
        table.add_row(*_row(arm))
    if len(cure.arms) > MOST_ARMS:
        table.add_row(f"and {len(cure.arms) - MOST_ARMS} more", *[""] * 5)
    return table


def _row(arm: Arm) -> tuple[str | Text, ...]:
    verdict = arm.verdict
    said = Text(verdict.word.value, _STYLES[verdict.word])
    if verdict.word is Word.FAILED:
        said.append(f": {plain(verdict.sentence)}", "dim")
        return plain(arm.label), "", "", "", "", said
    why = ", ".join(verdict.harmed if verdict.word is Word.HARMFUL and verdict.harmed else (*verdict.left, *verdict.new))
    if why:
        said.append(f": {plain(why)}", "dim")
    trials = f"{verdict.seeds} x {verdict.steps}"
    cost = f"×{verdict.cost:.2f}" if math.isfinite(verdict.cost) else ""
    return plain(arm.label), trials, number(verdict.loss_end), figures.ratio(arm), cost, said


def _edit(cure: Cure) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if cure.edit.diff:
        parts += [
            Text("The change in your code:", "bold"),
            Syntax(plain_lines(cure.edit.diff), "diff", background_color="default", word_wrap=True),
        ]
    for note in cure.edit.notes:
        parts.append(Padding(Text(plain_lines(note)), (0, 0, 0, 2)))
    if cure.folder and cure.command:
        parts.append(Text(f"Without a change: {plain(run_with(cure))}"))
    return parts


def plain_lines(text: str) -> str:
    """Several lines, safe for a terminal."""
    return "\n".join(plain(line.replace("\t", "    ")) for line in text.splitlines())


def run_with(cure: Cure) -> str:
    """The command line that trains with the prescription."""
    path = Path(cure.folder) / PRESCRIPTION_FILE
    shown = path.relative_to(cure.cwd) if path.is_relative_to(cure.cwd) else path
    return f"gradiometer run --with {shlex.quote(str(shown))} -- {shlex.join(cure.command)}"


def _left_out(cure: Cure) -> list[RenderableType]:
    parts: list[RenderableType] = [Text("Not tried:", "dim")]
    by_reason: dict[str, list[str]] = {}
    for one in cure.not_tried:
        by_reason.setdefault(one.reason, []).append(one.label)
    for reason, labels in list(by_reason.items())[:MOST_LEFT_OUT]:
        parts.append(Padding(Text.assemble(plain(", ".join(labels)), (f"  {plain(reason)}", "dim")), (0, 0, 0, 2)))
    more = sum(len(labels) for labels in list(by_reason.values())[MOST_LEFT_OUT:])
    if more:
        parts.append(Padding(Text(f"and {more} more", "dim"), (0, 0, 0, 2)))
    return parts


def basis(cure: Cure) -> list[str]:
    """What it rests on, in sentences."""
    trials = len(cure.control) + sum(len(arm.trials) for arm in cure.arms)
    lines = [
        f"{counted(trials, 'trial')} took {cure.spent:,} steps, {cure.spent / max(cure.steps, 1):.1f} times an untreated "
        f"trial of {cure.steps:,}; {cure.budget:,} were allowed."
    ]
    if cure.folder:
        lines.append(f"Everything is in {cure.folder}.")
    return lines


# ---- live --------------------------------------------------------------------------------------------------------------


def live(board: Board, folder: Path) -> RenderableType:
    """The race as it stands, for rich's Live.

    Args:
        board: kept up to date by the race.
        folder: of the cure, where running trials write.
    """
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("treatment", overflow="ellipsis", no_wrap=True, max_width=44)
    for heading in ("theory", "steps", "loss", "state"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("steps", "loss") else "left")
    if board.control is not None:
        curve = [loss for loss in board.control.curve if math.isfinite(loss)]
        ill = ", ".join(board.control.roots)
        table.add_row("untreated", "", str(board.control.taken), number(curve[-1]) if curve else "", Text(ill, "red"))
    running = {order.name.rpartition(".s")[0].rpartition(".")[0]: order for order in dict(board.running).values()}
    for name, row in dict(board.rows).items():
        order = running.get(name)
        if order is None and row.state == "waits":
            continue
        table.add_row(*_live_row(row))
    bars = [table]
    progress: list[RenderableType] = []
    for order in dict(board.running).values():
        run = trial_folder(folder, order.name) / RUN_FOLDER
        step = _step(run)
        label = order.prescription.label if order.prescription is not None else "untreated"
        seed = f", seed {order.seed}" if order.seed else ""
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=46, no_wrap=True, overflow="ellipsis")
        grid.add_column()
        grid.add_column(justify="right")
        bar = ProgressBar(order.steps, min(step, order.steps), width=24)
        grid.add_row(Text(plain(label + seed), "dim"), bar, Text(f"{min(step, order.steps)}/{order.steps}", "dim"))
        progress.append(grid)
    head = Text.assemble(
        ("curing", "bold"), f": {plain(board.phase)}", (f"  {board.spent:,} of {board.budget:,} steps spent", "dim")
    )
    return Group(head, *bars, *progress)


def line(trial: Trial) -> str:
    """A finished trial in one line, where there is no terminal to draw on."""
    label = trial.prescription.label if trial.prescription is not None else "untreated"
    seed = f", seed {trial.seed}" if trial.seed else ""
    if not trial.ran:
        return plain(f"{label}, {trial.steps} steps{seed}: {trial.ending.value}. {trial.trouble}")
    known = [loss for loss in trial.curve if math.isfinite(loss)]
    loss = number(known[-1]) if known and math.isfinite(trial.curve[-1]) else "no number"
    ill = f"ill: {', '.join(trial.roots)}" if trial.roots else "nothing ill"
    return plain(f"{label}, {trial.taken} steps{seed}: loss {loss}, {ill}.")


def _step(run: Path) -> int:
    try:
        return last_step(run) + 1
    except (OSError, ValueError, GradiometerError):  # not there yet, or just being written
        return 0


def _live_row(row: Row) -> tuple[str | Text, ...]:
    promise = row.candidate.prediction.promise
    state = Text(row.state, "dim")
    if row.verdict is not None:
        state = Text(row.verdict.word.value, _STYLES[row.verdict.word])
    loss = number(row.loss) if math.isfinite(row.loss) else ""
    return (
        plain(row.candidate.prescription.label),
        "" if promise is Promise.UNKNOWN else promise.value,
        str(row.steps) if row.steps else "",
        loss,
        state,
    )


# ---- JSON --------------------------------------------------------------------------------------------------------------


def render_json(cure: Cure) -> str:
    """The cure as a JSON text (strict JSON: what is unknown is null, never NaN)."""
    best = cure.cure
    data: dict[str, Any] = {
        **as_plain(cure),
        "prescription": as_plain(best.candidate.prescription) if best is not None else None,
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


# ---- HTML --------------------------------------------------------------------------------------------------------------


def render_html(cure: Cure) -> str:
    """The cure as one self-contained HTML page; reads the records in its folder."""
    before, findings = _control(cure)
    arm = shown_arm(cure)
    cured = cure.outcome is Outcome.CURED
    panels: list[Any] = []
    if arm is not None:
        after = _trace(cure, arm)
        word = "treated" if cured else "treated, which does not cure it"
        if before is not None:
            panels.append(panel("before", "Untreated", _HEATMAP, heatmap(before, findings), lambda: gradient_table(before)))
        if after is not None:
            found = diagnose(after)
            panels.append(panel("after", word.capitalize(), _HEATMAP, heatmap(after, found), lambda: gradient_table(after)))
        if before is not None and after is not None:
            drawing = figures.dumbbell(before, after, findings, cured=cured)
            table = figures.dumbbell_table(before, after, findings)
            panels.append(panel("dumbbell", "Gradient of each layer", _DUMBBELL, drawing, lambda: table))
        beside = next((p.height - figures.TOP - figures.BOTTOM for p in panels if p.name == "dumbbell"), figures.HEIGHT)
        drawing = figures.losses(cure.control, arm, cure.steps, cured=cured, height=beside)
        panels.append(panel("losses", "Loss", _LOSSES, drawing, lambda: figures.race_table(cure.arms)))
    command = shlex.join(cure.command) or "a training in a notebook"
    return page(
        "cure.html.j2",
        {p.name: p.figure for p in panels if not p.empty},
        name=command,
        sentence=cure.sentence,
        word=_TONES[cure.outcome],
        version=cure.version,
        verdict=_TITLES[cure.outcome],
        findings=[card(i, f, cure.sentence) for i, f in enumerate(findings, 1)],
        facts=_facts(cure),
        steps_to_take=[],
        command=command,
        cure=cure,
        label=arm.label if arm is not None else "",
        panels={p.name: p for p in panels},
        race=figures.race_table(cure.arms) if cure.arms else None,
        diff=cure.edit.diff.splitlines(),
        edit_notes=cure.edit.notes,
        run_with=run_with(cure) if cured and cure.command and cure.folder else "",
        changes=[change for trial in (arm.trials[-1:] if arm is not None else ()) for g in trial.given for change in g.changes],
        basis=[*basis(cure), *cure.notes],
        again=f"gradiometer cure -- {command}" if cure.command else "",
    )


_HEATMAP: Final = (
    "Purple layers get less gradient than the median layer of the same step, orange ones more; both maps have one scale."
)
_LOSSES: Final = "Lines are medians over the seeds; the band behind each reaches from the lowest to the highest of them."
_DUMBBELL: Final = "The longer the way from the open to the filled point, the more the treatment changes that layer."


def shown_arm(cure: Cure) -> Arm | None:
    """What is drawn beside the control: the cure, else what came closest; None where nothing ran."""
    if cure.cure is not None:
        return cure.cure
    return next((arm for arm in cure.arms if any(t.ran for t in arm.trials)), None)


def _control(cure: Cure) -> tuple[Trace | None, tuple[Finding, ...]]:
    trace = _load(cure, cure.control[0].name) if cure.control else None
    return trace, tuple(diagnose(trace)) if trace is not None else ()


def _trace(cure: Cure, arm: Arm) -> Trace | None:
    trials = figures.full(arm, cure.steps)
    first = next((t for t in trials if t.seed == 0), None)
    return _load(cure, first.name) if first is not None else None


def _load(cure: Cure, name: str) -> Trace | None:
    if not cure.folder:
        return None
    try:
        trace = load(trial_folder(Path(cure.folder), name) / RUN_FOLDER).trace
    except GradiometerError:  # the folder was tidied up
        return None
    return trace if trace.steps.size else None


def _facts(cure: Cure) -> list[tuple[str, str, str]]:
    facts = [("Trials", str(len(cure.control) + sum(len(a.trials) for a in cure.arms)), f"of {len(cure.arms)} treatments")]
    facts.append(("Steps", f"{cure.spent:,}", f"{cure.spent / max(cure.steps, 1):.1f} untreated trials"))
    arm = cure.cure
    if arm is not None:
        verdict = arm.verdict
        facts.append(("Loss", f"{number(verdict.control_end)} → {number(verdict.loss_end)}", figures.ratio(arm)))
        facts.append(("Seeds", str(verdict.seeds), "each beside an untreated run"))
        if math.isfinite(verdict.cost):
            facts.append(("Time per step", f"×{verdict.cost:.2f}", "of the untreated"))
    return facts
