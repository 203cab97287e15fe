"""The loss of a real network along directions in its space of weights, tabulated once and interpolated exactly enough.

A 64-16-10 tanh network on 100 handwritten digits is trained for a while. The first direction leads from where it arrived
back to where it was initialised (Goodfellow, Vinyals, Saxe 2015); the second is random, with the norm of each tensor that of
the first (in the manner of Li et al. 2018). Loss and derivative on the nodes come from the network; between them stands a
spline (within 1e-3 of the network), so that a descent of hundreds of steps takes milliseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline, RectBivariateSpline
from torch import Tensor

from gradiometer.data import DEMO_DATA
from gradiometer.record.ledger import BoolArray, FloatArray

TABLE: Final = 2.0
"""Both coordinates are tabulated from minus to plus this, in units of the way from training back to initialisation. Outside,
the loss is taken to be what it is at the edge."""
LINE_NODES: Final = 161
PLANE_NODES: Final = 45

_DIGITS: Final = 100
_HIDDEN: Final = 16
_TRAIN_STEPS: Final = 60
_TRAIN_RATE: Final = 2.0
_CHUNK: Final = 343
_LOCK: Final = threading.RLock()
"""Held while something is tabulated, so that threads which ask at the same time do it once."""

Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""Weight and bias of the hidden layer, weight and bias of the output layer, each with a leading dimension."""


@dataclass(frozen=True)
class _Plane:
    """Where it was trained to, two directions, and the data."""

    origin: Weights
    directions: tuple[Weights, Weights]
    images: Tensor
    labels: Tensor

    def loss(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross entropy at points (n, 2) of the plane, and its gradient there: shapes (n,) and (n, 2)."""
        at = points.clone().requires_grad_()
        x, y = at[:, 0, None, None], at[:, 1, None, None]
        w1, b1, w2, b2 = (w + x * a + y * b for w, a, b in zip(self.origin, *self.directions, strict=True))
        losses = _loss((w1, b1, w2, b2), self.images, self.labels)
        (slope,) = torch.autograd.grad(losses.sum(), at)
        return losses.detach(), slope


def _loss(weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of n networks at once, shape (n,); weights have shape (n, in, out), biases (n, 1, out)."""
    w1, b1, w2, b2 = weights
    logits = torch.tanh(images @ w1 + b1) @ w2 + b2
    right = logits[:, torch.arange(len(labels)), labels]
    return (logits.logsumexp(dim=-1) - right).mean(dim=-1)


def network_loss(points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Loss of the network itself and its gradient by autograd.

    Args:
        points: in the plane, shape (n, 2).

    Returns:
        Values (n,) and gradients (n, 2).
    """
    plane = _plane()
    values, slopes = zip(*(plane.loss(part) for part in torch.tensor(points, dtype=torch.float64).split(_CHUNK)), strict=True)
    return torch.cat(values).numpy(), torch.cat(slopes).numpy()


@cache
def _make() -> _Plane:
    with np.load(DEMO_DATA) as digits:
        images = torch.tensor(digits["x"][:_DIGITS], dtype=torch.float64) / 16.0
        labels = torch.tensor(digits["y"][:_DIGITS], dtype=torch.long)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator, dtype=torch.float64)

    none = torch.zeros(1, 1, _HIDDEN, dtype=torch.float64), torch.zeros(1, 1, 10, dtype=torch.float64)
    start: Weights = (drawn(64, _HIDDEN) / 8.0, none[0], drawn(_HIDDEN, 10) / 4.0, none[1])
    trained = start
    for _ in range(_TRAIN_STEPS):
        leaves = _weights(w.clone().requires_grad_() for w in trained)
        slopes = torch.autograd.grad(_loss(leaves, images, labels).sum(), leaves)
        trained = _weights(w - _TRAIN_RATE * s for w, s in zip(trained, slopes, strict=True))
    back = _weights(s - t for s, t in zip(start, trained, strict=True))
    noise = _weights(drawn(*w.shape[1:]) for w in back)
    other = _weights(n * (w.norm() / n.norm()) for n, w in zip(noise, back, strict=True))
    return _Plane(trained, (back, other), images, labels)


def _weights(tensors: Iterable[Tensor]) -> Weights:
    w1, b1, w2, b2 = tensors
    return w1, b1, w2, b2


def _plane() -> _Plane:
    with _LOCK:
        return _make()


@cache
def _line_spline() -> CubicHermiteSpline:
    x = np.linspace(-TABLE, TABLE, LINE_NODES)
    value, slope = network_loss(np.stack([x, np.zeros_like(x)], axis=-1))
    return CubicHermiteSpline(x, value, slope[:, 0])


@cache
def _plane_spline() -> RectBivariateSpline:
    side = np.linspace(-TABLE, TABLE, PLANE_NODES)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
    value, _ = network_loss(grid.reshape(-1, 2))
    return RectBivariateSpline(side, side, value.reshape(PLANE_NODES, PLANE_NODES))


def line(x: FloatArray, order: int) -> FloatArray:
    """Loss along the first direction, or its first or second derivative.

    Args:
        x: coordinates, any shape.
        order: of the derivative, 0 to 2.
    """
    with _LOCK:
        spline = _line_spline()
    return np.where(_within(x, order), spline(np.clip(x, -TABLE, TABLE), order), 0.0)


def plane(points: FloatArray, east: int, north: int) -> FloatArray:
    """Loss in the plane, or a derivative of it.

    Args:
        points: shape (..., 2).
        east: order of the derivative along the first direction.
        north: order along the second; together at most 2.
    """
    with _LOCK:
        spline = _plane_spline()
    x, y = points[..., 0], points[..., 1]
    values = spline.ev(np.clip(x, -TABLE, TABLE), np.clip(y, -TABLE, TABLE), dx=east, dy=north)
    return np.where(_within(x, east) & _within(y, north), values, 0.0)


def _within(x: FloatArray, order: int) -> BoolArray:
    """Where a derivative of this order is that of the table: a value always, a slope only inside."""
    return np.abs(x) <= (TABLE if order else np.inf)
