"""Cells of a heatmap: what was measured where, thinned without losing what matters, and the areas that get a pattern."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gradiometer.figures.rows import Rows
from gradiometer.figures.scale import relative_to_median
from gradiometer.record.frames import Group
from gradiometer.record.ledger import BoolArray, FloatArray, IntArray
from gradiometer.record.trace import Trace
from gradiometer.types import Place

MAX_COLUMNS: Final = 1_000
"""Columns drawn. A screen has no more pixels to give, and a browser drops columns thinner than a pixel."""

MAX_CELLS: Final = 300_000
"""Cells drawn, 1.6 MB in the page at 4 bytes each in base64."""

MAX_RECTANGLES: Final = 1_200
"""Patterned areas of one kind; a more scattered pattern is drawn with wider columns."""

_LEAST_COLUMNS: Final = 64


class Kind(IntEnum):
    """What a cell holds; where several cells become one, the last in this list wins."""

    UNKNOWN = 0
    VALUE = 1
    ZERO = 2
    INF = 3
    NAN = 4


@dataclass(frozen=True)
class Cells:
    """The cells of a heatmap, one column per look or per bin of looks.

    Attributes:
        z: shape (rows, columns), NaN where ``kind`` is not VALUE.
        kind: shape (rows, columns), of `Kind`.
        bins: first and last look (inclusive) of each column.
    """

    z: FloatArray
    kind: NDArray[np.int8]
    bins: tuple[tuple[int, int], ...]

    @property
    def thinned(self) -> bool:
        """Whether a column stands for several looks."""
        return any(last > first for first, last in self.bins)

    def column_of(self, look: int) -> int:
        """The column that holds a look."""
        return int(np.searchsorted([last for _, last in self.bins], look))


@dataclass(frozen=True, slots=True)
class Rectangle:
    """An area of cells of one kind, all bounds inclusive."""

    left: int
    right: int
    bottom: int
    top: int


def gradient_cells(trace: Trace, rows: Rows) -> Cells:
    """The gradient of each row at each look on scale S, within the bounds of a page."""
    of_parameters = trace.sites[rows.rows[0].sites[0]].place is Place.PARAMETER
    if of_parameters:
        y, sumsq, bad = trace.log10_weight_gradient, trace.values["weight_gradient_sumsq"], trace.nonfinite[Group.PARAMETER]
    else:
        y, sumsq, bad = trace.log10_gradient, trace.values["gradient_sumsq"], _bad_outputs(trace)
    return make_cells(relative_to_median(trace, y), kinds(y, sumsq, bad), rows)


def _bad_outputs(trace: Trace) -> BoolArray:
    # An output that is not finite often has no gradient any more: it must not look merely unmeasured.
    unseen = ~trace.recorded[Group.GRADIENT]
    return trace.nonfinite[Group.GRADIENT] | (trace.nonfinite[Group.OUTPUT] & unseen)


def kinds(y: FloatArray, sumsq: FloatArray, bad: BoolArray) -> NDArray[np.int8]:
    """The kind of each cell.

    Args:
        y: log10 of the quantity; -inf is an exact zero, NaN unknown.
        sumsq: sum of squares behind it: infinite where infinities, but no NaN, went into it.
        bad: cells known to hold something that is not finite.
    """
    kind = np.full(y.shape, Kind.UNKNOWN, dtype=np.int8)
    kind[np.isfinite(y)] = Kind.VALUE
    kind[np.isneginf(y)] = Kind.ZERO
    kind[bad] = Kind.NAN
    kind[np.isposinf(sumsq)] = Kind.INF
    return kind


def make_cells(z: FloatArray, kind: NDArray[np.int8], rows: Rows) -> Cells:
    """Thin (S, N) to (rows, columns).

    A cell that stands for several is NaN if any is, else infinite if any is, else exactly zero if any is, else the one
    furthest from 0. Never the mean: that hides a spike of six steps among fifty thousand.
    """
    groups = [list(row.sites) for row in rows.rows]
    z, kind = _thin(z.T, kind.T, groups)
    looks = z.shape[1]
    columns = max(1, min(MAX_COLUMNS, MAX_CELLS // max(len(groups), 1), looks))
    while True:
        bins = _bins(looks, columns)
        thin_z, thin_kind = _thin(z.T, kind.T, [list(range(first, last + 1)) for first, last in bins])
        cells = Cells(np.where(thin_kind.T == Kind.VALUE, thin_z.T, np.nan), thin_kind.T, tuple(bins))
        scattered = max(len(rectangles(cells.kind == k)) for k in (Kind.ZERO, Kind.INF, Kind.NAN))
        if scattered <= MAX_RECTANGLES or columns <= _LEAST_COLUMNS:
            return cells
        columns = max(columns // 2, _LEAST_COLUMNS)


def _bins(looks: int, columns: int) -> list[tuple[int, int]]:
    edges = np.linspace(0, looks, columns + 1).round().astype(int)
    return [(a, b - 1) for a, b in itertools.pairwise(edges.tolist()) if b > a]


def _thin(z: FloatArray, kind: NDArray[np.int8], groups: Sequence[Sequence[int]]) -> tuple[FloatArray, NDArray[np.int8]]:
    """Reduce the first axis to one entry per group; an empty group is unknown."""
    weight = np.where(kind == Kind.VALUE, np.abs(np.nan_to_num(z)), 0.0) + kind.astype(np.float64) * 1e6
    out_z = np.full((len(groups), z.shape[1]), np.nan)
    out_kind = np.full((len(groups), z.shape[1]), Kind.UNKNOWN, dtype=np.int8)
    columns = np.arange(z.shape[1])
    for i, group in enumerate(groups):
        if group:
            index = np.asarray(group)
            at = index[np.argmax(weight[index], axis=0)]
            out_z[i], out_kind[i] = z[at, columns], kind[at, columns]
    return out_z, out_kind


def rectangles(mask: BoolArray) -> list[Rectangle]:
    """Cover the true cells of (rows, columns) with rectangles: runs along rows, equal runs of neighbouring rows merged."""
    done: list[Rectangle] = []
    open_: dict[tuple[int, int], int] = {}  # run -> row at which it began
    for r in range(mask.shape[0] + 1):
        runs = set(runs_of(mask[r])) if r < mask.shape[0] else set[tuple[int, int]]()
        for run in [run for run in open_ if run not in runs]:
            done.append(Rectangle(run[0], run[1], open_.pop(run), r - 1))
        for run in runs:
            open_.setdefault(run, r)
    return sorted(done, key=lambda a: (a.bottom, a.left))


def runs_of(mask: BoolArray) -> list[tuple[int, int]]:
    """First and last index (inclusive) of each run of true."""
    edge = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(int(a), int(b) - 1) for a, b in zip(edge[::2], edge[1::2], strict=True)]


def marked(mask: BoolArray, z: FloatArray, across: int, along: int) -> tuple[IntArray, IntArray]:
    """At most ``across`` x ``along`` of the true cells: of each block the one furthest from 0, so that none goes unmarked.

    Returns:
        rows and columns of the chosen cells.
    """
    high, wide = (max(1, math.ceil(n / most)) for n, most in zip(mask.shape, (along, across), strict=True))
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for r, c in zip(*(i.tolist() for i in np.nonzero(mask)), strict=True):
        key, size = (r // high, c // wide), abs(float(z[r, c]))
        if key not in best or size > best[key][0]:
            best[key] = (size, r, c)
    chosen = [(r, c) for _, r, c in best.values()]
    return np.array([r for r, _ in chosen], np.int64), np.array([c for _, c in chosen], np.int64)
