"""How the packages are attached to a script that does not know of them: to every network it calls, once it has an optimizer.

A user would write the attachment next to the model and the optimizer. From outside, the model is the module that the script
itself calls, and its optimizer the one that holds its parameters. A script that calls two networks, as a pair of adversaries
does, has two instances attached, as its user would have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn
from torch.optim import Optimizer

from peers import taps

Tool = TypeVar("Tool")


@dataclass
class Attached(Generic[Tool]):
    """A tool that watches a network."""

    root: nn.Module
    optimizer: Optimizer
    tool: Tool


class Attaching(taps.Listener, Generic[Tool]):
    """Makes a tool per network, before the first call of the network that its optimizer is known at."""

    def __init__(self) -> None:
        self.attached: list[Attached[Tool]] = []
        self.known: set[int] = set()
        self.loss = math.nan
        self.notes: list[str] = []

    def attach(self, root: nn.Module, optimizer: Optimizer) -> Tool:
        """The tool, attached as its documentation says."""
        raise NotImplementedError

    def enters(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if id(root) in self.known:
            return
        optimizer = taps.optimizer_of(root)
        if optimizer is not None:
            self.known.add(id(root))
            self.attached.append(Attached(root, optimizer, self.attach(root, optimizer)))

    def backward(self, loss: float) -> None:
        self.loss = loss

    def of(self, optimizer: Optimizer) -> list[Tool]:
        """The tools that watch what an optimizer trains."""
        return [a.tool for a in self.attached if a.optimizer is optimizer]
