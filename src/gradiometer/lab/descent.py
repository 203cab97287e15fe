"""Descents: one ball on one landscape, moved by a real optimizer of ``torch.optim``, and judged by the rules for networks."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from torch.optim import Optimizer

from gradiometer.errors import GradiometerError
from gradiometer.lab.landscapes import Landscape
from gradiometer.record.frames import SIGNALS, Flag, Group
from gradiometer.record.ledger import LEARNED_FALL, BoolArray, FloatArray, Ledger
from gradiometer.record.reading import SITE_GROUPS
from gradiometer.record.trace import Trace
from gradiometer.rules import (
    diagnose,
    divergence,
    learning_rate_too_high,
    learning_rate_too_low,
    loss_spike,
    nonfinite,
    oscillation,
    plateau,
)
from gradiometer.types import Finding, Place, Role, Severity, Site

WARM_UP: Final = 0.2
"""Share of the steps over which the schedule ``warm-up`` raises the learning rate."""
THIRDS: Final = 0.2
"""Factor by which the schedule ``steps`` lowers the learning rate after each third."""
CLIP_EPS: Final = 1e-6
"""What ``torch.nn.utils.clip_grad_norm_`` adds to the norm: clipped gradients are shorter than the threshold by this share."""

SCHEDULES: Final[Mapping[str, Callable[[float], float]]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
    "steps": lambda share: THIRDS ** int(3.0 * share),
    "warm-up": lambda share: min(1.0, 0.02 + share / WARM_UP),
}
"""Name of a schedule to the factor on the learning rate at a share (0 to 1) of the steps."""


@dataclass(frozen=True, slots=True)
class Descent:
    """Settings of a descent.

    Attributes:
        landscape: what is walked on.
        optimizer: name of a class of ``torch.optim``.
        rate: learning rate.
        momentum: ``momentum`` of the optimizer, or the first of its ``betas``; 0 for optimizers that have neither.
        clip: largest norm of the gradient (``torch.nn.utils.clip_grad_norm_``); None for no clipping.
        noise: standard deviation of normal noise on each component of the gradient, in units of the gradient.
        schedule: name in `SCHEDULES`.
        steps: at most this many steps; a descent that leaves the range of numbers ends before.
        seed: of the noise.
        start: first position, as many numbers as the landscape has weights; None for the landscape's own.
        options: further options of the optimizer, as name and value.
    """

    landscape: Landscape
    optimizer: str = "SGD"
    rate: float = 0.1
    momentum: float = 0.0
    clip: float | None = None
    noise: float = 0.0
    schedule: str = "constant"
    steps: int = 120
    seed: int = 0
    start: tuple[float, ...] | None = None
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """What happened on a descent of n steps in d weights. Arrays are not to be written to.

    Attributes:
        settings: its settings.
        positions: shape (n + 1, d), the start first; all finite.
        values: heights f there, shape (n + 1,).
        gradients: exact gradients there, without noise, shape (n + 1, d).
        curvature: largest second derivative there, shape (n + 1,).
        norms: norm of the gradient that the step saw, with its noise and before clipping, shape (n,).
        moves: what each step added to the position, shape (n, d).
        unclipped: what it would have added had the gradient not been clipped there, shape (n, d).
        clipped: whether the gradient was clipped, shape (n,).
        rates: learning rate of each step, shape (n,).
        lost: whether it ended because the next position, height or gradient is no finite number any more.
    """

    settings: Descent
    positions: FloatArray
    values: FloatArray
    gradients: FloatArray
    curvature: FloatArray
    norms: FloatArray
    moves: FloatArray
    unclipped: FloatArray
    clipped: BoolArray
    rates: FloatArray
    lost: bool

    @property
    def taken(self) -> int:
        """Number of steps taken."""
        return self.moves.shape[0]

    @property
    def slopes(self) -> FloatArray:
        """Norm of the exact gradient at each position, shape (n + 1,)."""
        return _length(self.gradients)

    @property
    def stability(self) -> FloatArray:
        """Learning rate times curvature at the start of each step, shape (n,).

        Above 2 plain gradient descent overshoots further with every step on a quadratic (Cohen et al. 2021).
        """
        return self.rates * self.curvature[:-1]


# ---- walking -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def descend(settings: Descent) -> Path:
    """Walk.

    Raises:
        GradiometerError: there is no such optimizer or schedule, the optimizer refuses its options or a dense vector of one
            or two weights, or the settings make no descent (see the message).
    """
    _check(settings)
    land = settings.landscape
    start = np.array(land.start if settings.start is None else settings.start, dtype=np.float64)
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = _optimizer(settings, weight)
    return _walk(settings, weight, optimizer)


def takes_momentum(optimizer: str) -> bool:
    """Whether an optimizer of ``torch.optim`` has a momentum, or betas.

    Raises:
        GradiometerError: there is none of that name.
    """
    return bool({"momentum", "betas"} & set(_parameters(optimizer)))


def _check(settings: Descent) -> None:
    start = settings.start or settings.landscape.start
    if settings.schedule not in SCHEDULES:
        raise GradiometerError(f"There is no schedule {settings.schedule!r}.", "There are: " + ", ".join(SCHEDULES) + ".")
    if len(start) != settings.landscape.dimensions or not all(math.isfinite(x) for x in start):
        raise GradiometerError(
            f"{start} is no place on the landscape {settings.landscape.name!r}.",
            f"Give {settings.landscape.dimensions} finite numbers.",
        )
    positive = settings.rate > 0.0 and settings.steps > 0 and (settings.clip is None or settings.clip > 0.0)
    if not positive or settings.noise < 0.0 or not math.isfinite(settings.rate + settings.noise):
        raise GradiometerError(
            "These settings make no descent.", "Learning rate, steps and clip are positive, noise is not negative."
        )
    if settings.momentum and not takes_momentum(settings.optimizer):
        raise GradiometerError(f"torch.optim.{settings.optimizer} has no momentum.", "Set it to 0.")


def _class(name: str) -> type[Optimizer]:
    found: object = vars(torch.optim).get(name)
    if not isinstance(found, type) or not issubclass(found, Optimizer) or found is Optimizer:
        raise GradiometerError(f"torch.optim has no optimizer {name!r}.", "It is the name of a class, such as SGD or Adam.")
    return found


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_class(name)).parameters


def _optimizer(settings: Descent, weight: torch.nn.Parameter) -> Optimizer:
    known = _parameters(settings.optimizer)
    options: dict[str, Any] = {"lr": settings.rate}
    if "momentum" in known:
        options["momentum"] = settings.momentum
    elif "betas" in known:
        options["betas"] = (settings.momentum, *known["betas"].default[1:])
    if "foreach" in known:
        options["foreach"] = False  # one tensor: the loop is quicker
    make: Callable[..., Optimizer] = _class(settings.optimizer)
    try:
        return make([weight], **{**options, **dict(settings.options)})
    except (TypeError, ValueError, RuntimeError) as error:
        raise GradiometerError(f"torch.optim.{settings.optimizer} refuses: {error}", "Change its options.") from error


class _Slope:
    """The closure of an optimizer: puts the gradient at its weight, with noise, clipped, and returns the height.

    An optimizer may ask several times in one step (LBFGS); what is noted is the first answer.
    """

    def __init__(self, settings: Descent, weight: torch.nn.Parameter) -> None:
        self._land, self._weight, self._noise = settings.landscape, weight, settings.noise
        self._random = np.random.default_rng(settings.seed)
        self._drawn: FloatArray | None = None
        self.limit = settings.clip
        self.norm = math.nan

    def new_step(self) -> None:
        """Draw the noise of the next step."""
        self._drawn = self._random.normal(0.0, self._noise, self._land.dimensions) if self._noise else None
        self.norm = math.nan

    def __call__(self) -> float:
        at = self._weight.detach().numpy()
        slope = self._land.gradient(at)
        self._weight.grad = torch.tensor(slope if self._drawn is None else slope + self._drawn)
        if self.limit is None:
            norm = math.hypot(*self._weight.grad.tolist())
        else:
            norm = float(torch.nn.utils.clip_grad_norm_([self._weight], self.limit, foreach=False))
        self.norm = norm if math.isnan(self.norm) else self.norm
        return float(self._land.value(at))


def _walk(settings: Descent, weight: torch.nn.Parameter, optimizer: Optimizer) -> Path:
    land, factor = settings.landscape, SCHEDULES[settings.schedule]
    slope = _Slope(settings, weight)
    places, ghosts = [weight.detach().numpy().copy()], list[FloatArray]()
    norms, clipped, rates = list[float](), list[bool](), list[float]()
    lost = False
    for step in range(settings.steps):
        rate = settings.rate * factor(step / settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        slope.new_step()
        before = places[-1]
        memory = copy.deepcopy(optimizer.state[weight]) if settings.clip is not None else {}
        _step(optimizer, slope)
        after = weight.detach().numpy().copy()
        cut = settings.clip is not None and slope.norm > settings.clip
        ghost = _without_clip(optimizer, slope, weight, memory, before) if cut else after
        lost = not _is_finite(land, after)
        norms.append(slope.norm)
        clipped.append(cut)
        rates.append(rate)
        ghosts.append(ghost - before)
        if lost:
            break
        places.append(after)
    positions = np.stack(places)
    taken = len(places) - 1
    return Path(
        settings,
        positions,
        land.value(positions),
        land.gradient(positions),
        land.curvature(positions),
        np.array(norms[:taken], dtype=np.float64),
        np.diff(positions, axis=0),
        np.array(ghosts[:taken], dtype=np.float64).reshape(taken, land.dimensions),
        np.array(clipped[:taken], dtype=np.bool_),
        np.array(rates[:taken], dtype=np.float64),
        lost,
    )


def _step(optimizer: Optimizer, slope: _Slope) -> None:
    name = type(optimizer).__name__
    try:
        optimizer.step(slope)
    except (RuntimeError, TypeError, ValueError) as error:
        raise GradiometerError(f"torch.optim.{name} cannot walk here: {error}", "Choose another one.") from error


def _without_clip(
    optimizer: Optimizer, slope: _Slope, weight: torch.nn.Parameter, memory: dict[str, Any], before: FloatArray
) -> FloatArray:
    """Where the same step would have ended without clipping; optimizer and weight stay as they are."""
    after, kept, limit = weight.detach().clone(), optimizer.state[weight], slope.limit
    weight.data.copy_(torch.tensor(before))
    optimizer.state[weight], slope.limit = memory, None
    _step(optimizer, slope)
    ghost = weight.detach().numpy().copy()
    weight.data.copy_(after)
    optimizer.state[weight], slope.limit = kept, limit
    return ghost


def _length(vectors: FloatArray) -> FloatArray:
    """Euclidean norm of each row, without overflow on the way."""
    return np.hypot.reduce(vectors, axis=1)


def _is_finite(land: Landscape, at: FloatArray) -> bool:
    numbers = (at, land.value(at), land.gradient(at))
    return all(bool(np.isfinite(part).all()) for part in numbers)


# ---- the rules ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """What the rules for networks say of a descent.

    Attributes:
        word: one of `WORDS`.
        rule: name of the rule whose finding decided; empty where none spoke, see `read`.
        findings: of `gradiometer.rules.diagnose`, the worst first.
    """

    word: str
    rule: str
    findings: tuple[Finding, ...]


DIVERGING, BOUNCING, STALLED = "overshooting", "bouncing", "stalled on the plateau"
SETTLED, ON_ITS_WAY, UNTOLD = "settled", "still on its way", "too short to tell"
WORDS: Final = (DIVERGING, BOUNCING, STALLED, SETTLED, ON_ITS_WAY, UNTOLD)
"""What a descent may be called."""

_SAYS: Final[Mapping[str, str]] = {
    nonfinite.NAME: DIVERGING,
    divergence.NAME: DIVERGING,
    learning_rate_too_high.NAME: DIVERGING,
    loss_spike.NAME: DIVERGING,
    oscillation.NAME: BOUNCING,
    plateau.NAME: STALLED,
    learning_rate_too_low.NAME: STALLED,
}
"""Rule to what its finding means for a ball."""


def trace_of(path: Path) -> Trace:
    """A descent as the record of a training: one parameter, looked at in every step, and the loss.

    Rules that compare layers have nothing to compare here and are silent.
    """
    settings, n, d = path.settings, path.taken, path.positions.shape[1]
    rows = n + int(path.lost)
    values = {s.name: np.full((n, 1), np.nan) for s in SIGNALS if s.group is not Group.LEDGER}
    with np.errstate(over="ignore"):
        squares = {
            "weight_sumsq": (path.positions[:-1] ** 2).sum(axis=1),
            "weight_gradient_sumsq": path.norms**2,
            "update_sumsq": (path.moves**2).sum(axis=1),
        }
    counts = {
        "weight_count": np.full(n, float(d)),
        "weight_gradient_zeros": (path.gradients[:-1] == 0.0).sum(axis=1).astype(np.float64),
        "update_zeros": ((path.moves == 0.0) & (path.gradients[:-1] != 0.0)).sum(axis=1).astype(np.float64),
    }
    for name, column in {**squares, **counts}.items():
        values[name][:, 0] = column
    site = Site("x", Place.PARAMETER, "1-d", Role.OTHER, 0, units=d, chain=-1, dtype="float64", shape=(d,))
    every = np.zeros((n, 1), np.bool_)
    recorded = {g: every if g is not Group.PARAMETER else ~every for g in SITE_GROUPS}
    event = {"event": "optimizer", "kind": settings.optimizer, "options": {"lr": settings.rate, "momentum": settings.momentum}}
    return Trace(
        (site,),
        np.arange(n, dtype=np.int64),
        values,
        dict.fromkeys(SITE_GROUPS, every),
        recorded,
        _ledger(path, rows),
        events=(event,),
    )


def _ledger(path: Path, rows: int) -> Ledger:
    """Every-step numbers; where the descent was lost, one more step whose loss is no number."""
    n, settings = path.taken, path.settings
    book = {s.name: np.full(rows, np.nan) for s in SIGNALS if s.group is Group.LEDGER}
    book["loss"][:n] = path.values[:-1]
    book["learning_rate"][:n] = path.rates
    book["grad_norm"][:n] = path.norms
    book["clip_threshold"][:] = math.nan if settings.clip is None else settings.clip
    book["overshoot"][1:n] = _overshoot(path)
    flags = np.full(rows, int(Flag.SAMPLED) | int(Flag.PRE_CLIP), np.int64)
    flags[n:] = int(Flag.NONFINITE)
    return Ledger(np.arange(rows, dtype=np.int64), flags, book)


def _overshoot(path: Path) -> FloatArray:
    """Slope along each step but the last, after it against before it, shape (n - 1,); NaN where there was none."""
    moves = path.moves[: max(path.taken - 1, 0)]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        before, after = (path.gradients[:-2] * moves).sum(axis=1), (path.gradients[1:-1] * moves).sum(axis=1)
        ratio = after / before
    return np.where(np.isfinite(ratio), ratio, np.nan)


@lru_cache(maxsize=256)
def read(path: Path) -> Reading:
    """Judge a descent by the rules that judge networks, and put what they say in a word.

    The first finding that speaks of the course of the loss decides, errors before warnings. Where there is none, plain facts
    do, at the levels that rules and record use: exactly flat ground is a plateau; a height that climbs again by a twentieth of
    its start in the last half bounces (`oscillation.SWING`); one that falls is on its way (`plateau.FLAT`); one that fell and
    stands has settled (`LEARNED_FALL`). With a single site, rules that compare layers have nothing to compare.
    """
    trace = trace_of(path)
    findings = tuple(diagnose(trace))
    told = sorted((f for f in findings if f.rule in _SAYS), key=lambda f: f.severity is not Severity.ERROR)
    if told:
        return Reading(_SAYS[told[0].rule], told[0].rule, findings)
    return Reading(_silent(path, trace), "", findings)


def _silent(path: Path, trace: Trace) -> str:
    """The word where no rule speaks."""
    losses = trace.only_losses
    if losses is None or not losses.blocks.size:
        return UNTOLD
    if path.slopes[-1] == 0.0 and path.curvature[-1] <= 0.0:
        return STALLED
    first, last = abs(float(path.values[0])), float(path.values[-1])
    late = path.values[path.values.size // 2 :]
    if float((late - np.minimum.accumulate(late)).max()) >= oscillation.SWING * first:
        return BOUNCING
    if losses.drift() >= plateau.FLAT:  # unknown where the height is zero from the first steps on
        return ON_ITS_WAY
    return SETTLED if path.values[0] - last >= LEARNED_FALL * first else STALLED
