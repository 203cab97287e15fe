"""Figures of the strategies: one of them beside the untreated network, and the scoreboard of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.scale import DASHES, LINES, NEUTRAL, Margin, decades, escaped, finish, nothing, number
from gradiometer.figures.tables import Table, plain
from gradiometer.record.ledger import FloatArray
from gradiometer.words import counted

if TYPE_CHECKING:
    from gradiometer.lab.strategies import Arm, Board, Course

WITHOUT, WITH = LINES[1], LINES[0]
HEIGHT: Final = 300
ROW: Final = 21
"""Pixels of a strategy on the scoreboard."""
_FAINT: Final = ("rgba(213,94,0,0.18)", "rgba(0,114,178,0.18)")
_FLAT: Final = 1.0
"""Decades within which the ends of a network are said to get a gradient of one size."""
_CEILING: Final = 1e6
"""A loss is drawn no higher: what lies above has exploded, and would press all others together."""

LOOKS: Final[dict[str, tuple[str, str, str]]] = {
    "cured": ("cured", LINES[2], ""),
    "helps": ("helps", LINES[0], "/"),
    "no help": ("no help", NEUTRAL, "."),
    "harmful": ("harms", LINES[1], "x"),
    "failed": ("does not fit", NEUTRAL, ""),
}
"""Verdict -> what is written, the colour of its bar, and the pattern in it."""


# ---- gradient profile ----------------------------------------------------------------------------------------------------


def profile(board: Board, arm: Arm) -> go.Figure:
    """Gradient at each layer (or step of time) against the last, at the start and at the end, without and with a strategy.

    Args:
        board: all strategies on a patient.
        arm: the one that is shown.
    """
    sides = (("without", board.untreated, WITHOUT), ("with", arm.course, WITH))
    lines = [
        (f"{name}, {when}", y, colour, when == "start")
        for name, course, colour in sides
        for when, y in (("start", course.typical_start), ("end", course.typical_end))
    ]
    finite = np.concatenate([np.abs(y[np.isfinite(y)]) for _, y, _, _ in lines] or [np.empty(0)])
    if not finite.size:
        return nothing("No gradient could be compared", "No layer's gradient is known.")
    low = min(-1.0, *(float(y[np.isfinite(y)].min()) for _, y, _, _ in lines if np.isfinite(y).any()))
    high = max(1.0, *(float(y[np.isfinite(y)].max()) for _, y, _, _ in lines if np.isfinite(y).any()))
    floor = low - 0.12 * (high - low)
    fig = go.Figure([_line(board, name, y, colour, start, floor) for name, y, colour, start in lines])
    recurrent = board.patient.training.recurrent
    fig.add_hline(y=0.0, line={"color": NEUTRAL, "width": 1})
    fig.update_layout(
        xaxis={
            "title": {"text": "steps of time before the end" if recurrent else "layer, from the input to the head"},
            "type": "category",
            "categoryarray": _categories(board),
            "categoryorder": "array",
            "range": [-0.4, len(board.places) - 0.6],
            "ticktext": list(_spoken(board)),
            "tickvals": _categories(board),
            "fixedrange": True,
        },
        yaxis={
            "title": {"text": "gradient against the last, decades"},
            "range": [floor - 0.06 * (high - low), high + 0.1 * (high - low)],
            "fixedrange": True,
        },
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hovermode="closest",
    )
    title = _profile_title(board, arm)
    return finish(
        fig,
        title=title,
        alt=f"{title}. Line chart over {len(board.places)} places, each the median of {_seeds(board)}.",
        plot_height=HEIGHT,
        margin=Margin(62, 14, 46, 54),
        note=_profile_note(lines),
    )


def _line(board: Board, name: str, y: FloatArray, colour: str, start: bool, floor: float) -> go.Scatter:
    zero = np.isneginf(y)
    shown = np.where(zero, floor, y)
    shape = "circle" if colour == WITHOUT else "diamond"
    symbols = np.where(zero, f"{shape}-open-dot", f"{shape}-open" if start else shape)
    return go.Scatter(
        x=_categories(board) if y.size else [],
        y=shown,
        mode="lines+markers",
        line={"color": colour, "width": 1.8 if start else 2.6, "dash": DASHES[2] if start else DASHES[0]},
        marker={
            "size": 11 if start else 6,
            "symbol": symbols.tolist(),
            "color": colour,
            "line": {"width": 1.5, "color": colour},
        },
        name=name,
        hovertemplate=f"%{{x}}<br>{name}: %{{y:+.2f}} decades<extra></extra>",
    )


def _categories(board: Board) -> list[str]:
    return [f"\u200b{place}" for place in board.places]  # else plotly reads a number as a position


def _spoken(board: Board) -> list[str]:
    return [place.replace("-", "\N{MINUS SIGN}") for place in board.places]


def _profile_title(board: Board, arm: Arm) -> str:
    first = "first step of time" if board.patient.training.recurrent else "first layer"
    told = f"At the start the gradient of the {first} is {_place(board.untreated.typical_start)}"
    if not arm.course.ran:
        return f"{told}; {_lower(arm.strategy.label)} does not fit here"
    return f"{told}; with {_lower(arm.strategy.label)} it is {_place(arm.course.typical_start)}"


def _place(typical: FloatArray) -> str:
    """Where the gradient of the first place is against that of the last, in words."""
    y = float(typical[0]) if typical.size else math.nan
    if math.isnan(y):
        return "unknown"
    if y == -math.inf:
        return "exactly zero"
    side = "within" if abs(y) < _FLAT else ""
    return f"{side} {decades(y)} {'of' if side else 'below' if y < 0 else 'above'} the last one's".strip()


def _profile_note(lines: list[tuple[str, FloatArray, str, bool]]) -> str:
    missing = [name for name, y, _, _ in lines if y.size and np.isnan(y).all()]
    words = ["Medians over the seeds."]
    if any(np.isneginf(y).any() for _, y, _, _ in lines):
        words.append("An exact zero is a ring at the lower edge.")
    if missing:
        words.append(f"Not drawn, because it is no number: {'; '.join(missing)}.")
    return " ".join(words)


def profile_table(board: Board, arm: Arm) -> Table:
    """The numbers of `profile`."""
    columns = [y for c in (board.untreated, arm.course) for y in (c.typical_start, c.typical_end)]
    lines = tuple(
        (place, *(plain(float(y[k])) if y.size else "not trained" for y in columns)) for k, place in enumerate(board.places)
    )
    what = "step of time" if board.patient.training.recurrent else "layer"
    return Table(
        "log10 of the gradient against that at the last place, medians over the seeds",
        (what, "without, start", "without, end", "with, start", "with, end"),
        lines,
    )


# ---- loss --------------------------------------------------------------------------------------------------------------


def losses(board: Board, arm: Arm) -> go.Figure:
    """Loss of every step without and with a strategy: median over the seeds, and the band from the lowest to the highest.

    Args:
        board: all strategies on a patient.
        arm: the one that is shown.
    """
    title = loss_title(board, arm)
    return beside(board.untreated.loss, arm.course.loss, board.settings.steps, title)


def beside(
    without: FloatArray, treated: FloatArray, steps: int, title: str, names: tuple[str, str] = ("without", "with")
) -> go.Figure:
    """Losses of untreated and treated trainings: medians over the seeds, and bands from the lowest to the highest.

    Args:
        without: losses, (seeds, steps); NaN where it was no number.
        treated: the same, or empty where nothing was trained.
        steps: of a training.
        title: what they come to.
        names: of the two.
    """
    sides = ((names[0], without, WITHOUT, 1), (names[1], treated, WITH, 0))
    fig = go.Figure()
    for k, (name, loss, colour, dash) in enumerate(sides):
        fig.add_traces(_course(name, loss, colour, DASHES[dash], _FAINT[k]))
    both = np.concatenate([np.clip(loss[np.isfinite(loss)], 0.0, _CEILING) for _, loss, _, _ in sides])
    logarithmic = bool(both.size and both.min() > 0.0 and both.max() > 10.0 * both.min())
    scale = _logarithmic(float(both.min()), float(both.max())) if logarithmic else {"rangemode": "tozero"}
    fig.update_layout(
        xaxis={"title": {"text": "training step"}, "range": [-1, steps], "fixedrange": True},
        yaxis={"title": {"text": "loss, cross-entropy in nats"}, "fixedrange": True, **scale},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hovermode="closest",
    )
    return finish(
        fig,
        title=title,
        alt=f"{title}. Line chart over {counted(steps, 'step')} and {counted(without.shape[0], 'seed')}.",
        plot_height=HEIGHT,
        margin=Margin(62, 14, 46, 54),
        note=_loss_note((without, treated), logarithmic),
    )


def _course(name: str, loss: FloatArray, colour: str, dash: str, faint: str) -> list[go.Scatter]:
    """The band and the line of one side."""
    known, low, middle, high = _band(loss)
    x = np.flatnonzero(known)
    band = go.Scatter(
        x=[*x, *x[::-1]],
        y=[*low[known], *high[known][::-1]],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faint,
        hoverinfo="skip",
        showlegend=False,
        name=f"{name}, lowest to highest",
    )
    line = go.Scatter(
        x=x,
        y=middle[known],
        mode="lines+markers",
        line={"color": colour, "width": 2.4, "dash": dash},
        marker={"symbol": "x", "size": _crosses(known), "color": colour},
        name=name,
        hovertemplate=f"step %{{x}}<br>{name} %{{y:.4g}}<extra></extra>",
    )
    return [band, line]


def _band(loss: FloatArray) -> tuple[Any, FloatArray, FloatArray, FloatArray]:
    if not loss.size:
        return np.zeros(0, np.bool_), np.empty(0), np.empty(0), np.empty(0)
    known = np.isfinite(loss).all(axis=0)
    some = np.where(known, loss, 0.0)
    low, middle, high = (np.minimum(f(some, axis=0), _CEILING) for f in (np.min, np.median, np.max))
    return known, low, middle, high


def _crosses(known: Any) -> list[int]:
    """Sizes of markers: a cross where a line ends before the training does, nothing elsewhere."""
    sizes = [0] * int(np.count_nonzero(known))
    if sizes and not known[-1]:
        sizes[-1] = 10
    return sizes


def _logarithmic(low: float, high: float) -> dict[str, Any]:
    if high < 100.0 * low:
        ticks = [m * 10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)]
        return {"type": "log", "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1, max(1, -(-(last - first) // 6)))
    return {
        "type": "log",
        "tickvals": [10.0**k for k in powers],
        "ticktext": [f"{10.0**k:g}" if -3 <= k <= 3 else f"10<sup>{k}</sup>" for k in powers],
    }


def loss_title(board: Board, arm: Arm) -> str:
    """What the losses come to, in a sentence."""
    without = _ending(board.untreated, arm.verdict.control_end)
    if not arm.course.ran:
        return f"{arm.strategy.label} does not fit here; without it {_ending(board.untreated, math.nan)}"
    return f"With {_lower(arm.strategy.label)} {_ending(arm.course, arm.verdict.loss_end)}; without, {without}"


def _ending(course: Course, level: float) -> str:
    """How a course ends; ``level`` is what the verdict makes of it, where there is one."""
    last = course.loss[:, -1] if course.loss.size else np.empty(0)
    lost = int(np.count_nonzero(~np.isfinite(last)))
    if lost:
        return f"the loss is no number any more{'' if lost == last.size else f' in {lost} of {last.size} seeds'}"
    if not math.isfinite(level):
        level = float(np.median(course.loss[:, -max(1, course.loss.shape[1] // 5) :]))
    return f"the loss ends at {number(float(f'{level:.3g}'))}"


def _loss_note(sides: Sequence[FloatArray], logarithmic: bool) -> str:
    trained = [loss for loss in sides if loss.size]
    words = ["Line: median over the seeds. Band: lowest to highest."] if any(loss.shape[0] > 1 for loss in trained) else []
    if any(not np.isfinite(loss).all() for loss in trained):
        words.append("A line ends with a cross where the loss of a seed is no number any more.")
    if any(np.nanmax(loss[np.isfinite(loss)], initial=0.0) > _CEILING for loss in trained):
        words.append("Losses above 10⁶ are drawn there.")
    return " ".join([*words, *(["The loss axis is logarithmic."] if logarithmic else [])])


def loss_table(board: Board, arm: Arm) -> Table:
    """The numbers of `losses`."""
    return beside_table(board.untreated.loss, arm.course.loss, board.settings.steps)


def beside_table(without: FloatArray, treated: FloatArray, steps: int, names: tuple[str, str] = ("without", "with")) -> Table:
    """The numbers of `beside`."""
    shown = np.unique(np.linspace(0, steps - 1, 25).round().astype(int))
    lines = tuple((str(step), *(_at(loss, step) for loss in (without, treated))) for step in shown.tolist())
    return Table(f"median loss over the seeds at {shown.size} steps", ("step", *names), lines)


def _at(loss: FloatArray, step: int) -> str:
    if not loss.size:
        return "not trained"
    values = loss[:, step]
    return f"{float(np.median(values)):.4g}" if np.isfinite(values).all() else "not a number"


# ---- scoreboard --------------------------------------------------------------------------------------------------------


def scoreboard(board: Board, chosen: str = "") -> go.Figure:
    """Every strategy, the best first: how much of the training images it gets right, and the verdict.

    Args:
        board: all strategies on a patient.
        chosen: name of the one that is marked.
    """
    arms = board.ranked
    names = [_row_name(arm, chosen) for arm in arms]
    fig = go.Figure()
    for word, (label, colour, pattern) in LOOKS.items():
        mine = [(n, arm) for n, arm in zip(names, arms, strict=True) if arm.verdict.word.value == word]
        fig.add_trace(
            go.Bar(
                x=[np.nan_to_num(arm.course.right) for _, arm in mine],
                y=[n for n, _ in mine],
                orientation="h",
                marker={
                    "color": colour,
                    "pattern": {"shape": pattern, "size": 5, "solidity": 0.5},
                    "line": {"color": colour, "width": 1},
                },
                customdata=[label] * len(mine),
                name=label,
                hovertemplate="<b>%{y}</b><br>%{x:.0%} right, %{customdata}<extra></extra>",
                showlegend=False,
            )
        )
    for name, arm in zip(names, arms, strict=True):
        fig.add_annotation(
            x=1, xref="paper", y=name, xanchor="left", xshift=6, text=_score(arm), showarrow=False, font={"size": 11}
        )
    base = board.untreated.right
    fig.add_vline(x=base, line={"color": NEUTRAL, "width": 1.5, "dash": "dash"})
    fig.add_annotation(
        x=base,
        y=1,
        yref="paper",
        yanchor="bottom",
        xanchor="left",
        text=f"untreated {base:.0%}",
        showarrow=False,
        font={"size": 11},
    )
    fig.update_layout(
        xaxis={
            "title": {"text": "training images right at the end"},
            "range": [0, 1],
            "tickformat": ".0%",
            "tickvals": [0, 0.5, 1],
            "fixedrange": True,
        },
        yaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": names,
            "range": [len(arms) - 0.4, -0.6],
            "fixedrange": True,
            "tickfont": {"size": 11},
            "showgrid": False,
        },
        bargap=0.3,
        barmode="overlay",
        hovermode="closest",
    )
    title = scoreboard_title(board)
    return finish(
        fig,
        title=title,
        alt=f"{title}. Bar chart of {counted(len(arms), 'strategy')}, the best first.".replace("strategys", "strategies"),
        plot_height=ROW * len(arms),
        margin=Margin(172, 108, 20, 50),
        note="A guess is right in 10 % of cases. Cured: nothing that stops a training is found any more, and the loss is "
        "better beyond the noise of the seeds. Helps: the loss is better, but something ill is left or has come instead.",
    )


def scoreboard_title(board: Board) -> str:
    """How many strategies cure, in a sentence."""
    words = [arm.verdict.word.value for arm in board.arms]
    parts = (("helps", "helps", "help"), ("no help", "does not help", "do not help"), ("harmful", "harms", "harm"))
    rest = [f"{words.count(word)} {one if words.count(word) == 1 else many}" for word, one, many in parts if word in words]
    cured, fit = words.count("cured"), len(words) - words.count("failed")
    told = f"{cured or 'None'} of the {fit} strategies that fit {'cures' if cured < 2 else 'cure'} this network"
    return "; ".join([told, *([", ".join(rest)] if rest else [])])


def _row_name(arm: Arm, chosen: str) -> str:
    label = escaped(arm.strategy.label)
    return f"<b>▸ {label}</b>" if arm.strategy.name == chosen else label


def _score(arm: Arm) -> str:
    word = LOOKS[arm.verdict.word.value][0]
    return f"{arm.course.right:.0%} {word}" if arm.course.ran else word


def scoreboard_table(board: Board) -> Table:
    """Every strategy with all that was measured."""
    lines = tuple(_score_line(board, arm) for arm in board.ranked)
    columns = (
        "strategy",
        "kind",
        "verdict",
        "right",
        "loss (without)",
        "loss ratio, 95 %",
        "still ill",
        "gradient, first layer",
        "time per step",
    )
    return Table(
        f"Every strategy, the best first; {_seeds(board)} of {board.settings.steps} steps. Time per step against that without "
        "it, as measured on this machine",
        columns,
        lines,
    )


def _score_line(board: Board, arm: Arm) -> tuple[str, ...]:
    verdict = arm.verdict
    head = (arm.strategy.label, arm.strategy.family, LOOKS[verdict.word.value][0])
    if not arm.course.ran:
        return (*head, *("not trained",) * 6)
    ends = [plain(float(y[0])) for y in (arm.course.typical_start, arm.course.typical_end)]
    return (
        *head,
        f"{100 * arm.course.right:.0f} %",
        f"{_short(verdict.loss_end)} ({_short(verdict.control_end)})",
        _interval(arm),
        ", ".join((*verdict.left, *verdict.new)) or "nothing",
        f"{ends[0]} to {ends[1]} decades",
        f"{board.cost(arm):.2f}",
    )


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "no number"


def _interval(arm: Arm) -> str:
    found = arm.verdict.loss
    if not math.isfinite(found.middle):
        return "unknown" if math.isnan(found.middle) else "no number"
    middle, low, high = (math.exp(min(x, 30.0)) for x in (found.middle, found.low, found.high))
    return f"{middle:.2g} ({low:.2g} to {high:.2g})" if math.isfinite(found.low) else f"{middle:.2g}"


# ---- words ---------------------------------------------------------------------------------------------------------------


def _seeds(board: Board) -> str:
    return counted(board.settings.seeds, "seed")


def _lower(label: str) -> str:
    """A label within a sentence: names and abbreviations keep their capitals."""
    first = label.split()[0].split(",")[0]
    return label if first in _NAMES or not first[1:].islower() else label[0].lower() + label[1:]


_NAMES: Final = ("Adam", "Xavier", "He")
