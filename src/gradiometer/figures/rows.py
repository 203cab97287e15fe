"""Rows: the depth axis that the heatmap, the profile, the gains and the activations share.

Input at the bottom, output at the top, as the terminal report has it. Chains (networks that meet only in their loss) are
kept apart by a heading. The axis is categorical: a row is a place, not a distance, and its hover label is the full name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from gradiometer.figures.scale import escaped, shortened
from gradiometer.record.ledger import FloatArray, IntArray
from gradiometer.record.trace import Trace
from gradiometer.types import Finding

MAX_ROWS: Final = 400
"""Deeper networks are drawn with several consecutive sites to a row."""

NAME_WIDTH: Final = 22
"""Characters of a tick label."""

# A category that looks like a number ("39", the name of a layer in a Sequential) would be taken for a position on the
# axis when a shape is placed at 39. A zero-width space keeps names and positions apart.
_NEVER_A_NUMBER: Final = "\u200b"

_ROW_PX: Final = 14
_MIN_PX, _MAX_PX = 240, 900
_CHARACTER_PX: Final = 6.4


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the axis.

    Attributes:
        name: what it stands for, in full; raw text.
        label: what its tick says, before it is shortened; raw text.
        sites: indices of its sites, none for a heading.
        chain: number of the connected network.
    """

    name: str
    label: str
    sites: tuple[int, ...]
    chain: int

    @property
    def heading(self) -> bool:
        """Whether it only names the chain below it."""
        return not self.sites


@dataclass(frozen=True)
class Rows:
    """The rows from bottom (input) to top (output).

    Attributes:
        rows: at least one.
        per_row: consecutive sites in a row, 1 unless the network is very deep.
    """

    rows: tuple[Row, ...]
    per_row: int

    def __len__(self) -> int:
        """Number of rows, headings too."""
        return len(self.rows)

    @cached_property
    def categories(self) -> list[str]:
        """Full names, unique, escaped for plotly."""
        seen: dict[str, int] = {}
        names: list[str] = []
        for row in self.rows:
            name = escaped(row.name)
            seen[name] = seen.get(name, 0) + 1
            again = f" ({seen[name]})" if seen[name] > 1 else ""
            names.append(f"{_NEVER_A_NUMBER}{name}{again}")
        return names

    @property
    def plot_height(self) -> int:
        """Pixels between the ends of the axis."""
        return max(_MIN_PX, min(_MAX_PX, _ROW_PX * len(self)))

    @property
    def left_margin(self) -> int:
        """Pixels for the longest tick label."""
        longest = max((len(shortened(r.label, NAME_WIDTH)) for r in self.rows if not r.heading), default=1)
        return round(30 + _CHARACTER_PX * max(longest, 4))

    @property
    def note(self) -> str:
        """What a reader should know of the thinning; empty for an ordinary network."""
        return f"Each row stands for {self.per_row} consecutive outputs." if self.per_row > 1 else ""

    def axis(self) -> dict[str, Any]:
        """Settings of the y axis: every row, as many labels as there is room for."""
        stride = max(1, math.ceil(_ROW_PX * len(self) / self.plot_height))
        shown = [i for i, row in enumerate(self.rows) if not row.heading]
        shown = shown[::stride]
        # Just beside the row: a label at its very position would also replace the full name in the hover text.
        beside = len(self) / 2_000
        return {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": self.categories,
            "range": [-0.5, len(self) - 0.5],
            "tickmode": "array",
            "tickvals": [i + beside for i in shown],
            "ticktext": [escaped(shortened(self.rows[i].label, NAME_WIDTH)) for i in shown],
            "showgrid": False,
            "fixedrange": True,
        }

    def annotations(self, left_margin: int) -> list[dict[str, Any]]:
        """The direction of depth, at the left edge, and the names of the chains where there are several.

        Not the axis's own title: plotly puts that where long tick labels are.
        """
        direction = {
            "name": "depth",
            "text": "input → output",
            "textangle": -90,
            "x": 0,
            "xref": "paper",
            "xanchor": "center",
            "xshift": 10 - left_margin,
            "y": 0.5,
            "yref": "paper",
            "showarrow": False,
            "font": {"size": 11},
        }
        return [direction, *self._headings()]

    def _headings(self) -> list[dict[str, Any]]:
        return [
            {
                "text": f"<b>{escaped(shortened(row.name, 44))}</b>",
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": i,
                "yref": "y",
                "showarrow": False,
                "font": {"size": 11},
            }
            for i, row in enumerate(self.rows)
            if row.heading
        ]

    def furthest(self, values: FloatArray) -> FloatArray:
        """Per row, the value furthest from zero among its sites, never their mean: shape (..., N) to (..., rows).

        NaN is left out; a row of NaN only, or a heading, is NaN. -inf counts as furthest.
        """
        out = np.full((*values.shape[:-1], len(self)), np.nan)
        for i, row in enumerate(self.rows):
            if len(row.sites) == 1:
                out[..., i] = values[..., row.sites[0]]
            elif row.sites:
                out[..., i] = furthest(values[..., list(row.sites)])
        return out

    def total(self, values: FloatArray) -> FloatArray:
        """Per row, the sum over its sites of what is known; NaN where nothing is. Shape (N,) to (rows,)."""
        out = np.full(len(self), np.nan)
        for i, row in enumerate(self.rows):
            part = values[list(row.sites)]
            if np.isfinite(part).any():
                out[i] = np.nansum(part)
        return out

    def of_sites(self, names: Sequence[str], trace: Trace) -> IntArray:
        """Rows that hold these sites, increasing. A parameter is found where its module is."""
        wanted = set(names)
        places = {(trace.sites[i].model, trace.sites[i].depth) for i in trace.parameters if trace.sites[i].name in wanted}
        found = [
            r
            for r, row in enumerate(self.rows)
            if any(trace.sites[i].name in wanted or (trace.sites[i].model, trace.sites[i].depth) in places for i in row.sites)
        ]
        return np.array(found, dtype=np.int64)


