"""A page of the lab that costs nothing, for tests of what serves, draws and exports pages."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from gradiometer.app.scene import Choice, Exhibit, Frame, LabPage, Preset, Question, Scene, Slider, State, Toggle, ladder
from gradiometer.figures.scale import LINES, Margin, finish, nothing
from gradiometer.figures.tables import Table

POINTS = 21
EVIL = "<img src=x onerror=alert(1)>"


def figure(y: list[float], title: str) -> go.Figure:
    x = [i / (POINTS - 1) for i in range(POINTS)]
    fig = go.Figure(
        [
            go.Scatter(x=x, y=y, line={"color": LINES[0]}, showlegend=False),
            go.Scatter(x=x[-1:], y=y[-1:], mode="markers", marker={"color": LINES[1], "size": 12}, showlegend=False),
        ]
    )
    fig.update_xaxes(title_text="time, s")
    fig.update_yaxes(title_text="height, m")
    return finish(fig, title=title, alt=f"{title}.", plot_height=200, margin=Margin(60, 20, 10, 50), note=EVIL)


def show(state: State) -> Scene:
    wave = math.sin if state["kind"] == "sine" else math.cos
    y = [(2.0 if state["big"] else 1.0) * wave(float(state["rate"]) * i / (POINTS - 1)) for i in range(POINTS)]
    lines = tuple((f"{i / (POINTS - 1):.2f}", f"{value:.4g}") for i, value in enumerate(y))
    table = Table("height over time", ("time", "height"), lines)
    frames = tuple(
        Frame(f"moment {i}: {value:.3f}", {"wave": {1: {"x": [i / (POINTS - 1)], "y": [value], "marker.size": 5 + i}}})
        for i, value in enumerate(y)
    )
    empty = nothing("Nothing here", "There is nothing to see with a cosine.")
    return Scene(
        (
            Exhibit("wave", "Wave", figure(y, f"It ends at {y[-1]:.4g}"), table, "Read it from the left."),
            Exhibit("again", "The same", empty if state["kind"] == "cosine" else figure(y, EVIL), table, half=True),
        ),
        (f"`y(1)` = {y[-1]:.6g}", EVIL),
        frames,
    )


def page(name: str, number: int = 1) -> LabPage:
    return LabPage(
        name=name,
        number=f"L{number}",
        title=f"Page {number}",
        summary="A wave.",
        law=("The law is `y = sin(rate t)`.",),
        question=Question("Where does it end?", ("Above 0.5", "At 0"), 0, "The sine of 1 is `0.84`."),
        controls=(
            Slider("rate", "Rate", ladder(1.0, 5.0, 9), 1.0, "1/s", "How fast."),
            Choice("kind", "Kind", (("sine", "Sine"), ("cosine", "Cosine")), "sine"),
            Toggle("big", "Twice as big", False),
        ),
        presets=(
            Preset("fast", "Fast", {"rate": 5.0}, "It ends below 0."),
            Preset("between", "Between", {"rate": 2.5, "big": True}, "It ends above 1."),
        ),
        show=show,
        exported={"rate": (1.0, 5.0), "kind": ("sine", "cosine")},
    )
