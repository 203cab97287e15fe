"""How a tensor is reduced to the sufficient statistics of `gradiometer.record.frames.SIGNALS`.

On the CPU numbers are read at once (a read there costs nothing); on an accelerator they stay zero-dimensional tensors
on the device until the recorder reads them all in one copy, so that a sampled step never waits for the device.

Squares of small gradients underflow in float32 (below about 1e-23 each): a 30-layer sigmoid network would read exactly
zero although no element is. Sums of squares are therefore taken in float64, or rescaled by the largest element.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

Scalar = float | Tensor
"""A number now, or a 0-d tensor that will be read later."""

NAN: Final = math.nan
SAMPLE_LIMIT: Final = 1 << 18
"""Elements of a large output that the second-order statistics are taken on (regular subsample, offset changes)."""
UNIT_LIMIT: Final = 1 << 22
"""Elements of a large output that dead units are looked for in (leading examples)."""
UPDATE_LIMIT: Final = 1 << 16
"""Elements of a large parameter that its update is measured on (regular subsample)."""
DEAD_EXAMPLES: Final = 1000
"""A unit is dead when it was zero on all of this many examples (fewer than about a thousand cannot tell dead from rare)."""

_TINY, _HUGE = 1e-15, 1e15


@dataclass(frozen=True, slots=True)
class ActivationKind:
    """What the output of an activation tells about its slope.

    Attributes:
        saturated: element mask of the flat part; None for an activation that is not bounded.
        slope2: (slope / steepest slope)^2 per element, from the output alone; None where it cannot be told.
        zero_is_dead: an exact zero means the unit passes no gradient.
    """

    saturated: Callable[[Tensor], Tensor] | None = None
    slope2: Callable[[Tensor], Tensor] | None = None
    zero_is_dead: bool = False


# Flat parts: sigmoid outside .05 to .95, tanh beyond .97, clipped activations at their ends.
RELU: Final = ActivationKind(None, lambda a: (a > 0).to(a.dtype), True)
SIGMOID: Final = ActivationKind(lambda a: (a - 0.5).abs() > 0.45, lambda a: (4 * a * (1 - a)).square())
TANH: Final = ActivationKind(lambda a: a.abs() > 0.97, lambda a: (1 - a.square()).square())
HARDTANH: Final = ActivationKind(lambda a: a.abs() >= 1, lambda a: (a.abs() < 1).to(a.dtype))
HARDSIGMOID: Final = ActivationKind(lambda a: (a <= 0) | (a >= 1), lambda a: ((a > 0) & (a < 1)).to(a.dtype))
SOFTSIGN: Final = ActivationKind(lambda a: a.abs() > 0.9, lambda a: (1 - a.abs()).pow(4))
RELU6: Final = ActivationKind(None, lambda a: ((a > 0) & (a < 6)).to(a.dtype), True)
SMOOTH: Final = ActivationKind()


def sum_of_squares(x: Tensor) -> Scalar:
    """Sum of squares that neither underflows nor overflows before the true result does; NaN or inf if ``x`` has one."""
    if x.numel() == 0:
        return 0.0
    if x.device.type != "cpu":
        return torch.linalg.vector_norm(x, dtype=torch.float64).square()
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    norm = float(torch.linalg.vector_norm(wide))
    if _TINY < norm < _HUGE:
        return norm * norm
    low, high = (float(v) for v in torch.aminmax(wide))
    largest = max(abs(low), abs(high))
    if largest == 0.0 or not math.isfinite(largest):
        return largest * largest
    return (float(torch.linalg.vector_norm(wide.double() / largest)) * largest) ** 2


def read(x: Tensor) -> Scalar:
    """The number in a 0-d tensor where reading costs nothing (on the CPU), else the tensor."""
    return float(x) if x.device.type == "cpu" else x


def plain(x: Tensor) -> Tensor:
    """The local, dense, real tensor behind ``x``, out of the graph: a shard's own part, a complex number's two parts."""
    x = x.detach()
    local = getattr(x, "_local_tensor", None)  # DTensor, without importing torch.distributed
    if local is not None:
        x = local.detach()
    if x.is_sparse:
        x = x.coalesce().values()
    return torch.view_as_real(x) if x.is_complex() else x


def format_of(x: Tensor) -> str:
    """Number format of a tensor, e.g. ``float32``."""
    return str(x.dtype).removeprefix("torch.")


def rows_of(x: Tensor, tick: int) -> Tensor:
    """``x`` as (examples, features), at most `SAMPLE_LIMIT` elements by regular strides whose offset moves with ``tick``."""
    if x.ndim >= 3 and x.shape[0] == 1:
        x = x.squeeze(0)  # one sequence or one image: its positions play the part of the batch
    table = x.reshape(x.shape[0], -1) if x.ndim > 1 else x.reshape(-1, 1)
    if table.numel() > SAMPLE_LIMIT:
        if table.shape[0] > 1024:
            table = table[:: table.shape[0] // 512]
        stride = max(1, table.numel() // SAMPLE_LIMIT) | 1  # odd: does not fall in step with power-of-two layouts
        if stride > 1:
            table = table[:, tick % stride :: stride]
    return table if table.dtype in (torch.float32, torch.float64) else table.float()


def output_statistics(x: Tensor, kind: ActivationKind | None, tick: int) -> list[Scalar]:
    """Columns 0..5 of an OUTPUT row (`frames.SIGNALS`) for the output ``x`` (any shape, first dimension examples)."""
    count = x.numel()
    table = rows_of(x, tick)
    share = count / max(table.numel(), 1)
    varying: Scalar = NAN
    if table.shape[0] > 1:
        varying = sum_of_squares(table - table.mean(0, keepdim=True)) * share
    zeros: Scalar = NAN
    saturated: Scalar = NAN
    slope2: Scalar = NAN
    if kind is not None:
        if kind.zero_is_dead:
            zeros = count - read(torch.count_nonzero(table != 0)) * share
        if kind.saturated is not None:
            saturated = read(kind.saturated(table).sum()) * share
        if kind is RELU:
            slope2 = count - zeros  # a slope of one wherever it is not zero
        elif kind.slope2 is not None:
            slope2 = read(kind.slope2(table).sum()) * share
    return [float(count), sum_of_squares(table) * share, varying, zeros, saturated, slope2]


def gradient_statistics(g: Tensor, scale: float) -> list[Scalar]:
    """Columns of a GRADIENT row for the gradient ``g`` of an output, divided by the loss scale."""
    return [float(g.numel()), sum_of_squares(g) / scale**2, float(g.shape[0]) if g.ndim else 1.0]


def sums_of_squares(tensors: list[Tensor]) -> list[Scalar]:
    """`sum_of_squares` of many tensors (already `plain`) in few calls."""
    sums: list[Scalar] = [0.0] * len(tensors)
    batch = [i for i, t in enumerate(tensors) if t.numel() and t.device.type == "cpu" and t.dtype == torch.float32]
    if batch:
        norms = torch.stack(torch._foreach_norm([tensors[i] for i in batch])).tolist()
        for i, norm in zip(batch, norms, strict=True):
            sums[i] = norm * norm if _TINY < norm < _HUGE else sum_of_squares(tensors[i])
    for i in set(range(len(tensors))) - set(batch):
        sums[i] = sum_of_squares(tensors[i])
    return sums


class QuietUnits:
    """Counts, per unit of one activation, the examples since it was last non-zero."""

    def __init__(self) -> None:
        self._quiet: Tensor | None = None
        self._seen = 0

    def update(self, x: Tensor, unit_dim: int) -> tuple[Scalar, float, int]:
        """Feed an output; returns (dead units, examples looked at, units)."""
        if x.numel() > UNIT_LIMIT:
            x = x[: max(1, UNIT_LIMIT * x.shape[0] // x.numel())]
        units = x.shape[unit_dim]
        others = [d for d in range(x.ndim) if d != unit_dim % x.ndim]
        zero = (x.amax(others) if others else x) == 0  # of a rectifier: never negative
        if self._quiet is None or self._quiet.shape != zero.shape or self._quiet.device != zero.device:
            self._quiet = torch.zeros(zero.shape, dtype=torch.float32, device=zero.device)
            self._seen = 0
        self._quiet = torch.where(zero, self._quiet + x.shape[0], torch.zeros_like(self._quiet))
        self._seen += x.shape[0]
        window = min(self._seen, DEAD_EXAMPLES)
        return read((self._quiet >= window).sum()), float(window), units


def strided(parameter: Tensor) -> tuple[Tensor, float]:
    """At most `UPDATE_LIMIT` elements of a parameter as a fresh copy, and the factor that scales their sum back up."""
    flat = plain(parameter).reshape(-1)
    part = flat if flat.numel() <= UPDATE_LIMIT else flat[:: flat.numel() // UPDATE_LIMIT | 1]
    copy = part.clone() if part.element_size() >= 4 else part.float()
    return copy, flat.numel() / max(part.numel(), 1)


def between_rows(parameter: Tensor) -> Scalar:
    """Sum of squares of the rows of a matrix or kernel about their mean, from a regular subsample of its columns."""
    table = plain(parameter)
    table = table.reshape(table.shape[0], -1)
    columns = max(1, UPDATE_LIMIT // table.shape[0])
    if table.shape[0] > UPDATE_LIMIT:
        table = table[:: table.shape[0] // UPDATE_LIMIT | 1]
    if table.shape[1] > columns:
        table = table[:, :: table.shape[1] // columns | 1]
    table = table if table.dtype in (torch.float32, torch.float64) else table.float()
    return sum_of_squares(table - table.mean(0, keepdim=True)) * (parameter.numel() / max(table.numel(), 1))


@dataclass(frozen=True, slots=True)
class GraphActivation:
    """An autograd node that is an activation: how to get its output from what it saved.

    Attributes:
        label: name of the function.
        kind: what its output tells.
        saved: attribute of the node.
        output: from the saved tensor to the output (None: it is the output).
    """

    label: str
    kind: ActivationKind
    saved: str
    output: Callable[[Tensor], Tensor] | None = None


GRAPH_ACTIVATIONS: Final[dict[str, GraphActivation]] = {
    "ReluBackward0": GraphActivation("relu", RELU, "result"),
    "SigmoidBackward0": GraphActivation("sigmoid", SIGMOID, "result"),
    "TanhBackward0": GraphActivation("tanh", TANH, "result"),
    "GeluBackward0": GraphActivation("gelu", SMOOTH, "self", F.gelu),
    "SiluBackward0": GraphActivation("silu", SMOOTH, "self", F.silu),
    "EluBackward0": GraphActivation("elu", SMOOTH, "self", F.elu),
    "LeakyReluBackward0": GraphActivation("leaky_relu", SMOOTH, "self", F.leaky_relu),
    "PreluKernelBackward0": GraphActivation("prelu", SMOOTH, "self", F.leaky_relu),
    "SoftplusBackward0": GraphActivation("softplus", SMOOTH, "self", F.softplus),
    "HardtanhBackward0": GraphActivation("hardtanh", HARDTANH, "self", F.hardtanh),
    "HardsigmoidBackward0": GraphActivation("hardsigmoid", HARDSIGMOID, "self", F.hardsigmoid),
    "HardswishBackward0": GraphActivation("hardswish", SMOOTH, "self", F.hardswish),
    "MishBackward0": GraphActivation("mish", SMOOTH, "self", F.mish),
    "ExpBackward0": GraphActivation("exp", SMOOTH, "result"),
}
"""Functional activations found in the graph of the loss. Softsign has no node of its own (it is a division)."""
