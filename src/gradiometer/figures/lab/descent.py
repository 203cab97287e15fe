"""A ball on a landscape of one weight: the landscape with ball and tangent, the slope beneath it, and its course in time.

Each figure shows two balls, one without and one with the harness (clipping); where no harness is worn there is one ball, and
the traces of the other are empty. ``*_moment`` gives what of a figure changes at a step, for step, play and scrub.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.scale import DASHES, LINES, NEUTRAL, PALETTE, Margin, decades, finish, number
from gradiometer.figures.tables import Table
from gradiometer.record.ledger import BoolArray, FloatArray
from gradiometer.words import counted

if TYPE_CHECKING:
    from gradiometer.lab.descent import Path
    from gradiometer.lab.landscapes import Curve

Patches = dict[int, dict[str, Any]]
"""Index of a trace -> attributes of it that differ at a step."""

UNSTABLE: Final = 2.0
"""Learning rate times curvature above which plain gradient descent overshoots further with every step."""

HEIGHT: Final = 260
_MARGIN: Final = Margin(58, 16, 10, 48)
_TANGENT: Final = 0.11
"""Half of the length of the tangent, as a share of the domain."""
_DECADES: Final = 12.0
"""Most decades of slope that are drawn."""
_BALLS: Final = ("no harness", "harness")
_SYMBOLS: Final = ("circle", "square")
_UNSTABLE_FILL: Final = "rgba(224,130,20,0.20)"


# ---- f(x) ----------------------------------------------------------------------------------------------------------------


def landscape_figure(curve: Curve, rate: float, free: Path, held: Path | None, words: Sequence[str]) -> go.Figure:
    """The landscape with the balls at the end of their way, the tangent beneath them, and where the rate is too high.

    Traces: the landscape, the unstable region, then for each ball all places it was at, its tangent, and the ball.

    Args:
        curve: the landscape.
        rate: learning rate behind the shading.
        free: the ball without harness.
        held: the ball with it; None if none is worn.
        words: what became of each ball.
    """
    frame = _Frame(curve)
    fig = go.Figure()
    fig.add_trace(
        go.Scatter(
            x=curve.x,
            y=curve.height,
            mode="lines",
            line={"color": NEUTRAL, "width": 2.5},
            name="f(x)",
            hovertemplate="x %{x:.3g}<br>f %{y:.4g}<extra></extra>",
            showlegend=False,
        )
    )
    unstable = np.asarray(rate * curve.curvature > UNSTABLE)
    fig.add_trace(_shaded(frame, curve.x, unstable))
    for k, path in enumerate((free, held)):
        fig.add_traces(_ball(frame, path, k))
    fig.update_layout(
        xaxis={"title": {"text": "weight x"}, "range": list(frame.x), "fixedrange": True, "nticks": 7},
        yaxis={"title": {"text": "loss f(x)"}, "range": list(frame.y), "fixedrange": True, "nticks": 6},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    if unstable.any():
        _name_region(fig, frame, curve.x, unstable)
    title = _ends(free, held, words)
    note = (
        "Small marks: every step. Shaded: learning rate × f″ > 2, where plain gradient descent overshoots further with every "
        "step (momentum β moves the limit to 2 (1 + β); adaptive optimizers have another)."
    )
    alt = f"{title}. Curve of the loss over the weight from {number(frame.x[0])} to {number(frame.x[1])}, with the balls on it."
    return finish(fig, title=title, alt=alt, plot_height=HEIGHT, margin=Margin(58, 16, 26, 48), note=note)


def landscape_moment(curve: Curve, free: Path, held: Path | None, step: int) -> Patches:
    """Balls and tangents of `landscape_figure` after a step."""
    frame = _Frame(curve)
    patches: Patches = {}
    for k, path in enumerate((free, held)):
        patches[3 + 3 * k] = _tangent(frame, path, step)
        patches[4 + 3 * k] = _place(frame, path, step)
    return patches


class _Frame:
    """The part of the plane that is drawn."""

    def __init__(self, curve: Curve) -> None:
        low, high = float(curve.height.min()), float(curve.height.max())
        room = 0.08 * (high - low)
        self.x = (float(curve.x[0]), float(curve.x[-1]))
        self.y = (low - room, high + room)

    def holds(self, x: float) -> bool:
        return self.x[0] <= x <= self.x[1]


def _shaded(frame: _Frame, x: FloatArray, mask: BoolArray) -> go.Scatter:
    low, high = frame.y
    xs: list[float | None] = []
    ys: list[float | None] = []
    for begin, end in _runs(mask):
        left, right = float(x[begin]), float(x[end])
        xs += [left, right, right, left, left, None]
        ys += [low, low, high, high, low, None]
    return go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        line={"width": 1, "color": PALETTE[8], "dash": "dot"},
        fill="toself",
        fillcolor=_UNSTABLE_FILL,
        name="learning rate × f″ > 2",
        hoverinfo="skip",
        showlegend=False,
    )


def _runs(mask: BoolArray) -> list[tuple[int, int]]:
    """First and last index of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def _name_region(fig: go.Figure, frame: _Frame, x: FloatArray, mask: BoolArray) -> None:
    begin, end = max(_runs(mask), key=lambda run: run[1] - run[0])
    middle = 0.5 * float(x[begin] + x[end])
    share = (middle - frame.x[0]) / (frame.x[1] - frame.x[0])
    fig.add_annotation(
        x=middle,
        y=1,
        yref="paper",
        yanchor="bottom",
        xanchor="left" if share < 0.3 else "right" if share > 0.7 else "center",
        text="shaded: rate × f″ > 2",
        showarrow=False,
        font={"size": 11},
    )


