"""The explorer in the mountain range: knows only what lies near the path, follows a compass, and may wear a harness.

The ground is a landscape of two weights, the walk a `descent.Descent` on it. The compass points along minus the gradient; its
needle shows the logarithm of the slope, because slopes in one landscape differ by many decades. The harness is clipping: where
it acts, the step that would have been taken without it stands beside the one that was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from gradiometer.errors import GradiometerError
from gradiometer.lab.descent import Descent, Path, descend
from gradiometer.lab.landscapes import Landscape
from gradiometer.record.ledger import FloatArray

CELLS: Final = 32
"""Cells of the fog along each side of the domain."""
NEVER: Final = np.iinfo(np.int16).max
"""In `Walk.seen_at`: not seen at all."""
NEEDLE: Final = (-6.0, 2.0)
"""log10 of the slopes at which the needle is shortest and longest."""
SHORTEST: Final = 0.15
"""Length of the shortest needle as a share of the longest; only exactly level ground has none."""


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """What an explorer did and saw. Arrays are not to be written to.

    Attributes:
        path: the descent.
        sight: how far was seen, in units of the weights.
        east, north: centres of the cells of the fog, shape (CELLS,) each.
        seen_at: step at which a cell (north, east) was first seen, `NEVER` if it was not, shape (CELLS, CELLS).
        needles: direction of minus the gradient times a length from `SHORTEST` to 1, (n + 1, 2); zero on level ground.
    """

    path: Path
    sight: float
    east: FloatArray
    north: FloatArray
    seen_at: npt.NDArray[np.int16]
    needles: FloatArray

    @property
    def seen(self) -> float:
        """Share of the domain that was seen in the end."""
        return float(np.mean(self.seen_at < NEVER))

    def fog(self, step: int) -> npt.NDArray[np.int16]:
        """1 where fog still lies after a step, else 0, shape (CELLS, CELLS)."""
        return (self.seen_at > step).astype(np.int16)


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """Heights on a grid.

    Attributes:
        east: shape (n,).
        north: shape (n,).
        height: shape (n, n), rows northward.
    """

    east: FloatArray
    north: FloatArray
    height: FloatArray


@lru_cache(maxsize=64)
def explore(settings: Descent, sight: float) -> Walk:
    """Walk and look around.

    Args:
        settings: of the descent; its landscape has two weights.
        sight: how far the explorer sees, in units of the weights.

    Raises:
        GradiometerError: the landscape has one weight, or nothing is seen; and as `descend`.
    """
    land = settings.landscape
    if land.dimensions != 2 or not sight > 0.0:
        raise GradiometerError(
            "An explorer needs a landscape of two weights and some sight.", "See landscapes.of_dimensions(2)."
        )
    path = descend(settings)
    east, north = (_centres(*side) for side in land.domain)
    with np.errstate(over="ignore"):
        # (steps, north, east)
        distance = np.hypot(
            east[None, None, :] - path.positions[:, 0, None, None], north[None, :, None] - path.positions[:, 1, None, None]
        )
    near = distance <= sight
    first = np.where(near.any(axis=0), near.argmax(axis=0), NEVER).astype(np.int16)
    return Walk(path, sight, east, north, first, _needles(path))


@lru_cache(maxsize=16)
def ground(land: Landscape, count: int) -> Ground:
    """Heights of a landscape of two weights on a grid of ``count`` x ``count`` points over its domain."""
    east, north = (np.linspace(*side, count) for side in land.domain)
    return Ground(east, north, land.value(np.stack(np.meshgrid(east, north), axis=-1)))


def _centres(low: float, high: float) -> FloatArray:
    width = (high - low) / CELLS
    return low + width * (np.arange(CELLS, dtype=np.float64) + 0.5)


def _needles(path: Path) -> FloatArray:
    slopes = path.slopes
    there = slopes > 0.0
    safe = np.where(there, slopes, 1.0)
    share = np.clip((np.log10(safe) - NEEDLE[0]) / (NEEDLE[1] - NEEDLE[0]), 0.0, 1.0)
    length = np.where(there, SHORTEST + (1.0 - SHORTEST) * share, 0.0)
    return -path.gradients / safe[:, None] * length[:, None]
