"""What the rules about time share: how a gradient changes over the steps of a recurrent layer. No rule itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gradiometer.record.depth import falls_towards_input, falls_towards_output
from gradiometer.record.frames import Group
from gradiometer.record.trace import BoolArray, FloatArray, Trace
from gradiometer.types import Role

MIN_STEPS: Final = 8
"""Fewer calls of one module are shared layers rather than time, and no factor is multiplied often."""


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A layer that is run over time, or a module that is called again and again.

    Attributes:
        sites: names of its sites; of an unrolled module in order of its calls.
        length: steps of time.
        known: looks that measured it, shape (S,).
        falls: decades by which the gradient is smaller at the first step than at the last ones, shape (S,).
        rises: decades by which it is larger at an earlier step than at the last ones, shape (S,).
        unrolled: whether its calls are sites of their own, so that what is told of depth is told of its time too.
    """

    sites: tuple[str, ...]
    length: int
    known: BoolArray
    falls: FloatArray
    rises: FloatArray
    unrolled: bool


def recurrences(trace: Trace) -> list[Recurrence]:
    """Everything in the network that is run over at least `MIN_STEPS` steps."""
    found: list[Recurrence] = []
    for i in np.flatnonzero(trace.recorded[Group.TIME].any(axis=0)):
        length = trace.values["time_steps"][:, i]
        length = int(np.nanmedian(length)) if np.isfinite(length).any() else 0
        y = trace.time_decades[:, i, ::-1]  # from the first step to the last
        if length >= MIN_STEPS and not np.isnan(y).all():
            found.append(_recurrence(trace.names([int(i)]), length, y, unrolled=False))
    for group in trace.unrolled:
        site = trace.sites[int(group[0])]
        if group.size < MIN_STEPS or site.role in (Role.ACTIVATION, Role.NORM, Role.EMBEDDING):
            continue
        y = trace.log10_gradient[:, group]
        if not np.isnan(y).all():
            found.append(_recurrence(trace.names(group), int(group.size), y, unrolled=True))
    return found


def _recurrence(sites: tuple[str, ...], length: int, y: FloatArray, *, unrolled: bool) -> Recurrence:
    finite = np.where(np.isfinite(y), y, np.nan)
    return Recurrence(
        sites,
        length,
        np.asarray((~np.isnan(y)).any(axis=1)),
        falls_towards_input(y),
        falls_towards_output(finite),
        unrolled,
    )
