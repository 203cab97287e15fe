"""The report in a terminal: verdict, gradient by layer, findings with their evidence, cost."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Final, TypeVar

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule as Line
from rich.table import Table
from rich.text import Text

from gradiometer.report.summary import ProfileRow, Summary
from gradiometer.types import Finding, Severity, VerdictWord
from gradiometer.words import counted

T = TypeVar("T")

MAX_BARS: Final = 26
"""Layers in the bar chart; a deeper network is thinned evenly, the first and last layer always shown."""
MAX_NAMES: Final = 4
SHORT_SECONDS: Final = 60.0
SHORT_RUN: Final = " Eight looks or 0.25 s, once, are beyond the budget: short trainings could not be seen without."

STYLES: Final = {
    VerdictWord.WELL: ("bold white on green4", "WELL"),
    VerdictWord.SICK: ("bold white on red3", "SICK"),
    VerdictWord.UNKNOWN: ("bold black on yellow3", "UNKNOWN"),
}
_MARKS: Final = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold blue"}
# the ends of the scale of the report's heatmap: purple vanishes, orange explodes
_LOW, _HIGH, _PLAIN = "#8073ac", "#e08214", "default"
_DECADES_COLOURED: Final = 1.0
_DECADES_SHOWN: Final = 6.0
"""The bars span at least this many decades: within one decade a profile is flat, and must look it."""


def print_summary(summary: Summary, console: Console) -> None:
    """Print the report to a console."""
    show(console, renderable(summary, blocks=draws_blocks(console)))


def show(console: Console, what: RenderableType) -> None:
    """Print to a console; one that cannot show a character of a name shows another instead."""
    if isinstance(console.file, io.TextIOWrapper):
        console.file.reconfigure(errors="replace")
    console.print(what)


def draws_blocks(console: Console) -> bool:
    """Whether a console can show block characters."""
    return "utf" in (console.encoding or "").lower()


def renderable(summary: Summary, *, blocks: bool = True) -> RenderableType:
    """The report as something rich can print; ``blocks`` draws bars with block characters instead of ``#``."""
    parts: list[RenderableType] = [Line("gradiometer", style="dim"), _verdict(summary)]
    bars = _bars(summary, blocks)
    if bars is not None:
        parts += [Text(), bars]
    for number, finding in enumerate(summary.diagnosis.findings, 1):
        parts += [Text(), finding_block(number, finding, said=finding.sentence == summary.sentence)]
    facts = _facts(summary)
    parts += [Text(), facts] if facts else []
    parts += [Text(f"Not measured: {plain(note)}", style="yellow") for note in summary.notes]
    return Group(*parts)