def _ball(frame: _Frame, path: Path | None, k: int) -> list[go.Scatter]:
    colour = LINES[k]
    last = path.taken if path is not None else 0
    x, y = (path.positions[:, 0], path.values) if path is not None else (np.empty(0), np.empty(0))
    inside = (x >= frame.x[0]) & (x <= frame.x[1])
    trail = go.Scatter(
        x=x[inside],
        y=y[inside],
        mode="markers",
        marker={"size": 4, "color": colour, "symbol": f"{_SYMBOLS[k]}-open", "opacity": 0.7},
        name=f"{_BALLS[k]}: every step",
        hovertemplate="x %{x:.4g}<br>f %{y:.4g}<extra></extra>",
        showlegend=False,
    )
    tangent = go.Scatter(
        **_tangent(frame, path, last),
        mode="lines",
        line={"color": colour, "width": 2, "dash": DASHES[k]},
        name=f"{_BALLS[k]}: tangent",
        hoverinfo="skip",
        showlegend=False,
    )
    ball = go.Scatter(
        **_place(frame, path, last),
        mode="markers+text",
        marker={
            "size": 15 if k == 0 else 12,
            "color": colour,
            "symbol": _SYMBOLS[k],
            "line": {"width": 1.5, "color": "#ffffff"},
        },
        name=_BALLS[k],
        hoverinfo="skip",
        cliponaxis=False,
        showlegend=False,
    )
    return [trail, tangent, ball]


def _marker(k: int) -> dict[str, Any]:
    """The ball: the one with the harness is smaller, so that both show where they stand together."""
    return {"size": (15, 10)[k], "color": LINES[k], "symbol": _SYMBOLS[k], "line": {"width": 1.5, "color": "#ffffff"}}


def _tangent(frame: _Frame, path: Path | None, step: int) -> dict[str, Any]:
    if path is None or step > path.taken or not frame.holds(float(path.positions[step, 0])):
        return {"x": [], "y": []}
    x, y, slope = float(path.positions[step, 0]), float(path.values[step]), float(path.gradients[step, 0])
    reach = _TANGENT * (frame.x[1] - frame.x[0])
    if slope:  # stays in the picture
        reach = min(reach, 0.25 * (frame.y[1] - frame.y[0]) / abs(slope))
    return {"x": _rounded([x - reach, x + reach]), "y": _rounded([y - reach * slope, y + reach * slope])}


