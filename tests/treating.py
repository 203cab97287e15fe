"""What tests of remedies share: patients, a small task, and pasting an edit."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradiometer.record.trace import Trace
from gradiometer.remedies.base import Patient, Remedy, Snippet, Symptoms
from gradiometer.types import Finding, Severity
from traces import make

WIDTH = 64


def patient(model: nn.Module, *inputs: Any, optimizer: bool = True) -> Patient:
    """A model and a batch, trained by SGD."""
    parameters = list(model.parameters())
    optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(parameters, lr=0.1)] if optimizer and parameters else []
    return Patient(model, optimizers, (inputs, {}) if inputs else None)


def give(remedy: Remedy, subject: Patient, sites: tuple[str, ...] = (), **settings: str | float | bool) -> list[str]:
    """Apply a remedy with these settings."""
    return remedy.apply(subject, remedy.filled(settings), sites)


def run(to: Patient, *inputs: Any) -> Any:
    """A forward pass of a treated model, as training makes it."""
    with ExitStack() as stack:
        for around in to.on_forward:
            stack.enter_context(around())
        return to.model(*inputs)


def held(optimizer: torch.optim.Optimizer) -> set[int]:
    """Identities of the parameters that an optimizer has."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def classes(count: int = 256, width: int = WIDTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An easy task: ten clusters."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, width, generator=g)
    y = torch.randint(0, 10, (count,), generator=g)
    return centres[y] + 0.5 * torch.randn(count, width, generator=g), y


def learns(to: Patient, lr: float = 0.1, steps: int = 60, momentum: float = 0.9, width: int = WIDTH) -> float:
    """Share of the training examples that are right after some steps of SGD on all of them."""
    torch.set_num_threads(1)
    x, y = classes(width=width)
    optimizer = torch.optim.SGD(to.model.parameters(), lr=lr, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(run(to, x), y).backward()
        optimizer.step()
    with torch.no_grad():
        return float((run(to, x).argmax(1) == y).float().mean())


def paste(snippet: Snippet, model: nn.Module, **more: Any) -> None:
    """Execute the lines of an edit on a model."""
    code = "\n".join([*snippet.imports, *snippet.lines]).format(model="model", optimizer="optimizer", loader="loader")
    exec(code, {"model": model, **more})


def symptoms(*rules: str, trace: Trace | int = 8, steps: int = 200) -> Symptoms:
    """A training with findings of these rules."""
    found = tuple(Finding(rule, Severity.ERROR, 0.9, (), (0, 100), "", (), ()) for rule in rules)
    return Symptoms(found, make(trace) if isinstance(trace, int) else trace, steps)