def plain(text: str) -> str:
    """Text safe for a terminal: names of layers are the user's, and may hold escape sequences."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _verdict(summary: Summary) -> Text:
    style, word = STYLES[summary.diagnosis.verdict]
    return Text.assemble((f" {word} ", style), " ", (plain(summary.sentence), "bold"))


# ---- the bar chart -----------------------------------------------------------------------------------------------------


def _bars(summary: Summary, blocks: bool) -> RenderableType | None:
    rows = _layers(summary)
    known = [r.log10_gradient for r in rows if math.isfinite(r.log10_gradient)]
    if len(rows) < 2 or not known:
        return None
    chosen = thinned(rows, MAX_BARS)
    top, bottom = max(known), min(known)
    middle = sorted(known)[len(known) // 2]
    span = max(top - bottom, _DECADES_SHOWN)
    table = Table(box=None, padding=(0, 1), show_header=True, header_style="dim")
    table.add_column("layer", no_wrap=True, max_width=34)
    table.add_column("kind", style="dim", no_wrap=True, max_width=14)
    table.add_column("log scale", no_wrap=True)
    table.add_column("|gradient|", justify="right", no_wrap=True)
    width, full = 30, "█" if blocks else "#"
    for row in reversed(chosen):
        value = row.log10_gradient
        if math.isfinite(value):
            share = 1.0 - (top - value) / span
            offset = value - middle
            colour = _PLAIN if abs(offset) < _DECADES_COLOURED else _LOW if offset < 0 else _HIGH
            bar = Text(full * (1 + round((width - 1) * share)), style=colour)
            number = f"{10**value:.1e}" if value > -300 else f"1e{value:.0f}"
        else:
            bar, number = Text("exactly zero" if value == -math.inf else "not measured", style="dim"), ""
        table.add_row(Text(plain(row.site.name)), plain(row.site.kind), bar, number)
    shown = f"; {len(chosen)} of {len(rows)} layers shown" if len(chosen) < len(rows) else ""
    title = f"Gradient by layer at step {summary.step}, from output (top) to input (bottom), {span:.0f} decades wide{shown}"
    return Group(Text(title), table)


def _layers(summary: Summary) -> list[ProfileRow]:
    """Layers with weights of the main chain; activations where a script has no modules."""
    rows = [row for row in summary.profile if row.site.chain == summary.chain]
    weighted = [row for row in rows if row.has_weights]
    return weighted if len(weighted) >= 2 else rows


def thinned(rows: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of the rows, evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


# ---- findings ----------------------------------------------------------------------------------------------------------


def finding_block(number: int, finding: Finding, *, said: bool) -> RenderableType:
    """A finding with its evidence; ``said`` leaves its sentence out, because the verdict has said it."""
    first, last = finding.steps
    when = f"step {first}" if first == last else f"steps {first} to {last}"
    head = Text.assemble(
        f"{number} ",
        (finding.severity.value, _MARKS[finding.severity]),
        f"  {finding.rule}  ",
        (f"{when}, confidence {100 * finding.confidence:.0f} %", "dim"),
        (f", follows from {finding.because}" if finding.because else "", "dim"),
    )
    body = Table.grid(padding=(0, 1))
    body.add_column(style="dim", no_wrap=True)
    body.add_column(overflow="fold")
    if not said:
        body.add_row("", plain(finding.sentence))
    if finding.starts:
        body.add_row("starts at", plain(finding.starts))
    if finding.shows:
        body.add_row("shows at", plain(_names(finding.shows)))
    for index, evidence in enumerate(finding.evidence):
        limit = f" (threshold {evidence.threshold:.3g})" if math.isfinite(evidence.threshold) else ""
        body.add_row("" if index else "evidence", f"{evidence.value:.3g}{limit}: {plain(evidence.claim)}")
    for index, help_ in enumerate(finding.helps):
        body.add_row("" if index else "what helps", f"- {help_}")
    body.add_row("more", f"gradiometer explain {finding.rule}")
    block = Group(head, Padding(body, (0, 0, 0, 2)))
    return Padding(block, (0, 0, 0, 4)) if finding.because else block


def _names(names: Sequence[str]) -> str:
    if len(names) <= MAX_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: MAX_NAMES - 1])}, … {names[-1]} ({len(names)} places)"


# ---- facts -------------------------------------------------------------------------------------------------------------


def _facts(summary: Summary) -> Text:
    loss, cost = summary.loss, summary.cost
    unknown = summary.diagnosis.verdict is VerdictWord.UNKNOWN  # then the verdict says how it ended
    words = [summary.ending] if summary.ending and not unknown else []
    words += [plain(sentence) for sentence in summary.history]
    if math.isfinite(loss.start):
        words.append(f"Loss {loss.start:.4g} to {loss.end:.4g} in {counted(cost.steps, 'step')}.")
    elif cost.steps:
        words.append(f"{counted(cost.steps, 'step')} seen.")
    if loss.clipped:
        words.append(f"{loss.clipped} clipped.")
    if loss.skipped:
        words.append(f"{loss.skipped} skipped by the gradient scaler.")
    if math.isfinite(cost.overhead_percent):
        words.append(
            f"Watching looked at {counted(cost.looks, 'step')} closely and took {cost.own_seconds:.2f} s "
            f"({cost.overhead_percent:.1f} % of {cost.seconds:.1f} s)."
            + (SHORT_RUN if cost.seconds < SHORT_SECONDS and cost.overhead_percent > 1.0 else "")
        )
    return Text(" ".join(words), style="dim")