def _place(frame: _Frame, path: Path | None, step: int) -> dict[str, Any]:
    """The ball and its name; one that has left the picture waits at its edge and says where it is."""
    if path is None:
        return {"x": [], "y": [], "text": [], "textposition": "top center"}
    name, at = _BALLS[0] if path.settings.clip is None else _BALLS[1], min(step, path.taken)
    x, y = float(path.positions[at, 0]), float(path.values[at])
    gone = path.lost and step > path.taken
    shown = min(max(x, frame.x[0]), frame.x[1])
    share = (shown - frame.x[0]) / (frame.x[1] - frame.x[0])
    side = "right" if share < 0.3 else "left" if share > 0.7 else "center"
    row = ("top", "bottom")[int(path.settings.clip is not None)]
    if gone or not frame.holds(x):
        where = "no number" if gone else f"x = {number(x)}"
        name = f"{name}: {where} ▸" if x > frame.x[1] else f"◂ {name}: {where}"
        y = frame.y[0] + (0.85 if row == "top" else 0.65) * (frame.y[1] - frame.y[0])
    elif y > frame.y[0] + 0.8 * (frame.y[1] - frame.y[0]):
        row = "bottom"
    return {"x": _rounded([shown]), "y": _rounded([y]), "text": [name], "textposition": f"{row} {side}"}


def _ends(free: Path, held: Path | None, words: Sequence[str]) -> str:
    if held is None:
        return f"{_capital(words[0])}: {_end(free)}"
    return f"Without harness {words[0]}: {_end(free)}. With it {words[1]}: {_end(held)}"


def _end(path: Path) -> str:
    first, last = number(float(path.positions[0, 0])), number(float(path.positions[-1, 0]))
    if path.lost:
        return f"the numbers end after {counted(path.taken, 'step')}, at x = {last}"
    heights = f"{number(float(path.values[0]))} to {number(float(path.values[-1]))}"
    return f"x goes from {first} to {last} in {counted(path.taken, 'step')}, the loss from {heights}"


def landscape_table(free: Path, held: Path | None, rate_times_curvature: bool = True) -> Table:
    """Place, height and learning rate times curvature at every step."""
    columns, lines = _by_step(
        free,
        held,
        (
            ("x", lambda p: p.positions[:, 0]),
            ("f(x)", lambda p: p.values),
            *((("rate × f″", lambda p: np.append(p.stability, np.nan)),) if rate_times_curvature else ()),
        ),
    )
    return Table(f"Place, loss and learning rate × curvature of each ball; {len(lines)} steps", columns, lines)


# ---- |f'| ----------------------------------------------------------------------------------------------------------------


def slope_figure(curve: Curve, free: Path, held: Path | None, clip: float | None) -> go.Figure:
    """The size of the slope over x on a logarithmic axis, and where the balls were.

    Traces: the slope, the threshold of the harness, then for each ball all places it was at, and the ball.

    Args:
        curve: the landscape.
        free: the ball without harness.
        held: the ball with it; None if none is worn.
        clip: threshold of the harness; None if none is worn.
    """
    size = np.abs(curve.slope)
    low, high = _log_range(size, clip)
    fig = go.Figure()
    fig.add_trace(
        go.Scatter(
            x=curve.x,
            y=_positive(size, 10.0**low),
            mode="lines",
            line={"color": NEUTRAL, "width": 2.5},
            name="|f′(x)|",
            connectgaps=False,
            hovertemplate="x %{x:.3g}<br>|f′| %{y:.3g}<extra></extra>",
            showlegend=False,
        )
    )
    ends = [float(curve.x[0]), float(curve.x[-1])]
    fig.add_trace(
        go.Scatter(
            x=ends if clip is not None else [],
            y=[clip, clip] if clip is not None else [],
            mode="lines",
            line={"color": LINES[2], "width": 1.5, "dash": DASHES[2]},
            name="threshold of the harness",
            hoverinfo="skip",
            showlegend=False,
        )
    )
    for k, path in enumerate((free, held)):
        fig.add_traces(_slope_ball(curve, path, k, 10.0**low))
    fig.update_layout(
        xaxis={"title": {"text": "weight x"}, "range": ends, "fixedrange": True, "nticks": 7},
        yaxis={
            "title": {"text": "size of the slope |f′|"},
            "type": "log",
            "range": [low, high],
            "fixedrange": True,
            **_log_ticks(low, high),
        },
        hovermode="closest",
    )
    if clip is not None:
        _label(fig, ends[0], math.log10(clip), "harness holds above", left=True)
    title = _slopes(free, held)
    note = "The axis is logarithmic." + (" Where the line is missing, the slope is exactly 0." if (size == 0.0).any() else "")
    alt = f"{title}. Line chart of the size of the slope over the weight."
    return finish(fig, title=title, alt=alt, plot_height=HEIGHT, margin=_MARGIN, note=note)


