"""The clinic: small trainings on digits, treated or not, each run within this process and recorded as a `Trace`.

It uses the probe's own observer with hooks on the one model that is trained. Nothing is put in place for the whole process,
as `gradiometer.watch` would, so other threads are not seen and not disturbed. What PyTorch draws at random comes from its
global streams; a lock and a fork of them keep that reproducible, and the streams of the caller go on where they were.
"""

from __future__ import annotations

import functools
import math
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradiometer import __version__
from gradiometer.data import DEMO_DATA
from gradiometer.errors import GradiometerError
from gradiometer.probe import attach
from gradiometer.probe.observer import Observer
from gradiometer.probe.sampler import Sampler
from gradiometer.record.folder import create_folder
from gradiometer.record.run import load
from gradiometer.record.trace import Trace
from gradiometer.remedies.bedside import treat
from gradiometer.trial.reading import as_trial, bin_steps
from gradiometer.trial.result import Ending, Trial
from gradiometer.types import Prescription

LEARNERS: Final = 1_000
"""Images that are trained on, the first of the data."""
SIDE: Final = 8
"""Pixels of a row of an image."""
CLASSES: Final = 10
AMPLE: Final = 1e9
"""Share of the time that the probe may take: so large that only the fixed cadence decides when to look, never the clock."""
_ALONE: Final = threading.Lock()
"""Held while a training runs: PyTorch's streams of random numbers belong to the whole process."""

ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "linear": nn.Identity,
}


@dataclass(frozen=True, slots=True)
class Training:
    """A network and how it is trained; everything that can make it sick.

    Attributes:
        activation: a key of `ACTIVATIONS`.
        depth: hidden layers; a recurrent network reads the image so many times over, row by row.
        width: units of a hidden layer.
        spread: hidden weights are Gaussian with deviation ``spread`` / sqrt(fan_in); 0 leaves PyTorch's own (0.58, uniform).
        bias: what hidden biases start at where ``spread`` is given.
        constant: all hidden weights start at this / fan_in; 0 for none of that.
        normed: whether batch normalisation stands behind every hidden layer.
        recurrent: whether it reads the rows of the image one after the other through one layer.
        rate: learning rate of stochastic gradient descent.
        momentum: of the same.
        left_out: hidden layers at the input end that the optimizer does not get.
        batch: images of a step.
    """

    activation: str = "relu"
    depth: int = 8
    width: int = 32
    spread: float = 0.0
    bias: float = 0.0
    constant: float = 0.0
    normed: bool = False
    recurrent: bool = False
    rate: float = 0.1
    momentum: float = 0.9
    left_out: int = 0
    batch: int = 64


