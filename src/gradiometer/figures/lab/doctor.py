"""Figures of the doctor game: how far weights move, what the player has answered and earned, the cure beside no cure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.lab.strategies import beside, beside_table
from gradiometer.figures.scale import LINES, NEUTRAL, Margin, escaped, factor, finish, nothing, number, wrapped
from gradiometer.figures.tables import Table
from gradiometer.record.trace import Trace
from gradiometer.words import counted

if TYPE_CHECKING:
    from gradiometer.lab.doctor import Score

ROW: Final = 46
_NAMES: Final = ("untreated", "treated")
_USUAL: Final = (-4.0, -2.0)
"""log10 of update / weight of most trainings that go well (a rule of thumb, CS231n notes: about -3)."""
_WIDEST: Final = 44
"""Characters of a line of an answer: what fits beside the names at 400 pixels."""


# ---- evidence ------------------------------------------------------------------------------------------------------------


def movement(trace: Trace) -> go.Figure:
    """How far each weight matrix moves in a step, as a share of its own size: the usual step, and the range of all.

    Args:
        trace: the run.
    """
    names, ranges = _moves(trace)
    low = min([-6.0, *(r[0] for r in ranges if r)]) - 0.3
    high = max([0.0, *(r[2] for r in ranges if r)]) + 0.3
    moving = [(name, r) for name, r in zip(names, ranges, strict=True) if r]
    fig = go.Figure(
        go.Scatter(
            x=[x for _, r in moving for x in (r[0], r[2], None)],
            y=[y for name, _ in moving for y in (name, name, None)],
            mode="lines",
            line={"color": NEUTRAL, "width": 2},
            hoverinfo="skip",
            showlegend=False,
            name="range",
        )
    )
    fig.add_trace(
        go.Scatter(
            x=[r[1] for _, r in moving],
            y=[name for name, _ in moving],
            mode="markers",
            marker={"color": LINES[0], "size": 9},
            hovertemplate="<b>%{y}</b><br>log10 of update / weight: %{x:.2f}<extra></extra>",
            showlegend=False,
            name="usual step",
        )
    )
    for name, r in zip(names, ranges, strict=True):
        if not r:
            fig.add_annotation(x=low, y=name, xanchor="left", text="does not move", showarrow=False, font={"size": 11})
    fig.add_vrect(x0=_USUAL[0], x1=_USUAL[1], fillcolor=NEUTRAL, opacity=0.13, line_width=0)
    fig.update_layout(
        xaxis={"title": {"text": "log10 of update / weight, one step"}, "range": [low, high], "fixedrange": True},
        yaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": names,
            "range": [-0.6, len(names) - 0.4],
            "fixedrange": True,
            "title": {"text": "input → output"},
        },
    )
    title = _movement_title(ranges)
    return finish(
        fig,
        title=title,
        alt=f"{title}. A dot and a range for each of {counted(len(names), 'weight matrix')}.".replace("matrixs", "matrices"),
        plot_height=max(110, 22 * len(names)),
        margin=Margin(78, 14, 10, 48),
        note="Dot: the middle of all looks. Line: from the shortest step to the longest. Grey: −4 to −2, a rule of thumb.",
    )


def _moves(trace: Trace) -> tuple[list[str], list[tuple[float, ...]]]:
    """Names of the weight matrices, and log10 of their shortest, middle and longest step; empty where they never move."""
    matrices = [int(i) for i in trace.parameters if len(trace.sites[int(i)].shape) > 1]
    ranges: list[tuple[float, ...]] = []
    for i in matrices:
        y = trace.log10_update_ratio[:, i]
        y = np.sort(y[np.isfinite(y)])
        ranges.append((float(y[0]), float(y[(y.size - 1) // 2]), float(y[-1])) if y.size else ())
    return [escaped(trace.sites[i].name) for i in matrices], ranges


def _movement_title(ranges: list[tuple[float, ...]]) -> str:
    still = sum(not r for r in ranges)
    if still == len(ranges):
        return "No weight matrix moves"
    middle = sorted(r[1] for r in ranges if r)
    told = f"A usual step changes a weight matrix by {factor(middle[(len(middle) - 1) // 2]).removeprefix('×')} of its size"
    return f"{told}; {still} of {len(ranges)} do not move at all" if still else told


def movement_table(trace: Trace) -> Table:
    """The numbers of `movement`."""
    names, ranges = _moves(trace)
    lines = tuple(
        (name, *(f"{x:.2f}" for x in r)) if r else (name, *("does not move",) * 3)
        for name, r in zip(names, ranges, strict=True)
    )
    return Table("log10 of update / weight of one step", ("weights", "shortest", "middle", "longest"), lines)


# ---- the game ------------------------------------------------------------------------------------------------------------


def answers(named: str, chosen: str, hint: bool, score: Score | None) -> go.Figure:
    """What was answered, and once both answers are there the points.

    Args:
        named: label of the diagnosis; empty while there is none.
        chosen: label of the cure; empty while there is none.
        hint: whether a hint was taken.
        score: the points; None while an answer is missing.
    """
    given = (named or "not yet", chosen or "not yet", "taken" if hint else "not taken")
    rows = ("diagnosis", "cure", "hint")
    points = (score.name_points, score.cure_points, score.hint_points) if score is not None else (0, 0, 0)
    worth = [f"{abs(p)} of 2" for p in points[:2]] + [f"{points[2]}".replace("-", "\N{MINUS SIGN}")]
    fig = go.Figure(
        go.Bar(
            x=list(points),
            y=list(rows),
            orientation="h",
            width=0.34,
            offset=0.06,
            marker={"color": [LINES[2], LINES[2], LINES[1]]},
            customdata=list(given),
            hovertemplate="%{y}: %{customdata}<extra></extra>",
            showlegend=False,
            name="points",
        )
    )
    fig.add_vline(x=0.0, line={"color": NEUTRAL, "width": 1})
    for row, answer, value in zip(rows, given, worth, strict=True):
        shown = answer if score is None else f"{value} · {answer}"
        fig.add_annotation(
            x=0.0,
            xref="paper",
            y=row,
            xanchor="left",
            yanchor="bottom",
            xshift=4,
            yshift=-4,
            align="left",
            text="<br>".join(escaped(line) for line in wrapped(shown, _WIDEST)[:2]),
            showarrow=False,
            font={"size": 12},
        )
    fig.update_layout(
        xaxis={"title": {"text": "points"}, "range": [-1.05, 2.05], "tickvals": [-1, 0, 1, 2], "fixedrange": True},
        yaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": list(rows),
            "range": [2.6, -0.8],
            "fixedrange": True,
            "showgrid": False,
        },
    )
    title = _answers_title(named, chosen, score)
    return finish(
        fig,
        title=title,
        alt=f"{title}. Diagnosis: {given[0]}. Cure: {given[1]}. Hint: {given[2]}.",
        plot_height=3 * ROW,
        margin=Margin(78, 14, 10, 48),
        note="Two points for the cause, one for something that the rules find as well; two for a cure, one for what helps; a "
        "hint costs one.",
    )


def _answers_title(named: str, chosen: str, score: Score | None) -> str:
    if score is not None:
        cause = score.examination.case.disease
        told = cause.label.partition(": ")[0] if cause.rules else "well"
        return f"{counted(score.points, 'point')} of 4: it was {told[0].lower()}{told[1:]}"
    missing = [what for what, given in (("a diagnosis", named), ("a cure", chosen)) if not given]
    return f"Still to give: {' and '.join(missing)}"


def answers_table(named: str, chosen: str, hint: bool, score: Score | None) -> Table:
    """The answers and what they earned."""
    if score is None:
        points = ("not yet",) * 3
    else:
        points = (str(score.name_points), str(score.cure_points), str(score.hint_points))
    given = (named or "not yet", chosen or "not yet", "taken" if hint else "not taken")
    return Table(
        "Your answers, and the points once both are given",
        ("question", "answer", "points"),
        tuple(zip(("diagnosis", "cure", "hint"), given, points, strict=True)),
    )


def cure(score: Score | None) -> go.Figure:
    """Loss with the chosen cure beside untreated, from one seed; without a score there is nothing to see yet."""
    if score is None:
        return nothing("The cure has not been tried yet", "Give a diagnosis and a cure: then both networks are trained.")
    return beside(
        score.examination.record.loss[None, :], _treated(score), score.treated.trial.steps, _cure_title(score), _NAMES
    )


def cure_table(score: Score | None) -> Table:
    """The numbers of `cure`."""
    if score is None:
        return Table("The cure has not been tried yet", ("step", *_NAMES), ())
    return beside_table(score.examination.record.loss[None, :], _treated(score), score.treated.trial.steps, _NAMES)


def _treated(score: Score) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Losses with the cure, (1, steps); empty where nothing was trained."""
    if score.verdict is None or not score.treated.trial.ran:
        return np.empty((0, 0))
    return score.treated.loss[None, :]


def _cure_title(score: Score) -> str:
    without = _ending(score.examination.record.loss)
    if score.verdict is None:
        return f"Left alone, the network {without}"
    if not score.treated.trial.ran:
        return f"This cure does not fit the network, which {without} without it"
    return f"Treated, the network {_ending(score.treated.loss)}; untreated, it {without}"


def _ending(loss: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    tail = loss[-max(1, loss.size // 5) :]
    if not np.isfinite(tail).all():
        return "ends with a loss that is no number"
    return f"ends at a loss of {number(float(f'{np.median(tail):.3g}'))}"
