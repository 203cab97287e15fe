"""Ledger: what is known of every step, and how the loss moved over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gradiometer.record.frames import Flag

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

BLOWN_UP: Final = 10.0
"""Three losses in a row spread less than this in any training of the zoo that is well."""


@dataclass(frozen=True)
class Ledger:
    """What is known of every recorded step: arrays of shape (T,), NaN where unknown.

    ``loss`` is non-finite where the loss itself was; ``loss_known`` tells that apart from "no loss was seen".
    """

    step: IntArray
    flags: IntArray
    values: Mapping[str, FloatArray]

    def __getitem__(self, name: str) -> FloatArray:
        """A ledger signal by name, shape (T,)."""
        return self.values[name]

    def has(self, flag: Flag) -> BoolArray:
        """Steps whose row carries ``flag``, shape (T,)."""
        return (self.flags & int(flag)) != 0


@dataclass(frozen=True, slots=True)
class Learning:
    """How the loss moved from its start to its end.

    Attributes:
        steps: steps with a finite loss.
        start: median of the first three losses; the very first where that median is more than ten times as large, because
            then the first updates blew the loss up, and to come down from there is no progress.
        end: median of the last fifth (at most 50 steps, at least 3).
        noise: robust standard deviation of the loss about its median over the last fifth.
        best: lowest median over a fifth of that length anywhere.
    """

    steps: int
    start: float
    end: float
    noise: float
    best: float

    @property
    def fall(self) -> float:
        """(start - end) / |start|: 0.9 when the loss fell by 90 %; NaN if unknown."""
        return (self.start - self.end) / abs(self.start) if self.start else float("nan")

    @staticmethod
    def of(ledger: Ledger) -> Learning:
        """From the every-step losses; NaN everywhere when fewer than six finite losses are known."""
        nan = float("nan")
        if not ledger.step.size:
            return Learning(0, nan, nan, nan, nan)
        loss = ledger["loss"]
        loss = loss[np.isfinite(loss)]
        if loss.size < 6:
            return Learning(int(loss.size), nan, nan, nan, nan)
        window = max(3, min(50, loss.size // 5))
        last = loss[-window:]
        end = float(np.median(last))
        noise = float(1.4826 * np.median(np.abs(last - end)))
        blocks = loss[: loss.size // window * window].reshape(-1, window)
        best = float(min(np.median(blocks, axis=1).min(), end))
        first, start = float(loss[0]), float(np.median(loss[:3]))
        return Learning(int(loss.size), first if start > BLOWN_UP * abs(first) else start, end, noise, best)
