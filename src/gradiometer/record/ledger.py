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

LEARNED_FALL: Final = 0.2
"""Share by which the loss must fall to count as learning; a class prior alone is worth at most about a tenth."""

CLEAR_FALL: Final = 10.0
"""The same for a loss that starts below zero, whose zero means nothing (a log density): in its own noise."""

BOTH_SIGNS: Final = 0.2
"""A loss of which at least this share lies on either side of zero (that of a policy gradient) has no level."""


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
        signless: whether it only swings about zero, as the loss of a policy gradient does: then it tells nothing.
    """

    steps: int
    start: float
    end: float
    noise: float
    best: float
    signless: bool = False

    @property
    def fall(self) -> float:
        """(start - end) / |start|: 0.9 when the loss fell by 90 %; NaN if unknown, or the loss has no level to fall from."""
        return (self.start - self.end) / abs(self.start) if self.start and not self.signless else float("nan")

    @property
    def clear(self) -> bool:
        """Whether the loss fell by a share that counts as learning, and beyond its noise."""
        drop = self.start - self.end
        if not np.isfinite(self.fall) or drop < 3.0 * self.noise / np.sqrt(self.steps / 5 + 1):
            return False
        return bool(self.fall >= LEARNED_FALL or (self.start < 0.0 and drop >= CLEAR_FALL * self.noise > 0.0))

    @staticmethod
    def of(ledger: Ledger) -> Learning:
        """From the every-step losses; NaN everywhere when fewer than six finite losses are known."""
        loss = ledger["loss"] if ledger.step.size else np.empty(0)
        return Learning.from_losses(loss[np.isfinite(loss)])

    @staticmethod
    def from_losses(loss: FloatArray) -> Learning:
        """From finite losses in order."""
        nan = float("nan")
        if loss.size < 6:
            return Learning(int(loss.size), nan, nan, nan, nan)
        window = max(3, min(50, loss.size // 5))
        last = loss[-window:]
        end = float(np.median(last))
        noise = float(1.4826 * np.median(np.abs(last - end)))
        blocks = loss[: loss.size // window * window].reshape(-1, window)
        best = float(min(np.median(blocks, axis=1).min(), end))
        first, start = float(loss[0]), float(np.median(loss[:3]))
        start = first if start > BLOWN_UP * abs(first) else start
        below = float(np.mean(last < 0.0))
        signless = BOTH_SIGNS < below < 1.0 - BOTH_SIGNS and start - end < 3.0 * noise
        return Learning(int(loss.size), start, end, noise, best, signless)
