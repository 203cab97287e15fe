"""Draw docs/images/forecast.png and .svg from benchmarks/results/forecast.json.

    python docs/forecast_study.py

Needs the ``dev`` extra and Debian's chromium.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gradiometer.figures.scale import FONT, template

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "forecast.json"
WIDTH, HEIGHT = 900, 760
INK = "#20242c"
HALVES = (("building", "looked at while building"), ("blind", "judged blind"))
KINDS = (("trained", False, "#0072B2", "circle"), ("did not train", True, "#D55E00", "diamond"))
OUTSIDE = 2.4
"""Half intervals at which a point that is further off is drawn."""


def judged(document: dict[str, Any]) -> str:
    """The half whose numbers count: the blind one, as soon as it was run."""
    return "blind" if "blind" in document["halves"] else "building"


def conclusion(document: dict[str, Any]) -> str:
    """The title: how far theory is off, and how honest its interval is."""
    half = judged(document)
    gain = document["halves"][half]["groups"]["all"]["gain"]
    values = [row["gain"]["measured"] for row in document["rows"] if row["half"] == half]
    known = [value for value in values if value is not None]
    wide, error, inside = max(known) - min(known), gain["median error"], 100 * gain["inside"]
    off_by = f"Over {wide:.0f} decades of gain the forecast is off by {error:.2f} decades (median)"
    return f"{off_by}; its 90 % interval holds {inside:.0f} %"


def off(gain: dict[str, float]) -> float:
    """Measured less predicted, in half widths of the interval."""
    return (gain["measured"] - gain["predicted"]) / ((gain["high"] - gain["low"]) / 2)


def drawn(document: dict[str, Any], half: str) -> list[dict[str, Any]]:
    """The rows of a half that have two finite numbers to compare."""
    rows = [row for row in document["rows"] if row["half"] == half]
    return [row for row in rows if None not in (row["gain"]["measured"], row["gain"]["predicted"])]


def figure(document: dict[str, Any]) -> go.Figure:
    """Measured against predicted gain for each half, and below by how much of its interval each network is off."""
    halves = [(half, title) for half, title in HALVES if half in document["halves"]]
    fig = make_subplots(
        rows=2,
        cols=len(halves),
        shared_xaxes=True,
        shared_yaxes=True,
        row_heights=[0.62, 0.38],
        vertical_spacing=0.05,
        horizontal_spacing=0.04,
        subplot_titles=[f"{title}: {document['halves'][half]['groups']['all']['n']} networks" for half, title in halves],
    )
    everything = [value for half, _ in halves for row in drawn(document, half) for value in ends(row)]
    span = [min(everything) - 1.5, max(everything) + 1.5]
    for column, (half, _) in enumerate(halves, start=1):
        fig.add_scatter(
            x=span, y=span, mode="lines", line={"color": "#9aa0aa", "width": 1}, showlegend=False, row=1, col=column
        )
        fig.add_hrect(
            y0=-1, y1=1, fillcolor="#e4e6ea", line_width=0, layer="below", row=2, col=column, exclude_empty_subplots=False
        )
        for name, sick, colour, symbol in KINDS:
            mine = [row for row in drawn(document, half) if row["sick"] == sick]
            for inside in (True, False):
                part = [row for row in mine if row["gain"]["inside"] == inside]
                add(fig, part, column, f"{name}{'' if inside else ', outside the interval'}", marker(colour, symbol, inside))
    for text in fig.layout.annotations:
        text.update(font={"size": 13, "color": INK})
    fig.update_layout(
        template=template("light"),
        title={"text": conclusion(document), "y": 0.98, "yanchor": "top", "font": {"size": 16}},
        width=WIDTH,
        height=HEIGHT,
        margin={"l": 80, "r": 20, "t": 80, "b": 100},
        font={"family": FONT},
        paper_bgcolor="#ffffff",
        legend={"x": 0.5, "xanchor": "center", "y": -0.1, "yanchor": "top", "orientation": "h", "font": {"size": 12}},
    )
    fig.update_xaxes(range=span, ticks="outside", zeroline=False)
    fig.update_yaxes(ticks="outside", zeroline=False)
    fig.update_xaxes(title={"text": "predicted log<sub>10</sub> gain, head to first layer (decades)"}, row=2)
    fig.update_yaxes(range=span, row=1)
    fig.update_yaxes(range=[-OUTSIDE - 0.25, OUTSIDE + 0.25], tickvals=[-2, -1, 0, 1, 2], row=2)
    fig.update_yaxes(title={"text": "measured log<sub>10</sub> gain (decades)"}, row=1, col=1)
    fig.update_yaxes(title={"text": "measured − predicted<br>(half widths of the interval)"}, row=2, col=1)
    return fig


def ends(row: dict[str, Any]) -> tuple[float, float]:
    """Both coordinates of a point."""
    return row["gain"]["measured"], row["gain"]["predicted"]


def marker(colour: str, symbol: str, inside: bool) -> dict[str, Any]:
    """Open for what the interval holds, filled with a black line for what it does not."""
    if inside:
        return {"color": colour, "symbol": f"{symbol}-open", "size": 7, "line": {"width": 1.3}, "opacity": 0.8}
    return {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": INK}}


def add(fig: go.Figure, rows: Sequence[dict[str, Any]], column: int, name: str, look: dict[str, Any]) -> None:
    """The same networks in both panels of a column."""
    x = [row["gain"]["predicted"] for row in rows]
    above = [row["gain"]["measured"] for row in rows]
    below = [min(max(off(row["gain"]), -OUTSIDE), OUTSIDE) for row in rows]
    for place, y in ((1, above), (2, below)):
        shown = place == 1 and column == 1
        fig.add_scatter(
            x=x, y=y, mode="markers", marker=look, name=name, legendgroup=name, showlegend=shown, row=place, col=column
        )


def main() -> None:
    """Draw it."""
    from screenshots import draw

    draw(figure(json.loads(RESULTS.read_text(encoding="utf-8"))), "forecast", (WIDTH, HEIGHT), ".scatterlayer .point")


if __name__ == "__main__":
    main()
