"""The report as one self-contained HTML page: opens from disk, offline, asks nothing of anyone.

The page's only scripts are plotly.js (out of the installed package), and ``drawing.js`` and ``report.js`` beside this file. Its
content security policy names them by their hash, so that nothing else can run, whatever a layer is called.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from gradiometer.figures import FIGURES, FigureKind
from gradiometer.figures.scale import number, template
from gradiometer.figures.tables import TABLES, Table
from gradiometer.report.summary import Summary
from gradiometer.rules import RULES
from gradiometer.types import Evidence, Finding, Severity, VerdictWord
from gradiometer.words import counted

MAX_NAMES: Final = 5
"""Names of layers listed in a card; a longer list shows the first, the last and how many."""

VERDICTS: Final = {
    VerdictWord.WELL: "Well",
    VerdictWord.SICK: "Sick",
    VerdictWord.UNKNOWN: "Unknown",
}
SEVERITIES: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}

_READING: Final = {
    "heatmap": "Purple layers get less gradient than the median layer of the same step, orange ones more. "
    "Numbered frames are the findings; the mark above the map is the step that the profiles below show.",
    "depth-profile": "A healthy network is a nearly vertical line.",
    "layer-gain": "A healthy layer stays near ×1.",
    "loss": "",
    "activations": "A dead or saturated unit passes no gradient.",
}

_PAIRED: Final = ("depth-profile", "layer-gain")


@dataclass(frozen=True, slots=True)
class Panel:
    """A figure as the page shows it: sentences in the page's type, the drawing as JSON, the numbers as a table."""

    name: str
    kind: str
    title: str
    alt: str
    note: str
    reading: str
    empty: bool
    height: int
    figure: dict[str, Any]
    table: Table | None


def render(summary: Summary) -> str:
    """The report as the text of an HTML page.

    Args:
        summary: what to say.

    Returns:
        One file without any reference to another; about 5 MB, of which plotly.js is 4.8 (7 MB at most: see
        `figures.cells.MAX_CELLS`).
    """
    panels = [_panel(kind, summary) for kind in FIGURES if _applies(kind, summary)]
    drawn = {p.name: p.figure for p in panels if not p.empty}
    return page(
        "run.html.j2",
        drawn,
        summary=summary,
        name=summary.run.name,
        sentence=summary.sentence,
        word=summary.diagnosis.verdict.value,
        version=summary.run.info.get("gradiometer", ""),
        panels={p.name: p for p in panels},
        order=[p.name for p in panels],
        paired=_PAIRED,
        verdict=VERDICTS[summary.diagnosis.verdict],
        findings=[card(i, f, summary.sentence) for i, f in enumerate(summary.diagnosis.findings, 1)],
        facts=_facts(summary),
        environment=_environment_facts(summary),
        steps_to_take=_what_to_do(summary),
        again=_again(summary),
    )


# ---- figures -----------------------------------------------------------------------------------------------------------


def _applies(kind: FigureKind, summary: Summary) -> bool:
    """Whether the run has what a figure is about; without any look only the loss is worth a figure."""
    if kind.name == "loss":
        return bool(summary.trace.ledger.step.size)
    return bool(summary.trace.steps.size)


def _panel(kind: FigureKind, summary: Summary) -> Panel:
    step = summary.step if summary.step >= 0 else None
    drawing = kind.draw(summary.trace, summary.diagnosis.findings, step)
    return panel(kind.name, kind.title, _READING[kind.name], drawing, lambda: TABLES[kind.name](summary.trace, step))


def panel(name: str, kind: str, reading: str, drawing: go.Figure, table: Callable[[], Table]) -> Panel:
    """A figure as the page shows it.

    Args:
        name: for links and file names.
        kind: what it is about, in a few words.
        reading: one sentence on how to read it.
        drawing: the figure, with its words in ``layout.meta`` (see `figures.scale.finish`).
        table: makes the data behind it, where there is something to draw.
    """
    figure: dict[str, Any] = json.loads(str(drawing.to_json()))
    layout = figure["layout"]
    words = layout.pop("meta")
    # The page sets the title in its own type, where it wraps, and brings the template for its theme.
    layout.pop("template", None)
    layout.pop("title", None)
    layout["height"] -= words["title_height"]
    layout["margin"]["t"] = layout["margin"].get("t", 0) - words["title_height"]
    return Panel(
        name=name,
        kind=kind,
        title=words["title"],
        alt=words["alt"],
        note=words["note"],
        reading=reading,
        empty=words["empty"],
        height=layout["height"],
        figure=figure,
        table=None if words["empty"] else table(),
    )


def _json_of(figure_template: Any) -> Any:
    return json.loads(json.dumps(figure_template.to_plotly_json()))


# ---- words -------------------------------------------------------------------------------------------------------------


def card(index: int, finding: Finding, sentence: str) -> dict[str, Any]:
    """A finding as the page shows it; ``sentence`` is that of the verdict, which is not said twice."""
    first, last = finding.steps
    return {
        "number": index,
        "rule": finding.rule,
        "name": _name(finding.rule),
        "severity": SEVERITIES[finding.severity],
        "confidence": f"{100 * finding.confidence:.0f} %",
        "sentence": finding.sentence,
        "said": finding.sentence == sentence,
        "because": _name(finding.because) if finding.because else "",
        "starts": finding.starts,
        "shows": _names(finding.shows or finding.sites),
        "when": f"step {first:,}" if first == last else f"steps {first:,} to {last:,}",
        "evidence": [_evidence(e) for e in finding.evidence],
        "helps": finding.helps,
    }


