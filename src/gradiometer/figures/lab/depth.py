"""Along depth: signal, gradient and likeness of two inputs in real random networks, beside the theory of wide ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.scale import DASHES, LINES, NEUTRAL, Margin, factor, finish
from gradiometer.figures.tables import Table, plain
from gradiometer.record.ledger import FloatArray

if TYPE_CHECKING:
    from gradiometer.lab.depth import DeepNetwork, Expected, Sampled, Summary

HEIGHT: Final = 540
_GAP: Final = 0.07
_PANELS: Final = (
    ("Signal: log₁₀ of its variance", "decades"),
    ("Gradient: log₁₀ of its variance, last layer = 0", "decades"),
    ("Likeness: correlation of two inputs", "correlation"),
)
_BAND: Final = "rgba(0,114,178,0.2)"
_LIMITS: Final = 2.0
"""Standard deviations on either side that theory's limits stand at: about 95 % of networks lie between them."""
_LINES_OF_TABLE: Final = 60
_KEPT: Final = 1.0
"""Decades of the norm within which a gradient counts as kept."""
_ALIKE: Final = 0.999


def depth_figure(network: DeepNetwork, sampled: Sampled, expected: Expected, summary: Summary) -> go.Figure:
    """Three aligned panels: signal, gradient, correlation. Line and band: networks; dashed: theory; dotted: finite width.

    Traces, per panel: band, median, theory; then the two limits of the gradient at finite width.
    """
    fig = go.Figure()
    x = np.arange(network.depth + 1)
    parts = (
        (sampled.signal, expected.signal),
        (sampled.gradient, expected.gradient),
        (sampled.correlation, expected.correlation),
    )
    for panel, (measured, theory) in enumerate(parts):
        _add_panel(fig, panel, x, measured, theory)
    for sign in (-1.0, 1.0):
        limit = expected.middle + sign * _LIMITS * expected.deviation
        known = np.isfinite(limit)
        fig.add_trace(
            go.Scatter(
                x=x[known],
                y=_short(limit[known]),
                yaxis="y2",
                mode="lines",
                line={"color": LINES[1], "width": 1.3, "dash": "dot"},
                name="theory at this width, 95 %",
                hoverinfo="skip",
                showlegend=False,
            )
        )
    _lay_out(fig, parts, expected, network.depth)
    title = _title(network, summary)
    alt = f"{title}. Three line charts over {network.depth} layers: signal, gradient, correlation of two inputs."
    return finish(fig, title=title, alt=alt, plot_height=HEIGHT, margin=Margin(60, 16, 30, 46), note=_note(network, sampled))


def _short(values: FloatArray) -> FloatArray:
    """Few digits, and NaN where there is no number: the payload."""
    return np.where(np.isfinite(values), np.round(values, 4), np.nan)


def _add_panel(fig: go.Figure, panel: int, x: np.ndarray[Any, Any], measured: FloatArray, theory: FloatArray) -> None:
    known = np.isfinite(measured).all(axis=0)
    low, middle, high = (f(measured[:, known], axis=0) for f in (np.min, np.median, np.max))
    at = x[known]
    axis = {"yaxis": f"y{panel + 1}" if panel else "y"}
    unit = _PANELS[panel][1]
    fig.add_traces(
        [
            go.Scatter(
                x=np.concatenate([at, at[::-1]]),
                y=_short(np.concatenate([low, high[::-1]])),
                mode="lines",
                fill="toself",
                fillcolor=_BAND,
                line={"width": 0},
                name="networks, lowest to highest",
                hoverinfo="skip",
                showlegend=panel == 0,
                **axis,
            ),
            go.Scatter(
                x=at,
                y=_short(middle),
                mode="lines",
                line={"color": LINES[0], "width": 2.5},
                name="median network",
                hovertemplate=f"layer %{{x}}<br>measured %{{y:.3f}} {unit}<extra></extra>",
                showlegend=panel == 0,
                **axis,
            ),
            go.Scatter(
                x=x,
                y=_short(theory),
                mode="lines",
                line={"color": LINES[1], "width": 2.5, "dash": DASHES[1]},
                name="theory, infinite width",
                hovertemplate=f"layer %{{x}}<br>theory %{{y:.3f}} {unit}<extra></extra>",
                showlegend=panel == 0,
                **axis,
            ),
        ]
    )


