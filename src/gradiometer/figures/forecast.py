"""Figures of a check: what theory expects at every layer, with its interval, beside what the first pass measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.rows import MAX_ROWS, Row, Rows, band
from gradiometer.figures.scale import DASHES, LINES, NEUTRAL, Margin, decades, finish, nothing
from gradiometer.figures.tables import MAX_LINES, Table
from gradiometer.preflight.result import LayerForecast, Preflight
from gradiometer.record.depth import ZERO_DECADES, fall_towards_input, fall_towards_output
from gradiometer.record.ledger import FloatArray
from gradiometer.theory.forecast import Band

TOP, BOTTOM = 34, 54
_THEORY: Final = "rgba(125,131,141,0.28)"

Choose = Callable[[LayerForecast], tuple[Band, float]]


def gradient_forecast(preflight: Preflight) -> go.Figure:
    """Gradient of each layer at the first step: measured (line), expected (dashed) and the 90 % interval (band)."""
    layers = _main(preflight)
    if len(layers) < 2:
        return nothing("No layer can be compared with another", "Fewer than two outputs with a gradient were seen.")
    y = np.array([layer.measured_gradient for layer in layers])
    title = _gradient_title(y, preflight)
    parts: list[tuple[str, Choose, int]] = [("gradient", lambda layer: (layer.gradient, layer.measured_gradient), 0)]
    return _draw(layers, parts, "log10 of the L2 norm of the gradient", title)


def signal_forecast(preflight: Preflight) -> go.Figure:
    """Signal of each layer at the first step, and the share of it that differs from one input to another."""
    layers = _main(preflight)
    if len(layers) < 2:
        return nothing("No layer can be compared with another", "Fewer than two outputs were seen.")
    apart = np.array([layer.measured_apart for layer in layers])
    known = apart[np.isfinite(apart)]
    title = "The signal of each layer, and how much of it differs between inputs"
    if known.size:
        left = float(known[-1])
        title = f"At the end {_percent(left)} of the signal differs from one input to another"
    parts: list[tuple[str, Choose, int]] = [
        ("signal", lambda layer: (layer.signal, layer.measured_signal), 1),
        ("differs between inputs", lambda layer: (layer.apart, layer.measured_apart), 2),
    ]
    rounding = "What differs by less than about 10⁻¹⁴ is rounding."
    return _draw(layers, parts, "log10 of the rms signal, and of the share that differs", title, rounding)


def forecast_table(preflight: Preflight) -> Table:
    """Every layer: measured and expected gradient, signal and difference."""
    layers = preflight.layers[:MAX_LINES]
    left_out = f"; the first {MAX_LINES} of {len(preflight.layers)}" if len(preflight.layers) > MAX_LINES else ""
    lines = [
        (
            layer.name,
            layer.kind,
            _cell(layer.measured_gradient),
            _interval(layer.gradient),
            _cell(layer.measured_signal),
            _interval(layer.signal),
            _cell(layer.measured_apart),
            _interval(layer.apart),
            "theory" if layer.covered else "measured gain",
        )
        for layer in layers
    ]
    columns = ("layer", "kind", "gradient", "expected", "signal", "expected", "differs", "expected", "by")
    return Table(
        f"log10 of gradient, signal and share that differs between inputs; 90 % intervals{left_out}", columns, tuple(lines)
    )


def _main(preflight: Preflight) -> list[LayerForecast]:
    """Layers of the network that is judged worst, else of the longest one."""
    if not preflight.layers:
        return []
    wanted = {name for finding in preflight.findings[:1] for name in finding.sites}
    chains = [layer.chain for layer in preflight.layers]
    chain = next((layer.chain for layer in preflight.layers if layer.name in wanted), max(set(chains), key=chains.count))
    return [layer for layer in preflight.layers if layer.chain == chain]


def _rows(layers: Sequence[LayerForecast]) -> Rows:
    per_row = max(1, math.ceil(len(layers) / MAX_ROWS))
    rows = [
        Row(
            layers[start].name
            if per_row == 1
            else f"{layers[start].name} … {layers[min(start + per_row, len(layers)) - 1].name}",
            layers[start].name,
            tuple(range(start, min(start + per_row, len(layers)))),
            layers[start].chain,
        )
        for start in range(0, len(layers), per_row)
    ]
    return Rows(tuple(rows), per_row)


def _draw(
    layers: Sequence[LayerForecast], parts: Sequence[tuple[str, Choose, int]], axis: str, title: str, note: str = ""
) -> go.Figure:
    rows = _rows(layers)
    fig = go.Figure()
    for name, choose, colour in parts:
        pairs = [choose(layer) for layer in layers]
        low, high, middle = (np.array([getattr(band, end) for band, _ in pairs]) for end in ("low", "high", "middle"))
        measured = np.array([value for _, value in pairs])
        low, high, middle, measured = (rows.furthest(v) for v in (low, high, middle, measured))
        fig.add_traces(_band(rows, low, high, name))
        fig.add_trace(_line(rows, middle, f"{name}, expected", NEUTRAL, "dash", 1.5))
        fig.add_trace(
            _line(rows, measured, f"{name}, measured", LINES[colour], DASHES[colour] if colour != 1 else "solid", 2.5)
        )
    fig.update_layout(
        xaxis={"title": {"text": axis}, "fixedrange": True},
        yaxis=rows.axis(),
        annotations=rows.annotations(rows.left_margin),
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        hovermode="closest",
    )
    return finish(
        fig,
        title=title,
        alt=f"{title}. Line chart along {len(layers)} outputs, from input to output, measured and expected.",
        plot_height=rows.plot_height,
        margin=Margin(rows.left_margin, 14, TOP, BOTTOM),
        note="Dashed: mean-field theory. Grey band: where 90 of 100 such networks are expected. " + f"{note} {rows.note}",
    )


def _stretches(known: Sequence[bool]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for i, there in enumerate(known):
        if there:
            found[-1].append(i)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def _band(rows: Rows, low: FloatArray, high: FloatArray, name: str) -> list[go.Scatter]:
    known = np.isfinite(low) & np.isfinite(high)
    return [band(rows, run, low, high, f"{name}, 90 % interval", _THEORY) for run in _stretches(known.tolist())]


def _line(rows: Rows, y: FloatArray, name: str, colour: str, dash: str, width: float) -> go.Scatter:
    known = np.isfinite(y)
    few = len(rows) <= 60 and dash == "solid"
    return go.Scatter(
        x=np.where(known, y, np.nan),
        y=rows.categories,
        mode="lines+markers" if few else "lines",
        connectgaps=False,
        line={"color": colour, "width": width, "dash": dash},
        marker={"size": 4},
        name=name,
        hovertemplate=f"<b>%{{y}}</b><br>{name}: %{{x:.2f}}<extra></extra>",
    )


def _gradient_title(y: FloatArray, preflight: Preflight) -> str:
    fall, rise = fall_towards_input(y), fall_towards_output(np.where(np.isfinite(y), y, np.nan))
    agree = preflight.agree
    theory = f"; theory agrees at {100 * agree:.0f} % of the layers" if math.isfinite(agree) else ""
    if math.isnan(fall):
        return f"The gradient is known in too few layers{theory}"
    if fall >= ZERO_DECADES:
        return f"The gradient is exactly zero at some layers{theory}"
    if max(fall, rise) < 1.0:
        return f"The gradient keeps its size within {decades(max(fall, rise))}{theory}"
    return f"The gradient {'loses' if fall >= rise else 'gains'} {decades(max(fall, rise))} towards the input{theory}"


def _percent(log10: float) -> str:
    value = 100.0 * 10.0**log10
    return f"{value:.2g} %" if value >= 0.01 else f"10^{log10:.0f}"


def _cell(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "0" if value == -math.inf else "not finite" if value == math.inf else f"{value:.2f}"


def _interval(band: Band) -> str:
    if not band.known:
        return "–"
    return "0" if band.middle == -math.inf else f"{band.low:.2f} to {band.high:.2f}"
