"""The explorer in the mountains: the map with fog, compass and harness; the ground in three dimensions; height and slope.

``*_moment`` gives what of a figure changes at a step, for step, play and scrub.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.lab.descent import Patches, plain
from gradiometer.figures.scale import DASHES, LINES, NEUTRAL, Margin, decades, finish, number
from gradiometer.figures.tables import Table
from gradiometer.record.ledger import FloatArray
from gradiometer.words import counted

if TYPE_CHECKING:
    from gradiometer.lab.explorer import Ground, Walk

MAP_HEIGHT: Final = 360
_FOG: Final = [[0.0, "rgba(125,131,141,0)"], [1.0, "rgba(125,131,141,0.94)"]]
_NEEDLE: Final = 0.16
"""Longest needle as a share of the domain."""
_LIFT: Final = 0.015
"""The path floats above the ground by this share of its heights, so that the surface does not swallow it."""
_WHITE: Final = "#ffffff"
_DARK: Final = "#111111"
_ARROW: Final = {
    "symbol": "arrow",
    "angleref": "previous",
    "size": [0, 13],
    "color": _WHITE,
    "line": {"color": _DARK, "width": 1},
}


# ---- the map -------------------------------------------------------------------------------------------------------------


def map_figure(ground: Ground, walk: Walk, word: str, *, fog: bool) -> go.Figure:
    """Heights with contours, fog over what was not seen, the path, the compass needle, and the harness where it holds.

    Traces: heights, fog, path (a halo and the line), needle, the step that the harness allowed, the ghost of the step without
    it, the explorer.

    Args:
        ground: heights.
        walk: the walk.
        word: what became of it.
        fog: whether to draw the fog.
    """
    last = walk.path.taken
    fig = go.Figure()
    fig.add_trace(_heights(ground))
    fig.add_trace(
        go.Heatmap(
            x=walk.east,
            y=walk.north,
            **_fog(walk, last, fog),
            zmin=0,
            zmax=1,
            colorscale=_FOG,
            showscale=False,
            hoverinfo="skip",
            name="fog",
        )
    )
    moment = map_moment(walk, last, fog=fog)
    styles: tuple[dict[str, Any], ...] = (
        {"mode": "lines", "line": {"color": _WHITE, "width": 5}, "name": "path (halo)"},
        {
            "mode": "lines+markers",
            "line": {"color": _DARK, "width": 1.5},
            "marker": {"size": 3, "color": _DARK},
            "name": "path",
        },
        {
            "mode": "lines+markers",
            "line": {"color": _WHITE, "width": 3},
            "marker": {
                "symbol": "arrow",
                "angleref": "previous",
                "size": 13,
                "color": _WHITE,
                "line": {"color": _DARK, "width": 1},
            },
            "name": "compass needle (minus the gradient)",
        },
        {"mode": "lines", "line": {"color": LINES[3], "width": 6}, "name": "rope: the step that the harness allowed"},
        {
            "mode": "lines+markers",
            "line": {"color": LINES[1], "width": 2, "dash": DASHES[1]},
            "marker": {"symbol": "x-thin", "size": [0, 11], "line": {"width": 2.5, "color": LINES[1]}},
            "name": "ghost: the step without harness",
        },
        {
            "mode": "markers",
            "marker": {"size": 13, "color": LINES[1], "line": {"color": _WHITE, "width": 2}},
            "name": "explorer",
        },
    )
    for index, style in enumerate(styles, start=2):
        fig.add_trace(go.Scatter(**moment[index], **style, hoverinfo="skip", showlegend=False))
    fig.update_layout(
        xaxis={"title": {"text": "weight 1"}, "range": _span(ground.east), "fixedrange": True, "showgrid": False, "nticks": 6},
        yaxis={"title": {"text": "weight 2"}, "range": _span(ground.north), "fixedrange": True, "showgrid": False, "nticks": 6},
        hovermode="closest",
    )
    title = _where(ground, walk, word)
    note = (
        "Grey: not seen. White arrow: compass, minus the gradient; its length shows the logarithm of the slope. Thick bar: the "
        "step that the harness allowed; dashed to a cross: the ghost of the step without it."
    )
    alt = f"{title}. Map of the loss over two weights with the path of {counted(last, 'step')}."
    return finish(fig, title=title, alt=alt, plot_height=MAP_HEIGHT, margin=Margin(50, 66, 6, 46), note=note)


def map_moment(walk: Walk, step: int, *, fog: bool) -> Patches:
    """What of `map_figure` differs after a step; the fog only where it is drawn."""
    path, at = walk.path, min(step, walk.path.taken)
    place = path.positions[at]
    way = {"x": _short(path.positions[: at + 1, 0]), "y": _short(path.positions[: at + 1, 1])}
    held = at - 1 if at and bool(path.clipped[at - 1]) else -1
    rope: dict[str, Any] = {"x": [], "y": []}
    ghost: dict[str, Any] = {"x": [], "y": []}
    if held >= 0:
        before = path.positions[held]
        rope, ghost = _segment(before, before + path.moves[held]), _segment(before, before + path.unclipped[held])
    tip = place + walk.needles[at] * _NEEDLE * np.array([_width(side) for side in path.settings.landscape.domain])
    patches: Patches = {
        2: way,
        3: way,
        4: _segment(place, tip) if walk.needles[at].any() else {"x": [], "y": []},
        5: rope,
        6: ghost,
        7: {"x": _short(place[:1]), "y": _short(place[1:])},
    }
    return {1: _fog(walk, at, fog), **patches} if fog else patches


def _heights(ground: Ground) -> go.Contour:
    return go.Contour(
        x=ground.east.astype(np.float32),
        y=ground.north.astype(np.float32),
        z=ground.height.astype(np.float32),
        colorscale="Cividis",
        ncontours=18,
        line={"width": 0.7, "color": "rgba(255,255,255,0.55)"},
        colorbar={"title": {"text": "loss", "side": "top"}, "thickness": 10, "outlinewidth": 0, "nticks": 6, "x": 1.01},
        hovertemplate="weights %{x:.3g}, %{y:.3g}<br>loss %{z:.4g}<extra></extra>",
        name="loss",
    )


def _fog(walk: Walk, step: int, fog: bool) -> dict[str, Any]:
    lying = walk.fog(step) if fog else np.zeros_like(walk.seen_at)
    return {"z": lying.tolist()}


def _segment(begin: FloatArray, end: FloatArray) -> dict[str, Any]:
    return {"x": _short(np.array([begin[0], end[0]])), "y": _short(np.array([begin[1], end[1]]))}


def _span(side: FloatArray) -> list[float]:
    return [float(side[0]), float(side[-1])]


def _width(side: tuple[float, float]) -> float:
    return side[1] - side[0]


def _short(values: FloatArray) -> list[float]:
    """Five digits."""
    return [float(f"{v:.5g}") for v in values]


def _inside(walk: Walk, step: int) -> bool:
    return all(
        low <= float(x) <= high
        for x, (low, high) in zip(walk.path.positions[step], walk.path.settings.landscape.domain, strict=True)
    )


def _where(ground: Ground, walk: Walk, word: str) -> str:
    path = walk.path
    steps = counted(path.taken, "step")
    if path.lost:
        return f"{word.capitalize()}: the numbers end after {steps}"
    height = number(float(path.values[-1]))
    place = "" if _inside(walk, path.taken) else " outside the picture"
    seen = f"{word.capitalize()} at height {height}{place} after {steps}, with {100 * walk.seen:.0f} % of the ground seen"
    row, column = np.unravel_index(int(np.argmin(ground.height)), ground.height.shape)
    lowest = float(ground.height[row, column])
    if float(path.values[-1]) <= lowest + 0.02 * (float(path.values[0]) - lowest):
        return f"{seen}: the lowest there is"
    nearest = np.argmin(np.abs(walk.north - ground.north[row])), np.argmin(np.abs(walk.east - ground.east[column]))
    known = int(walk.seen_at[nearest]) <= path.taken
    return f"{seen}; the lowest, {number(lowest)}, {'has been seen' if known else 'lies where nobody looked'}"


def map_table(walk: Walk) -> Table:
    """Place, step and harness at every step."""
    path = walk.path
    nothing = np.full(1, np.nan)
    columns = (
        path.positions[:, 0],
        path.positions[:, 1],
        np.append(np.hypot(*path.moves.T), nothing),
        np.append(np.hypot(*path.unclipped.T), nothing),
    )
    lines = tuple((str(t), *(plain(float(c[t])) for c in columns)) for t in range(path.taken + 1))
    head = ("step", "weight 1", "weight 2", "length of the step", "length without harness")
    return Table(f"The way of the explorer; {len(lines)} places", head, lines)


# ---- three dimensions ----------------------------------------------------------------------------------------------------


def surface_figure(ground: Ground, walk: Walk) -> go.Figure:
    """The ground as it is, lit from one side, with the path on it. Traces: ground, path, explorer."""
    fig = go.Figure()
    fig.add_trace(
        go.Surface(
            x=ground.east.astype(np.float32),
            y=ground.north.astype(np.float32),
            z=ground.height.astype(np.float32),
            colorscale="Cividis",
            showscale=False,
            lighting={"ambient": 0.45, "diffuse": 0.9, "specular": 0.05, "roughness": 0.9, "fresnel": 0.0},
            lightposition={"x": -2_000, "y": 2_000, "z": 1_500},
            hovertemplate="weights %{x:.3g}, %{y:.3g}<br>loss %{z:.4g}<extra></extra>",
            name="loss",
        )
    )
    moment = surface_moment(ground, walk, walk.path.taken)
    fig.add_trace(
        go.Scatter3d(
            **moment[1],
            mode="lines+markers",
            line={"color": LINES[1], "width": 6},
            marker={"size": 2, "color": LINES[1]},
            name="path",
            hoverinfo="skip",
            showlegend=False,
        )
    )
    fig.add_trace(
        go.Scatter3d(
            **moment[2],
            mode="markers",
            marker={"size": 7, "color": LINES[1], "line": {"color": _WHITE, "width": 1}},
            name="explorer",
            hoverinfo="skip",
            showlegend=False,
        )
    )
    low, high = float(ground.height.min()), float(ground.height.max())
    axis: dict[str, Any] = {"showbackground": False, "nticks": 5, "gridcolor": NEUTRAL, "color": NEUTRAL, "zeroline": False}
    fig.update_layout(
        scene={
            "xaxis": {**axis, "title": {"text": "weight 1"}, "range": _span(ground.east)},
            "yaxis": {**axis, "title": {"text": "weight 2"}, "range": _span(ground.north)},
            "zaxis": {**axis, "title": {"text": "loss"}, "range": [low, high + 0.05 * (high - low)]},
            "aspectmode": "manual",
            "aspectratio": {"x": 1.0, "y": 1.0, "z": 0.55},
            "camera": {"eye": {"x": 0.95, "y": -1.25, "z": 0.95}, "center": {"x": 0, "y": 0, "z": -0.12}},
        }
    )
    title = _descended(ground, walk)
    alt = f"{title}. Surface of the loss over two weights, with the path on it."
    return finish(
        fig, title=title, alt=alt, plot_height=MAP_HEIGHT, margin=Margin(0, 0, 6, 46), note="No fog here: the whole ground."
    )


def surface_moment(ground: Ground, walk: Walk, step: int) -> Patches:
    """Path and explorer of `surface_figure` after a step; what lies outside the picture is left out."""
    path, at = walk.path, min(step, walk.path.taken)
    low, high = float(ground.height.min()), float(ground.height.max())
    points = path.positions[: at + 1]
    inside = np.ones(at + 1, np.bool_)
    for axis, (left, right) in enumerate(path.settings.landscape.domain):
        inside &= (points[:, axis] >= left) & (points[:, axis] <= right)
    heights = np.where(inside, np.minimum(path.values[: at + 1] + _LIFT * (high - low), high), np.nan)
    x, y = np.where(inside[:, None], points, np.nan).T
    way = {"x": _gaps(x), "y": _gaps(y), "z": _gaps(heights)}
    return {1: way, 2: {key: value[-1:] for key, value in way.items()}}


def _gaps(values: FloatArray) -> list[float | None]:
    """Five digits; None for NaN."""
    return [None if math.isnan(v) else float(f"{v:.5g}") for v in values]


def _descended(ground: Ground, walk: Walk) -> str:
    path = walk.path
    first, last, lowest = float(path.values[0]), float(path.values[-1]), float(ground.height.min())
    if path.lost:
        return "The path leaves the mountains, and then the numbers"
    if last >= first:
        return f"The path ends no lower than it began: {number(first)} at the start, {number(last)} at the end"
    if last <= lowest:
        return f"The path leads from {number(first)} down to {number(last)}, the lowest ground there is"
    share = 100.0 * (first - last) / (first - lowest)
    text = f"{share:.2g}" if share < 10.0 else f"{math.floor(share)}"
    return f"The path leads from {number(first)} to {number(last)}: {text} % of the way down to the lowest ground"


def surface_table(ground: Ground) -> Table:
    """Heights at every sixth point of the grid."""
    rows, columns = range(0, ground.north.size, 6), range(0, ground.east.size, 6)
    return Table(
        "Loss over the two weights, at every sixth point of the grid",
        ("weight 2 \\ weight 1", *(plain(float(ground.east[c])) for c in columns)),
        tuple((plain(float(ground.north[r])), *(f"{float(ground.height[r, c]):.4g}" for c in columns)) for r in reversed(rows)),
    )


# ---- height and slope over time ------------------------------------------------------------------------------------------


def profile_figure(walk: Walk, clip: float | None) -> go.Figure:
    """Height and size of the slope at every step, one above the other.

    Traces: height, slope, threshold of the harness, steps in which it held, and the explorer in both panels.

    Args:
        walk: the walk.
        clip: threshold of the harness; None if none is worn.
    """
    path = walk.path
    t = np.arange(path.taken + 1)
    slope = _log10(path.slopes)
    fig = go.Figure()
    common: dict[str, Any] = {"showlegend": False}
    fig.add_trace(
        go.Scatter(
            x=t,
            y=path.values,
            mode="lines",
            line={"color": LINES[0], "width": 2},
            name="loss",
            hovertemplate="step %{x}<br>loss %{y:.4g}<extra></extra>",
            **common,
        )
    )
    fig.add_trace(
        go.Scatter(
            x=t,
            y=slope,
            yaxis="y2",
            mode="lines",
            line={"color": LINES[1], "width": 2, "dash": DASHES[1]},
            name="log10 of the slope",
            hovertemplate="step %{x}<br>log10 |∇f| %{y:.2f}<extra></extra>",
            **common,
        )
    )
    steps = path.settings.steps
    threshold = [] if clip is None else [math.log10(clip)] * 2
    fig.add_trace(
        go.Scatter(
            x=[0, steps][: len(threshold)],
            y=threshold,
            yaxis="y2",
            mode="lines",
            line={"color": LINES[2], "width": 1.5, "dash": DASHES[2]},
            name="threshold of the harness",
            hoverinfo="skip",
            **common,
        )
    )
    held = np.flatnonzero(path.clipped)
    fig.add_trace(
        go.Scatter(
            x=held,
            y=slope[held],
            yaxis="y2",
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 9, "color": LINES[2], "line": {"width": 2, "color": LINES[2]}},
            name="the harness held",
            hovertemplate="step %{x}: the harness held<extra></extra>",
            **common,
        )
    )
    for index, (patch, colour) in enumerate(zip(profile_moment(walk, path.taken).values(), LINES, strict=False)):
        fig.add_trace(
            go.Scatter(
                **patch,
                **({"yaxis": "y2"} if index else {}),
                mode="markers",
                marker={
                    "size": 11,
                    "color": colour,
                    "symbol": ("circle", "square")[index],
                    "line": {"width": 1.5, "color": _WHITE},
                },
                name="now",
                hoverinfo="skip",
                **common,
            )
        )
    known = slope[np.isfinite(slope)]
    fig.update_layout(
        xaxis={
            "title": {"text": "step"},
            "range": [-0.01 * steps, 1.01 * steps],
            "fixedrange": True,
            "anchor": "y2",
            "nticks": 7,
        },
        yaxis={"title": {"text": "loss"}, "domain": [0.56, 1.0], "fixedrange": True, "nticks": 5},
        yaxis2={
            "title": {"text": "log<sub>10</sub> |∇f|"},
            "domain": [0.0, 0.46],
            "fixedrange": True,
            "nticks": 5,
            "range": _padded([*known.tolist(), *threshold]),
        },
        hovermode="closest",
    )
    if clip is not None:
        fig.add_annotation(
            x=steps,
            y=math.log10(clip),
            yref="y2",
            text="harness holds above",
            showarrow=False,
            xanchor="right",
            yshift=8,
            font={"size": 11},
        )
    title = _slope_course(walk)
    alt = f"{title}. Two line charts over {counted(path.taken, 'step')}: the loss and the logarithm of the slope."
    note = "Where the lower line is missing, the slope is exactly 0." if np.isnan(slope).any() else ""
    return finish(fig, title=title, alt=alt, plot_height=300, margin=Margin(64, 16, 8, 48), note=note)


def profile_moment(walk: Walk, step: int) -> Patches:
    """The explorer of `profile_figure` after a step."""
    at = min(step, walk.path.taken)
    slope = _gaps(_log10(walk.path.slopes[at : at + 1]))
    return {4: {"x": [at], "y": _short(walk.path.values[at : at + 1])}, 5: {"x": [at], "y": slope}}


def _log10(slopes: FloatArray) -> FloatArray:
    there = slopes > 0.0
    return np.where(there, np.log10(np.where(there, slopes, 1.0)), np.nan)


def _padded(values: list[float]) -> list[float]:
    low, high = min(values, default=-1.0), max(values, default=1.0)
    room = max(0.12 * (high - low), 0.15)
    return [low - room, high + room]


def _slope_course(walk: Walk) -> str:
    slope = _log10(walk.path.slopes)
    held = int(walk.path.clipped.sum())
    rope = f"; the harness holds in {held} of {counted(walk.path.taken, 'step')}" if walk.path.settings.clip is not None else ""
    known = slope[np.isfinite(slope)]
    if not known.size:
        return f"The slope is exactly 0 all the way{rope}"
    if math.isnan(float(slope[-1])):
        return f"The slope ends at exactly 0: no compass points from there{rope}"
    first, last = float(10.0 ** known[0]), float(10.0 ** slope[-1])
    spread = decades(float(known.max() - known.min()))
    return f"The slope goes from {number(first)} to {number(last)} and spans {spread} on the way{rope}"


def profile_table(walk: Walk) -> Table:
    """Height and slope at every step."""
    path = walk.path
    lines = tuple(
        (str(t), plain(float(path.values[t])), plain(float(path.slopes[t])), _held(walk, t)) for t in range(path.taken + 1)
    )
    return Table(f"Height and slope; {len(lines)} places", ("step", "loss", "|∇f|", "harness"), lines)


def _held(walk: Walk, step: int) -> str:
    if step == walk.path.taken:
        return "unknown"
    return "held" if walk.path.clipped[step] else "slack"
