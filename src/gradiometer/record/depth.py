"""Arithmetic along depth, shared by rules and figures: how far a quantity falls towards an end, and a robust slope.

Everything here works on ``y``: log10 of a positive quantity at sites in order of execution (input first).
``-inf`` is an exact zero, ``nan`` is unknown.

Why ends and maxima: a residual network has sites inside branches that rightly carry little (exactly nothing, when a
branch is initialised to zero) while the trunk beside them is healthy. What matters is how much *any* site at that end of
the network carries, against the most that any other site does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

END_SHARE: Final = 0.1
"""An end of the network is at least this share of its sites (and at least two): one odd site is not an end."""

ZERO_DECADES: Final = 45.0
"""Decades counted for a fall to an exact zero: the smallest float32 subnormal is 1.4e-45."""

_MAX_FIT: Final = 300
_Z95: Final = 1.959963984540054


def end_width(count: int) -> int:
    """How many sites make an end of a chain of ``count`` sites."""
    return max(1, min(count // 2, max(2, round(END_SHARE * count))))


def fall_towards_input(y: FloatArray) -> float:
    """Decades by which ``y`` is lower near the input than elsewhere (0 if it is not lower).

    The highest of the input end against the highest of all later sites, so a chain that falls steadily gives about the
    difference of its two ends. A fall to an exact zero counts as `ZERO_DECADES`; NaN sites are left out; fewer than three
    known sites give NaN.
    """
    known = y[~np.isnan(y)]
    if known.size < 3:
        return math.nan
    width = end_width(known.size)
    low, high = float(known[:width].max()), float(known[width:].max())
    if not math.isfinite(high):
        return 0.0  # zero everywhere: nothing to compare with, not a fall along depth
    return max(high - low, 0.0) if math.isfinite(low) else ZERO_DECADES


def fall_towards_output(y: FloatArray) -> float:
    """Decades by which ``y`` is lower near the output than elsewhere (0 if it is not lower)."""
    return fall_towards_input(y[::-1])


def falls_towards_input(y: FloatArray) -> FloatArray:
    """`fall_towards_input` of each row of ``y``, shape (S, n) -> (S,)."""
    return np.array([fall_towards_input(row) for row in y], dtype=np.float64)


def falls_towards_output(y: FloatArray) -> FloatArray:
    """`fall_towards_output` of each row of ``y``, shape (S, n) -> (S,)."""
    return np.array([fall_towards_output(row) for row in y], dtype=np.float64)


def output_end(y: FloatArray) -> int:
    """Position of the highest known site of the output end; -1 if no site is known."""
    known = np.flatnonzero(~np.isnan(y))
    if not known.size:
        return -1
    end = known[-end_width(known.size) :]
    return int(end[np.argmax(y[end])])


@dataclass(frozen=True, slots=True)
class SlopeFit:
    """Theil-Sen slope of ``y`` over site position.

    Attributes:
        slope: decades per site, positive when ``y`` grows from input to output.
        low, high: 95 % interval of the slope (Sen 1968, from Kendall's rank variance).
        sites: number of finite sites fitted.
    """

    slope: float
    low: float
    high: float
    sites: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0.0 or self.high < 0.0


def slope_along_depth(y: FloatArray) -> SlopeFit:
    """Robust slope along depth of the finite entries of ``y``.

    Source: Sen (1968), "Estimates of the regression coefficient based on Kendall's tau", JASA 63. Chains of more than
    300 sites are thinned evenly. Fewer than four finite sites give NaN.
    """
    position = np.flatnonzero(np.isfinite(y)).astype(np.float64)
    value = y[np.isfinite(y)]
    if value.size > _MAX_FIT:
        keep = np.linspace(0, value.size - 1, _MAX_FIT).round().astype(int)
        position, value = position[keep], value[keep]
    n = value.size
    if n < 4:
        return SlopeFit(math.nan, math.nan, math.nan, n)
    i, j = np.triu_indices(n, 1)
    slopes = np.sort((value[j] - value[i]) / (position[j] - position[i]))
    half = _Z95 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18.0)
    low = max(int((slopes.size - half) / 2.0), 0)
    high = min(int((slopes.size + half) / 2.0), slopes.size - 1)
    return SlopeFit(float(np.median(slopes)), float(slopes[low]), float(slopes[high]), n)
