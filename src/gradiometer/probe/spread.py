"""Second-order statistics of outputs and gradients over a batch: what mean-field theory propagates."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from gradiometer.probe import signals
from gradiometer.record.blueprint import NAN, Spread

ROWS: Final = 96
"""(Example, position) pairs that are compared with one another."""


def mean_square(x: Tensor) -> float:
    """Mean square of an element."""
    return float(signals.sum_of_squares(x)) / max(x.numel(), 1)


def spread_of(x: Tensor, unit: int) -> Spread:
    """Statistics of an output (first dimension examples) over a batch.

    Args:
        x: floating tensor; subsampled when it is large.
        unit: dimension that counts units.
    """
    x = signals.plain(x)
    if not x.is_floating_point():
        x = x.float()
    square = mean_square(x)
    if x.ndim == 0 or not 0.0 < square < float("inf"):
        return Spread(square, 0.0, NAN, NAN)
    table = signals.rows_of(x, 0)
    apart = _apart(table)
    where = x.movedim(unit, -1).reshape(-1, x.shape[unit]) if x.ndim > 2 else table
    if where.shape[0] > 4096:
        where = where[:: where.shape[0] // 2048 | 1]
    wide = where if where.dtype in (torch.float32, torch.float64) else where.float()
    return Spread(square, float(table.double().mean()), apart, _apart(wide) if x.ndim > 2 else apart, _pairs(wide))


def _pairs(table: Tensor) -> float:
    """Mean squared correlation of two rows about the mean of all rows."""
    if table.shape[0] > ROWS:
        table = table[:: table.shape[0] // ROWS]
    rows = table.shape[0]
    if rows < 3:
        return 0.0
    centred = table - table.mean(0, keepdim=True)
    centred = centred / centred.abs().max().clamp_min(1e-30)
    gram = (centred @ centred.T).double()
    whole = float(gram.trace())
    if not 0.0 < whole < float("inf"):
        return 0.0
    return max((float(gram.square().sum()) / whole**2 * rows - 1.0) / (rows - 1), 0.0)


def _apart(table: Tensor) -> float:
    """Share of the mean square that differs between two rows."""
    rows = table.shape[0]
    whole = float(signals.sum_of_squares(table))
    if rows < 2 or not 0.0 < whole < float("inf"):
        return NAN
    varying = float(signals.sum_of_squares(table - table.mean(0, keepdim=True)))
    return varying / whole * rows / (rows - 1)


def likeness(gradient: Tensor, unit: int) -> tuple[float, float]:
    """How alike the gradients of the (example, position) pairs are: share of the mean, mean squared cosine."""
    table = gradient.movedim(unit, -1).reshape(-1, gradient.shape[unit])
    table = table.float() if table.dtype not in (torch.float32, torch.float64) else table
    if table.shape[0] > ROWS:
        table = table[:: table.shape[0] // ROWS]
    scale = float(table.abs().max())
    if not 0.0 < scale < float("inf"):
        return NAN, NAN
    gram = ((table / scale) @ (table / scale).T).double()
    whole = float(gram.trace())
    # weighted by the size of the gradients: what counts is what the sum of squares is made of
    return float(gram.sum()) / table.shape[0] / whole, float(gram.square().sum()) / whole**2


def alignment(gradient: Tensor, output: Tensor) -> float:
    """Share of a gradient that lies along the output it belongs to, example by example; NaN if either is nothing."""
    rows = gradient.shape[0]
    g, x = gradient.reshape(rows, -1).double(), signals.plain(output).reshape(rows, -1).double()
    largest = float(g.abs().max())
    if not 0.0 < largest < float("inf"):
        return NAN
    g = g / largest
    sizes = x.square().sum(1)
    if not bool((sizes > 0.0).all()) or not bool(torch.isfinite(sizes).all()):
        return NAN
    return float(((g * x).sum(1).square() / sizes).sum() / g.square().sum())
