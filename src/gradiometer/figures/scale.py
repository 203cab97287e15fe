"""Scale S: the colours, lines, templates and number formats that every figure shares, so that reports compare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.record.ledger import FloatArray
from gradiometer.record.trace import Trace

PALETTE: Final = (
    "#2d004b",
    "#542788",
    "#8073ac",
    "#b2abd2",
    "#d8daeb",
    "#f7f7f7",
    "#fee0b6",
    "#fdb863",
    "#e08214",
    "#b35806",
    "#7f3b08",
)
"""PuOr reversed, 11 stops: purple is vanishing, orange is exploding, near white is the reference."""

LIMIT: Final = 6.0
"""The colours span -LIMIT..LIMIT decades in every figure; what lies beyond has the colour of the end."""

CELL_DECADES: Final = 3.0
"""From this many decades off the reference a cell also carries a triangle: the `WARN_DECADES` of vanishing-gradient."""

LINES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe-Ito: told apart with any colour vision, and at 3:1 or better on both backgrounds."""

DASHES: Final = ("solid", "dash", "dot", "dashdot")

NEUTRAL: Final = "#7d838d"
"""A grey with at least 3:1 on the light and on the dark background: guides and what is not a series."""

BLANK: Final = "rgba(125,135,152,0.24)"
"""Behind a heatmap: what was not measured. Visibly no colour of the scale, in light and in dark."""

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'DejaVu Sans', sans-serif"

MINUS: Final = "\N{MINUS SIGN}"

_RAISED: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MAX_TITLE_LINE: Final = 88
_LEAST_END: Final = 6
"""Characters of the last word of a path below which abbreviating the path is not worth it."""


def colorscale() -> list[tuple[float, str]]:
    """The palette as plotly wants it: stops from 0 to 1."""
    return [(i / (len(PALETTE) - 1), colour) for i, colour in enumerate(PALETTE)]


def relative_to_median(trace: Trace, values: FloatArray) -> FloatArray:
    """z: log10 of a quantity relative to its median over the layers at the same step, shape (S, N).

    The median is taken within a chain (networks that meet only in their loss may differ in size and be well), over the
    sites where the quantity is a positive finite number. Entries that are not finite stay as they are.

    Args:
        trace: the run.
        values: log10 of the quantity, shape (S, N).
    """
    z = np.full_like(values, np.nan)
    for chain in (*trace.chains, trace.parameters):
        if chain.size and values.shape[0]:
            z[:, chain] = values[:, chain] - _median(values[:, chain])[:, None]
    return z


def _median(y: FloatArray) -> FloatArray:
    known = np.where(np.isfinite(y), y, np.nan)
    filled = np.isfinite(known).any(axis=1)
    middle = np.zeros(y.shape[0])
    middle[filled] = np.nanmedian(known[filled], axis=1)
    return middle


# ---- themes ------------------------------------------------------------------------------------------------------------