def slope_moment(curve: Curve, free: Path, held: Path | None, step: int) -> Patches:
    """Balls of `slope_figure` after a step."""
    return {3 + 2 * k: _slope_place(curve, path, step) for k, path in enumerate((free, held))}


def _slope_ball(curve: Curve, path: Path | None, k: int, least: float) -> list[go.Scatter]:
    x, y = (path.positions[:, 0], path.slopes) if path is not None else (np.empty(0), np.empty(0))
    inside = (x >= curve.x[0]) & (x <= curve.x[-1])
    common: dict[str, Any] = {"mode": "markers", "showlegend": False}
    return [
        go.Scatter(
            x=x[inside],
            y=_positive(y[inside], least),
            marker={"size": 4, "color": LINES[k], "symbol": f"{_SYMBOLS[k]}-open", "opacity": 0.7},
            name=f"{_BALLS[k]}: every step",
            hovertemplate="x %{x:.4g}<br>|f′| %{y:.3g}<extra></extra>",
            **common,
        ),
        go.Scatter(
            **_slope_place(curve, path, path.taken if path is not None else 0),
            marker=_marker(k),
            name=_BALLS[k],
            hoverinfo="skip",
            **common,
        ),
    ]


def _slope_place(curve: Curve, path: Path | None, step: int) -> dict[str, Any]:
    if path is None or step > path.taken:
        return {"x": [], "y": []}
    x, y = float(path.positions[step, 0]), float(path.slopes[step])
    seen = curve.x[0] <= x <= curve.x[-1] and y > 0.0
    return {"x": _rounded([x]), "y": _rounded([y])} if seen else {"x": [], "y": []}


def _log_range(size: FloatArray, clip: float | None) -> tuple[float, float]:
    """Decades of the axis: those of the landscape, and the threshold."""
    known = size[size > 0.0]
    high = math.log10(max(float(known.max()), clip or 0.0)) + 0.3
    low = max(math.log10(min(float(known.min()), clip or math.inf)) - 0.3, high - _DECADES)
    return low, max(high, low + 1.0)


def _positive(y: FloatArray, least: float) -> FloatArray:
    """Numbers that a logarithmic axis can show; what is below its end is a gap."""
    return np.where(y >= least, y, np.nan)


def _log_ticks(low: float, high: float) -> dict[str, Any]:
    """At most seven powers of ten."""
    every = max(1, math.ceil((high - low) / 7))
    powers = range(math.ceil(low), math.floor(high) + 1, every)
    return {"tickvals": [10.0**k for k in powers], "ticktext": [_power(k) for k in powers]}


def _power(k: int) -> str:
    return f"{10.0**k:g}" if -3 <= k <= 3 else f"10<sup>{'−' if k < 0 else ''}{abs(k)}</sup>"


def _slopes(free: Path, held: Path | None) -> str:
    if held is None:
        return f"The slope under the ball {_slope_course(free)}"
    return f"The slope under the ball without harness {_slope_course(free)}; with it, it {_slope_course(held)}"


def _slope_course(path: Path) -> str:
    first, last = float(path.slopes[0]), float(path.slopes[-1])
    if last == 0.0:
        return "is exactly 0 all the time" if first == 0.0 else f"goes from {number(first)} to exactly 0"
    if first == 0.0:
        return f"goes from exactly 0 to {number(last)}"
    change = math.log10(last) - math.log10(first)
    if abs(change) < 0.05:
        return f"ends as it began, at {number(last)}"
    way = f"from {number(first)} to {number(last)}"
    by = f", by {decades(change)}" if abs(change) >= 0.95 else ""
    return f"{'grows' if change > 0 else 'shrinks'} {way}{by}"


