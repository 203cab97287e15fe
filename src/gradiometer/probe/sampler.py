"""When to look: a time budget decides, never a step count alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ALLOWANCE: Final = 0.25
"""Seconds that a first series of looks may cost beyond the running budget, once: without it a training of a few seconds
could not be looked at at all. The series is log-spaced, so it reaches over any length of training."""

FIRST_LOOKS: Final = 8
"""Looks of the first series that are taken whatever they cost: on a busy machine or with a large model a quarter of a
second buys one or two, too few to tell what lasts from what heals. A look costs about one step, rarely more than three."""

SERIES_GROWTH: Final = 0.3
"""The gap to the next look of the first series, as a share of the steps so far: 0, 1, 2, 3, 4, 6, 8, 11, 15, 20, ..."""

SERIES_REACH: Final = 3000
"""Steps the first series is spread over when looks are expensive."""

RUNNING_GROWTH: Final = 0.02
"""The same for looks paid by the running budget."""

MAX_GAP: Final = 500
"""Looks paid by the running budget are never planned further apart than this."""

HEADROOM: Final = 0.8
"""Share of the budget that is spent: what our clock does not see (torch's own dispatch to hooks, cold caches) and a look
that costs more than the last ones must fit into the rest."""

NORM_SHARE: Final = 0.3
"""Share of the running budget for gradient norms of steps that are not looked at. They are cheap and would otherwise take
whatever a look waits for."""

FORCED_LOOKS: Final = 16
"""Looks that trouble may force outside the budget, in all."""


@dataclass(slots=True)
class Sampler:
    """Decides which steps are looked at, so that the probe's own measured time stays under ``fraction`` of the training.

    Attributes:
        fraction: share of the training's time that the probe may take, e.g. 0.01.
        every: fixed cadence asked for by the user; None lets the budget decide.
    """

    fraction: float
    every: int | None = None
    _series: int = 0
    _running: int = 0
    _paid: float = 0.0
    _look_cost: float = 0.0
    _from_series: bool = True
    _forced: int = 0
    _trouble: bool = False
    _random: int = 0x2545F491
    _norms: float = 0.0
    _taken: int = 0

    def restart(self) -> None:
        """A new training begins, in a forked process: what was spent and planned was the parent's."""
        self.__init__(self.fraction, self.every)

    def trouble(self) -> None:
        """Something happened (a jump of the loss, a NaN): look at the next step whatever the budget says."""
        if self._forced < FORCED_LOOKS:
            self._trouble = True

    def again(self) -> None:
        """The planned look saw no training forward: look at the next step instead."""
        self._series = 0

    def spare(self, elapsed: float, spent: float) -> float:
        """Seconds of the running budget that may be spent now; negative when it is overdrawn."""
        return HEADROOM * self.fraction * elapsed - (spent - self._paid)

    def look_at(self, step: int, elapsed: float, spent: float, stride: int) -> bool:
        """Whether to look at ``step`` (0-based).

        Args:
            step: the step that is about to begin.
            elapsed: seconds of training so far.
            spent: seconds of it that were the probe's own.
            stride: thinning asked for by the record's size (1 at first).
        """
        self._from_series = False
        if self._trouble:
            self._trouble = False
            self._forced += 1
            return True
        if self.every is not None:
            return step % (self.every * stride) == 0
        self._from_series = step >= self._series and self._looks_left() >= 1.0
        return self._from_series or (step >= self._running and self._look_cost <= self.spare(elapsed, spent))

    def looked(self, step: int, cost: float, stride: int) -> None:
        """Tell what a look cost (seconds); plans the next one."""
        # the first look also pays for things that happen once (names, files): it does not count as typical
        typical = cost if step else 0.5 * cost
        self._look_cost = typical if self._look_cost == 0.0 else 0.5 * (self._look_cost + typical)
        if self._from_series:
            self._paid += cost
            self._taken += 1
        # jitter from a generator of our own: a fixed cadence could see only one of two optimizers that take turns, or
        # only the last micro-batch
        self._random = (1103515245 * self._random + 12345) & 0x7FFFFFFF
        gap = min(1 + int(RUNNING_GROWTH * step), MAX_GAP) * stride
        self._running = step + gap + (self._random >> 16) % (gap // 4 + 2)
        if step >= self._series:
            # what is left of the allowance must reach over the training: looks that cost much are spread wider
            left = max(self._looks_left(), 1.0)
            growth = max(SERIES_GROWTH, (SERIES_REACH / (step + 1)) ** (1.0 / left) - 1.0)
            self._series = step + 1 + int(growth * step)

    def _looks_left(self) -> float:
        """How many looks the first series still has."""
        return max((ALLOWANCE - self._paid) / max(self._look_cost, 1e-6), float(FIRST_LOOKS - self._taken))

    def norm_fits(self, cost: float, elapsed: float) -> bool:
        """Whether a gradient norm of the given cost (seconds) fits its share of the running budget."""
        return self._norms + cost <= NORM_SHARE * HEADROOM * self.fraction * elapsed

    def took_norm(self, cost: float) -> None:
        """Tell what a gradient norm cost (seconds)."""
        self._norms += cost
