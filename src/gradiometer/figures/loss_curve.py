"""R5, the loss: did the network learn, and what happened to the steps?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.scale import DASHES, LINES, MINUS, NEUTRAL, Margin, finish, nothing, number
from gradiometer.record.frames import Flag
from gradiometer.record.ledger import BoolArray, FloatArray, IntArray
from gradiometer.record.trace import Trace
from gradiometer.types import Finding
from gradiometer.words import counted

MAX_POINTS: Final = 3_000
"""Points of one curve. A longer one keeps the lowest and the highest loss of each bin, so no spike is lost."""

MAX_TICKS: Final = 1_500
"""Marks of one kind in the strip below; more would be a solid bar anyway."""

_HEIGHT: Final = 300
_TOP, _BOTTOM = 24, 52
_STRIP: Final = 16


def loss_curve(trace: Trace, findings: Sequence[Finding] = (), step: int | None = None) -> go.Figure:
    """Loss and learning rate at every step, with the steps that were clipped, skipped or not finite.

    It has a linear axis of its own rather than the looks of the heatmap: the loss is known at every step, and people
    know their loss curve by its shape.

    Args:
        trace: the run.
        findings: not used; every figure takes the same arguments.
        step: the pinned step, marked with a line.
    """
    ledger = trace.ledger
    if not ledger.step.size or not (np.isfinite(ledger["loss"]).any() or ledger.has(Flag.NONFINITE).any()):
        return nothing("No loss was seen", "backward() was never called on a loss that the probe could read.")
    fig = go.Figure()
    logarithmic = _is_logarithmic(ledger["loss"])
    curves = _curves(trace)[: len(LINES)]
    for i, (label, mask) in enumerate(curves):
        x, y = envelope(ledger.step[mask], ledger["loss"][mask])
        fig.add_trace(_curve(x, y, label, i, named=len(curves) > 1))
    rate_varies = _add_rate(fig, trace)
    strips = _add_strips(fig, trace)
    _lay_out(fig, trace, logarithmic, rate_varies, strips, step)
    title = _title(trace)
    alt = f"{title}. Line chart of the loss over {counted(trace.steps_seen, 'step')}."
    note = "The loss axis is logarithmic." if logarithmic else ""
    if not rate_varies and np.isfinite(ledger["learning_rate"]).any():
        note = f"Learning rate {number(float(np.nanmedian(ledger['learning_rate'])))} throughout. {note}".strip()
    margin = Margin(96 if strips else 64, 70 if rate_varies else 14, _TOP, _BOTTOM)
    return finish(fig, title=title, alt=alt, plot_height=_HEIGHT, margin=margin, note=note)


def _is_logarithmic(loss: FloatArray) -> bool:
    known = loss[np.isfinite(loss)]
    return bool(known.size) and float(known.min()) > 0.0 and float(known.max()) > 10.0 * float(known.min())


def _curves(trace: Trace) -> list[tuple[str, BoolArray]]:
    """One curve for each optimizer: the players of a game have losses of their own."""
    which = trace.ledger["optimizer"]
    numbers = np.unique(which[np.isfinite(which)])
    if numbers.size < 2:
        return [("loss", np.ones(trace.ledger.step.shape, np.bool_))]
    return [(f"loss of optimizer {int(n) + 1}", which == n) for n in numbers]


def envelope(step: IntArray, y: FloatArray) -> tuple[IntArray, FloatArray]:
    """A curve with at most `MAX_POINTS` points that keeps the lowest and the highest value of each bin."""
    known = np.isfinite(y)
    step, y = step[known], y[known]
    if y.size <= MAX_POINTS:
        return step, y
    edges = np.linspace(0, y.size, MAX_POINTS // 2 + 1).round().astype(int)
    keep = {0, int(y.size) - 1}
    for a, b in itertools.pairwise(edges.tolist()):
        keep |= {a + int(np.argmin(y[a:b])), a + int(np.argmax(y[a:b]))}
    index = np.array(sorted(keep))
    return step[index], y[index]


def _curve(x: IntArray, y: FloatArray, label: str, i: int, *, named: bool) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=y,
        mode="lines" if x.size > 12 else "lines+markers",
        line={"color": LINES[i], "width": 2, "dash": DASHES[i]},
        name=label,
        hovertemplate=f"step %{{x}}<br>{label} %{{y:.4g}}<extra></extra>",
        showlegend=named,
    )


def _add_rate(fig: go.Figure, trace: Trace) -> bool:
    """Draw the learning rate on an axis of its own if it changes; a constant one is said in words instead."""
    rate = trace.ledger["learning_rate"]
    known = rate[np.isfinite(rate)]
    if known.size < 2 or float(known.max()) - float(known.min()) <= 1e-9 * abs(float(known.max())):
        return False
    x, y = envelope(trace.ledger.step, rate)
    fig.add_trace(
        go.Scatter(
            x=x,
            y=y,
            yaxis="y2",
            mode="lines",
            line={"color": NEUTRAL, "width": 1.5, "dash": "dot", "shape": "hv"},
            name="learning rate",
            hovertemplate="step %{x}<br>learning rate %{y:.3g}<extra></extra>",
            showlegend=False,
        )
    )
    return True


def _add_strips(fig: go.Figure, trace: Trace) -> list[str]:
    """One row of marks below the curve for each kind of event that happened; returns their names from the bottom."""
    ledger = trace.ledger
    with np.errstate(invalid="ignore"):
        clipped = np.asarray(ledger["grad_norm"] > ledger["clip_threshold"])
    kinds = (
        ("clipped", clipped, "line-ns-open", LINES[2]),
        ("skipped", ledger.has(Flag.SKIPPED), "line-ns-open", LINES[3]),
        ("not finite", ledger.has(Flag.NONFINITE), "x-thin-open", LINES[1]),
    )
    present = [kind for kind in kinds if kind[1].any()]
    for row, (name, mask, symbol, colour) in enumerate(present):
        steps = ledger.step[mask]
        if steps.size > MAX_TICKS:
            steps = steps[np.unique(np.linspace(0, steps.size - 1, MAX_TICKS).round().astype(int))]
        fig.add_trace(
            go.Scatter(
                x=steps,
                y=np.full(steps.size, row),
                yaxis="y3",
                mode="markers",
                marker={"symbol": symbol, "size": 8, "color": colour, "line": {"width": 1.5, "color": colour}},
                name=name,
                hovertemplate=f"step %{{x}}: {name}<extra></extra>",
                showlegend=False,
            )
        )
    return [f"{name} ({int(mask.sum()):,})" for name, mask, _, _ in present]


def _lay_out(fig: go.Figure, trace: Trace, logarithmic: bool, rate: bool, strips: list[str], step: int | None) -> None:
    share = _STRIP * len(strips) / _HEIGHT
    first, last = int(trace.ledger.step[0]), int(trace.ledger.step[-1])
    room = max(0.5, 0.012 * (last - first))
    layout: dict[str, Any] = {
        "xaxis": {
            "title": {"text": "training step"},
            "range": [first - room, last + room],
            "tickformat": ",d",
            "nticks": 9,
            "fixedrange": True,
            "anchor": "y3" if strips else "y",
        },
        "yaxis": {
            "title": {"text": "loss"},
            "type": "log" if logarithmic else "linear",
            "domain": [share + (0.03 if strips else 0.0), 1],
            "fixedrange": True,
            "exponentformat": "power",
            "nticks": 6,
        },
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    }
    if logarithmic:
        layout["yaxis"] |= _log_ticks(trace.ledger["loss"])
    if rate:
        layout["yaxis2"] = {
            "overlaying": "y",
            "side": "right",
            "title": {"text": "learning rate (dotted)"},
            "rangemode": "tozero",
            "tickmode": "auto",
            "showgrid": False,
            "exponentformat": "power",
            "nticks": 5,
            "fixedrange": True,
        }
    if strips:
        layout["yaxis3"] = {
            "domain": [0, share],
            "range": [-0.6, len(strips) - 0.4],
            "tickvals": list(range(len(strips))),
            "ticktext": strips,
            "showgrid": False,
            "fixedrange": True,
        }
    fig.update_layout(**layout)
    if step is not None and first <= step <= last:
        fig.add_shape(
            type="line", x0=step, x1=step, y0=0, y1=1, yref="paper", line={"color": NEUTRAL, "width": 1, "dash": "dot"}
        )


def _log_ticks(loss: FloatArray) -> dict[str, Any]:
    """1, 2 and 5 of each decade where there are few decades, else at most eight powers of ten."""
    known = loss[np.isfinite(loss)]
    low, high = math.floor(math.log10(float(known.min()))), math.ceil(math.log10(float(known.max())))
    if high - low <= 3:
        ticks = [digit * 10.0**k for k in range(low, high + 1) for digit in (1, 2, 5)]
        return {"tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}
    powers = range(low, high + 1, -(-(high - low) // 8))
    return {
        "tickvals": [10.0**k for k in powers],
        "ticktext": [f"10<sup>{MINUS if k < 0 else ''}{abs(k)}</sup>" if abs(k) > 2 else f"{10.0**k:g}" for k in powers],
    }


def _title(trace: Trace) -> str:
    ledger, moved = trace.ledger, trace.learning
    bad = ledger.step[ledger.has(Flag.NONFINITE)]
    if bad.size:
        return f"The loss is not finite at {counted(int(bad.size), 'step')}, first at step {int(bad[0])}"
    if not math.isfinite(moved.start):
        return f"Only {counted(moved.steps, 'loss')} seen: too few to tell whether it falls".replace("losss", "losses")
    course = f"from {number(moved.start)} to {number(moved.end)} in {counted(trace.steps_seen, 'step')}"
    if trace.learned:
        return f"The loss falls {course}"
    if trace.at_chance:
        return f"The loss ends at the chance level: {course}"
    if moved.end > moved.start + 3.0 * moved.noise:
        return f"The loss rises {course}"
    return f"The loss does not fall clearly: {course}"
