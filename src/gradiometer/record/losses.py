"""Losses: what the every-step losses of a run say once the noise of mini-batches is taken off.

Everything here is relative: to the loss at the start, to its own noise, or to how far it has fallen. A loss that is
summed instead of averaged gives the same answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from gradiometer.record.ledger import FloatArray, IntArray, Learning, Ledger

BLOCKS: Final = 20
"""Parts a run is cut into to see how the loss moved: a twentieth averages the noise and still shows a decay."""
MIN_BLOCK: Final = 5
"""Losses in a part, at least: a median of fewer is noise."""

SPIKE_MEMORY: Final = 50
"""Losses before a step that say what is normal there."""
SPIKE_START: Final = 20
"""Steps before which a jump is how trainings begin."""
SPIKE_SIGMA: Final = 7.0
"""Robust standard deviations of the log loss a spike stands out by (7 as in OLMo's search for spikes; its window is 1000)."""
SPIKE_RISE: Final = 0.2
"""A spike gives back at least this share of what the loss has fallen since its start: late in a training the log of a tiny
loss has heavy tails that mean nothing."""
SPIKE_NOISE: Final = 0.05
"""Noise of the log loss that is assumed at least: the losses of a few steps may lie close together by chance."""
RECOVERED: Final = 0.25
"""A spike is over when the loss has come down to this share of its height."""

_CHUNK: Final = 4096
_DENSE: Final = 20_000


@dataclass(frozen=True, slots=True)
class Spike:
    """A sudden rise of the loss.

    Attributes:
        step: where it begins.
        peak: step of the largest loss.
        height: loss there.
        level: loss before it (median of the steps before).
        sigma: robust standard deviations of the log loss that its beginning stands out by.
        share: what part of the way back to the loss of the start it rose; above 1 beyond it.
        lasts: steps until the loss had come down again; for a spike that it never came down from, to the end.
        recovered: whether it came down.
    """

    step: int
    peak: int
    height: float
    level: float
    sigma: float
    share: float
    lasts: int
    recovered: bool


@dataclass(frozen=True)
class Losses:
    """Finite losses of the steps of one optimizer.

    Attributes:
        step: shape (T,), increasing.
        value: shape (T,).
    """

    step: IntArray
    value: FloatArray

    @cached_property
    def learning(self) -> Learning:
        """How they moved from start to end."""
        return Learning.from_losses(self.value)

    @cached_property
    def unit(self) -> float:
        """What a change of the loss is measured by: its size at the start, or its spread where it starts near zero."""
        if not self.value.size:
            return float("nan")
        start = self.learning.start if np.isfinite(self.learning.start) else float(np.median(self.value[:3]))
        spread = np.percentile(self.value, 75) - np.percentile(self.value, 25)
        crosses = bool((self.value < 0.0).any())
        return max(abs(start), float(spread) if crosses else 0.0)

    @cached_property
    def blocks(self) -> FloatArray:
        """Medians of up to `BLOCKS` equal parts in order; empty where there are not enough losses for four."""
        count = min(BLOCKS, self.value.size // MIN_BLOCK)
        if count < 4:
            return np.empty(0)
        return np.array([np.median(part) for part in np.array_split(self.value, count)], dtype=np.float64)

    @cached_property
    def block_noise(self) -> float:
        """Robust standard deviation of a single loss about the median of its part, over the last half; NaN if unknown."""
        count = self.blocks.size
        if not count:
            return float("nan")
        parts = np.array_split(self.value, count)[count // 2 :]
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.median([1.4826 * np.median(np.abs(part - np.median(part))) for part in parts]))

    def drift(self, share: float = 0.5) -> float:
        """How far the loss fell over the last ``share`` of the run, as a share of `unit`; negative when it rose.

        Twice the difference of the medians of the two halves of that stretch, which is the fall of a steady slope.
        """
        count = self.blocks.size
        last = self.blocks[count - max(2, round(share * count)) :] if count else self.blocks
        if last.size < 2 or not self.unit:
            return float("nan")
        half = last.size // 2
        return 2.0 * float(np.median(last[:half]) - np.median(last[-half:])) / self.unit

    def drift_error(self, share: float = 0.5) -> float:
        """Standard error of `drift` from the noise of single losses."""
        if not self.blocks.size or not self.unit:
            return float("nan")
        count = max(share * self.value.size / 2.0, 1.0)
        return 2.0 * 1.2533 * np.sqrt(2.0 / count) * self.block_noise / self.unit

    @cached_property
    def above_start(self) -> float:
        """Largest loss after the first step over the loss of the very first, in `unit` (0: never above it)."""
        if self.value.size < 2 or not self.unit:
            return float("nan")
        return max(float(self.value[1:].max() - self.value[0]) / self.unit, 0.0)

    @cached_property
    def spikes(self) -> tuple[Spike, ...]:
        """Sudden rises of the loss beyond its noise and beyond what matters, in order."""
        found: list[Spike] = []
        if self.value.size <= SPIKE_START or not self.unit:
            return ()
        median, sigma = self._normal()
        start = float(np.median(self.value[:3]))
        best = np.minimum.accumulate(median)
        fallen = np.maximum(start - best, 0.0)
        rise = self.value - median
        # where the loss has not fallen yet, a rise must be large against its start instead
        enough = rise > SPIKE_RISE * np.maximum(fallen, 0.5 * self.unit)
        candidates = np.flatnonzero((sigma > SPIKE_SIGMA) & enough)
        free = 0
        for at in (int(c) for c in candidates):
            if at < free:
                continue
            spike, free = self._spike(at, float(median[at]), float(sigma[at]), start)
            found.append(spike)
        return tuple(found)

    def _spike(self, at: int, level: float, sigma: float, start: float) -> tuple[Spike, int]:
        """The spike that begins at index ``at``, and the index at which it is over."""
        after = self.value[at:]
        top = np.maximum.accumulate(after)
        low = after <= level + RECOVERED * (top - level)
        # two of three in a row: one lucky batch is no recovery
        calm = low[2:].astype(int) + low[1:-1] + low[:-2] >= 2 if low.size > 2 else np.zeros(0, np.bool_)
        ends = np.flatnonzero(calm)
        recovered = ends.size > 0
        # at the very end of what was seen nothing can be said of what comes after
        last = int(ends[0]) if recovered else low.size - 1
        peak = int(np.argmax(after[: last + 1]))
        height = float(after[peak])
        share = (height - level) / (start - level) if start > level else float("inf")
        lasts = int(self.step[at + last] - self.step[at]) + (0 if recovered else 1)
        spike = Spike(int(self.step[at]), int(self.step[at + peak]), height, level, sigma, share, max(lasts, 1), recovered)
        return spike, at + last + 1

    def _normal(self) -> tuple[FloatArray, FloatArray]:
        """Median of the losses before each one, and by how many robust deviations of the log it stands out."""
        value = self.value
        positive = bool((value > 0.0).all())
        y = np.log(value) if positive else value
        floor = SPIKE_NOISE if positive else SPIKE_NOISE * self.unit
        median, sigma = np.array(value, dtype=np.float64), np.zeros(value.size)
        width = min(SPIKE_MEMORY, max(SPIKE_START, y.size // 4))
        # of a long run every few steps: what is normal does not change within a tenth of its memory
        stride = int(np.clip(y.size // _DENSE, 1, SPIKE_MEMORY // 10))
        windows = np.lib.stride_tricks.sliding_window_view(y[:-1], width)[::stride]
        middles, spreads = np.empty(len(windows)), np.empty(len(windows))
        for begin in range(0, len(windows), _CHUNK):
            before = windows[begin : begin + _CHUNK]
            middle = np.median(before, axis=1)
            middles[begin : begin + _CHUNK] = middle
            spreads[begin : begin + _CHUNK] = 1.4826 * np.median(np.abs(before - middle[:, None]), axis=1)
        at = np.arange(width, y.size)
        normal = (at - width) // stride
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            sigma[at] = (y[at] - middles[normal]) / np.maximum(spreads[normal], floor)
            median[at] = np.exp(middles[normal]) if positive else middles[normal]
        sigma[~np.isfinite(sigma)] = 0.0
        return median, sigma


def losses_of(ledger: Ledger) -> tuple[Losses, ...]:
    """The finite losses of each optimizer that takes turns with others; all of them together where none does."""
    loss = ledger["loss"] if ledger.step.size else np.empty(0)
    known = np.isfinite(loss)
    turns = turn_takers(ledger)
    if not turns:
        return (Losses(ledger.step[known], loss[known]),)
    which = ledger["optimizer"]
    return tuple(Losses(ledger.step[known & (which == k)], loss[known & (which == k)]) for k in turns)


def turn_takers(ledger: Ledger) -> tuple[float, ...]:
    """Numbers of the optimizers that take turns (a GAN, an actor and a critic); empty where there is one, or phases."""
    if not ledger.step.size:
        return ()
    which = ledger["optimizer"]
    which = which[np.isfinite(which) & (which >= 0)]
    numbers, counts = np.unique(which, return_counts=True)
    often = numbers[counts >= 0.05 * which.size]
    switches = np.count_nonzero(np.diff(which))
    return tuple(float(n) for n in often) if often.size > 1 and switches >= 0.05 * which.size else ()
