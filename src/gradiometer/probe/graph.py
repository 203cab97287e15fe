"""Reading the autograd graph of a loss: functional activations, parameters, and where a NaN was born.

Module hooks cannot see ``F.relu(x)`` or ``torch.sigmoid(x @ w)``; the graph of the loss can. Its nodes carry sequence
numbers that grow in order of execution, the activations' nodes keep their results for the backward pass anyway, and a
node's hook gives the gradient of its output. Nothing has to be installed before the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from gradiometer.probe.signals import GRAPH_ACTIVATIONS, GraphActivation

MAX_NODES: Final = 40_000
"""Nodes visited in one walk; a longer graph (a long unrolled recurrence) is read from its loss end as far as this."""


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One node of interest: its execution order, its name, and the parameter that feeds it directly (or None)."""

    order: int
    name: str
    node: Any
    activation: GraphActivation | None


def walk(roots: Iterable[Tensor]) -> tuple[list[Any], list[Tensor]]:
    """All nodes reachable from the roots (at most `MAX_NODES`) and the leaf tensors at their ends, both unordered."""
    stack: list[Any] = [r.grad_fn for r in roots if r.grad_fn is not None]
    seen: set[Any] = set(stack)
    nodes: list[Any] = []
    leaves: list[Tensor] = []
    while stack and len(nodes) < MAX_NODES:
        node = stack.pop()
        nodes.append(node)
        for following, _ in node.next_functions:
            if following is None or following in seen:
                continue
            seen.add(following)
            if following.name() == "torch::autograd::AccumulateGrad":
                leaves.append(following.variable)
            else:
                stack.append(following)
    return nodes, leaves


def activations(nodes: Iterable[Any], covered: set[int]) -> list[GraphNode]:
    """Functional activations among the nodes, in order of execution.

    Args:
        nodes: from `walk`.
        covered: sequence numbers of nodes that are the output of a module with a row of its own.
    """
    found: list[GraphNode] = []
    for node in nodes:
        activation = GRAPH_ACTIVATIONS.get(node.name())
        if activation is not None:
            order = node._sequence_nr()
            if order not in covered:
                found.append(GraphNode(order, activation.label, node, activation))
    found.sort(key=lambda n: n.order)
    return found


def connected(nodes: Iterable[Any], sites: Mapping[int, int]) -> list[list[int]]:
    """Sites that lie on one way through the network, grouped.

    Two networks that meet only in their loss (an actor and a critic) are two groups; branches of one trunk are one.

    Args:
        nodes: from `walk`.
        sites: sequence number of a site's node -> site index.

    Returns:
        Groups of site indices, each with at least two.
    """
    parent: dict[int, int] = {}

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    # what lies behind each node, as groups; a site joins all that meet in it, any other node only passes them on
    behind: dict[Any, frozenset[int]] = {}
    for node in sorted(nodes, key=lambda n: n._sequence_nr()):
        groups = frozenset(root(i) for following, _ in node.next_functions for i in behind.get(following, ()))
        site = sites.get(node._sequence_nr())
        if site is not None:
            parent.setdefault(site, site)
            top = root(site)
            for group in groups:
                parent[root(group)] = top
            groups = frozenset((top,))
        behind[node] = groups
    found: dict[int, list[int]] = {}
    for index in parent:
        found.setdefault(root(index), []).append(index)
    return [group for group in found.values() if len(group) > 1]


def ends(nodes: Iterable[Any], sites: Mapping[int, int]) -> dict[int, bool]:
    """For each site among the nodes, whether no other site comes after it on the way to the loss.

    Args:
        nodes: from `walk`.
        sites: sequence number of a site's node -> site index.
    """
    nearest: dict[Any, frozenset[int]] = {}
    last: dict[int, bool] = {}
    for node in sorted(nodes, key=lambda n: n._sequence_nr()):
        before: frozenset[int] = frozenset()
        for following, _ in node.next_functions:
            more = nearest.get(following)
            if more and more is not before:
                before = before | more if before else more
        site = sites.get(node._sequence_nr())
        if site is not None:
            last.setdefault(site, True)
            last.update(dict.fromkeys(before - {site}, False))
            before = frozenset((site,))
        nearest[node] = before
    return last


def saved_output(node: Any, activation: GraphActivation) -> Tensor | None:
    """Output of an activation node from what it saved; None if it may not be read.

    A saved tensor with unpack hooks (activation checkpointing, offloading) is left alone: reading it would run the
    user's forward again. One changed in place since raises in the user's own backward, not here.
    """
    output = saved(node, activation.saved)
    return output if output is None or activation.output is None else activation.output(output)


def saved(node: Any, name: str) -> Tensor | None:
    """A tensor that a node saved, detached; None if it saved none of that name or it may not be read (see `saved_output`)."""
    raw = getattr(node, f"_raw_saved_{name}", None)
    if getattr(raw, "unpack_hook", None) is not None:
        return None
    try:
        tensor = getattr(node, f"_saved_{name}", None)
    except RuntimeError:
        return None
    return tensor.detach() if isinstance(tensor, Tensor) else None


def first_nonfinite(nodes: Iterable[Any]) -> tuple[str, Tensor | None] | None:
    """The earliest operation, in order of execution, that saved a non-finite tensor.

    Returns:
        (operation name without "Backward", a parameter that feeds it or None), or None if every saved tensor is finite.
    """
    for node in sorted(nodes, key=lambda n: n._sequence_nr()):
        for attribute in dir(node):
            if not attribute.startswith("_raw_saved_"):
                continue
            raw = getattr(node, attribute)
            if isinstance(raw, (tuple, list)) or getattr(raw, "unpack_hook", None) is not None:
                continue
            try:
                saved = getattr(node, attribute.replace("_raw", "", 1))
            except RuntimeError:
                continue
            if isinstance(saved, Tensor) and saved.is_floating_point() and not bool(torch.isfinite(saved).all()):
                return node.name().split("Backward")[0], feeding_parameter(node)
    return None


def feeding_parameter(node: Any) -> Tensor | None:
    """A leaf tensor that enters a node directly or through a transpose."""
    for following, _ in node.next_functions:
        if following is None:
            continue
        if following.name() == "torch::autograd::AccumulateGrad":
            return following.variable
        if following.name() in ("TBackward0", "TransposeBackward0", "PermuteBackward0"):
            inner = following.next_functions[0][0]
            if inner is not None and inner.name() == "torch::autograd::AccumulateGrad":
                return inner.variable
    return None
