"""How alike the gradients of a batch's examples still are at an output, and how many of a gradient's elements are lost.

The gradients of the examples with respect to one output, each scaled to length one, have a Gram matrix of cosines. At the
last layer it says which examples want the same; on the way down a plain rectifier network forgets that (the gradients
"shatter", Balduzzi et al. 2017), and the regression of the off-diagonal cosines here on those at the last layer falls
from one towards zero. The record keeps the two sums that it is the quotient of.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from gradiometer.probe import signals
from gradiometer.probe.signals import NAN, Scalar

EXAMPLES: Final = 24
"""Examples whose gradients are compared (the leading ones)."""
FEATURES: Final = 1024
"""Elements of each example's gradient (regular subsample of a longer one: a cosine is then known to 1/32, and the sums
over some hundred pairs ten times as well, for its error has no sign)."""
HEAD_FEATURES: Final = 1 << 16
"""The same at the last layer, whose squares an error would make larger. An output longer than this (the vocabulary of a
language model at every position) is no head: its gradient sits in few elements, and a sample misses them."""
COUNT_LIMIT: Final = 1 << 14
"""Elements of a gradient that are counted one by one (regular subsample of a larger one, scaled up)."""


_TINY, _HUGE = 1e-15, 1e15


class Head(NamedTuple):
    """The last layer of a network, which comes first in the backward pass.

    Attributes:
        site: number of its site.
        cosines: of pairs of examples, (n, n) float64, zero on the diagonal.
        squares: of these.
        total: sum of the squares.
    """

    site: int
    cosines: Tensor
    squares: Tensor
    total: Scalar


class Kernels:
    """The gradient kernels of one backward pass, held against that of the last layer as they come."""

    def __init__(self) -> None:
        self._heads: dict[tuple[int | None, int], Head | None] = {}

    def clear(self) -> None:
        """A new backward pass begins."""
        self._heads.clear()

    def columns(self, site: int, network: int | None, gradient: Tensor, *, is_end: bool) -> list[Scalar]:
        """The columns ``gradient_kernel_cross`` and ``gradient_kernel_head``; NaN where there is nothing to compare.

        Args:
            site: number of the output's site.
            network: what it is connected with; None if that is not known.
            gradient: with respect to the output, first dimension examples.
            is_end: whether no other site comes after it. Of a network with two ends (two heads on one trunk) nothing is
                said below the second: there each example wants two things at once.
        """
        if gradient.ndim < 2 or gradient.shape[0] < 2:
            return [NAN, NAN]
        key = (network, gradient.shape[0])
        head = self._heads.get(key)
        if key in self._heads and (head is None or (is_end and head.site != site)):
            self._heads[key] = None
            return [NAN, NAN]
        if head is None or head.site == site:  # the same site again: a second pass through the network, later in this backward
            if is_end and gradient.numel() > HEAD_FEATURES * gradient.shape[0]:
                return [NAN, NAN]
            cosines, _ = cosines_of(gradient, HEAD_FEATURES)
            squares = cosines.square()
            total = signals.read(squares.sum())
            self._heads[key] = Head(site, cosines, squares, total)
            return [total, total]
        cosines, alive = cosines_of(gradient)
        cross = signals.read(torch.dot(cosines.view(-1), head.cosines.view(-1)))
        if alive is None:
            return [cross, head.total]
        return [cross, signals.read(torch.dot(alive, head.squares @ alive))]


def cosines_of(gradient: Tensor, features: int = FEATURES) -> tuple[Tensor, Tensor | None]:
    """Cosines of pairs of examples' gradients, zero on the diagonal and wherever one of the two is exactly zero.

    Args:
        gradient: first dimension examples, of which `EXAMPLES` are taken.
        features: elements of each that are taken.

    Returns:
        The cosines (n, n) in float64; and 1.0 for each example whose gradient is a direction, 0.0 for the others, or None
        where all are.
    """
    table = gradient[:EXAMPLES].reshape(min(EXAMPLES, gradient.shape[0]), -1)
    if table.shape[1] > features:
        table = table[:, :: table.shape[1] // features | 1].contiguous()
    if table.device.type == "cpu" and table.dtype is torch.float32:
        norms = torch.linalg.vector_norm(table, dim=1, keepdim=True)
        low, high = torch.aminmax(norms)
        if float(low) > _TINY and float(high) < _HUGE:  # the usual case; else squares may have underflowed
            table = table / norms
            return (table @ table.T).double().fill_diagonal_(0.0), None
    table = table.double()
    norms = torch.linalg.vector_norm(table, dim=1, keepdim=True)
    directed = (norms > 0) & (norms < float("inf"))
    table = torch.where(directed, table / norms, 0.0).float()
    return (table @ table.T).double().fill_diagonal_(0.0), directed.view(-1).double()


def zeros_and_tiny(gradient: Tensor) -> list[Scalar]:
    """Elements that are exactly zero, and those that are not but below the smallest normal number of their own type.

    In arithmetic that runs through vector units instead of comparisons and counts, which cost five times as much. NaN if
    one of the elements looked at is.
    """
    count = gradient.numel()
    if not count:
        return [0.0, 0.0]
    flat = gradient.reshape(-1)
    if count > COUNT_LIMIT:
        flat = flat[:: count // COUNT_LIMIT | 1]
    smallest = torch.finfo(flat.dtype).smallest_normal
    size = flat.abs()
    if size.dtype in (torch.float16, torch.bfloat16):
        size = size.float()  # exactly; else the sums below would be rounded to their format
    some = size.sign().sum()
    normal = size.mul_(1.0 / smallest).clamp_(max=1.0).floor_().sum()
    share = count / flat.numel()
    if gradient.device.type == "cpu":
        some, normal = float(some), float(normal)
    return [count - some * share, (some - normal) * share]
