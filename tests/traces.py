"""Synthetic traces: a healthy network of dense layers and activations, any part of which a test may spoil."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradiometer.record.frames import SIGNALS, Flag, Group
from gradiometer.record.ledger import Ledger
from gradiometer.record.reading import SITE_GROUPS
from gradiometer.record.trace import Trace
from gradiometer.types import Place, Role, Site

FloatArray = NDArray[np.float64]

LOOKS = (0, 1, 2, 4, 6, 10, 20, 40, 80, 119)
STEPS = 120
COUNT = 6400.0

FALLING = np.geomspace(1.0, 0.05, STEPS)
FLAT = np.full(STEPS, 1.0)


def output(name: str, role: Role = Role.LINEAR, depth: int = 0, chain: int = 0, units: int = 64, kind: str = "") -> Site:
    """An output site."""
    return Site(name, Place.OUTPUT, kind or role.value, role, depth, units=units, chain=chain, module=name)


def stack(layers: int, chain: int = 0, prefix: str = "", activation: bool = True, kind: str = "") -> list[Site]:
    """Dense layers with activations (of this kind) between them and a head: ``fc0, act0, fc1, act1, ..., head``."""
    sites: list[Site] = []
    for k in range(layers):
        sites.append(output(f"{prefix}fc{k}", Role.LINEAR, chain=chain))
        if activation:
            sites.append(output(f"{prefix}act{k}", Role.ACTIVATION, chain=chain, kind=kind))
    sites.append(output(f"{prefix}head", Role.LINEAR, chain=chain, units=1))
    return sites


def make(
    sites: Sequence[Site] | int = 8,
    *,
    looks: Sequence[int] = LOOKS,
    gradient: ArrayLike = 0.0,
    signal: ArrayLike = 0.0,
    varying: ArrayLike = 0.5,
    saturated: ArrayLike = np.nan,
    dead: ArrayLike = np.nan,
    examples: float = 1000.0,
    weight_gradient: ArrayLike = 0.0,
    weight: ArrayLike = 0.0,
    update: ArrayLike = -3.0,
    loss: ArrayLike = FALLING,
    flags: Mapping[int, Flag] | None = None,
    nonfinite: Mapping[Group, ArrayLike] | None = None,
    events: Sequence[Mapping[str, Any]] = (),
    others: Sequence[Site] = (),
    parameter: Mapping[str, Any] | None = None,
    more: Mapping[str, ArrayLike] | None = None,
    marks: Mapping[Flag, ArrayLike] | None = None,
    each_step: Mapping[str, ArrayLike] | None = None,
) -> Trace:
    """A trace of ``S`` looks at ``N`` output sites, and a weight for every dense layer.

    Args:
        sites: output sites, or a number of layers for `stack`.
        looks: the sampled steps.
        gradient: log10 of the L2 norm of the gradient of outputs, broadcast to (S, N); -inf is zero, NaN not recorded.
        signal: log10 of the rms of outputs, the same.
        varying: share of an output that varies over the batch, the same.
        saturated: share of an activation that is saturated, the same.
        dead: share of an activation's units that are dead, the same.
        examples: behind ``dead``.
        weight_gradient: log10 of the rms of the gradient of weights, broadcast to (S, parameters).
        weight: log10 of the rms of weights, the same; NaN is a weight that is not finite.
        update: log10 of update / weight, the same.
        loss: of every step, (T,).
        flags: of the ledger, by step; a non-finite loss is flagged anyway.
        nonfinite: which rows of a group held a NaN or an infinity, broadcast to (S, sites).
        events: of the probe.
        others: sites after the parameters (places of attention).
        parameter: fields of `Site` for all parameters.
        more: values of further signals by name, broadcast to (S, all sites: outputs, parameters, others).
        marks: rows of parameters that carry a flag, broadcast to (S, parameters).
        each_step: values of further signals of the ledger by name, broadcast to (T,).
    """
    outputs = stack(sites) if isinstance(sites, int) else list(sites)
    outputs = [replace(s, depth=i) for i, s in enumerate(outputs)]
    dense = [s for s in outputs if s.role is Role.LINEAR]
    parameters = [
        Site(
            f"{s.name}.weight", Place.PARAMETER, "2-d", Role.OTHER, s.depth, units=4096, chain=-1, module=s.name, shape=(64, 64)
        )
        for s in dense
    ]
    parameters = [replace(s, **(parameter or {})) for s in parameters]
    steps = np.array(looks, dtype=np.int64)
    first, second = (steps.size, len(outputs)), (steps.size, len(parameters))
    every = (steps.size, len(outputs) + len(parameters) + len(others))

    def power(log10: ArrayLike, shape: tuple[int, int]) -> FloatArray:
        with np.errstate(over="ignore"):
            return 10.0 ** (2.0 * np.broadcast_to(np.asarray(log10, dtype=np.float64), shape))

    values = {s.name: np.full(every, np.nan) for s in SIGNALS if s.group is not Group.LEDGER}
    n, m = len(outputs), len(outputs) + len(parameters)
    active = np.array([s.role is Role.ACTIVATION for s in outputs], dtype=np.bool_)
    units = np.array([s.units for s in outputs], dtype=np.float64)
    with np.errstate(over="ignore"):
        sumsq = COUNT * power(signal, first)
    values["output_count"][:, :n] = COUNT
    values["output_sumsq"][:, :n] = sumsq
    with np.errstate(invalid="ignore"):
        values["output_varying"][:, :n] = sumsq * np.broadcast_to(varying, first)
    values["output_saturated"][:, :n] = np.where(active, COUNT * np.broadcast_to(saturated, first), np.nan)
    values["output_dead"][:, :n] = np.where(active, units * np.broadcast_to(dead, first), np.nan)
    values["output_examples"][:, :n] = np.where(active, examples, np.nan)
    values["gradient_sumsq"][:, :n] = power(gradient, first)
    values["weight_count"][:, n:m] = 4096.0
    with np.errstate(over="ignore"):
        values["weight_sumsq"][:, n:m] = 4096.0 * power(weight, second)
        values["weight_gradient_sumsq"][:, n:m] = 4096.0 * power(weight_gradient, second)
    with np.errstate(over="ignore", invalid="ignore"):
        values["update_sumsq"][:, n:m] = values["weight_sumsq"][:, n:m] * power(update, second)

    recorded = {g: np.zeros(every, np.bool_) for g in SITE_GROUPS}
    recorded[Group.OUTPUT][:, :n] = True
    recorded[Group.GRADIENT][:, :n] = ~np.isnan(values["gradient_sumsq"][:, :n])
    recorded[Group.PARAMETER][:, n:m] = True
    bad = {g: np.array(np.broadcast_to((nonfinite or {}).get(g, False), every)) for g in SITE_GROUPS}
    bad[Group.PARAMETER][:, n:m] |= ~np.isfinite(values["weight_sumsq"][:, n:m])
    for name, value in (more or {}).items():
        values[name][:] = np.broadcast_to(np.asarray(value, dtype=np.float64), every)
        group = next(s.group for s in SIGNALS if s.name == name)
        if group in (Group.TIME, Group.ATTENTION):
            recorded[group] |= ~np.isnan(values[name])
    flagged = {flag: np.zeros(every, np.bool_) for flag in (Flag.NO_GRADIENT, Flag.UNOWNED)}
    for flag, held in (marks or {}).items():
        flagged[flag][:, n:m] = np.broadcast_to(held, second)
    sites = (*outputs, *parameters, *others)
    book = ledger(loss, flags)
    for name, value in (each_step or {}).items():
        book.values[name][:] = value
    return Trace(sites, steps, values, bad, recorded, book, events=tuple(events), marks=flagged)


def ledger(loss: ArrayLike, flags: Mapping[int, Flag] | None = None) -> Ledger:
    """Every-step numbers with this loss."""
    losses = np.asarray(loss, dtype=np.float64)
    bits = np.where(np.isfinite(losses), 0, int(Flag.NONFINITE)).astype(np.int64)
    for step, flag in (flags or {}).items():
        bits[step] |= int(flag)
    values = {s.name: np.full(losses.size, np.nan) for s in SIGNALS if s.group is Group.LEDGER}
    values["loss"] = losses
    return Ledger(np.arange(losses.size, dtype=np.int64), bits, values)


def empty() -> Trace:
    """A trace of a command that never trained: no sites, no steps."""
    return make([], looks=(), loss=())


def ramp(count: int, start: float, end: float) -> FloatArray:
    """A steady change along depth, shape (count,)."""
    return np.linspace(start, end, count)


def first_looks(count: int, then: ArrayLike, later: ArrayLike, sites: int = 17) -> FloatArray:
    """``then`` for the first ``count`` looks, ``later`` afterwards, shape (S, sites)."""
    rows = [np.broadcast_to(np.asarray(then if k < count else later, dtype=np.float64), (sites,)) for k in range(len(LOOKS))]
    return np.stack(rows)
