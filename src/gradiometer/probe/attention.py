"""How sharp attention is: its weights, found in the graph of the loss or formed again from the queries and keys there.

Two kinds of nodes are looked for: a softmax whose result enters a batched matrix product (attention written out, and the
plain path of `scaled_dot_product_attention`), and the fused kernels of the latter, which keep queries and keys but never
form the weights. A classifier's softmax enters no such product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from gradiometer.probe import graph, signals
from gradiometer.probe.signals import NAN, Scalar

ROWS: Final = 32
"""Rows (queries) of a pair of example and head that are looked at, spread evenly."""
TOTAL_ROWS: Final = 128
"""Rows in all."""
PAIRS: Final = (4, 16)
"""Pairs of example and head that are looked at; the second where they have so few rows that `TOTAL_ROWS` allows more."""
ELEMENTS: Final = 1 << 19
"""Weights that are looked at; with more keys there are fewer rows."""
PEAKED: Final = 0.99
"""A row whose largest weight is above this has made up its mind."""
MASKED: Final = -9e3
"""What is added to a logit to forbid a choice is at most this (-10,000 in much code, else the lowest number or -inf)."""

_FUSED: Final[dict[str, str]] = {  # node -> the attribute that holds the mask, if there may be one
    "ScaledDotProductFlashAttentionForCpuBackward0": "attn_mask",
    "ScaledDotProductFlashAttentionBackward0": "",
    "ScaledDotProductEfficientAttentionBackward0": "attn_bias",
    "ScaledDotProductCudnnAttentionBackward0": "attn_bias",
    "ScaledDotProductFusedAttentionOverrideableBackward0": "attn_bias",
}
_SOFTMAX: Final = {"SoftmaxBackward0": "softmax", "SafeSoftmaxBackward0": "scaled_dot_product_attention"}
_PRODUCTS: Final = ("BmmBackward0", "BaddbmmBackward0")
_VIEWS: Final = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")
_SAME: Final = ("CloneBackward0", "ToCopyBackward0", "AliasBackward0")
_MOVES: Final = (
    "ExpandBackward0",
    "TransposeBackward0",
    "PermuteBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "SliceBackward0",
)
_DROPOUT: Final = ("NativeDropoutBackward0", "FusedDropoutBackward0")
_FACTORS: Final = ("MulBackward0", "MulBackward1", "DivBackward0", "DivBackward1")
_SOURCES: Final = (
    "MmBackward0",
    "AddmmBackward0",
    "SumBackward1",
    "MvBackward0",
    "torch::autograd::AccumulateGrad",
    *_PRODUCTS,
)
_FAR: Final = 16
"""Nodes between a softmax and the product it enters, or comes from."""


class Found(NamedTuple):
    """A node at which attention weights are formed."""

    order: int
    name: str
    node: Any


class Weights(NamedTuple):
    """A sample of attention weights (pairs, rows, keys), which of them are choices at all, and the logits where known.

    The choices may have a shape that broadcasts to that of the others.
    """

    weights: Tensor
    choices: Tensor
    logits: Tensor | None


def find(nodes: Iterable[Any]) -> list[Found]:
    """Where attention weights are formed, in order of execution; ``nodes`` are from `graph.walk`."""
    found: dict[int, Found] = {}
    for node in nodes:
        name = node.name()
        if name in _FUSED:
            order = node._sequence_nr()
            found[order] = Found(order, "scaled_dot_product_attention", node)
        elif name in _PRODUCTS:
            for following, _ in node.next_functions:
                softmax = _softmax_behind(following)
                if softmax is not None:
                    order = softmax._sequence_nr()
                    found[order] = Found(order, _SOFTMAX[softmax.name()], softmax)
    return [found[order] for order in sorted(found)]


def measure(found: Found, tick: int) -> tuple[list[Scalar], int, str] | None:
    """A row of `Group.ATTENTION`, the number of keys and the number format; None where what is saved may not be read.

    Args:
        found: from `find`.
        tick: moves the pairs of example and head that are looked at.
    """
    fused = found.node.name() in _FUSED
    keys = graph.saved(found.node, "key" if fused else "result")
    if keys is None or type(keys) is not Tensor or keys.layout is not torch.strided:
        return None
    with torch.autocast(keys.device.type, enabled=False):
        sample = _of_fused(found.node, keys, tick) if fused else _of_softmax(found.node, keys, tick)
        return None if sample is None else (_statistics(sample), sample.weights.shape[-1], signals.format_of(keys))


# ---- where the weights go --------------------------------------------------------------------------------------------


def _softmax_behind(node: Any) -> Any:
    """The softmax whose result, through dropout, reshaping and casts, is this input of a product; None if it is not one."""
    for _ in range(_FAR):
        if node is None:
            return None
        name = node.name()
        if name in _SOFTMAX:
            return node
        inputs = [following for following, _ in node.next_functions]
        through = name in _VIEWS or name in _SAME or name in _MOVES or name in _DROPOUT
        if not through and not (name in _FACTORS and sum(i is not None for i in inputs) == 1):
            return None
        node = next((i for i in inputs if i is not None), None)
    return None


# ---- which of them are looked at ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Choice:
    """Indices, on the device, of the pairs (n,) and of the rows (r,) that are looked at."""

    pairs: Tensor
    rows: Tensor

    @staticmethod
    @functools.lru_cache(maxsize=4)  # the layers of a network have one shape
    def of(pairs: int, rows: int, keys: int, tick: int, device: torch.device) -> _Choice:
        wanted = max(1, min(ROWS, TOTAL_ROWS, ELEMENTS // max(keys, 1), rows))
        number = min(pairs, PAIRS[0] if wanted * PAIRS[1] > TOTAL_ROWS else PAIRS[1], max(1, TOTAL_ROWS // wanted))
        number = max(1, min(number, ELEMENTS // max(keys * wanted, 1)))
        stride = pairs // number + 1 if number < pairs else 1  # not a multiple of the heads, else it would be one head's
        while math.gcd(stride, pairs) != 1:
            stride += 1
        chosen = (torch.arange(number, device=device) * stride + tick) % pairs
        spread = (2 * torch.arange(wanted, device=device) + 1) * rows // (2 * wanted)
        return _Choice(chosen, spread)

    def of_table(self, table: Tensor) -> Tensor:
        """From (pairs, rows, ...) those that are looked at."""
        return table[self.pairs[:, None], self.rows]

    def of_shape(self, table: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The same of a table that broadcasts to ``shape`` (.., rows, keys), the leading dimensions being the pairs."""
        leading = torch.unravel_index(self.pairs, shape[:-2]) if len(shape) > 2 else ()
        where = [index[:, None] for index in leading]
        return table.expand(shape)[(*where, self.rows[None, :])]


