"""What `layers` finds in a model: the nouns."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

Weighted: TypeAlias = (
    nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that multiplies by weights (`WEIGHTED`).

    Attributes:
        name: qualified name of the module.
        module: the module itself.
        activation: what follows it, by theory's name (``relu``, ``tanh``, ...): past normalisation, dropout, pooling and
            sums, before the next weights. ``linear`` if nothing bends the signal there (or in a way that is not known, or
            as a gate), empty if that could not be seen (no batch, no activation module).
        slope: below zero, of a leaky ReLU; 0 otherwise.
        before: the activation that its input comes from, in the same words; ``linear`` behind a normalisation, a sum or
            data.
        before_slope: of that.
        follower: qualified name of the activation *module* that follows; empty for a functional one or none.
        head: whether no other weights come after it and it lies in no branch: an output layer.
        first: whether no other weights come before it: its input is data.
        branch: number of the (innermost) residual branch it lies in, -1 if in none.
        branch_last: whether its output goes straight into the sum of that branch: only dropout, reshaping or a factor between.
        width: number of its output units (channels).
        fan_in: number of inputs that each of them sums over.
        normed: whether a normalisation follows before the activation.
        recurrent: whether it is called again on what came of its own output: the cell of a loop over time.
        calls: how often it is called in one pass; 0 for one that the first batch does not reach.
    """

    name: str
    module: Weighted
    activation: str = ""
    slope: float = 0.0
    before: str = ""
    before_slope: float = 0.0
    follower: str = ""
    head: bool = False
    first: bool = False
    branch: int = -1
    branch_last: bool = False
    width: int = 0
    fan_in: int = 0
    normed: bool = False
    recurrent: bool = False
    calls: int = 0


@dataclass(frozen=True, slots=True)
class ByHand:
    """A dense layer that somebody wrote by hand: a matrix that signals are multiplied by.

    Attributes:
        layer: what it is like; its name is that of the parameter. Its ``module`` is no module of the model, but a dense layer
            without bias whose weight has the parameter's own memory, so that what is written into one is in the other.
        turned: whether the parameter has inputs in its rows (``x @ weight``).
    """

    layer: Layer
    turned: bool


@dataclass(frozen=True, slots=True)
class Branch:
    """What is added to a shortcut.

    Attributes:
        layers: names of the weighted layers in it, in order of execution; those of a branch inside it are not counted.
        last: name of the layer whose output goes straight into the sum; empty if none does.
        norm: name of the normalisation module whose output goes straight into the sum; empty if none does.
        normed: whether there is a normalisation anywhere in it.
        calls: how often it is passed in one forward pass.
    """

    layers: tuple[str, ...]
    last: str = ""
    norm: str = ""
    normed: bool = False
    calls: int = 1


@dataclass(frozen=True, slots=True)
class Reading:
    """What `read` found.

    Attributes:
        layers: in order of execution; those that the first batch does not reach come last.
        branches: residual branches in order of execution.
        executed: whether a forward pass was seen; otherwise the order is that of registration and branches are not known.
        by_hand: matrices that the model multiplies by without a layer of torch's.
    """

    layers: tuple[Layer, ...]
    branches: tuple[Branch, ...]
    executed: bool
    by_hand: tuple[ByHand, ...] = ()

    @property
    def depth(self) -> int:
        """How many residual branches a signal passes."""
        return sum(branch.calls for branch in self.branches)

    def within(self, sites: tuple[str, ...]) -> list[Layer]:
        """The layers whose names match one of the patterns; all if there are none."""
        return [layer for layer in self.layers if not sites or any(fnmatchcase(layer.name, site) for site in sites)]


def fan_in(module: Weighted) -> int:
    """Inputs that each output unit of a layer sums over."""
    weight = module.weight
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        # (in, out / groups, ...kernel): an output meets in / groups channels under kernel / stride taps
        taps, stride = 1, 1
        for k, s in zip(module.kernel_size, module.stride, strict=True):
            taps, stride = taps * k, stride * s
        return max(1, module.in_channels // module.groups * taps // stride)
    return max(1, weight[0].numel()) if weight.numel() else 1
