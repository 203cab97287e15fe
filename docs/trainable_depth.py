"""Draw docs/images/trainable-depth.png and .svg from benchmarks/results/trainable_depth.json.

    python docs/trainable_depth.py

Needs the ``dev`` extra and Debian's chromium.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from gradiometer.figures.scale import FONT, template

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "trainable_depth.json"
WIDTH, HEIGHT = 900, 560
PALE_TO_BLUE = [(0.0, "#f6f1e7"), (0.1, "#f6f1e7"), (0.4, "#c3d3dd"), (0.7, "#86b3cf"), (1.0, "#4a90bd")]
"""Light all through, so that a black line is seen on every accuracy; chance is the palest."""
INK = "#20242c"


def conclusion(document: dict[str, Any]) -> str:
    """The title: at how many ξ_c training gives out."""
    ends = [row["half_depth"] / row["xi_c"] for row in document["rows"] if row["half_depth"]]
    sides = {row["side"] for row in document["rows"] if row["half_depth"]}
    where = "on both sides of the edge of chaos" if {"ordered", "chaotic"} <= sides else "on one side of the edge of chaos"
    return f"Training gives out at {min(ends):.0f} to {max(ends):.0f} ξ<sub>c</sub>, {where}"


def between(values: Sequence[float], logarithmic: bool) -> list[float]:
    """Edges of cells: half way between their centres, and as far again at the ends."""
    at = [math.log(v) for v in values] if logarithmic else list(values)
    inner = [(a + b) / 2 for a, b in itertools.pairwise(at)]
    edges = [2 * at[0] - inner[0], *inner, 2 * at[-1] - inner[-1]]
    return [math.exp(e) for e in edges] if logarithmic else edges


def clear_place(
    cell: tuple[tuple[float, float], tuple[float, float]],
    curve: Sequence[tuple[float, float]],
    width: tuple[float, float],
    height: tuple[float, float],
) -> tuple[float, float]:
    """Where the number of a cell stands: in its middle, or off it where the curve would cross it."""
    (left, right), (low, high) = cell

    def pixels(x: float, y: float) -> tuple[float, float]:
        across, up = (x - width[0]) / (width[1] - width[0]), math.log(y / height[0]) / math.log(height[1] / height[0])
        return across * (WIDTH - 180), up * (HEIGHT - 180)

    def distance(x: float, y: float) -> float:  # a number is twice as wide as it is high
        here = pixels(x, y)
        return min(math.hypot((a - here[0]) / 2, b - here[1]) for a, b in (pixels(*point) for point in curve))

    shares = [(0.5, 0.5), (0.5, 0.22), (0.5, 0.78), (0.72, 0.5), (0.28, 0.5), (0.72, 0.22), (0.28, 0.22), (0.28, 0.78)]
    options = [(left + u * (right - left), low * (high / low) ** v) for u, v in shares]
    return next((option for option in options if distance(*option) > 13), max(options, key=lambda o: distance(*o)))


def figure(document: dict[str, Any]) -> go.Figure:
    """Accuracy over weight variance and depth, with 6 ξ_c as a black line."""
    variances = sorted({cell["sigma_w2"] for cell in document["cells"]})
    depths = sorted({cell["depth"] for cell in document["cells"]})
    means = {(c["depth"], c["sigma_w2"]): sum(c["accuracies"]) / len(c["accuracies"]) for c in document["cells"]}
    x, y = between(variances, logarithmic=False), between(depths, logarithmic=True)
    fig = go.Figure(
        go.Heatmap(
            x=x,
            y=y,
            z=[[means[d, s] for s in variances] for d in depths],
            zmin=0.0,
            zmax=1.0,
            colorscale=PALE_TO_BLUE,
            colorbar={
                "title": {"text": "training<br>accuracy<br>&nbsp;"},
                "thickness": 14,
                "outlinewidth": 0,
                "tickformat": ".1f",
            },
        )
    )
    curve = [(s, 6 * xi) for s, xi in document["xi_c"] if x[0] <= s <= x[-1]]
    places = [
        (*clear_place(cell, curve, (x[0], x[-1]), (y[0], y[-1])), means[d, s])
        for d, low, high in zip(depths, y[:-1], y[1:], strict=True)
        for s, cell in zip(variances, (((a, b), (low, high)) for a, b in itertools.pairwise(x)), strict=True)
    ]
    fig.add_scatter(
        x=[place[0] for place in places],
        y=[place[1] for place in places],
        text=[f"{place[2]:.2f}" for place in places],
        mode="text",
        textfont={"size": 11, "color": INK},
        showlegend=False,
    )
    critical = max(curve, key=lambda point: point[1])[0]
    fig.add_scatter(
        x=[s for s, _ in curve],
        y=[depth for _, depth in curve],
        mode="lines",
        line={"color": "#ffffff", "width": 6},
        showlegend=False,
    )
    fig.add_scatter(
        x=[s for s, _ in curve],
        y=[depth for _, depth in curve],
        mode="lines",
        line={"color": "#000000", "width": 2.5},
        name="6 ξ<sub>c</sub>, mean-field theory",
    )
    for text, place, anchor in (("◂ ordered", -8, "right"), ("edge of chaos", 0, "center"), ("chaotic ▸", 8, "left")):
        fig.add_annotation(
            x=critical,
            xshift=place + {"right": -42, "center": 0, "left": 42}[anchor],
            y=1,
            yref="paper",
            yanchor="bottom",
            xanchor=anchor,
            text=text,
            showarrow=False,
            font={"size": 12, "color": INK},
        )
    fig.update_layout(
        template=template("light"),
        title={"text": conclusion(document), "y": 0.97, "yanchor": "top", "font": {"size": 17}},
        width=WIDTH,
        height=HEIGHT,
        margin={"l": 70, "r": 20, "t": 80, "b": 70},
        font={"family": FONT},
        paper_bgcolor="#ffffff",
        legend={"x": 1, "xanchor": "right", "y": -0.12, "yanchor": "top", "orientation": "h", "font": {"size": 12}},
        xaxis={
            "title": {"text": "variance of the weights σ<sub>w</sub>², with σ<sub>b</sub>² = 0.05"},
            "range": [x[0], x[-1]],
            "tickvals": variances,
            "ticks": "outside",
            "showgrid": False,
        },
        yaxis={
            "title": {"text": "depth: hidden tanh layers (logarithmic)"},
            "type": "log",
            "range": [math.log10(y[0]), math.log10(y[-1])],
            "tickvals": depths,
            "ticks": "outside",
            "showgrid": False,
        },
    )
    return fig


def main() -> None:
    """Draw it."""
    from screenshots import draw

    draw(figure(json.loads(RESULTS.read_text(encoding="utf-8"))), "trainable-depth", (WIDTH, HEIGHT), ".heatmaplayer image")


if __name__ == "__main__":
    main()
