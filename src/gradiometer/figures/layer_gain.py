"""R3, what each layer multiplies by: is one layer guilty, or all of them a little?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.depth_profile import BOTTOM, TOP
from gradiometer.figures.rows import Rows, main_chain, output_rows, pinned_look
from gradiometer.figures.scale import LINES, MINUS, PALETTE, Margin, factor, finish, nothing
from gradiometer.record.ledger import FloatArray, IntArray
from gradiometer.record.trace import Trace
from gradiometer.rules import exploding_gradient, vanishing_gradient
from gradiometer.types import Finding, Role
from gradiometer.words import counted

GUILTY_SHARE: Final = 0.5
"""A layer that makes at least this share of all movement along depth, up and down, is named."""

QUIET_DECADES: Final = 1.0
"""Below this the product of all layers is as good as 1."""

_LAYERS: Final = (Role.LINEAR, Role.RECURRENT, Role.ATTENTION, Role.EMBEDDING)
_LEAST_REACH: Final = 1.2


def layer_gain(trace: Trace, findings: Sequence[Finding] = (), step: int | None = None) -> go.Figure:
    """The gain of each layer at the pinned step: backward as a bar, forward as a diamond.

    Args:
        trace: the run.
        findings: only tell which network the title speaks of.
        step: the pinned step; by default the last look.
    """
    look = pinned_look(trace, step)
    if look < 0 or not np.isfinite([trace.backward_gain[look], trace.forward_gain[look]]).any():
        return nothing("No gain of a layer could be measured", "It takes the numbers of two neighbouring layers.")
    rows = output_rows(trace)
    backward, forward = (
        rows.total(_within_chains(trace, trace.backward_gain[look])),
        rows.total(_within_chains(trace, trace.forward_gain[look])),
    )
    fig = go.Figure([*_bars(rows, backward), *_diamonds(rows, forward)])
    _lay_out(fig, rows, backward, forward)
    title = conclusion(trace, _spoken_of(trace, main_chain(trace, findings), findings), look)
    note = "Bars: what the layer multiplies the gradient by on its way back. Diamonds: what it multiplies the signal by."
    note += " The product runs over the layers that the finding is about, else over all."
    if rows.per_row > 1:
        note += f" Each mark is the product of {rows.per_row} consecutive outputs."
    alt = f"{title}. Bar chart of the gain of {len(trace.outputs)} outputs at step {int(trace.steps[look])}."
    margin = Margin(rows.left_margin, 14, TOP, BOTTOM)
    return finish(fig, title=title, alt=alt, plot_height=rows.plot_height, margin=margin, note=note)


def _within_chains(trace: Trace, gain: FloatArray) -> FloatArray:
    """Gains without those from one network to another, which no layer is responsible for."""
    own = gain.copy()
    own[[int(chain[0]) for chain in trace.chains]] = np.nan
    return own


def _spoken_of(trace: Trace, chain: IntArray, findings: Sequence[Finding]) -> IntArray:
    """The part of a network that the first finding about gradients is about; all of it without one."""
    names = list(trace.names(chain))
    for finding in findings:
        if finding.rule in (vanishing_gradient.NAME, exploding_gradient.NAME) and finding.shows:
            ends = [names.index(name) for name in (finding.shows[0], finding.starts) if name in names]
            if len(ends) == 2 and abs(ends[1] - ends[0]) > 1:
                return chain[min(ends) : max(ends) + 1]
    return chain


def _bars(rows: Rows, gain: FloatArray) -> list[go.Bar]:
    parts: list[go.Bar] = []
    with np.errstate(invalid="ignore"):
        sides = (("shrinks the gradient", gain < 0.0, PALETTE[2], ""), ("enlarges the gradient", gain >= 0.0, PALETTE[8], ""))
    for name, mask, colour, pattern in sides:
        index = np.flatnonzero(mask)
        parts.append(
            go.Bar(
                x=gain[index],
                y=[rows.categories[int(i)] for i in index],
                customdata=[factor(float(gain[i])) for i in index],
                orientation="h",
                marker={"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern}},
                name=name,
                hovertemplate="<b>%{y}</b><br>backward gain %{customdata}<extra></extra>",
                showlegend=False,
            )
        )
    return parts


def _diamonds(rows: Rows, gain: FloatArray) -> list[go.Scatter]:
    index = np.flatnonzero(np.isfinite(gain))
    many = len(rows) > 90
    return [
        go.Scatter(
            x=gain[index],
            y=[rows.categories[int(i)] for i in index],
            customdata=[factor(float(gain[i])) for i in index],
            mode="markers",
            marker={
                "symbol": "diamond",
                "size": 4 if many else 7,
                "color": "#ffffff",
                "line": {"width": 1.5, "color": LINES[1]},
            },
            name="forward gain",
            hovertemplate="<b>%{y}</b><br>forward gain %{customdata}<extra></extra>",
            showlegend=False,
        )
    ]


def _lay_out(fig: go.Figure, rows: Rows, backward: FloatArray, forward: FloatArray) -> None:
    known = np.abs(np.concatenate([backward[np.isfinite(backward)], forward[np.isfinite(forward)]]))
    reach = max(_LEAST_REACH, 1.12 * float(known.max(initial=0.0)))
    step = max(1, math.ceil(reach / 4))
    ticks = [k for k in range(-math.floor(reach), math.floor(reach) + 1) if k % step == 0]
    fig.update_layout(
        xaxis={
            "range": [-reach, reach],
            "tickvals": ticks,
            "ticktext": [
                "×1" if not t else factor(t) if abs(t) < 3 else f"×10<sup>{t}</sup>".replace("-", MINUS) for t in ticks
            ],
            "title": {"text": "gain of one layer (log scale)"},
            "zeroline": True,
            "zerolinewidth": 1.5,
            "fixedrange": True,
        },
        yaxis=rows.axis(),
        bargap=0.6 if len(rows) <= 6 else 0.25 if len(rows) <= 90 else 0.0,
        barmode="overlay",
        annotations=[*rows.annotations(rows.left_margin), *_sides()],
        hovermode="closest",
    )


def _sides() -> list[dict[str, object]]:
    """Words for the two directions, above the plot."""
    words = (("◂ shrinks", 0.0, "left"), ("enlarges ▸", 1.0, "right"))
    return [
        {
            "text": text,
            "x": x,
            "xref": "paper",
            "xanchor": anchor,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "yshift": 2,
            "showarrow": False,
            "font": {"size": 11},
        }
        for text, x, anchor in words
    ]


def conclusion(trace: Trace, chain: IntArray, look: int) -> str:
    """The product of all backward gains of a network, and who is to blame, in a sentence."""
    y = trace.log10_gradient[look, chain]
    blocked = np.flatnonzero(np.isneginf(y[:-1]) & np.isfinite(y[1:]))
    if blocked.size:
        return f"{trace.sites[int(chain[1 + int(blocked[-1])])].name} lets no gradient through: exactly 0 arrives before it"
    gain = trace.backward_gain[look, chain[1:]]
    known = np.isfinite(gain)
    if not known.any():
        return "The backward gains are not known: too few layers have a gradient"
    total = float(gain[known].sum())
    product = f"The layers together multiply the gradient by {factor(total).removeprefix('×')}"
    if abs(total) < QUIET_DECADES:
        return f"{product}: no layer stands out" if float(np.abs(gain[known]).max()) < QUIET_DECADES else f"{product}"
    layers = sum(trace.sites[int(i)].role in _LAYERS for i in chain) or int(known.sum())
    each, about = f"each of the {counted(layers, 'layer')}", f"by about {factor(total / layers).removeprefix('×')}"
    if not (total <= -vanishing_gradient.WARN_DECADES or total >= exploding_gradient.WARN_DECADES):
        return f"{product}, {each} {about}"
    guilty = _guilty(trace, chain, y, math.copysign(1.0, total))
    if guilty is not None:
        return f"{product}; the guilty layer is {guilty[0]} with {factor(guilty[1])}"
    return f"{product}. No single guilty layer: {each} multiplies it {about}"


def _guilty(trace: Trace, chain: IntArray, y: FloatArray, sign: float) -> tuple[str, float] | None:
    """Name and log10 gain of a layer that makes most of the movement, if one does.

    A layer is its weights with the activation after them: apart, the slope of a sigmoid takes what its weights give.
    """
    dense = [k for k in range(len(chain)) if trace.sites[int(chain[k])].role in _LAYERS]
    bounds = sorted({0, *(dense if len(dense) > 1 else range(len(chain))), len(chain) - 1})
    steps = y[bounds[:-1]] - y[bounds[1:]]
    known = np.isfinite(steps)
    if known.sum() < 3:
        return None
    worst = int(np.argmax(np.where(known, steps * sign, -math.inf)))
    if abs(steps[worst]) < GUILTY_SHARE * np.abs(steps[known]).sum():
        return None
    return trace.sites[int(chain[bounds[worst + 1]])].name, float(steps[worst])
