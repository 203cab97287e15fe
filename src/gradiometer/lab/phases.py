"""The plane of initialisations: sigma_w across, sigma_b up, and at each point what becomes of a deep network.

chi at the variance that the signals settle at (`Plane`), the edge of chaos chi = 1, how deep a network can be, and small real
networks trained at points of the plane. `gradiometer.theory.MeanField` answers for one point, exactly; a whole plane is
interpolated here from its moments on a grid of variances, and tested against it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from gradiometer.data import DEMO_DATA
from gradiometer.errors import GradiometerError
from gradiometer.lab import hermite
from gradiometer.lab.elementwise import elementwise
from gradiometer.lab.ensembles import Architecture, Examples, Member, Training, rates, sweep
from gradiometer.theory.activations import activation
from gradiometer.theory.criticality import CriticalPoint, edge_at, edge_of_chaos
from gradiometer.theory.meanfield import START_Q, TRAINABLE_SCALES, VANISHED, straight_lines

FloatArray = npt.NDArray[np.float64]

SIGMA_W: Final = tuple(float(f"{0.5 * 2.0 ** (k / 6):.4g}") for k in range(31))
"""Stops of sigma_w, 0.5 to 16, six an octave: 1 (Xavier) and 1.414 (He) are among them."""
SIGMA_B: Final = tuple(round(0.05 * k, 2) for k in range(21))
"""Stops of sigma_b, 0 to 1."""

_FINER: Final = 2  # points of the plane for each stop
_SCAN: Final = 1201  # variances among which the fixed point is looked for
_STILL: Final = 1e-8  # relative change that is none
_HALVINGS: Final = 40


# ---- theory over the plane ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Theory at every point of a grid, arrays of shape (sigma_b, sigma_w).

    Attributes:
        activation: its name.
        sigma_w: shape (W,), logarithmic.
        sigma_b: shape (B,).
        q: variance that signals of variance 1 settle at; 0 or infinity where they run away.
        log10_chi: log10 of the factor of the squared gradient per layer there.
        c_star: correlation of two inputs deep in the network.
        depth: hidden layers that a network can have: six depth scales of the correlation, or those after which the gradient has
            changed a million times, whichever are fewer (Schoenholz et al. 2017); infinite on the edge.
    """

    activation: str
    sigma_w: FloatArray
    sigma_b: FloatArray
    q: FloatArray
    log10_chi: FloatArray
    c_star: FloatArray
    depth: FloatArray


@lru_cache(maxsize=16)
def plane(name: str) -> Plane:
    """Theory over the whole plane for an activation.

    Raises:
        GradiometerError: the lab has no such activation.
    """
    elementwise(name)
    count = _FINER * (len(SIGMA_W) - 1) + 1
    sigma_w = SIGMA_W[0] * (SIGMA_W[-1] / SIGMA_W[0]) ** (np.arange(count) / (count - 1))
    sigma_b = np.linspace(SIGMA_B[0], SIGMA_B[-1], _FINER * (len(SIGMA_B) - 1) + 1)
    moments = hermite.moments(name)
    t = _settled(moments, sigma_w, sigma_b)
    inside = np.clip(t, -hermite.DECADES, hermite.DECADES)
    q, w2 = 10.0**inside, sigma_w**2
    chi = w2 * moments.slope(inside)
    square, length = q * moments.square(inside), w2 * q * moments.square(inside) + sigma_b[:, None] ** 2
    c, slope = _correlations(moments, inside, w2, sigma_b[:, None] ** 2, square, length)
    with np.errstate(divide="ignore"):
        depth = np.minimum(TRAINABLE_SCALES / -np.log(np.minimum(slope, 1.0)), -math.log(VANISHED) / np.abs(np.log(chi)))
    return Plane(name, sigma_w, sigma_b, np.where(np.isinf(t), 10.0**t, q), np.log10(chi), c, depth)


def _settled(moments: hermite.Moments, sigma_w: FloatArray, sigma_b: FloatArray) -> FloatArray:
    """log10 of the variance that 1 flows to, -inf or inf where it leaves the table, shape (B, W)."""
    t = np.linspace(-hermite.DECADES, hermite.DECADES, _SCAN)
    square, over = moments.square(t), 10.0**-t
    start = int(np.argmin(np.abs(t - math.log10(START_Q))))
    found = np.empty((sigma_b.size, sigma_w.size))
    for row, bias in enumerate(sigma_b):
        rest = sigma_w[:, None] ** 2 * square + bias**2 * over - 1.0  # relative change of a variance in a layer
        rest[np.abs(rest) < _STILL] = 0.0
        up, down = rest[:, start:], rest[:, start::-1]
        for column, (above, below) in enumerate(zip(up <= 0.0, down >= 0.0, strict=True)):
            at = rest[column]
            if at[start] == 0.0:
                found[row, column] = t[start]
            elif at[start] > 0.0:
                first = int(np.argmax(above))
                found[row, column] = _between(t, at, start + first - 1, start + first) if above[first] else math.inf
            else:
                first = int(np.argmax(below))
                found[row, column] = _between(t, at, start - first, start - first + 1) if below[first] else -math.inf
    return found


def _between(t: FloatArray, rest: FloatArray, low: int, high: int) -> float:
    """Where a line through two points is zero."""
    return float(t[low] + (t[high] - t[low]) * rest[low] / (rest[low] - rest[high]))