def _name(rule: str) -> str:
    """What people call a rule: the first words of its page."""
    docs = {known.name: known.doc for known in RULES}
    return docs[rule].split(":", 1)[0].strip() if rule in docs else rule.replace("-", " ").capitalize()


def _evidence(evidence: Evidence) -> dict[str, str]:
    return {
        "claim": evidence.claim,
        "value": number(evidence.value),
        "threshold": "none" if math.isnan(evidence.threshold) else number(evidence.threshold),
        "source": evidence.source,
        "refute": evidence.refute,
    }


def _names(names: tuple[str, ...]) -> dict[str, Any]:
    if len(names) <= MAX_NAMES:
        return {"first": list(names), "last": "", "count": len(names)}
    return {"first": list(names[: MAX_NAMES - 2]), "last": names[-1], "count": len(names)}


def _facts(summary: Summary) -> list[tuple[str, str, str]]:
    """The few numbers at the top: name, number, remark."""
    loss, cost = summary.loss, summary.cost
    facts = [
        ("Steps seen", f"{cost.steps:,}", f"{counted(cost.looks, 'look')} at every layer" if cost.looks else "no close look")
    ]
    if math.isfinite(loss.start):
        remark = "fell clearly" if loss.learned else "chance level" if loss.at_chance else "did not fall clearly"
        facts.append(("Loss", f"{number(loss.start)} → {number(loss.end)}", remark))
    if summary.profile:
        weighted, chains = sum(row.has_weights for row in summary.profile), len(summary.trace.chains)
        remark = f"{counted(len(summary.profile), 'output')} watched" + (f", {chains} networks" if chains > 1 else "")
        facts.append(("Network", counted(weighted or len(summary.profile), "layer"), remark))
    if loss.clipped or loss.skipped:
        facts.append(("Clipped", counted(loss.clipped, "step"), f"{loss.skipped:,} skipped"))
    if math.isfinite(cost.overhead_percent):
        facts.append(
            ("Cost of watching", f"{cost.overhead_percent:.1f} %", f"{_seconds(cost.own_seconds)} of {_seconds(cost.seconds)}")
        )
    return facts


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else f"{value:,.0f} s"


def _environment_facts(summary: Summary) -> list[tuple[str, str]]:
    """Where it ran and what it cost, as names and values."""
    cost, run = summary.cost, summary.run
    facts = [(key.replace("_", " "), str(value)) for key, value in summary.environment.items()]
    facts += [(key, str(run.info[key])) for key in ("started", "cwd", "status") if run.info.get(key) is not None]
    facts.append(("ranks", str(summary.trace.ranks)))
    facts.append(("record", f"{run.folder}, {cost.bytes / 1e6:.2f} MB"))
    if math.isfinite(cost.own_seconds):
        facts.append(
            ("watching", f"{_seconds(cost.own_seconds)} in {counted(cost.looks, 'look')}, {cost.overhead_percent:.2f} %")
        )
    return facts


def _again(summary: Summary) -> str:
    """The command line that makes this run again; empty when it was watched from inside a script."""
    command = summary.run.info.get("command", [])
    if not command or str(command[0]).startswith("gradiometer.watch"):
        return ""
    return f"gradiometer run -- {summary.command}"


def _what_to_do(summary: Summary) -> list[str]:
    """What helps when there is nothing to show."""
    if summary.trace.steps.size:
        return []
    if summary.trace.steps_seen:
        return ["Look more often: `gradiometer run --every 10 train.py`.", "Let it train for more than a few steps."]
    return [
        "Check that the command trains: it must call `backward()` in PyTorch, in the process that was started.",
        "Try a run that surely trains: `gradiometer demo`.",
        "Attach by hand inside the script: `with gradiometer.watch(model, optimizer):`.",
    ]


# ---- the page ----------------------------------------------------------------------------------------------------------


def page(template_name: str, figures: Mapping[str, Any], **context: Any) -> str:
    """A page with its scripts, its policy and its drawings in it.

    Args:
        template_name: a file beside this one.
        figures: drawings by name, as plotly's JSON; plotly.js is left out where there are none.
        context: what the template asks for.
    """
    scripts = {"plotly": plotly_script(), "drawing": _asset("drawing.js"), "own": _asset("report.js")}
    if not figures:
        del scripts["plotly"]
    data = {"figures": figures, "templates": {theme: _json_of(template(theme)) for theme in ("light", "dark")}}
    return (
        _environment()
        .get_template(template_name)
        .render(
            **context,
            scripts={name: Markup(text) for name, text in scripts.items()},
            policy=_policy([_hash(text) for text in scripts.values()]),
            css=Markup(_asset("report.css")),
            data=Markup(json_for_script(data)),
        )
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_asset),
    )
    environment.filters["ticks"] = with_code
    return environment


def with_code(text: str) -> Markup:
    """Escape a sentence and set what stands between backticks as code."""
    parts = re.split(r"`([^`]*)`", text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def json_for_script(value: Any) -> str:
    """JSON that is safe inside a script element: no character in it can end the element or a line of JavaScript."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def _asset(name: str) -> str:
    return (files("gradiometer.report") / name).read_text(encoding="utf-8")


@cache
def plotly_script() -> str:
    """plotly.js as the installed package has it."""
    # A browser hashes a script after it has turned every line end into \n.
    return get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")


@cache
def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _policy(hashes: list[str]) -> str:
    scripts = " ".join(f"'{h}'" for h in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