def slope_table(free: Path, held: Path | None) -> Table:
    """Size of the slope at every step."""
    columns, lines = _by_step(free, held, (("|f′|", lambda p: p.slopes),))
    return Table(f"Size of the slope under each ball; {len(lines)} steps", columns, lines)


# ---- x(t) ----------------------------------------------------------------------------------------------------------------


def course_figure(curve: Curve, minima: Sequence[float], free: Path, held: Path | None) -> go.Figure:
    """The place of each ball over the steps.

    Traces: the lowest points, then for each ball its course, its clipped steps, and the ball.

    Args:
        curve: the landscape.
        minima: its lowest points, where known.
        free: the ball without harness.
        held: the ball with it; None if none is worn.
    """
    steps = max(p.settings.steps for p in (free, held) if p is not None)
    fig = go.Figure()
    xs: list[float | None] = []
    ys: list[float | None] = []
    for place in minima:
        xs += [0.0, float(steps), None]
        ys += [place, place, None]
    guide = {"color": NEUTRAL, "width": 1.5, "dash": "dot"}
    fig.add_trace(go.Scatter(x=xs, y=ys, mode="lines", line=guide, name="lowest point", hoverinfo="skip", showlegend=False))
    for k, path in enumerate((free, held)):
        fig.add_traces(_course(path, k))
    low, high = float(curve.x[0]), float(curve.x[-1])
    fig.update_layout(
        xaxis={"title": {"text": "step"}, "range": [-0.01 * steps, 1.01 * steps], "fixedrange": True, "nticks": 7},
        yaxis={"title": {"text": "weight x"}, "range": [low, high], "fixedrange": True, "nticks": 7},
        hovermode="closest",
    )
    for place in minima:
        _label(fig, 0.0, place, "lowest point", left=True)
    _name_courses(fig, free, held, low, high)
    title = _arrival(minima, free, held)
    note = "Ticks: steps in which the harness held." if held is not None else ""
    alt = f"{title}. Line chart of the weight over {counted(steps, 'step')}."
    return finish(fig, title=title, alt=alt, plot_height=HEIGHT, margin=_MARGIN, note=note)


def course_moment(free: Path, held: Path | None, step: int) -> Patches:
    """Balls of `course_figure` after a step."""
    return {3 + 3 * k: _course_place(path, step) for k, path in enumerate((free, held))}


def _course(path: Path | None, k: int) -> list[go.Scatter]:
    x = path.positions[:, 0] if path is not None else np.empty(0)
    at = np.flatnonzero(path.clipped) if path is not None else np.empty(0, np.int64)
    common: dict[str, Any] = {"showlegend": False}
    return [
        go.Scatter(
            x=np.arange(x.size),
            y=x,
            mode="lines",
            line={"color": LINES[k], "width": 2, "dash": DASHES[k]},
            name=_BALLS[k],
            hovertemplate="step %{x}<br>x %{y:.4g}<extra></extra>",
            **common,
        ),
        go.Scatter(
            x=at,
            y=x[at],
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 9, "color": LINES[2], "line": {"width": 2, "color": LINES[2]}},
            name="harness held",
            hovertemplate="step %{x}: the harness held<extra></extra>",
            **common,
        ),
        go.Scatter(
            **_course_place(path, path.taken if path is not None else 0),
            mode="markers",
            marker=_marker(k),
            name=f"{_BALLS[k]} now",
            hoverinfo="skip",
            **common,
        ),
    ]


def _course_place(path: Path | None, step: int) -> dict[str, Any]:
    if path is None or step > path.taken:
        return {"x": [], "y": []}
    return {"x": [step], "y": _rounded([float(path.positions[step, 0])])}


