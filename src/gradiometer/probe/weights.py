"""What theory needs of weights and factors, read off the autograd nodes that use them."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from gradiometer.probe import signals
from gradiometer.probe.spread import mean_square

GRAM_LIMIT: Final = 128
"""Units up to which the spectrum of a weight is taken exactly; above it from `PROBES` random vectors."""
PROBES: Final = 32


def shape_of(node: Any) -> tuple[int, ...] | None:
    """Shape of the first output of a graph node."""
    metadata = getattr(node, "_input_metadata", None)
    return tuple(int(n) for n in metadata[0].shape) if metadata else None


def saved_tensor(node: Any, name: str) -> Tensor | None:
    """A tensor the node saved; None if it has none, or it may not be read (checkpointing, changed in place)."""
    raw = getattr(node, f"_raw_saved_{name}", None)
    if raw is None or getattr(raw, "unpack_hook", None) is not None:
        return None
    try:
        saved = getattr(node, f"_saved_{name}")
    except RuntimeError:
        return None
    return saved.detach() if isinstance(saved, Tensor) else None


def leaf_behind(node: Any) -> Tensor | None:
    """The parameter a weight is a view of (a transpose, a reshape, another precision), in the shape it has there."""
    steps: list[str] = []
    while node is not None and node.name() != "torch::autograd::AccumulateGrad":
        kind = node.name().removesuffix("0").removesuffix("Backward")
        if kind not in ("T", "ToCopy", "Alias", "Transpose", "Permute"):
            return None
        steps.append(kind)
        node = node.next_functions[0][0]
    if node is None:
        return None
    leaf: Tensor = node.variable.detach()
    turned = sum(kind in ("T", "Transpose", "Permute") for kind in steps) % 2 == 1
    return leaf.T if turned and leaf.ndim == 2 else leaf


def scaling(square: float, cross: float, mean: float) -> dict[str, float]:
    """What a factor does to squares, to products of two examples and to means; no mask."""
    return {"square": square, "cross": cross, "mean": mean, "dropout": 0.0}


def scaling_by(factor: Tensor, shape: tuple[int, ...] | None) -> dict[str, float]:
    """What a factor (a number, a parameter, a mask) does to squares, to products of two examples and to means."""
    if factor.ndim == 0:  # a number; torch may have wrapped it, and reductions of such a tensor are not to be trusted
        value = float(factor)
        return scaling(value**2, value**2, value)
    square, mean = mean_square(factor), float(factor.double().mean())
    cross = square
    full = shape is not None and factor.ndim == len(shape) and factor.ndim > 1 and factor.shape[0] == shape[0] and shape[0] > 1
    if full:  # it differs from example to example
        over = factor.double().mean(0)
        rows = factor.shape[0]
        cross = max((float(over.square().mean()) - square / rows) * rows / (rows - 1), 0.0)
    numbers = scaling(square, cross, mean)
    if full and factor.numel() > 1:
        low, high = float(factor.min()), float(factor.max())
        # a mask: zero or one value, the same everywhere
        masks = low == 0.0 and high > 1.0 and bool(((factor == low) | (factor == high)).all())
        numbers["dropout"] = float(masks)
    return numbers


def matrix_numbers(
    node: Any, kind: str, weight: Tensor, shape: tuple[int, ...] | None, *, right: bool
) -> dict[str, float] | None:
    """What theory needs of a weight: its gain for squares, and how far it is from random.

    Returns:
        gain: mean square of an output for an input of mean square one and mean zero.
        ones: the same for a constant input, relative to ``gain``: about 1 for random weights.
        row_mean: output's mean for an input of ones.
        forward_excess, backward_excess: tr((W W')²)/tr(W W')² beyond what orthogonal weights have; 1/n for Gaussian ones.
        fan_in: inputs of one output element.
    """
    if weight.numel() == 0 or shape is None:
        return None
    if kind.startswith("Conv"):
        transposed = bool(node._saved_transposed)
        groups = int(node._saved_groups)
        kernel = weight.shape[2:]
        taps = 1
        for extent in kernel:
            taps *= int(extent)
        # (out, in / groups, …), or for a transposed convolution (in, out / groups, …)
        first = weight.flatten(1)
        second = weight.transpose(0, 1).flatten(1)
        if transposed:
            first, second = second, first
        fan_in = (weight.shape[0] // groups if transposed else weight.shape[1]) * taps
        axes = _axes(node, weight, shape, transposed)
        out = shape[1]
        gain = float(signals.sum_of_squares(weight)) / max(out, 1)
        per_output = gain
        matrix, back = first, second
    else:
        matrix = weight.T if right else weight  # x @ W keeps (in, out)
        if kind == "Linear":
            matrix = weight
        back = matrix.T
        fan_in = matrix.shape[1]
        per_output = float(signals.sum_of_squares(matrix)) / matrix.shape[0]
        axes = {}
    if not 0.0 < per_output < float("inf"):
        return {"gain": per_output, "ones": 1.0, "row_mean": 0.0, "forward_excess": 0.0, "backward_excess": 0.0,
                "fan_in": float(fan_in)}  # fmt: skip
    wide = matrix.double()
    sums = wide.sum(1)
    return {
        "gain": per_output,
        "ones": float(sums.square().sum()) / float(wide.square().sum()),
        "row_mean": float(sums.mean()),
        "forward_excess": max(_purity(matrix) - 1.0 / matrix.shape[1], 0.0),
        "backward_excess": max(_purity(back) - 1.0 / back.shape[1], 0.0),
        "fan_in": float(fan_in),
        **axes,
    }


def _axes(node: Any, weight: Tensor, shape: tuple[int, ...], transposed: bool) -> dict[str, float]:
    """Geometry of a convolution: for each axis ``k`` ``in``, ``out``, ``taps``, ``stride``, ``padding``, ``dilation``."""
    source = shape_of(node.next_functions[0][0]) if node.next_functions[0][0] is not None else None
    saved = saved_tensor(node, "input")
    extents = source if source is not None and len(source) == len(shape) else tuple(saved.shape) if saved is not None else None
    numbers: dict[str, float] = {"transposed": float(transposed)}
    if extents is None or len(extents) != len(shape):
        return numbers
    for axis, taps in enumerate(weight.shape[2:]):
        facts = (
            extents[2 + axis],
            shape[2 + axis],
            taps,
            node._saved_stride[axis],
            node._saved_padding[axis],
            node._saved_dilation[axis],
        )
        for name, fact in zip(("in", "out", "taps", "stride", "padding", "dilation"), facts, strict=True):
            numbers[f"{name}{axis}"] = float(fact)
    return numbers


def _purity(matrix: Tensor) -> float:
    """tr((M M')²) / tr(M M')²: one over the number of directions the matrix has."""
    rows, columns = matrix.shape
    if min(rows, columns) <= GRAM_LIMIT:
        m = matrix.float() if rows <= columns else matrix.float().T
        m = m / m.norm()
        return float((m @ m.T).square().sum())
    generator = torch.Generator().manual_seed(0)  # our own: the training's random numbers stay as they are
    signs = torch.randint(0, 2, (rows, PROBES), generator=generator).to(matrix.device, torch.float32) * 2 - 1
    m = matrix.float() / matrix.float().norm()
    return float((m @ (m.T @ signs)).square().sum()) / PROBES
