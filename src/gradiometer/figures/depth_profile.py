"""R2, gradient and signal along depth at one step: how much is left at each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.rows import Rows, band, main_chain, output_rows, pinned_look
from gradiometer.figures.scale import (
    DASHES,
    LIMIT,
    LINES,
    NEUTRAL,
    Margin,
    decades,
    finish,
    nothing,
    relative_to_median,
    signed,
)
from gradiometer.record.depth import ZERO_DECADES, fall_towards_input, fall_towards_output
from gradiometer.record.frames import Group
from gradiometer.record.ledger import BoolArray, FloatArray, IntArray
from gradiometer.record.trace import Trace
from gradiometer.types import Finding

TOP, BOTTOM = 26, 54
"""Pixels above and below, the same as in the gains beside it, so that the layers stand at the same height."""

_BAND: Final = (10.0, 90.0)


def depth_profile(trace: Trace, findings: Sequence[Finding] = (), step: int | None = None) -> go.Figure:
    """Gradient and signal of each layer against the median layer, at the pinned step.

    The band behind each line is what lies between the 10th and the 90th percentile over all looks.

    Args:
        trace: the run.
        findings: only tell which network the title speaks of.
        step: the pinned step; by default the last look.
    """
    look = pinned_look(trace, step)
    if look < 0 or not trace.outputs.size:
        return nothing("No layer could be compared with another", "No output of a layer was measured.")
    rows = output_rows(trace)
    fig = go.Figure()
    parts = (("gradient", trace.log10_gradient, 0), ("signal", trace.log10_signal, 1))
    reach = LIMIT + 0.5
    drawn: list[FloatArray] = []
    for name, values, colour in parts:
        z = rows.furthest(relative_to_median(trace, values))
        finite = np.abs(z[np.isfinite(z)])
        reach = max(reach, float(finite.max(initial=0.0)) + 0.7)
        fig.add_traces(_bands(rows, z, name, colour))
        fig.add_traces(_lines(rows, z[look], name, colour))
        drawn.append(z[look])
    _lay_out(fig, rows, reach)
    for (name, _, colour), z, other in zip(parts, drawn, drawn[::-1], strict=True):
        _label(fig, z, other, name, colour)
    fig.add_traces(_odd_ones(rows, rows.furthest(trace.log10_gradient[look]), -reach))
    title = _title(trace, look, main_chain(trace, findings))
    note = f"Lines: step {int(trace.steps[look])}. Bands: the middle 80 % of all looks."
    return finish(
        fig,
        title=title,
        alt=f"{title}. Line chart along {len(trace.outputs)} outputs, from input to output.",
        plot_height=rows.plot_height,
        margin=Margin(rows.left_margin, 14, TOP, BOTTOM),
        note=note,
    )


def _runs(rows: Rows, known: BoolArray) -> list[list[int]]:
    """Stretches of rows with numbers, broken where chains end."""
    runs: list[list[int]] = [[]]
    for i, row in enumerate(rows.rows):
        if row.heading:
            runs.append([])
        elif known[i]:
            runs[-1].append(i)
    return [run for run in runs if run]


def _bands(rows: Rows, z: FloatArray, name: str, colour: int) -> list[go.Scatter]:
    known = np.where(np.isfinite(z), z, np.nan)
    filled = np.asarray(np.isfinite(known).any(axis=0))
    if known.shape[0] < 3 or not filled.any():
        return []
    low, high = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    low[filled], high[filled] = np.nanpercentile(known[:, filled], _BAND, axis=0)
    return [band(rows, run, low, high, f"{name}, p10 to p90", _faint(LINES[colour])) for run in _runs(rows, filled)]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


def _lines(rows: Rows, z: FloatArray, name: str, colour: int) -> list[go.Scatter]:
    runs = _runs(rows, np.asarray(np.isfinite(z)))
    few = len(rows) <= 60
    return [
        go.Scatter(
            x=z[run],
            y=[rows.categories[i] for i in run],
            mode="lines+markers" if few or len(run) == 1 else "lines",
            line={"color": LINES[colour], "width": 2.5, "dash": DASHES[colour]},
            marker={"size": 4, "symbol": "circle" if colour == 0 else "diamond"},
            name=name,
            hovertemplate=f"<b>%{{y}}</b><br>{name} %{{x:+.2f}} decades from the median layer<extra></extra>",
            showlegend=False,
        )
        for run in runs
    ]


def _label(fig: go.Figure, z: FloatArray, other: FloatArray, name: str, colour: int) -> None:
    """Write the name beside the line, away from the other line, gradient lower and signal higher."""
    known = np.flatnonzero(np.isfinite(z))
    if not known.size:
        return
    i = int(known[round((known.size - 1) * (0.2, 0.8)[colour])])
    right = float(z[i]) >= float(other[i]) if np.isfinite(other[i]) else float(z[i]) <= 0.0
    fig.add_annotation(
        x=float(z[i]),
        y=i,
        yref="y",
        text=f"<span style='color:{LINES[colour]}'>{('━', '╍')[colour]}</span> <b>{name}</b>",
        showarrow=False,
        xanchor="left" if right else "right",
        xshift=12 if right else -12,
        yshift=-8 if colour == 0 else 8,
    )


def _odd_ones(rows: Rows, y: FloatArray, left: float) -> list[go.Scatter]:
    """Layers whose gradient is exactly zero: a ring at the left edge, as no logarithm can show them."""
    zero = np.flatnonzero(np.isneginf(y))
    if not zero.size:
        return []
    return [
        go.Scatter(
            x=np.full(zero.size, left),
            y=[rows.categories[int(i)] for i in zero],
            mode="markers",
            marker={"symbol": "circle-open-dot", "size": 8, "color": NEUTRAL, "line": {"width": 1.5}},
            cliponaxis=False,
            name="gradient exactly 0",
            hovertemplate="<b>%{y}</b><br>the gradient is exactly 0<extra></extra>",
            showlegend=True,
        )
    ]


def _lay_out(fig: go.Figure, rows: Rows, reach: float) -> None:
    step = 3.0 if reach <= 12 else 10.0 * math.ceil(reach / 60)
    count = int(reach // step)
    ticks = [step * k for k in range(-count, count + 1)]
    fig.update_layout(
        xaxis={
            "range": [-reach, reach],
            "tickvals": ticks,
            "ticktext": [signed(t, 0) for t in ticks],
            "title": {"text": "decades from the median layer"},
            "zeroline": True,
            "zerolinewidth": 1.5,
            "fixedrange": True,
        },
        yaxis=rows.axis(),
        annotations=rows.annotations(rows.left_margin),
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        hovermode="closest",
    )


def _title(trace: Trace, look: int, chain: IntArray) -> str:
    lost = {group: bool(trace.nonfinite[group][look, chain].any()) for group in (Group.GRADIENT, Group.OUTPUT)}
    lost[Group.GRADIENT] |= lost[Group.OUTPUT]
    at = trace.log10_gradient[look, chain], trace.log10_signal[look, chain]
    gradient = _change(at[0], lost[Group.GRADIENT], "gradient", "towards the input", backward=True)
    signal = _change(at[1], lost[Group.OUTPUT], "signal", "towards the output", backward=False)
    sentence = f"{gradient}; {signal}"
    return sentence[0].upper() + sentence[1:]


def _change(y: FloatArray, bad: bool, what: str, way: str, *, backward: bool) -> str:
    if bad:
        return f"the {what} is not finite"
    finite = np.where(np.isfinite(y), y, np.nan)
    ahead, back = (fall_towards_input, fall_towards_output) if backward else (fall_towards_output, fall_towards_input)
    fall, rise = ahead(y), back(finite)
    if math.isnan(fall):
        return f"the {what} is not known in enough layers"
    if fall >= ZERO_DECADES:
        return f"the {what} is exactly zero at some layers"
    if max(fall, rise) < 0.1:
        return f"the {what} keeps its size"
    if max(fall, rise) < 1.0:
        return f"the {what} keeps its size within {decades(max(fall, rise))}"
    return f"the {what} {'loses' if fall >= rise else 'gains'} {decades(max(fall, rise))} {way}"