# ---- fused kernels -----------------------------------------------------------------------------------------------------


def _of_fused(node: Any, key: Tensor, tick: int) -> Weights | None:
    query = graph.saved(node, "query")
    if query is None or query.ndim != 4 or key.ndim != 4 or query.is_nested:
        return None
    batch, heads, rows, width = query.shape
    keys = key.shape[-2]
    if batch * heads * rows == 0 or keys < 2:
        return None
    which = _Choice.of(batch * heads, rows, keys, tick, query.device)
    example, head = which.pairs // heads, which.pairs % heads
    some = query[example[:, None], head[:, None], which.rows].to(_wide(query.dtype))
    others = key[example, head * key.shape[1] // heads].to(some.dtype)  # several heads may share their keys
    scale = node._saved_scale
    logits = (some @ others.transpose(1, 2)) * (width**-0.5 if scale is None else scale)
    biased, choices = logits, None
    mask = graph.saved(node, _FUSED[node.name()]) if _FUSED[node.name()] else None
    if mask is not None:
        part = which.of_shape(mask, (batch, heads, rows, keys))
        choices = part if part.dtype is torch.bool else part > MASKED
        biased = logits if part.dtype is torch.bool else logits + part
    if node._saved_is_causal:
        earlier = torch.arange(keys, device=key.device) <= which.rows[:, None]
        choices = earlier if choices is None else choices & earlier
    if choices is None:
        return Weights(biased.softmax(-1), torch.ones((), dtype=torch.bool, device=key.device).expand(1, 1, keys), logits)
    return Weights(torch.where(choices, biased, -torch.inf).softmax(-1), choices, logits)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


# ---- written out -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Origin:
    """Where the argument of a softmax comes from.

    Attributes:
        masks: what was filled in, with the shape it was filled into; True where there is no choice.
        all_known: whether these are all that may forbid a choice.
        product: the node of queries times keys; None if it is not plainly that.
        factor: of their product.
    """

    masks: list[tuple[Tensor, tuple[int, ...]]]
    all_known: bool = True
    product: Any = None
    factor: Any = 1.0


def _origin(node: Any, shape: tuple[int, ...]) -> _Origin:
    found = _Origin([])
    moved = False  # once the dimensions were, what is further back cannot be laid over the weights
    node = node.next_functions[0][0]
    for _ in range(_FAR):
        if node is None:
            break
        name = node.name()
        inputs = [following for following, _ in node.next_functions]
        alone = sum(i is not None for i in inputs) == 1
        if name in _PRODUCTS:
            if name == "BaddbmmBackward0":
                found.all_known = False
                found.factor = found.factor * node._saved_alpha
            found.product = None if moved else node
            break
        if name in _VIEWS:
            shape = tuple(node._saved_self_sym_sizes)
        elif name in _MOVES:
            moved = True
        elif name == "MaskedFillBackward0" or (name == "WhereBackward0" and alone):
            mask = graph.saved(node, "mask" if name == "MaskedFillBackward0" else "condition")
            if mask is None or moved:
                found.all_known = False
            else:
                found.masks.append((mask if name == "MaskedFillBackward0" or inputs[0] is None else ~mask, shape))
        elif name in _FACTORS and alone:
            side = "other" if inputs[0] is not None else "self"
            other = graph.saved(node, side)
            other = getattr(node, f"_saved_{side}", None) if other is None else other
            if other is None or (isinstance(other, Tensor) and other.numel() != 1):
                found.all_known = False
                break
            found.factor = found.factor / other if name.startswith("Div") else found.factor * other
        elif name in ("AddBackward0", "SubBackward0") and alone:
            found.all_known = False  # a constant mask, or a bias that says how far two positions are apart
        elif name not in _SAME:
            found.all_known &= name in _SOURCES
            break
        node = next((i for i in inputs if i is not None), None)
    return found


def _of_softmax(node: Any, result: Tensor, tick: int) -> Weights | None:
    dim = node._saved_dim
    dim = dim - (1 << 64) if dim >= 1 << 63 else dim  # a negative one is shown without its sign
    if result.ndim < 2 or result.numel() == 0 or result.shape[dim] < 2:
        return None
    usual = dim in (-1, result.ndim - 1)
    table = result if usual else result.movedim(dim, -1)
    shape = tuple(table.shape)
    table = table.reshape(-1, *shape[-2:])
    pairs, rows, keys = table.shape
    which = _Choice.of(pairs, rows, keys, tick, result.device)
    weights = which.of_table(table)
    origin = _origin(node, shape) if usual else _Origin([], all_known=False)
    choices = torch.ones_like(weights, dtype=torch.bool)
    for mask, of in origin.masks:
        if of[-1] == keys and of[-2:-1] == (rows,) and math.prod(of[:-2]) == pairs:
            choices &= ~which.of_shape(mask, of)
        else:
            origin.all_known = False
    logits = _logits(origin, which, table.shape)
    if not origin.all_known:
        # what is exactly zero was forbidden, unless its logit says that it is zero for being far below the largest
        chosen = weights > 0
        if logits is not None:
            largest, at = weights.max(-1, keepdim=True)
            expected = largest.to(logits.dtype).log() + logits - logits.gather(-1, at)
            chosen |= expected < math.log(torch.finfo(result.dtype).smallest_normal)
        choices &= chosen
    return Weights(weights.to(_wide(weights.dtype)), choices, logits)


def _logits(origin: _Origin, which: _Choice, shape: torch.Size) -> Tensor | None:
    if origin.product is None:
        return None
    plain = origin.product.name() == "BmmBackward0"
    query = graph.saved(origin.product, "self" if plain else "batch1")
    key = graph.saved(origin.product, "mat2" if plain else "batch2")
    if query is None or key is None or (query.shape[0], query.shape[1], key.shape[2]) != tuple(shape):
        return None
    wide = _wide(query.dtype)
    return (which.of_table(query).to(wide) @ key[which.pairs].to(wide)) * origin.factor


# ---- numbers -----------------------------------------------------------------------------------------------------------


def _statistics(sample: Weights) -> list[Scalar]:
    weights, choices = sample.weights, sample.choices
    number = choices.sum(-1, dtype=weights.dtype)  # where the mask is the same for all pairs, of one of them
    counted = (weights.sum(-1) > 0) & (number > 1)  # not what is NaN: a row without any choice
    logs = weights.clamp(min=torch.finfo(weights.dtype).smallest_normal).log_()  # many times faster than special.entr
    entropy = logs.mul_(weights).sum(-1) / -number.clamp(min=2.0).log()
    peaked = counted & (weights.amax(-1) > PEAKED)
    numbers = [counted.sum(), torch.where(counted, entropy, 0.0).sum(), peaked.sum()]
    if sample.logits is not None:
        numbers.append(torch.where(choices & counted[..., None], sample.logits.abs(), 0.0).amax())
    row: list[Scalar] = list(torch.stack([n.double() for n in numbers]).unbind())
    if weights.device.type == "cpu":
        row = [float(n) for n in row]
    return row if sample.logits is not None else [*row, NAN]