def template(theme: str) -> go.layout.Template:
    """A quiet template: transparent paper, thin grid, one font.

    Args:
        theme: ``light`` or ``dark``.
    """
    ink, faint, grid = ("#20242c", "#525a66", "#e1e4ea") if theme == "light" else ("#e9ebef", "#a9b1bd", "#343a45")
    axis: dict[str, Any] = {
        "gridcolor": grid,
        "linecolor": grid,
        "zerolinecolor": NEUTRAL,
        "zeroline": False,
        "ticks": "",
        "tickfont": {"color": faint, "size": 11},
        "title": {"font": {"color": faint, "size": 12}},
        "automargin": False,
    }
    layout = go.Layout(
        font={"family": FONT, "size": 12, "color": ink},
        title={"font": {"size": 15, "color": ink}, "x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}},
        paper_bgcolor="rgba(0,0,0,0)" if theme == "dark" else "rgba(255,255,255,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis=axis,
        yaxis=axis,
        hoverlabel={
            "bgcolor": "#ffffff" if theme == "light" else "#20242c",
            "bordercolor": grid,
            "font": {"family": FONT, "color": ink, "size": 12},
        },
        legend={"font": {"color": faint, "size": 11}, "bgcolor": "rgba(0,0,0,0)"},
        colorscale={"diverging": colorscale()},
        colorway=LINES,
    )
    return go.layout.Template(layout=layout)


@dataclass(frozen=True, slots=True)
class Margin:
    """Pixels around the plot, without the title."""

    left: int
    right: int
    top: int
    bottom: int


def finish(
    fig: go.Figure, *, title: str, alt: str, plot_height: int, margin: Margin, note: str = "", empty: bool = False
) -> go.Figure:
    """Give a figure its conclusion, its text alternative, its size and its theme.

    The raw sentences also stand in ``layout.meta`` (keys title, alt, note, empty, title_height), so that a page can set
    them in its own type, where they wrap.

    Args:
        fig: the figure.
        title: what it shows, in one sentence; raw text.
        alt: what a reader who cannot see it should know; raw text.
        plot_height: pixels between the ends of the y axis.
        margin: room around it.
        note: how to read it, or what was thinned; raw text.
        empty: whether there is nothing to draw.
    """
    lines = wrapped(title, _MAX_TITLE_LINE)
    above = 20 + 20 * len(lines)
    height = plot_height + margin.top + margin.bottom + above
    fig.update_layout(
        template=template("light"),
        height=height,
        margin={"l": margin.left, "r": margin.right, "t": margin.top + above, "b": margin.bottom},
        title_text="<br>".join(escaped(line) for line in lines),
        title_y=1 - 12 / height,
        title_yanchor="top",
        meta={"title": title, "alt": alt, "note": note, "empty": empty, "title_height": above},
        dragmode=False,
        legend_itemclick=False,
        legend_itemdoubleclick=False,
    )
    return fig


def nothing(title: str, why: str) -> go.Figure:
    """A figure that says that there is nothing to draw, and why."""
    fig = go.Figure()
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    fig.add_annotation(text="<br>".join(escaped(line) for line in wrapped(why, 80)), showarrow=False)
    return finish(fig, title=title, alt=why, plot_height=120, margin=Margin(10, 10, 0, 10), empty=True)


# ---- words and numbers ---------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Text for plotly, which reads a small subset of HTML in every label: names are untrusted."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def shortened(name: str, width: int) -> str:
    """A name that fits: ``encoder.layers.11.attention.out`` becomes ``en.la.11.at.out``.

    Words of a path are abbreviated before anything is cut out, because its numbers are what tells layers apart; what is
    still too long loses its middle.
    """
    for kept in (4, 3, 2, 1):
        if len(name) <= width:
            return name
        *path, last = name.split(".")
        shorter = ".".join([*(part if part.isdigit() else part[:kept] for part in path), last])
        if len(shorter) <= width:
            return shorter
        room = width - (len(shorter) - len(last))
        if kept == 1 and room >= _LEAST_END:
            return shorter.removesuffix(last) + _cut(last, room)
    return _cut(name, width)


def _cut(name: str, width: int) -> str:
    head = (width - 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def wrapped(text: str, width: int) -> list[str]:
    """Text broken into lines of at most ``width`` characters, at spaces; one over-long word is cut in its middle."""
    lines = [""]
    for word in text.split():
        word = shortened(word, width)
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def signed(value: float, digits: int = 1) -> str:
    """A number with a sign a reader sees: ``+0.3``, ``−8.4``, ``0``."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0.0:
        return "0"
    return f"{MINUS if value < 0 else '+'}{text}"


def decades(value: float) -> str:
    """A size in decades, in words: ``15.8 decades``, ``1 decade``."""
    text = f"{abs(value):.1f}".removesuffix(".0")
    return f"{text} decade{'' if text == '1' else 's'}"


def factor(log10: float) -> str:
    """A factor given by its log10: ``×0.14``, ``×12``, ``×2×10⁻¹⁶``."""
    if not math.isfinite(log10):
        return "×0" if log10 < 0 else "unknown"
    if abs(log10) < 3.0:
        return f"×{_plain(10.0**log10)}"
    return f"×{_scientific(log10, 0)}"


def _scientific(log10: float, digits: int) -> str:
    exponent = math.floor(log10)
    mantissa = f"{10.0 ** (log10 - exponent):.{digits}f}"
    if float(mantissa) >= 10.0:
        mantissa, exponent = f"{1.0:.{digits}f}", exponent + 1
    return f"{mantissa}×10{str(exponent).translate(_RAISED)}"


def _plain(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if 0.5 < value < 2.0 or value >= 10 else f"{value:.2g}"


def number(value: float) -> str:
    """A measured number for people: ``0.2974``, ``1.38×10⁻¹⁴``, ``unknown`` for NaN."""
    if math.isnan(value):
        return "unknown"
    if math.isfinite(value) and value and not 1e-4 <= abs(value) < 1e6:
        return f"{MINUS if value < 0 else ''}{_scientific(math.log10(abs(value)), 2)}"
    return f"{value:.4g}".replace("-", MINUS)