def _lay_out(fig: go.Figure, parts: tuple[tuple[FloatArray, FloatArray], ...], expected: Expected, depth: int) -> None:
    height = (1.0 - 2 * _GAP) / 3
    layout: dict[str, Any] = {}
    for panel, (measured, theory) in enumerate(parts):
        top = 1.0 - panel * (height + _GAP)
        everything = [measured.ravel(), theory]
        if panel == 1:
            everything += [expected.middle + s * _LIMITS * expected.deviation for s in (-1.0, 1.0)]
        layout["yaxis" if panel == 0 else f"yaxis{panel + 1}"] = {
            "domain": [max(0.0, top - height), top],
            "anchor": "x",
            "title": {"text": _PANELS[panel][1], "standoff": 4},
            "range": _range(np.concatenate(everything), panel),
            "nticks": 5,
            "fixedrange": True,
        }
    fig.update_layout(
        xaxis={"title": {"text": "layer (0: input)"}, "range": [0, depth], "anchor": "y3", "nticks": 9, "fixedrange": True},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": -46 / HEIGHT, "yanchor": "top", "xanchor": "left"},
        **layout,
    )
    for panel, (heading, _) in enumerate(_PANELS):
        fig.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=1.0 - panel * (height + _GAP),
            yref="paper",
            yanchor="bottom",
            text=f"<b>{heading}</b>",
            showarrow=False,
            font={"size": 12},
        )
    _label(fig, parts[0], depth)
    fig.add_shape(type="line", x0=0, x1=depth, y0=0, y1=0, yref="y2", line={"color": NEUTRAL, "width": 1})


def _range(values: FloatArray, panel: int) -> list[float]:
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    if panel == 2:
        return [min(-0.1, low - 0.05), 1.08]
    room = max(0.4, 0.08 * (high - low))
    return [low - room, high + room]


def _label(fig: go.Figure, part: tuple[FloatArray, FloatArray], depth: int) -> None:
    """Say beside the lines what they are."""
    measured, theory = np.median(part[0], axis=0), part[1]
    for share, values, other, text, colour in (
        (0.3, measured, theory, "networks", LINES[0]),
        (0.7, theory, measured, "theory", LINES[1]),
    ):
        at = round(share * depth)
        if math.isfinite(float(values[at])):
            above = float(values[at]) >= float(other[at]) if colour == LINES[0] else float(values[at]) > float(other[at])
            fig.add_annotation(
                x=at,
                y=float(values[at]),
                text=f"<span style='color:{colour}'>{'━' if colour == LINES[0] else '╍'}</span> {text}",
                showarrow=False,
                yshift=12 if above else -12,
                font={"size": 12},
            )


def _title(network: DeepNetwork, summary: Summary) -> str:
    alike = (
        "two inputs have become one"
        if summary.correlation > _ALIKE
        else f"two inputs end at correlation {summary.correlation:.2f}"
    )
    layers = f"{network.depth} layers"
    if not math.isfinite(summary.measured):
        return f"The gradient is exactly zero or no number after {layers}, and {alike}"
    if abs(summary.measured) < _KEPT:
        return f"The gradient keeps its size ({factor(summary.measured)} over {layers}), and {alike}"
    word = "vanishes" if summary.measured < 0 else "explodes"
    return f"The gradient {word}: {factor(summary.measured)} over {layers} (theory {factor(summary.expected)}), and {alike}"


def _note(network: DeepNetwork, sampled: Sampled) -> str:
    seeds = sampled.signal.shape[0]
    text = f"Line and band: median, lowest and highest of {seeds} random networks of {network.width} units. "
    if network.norm == "none" and not network.skip:
        return text + (
            "Dotted: where theory expects 95 % of networks of this width; to first order in depth / width, and too narrow "
            "where the signal is still on its way to its final size."
        )
    return text + "Theory has no limits for finite width with a normalisation or a skip connection, so none are drawn."


def depth_table(sampled: Sampled, expected: Expected) -> Table:
    """Median, lowest and highest network, and theory, at each layer (thinned evenly)."""
    last = sampled.signal.shape[1] - 1
    layers = np.unique(np.linspace(0, last, min(last + 1, _LINES_OF_TABLE)).round().astype(int)).tolist()
    columns = ["layer"]
    for name in ("log10 signal", "log10 gradient", "correlation"):
        columns += [f"{name}, median", "lowest", "highest", "theory"]
    lines: list[tuple[str, ...]] = []
    for k in layers:
        line = [str(k)]
        for measured, theory in (
            (sampled.signal, expected.signal),
            (sampled.gradient, expected.gradient),
            (sampled.correlation, expected.correlation),
        ):
            column = measured[:, k]
            line += [plain(float(f(column))) for f in (np.median, np.min, np.max)] + [plain(float(theory[k]))]
        lines.append(tuple(line))
    left = f", {len(layers)} of {last + 1} layers" if len(layers) <= last else ""
    return Table(
        f"Variances and correlation along depth, {sampled.signal.shape[0]} networks and theory{left}",
        tuple(columns),
        tuple(lines),
    )
