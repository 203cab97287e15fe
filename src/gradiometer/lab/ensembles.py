"""Hundreds of small networks trained at once: stacked weights, batched matrix products, a backward pass written by hand.

A loop over networks spends its time between the products, not in them. Here one product serves a block of networks; the
activations are computed in place; each network's learning rate is folded into its loss, so that a step of plain gradient
descent is the very product that forms the weight gradient, accumulated into the weights. A block is as large as stays in
the cache. Results equal those of a plain loop over ``torch.nn.Linear`` networks but for rounding
(``tests/test_lab_ensembles.py``), and ``benchmarks/ensembles.py`` measures what it gains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal, cast

import joblib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradiometer.errors import GradiometerError
from gradiometer.lab.elementwise import elementwise

CACHE: Final = 12 << 20
"""Bytes that the weights and signals of a block may take: what stays in the last cache of most machines."""
LARGEST_BLOCK: Final = 128

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # Adam's, as in torch.optim

FloatArray = npt.NDArray[np.float64]


# ---- what is trained ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Architecture:
    """A plain network that classifies: ``depth`` hidden layers of ``width`` units, then a linear read-out.

    Attributes:
        inputs: features of an example.
        width: units of each hidden layer.
        depth: hidden layers, at least 1.
        outputs: classes.
        activation: a name of `gradiometer.lab.elementwise`.
    """

    inputs: int
    width: int
    depth: int
    outputs: int
    activation: str = "tanh"

    def __post_init__(self) -> None:
        if min(self.inputs, self.width, self.depth, self.outputs) < 1:
            raise GradiometerError(f"A network has at least one unit and one layer everywhere, unlike {self}.")
        elementwise(self.activation)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(fan_in, fan_out) of every layer, the read-out last."""
        widths = (self.inputs, *(self.width,) * self.depth, self.outputs)
        return tuple(pairwise(widths))

    def products(self, batch: int) -> int:
        """Floating-point operations of the products of one step: forward, and backward to signals and weights, 2 m n k each.

        The first layer passes no gradient on to the data.
        """
        every = [2 * batch * i * o for i, o in self.sizes]
        return 3 * sum(every) - every[0]


@dataclass(frozen=True, slots=True)
class Member:
    """One network of an ensemble.

    Attributes:
        sigma_w: standard deviation of a weight times sqrt(fan_in).
        sigma_b: standard deviation of a bias.
        learning_rate: its own.
        seed: of its weights.
    """

    sigma_w: float
    sigma_b: float
    learning_rate: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Training:
    """How every network of an ensemble is trained.

    Attributes:
        steps: optimizer steps.
        batch: examples per step, drawn with replacement; all networks see the same ones.
        optimizer: ``sgd`` or ``adam`` (Kingma & Ba 2015, torch's defaults).
        momentum: of SGD, in [0, 1).
        seed: of the order of the examples.
    """

    steps: int
    batch: int
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0.0 <= self.momentum < 1.0:
            raise GradiometerError(f"A training has steps, a batch and a momentum in [0, 1), unlike {self}.")
        if self.optimizer == "adam" and self.momentum:
            raise GradiometerError("Adam has a momentum of its own.", "Leave momentum at 0.")


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """What is learned.

    Attributes:
        x: features, float32, shape (examples, inputs).
        y: classes, int64, shape (examples,).
    """

    x: Tensor
    y: Tensor

    def order(self, training: Training) -> Tensor:
        """Indices of the examples of every step, shape (steps, batch)."""
        generator = torch.Generator().manual_seed(training.seed)
        return torch.randint(len(self.x), (training.steps, training.batch), generator=generator)


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What became of one network.

    Attributes:
        losses: cross-entropy of every step's batch before the step, shape (steps,); NaN or infinite where it diverged.
        accuracy: share of all examples classified right in the end; NaN if the network gives no numbers any more.
    """

    losses: FloatArray
    accuracy: float

    @property
    def finite(self) -> bool:
        """Whether every loss was a number."""
        return bool(np.isfinite(self.losses).all()) and math.isfinite(self.accuracy)


def draw(architecture: Architecture, member: Member) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of one network, as ``torch.nn.Linear`` holds them: (fan_out, fan_in) and (fan_out,)."""
    generator = torch.Generator().manual_seed(member.seed)
    return [
        (
            torch.randn(o, i, generator=generator) * (member.sigma_w / math.sqrt(i)),
            torch.randn(o, generator=generator) * member.sigma_b,
        )
        for i, o in architecture.sizes
    ]


# ---- one block ---------------------------------------------------------------------------------------------------------


