"""The probe's part of ``gradiometer.check``: one forward and one backward pass of a model in this process, then as before."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradiometer.errors import GradiometerError
from gradiometer.probe import attach
from gradiometer.probe.observer import Observer
from gradiometer.probe.rehearsal import SENTENCE_META, SENTENCE_NO_GRAPH, Rehearsal
from gradiometer.probe.safety import EventLog
from gradiometer.probe.sampler import Sampler


def measure(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[..., Any] | None,
    optimizer: torch.optim.Optimizer | None,
    folder: Path,
    *,
    with_curvature: bool,
) -> None:
    """Record the first step of a training in ``folder``; model, gradients and random numbers are as before afterwards.

    Args:
        model: the network.
        batch: ``(inputs, target)``, or what the model is called with (a mapping becomes keyword arguments).
        loss_fn: called with the output and the target if there is one; None where the output is the loss, or has one.
        optimizer: the one that will train it, for its learning rate.
        folder: a run folder.
        with_curvature: whether to measure the largest curvature.

    Raises:
        GradiometerError: there is no model, no weight, no loss or no gradient.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]  the caller may be no type checker
        raise GradiometerError(
            f"The model is {_an(type(model).__name__)}, not a torch.nn.Module.",
            "Call gradiometer.check(model, batch, loss_fn).",
        )
    tensors = [*model.parameters(), *model.buffers()]
    if any(t.is_meta for t in tensors):
        raise GradiometerError(SENTENCE_META, "Materialise it with to_empty(device=…) and initialise its weights first.")
    if not any(p.requires_grad for p in model.parameters()):
        raise GradiometerError(
            "No parameter of the model is trainable, so there is no gradient to check.",
            "Set requires_grad on what is to be trained.",
        )
    events = EventLog(folder)
    rehearsal = Rehearsal(folder, events, with_curvature=with_curvature, blocking=False)
    rehearsal.optimizer = optimizer
    observer = Observer(folder, Sampler(1.0, 1), _nothing, [], rehearsal)
    observer.names.adopt(model)
    with attach.muted(), _unchanged(model), torch.enable_grad():
        handles = _hook(model, observer)
        try:
            loss = _loss(model, batch, loss_fn)
            leaves = observer.backward_begin([loss])
            if rehearsal.refused:
                raise GradiometerError(rehearsal.refused, "Check the model and the loss function.")
            # not loss.backward(): the gradients that the model holds stay as they are
            found = torch.autograd.grad(loss, list(leaves), allow_unused=True)
            observer.backward_end(leaves, found)
        finally:
            for handle in handles:
                handle.remove()
            observer.end()


def _an(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def _nothing(_on: bool) -> None:
    """Module hooks are the model's own here, not global ones."""


def _hook(model: nn.Module, observer: Observer) -> list[Any]:
    def enter(module: nn.Module, _args: Any) -> None:
        observer.forward_enter(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        observer.forward_leave(module, args, output)

    handles: list[Any] = []
    for module in model.modules():
        handles += [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]
    return handles


def _loss(model: nn.Module, batch: Any, loss_fn: Callable[..., Any] | None) -> Tensor:
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    inputs, target = batch if pair else (batch, None)
    output = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    if loss_fn is not None:
        loss = loss_fn(output, target) if pair else loss_fn(output)
    else:
        loss = getattr(output, "loss", output)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else _an(type(loss).__name__)
        raise GradiometerError(f"The loss is {what}, not a single number.", "Give a loss_fn that returns one, such as a mean.")
    if loss.grad_fn is None:
        raise GradiometerError(SENTENCE_NO_GRAPH, "Check that the loss is computed from the model's output, without detach().")
    return loss


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Generator[None]:
    """Random numbers, buffers (running statistics) and plain attributes of the model are afterwards what they were before."""
    numpy = sys.modules.get("numpy")
    states = (
        torch.get_rng_state(),
        torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
        random.getstate(),
        numpy.random.get_state() if numpy is not None else None,
    )
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    attributes = [(module, dict(module.__dict__), dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, before, own in attributes:
            module.__dict__.clear()
            module.__dict__.update(before)
            module._buffers.clear()
            module._buffers.update(own)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state_all(states[1])
        random.setstate(states[2])
        if numpy is not None:
            numpy.random.set_state(states[3])