@dataclass(frozen=True)
class Record:
    """One training that was run.

    Attributes:
        training: what was trained.
        prescription: what it was treated with; None for an untreated one.
        trial: it in the form that `gradiometer.trial.verdict.judge` compares; not ``ran`` where a remedy did not fit.
        trace: its numbers; empty of steps where a remedy did not fit.
        changes: what the treatment did, a sentence for each thing.
        accuracy: share of the training images it gets right at the end, 0..1; NaN where it was not run.
        seconds_per_step: time of a step without that of the probe: of this machine, now; NaN where it was not run.
    """

    training: Training
    prescription: Prescription | None
    trial: Trial
    trace: Trace
    changes: tuple[str, ...]
    accuracy: float
    seconds_per_step: float

    @property
    def loss(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Loss of every step, (steps,); NaN where it was no number."""
        loss = self.trace.ledger["loss"] if self.trace.ledger.step.size else np.empty(0)
        return np.where(np.isfinite(loss), loss, np.nan)


def run(
    training: Training, prescription: Prescription | None = None, *, seed: int = 0, steps: int = 100, every: int = 10
) -> Record:
    """Train a network, treated or not, and record it. Runs of one seed see the same batches.

    Args:
        training: what is trained.
        prescription: what it is treated with before the first step.
        seed: of weights, batches and whatever the treatment draws.
        steps: optimizer steps, at least 1.
        every: every so many-th step is looked at closely, at least 1.

    Raises:
        GradiometerError: ``steps`` or ``every`` is below 1, or the prescription names what does not exist.
    """
    if steps < 1 or every < 1:
        raise GradiometerError(f"{steps} steps, every {every}-th looked at, is no training.", "Both must be 1 or more.")
    if prescription is not None:
        _check(prescription)
    with _ALONE, tempfile.TemporaryDirectory(prefix="gradiometer-lab-") as folder, _seeded(seed), attach.muted():
        return _run(Path(folder) / "run", training, prescription, seed, steps, every)


def _check(prescription: Prescription) -> None:
    from gradiometer.remedies import check

    check(prescription)


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _run(folder: Path, training: Training, prescription: Prescription | None, seed: int, steps: int, every: int) -> Record:
    images, labels = digits()
    generator = torch.Generator().manual_seed(seed)
    order = [torch.randint(LEARNERS, (training.batch,), generator=generator) for _ in range(steps)]
    model = build(training)
    optimizer = torch.optim.SGD(_trained(model, training), lr=training.rate, momentum=training.momentum)
    changes: tuple[str, ...] = ()
    trouble = ""
    if prescription is not None:
        try:
            changes = tuple(treat(model, optimizer, prescription, inputs=images[:LEARNERS][: 4 * training.batch]))
        except GradiometerError as error:
            trouble = error.message
    create_folder(folder, ["gradiometer.watch()"], __version__)
    watcher = _Watcher(folder, model, optimizer, every)
    try:
        for index in order if not trouble else ():
            watcher.step(images[index], labels[index])
    finally:
        watcher.end()
    trace = load(folder).trace
    trial = as_trial("", None, seed, steps, bin_steps(steps), trace, early=False)
    ending = Ending.REFUSED if trouble else Ending.RAN
    trial = replace(trial, prescription=prescription, ending=ending, trouble=trouble)
    accuracy = math.nan if trouble else _accuracy(model, images[:LEARNERS], labels[:LEARNERS])
    return Record(training, prescription, trial, trace, changes, accuracy, watcher.seconds_per_step)


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    answers = model(images)
    right = (answers.argmax(1) == labels) & answers.isfinite().all(1)  # the largest of no numbers is no answer
    return float(right.float().mean())


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """The 1797 digits of the package: images (n, 64) with mean 0 and variance 1 over all pixels, and labels (n,)."""
    with np.load(DEMO_DATA) as data:
        pixels = np.asarray(data["x"], np.float32)
        labels = np.asarray(data["y"], np.int64)
    return torch.from_numpy((pixels - pixels.mean()) / pixels.std()), torch.from_numpy(labels)


# ---- networks ----------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Reads an image row by row, several times over, through one recurrent layer, and names its digit then.

    Args:
        width: units of the layer.
        times: how often it reads the image.
        activation: ``tanh`` or ``relu``.
    """

    def __init__(self, width: int, times: int, activation: str) -> None:
        super().__init__()
        self.times = times
        self.memory = nn.RNN(SIDE, width, nonlinearity=activation, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Answers (n, 10) for images (n, 64)."""
        states, _ = self.memory(images.view(-1, SIDE, SIDE).repeat(1, self.times, 1))
        return self.head(states[:, -1])


def build(training: Training) -> nn.Module:
    """A network as a training describes it; weights come from PyTorch's global stream."""
    if training.recurrent:
        return _reader(training)
    parts: list[nn.Module] = []
    size = SIDE * SIDE
    for _ in range(training.depth):
        layer = nn.Linear(size, training.width)
        _draw(layer, training)
        parts += [layer, nn.BatchNorm1d(training.width)] if training.normed else [layer]
        if training.activation != "linear":
            parts.append(ACTIVATIONS[training.activation]())
        size = training.width
    return nn.Sequential(*parts, nn.Linear(size, CLASSES))


def _draw(layer: nn.Linear, training: Training) -> None:
    if training.constant:
        nn.init.constant_(layer.weight, training.constant / layer.in_features)
        nn.init.zeros_(layer.bias)
    elif training.spread:
        nn.init.normal_(layer.weight, std=training.spread / math.sqrt(layer.in_features))
        nn.init.constant_(layer.bias, training.bias)


def _reader(training: Training) -> Reader:
    model = Reader(training.width, training.depth, training.activation)
    if training.spread:
        recurrent = model.memory.get_parameter("weight_hh_l0")
        nn.init.normal_(recurrent, std=training.spread / math.sqrt(training.width))
    return model


def _trained(model: nn.Module, training: Training) -> list[nn.Parameter]:
    if not training.left_out:
        return list(model.parameters())
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)][: training.left_out]
    out = {id(p) for layer in linear for p in layer.parameters()}
    return [p for p in model.parameters() if id(p) not in out]


