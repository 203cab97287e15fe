"""The numbers the published rules are held against, and the verdict every peer gives. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

EPOCHS = 20
"""The rules of Keras tools run per epoch. A script need not have epochs: a twentieth of its steps stands for one."""


@dataclass(frozen=True)
class Training:
    """What one optimizer did to its parameters: a row per step, a column per weight matrix, in the order of the layers.

    Gradients are those of the loss, before any clipping. Where something was not seen in a step its value is NaN.
    """

    kernels: tuple[str, ...]
    dense: tuple[bool, ...]
    """Whether a weight matrix belongs to a fully connected layer."""
    loss: Numbers
    accuracy: Numbers
    """Accuracy on the batch of the step; NaN where the loss is not one of classification."""
    finite: NDArray[np.bool_]
    """Whether every weight and every gradient was finite."""
    zero_share: Numbers
    """Share of gradient entries, over all parameters, that are exactly zero."""
    seen: NDArray[np.bool_]
    """Whether a weight matrix had a gradient: one of NaN is seen too."""
    gradient_norm: Numbers
    gradient_mean: Numbers
    gradient_size: Numbers
    """Mean absolute value, as the next two."""
    weight_size: Numbers
    update_size: Numbers
    weight_mean: Numbers
    outputs: Mapping[str, Numbers] = field(default_factory=dict)
    """Mean of a layer's output, in the order of the layers."""
    ran: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Whether the layer ran in a step: a mean of NaN is one."""
    closed: Mapping[str, Numbers] = field(default_factory=dict)
    """Share of a ReLU's outputs that are not above zero."""
    far_inputs: Mapping[str, Numbers] = field(default_factory=dict)
    """Share of the inputs of a tanh or a sigmoid that are at or beyond +-5."""
    spread: Mapping[str, Numbers] = field(default_factory=dict)
    """Standard deviation of an activation, over the last ten batches."""
    dead_neurons: Mapping[str, Numbers] = field(default_factory=dict)
    """Share of neurons whose 95th percentile of |output| is below 1e-5, over the last ten batches."""
    saturated_neurons: Mapping[str, Numbers] = field(default_factory=dict)
    """Share of the neurons of a tanh or a sigmoid whose saturation index is above 0.85, over the last ten batches."""

    @property
    def steps(self) -> int:
        """How many steps the optimizer took."""
        return len(self.loss)


@dataclass(frozen=True)
class Found:
    """A rule that fired: where and when."""

    rule: str
    site: str
    step: int


@dataclass(frozen=True)
class Verdict:
    """What a peer says of a run. ``notes`` say what kept it from saying more, ``error`` what kept it from saying anything."""

    flagged: bool
    findings: tuple[str, ...] = ()
    first_step: int | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"error": self.error} if self.error else {k: v for k, v in asdict(self).items() if k != "error"}


def verdict(errors: Iterable[Found], warnings: Iterable[Found] = (), notes: Sequence[str] = ()) -> Verdict:
    """Sum up what fired: a line per rule, and flagged where there is an error."""
    errors = list(errors)
    first = min((f.step for f in errors), default=None)
    return Verdict(bool(errors), lines(errors), first, lines(warnings), tuple(dict.fromkeys(notes)))


def lines(found: Iterable[Found]) -> tuple[str, ...]:
    """One line per rule: the first place it fired at, and how many more there are."""
    rules: dict[str, list[Found]] = {}
    for f in sorted(found, key=lambda f: f.step):
        rules.setdefault(f.rule, []).append(f)
    return tuple(_line(rule, fired) for rule, fired in rules.items())


def _line(rule: str, fired: Sequence[Found]) -> str:
    more = len({f.site for f in fired}) - 1
    return f"{rule}: {fired[0].site} at step {fired[0].step}" + (f" and {more} more" if more else "")


def interval(steps: int, epochs: int = EPOCHS) -> int:
    """How many steps stand for an epoch."""
    return max(1, steps // epochs)


def epoch_ends(steps: int, epochs: int = EPOCHS) -> range:
    """The last step of every epoch."""
    every = interval(steps, epochs)
    return range(every - 1, steps, every)


def epoch_means(values: Numbers, epochs: int = EPOCHS) -> Numbers:
    """The mean over every epoch; NaN where nothing is known of it."""
    every = interval(len(values), epochs)
    rows = [values[end + 1 - every : end + 1] for end in epoch_ends(len(values), epochs)]
    return np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in rows], np.float64)
