"""Schemes for networks with residual branches: which recipe the layers of each branch get. No remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from torch import nn

from gradiometer.remedies.base import CannotTreatError
from gradiometer.remedies.drawing import NORMS
from gradiometer.remedies.layers import Branch, Layer, Reading
from gradiometer.remedies.orders import Order
from gradiometer.remedies.recipes import Recipe, deviation, recipe
from gradiometer.remedies.schemes import bent_by

GPT_DEVIATION: Final = 0.02
"""Radford et al. 2019 (GPT-2): deviation of all weights."""


def branches_of(reading: Reading, chosen: Sequence[Layer]) -> list[Branch]:
    """Branches with at least one of these layers.

    Raises:
        CannotTreatError: there is none.
    """
    if not reading.executed:
        raise CannotTreatError("residual branches are not known before the first batch is")
    names = {layer.name for layer in chosen}
    found = [branch for branch in reading.branches if names.intersection(branch.layers)]
    if not found:
        raise CannotTreatError("there is no residual branch that could be scaled")
    return found


def depth_scaled(model: nn.Module, reading: Reading, chosen: Sequence[Layer], gain: float) -> list[Order]:
    """What every branch adds, times 1 / sqrt(L) for L branches one after the other."""
    scale = gain / math.sqrt(max(reading.depth, 1))
    orders: list[Order] = []
    for branch in branches_of(reading, chosen):
        end = _end(model, branch, chosen)
        if end is None and branch.layers:
            end = (branch.layers[-1], "scaled")  # what comes behind it does not bend small signals much
        if end is not None:
            orders.append((end[0], recipe(end[1], scale)))
    return orders


def closed(model: nn.Module, reading: Reading, chosen: Sequence[Layer]) -> list[Order]:
    """Every branch that ends in weights or in a normalisation adds zero at first (SkipInit, ReZero without the gates).

    Raises:
        CannotTreatError: no branch ends so.
    """
    words = {"scaled": "zero", "scaled-norm": "zero-norm"}
    ends = [_end(model, branch, chosen) for branch in branches_of(reading, chosen)]
    orders: list[Order] = [(name, Recipe(words[kind])) for name, kind in (end for end in ends if end is not None)]
    if not orders:
        raise CannotTreatError(
            "every residual branch ends in an activation, through which no gradient would come back from zero"
        )
    return orders


def fixup(model: nn.Module, reading: Reading, chosen: Sequence[Layer]) -> list[Order]:
    """Zhang, Dauphin & Ma 2019, without their scalar biases and multipliers.

    He everywhere; the last layer of every branch zero, the others of a branch of m layers times L^(-1 / (2m - 2)); output
    layers zero.

    Raises:
        CannotTreatError: branches with normalisation, which undoes it; no branch that ends in weights.
    """
    found = branches_of(reading, chosen)
    if any(branch.normed for branch in found):
        raise CannotTreatError("Fixup is for residual branches without normalisation, and these have one")
    depth = max(reading.depth, 1)
    closing = dict(closed(model, reading, chosen))
    orders: list[Order] = []
    for layer in chosen:
        if layer.head:
            orders.append((layer.name, Recipe("zero")))
        elif layer.name in closing:
            orders.append((layer.name, closing[layer.name]))
        else:
            _, slope = bent_by(layer)
            size = len(reading.branches[layer.branch].layers) if layer.branch >= 0 else 1
            scale = depth ** (-1.0 / (2 * size - 2)) if size > 1 else 1.0
            orders.append((layer.name, deviation(layer.module, scale * math.sqrt(2.0 / (1.0 + slope * slope)))))
    return orders


def gpt(model: nn.Module, reading: Reading, chosen: Sequence[Layer], gain: float) -> list[Order]:
    """Radford et al. 2019: all weights with deviation 0.02, the last of each branch 0.02 / sqrt(L) for L branches."""
    base = GPT_DEVIATION * gain
    last = base / math.sqrt(max(reading.depth, 1))
    orders: list[Order] = [
        (layer.name, recipe("deviation", last if layer.branch_last else base)) for layer in chosen if not layer.head
    ]
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and name:
            orders.append((name, recipe("attention-normal", base)))
        elif isinstance(module, nn.Embedding) and module.weight.requires_grad and name:
            orders.append((name, recipe("embedding", base)))
    return orders


def _end(model: nn.Module, branch: Branch, chosen: Sequence[Layer]) -> tuple[str, str] | None:
    """(module, how it is scaled) that a branch ends in; None if it ends in something else."""
    if branch.last and any(layer.name == branch.last for layer in chosen):
        return branch.last, "scaled"
    norm = model.get_submodule(branch.norm) if branch.norm else None
    if isinstance(norm, NORMS) and any(p.requires_grad for p in norm.parameters()):
        return branch.norm, "scaled-norm"
    return None