def _name_courses(fig: go.Figure, free: Path, held: Path | None, low: float, high: float) -> None:
    """Write the name of each course beside it, away from the other one."""
    paths = [p for p in (free, held) if p is not None]
    for k, path in enumerate(paths):
        at = round(path.taken * (0.55 if k == 0 else 0.8))
        x = path.positions[:, 0]
        shown = np.flatnonzero((x >= low) & (x <= high))
        at = int(shown[np.argmin(np.abs(shown - at))]) if shown.size else 0
        other = paths[1 - k].positions[min(at, paths[1 - k].taken), 0] if len(paths) == 2 else 0.5 * (low + high)
        above = bool(x[at] > other) or (x[at] == other and k == 0)
        near_edge = (x[at] - low) / (high - low)
        above = above if 0.12 < near_edge < 0.88 else near_edge < 0.5
        name = "ball" if held is None else _BALLS[k]
        mark = ("━", "╍")[k]
        fig.add_annotation(
            x=at,
            y=float(np.clip(x[at], low, high)),
            text=f"<span style='color:{LINES[k]}'>{mark}</span> <b>{name}</b>",
            showarrow=False,
            yshift=14 if above else -14,
        )


def _arrival(minima: Sequence[float], free: Path, held: Path | None) -> str:
    if held is None:
        return f"The ball {_covered(minima, free)}"
    return f"Without harness the ball {_covered(minima, free)}; with it, it {_covered(minima, held)}"


def _covered(minima: Sequence[float], path: Path) -> str:
    """How much of the way to the lowest point is done."""
    x = path.positions[:, 0]
    steps = counted(path.taken, "step")
    if path.lost:
        return f"leaves every number behind after {steps}"
    if len(minima) != 1 or x[0] == minima[0]:
        return f"moves by {number(float(np.abs(path.moves).sum()))} in all, in {steps}"
    left = abs(float(x[-1]) - minima[0]) / abs(float(x[0]) - minima[0])
    if left >= 1.0:
        return f"is no nearer to the lowest point after {steps}"
    share = 100.0 * (1.0 - left)
    text = f"{share:.2g}" if share < 10.0 else f"{math.floor(share)}" if share < 99.9 else "99.9"
    more = "more than " if share >= 99.9 else ""
    return f"covers {more}{text} % of the way to the lowest point in {steps}"


def course_table(free: Path, held: Path | None) -> Table:
    """Place, step and harness at every step."""
    columns, lines = _by_step(
        free,
        held,
        (
            ("x", lambda p: p.positions[:, 0]),
            ("step taken", lambda p: np.append(p.moves[:, 0], np.nan)),
            ("step without clipping", lambda p: np.append(p.unclipped[:, 0], np.nan)),
        ),
    )
    return Table(f"Course of each ball; {len(lines)} steps", columns, lines)


# ---- shared --------------------------------------------------------------------------------------------------------------


def _by_step(
    free: Path, held: Path | None, parts: Sequence[tuple[str, Callable[[Path], FloatArray]]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Columns and lines of a table: some quantities of each ball at every step; a ball that is gone has ``unknown``."""
    balls = [(name, p) for name, p in zip(_BALLS, (free, held), strict=True) if p is not None]
    columns: list[str] = ["step"]
    data: list[FloatArray] = []
    for name, path in balls:
        for what, quantity in parts:
            columns.append(what if held is None else f"{what}, {name}")
            data.append(quantity(path))
    count = max(d.size for d in data)
    lines = tuple((str(t), *(plain(d[t]) if t < d.size else "unknown" for d in data)) for t in range(count))
    return tuple(columns), lines


def plain(value: float) -> str:
    """A number that can be copied; ``unknown`` for NaN."""
    return "unknown" if math.isnan(value) else f"{value:.6g}"


def _label(fig: go.Figure, x: float, y: float, text: str, *, left: bool) -> None:
    fig.add_annotation(
        x=x, y=y, text=text, showarrow=False, xanchor="left" if left else "right", yshift=8, xshift=4, font={"size": 11}
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _rounded(values: Sequence[float]) -> list[float]:
    """Six digits: what a screen can show, and short in a link's answer."""
    return [float(f"{v:.6g}") for v in values]