def _correlations(
    moments: hermite.Moments, t: FloatArray, w2: FloatArray, b2: FloatArray, square: FloatArray, length: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Correlation deep in the network and the slope of the correlation map there, shape (B, W)."""
    q = 10.0**t
    series = np.moveaxis(np.asarray(moments.series(t)), -1, 0) * q
    rest, power = hermite.with_rest(series, square, q * moments.slope(t))
    powers = np.arange(len(series)).reshape(-1, 1, 1)

    def above(c: FloatArray) -> FloatArray:
        value = np.zeros_like(c)
        for a in series[::-1]:
            value = value * c + a
        return (w2 * (value + rest * c**power) + b2) / length - c

    low, high = np.zeros_like(q), np.full_like(q, 1.0)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        up = above(middle) > 0.0
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    at_one = w2 * q * moments.slope(t) / length
    c = np.where(at_one <= 1.0 + _STILL, 1.0, 0.5 * (low + high))
    with np.errstate(divide="ignore", invalid="ignore"):
        steep = (powers[1:] * series[1:] * c ** (powers[1:] - 1)).sum(axis=0) + rest * power * c ** (power - 1.0)
    return c, np.where(c == 1.0, at_one, w2 * steep / length)


@lru_cache(maxsize=16)
def edge(name: str) -> tuple[CriticalPoint, ...]:
    """Points of the edge of chaos within the plane, by their variance; those that signals flow to have ``stable`` set."""
    if straight_lines(activation(name)) is not None:
        return edge_at(name, 0.0)
    found = (edge_of_chaos(name, float(q)) for q in np.logspace(-4.0, 3.0, 71))
    return tuple(p for p in found if p is not None and p.sigma_b <= SIGMA_B[-1] and SIGMA_W[0] <= p.sigma_w <= SIGMA_W[-1])


# ---- trained networks --------------------------------------------------------------------------------------------------

POINTS_W: Final = SIGMA_W[1::2]
POINTS_B: Final = SIGMA_B[::4]
"""Points of the plane at which networks are trained."""
DEPTHS: Final = (5, 10, 30)
WIDTH: Final = 32
RATES: Final = (0.003, 0.03, 0.3)
TRAINING: Final = Training(steps=200, batch=64)
EXAMPLES: Final = 512
LEARNED: Final = 0.5
"""Share of the training digits that a network must read to count as trained; a guess reads a tenth."""

TRAINED_FILE: Final = DEMO_DATA.with_name("phases.json")
"""Results of `train_plane`, written by ``python benchmarks/phases.py``."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedPlane:
    """Real networks trained at points of the plane.

    Attributes:
        activation: its name.
        depth: hidden layers.
        sigma_w: shape (W,).
        sigma_b: shape (B,).
        accuracy: share of the training digits read right by the best of the learning rates, shape (B, W); 0 where no
            network gave numbers in the end.
    """

    activation: str
    depth: int
    sigma_w: FloatArray
    sigma_b: FloatArray
    accuracy: FloatArray

    @property
    def learned(self) -> npt.NDArray[np.bool_]:
        """Which of them count as trained, shape (B, W)."""
        return np.asarray(self.accuracy >= LEARNED)


def digits() -> Examples:
    """The first `EXAMPLES` handwritten digits, standardised over all pixels: mean 0, variance 1."""
    with np.load(DEMO_DATA) as file:
        x, y = file["x"][:EXAMPLES].astype(np.float64), file["y"][:EXAMPLES]
    x = (x - x.mean()) / x.std()
    return Examples(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.long))


def train_plane(
    name: str,
    depths: Sequence[int] = DEPTHS,
    sigma_w: Sequence[float] = POINTS_W,
    sigma_b: Sequence[float] = POINTS_B,
    training: Training = TRAINING,
    jobs: int | None = None,
) -> tuple[TrainedPlane, ...]:
    """Train networks of `WIDTH` units on the digits at every point of a grid, with each of `RATES`, for each depth.

    Args:
        name: activation.
        depths: hidden layers.
        sigma_w: one side of the grid.
        sigma_b: the other.
        training: how; plain SGD by default.
        jobs: as for `gradiometer.lab.ensembles.sweep`.
    """
    data = digits()
    members = rates([Member(w, b, 0.0, seed) for seed, (b, w) in enumerate((b, w) for b in sigma_b for w in sigma_w)], *RATES)
    architectures = [Architecture(data.x.shape[1], WIDTH, depth, 10, name) for depth in depths]
    shape = (len(sigma_b), len(sigma_w), len(RATES))
    found = sweep(architectures, members, data, training, jobs)
    return tuple(
        TrainedPlane(
            name,
            depth,
            np.array(sigma_w, dtype=np.float64),
            np.array(sigma_b, dtype=np.float64),
            np.nan_to_num(np.array([t.accuracy for t in trained]).reshape(shape)).max(axis=2),
        )
        for depth, trained in zip(depths, found, strict=True)
    )


def plain(planes: Sequence[TrainedPlane]) -> Mapping[str, Any]:
    """What `TRAINED_FILE` holds of them."""
    kept: dict[str, dict[str, list[list[float]]]] = {}
    for p in planes:
        kept.setdefault(p.activation, {})[str(p.depth)] = np.round(p.accuracy, 3).tolist()
    return {"sigma_w": list(POINTS_W), "sigma_b": list(POINTS_B), "accuracy": kept}


@lru_cache(maxsize=1)
def _file() -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", json.loads(TRAINED_FILE.read_text()))


@lru_cache(maxsize=64)
def trained(name: str, depth: int) -> TrainedPlane:
    """Networks trained beforehand, out of `TRAINED_FILE`.

    Raises:
        GradiometerError: none of that activation and depth were trained.
    """
    file = _file()
    accuracy = file["accuracy"].get(name, {}).get(str(depth))
    if accuracy is None:
        raise GradiometerError(f"No networks of {name} and depth {depth} were trained beforehand.", "Use train_plane.")
    return TrainedPlane(name, depth, np.array(file["sigma_w"]), np.array(file["sigma_b"]), np.array(accuracy))