# ---- watching ----------------------------------------------------------------------------------------------------------


class _Watcher:
    """Trains one model step by step and leads what happens to an observer of the probe.

    Does for one model what `gradiometer.probe.taps` does for a whole process.
    """

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, every: int) -> None:
        self._model = model
        self._optimizer = optimizer
        self._hooks: list[Any] = []
        self._times: list[float] = []
        self._observer = Observer(folder, Sampler(AMPLE, every), self._set_hooks, [optimizer])
        self._observer.names.adopt(model)
        self._set_hooks(self._observer.wants_module_hooks)
        # behind the hooks of the treatment, which changes gradients before a step and rates only for its duration
        self._before = optimizer.register_step_pre_hook(self._clipped)
        self._after = optimizer.register_step_post_hook(self._stepped)
        self._norm = 0.0

    @property
    def seconds_per_step(self) -> float:
        """Median time of a step without that of the probe; NaN before the first."""
        return float(np.median(self._times)) if self._times else math.nan

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step of the training."""
        began, own = time.perf_counter(), self._observer.own_seconds
        self._optimizer.zero_grad()
        loss = F.cross_entropy(self._model(images), labels)
        leaves = self._told(lambda o: o.backward_begin([loss]))
        loss.backward()
        self._told(lambda o: o.backward_end(leaves))
        self._told(lambda o: o.step_begin(self._optimizer))
        self._norm = self._told(lambda _: self._size())
        self._optimizer.step()
        self._times.append(time.perf_counter() - began - (self._observer.own_seconds - own))

    def end(self) -> None:
        """Write what waits and take the hooks off."""
        self._set_hooks(False)
        self._before.remove()
        self._after.remove()
        self._observer.end()

    def _told(self, call: Callable[[Observer], Any]) -> Any:
        """Lead something to the observer, on its own account of time."""
        began = time.perf_counter()
        try:
            return call(self._observer)
        finally:
            self._observer.own_seconds += time.perf_counter() - began

    def _size(self) -> float:
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _clipped(self, *_: Any) -> None:
        self._told(self._tell_clip)

    def _tell_clip(self, observer: Observer) -> None:
        size = self._size()
        if size < self._norm * (1.0 - 1e-5):
            observer.clip_end(torch.tensor(self._norm), size)

    def _stepped(self, *_: Any) -> None:
        self._told(lambda o: o.step_end(self._optimizer))

    def _set_hooks(self, on: bool) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        if on:
            for module in self._model.modules():
                self._hooks += [
                    module.register_forward_pre_hook(self._enter, prepend=True),
                    # before hooks of a treatment (dropout), which change what the module gives
                    module.register_forward_hook(self._leave, prepend=True),
                ]

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self._told(lambda o: o.forward_enter(module))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._told(lambda o: o.forward_leave(module, args, output))
