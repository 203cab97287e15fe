"""The few places where torch is touched. Everything installed here can be taken off again, and nothing here raises.

Always on: two optimizer hooks and thin wrappers of ``torch.autograd.backward`` and ``torch.autograd.grad`` (their cost
could not be told from zero), of the two clipping functions, of the gradient scaler's methods, of ``torch.compile`` and of
``Optimizer.__init__``. Module hooks exist only while a step is looked at: a no-op global hook alone costs up to 16 %.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, Final

import torch
import torch.nn.modules.module as torch_module
import torch.optim.optimizer as torch_optimizer
from torch import Tensor

from gradiometer.probe.observer import Observer

_CLIP_HOMES: Final = (torch.nn.utils, torch.nn.utils.clip_grad)


class Taps:
    """Installs the taps and leads what they see to an `Observer`, through one guard.

    Args:
        fail: called with the exception when the observer fails; the taps are off by then.
    """

    def __init__(self, fail: Callable[[Exception], None]) -> None:
        self._fail = fail
        self._observer: Observer | None = None
        self._undo: list[Callable[[], None]] = []
        self._module_hooks: list[Any] = []
        self._busy = False
        self._step_frame = 0

    # ---- the guard -------------------------------------------------------------------------------------------------

    def _guarded(self, call: Callable[[Observer], Any]) -> Any:
        """Run ``call`` on the observer: its time is accounted, its failure ends the watch and nothing else."""
        observer = self._observer
        if observer is None or self._busy:
            return None  # taken off, or torch called by our own measurement
        self._busy = True
        began = time.perf_counter()
        try:
            return call(observer)
        except Exception as error:  # noqa: BLE001  our failure never becomes the user's
            self.remove()
            self._fail(error)
            return None
        finally:
            self._busy = False
            observer.own_seconds += time.perf_counter() - began

    # ---- on and off ------------------------------------------------------------------------------------------------

    def install(self, observer: Observer) -> None:
        """Put every tap in place."""
        self._observer = observer
        pre = torch_optimizer.register_optimizer_step_pre_hook(self._before_step)
        post = torch_optimizer.register_optimizer_step_post_hook(self._after_step)
        self._undo += [pre.remove, post.remove]
        self._wrap(torch.optim.Optimizer, "__init__", self._optimizer_init)
        self._wrap(torch.autograd, "backward", self._backward)
        self._wrap(torch.autograd, "grad", self._grad)
        for home in _CLIP_HOMES:
            self._wrap(home, "clip_grad_norm_", self._clip)
        self._wrap(torch.amp.GradScaler, "scale", self._scaler_scale)
        self._wrap(torch.amp.GradScaler, "step", self._scaler_step)
        self._wrap(torch, "compile", self._compile)
        self._wrap(torch.nn.Module, "compile", self._compile)

    def remove(self) -> None:
        """Take every tap off. A wrapper that somebody wrapped again in the meantime stays, and does nothing."""
        self._observer = None
        self.set_module_hooks(False)
        while self._undo:
            self._undo.pop()()

    def set_module_hooks(self, on: bool) -> None:
        """Install or remove the two global module hooks."""
        while self._module_hooks:
            self._module_hooks.pop().remove()
        if on and self._observer is not None:
            self._module_hooks = [
                torch_module.register_module_forward_pre_hook(self._enter),
                torch_module.register_module_forward_hook(self._leave),
            ]

    def _wrap(self, home: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        original = getattr(home, name)
        wrapper = functools.wraps(original)(make(original))
        setattr(home, name, wrapper)

        def undo() -> None:
            if getattr(home, name) is wrapper:
                setattr(home, name, original)

        self._undo.append(undo)

    # ---- modules ---------------------------------------------------------------------------------------------------

    def _enter(self, module: torch.nn.Module, _args: Any) -> None:
        if not _transformed():
            self._guarded(lambda o: o.forward_enter(module))

    def _leave(self, module: torch.nn.Module, _args: Any, output: Any) -> None:
        if not _transformed():
            self._guarded(lambda o: o.forward_leave(module, output))

    # ---- autograd --------------------------------------------------------------------------------------------------

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if _transformed() or torch._C._current_graph_task_id() != -1:
                return original(tensors, *args, **kwargs)  # inside another backward: checkpointing, custom functions
            roots = _tensors(tensors)
            leaves: list[Tensor] = self._guarded(lambda o: o.backward_begin(roots)) or [] if roots else []
            result = original(tensors, *args, **kwargs)
            if roots:
                self._guarded(lambda o: o.backward_end(leaves))
            return result

        return backward

    def _grad(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            observer = self._observer
            if observer is None or _transformed():
                return original(outputs, inputs, *args, **kwargs)
            roots, wanted = _tensors(outputs), _tensors(inputs)
            training = bool(observer.needs_leaf_gradients and roots and wanted and all(w.is_leaf for w in wanted))
            if training:
                self._guarded(lambda o: o.backward_begin(roots))
            else:
                self._guarded(lambda o: o.other_gradient(True))
            try:
                result = original(outputs, inputs, *args, **kwargs)
            finally:
                if not training:
                    self._guarded(lambda o: o.other_gradient(False))
            if training:
                self._guarded(lambda o: o.backward_end(wanted, result))
            return result

        return grad

    # ---- optimizers ------------------------------------------------------------------------------------------------

    # A subclass that calls super().step fires both hooks twice. The frame that called the hook tells the outer step from
    # the inner one, also after a step that raised and never came to its end.

    def _before_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        frame = sys._getframe(1)
        if self._step_frame and _is_called_by(frame, self._step_frame):
            return
        self._step_frame = id(frame)
        self._guarded(lambda o: o.step_begin(optimizer))

    def _after_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if id(sys._getframe(1)) == self._step_frame:
            self._step_frame = 0
            self._guarded(lambda o: o.step_end(optimizer))

    def _optimizer_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            self._guarded(lambda o: o.optimizer_made(optimizer))

        return __init__

    def _clip(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(parameters, (Tensor, list, tuple)):
                parameters = list(parameters)  # a generator can be read once
            listed: list[Tensor] = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            self._guarded(lambda o: o.clip_begin(listed))
            norm = original(parameters, max_norm, *args, **kwargs)
            self._guarded(lambda o: o.clip_end(norm, float(max_norm)))
            return norm

        return clip_grad_norm_

    def _scaler_scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: Any, outputs: Any) -> Any:
            result = original(scaler, outputs)
            # reading the factor waits for an accelerator, so it is read where it costs nothing
            if isinstance(outputs, Tensor) and outputs.device.type == "cpu" and scaler.is_enabled():
                self._guarded(lambda o: o.scale(scaler.get_scale()))
            return result

        return scale

    def _scaler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            observer = self._observer
            before = observer.steps_taken if observer is not None else 0
            result = original(scaler, optimizer, *args, **kwargs)
            self._guarded(lambda o: o.scaler_stepped(before))
            return result

        return step

    def _compile(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def compile(*args: Any, **kwargs: Any) -> Any:
            self._guarded(lambda o: o.compiling())
            return original(*args, **kwargs)

        return compile


def _is_called_by(frame: FrameType, outer: int) -> bool:
    caller = frame.f_back
    while caller is not None:
        if id(caller) == outer:
            return True
        caller = caller.f_back
    return False


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Iterable) and not isinstance(value, (str, dict)):
        listed = list(value) if isinstance(value, (list, tuple)) else []
        return [t for t in listed if isinstance(t, Tensor)]
    return []


def _transformed() -> bool:
    """Inside torch.compile, tracing or torch.func nothing may be measured: tensors there are no numbers."""
    inside_func = torch._C._functorch.peek_interpreter_stack() is not None
    return inside_func or torch.compiler.is_compiling() or torch.jit.is_tracing()