def band(rows: Rows, run: Sequence[int], low: FloatArray, high: FloatArray, name: str, colour: str) -> go.Scatter:
    """A filled band between two lines along depth.

    Args:
        rows: of the figure.
        run: the rows it covers, consecutive.
        low: where it begins in each row, shape (rows,).
        high: where it ends.
        name: what it is.
        colour: of the filling.
    """
    run = list(run)
    return go.Scatter(
        x=[*low[run], *high[run][::-1]],
        y=[rows.categories[i] for i in (*run, *run[::-1])],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=colour,
        hoverinfo="skip",
        name=name,
        showlegend=False,
    )


def furthest(values: FloatArray) -> FloatArray:
    """The entry furthest from zero along the last axis; NaN only where all are NaN."""
    size = np.where(np.isnan(values), -1.0, np.abs(values))
    at = np.argmax(size, axis=-1)
    return np.take_along_axis(values, at[..., None], axis=-1)[..., 0]


def output_rows(trace: Trace, only: IntArray | None = None) -> Rows:
    """Rows for the outputs of a trace, the longest chain on top.

    Args:
        trace: the run.
        only: indices of the sites to show; all outputs by default.
    """
    keep = set((trace.outputs if only is None else only).tolist())
    chains = [[int(i) for i in chain if int(i) in keep] for chain in trace.chains]
    return _rows(trace, [chain for chain in chains if chain])


def parameter_rows(trace: Trace) -> Rows:
    """Rows for the parameters, by depth: where no output was seen."""
    return _rows(trace, [[int(i) for i in trace.parameters]])


def _rows(trace: Trace, chains: list[list[int]]) -> Rows:
    room = max(MAX_ROWS - len(chains), 1)
    per_row = max(1, math.ceil(sum(len(chain) for chain in chains) / room))
    rows: list[Row] = []
    for number, chain in reversed(list(enumerate(chains, 1))):
        for start in range(0, len(chain), per_row):
            part = chain[start : start + per_row]
            rows.append(Row(_span_name(trace, part), trace.sites[part[0]].name, tuple(part), trace.sites[part[0]].chain))
        if len(chains) > 1:
            rows.append(Row(_chain_name(trace, chain, number), "", (), trace.sites[chain[0]].chain))
    return Rows(tuple(rows), per_row)


def _span_name(trace: Trace, sites: list[int]) -> str:
    first, last = trace.sites[sites[0]].name, trace.sites[sites[-1]].name
    return first if len(sites) == 1 else f"{first} … {last}"


def _chain_name(trace: Trace, chain: list[int], number: int) -> str:
    model = trace.sites[chain[0]].model
    return f"network {number}" + (f", {model}" if model else "") + f" ({len(chain)} output{'' if len(chain) == 1 else 's'})"


# ---- the pinned look -----------------------------------------------------------------------------------------------------


def pinned_look(trace: Trace, step: int | None) -> int:
    """Index in ``trace.steps`` of the look at or after ``step``; by default the last one that knows most gradients.

    -1 if there is no look.
    """
    if not trace.steps.size:
        return -1
    if step is not None:
        return min(int(np.searchsorted(trace.steps, step)), int(trace.steps.size) - 1)
    known = np.isfinite(trace.log10_gradient[:, trace.outputs]).sum(axis=1)
    return int(np.flatnonzero(known == known.max())[-1])


def main_chain(trace: Trace, findings: Sequence[Finding]) -> IntArray:
    """Sites of the connected network that the first finding is about, else of the longest one; may be empty."""
    chain_of = {trace.sites[int(i)].name: chain for chain in trace.chains for i in chain}
    for finding in findings:
        for name in (finding.starts, *finding.sites):
            if name in chain_of:
                return chain_of[name]
    return trace.chains[0] if trace.chains else np.empty(0, np.int64)
