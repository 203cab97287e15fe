"""R9, before and after a cure: the gradient of each layer, and the loss over all seeds, without and with the treatment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.rows import MAX_ROWS, Row, Rows
from gradiometer.figures.scale import LINES, MINUS, NEUTRAL, Margin, decades, finish, nothing, number, signed
from gradiometer.figures.tables import MAX_LINES, Table, plain
from gradiometer.record.ledger import FloatArray
from gradiometer.record.trace import SETTLE, Trace
from gradiometer.trial.result import Arm, Trial
from gradiometer.types import Finding, Role

TOP, BOTTOM = 34, 54
HEIGHT: Final = 320
BEFORE, AFTER = LINES[1], LINES[0]
_FAINT: Final = ("rgba(213,94,0,0.2)", "rgba(0,114,178,0.2)")
_LONG: Final = 0.05
"""Decades below which a layer has not moved."""


# ---- dumbbell ------------------------------------------------------------------------------------------------------------


def profiles(before: Trace, after: Trace, findings: Sequence[Finding] = ()) -> tuple[list[str], FloatArray, FloatArray]:
    """Names of the weighted layers, and log10 of their gradient against that of the last one, untreated and treated.

    Layers are paired by their order where there are as many on both sides, else by name. Medians over the looks after the
    first steps.
    """
    left, right = _layers(before, findings), _layers(after, ())
    if len(left) != len(right):
        named = {after.sites[i].name: i for i in right}
        left = [i for i in left if before.sites[i].name in named]
        right = [named[before.sites[i].name] for i in left]
    names = [before.sites[i].name for i in left]
    return names, _relative(before, left), _relative(after, right)


def _layers(trace: Trace, findings: Sequence[Finding]) -> list[int]:
    if not trace.chains:
        return []
    of = {trace.sites[int(i)].name: chain for chain in trace.chains for i in chain}
    named = [of[name] for f in findings for name in (f.starts, *f.sites) if name in of]
    chain = named[0] if named else trace.chains[0]
    return [int(i) for i in chain if trace.sites[int(i)].role in (Role.LINEAR, Role.RECURRENT)]


def _relative(trace: Trace, sites: Sequence[int]) -> FloatArray:
    if not sites or not trace.steps.size:
        return np.empty(0)
    looks = trace.steps >= SETTLE if (trace.steps >= SETTLE).any() else np.ones(trace.steps.shape, np.bool_)
    y = trace.log10_gradient[looks][:, list(sites)]
    with np.errstate(invalid="ignore"):
        z = y - y[:, -1:]
    middle = np.full(len(sites), np.nan)
    for k in range(len(sites)):
        known = z[:, k][~np.isnan(z[:, k])]
        if known.size:
            middle[k] = float(np.sort(known)[known.size // 2])  # one of the values: no mean of a number and -inf
    return middle


def dumbbell(before: Trace, after: Trace, findings: Sequence[Finding] = (), *, cured: bool = True) -> go.Figure:
    """Gradient of each layer against the last one: untreated (open), treated (filled), and the way between.

    Args:
        before: the untreated run.
        after: the treated one.
        findings: of the untreated run; only tell which network is shown.
        cured: whether the treatment cures.
    """
    names, left, right = profiles(before, after, findings)
    known = [k for k in range(len(names)) if math.isfinite(left[k]) or math.isfinite(right[k])]
    if len(known) < 2:
        return nothing("The layers of the two runs cannot be compared", "No layer's gradient is known in both of them.")
    rows = _rows(names)
    edge = -max(3.0, _reach(left, right))
    shown = [np.where(np.isneginf(y), edge, y) for y in (left, right)]
    shown = [rows.furthest(y) for y in shown]
    fig = go.Figure()
    ways_x: list[float | None] = []
    ways_y: list[str | None] = []
    for k, name in enumerate(rows.categories):
        if math.isfinite(shown[0][k]) and math.isfinite(shown[1][k]) and abs(shown[0][k] - shown[1][k]) > _LONG:
            ways_x += [float(shown[0][k]), float(shown[1][k]), None]
            ways_y += [name, name, None]
    fig.add_trace(
        go.Scatter(x=ways_x, y=ways_y, mode="lines", line={"color": NEUTRAL, "width": 1.5}, hoverinfo="skip", showlegend=False)
    )
    for label, y, colour, symbol in (
        ("untreated", shown[0], BEFORE, "circle-open"),
        ("treated", shown[1], AFTER, "circle"),
    ):
        fig.add_trace(
            go.Scatter(
                x=y,
                y=rows.categories,
                mode="markers",
                marker={"color": colour, "size": 8, "symbol": symbol, "line": {"width": 2, "color": colour}},
                name=label,
                hovertemplate=f"<b>%{{y}}</b><br>{label}: %{{x:.2f}} decades<extra></extra>",
            )
        )
    fig.update_layout(
        xaxis={"title": {"text": "decades from the gradient of the last layer"}, "fixedrange": True, "zeroline": True},
        yaxis=rows.axis(),
        annotations=rows.annotations(rows.left_margin),
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        hovermode="closest",
    )
    title = _dumbbell_title(left, right, cured)
    zeros = "An exact zero stands at the left edge. " if _zeros(left, right) else ""
    return finish(
        fig,
        title=title,
        alt=f"{title}. Two points for each of {len(names)} layers, from input to output.",
        plot_height=rows.plot_height,
        margin=Margin(rows.left_margin, 14, TOP, BOTTOM),
        note=f"Medians over the looks after the first steps. {zeros}{rows.note}".strip(),
    )


def _reach(left: FloatArray, right: FloatArray) -> float:
    both = np.abs(np.concatenate([left, right]))
    both = both[np.isfinite(both)]
    return float(both.max()) + 0.5 if both.size else 3.0


def _zeros(left: FloatArray, right: FloatArray) -> bool:
    return bool(np.isneginf(left).any() or np.isneginf(right).any())


def _dumbbell_title(left: FloatArray, right: FloatArray, cured: bool) -> str:
    ends = [y[np.flatnonzero(~np.isnan(y))[0]] if (~np.isnan(y)).any() else math.nan for y in (left, right)]
    words = ["nothing" if e == -math.inf else f"{signed(float(e))} decades" if math.isfinite(e) else "unknown" for e in ends]
    told = f"The first layer gets {words[1]} of the last one's gradient, untreated {words[0]}"
    if all(math.isfinite(e) for e in ends):
        apart = [decades(float(e)) for e in ends]
        told = f"The gradient of the first layer is {apart[1]} from the last one's, untreated {apart[0]}"
    return told if cured else f"No cure: {told[0].lower()}{told[1:]}"


def _rows(names: Sequence[str]) -> Rows:
    per_row = max(1, math.ceil(len(names) / MAX_ROWS))
    rows = [
        Row(
            names[start] if per_row == 1 else f"{names[start]} … {names[min(start + per_row, len(names)) - 1]}",
            names[start],
            tuple(range(start, min(start + per_row, len(names)))),
            0,
        )
        for start in range(0, len(names), per_row)
    ]
    return Rows(tuple(rows), per_row)


def dumbbell_table(before: Trace, after: Trace, findings: Sequence[Finding] = ()) -> Table:
    """The numbers of `dumbbell`."""
    names, left, right = profiles(before, after, findings)
    lines = [(name, plain(float(a)), plain(float(b))) for name, a, b in zip(names, left, right, strict=True)]
    caption = "log10 of the gradient of each layer against the last one's"
    return Table(caption, ("layer", "untreated", "treated"), tuple(lines[:MAX_LINES]))


# ---- loss ----------------------------------------------------------------------------------------------------------------


def losses(controls: Sequence[Trial], arm: Arm, steps: int, *, cured: bool = True, height: int = HEIGHT) -> go.Figure:
    """Loss without and with the treatment: medians over the seeds, and the band from the lowest to the highest.

    Args:
        controls: untreated runs.
        arm: the treatment.
        steps: of a full trial.
        cured: whether it cures.
        height: pixels between the ends of the y axis.
    """
    treated = full(arm, steps)
    sides = (("untreated", _curves(controls), BEFORE, 0), ("treated", _curves(treated), AFTER, 1))
    if not any(np.isfinite(y).any() for _, y, _, _ in sides):
        return nothing("No loss was seen", "backward() was never called on a loss that the probe could read.")
    width = (controls[0] if controls else treated[0]).bin_steps
    values = np.concatenate([y[np.isfinite(y)] for _, y, _, _ in sides])
    logarithmic = float(values.min()) > 0.0 and float(values.max()) > 10.0 * float(values.min())
    fig = go.Figure()
    for label, y, colour, k in sides:
        if not y.size:
            continue
        x = (np.arange(y.shape[1]) + 0.5) * width
        filled = np.isfinite(y).any(axis=0)
        low, middle, high = (np.full(y.shape[1], np.nan) for _ in range(3))
        low[filled], middle[filled], high[filled] = (f(y[:, filled], axis=0) for f in (np.nanmin, np.nanmedian, np.nanmax))
        if y.shape[0] > 1:
            fig.add_trace(
                go.Scatter(
                    x=[*x[filled], *x[filled][::-1]],
                    y=[*low[filled], *high[filled][::-1]],
                    mode="lines",
                    line={"width": 0},
                    fill="toself",
                    fillcolor=_FAINT[k],
                    hoverinfo="skip",
                    showlegend=False,
                    name=f"{label}, lowest to highest",
                )
            )
        fig.add_trace(
            go.Scatter(
                x=x,
                y=middle,
                mode="lines",
                line={"color": colour, "width": 2.5, "dash": ("dash", "solid")[k]},
                name=label,
                hovertemplate=f"step %{{x:.0f}}<br>{label} %{{y:.4g}}<extra></extra>",
            )
        )
    fig.update_layout(
        xaxis={"title": {"text": "training step"}, "fixedrange": True, "tickformat": ",d"},
        yaxis={
            "title": {"text": "loss"},
            "type": "log" if logarithmic else "linear",
            "fixedrange": True,
            "exponentformat": "power",
        },
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        hovermode="closest",
    )
    title = _loss_title(arm, cured)
    return finish(
        fig,
        title=title,
        alt=f"{title}. Line chart of the loss over {steps} steps.",
        plot_height=height,
        margin=Margin(64, 14, TOP, BOTTOM),
        note="The loss axis is logarithmic." if logarithmic else "",
    )


def full(arm: Arm, steps: int) -> list[Trial]:
    """The longest trials of an arm that ran; full ones if there are any."""
    ran = [t for t in arm.trials if t.ran]
    longest = max((t.steps for t in ran), default=steps)
    return [t for t in ran if t.steps == longest]


def _curves(trials: Sequence[Trial]) -> FloatArray:
    """Loss curves as rows, as long as the longest, shape (runs, bins)."""
    longest = max((len(t.curve) for t in trials), default=0)
    rows = [[*t.curve, *[math.nan] * (longest - len(t.curve))] for t in trials]
    return np.array(rows, dtype=np.float64).reshape(len(trials), longest)


def _loss_title(arm: Arm, cured: bool) -> str:
    verdict = arm.verdict
    if not math.isfinite(verdict.loss_end):
        told = "with the treatment the loss is no number any more"
    else:
        told = f"the loss ends at {number(verdict.loss_end)} with the treatment, at {number(verdict.control_end)} without"
    return f"{told[0].upper()}{told[1:]}" if cured else f"No cure: {told}"


def race_table(arms: Sequence[Arm]) -> Table:
    """Every treatment that was tried, with its interval."""
    lines: list[tuple[str, ...]] = []
    for arm in arms:
        verdict = arm.verdict
        lines.append(
            (
                arm.label,
                arm.candidate.safety.value,
                arm.candidate.prediction.promise.value,
                f"{verdict.seeds} x {verdict.steps}",
                number(verdict.loss_end),
                ratio(arm),
                ", ".join((*verdict.left, *verdict.new)) or "nothing",
                f"{verdict.cost:.2f}" if math.isfinite(verdict.cost) else "unknown",
                verdict.word.value,
            )
        )
    columns = (
        *("treatment", "changes", "theory", "trials x steps"),
        *("loss", "ratio (95 %)", "still ill", "time per step", "verdict"),
    )
    return Table("Every treatment that was tried, the best first", columns, tuple(lines))


def ratio(arm: Arm) -> str:
    """Loss with the treatment over that without, with its interval."""
    found = arm.verdict.loss
    if math.isnan(found.middle):
        return "unknown"
    if math.isinf(found.middle):
        return "no number"
    if arm.verdict.loss_end < 0.0 or arm.verdict.control_end <= 0.0:
        return f"{signed(found.middle, 2)} of the start"
    shown = [f"{math.exp(max(min(x, 30.0), -30.0)):.2g}" for x in (found.middle, found.low, found.high)]
    if not math.isfinite(found.low):
        return f"×{shown[0]}"
    return f"×{shown[0]} ({shown[1]} to {shown[2]})".replace("-", MINUS)