class Block:
    """Networks whose weights are stacked, and the buffers they are trained in.

    Attributes:
        weights: one for each layer, shape (networks, fan_in, fan_out).
        biases: one for each layer, shape (networks, 1, fan_out).
    """

    def __init__(self, architecture: Architecture, members: Sequence[Member], training: Training) -> None:
        drawn = [draw(architecture, member) for member in members]
        layers = range(len(architecture.sizes))
        self.weights = [torch.stack([net[k][0].T for net in drawn]).contiguous() for k in layers]
        self.biases = [torch.stack([net[k][1] for net in drawn]).unsqueeze(1) for k in layers]
        self._act = elementwise(architecture.activation)
        self._training = training
        self._rates = torch.tensor([member.learning_rate for member in members]).view(-1, 1, 1)
        count, batch, width = len(members), training.batch, architecture.width
        self._pre = [torch.empty(count, batch, width) for _ in range(architecture.depth)]
        self._post = self._pre if self._act.from_output else [torch.empty_like(p) for p in self._pre]
        self._logits = torch.empty(count, batch, architecture.outputs)
        self._back = [torch.empty(count, batch, width) for _ in range(2)]
        self._ones = torch.ones(1, 1, batch).expand(count, 1, batch)
        self._taken = 0
        stateful = training.optimizer == "adam" or training.momentum > 0.0
        moments = 2 if training.optimizer == "adam" else int(stateful)
        parameters = self.weights + self.biases
        self._moments = [[torch.zeros_like(p) for p in parameters] for _ in range(moments)]
        self._scratch = [torch.empty_like(p) for p in parameters] if training.optimizer == "adam" else []

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of all networks on the same batch; the loss of each before it, shape (networks,).

        Args:
            x: features, shape (batch, inputs).
            y: classes, shape (batch,).
        """
        self._taken += 1
        inputs = x.expand(len(self._rates), *x.shape)
        logits = self._forward(inputs)
        chances = torch.log_softmax(logits, dim=2)
        index = y.view(1, -1, 1).expand(chances.shape[0], -1, 1)
        loss = -chances.gather(2, index).mean(dim=(1, 2))
        gradient = chances.exp_().scatter_add_(2, index, torch.full((1, 1, 1), -1.0).expand(index.shape))
        # plain descent: the loss times minus the learning rate has the step itself for its gradient
        plain = self._training.optimizer == "sgd"
        gradient.mul_((-self._rates if plain else 1.0) / x.shape[0])
        self._backward(inputs, gradient)
        return loss

    def _forward(self, inputs: Tensor) -> Tensor:
        signal = inputs
        for k, (pre, post) in enumerate(zip(self._pre, self._post, strict=True)):
            torch.baddbmm(self.biases[k], signal, self.weights[k], out=pre)
            self._act.into(pre, post)
            signal = post
        return torch.baddbmm(self.biases[-1], signal, self.weights[-1], out=self._logits)

    def _backward(self, inputs: Tensor, gradient: Tensor) -> None:
        """Gradients layer by layer from the last; each layer is stepped as soon as its gradient has been passed on."""
        for k in range(len(self.weights) - 1, -1, -1):
            below = inputs if k == 0 else self._post[k - 1]
            passed = None
            if k:
                passed = self._back[k % 2]
                torch.bmm(gradient, self.weights[k].transpose(1, 2), out=passed)
                self._act.backward(passed, self._pre[k - 1], passed)
            self._update(k, self.weights[k], below.transpose(1, 2), gradient)
            self._update(len(self.weights) + k, self.biases[k], self._ones, gradient)
            if passed is not None:
                gradient = passed

    def _update(self, slot: int, parameter: Tensor, left: Tensor, right: Tensor) -> None:
        """Step a parameter whose gradient is the product of these two."""
        if not self._moments:
            parameter.baddbmm_(left, right)
        elif self._training.optimizer == "sgd":
            velocity = self._moments[0][slot]
            velocity.baddbmm_(left, right, beta=self._training.momentum)
            parameter.add_(velocity)
        else:
            self._adam(slot, parameter, left, right)

    def _adam(self, slot: int, parameter: Tensor, left: Tensor, right: Tensor) -> None:
        mean, square, scratch = self._moments[0][slot], self._moments[1][slot], self._scratch[slot]
        torch.bmm(left, right, out=scratch)
        mean.lerp_(scratch, 1.0 - _BETA1)
        square.mul_(_BETA2).addcmul_(scratch, scratch, value=1.0 - _BETA2)
        torch.sqrt(square, out=scratch)
        scratch.mul_(1.0 / math.sqrt(1.0 - _BETA2**self._taken)).add_(_EPS)
        torch.div(mean, scratch, out=scratch)
        parameter.addcmul_(scratch, self._rates, value=-1.0 / (1.0 - _BETA1**self._taken))

    def accuracy(self, examples: Examples) -> Tensor:
        """Share of the examples each network classifies right, shape (networks,); NaN where it gives no numbers."""
        right = torch.zeros(len(self._rates))
        batch = self._training.batch
        finite = torch.ones(len(self._rates), dtype=torch.bool)
        for start in range(0, len(examples.x), batch):
            x, y = examples.x[start : start + batch], examples.y[start : start + batch]
            padded = torch.zeros(batch, x.shape[1])
            padded[: len(x)] = x
            logits = self._forward(padded.expand(len(self._rates), *padded.shape))[:, : len(x)]
            right += (logits.argmax(dim=2) == y).sum(dim=1)
            finite &= torch.isfinite(logits).all(dim=2).all(dim=1)
        return torch.where(finite, right / len(examples.x), math.nan)


# ---- many blocks -------------------------------------------------------------------------------------------------------


def block_size(architecture: Architecture, training: Training) -> int:
    """Networks whose weights, signals and gradients fit into `CACHE` together."""
    weights = sum(i * o + o for i, o in architecture.sizes)
    states = {"sgd": 1 + (training.momentum > 0.0), "adam": 4}[training.optimizer]
    kept = architecture.depth * (1 if elementwise(architecture.activation).from_output else 2)
    signals = training.batch * (architecture.width * (kept + 2) + 2 * architecture.outputs)
    return max(1, min(LARGEST_BLOCK, CACHE // (4 * (weights * states + signals))))


def _blocks(members: Sequence[Member], size: int) -> list[Sequence[Member]]:
    """Blocks of nearly equal size: a small last one would leave cores idle."""
    count = max(1, math.ceil(len(members) / size))
    edges = [round(k * len(members) / count) for k in range(count + 1)]
    return [members[a:b] for a, b in pairwise(edges)]


def _train_block(
    architecture: Architecture, members: Sequence[Member], examples: Examples, training: Training
) -> list[Trained]:
    with torch.no_grad():
        block = Block(architecture, members, training)
        losses = torch.stack([block.step(examples.x[rows], examples.y[rows]) for rows in examples.order(training)])
        accuracy = block.accuracy(examples)
    curves = losses.T.to(torch.float64).numpy()
    return [Trained(curve, float(share)) for curve, share in zip(curves, accuracy, strict=True)]


def train(architecture: Architecture, members: Sequence[Member], examples: Examples, training: Training) -> tuple[Trained, ...]:
    """Train all members in this process, block by block.

    Args:
        architecture: what they share.
        members: each network's weights and learning rate.
        examples: what they learn.
        training: how.

    Returns:
        What became of each, in order.

    Raises:
        GradiometerError: the examples do not fit the architecture.
    """
    _check(architecture, examples)
    blocks = _blocks(members, block_size(architecture, training)) if members else []
    return tuple(found for block in blocks for found in _train_block(architecture, block, examples, training))


def sweep(
    architectures: Sequence[Architecture],
    members: Sequence[Member],
    examples: Examples,
    training: Training,
    jobs: int | None = None,
) -> tuple[tuple[Trained, ...], ...]:
    """Train the same members in several architectures, one block a task of `joblib.Parallel`.

    Whatever backend ``joblib.parallel_config`` names runs the blocks: other processes, a cluster. A block is a pure value in
    and out, so the result does not depend on it, but for rounding that goes with the number of threads.

    Args:
        architectures: in order of the result.
        members: of each of them.
        examples: what they learn.
        training: how.
        jobs: blocks at a time; None leaves it to ``joblib.parallel_config``.

    Returns:
        For each architecture, what became of each member.

    Raises:
        GradiometerError: the examples do not fit an architecture.
    """
    for architecture in architectures:
        _check(architecture, examples)
    tasks = [(k, block) for k, a in enumerate(architectures) for block in _blocks(members, block_size(a, training))]
    parallel = joblib.Parallel(n_jobs=jobs)
    done = cast(
        "list[list[Trained]]",
        parallel(joblib.delayed(_train_block)(architectures[k], block, examples, training) for k, block in tasks),
    )
    found: list[list[Trained]] = [[] for _ in architectures]
    for (k, _), trained in zip(tasks, done, strict=True):
        found[k] += trained
    return tuple(tuple(of_one) for of_one in found)


def rates(members: Sequence[Member], *learning_rates: float) -> tuple[Member, ...]:
    """Every member with each of these learning rates, the rates of one member side by side."""
    return tuple(replace(member, learning_rate=rate) for member in members for rate in learning_rates)


def _check(architecture: Architecture, examples: Examples) -> None:
    if examples.x.ndim != 2 or examples.x.shape[1] != architecture.inputs or len(examples.x) != len(examples.y):
        raise GradiometerError(
            f"Examples of shape {tuple(examples.x.shape)} do not fit a network of {architecture.inputs} inputs.",
            "Give features of shape (examples, inputs) and a class for each.",
        )
    if len(examples.y) == 0 or int(examples.y.max()) >= architecture.outputs or int(examples.y.min()) < 0:
        raise GradiometerError(f"Classes must be numbers from 0 to {architecture.outputs - 1}.")
