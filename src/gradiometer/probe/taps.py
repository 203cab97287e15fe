"""The few places where torch is touched. Everything installed here can be taken off again, and nothing here raises.

Always on: two optimizer hooks and thin wrappers of ``torch.autograd.backward`` and ``torch.autograd.grad`` (their cost
could not be told from zero), of the two clipping functions, of the gradient scaler's methods, of ``torch.compile`` and of
``Optimizer.__init__``. Module hooks exist only while a step is looked at: a no-op global hook alone costs up to 16 %.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from types import FrameType, GeneratorType
from typing import Any, Final

import torch
import torch.nn.modules.module as torch_module
import torch.optim.optimizer as torch_optimizer
from torch import Tensor

from gradiometer.probe.observer import Observer
from gradiometer.probe.safety import comes_from_a_signal

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
            observer.check_process()
            return call(observer)
        except Exception as error:  # our failure never becomes the user's
            if comes_from_a_signal(error):
                raise
            self.remove()
            self._fail(error)
            return None
        finally:
            self._busy = False
            observer.own_seconds += time.perf_counter() - began

    @contextlib.contextmanager
    def muted(self) -> Generator[None]:
        """While the block runs nothing is led to the observer."""
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before

    @property
    def quiet(self) -> bool:
        """Whether what goes on now is not led to the observer."""
        return self._busy

    # ---- on and off ------------------------------------------------------------------------------------------------

    def install(self, observer: Observer) -> None:
        """Put every tap in place."""
        self._observer = observer
        pre = torch_optimizer.register_optimizer_step_pre_hook(self._before_step)
        post = torch_optimizer.register_optimizer_step_post_hook(self._after_step)
        self._undo += [pre.remove, post.remove]
        self._wrap((torch.optim.Optimizer,), "__init__", self._optimizer_init)
        self._wrap((torch.autograd,), "backward", self._backward)
        self._wrap((torch.autograd,), "grad", self._grad)
        self._wrap(_CLIP_HOMES, "clip_grad_norm_", self._clip)
        self._wrap((torch.amp.GradScaler,), "scale", self._scaler_scale)
        self._wrap((torch.amp.GradScaler,), "step", self._scaler_step)
        self._wrap((torch,), "compile", self._compile)
        self._wrap((torch.nn.Module,), "compile", self._compile)

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

    def _wrap(self, homes: Sequence[Any], name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put a wrapper in place of a function; one wrapper for all its homes, so that it can be pickled by reference."""
        original = getattr(homes[0], name)
        wrapper = functools.wraps(original)(make(original))
        for home in homes:
            setattr(home, name, wrapper)
        self._undo.append(_as_builtin(original, wrapper))

        def undo() -> None:
            for home in homes:
                if getattr(home, name) is wrapper:
                    setattr(home, name, original)

        self._undo.append(undo)

    # ---- modules ---------------------------------------------------------------------------------------------------

    def _enter(self, module: torch.nn.Module, _args: Any) -> None:
        if not _transformed():
            self._guarded(lambda o: o.forward_enter(module))

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if not _transformed():
            self._guarded(lambda o: o.forward_leave(module, args, output))

    # ---- autograd --------------------------------------------------------------------------------------------------

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if _transformed() or self._observer is None or torch._C._current_graph_task_id() != -1:
                return original(tensors, *args, **kwargs)  # inside another backward: checkpointing, custom functions
            roots = _tensors(tensors)
            leaves: list[Tensor] = self._guarded(lambda o: o.backward_begin(roots)) or [] if roots else []
            try:
                result = original(tensors, *args, **kwargs)
            except BaseException as error:
                _hide_frame(error)
                raise
            if roots:
                self._guarded(lambda o: o.backward_end(leaves))
            return result

        return backward

    def _grad(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if _transformed() or (observer := self._observer) is None:
                return original(outputs, inputs, *args, **kwargs)
            roots, wanted = _tensors(outputs), _tensors(inputs)
            training = bool(observer.needs_leaf_gradients and roots and wanted and all(w.is_leaf for w in wanted))
            if training:
                self._guarded(lambda o: o.backward_begin(roots))
            else:
                self._guarded(lambda o: o.other_gradient(True))
            try:
                result = original(outputs, inputs, *args, **kwargs)
            except BaseException as error:
                _hide_frame(error)
                raise
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
            try:
                original(optimizer, *args, **kwargs)
            except BaseException as error:
                _hide_frame(error)
                raise
            self._guarded(lambda o: o.optimizer_made(optimizer))

        return __init__

    def _clip(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
            if _transformed() or self._observer is None:
                return original(parameters, max_norm, *args, **kwargs)
            listed: list[Tensor] = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            if isinstance(parameters, GeneratorType):
                parameters = (parameter for parameter in listed)  # that one could be read once; torch warns of empty ones
            elif not isinstance(parameters, (Tensor, list, tuple)):
                parameters = listed
            self._guarded(lambda o: o.clip_begin(listed))
            try:
                norm = original(parameters, max_norm, *args, **kwargs)
            except BaseException as error:
                _hide_frame(error)
                raise
            self._guarded(lambda o: o.clip_end(norm, float(max_norm)))
            return norm

        return clip_grad_norm_

    def _scaler_scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: Any, outputs: Any) -> Any:
            try:
                result = original(scaler, outputs)
            except BaseException as error:
                _hide_frame(error)
                raise
            # reading the factor waits for an accelerator, so it is read where it costs nothing
            if isinstance(outputs, Tensor) and outputs.device.type == "cpu" and scaler.is_enabled():
                self._guarded(lambda o: o.scale(scaler.get_scale()))
            return result

        return scale

    def _scaler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            observer = self._observer
            before = observer.steps_taken if observer is not None else 0
            try:
                result = original(scaler, optimizer, *args, **kwargs)
            except BaseException as error:
                _hide_frame(error)
                raise
            self._guarded(lambda o: o.scaler_stepped(before))
            return result

        return step

    def _compile(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def compile(*args: Any, **kwargs: Any) -> Any:
            self._guarded(lambda o: o.compiling())
            try:
                return original(*args, **kwargs)
            except BaseException as error:
                _hide_frame(error)
                raise

        return compile


def _hide_frame(error: BaseException) -> None:
    """Take the wrapper that is handling this exception out of its traceback, which is then what it is without us."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


def _as_builtin(original: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Tell torch.jit.script, which knows some functions by their identity, that the wrapper is one; returns the undo."""
    builtins = torch.jit._builtins
    pairs = [(wrapper, operator) for function, operator in builtins._builtin_ops if function is original]
    builtins._builtin_ops.extend(pairs)
    if builtins._builtin_table is not None:
        builtins._builtin_table.update({id(function): operator for function, operator in pairs})

    def undo() -> None:
        for pair in pairs:
            builtins._builtin_ops.remove(pair)
        if builtins._builtin_table is not None and pairs:
            builtins._builtin_table.pop(id(wrapper), None)

    return undo


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
    """Inside torch.compile, tracing or torch.func nothing may be measured: tensors there are no numbers.

    ``is_compiling`` comes first: the compiler knows it for true, and so never meets what it would have to break a graph for.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None
