"""The instrumentation: what a training does, told to listeners. It reads, and changes no number of the training.

Nothing here is the project's own probe, which is one of the parties compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

ACTIVATIONS = ("relu", "tanh", "sigmoid", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "relu6")
ACTIVATIONS += ("hardtanh", "hardsigmoid", "hardswish", "prelu", "relu_", "tanh_", "sigmoid_", "leaky_relu_", "elu_")


class Listener:
    """Does nothing; a peer overrides what it wants to hear of. Only what happens with gradients enabled is told."""

    def enters(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is about to be called by the script itself, not by another module."""

    def leaves(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """It has returned."""

    def layer(self, path: tuple[nn.Module, ...], output: Any) -> None:
        """A module without children, the last of the path, has returned."""

    def activation(self, path: tuple[nn.Module, ...], name: str, before: Tensor, after: Tensor) -> None:
        """An activation function has been applied within a module, or by the script. ``before`` is not overwritten."""

    def accuracy(self, value: float) -> None:
        """A classification loss has been computed on a batch with this accuracy."""

    def backward(self, loss: float) -> None:
        """A loss has gone backward."""

    def clips(self, parameters: list[Tensor]) -> None:
        """Gradients are about to be clipped."""

    def steps(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""

    def stepped(self, optimizer: Optimizer) -> None:
        """It has."""


optimizers: list[Optimizer] = []
"""Every optimizer that was made since the instrumentation was installed, in that order."""


def optimizer_of(module: nn.Module) -> Optimizer | None:
    """The optimizer that holds a parameter of the module."""
    own = {id(p) for p in module.parameters()}
    return next((o for o in optimizers if any(id(p) in own for p in parameters(o))), None)


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """Everything an optimizer trains."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def install(listener: Listener) -> None:
    """From now on, tell the listener. There is no way back: the process is the script's alone."""
    stack: list[nn.Module] = []
    _modules(listener, stack)
    for owner in (torch, F, Tensor):
        _activations(listener, stack, owner)
    _losses(listener)
    _backward(listener)
    _optimizers(listener)


def _modules(listener: Listener, stack: list[nn.Module]) -> None:
    call = nn.Module.__call__

    def called(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or torch.jit.is_tracing():
            return call(self, *args, **kwargs)
        is_root = not stack
        if is_root:
            listener.enters(self, args, kwargs)
        stack.append(self)
        try:
            output = call(self, *args, **kwargs)
        finally:
            stack.pop()
        if next(self.children(), None) is None:
            listener.layer((*stack, self), output)
        if is_root:
            listener.leaves(self, args, kwargs, output)
        return output

    nn.Module.__call__ = called


def _activations(listener: Listener, stack: list[nn.Module], owner: Any) -> None:
    for name in ACTIVATIONS:
        function = getattr(owner, name, None)
        if function is not None:
            setattr(owner, name, _activation(listener, stack, function, name.rstrip("_")))


_inside = [False]
"""Whether an activation function is running: those of F call those of torch."""


def _activation(listener: Listener, stack: list[nn.Module], function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def applied(*args: Any, **kwargs: Any) -> Any:
        before = args[0] if args else kwargs.get("input")
        if _inside[0] or not isinstance(before, Tensor) or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        _inside[0] = True
        try:
            kept = before.detach().clone()  # the function may work in place
            after = function(*args, **kwargs)
            listener.activation(tuple(stack), name, kept, after.detach())
        finally:
            _inside[0] = False
        return after

    return applied


def _losses(listener: Listener) -> None:
    """Accuracies, from the arguments of the losses of classification."""

    def classes(scores: Tensor, target: Tensor) -> float | None:
        if scores.ndim < 2 or not len(scores):
            return None
        labels = target if target.shape != scores.shape else target.argmax(1)
        return float((scores.argmax(1) == labels).float().mean())

    def binary(threshold: float) -> Callable[[Tensor, Tensor], float | None]:
        def share(scores: Tensor, target: Tensor) -> float | None:
            if not bool(((target == 0) | (target == 1)).all()):
                return None  # a reconstruction, not a classification
            return float(((scores > threshold) == (target > 0.5)).float().mean())

        return share

    measures: dict[str, Callable[[Tensor, Tensor], float | None]] = {
        "cross_entropy": classes,
        "nll_loss": classes,
        "binary_cross_entropy": binary(0.5),
        "binary_cross_entropy_with_logits": binary(0.0),
    }
    inside = [False]
    for name, measure in measures.items():
        function = getattr(F, name)

        def wrapped(
            *args: Any, _function: Callable[..., Any] = function, _measure: Callable[..., Any] = measure, **kwargs: Any
        ) -> Any:
            given = (*args, *(kwargs[k] for k in ("input", "target") if k in kwargs))[:2]
            if torch.is_grad_enabled() and not inside[0] and len(given) == 2:
                value = _measure(given[0].detach(), given[1].detach())
                if value is not None:
                    listener.accuracy(value)
            inside[0], was = True, inside[0]
            try:
                return _function(*args, **kwargs)
            finally:
                inside[0] = was

        setattr(F, name, functools.wraps(function)(wrapped))


def _backward(listener: Listener) -> None:
    """Losses, and the clipping that comes between a backward pass and a step."""
    backward, scale = torch.autograd.backward, torch.amp.GradScaler.scale
    unscaled: list[float] = []

    @functools.wraps(backward)
    def went(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        result = backward(tensors, *args, **kwargs)
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        scalars = [float(t.detach()) for t in roots if t.numel() == 1]
        if unscaled:
            scalars = [unscaled.pop()]
        if scalars:
            listener.backward(sum(scalars))
        return result

    @functools.wraps(scale)
    def scaled(self: Any, outputs: Any) -> Any:
        if isinstance(outputs, Tensor) and outputs.numel() == 1:
            unscaled[:] = [float(outputs.detach())]
        return scale(self, outputs)

    torch.autograd.backward = went
    torch.amp.GradScaler.scale = scaled
    for name in ("clip_grad_norm_", "clip_grad_value_", "clip_grad_norm"):
        clip = getattr(nn.utils, name, None)
        if clip is None:
            continue

        def clipped(held: Tensor | Iterable[Tensor], *args: Any, _clip: Callable[..., Any] = clip, **kwargs: Any) -> Any:
            held = [held] if isinstance(held, Tensor) else list(held)
            listener.clips(held)
            return _clip(held, *args, **kwargs)

        setattr(nn.utils, name, functools.wraps(clip)(clipped))


def _optimizers(listener: Listener) -> None:
    make = Optimizer.__init__

    @functools.wraps(make)
    def made(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        optimizers.append(self)

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        listener.steps(optimizer)

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        listener.stepped(optimizer)

    Optimizer.__init__ = made
    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)
