"""Blueprint: what a network is made of, in order of execution, as theory needs it. One small JSON file beside the record.

The probe draws it from the autograd graph of the first loss; `gradiometer.theory.forecast` reads it. Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

SUFFIX: Final = ".blueprint.json"
NAN: Final = math.nan


class Op(StrEnum):
    """What an operation does to a signal, as far as theory tells operations apart."""

    ENTRY = "entry"  # data or a parameter enters the graph
    LINEAR = "linear"  # dense, convolution: weights times input, plus bias
    ACTIVATION = "activation"  # a scalar function of every element
    BATCH_NORM = "batch norm"
    LAYER_NORM = "layer norm"  # also group and instance norm: over units of one example
    RMS_NORM = "rms norm"
    ADD = "add"  # a skip connection, or a parameter added
    SCALE = "scale"  # by a number, a parameter, or a mask (dropout)
    UNKNOWN = "unknown"  # not covered by theory: its measured gain is used


@dataclass(frozen=True, slots=True)
class Spread:
    """Second-order statistics of a tensor over a batch; what mean-field theory propagates.

    Attributes:
        square: mean square of an element.
        mean: mean of an element.
        apart: share of the mean square that differs between two examples, 1 - c, at the same position.
        apart_anywhere: the same between any two of (example, position): what batch normalisation sees.
        pairs: mean squared correlation of two (example, position) about the mean of all: near 0 where all are different.
    """

    square: float
    mean: float
    apart: float
    apart_anywhere: float
    pairs: float = 0.0


@dataclass(frozen=True, slots=True)
class Flow:
    """A gradient as it was measured at the output of an operation.

    Attributes:
        square: sum of squares over the batch.
        shared: share of it that is the mean over (example, position) of each unit.
        overlap: mean squared cosine between the gradients of two (example, position), those with themselves included.
        along: share of it that lies along the output itself, example by example; NaN where the output was not kept.
    """

    square: float
    shared: float = NAN
    overlap: float = NAN
    along: float = NAN


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        op: what it does.
        kind: what the user or torch calls it: ``Linear``, ``tanh``, ``BmmBackward0``.
        inputs: indices of the operations it takes its input from; all are smaller than its own.
        units: features or channels of its output.
        count: (example, position) pairs of its output.
        names: names of the module outputs it is, with the name of their model: ``[("Net", "layers.3")]``.
        numbers: what theory needs, by operation (see `gradiometer.theory.forecast`).
        function: of an activation, its name as `gradiometer.theory.activations` knows it, or ``sampled``.
        samples: of a ``sampled`` activation, its values on `SAMPLE_GRID`.
        output: its measured output; None where it could not be read.
        gradient: the measured gradient of its output.
        gains: for each input, measured |gradient of the input|² / |gradient of the output|²; NaN where not measured.
    """

    op: Op
    kind: str
    inputs: tuple[int, ...] = ()
    units: int = 1
    count: int = 1
    names: tuple[tuple[str, str], ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])
    function: str = ""
    samples: tuple[float, ...] = ()
    output: Spread | None = None
    gradient: Flow | None = None
    gains: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The user's name for it; empty for an operation between modules."""
        return self.names[0][1] if self.names else ""


SAMPLE_LIMIT: Final = 30.0
SAMPLE_STEP: Final = 1 / 64


def sample_grid() -> list[float]:
    """Points at which an activation without a name is sampled."""
    count = round(2 * SAMPLE_LIMIT / SAMPLE_STEP)
    return [-SAMPLE_LIMIT + SAMPLE_STEP * i for i in range(count + 1)]


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """The optimizer that was about to step.

    Attributes:
        kind: class name.
        learning_rate: of its first parameter group; NaN without an optimizer.
        momentum: of SGD; 0 otherwise.
        beta1: first beta of an Adam-like optimizer; NaN otherwise.
        eps: of an Adam-like optimizer; NaN otherwise.
    """

    kind: str
    learning_rate: float
    momentum: float = 0.0
    beta1: float = NAN
    eps: float = NAN


@dataclass(frozen=True, slots=True)
class CurvatureFacts:
    """Largest eigenvalue of the Hessian on the first batch.

    Attributes:
        largest: of the Hessian itself; NaN if it was not found.
        preconditioned: of the Hessian in the coordinates of an Adam-like optimizer's first step; NaN for any other.
        iterations: Hessian-vector products that were taken.
        change: relative change of the estimate in the last iteration.
        trouble: why it could not be had; empty otherwise.
    """

    largest: float
    preconditioned: float = NAN
    iterations: int = 0
    change: float = NAN
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Everything the first step showed of how a network is made.

    Attributes:
        nodes: operations in order of execution.
        loss: value of the loss; NaN if it is no single number.
        optimizer: None if the training has none.
        curvature: None if it was not asked for.
        notes: sentences about what could not be read.
    """

    nodes: tuple[Node, ...]
    loss: float = NAN
    optimizer: OptimizerFacts | None = None
    curvature: CurvatureFacts | None = None
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        temporary = path.with_suffix(".tmp")
        # not asdict: it copies every sample of every activation
        text = json.dumps(self, default=lambda value: {f.name: getattr(value, f.name) for f in fields(value)})
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Blueprint:
        """Read what `write` wrote.

        Raises:
            OSError: it cannot be read.
            ValueError, KeyError, TypeError: it is no blueprint.
        """
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        nodes = tuple(_node(n) for n in data.pop("nodes"))
        optimizer, curvature = data.pop("optimizer"), data.pop("curvature")
        return cls(
            nodes=nodes,
            optimizer=None if optimizer is None else OptimizerFacts(**optimizer),
            curvature=None if curvature is None else CurvatureFacts(**curvature),
            loss=float(data["loss"]),
            notes=tuple(data["notes"]),
        )


def _node(data: dict[str, Any]) -> Node:
    output, gradient = data["output"], data["gradient"]
    names: Sequence[Sequence[str]] = data["names"]
    return Node(
        op=Op(data["op"]),
        kind=data["kind"],
        inputs=tuple(data["inputs"]),
        units=data["units"],
        count=data["count"],
        names=tuple((model, name) for model, name in names),
        numbers=data["numbers"],
        function=data["function"],
        samples=tuple(data["samples"]),
        output=None if output is None else Spread(**output),
        gradient=None if gradient is None else Flow(**gradient),
        gains=tuple(data["gains"]),
    )
