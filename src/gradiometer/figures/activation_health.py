"""R7, what the units of each activation do: dead, saturated, or at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.rows import Rows, output_rows, pinned_look
from gradiometer.figures.scale import NEUTRAL, Margin, finish, nothing
from gradiometer.record.ledger import FloatArray, IntArray
from gradiometer.record.trace import Trace
from gradiometer.rules import dead_units, saturated_units
from gradiometer.types import Finding, Role

_TOP, _BOTTOM = 34, 54

_PARTS: Final = (
    ("dead", "#D55E00", "x", "zero on every recent example"),
    ("saturated", "#CC79A7", "/", "in the flat part"),
    ("active", "#6f9fc4", "", "on a slope"),
)
"""Name, colour, pattern (colour is never alone), meaning."""


def activation_health(trace: Trace, findings: Sequence[Finding] = (), step: int | None = None) -> go.Figure:
    """Share of each activation layer that is dead, saturated or active at the pinned step.

    Args:
        trace: the run.
        findings: not used; every figure takes the same arguments.
        step: the pinned step; by default the last look.
    """
    look = pinned_look(trace, step)
    chosen = trace.with_role(Role.ACTIVATION)
    if look < 0 or not chosen.size:
        return nothing("No activation layer was seen", "The network has none, or none that the probe could see.")
    rows = output_rows(trace, chosen)
    dead, saturated, active = shares(trace, look)
    if not np.isfinite(active[chosen]).any():
        return nothing(
            "The activations cannot be judged", "Their kind is neither rectified nor bounded, or nothing was measured."
        )
    fig = go.Figure([_bar(rows, _worst(rows, share), i) for i, share in enumerate((dead, saturated, active))])
    fig.add_trace(_unknown(rows, _worst(rows, active)))
    fig.update_layout(
        xaxis={
            "range": [0, 1],
            "tickvals": [0, 0.25, 0.5, 0.75, 1],
            "ticktext": ["0", "25 %", "50 %", "75 %", "100 %"],
            "title": {"text": "share of the layer"},
            "fixedrange": True,
        },
        yaxis=rows.axis(),
        barmode="stack",
        bargap=0.5 if len(rows) <= 6 else 0.2 if len(rows) <= 90 else 0.0,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        annotations=rows.annotations(rows.left_margin),
    )
    title = _title(trace, chosen, dead, saturated)
    alt = f"{title}. Stacked bars for {len(chosen)} activation layers at step {int(trace.steps[look])}."
    note = f"At step {int(trace.steps[look])}. Dead counts whole units, saturated and active count single values."
    note = f"{note} {rows.note}".strip()
    margin = Margin(rows.left_margin, 24, _TOP, _BOTTOM)
    return finish(fig, title=title, alt=alt, plot_height=rows.plot_height, margin=margin, note=note)


def shares(trace: Trace, look: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Dead, saturated and active share of every site at a look, shape (N,) each; NaN where neither is known.

    A unit can only be dead where zero is its flat part, and only saturate where it is bounded; what is not applicable
    counts as none. Active is what is left.
    """
    dead = np.clip(trace.dead_share[look], 0.0, 1.0)
    saturated = np.clip(trace.saturated_share[look], 0.0, 1.0)
    known = np.isfinite(dead) | np.isfinite(saturated)
    dead, saturated = np.nan_to_num(dead), np.nan_to_num(saturated)
    saturated = np.minimum(saturated, 1.0 - dead)
    return (
        np.where(known, dead, np.nan),
        np.where(known, saturated, np.nan),
        np.where(known, 1.0 - dead - saturated, np.nan),
    )


def _worst(rows: Rows, share: FloatArray) -> FloatArray:
    """Per row the mean share: the parts of a bar must add up to one."""
    out = np.full(len(rows), np.nan)
    for i, row in enumerate(rows.rows):
        part = share[list(row.sites)]
        if np.isfinite(part).any():
            out[i] = float(np.nanmean(part))
    return out


def _bar(rows: Rows, share: FloatArray, part: int) -> go.Bar:
    name, colour, pattern, meaning = _PARTS[part]
    return go.Bar(
        x=share,
        y=rows.categories,
        orientation="h",
        name=f"{name}: {meaning}",
        marker={
            "color": colour,
            "pattern": {"shape": pattern, "bgcolor": colour, "fgcolor": "#ffffff", "size": 6, "solidity": 0.3},
            "line": {"width": 0},
        },
        hovertemplate=f"<b>%{{y}}</b><br>{name} %{{x:.1%}}<extra></extra>",
    )


def _unknown(rows: Rows, active: FloatArray) -> go.Scatter:
    index = [i for i, row in enumerate(rows.rows) if not row.heading and np.isnan(active[i])]
    return go.Scatter(
        x=[0.01] * len(index),
        y=[rows.categories[i] for i in index],
        mode="text",
        text=["not measured"] * len(index),
        textposition="middle right",
        textfont={"size": 10, "color": NEUTRAL},
        hoverinfo="skip",
        showlegend=False,
        name="not measured",
    )


def _title(trace: Trace, chosen: IntArray, dead: FloatArray, saturated: FloatArray) -> str:
    sick: list[str] = []
    parts = (
        ("dead", dead[chosen], dead_units.WARN_SHARE),
        ("saturated", saturated[chosen], saturated_units.WARN_SHARE),
    )
    for word, share, limit in parts:
        with np.errstate(invalid="ignore"):
            over = int(np.count_nonzero(share >= limit))
        if over:
            worst = trace.sites[int(chosen[int(np.nanargmax(share))])].name
            top = f"{100 * float(np.nanmax(share)):.0f}\u00a0% of {worst} is {word}"
            sick.append(
                top + (f", and {over} of {len(chosen)} activations are over {100 * limit:.0f}\u00a0%" if over > 1 else "")
            )
    if sick:
        return "; ".join(sick)
    tops = [f"{100 * float(np.nanmax(share)):.0f}\u00a0% {word}" for word, share, _ in parts if np.isfinite(share).any()]
    return f"No layer is mostly dead or saturated: at most {' and '.join(tops)}"
