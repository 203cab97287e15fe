"""R1, the gradient of every layer at every look: where and when it fades or blows up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.cells import Cells, Kind, Rectangle, gradient_cells, marked, rectangles
from gradiometer.figures.rows import Rows, main_chain, output_rows, parameter_rows, pinned_look
from gradiometer.figures.scale import (
    BLANK,
    CELL_DECADES,
    LIMIT,
    MINUS,
    NEUTRAL,
    Margin,
    colorscale,
    decades,
    finish,
    nothing,
)
from gradiometer.record.depth import ZERO_DECADES, fall_towards_input, fall_towards_output
from gradiometer.record.ledger import BoolArray, FloatArray, IntArray
from gradiometer.record.trace import Trace
from gradiometer.rules import exploding_gradient, vanishing_gradient
from gradiometer.types import Finding
from gradiometer.words import counted

MAX_OUTLINES: Final = 6
"""Findings outlined: more than that hides what they outline."""

_TICKS: Final = 9
_TRIANGLES_ACROSS, _TRIANGLES_ALONG = 24, 42
_TOP, _BOTTOM = 92, 56
_LEGEND: Final = 34
_CLOSE: Final = 3
"""Rows of one finding nearer than this share an outline: a finding about every second layer gets one box."""

_PATTERNS: Final = {
    Kind.NAN: ("NaN", "/", "#111111", "#ffffff", 7, 0.45),
    Kind.INF: ("infinite", "x", "#111111", "#ffffff", 7, 0.35),
    Kind.ZERO: ("exactly 0", ".", "#5a606a", "#c9cdd4", 5, 0.35),
}
"""Kind: name, plotly fill pattern, foreground, background, size, solidity. Black, white and grey: no colour of the scale."""


def heatmap(trace: Trace, findings: Sequence[Finding] = (), step: int | None = None) -> go.Figure:
    """The gradient of each layer against the median layer of the same step, over all looks.

    The columns are looks, evenly spaced: looks are spaced by the logarithm of the step, so this reads like a logarithmic
    time axis, shows each look once, and hides no gap behind a wide cell.

    Args:
        trace: the run.
        findings: outlined and numbered in this order.
        step: the pinned step; by default the last look.
    """
    has_outputs = bool(np.isfinite(trace.log10_gradient[:, trace.outputs]).any()) or any(
        bool(bad[:, trace.outputs].any()) for bad in trace.nonfinite.values()
    )
    if not trace.steps.size or not (has_outputs or trace.parameters.size):
        return nothing("No gradient was measured", "No step was looked at closely, so there is no gradient to show.")
    rows = output_rows(trace) if has_outputs else parameter_rows(trace)
    cells = gradient_cells(trace, rows)
    look = pinned_look(trace, step)
    fig = go.Figure(_tiles(trace, rows, cells))
    keys = _keys(rows, cells)
    fig.add_traces([*_overlays(cells), *keys])
    _lay_out(fig, trace, rows, cells, look)
    for number, finding in enumerate(findings[:MAX_OUTLINES], 1):
        _outline(fig, number, _boxes(trace, rows, cells, finding))
    title = _title(trace, cells, rows, look, findings, has_outputs)
    return finish(
        fig,
        title=title,
        alt=_alternative(title, trace, has_outputs),
        plot_height=rows.plot_height,
        margin=Margin(rows.left_margin, 14, _TOP, _BOTTOM + (_LEGEND if keys else 0)),
        note=_note(rows, cells),
    )


# ---- what is drawn -----------------------------------------------------------------------------------------------------


def _tiles(trace: Trace, rows: Rows, cells: Cells) -> go.Heatmap:
    wide = cells.z.shape[1]
    ends = 0.985 * LIMIT  # a label at the very end would be cut off
    ticks = (-ends, -CELL_DECADES, 0.0, CELL_DECADES, ends)
    words = (f"≤ {MINUS}6", f"▼ {MINUS}3", "0", "+3 ▲", "≥ +6")
    return go.Heatmap(
        z=cells.z.astype(np.float32),
        x=_columns(trace, cells),
        y=rows.categories,
        zmin=-LIMIT,
        zmax=LIMIT,
        colorscale=colorscale(),
        xgap=1 if wide <= 60 else 0,
        hoverongaps=False,
        hovertemplate="<b>%{y}</b><br>step %{x}<br>%{z:+.2f} decades from the median layer<extra></extra>",
        colorbar={
            "orientation": "h",
            "thickness": 10,
            "len": 1,
            "x": 0,
            "xanchor": "left",
            "xpad": 0,
            "y": 1 + 40 / rows.plot_height,
            "yanchor": "bottom",
            "ypad": 0,
            "outlinewidth": 0,
            "tickvals": ticks,
            "ticktext": words,
            "ticks": "outside",
            "ticklen": 3,
            "tickfont": {"size": 11},
            "title": {"text": "decades from the median layer", "side": "top", "font": {"size": 12}},
        },
    )


def _columns(trace: Trace, cells: Cells) -> list[str]:
    """Categories of the columns; the zero-width space keeps plotly from reading a step as a position."""
    spans = [(int(trace.steps[a]), int(trace.steps[b])) for a, b in cells.bins]
    return [f"\u200b{a}" if a == b else f"\u200b{a} to {b}" for a, b in spans]


def _overlays(cells: Cells) -> list[go.Scatter]:
    traces = [_pattern(cells, kind) for kind in _present(cells)]
    with np.errstate(invalid="ignore"):
        past = ((-1, np.asarray(cells.z <= -CELL_DECADES)), (1, np.asarray(cells.z >= CELL_DECADES)))
    return traces + [_triangles(cells.z, mask, sign) for sign, mask in past if mask.any()]


def _present(cells: Cells) -> list[Kind]:
    return [kind for kind in _PATTERNS if (cells.kind == kind).any()]


def _keys(rows: Rows, cells: Cells) -> list[go.Bar]:
    """The legend: what the patterns mean that are there."""
    keys = [_pattern_key(kind) for kind in _present(cells)]
    places = [i for i, row in enumerate(rows.rows) if not row.heading]
    if (cells.kind[places] == Kind.UNKNOWN).any():
        keys.append(_key("not measured", {"color": BLANK}))
    return keys


def _pattern(cells: Cells, kind: Kind) -> go.Scatter:
    name, shape, fore, back, size, solidity = _PATTERNS[kind]
    x: list[float | None] = []
    y: list[float | None] = []
    for area in rectangles(cells.kind == kind):
        left, right, bottom, top = area.left - 0.5, area.right + 0.5, area.bottom - 0.5, area.top + 0.5
        x += [left, right, right, left, left, None]
        y += [bottom, bottom, top, top, bottom, None]
    return go.Scatter(
        x=x,
        y=y,
        xaxis="x2",
        yaxis="y2",
        mode="lines",
        line={"width": 0.5, "color": fore},
        fill="toself",
        fillpattern={"shape": shape, "fgcolor": fore, "bgcolor": back, "size": size, "solidity": solidity},
        hoveron="fills",
        hoverinfo="text",
        text=name,
        name=name,
        showlegend=False,
    )


def _pattern_key(kind: Kind) -> go.Bar:
    """What a pattern means, in the legend: the swatch of a bar shows it best."""
    name, shape, fore, back, size, solidity = _PATTERNS[kind]
    pattern = {"shape": shape, "fgcolor": fore, "bgcolor": back, "size": size, "solidity": solidity}
    return _key(name, {"color": back, "pattern": pattern})


def _key(name: str, marker: dict[str, Any]) -> go.Bar:
    marker = {**marker, "line": {"color": NEUTRAL, "width": 1}}
    return go.Bar(x=[None], y=[None], xaxis="x2", yaxis="y2", marker=marker, name=name, showlegend=True, hoverinfo="skip")


def _triangles(z: FloatArray, mask: BoolArray, sign: int) -> go.Scatter:
    r, c = marked(mask, z, _TRIANGLES_ACROSS, _TRIANGLES_ALONG)
    # white on the dark end of the scale, black on its light part
    colours = ["#ffffff" if abs(float(z[a, b])) > 3.9 else "#111111" for a, b in zip(r, c, strict=True)]
    word = "below" if sign < 0 else "above"
    return go.Scatter(
        x=c,
        y=r,
        xaxis="x2",
        yaxis="y2",
        mode="markers",
        marker={"symbol": f"triangle-{'down' if sign < 0 else 'up'}", "size": 5, "color": colours, "opacity": 0.8},
        hoverinfo="skip",
        name=f"{CELL_DECADES:g} decades or more {word} the median",
        showlegend=False,
    )


def _lay_out(fig: go.Figure, trace: Trace, rows: Rows, cells: Cells, look: int) -> None:
    columns = cells.z.shape[1]
    shown = range(0, columns, -(-columns // _TICKS))
    whole = {"range": [-0.5, columns - 0.5], "fixedrange": True, "showgrid": False}
    hidden = {"visible": False, "showgrid": False, "fixedrange": True}
    fig.update_layout(
        xaxis={
            **whole,
            "type": "category",
            "tickmode": "array",
            "tickvals": [i + columns / 2_000 for i in shown],
            "ticktext": [f"{int(trace.steps[cells.bins[i][0]]):,}" for i in shown],
            "title": {"text": "training step" if cells.thinned else "training step (one column per look)"},
        },
        yaxis=rows.axis(),
        # Patterns and triangles need positions, not categories: the same area again, as plain numbers.
        xaxis2={**hidden, "overlaying": "x", "range": [-0.5, columns - 0.5]},
        yaxis2={**hidden, "overlaying": "y", "range": [-0.5, len(rows) - 0.5]},
        plot_bgcolor=BLANK,
        annotations=rows.annotations(rows.left_margin),
        legend={"orientation": "h", "x": 0, "y": -56 / rows.plot_height, "yanchor": "top", "itemsizing": "constant"},
    )
    if look >= 0:
        at = cells.column_of(look)
        fig.add_annotation(
            x=at,
            xref="x2",
            y=1,
            yref="paper",
            yanchor="bottom",
            xanchor=("left", "center", "right")[min(2, 3 * at // columns)],
            text=("▾ step {0}", "step {0} ▾", "step {0} ▾")[min(2, 3 * at // columns)].format(int(trace.steps[look])),
            showarrow=False,
            font={"size": 11},
        )


# ---- findings ----------------------------------------------------------------------------------------------------------


def _boxes(trace: Trace, rows: Rows, cells: Cells, finding: Finding) -> list[Rectangle]:
    """The areas a finding is about: its sites in runs of rows, from its first to its last step."""
    held = rows.of_sites(finding.sites, trace)
    looks = np.flatnonzero((trace.steps >= finding.steps[0]) & (trace.steps <= finding.steps[1]))
    if not held.size or not looks.size:
        return []
    left, right = cells.column_of(int(looks[0])), cells.column_of(int(looks[-1]))
    groups = np.split(held, np.flatnonzero(np.diff(held) >= max(_CLOSE, len(rows) // 20)) + 1)
    return [Rectangle(left, right, int(g[0]), int(g[-1])) for g in groups]


def _outline(fig: go.Figure, number: int, boxes: list[Rectangle]) -> None:
    # black inside white: seen on every colour of the scale
    for width, colour in ((5.0, "#ffffff"), (2.0, "#111111")):
        for box in boxes:
            fig.add_shape(
                type="rect",
                xref="x2",
                yref="y2",
                x0=box.left - 0.5,
                x1=box.right + 0.5,
                y0=box.bottom - 0.5,
                y1=box.top + 0.5,
                line={"color": colour, "width": width},
                fillcolor="rgba(0,0,0,0)",
            )
    for box in boxes[-1:]:
        fig.add_annotation(
            x=box.left - 0.5,
            y=box.top + 0.5,
            xref="x2",
            yref="y2",
            xanchor="left",
            yanchor="top",
            xshift=3 + 24 * (number - 1),
            yshift=-3,
            text=f"<b>{number}</b>",
            showarrow=False,
            font={"size": 12, "color": "#ffffff"},
            bgcolor="#111111",
            bordercolor="#ffffff",
            borderwidth=1,
            borderpad=2,
            width=12,
        )


# ---- words ---------------------------------------------------------------------------------------------------------------


def _alternative(title: str, trace: Trace, has_outputs: bool) -> str:
    count, what = (trace.outputs.size, "outputs") if has_outputs else (trace.parameters.size, "parameters")
    looks = f"{counted(int(trace.steps.size), 'look')}, from step {int(trace.steps[0])} to step {int(trace.steps[-1])}"
    return f"{title}. Heatmap of {count} {what} at {looks}."


def _note(rows: Rows, cells: Cells) -> str:
    thinned = [rows.note] if rows.note else []
    if cells.thinned:
        thinned.append("Each column stands for several looks.")
    if thinned:
        thinned.append("A cell shows the value furthest from the median, and NaN if there is any.")
    return " ".join(thinned)


def _title(trace: Trace, cells: Cells, rows: Rows, look: int, findings: Sequence[Finding], has_outputs: bool) -> str:
    bad = (cells.kind == Kind.NAN) | (cells.kind == Kind.INF)
    if bad.any():
        first = int(np.flatnonzero(bad.any(axis=0))[0])
        held = int(np.count_nonzero(bad.any(axis=1)))
        total = sum(not row.heading for row in rows.rows)
        where = (
            f"{held} of {total} {'outputs' if has_outputs else 'parameters'}"
            if rows.per_row == 1
            else f"{held} of {total} rows"
        )
        return f"Gradients stop being finite at step {int(trace.steps[cells.bins[first][0]])}, in the end in {where}"
    if not has_outputs:
        return "Gradients of the weights: no output of a layer could be watched"
    return conclusion(trace, main_chain(trace, findings), look)


def conclusion(trace: Trace, chain: IntArray, look: int) -> str:
    """How the gradient changes on its way back through one network at one look, in a sentence."""
    y = trace.log10_gradient[look, chain]
    when = f"at step {int(trace.steps[look])}"
    if np.isfinite(y).sum() < 3:
        return f"Too few layers had a gradient {when} to compare them"
    fall = fall_towards_input(y)
    rise = fall_towards_output(np.where(np.isfinite(y), y, np.nan))
    names = trace.names(chain)
    known = np.where(np.isfinite(y), y, -math.inf)
    if fall >= ZERO_DECADES:
        return f"Exactly no gradient reaches {names[int(np.flatnonzero(np.isneginf(y))[0])]} {when}"
    if fall >= max(rise, vanishing_gradient.WARN_DECADES):
        source = int(np.flatnonzero(known >= known.max() - 1.0)[0])
        shows = int(np.argmin(np.where(np.isfinite(y), y, math.inf)))
        return f"Gradient falls by {decades(fall)} on its way from {names[source]} back to {names[shows]}, {when}"
    if rise >= exploding_gradient.WARN_DECADES:
        source, shows = int(np.nanargmin(np.where(np.isfinite(y), y, math.inf))), int(np.argmax(known))
        return f"Gradient grows by {decades(rise)} on its way from {names[source]} back to {names[shows]}, {when}"
    spread = float(known.max() - np.nanmin(np.where(np.isfinite(y), y, np.nan)))
    over = f"all {counted(int(np.isfinite(y).sum()), 'output')}, {when}"
    return f"Gradient stays within {decades(spread)} over {over}" if spread >= 0.05 else f"Gradient has one size in {over}"
