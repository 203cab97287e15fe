"""At the bedside: giving a prescription to a model that is about to be trained, without disturbing anything else.

The remedies are applied in the order of their stages, whatever order the prescription lists them in. What is no part of a
treatment stays as it is: the streams of random numbers, training mode, which parameters are frozen, buffers, gradients.
`treat` is the door for code; `ward` does the same for a command whose code nobody changes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
import sys
import types
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gradiometer.errors import GradiometerError
from gradiometer.probe import attach
from gradiometer.probe.sites import unwrap
from gradiometer.remedies import prescription as prescriptions
from gradiometer.remedies import remedy
from gradiometer.remedies.base import CannotTreatError, Patient, Remedy, Value
from gradiometer.types import Treatment


@dataclass(frozen=True, slots=True)
class Given:
    """A treatment that was given.

    Attributes:
        treatment: as it was prescribed.
        settings: all of them, defaults filled in.
        changes: one sentence for each thing that was changed.
    """

    treatment: Treatment
    settings: dict[str, Value]
    changes: tuple[str, ...]


def treat(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
    prescription: prescriptions.Given,
    *,
    inputs: Any = None,
) -> list[str]:
    """Give a prescription to a model: after it and its optimizer are made, before the first step.

    Args:
        model: the model that will be trained; it is changed in place. The model inside ``DistributedDataParallel`` or
            ``torch.compile``; where layers are put in, treat it before it is wrapped.
        optimizer: what trains it, or several; None where there is none yet (new parameters are then in
            ``model.parameters()``, and remedies that act on the optimizer do not fit).
        prescription: a `Prescription`, its JSON object, or a file that ``gradiometer cure`` wrote.
        inputs: a batch, for remedies that look at the data: what the model is called with, several arguments as a tuple.

    Returns:
        One sentence for each thing that was changed.

    Raises:
        GradiometerError: the prescription makes no sense, or one of its remedies does not fit this model; the remedies
            before it have been given.
    """
    treatments = prescriptions.load(prescription).treatments
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
    arguments: tuple[Any, ...] = inputs if isinstance(inputs, tuple) else (inputs,)
    patient = Patient(unwrap(model), optimizers, None if inputs is None else (arguments, {}))
    before = {id(p) for p in patient.model.parameters()}
    given: list[Given] = []
    with undisturbed(patient.model):
        for treatment in in_order(treatments):
            try:
                given.append(give(patient, treatment))
            except CannotTreatError as error:
                raise GradiometerError(refusal(treatment, error)) from error
    if isinstance(model, nn.parallel.DistributedDataParallel) and before != {id(p) for p in patient.model.parameters()}:
        raise GradiometerError(
            "The prescription has put parameters in that DistributedDataParallel does not know of.",
            "Treat the model before it is wrapped.",
        )
    bed = Bed(patient)
    bed.make(patient.model, patient.on_forward)
    for each in patient.optimizers:
        bed.take_in(each)
    return [change for one in given for change in one.changes]


def refusal(treatment: Treatment, error: CannotTreatError) -> str:
    """One sentence about a treatment that does not fit."""
    return f"{treatment.label} cannot be given: {str(error).rstrip('.')}."


def in_order(treatments: Sequence[Treatment]) -> list[Treatment]:
    """Treatments in the order in which they are given: by stage, those of one remedy as they are listed."""
    return sorted(treatments, key=lambda t: remedy(t.remedy).stage)


def give(patient: Patient, treatment: Treatment) -> Given:
    """Apply one remedy; call it inside `undisturbed`.

    Raises:
        CannotTreatError: it does not fit.
    """
    known: Remedy = remedy(treatment.remedy)
    settings = known.filled(treatment.settings)
    return Given(treatment, settings, tuple(known.apply(patient, settings, treatment.sites)))


# ---- what stays as it is -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """While the block runs the model is treated; everything that is no part of a treatment is afterwards as it was.

    Random numbers are drawn from a fork of the global streams (the same start for the same seed), the probe sees nothing,
    and remedies may compute gradients wherever the user's code happens to stand.
    """
    training = {module: module.training for module in model.modules()}
    frozen = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [(m, name, b.clone()) for m in model.modules() for name, b in m.named_buffers(recurse=False) if not is_lazy(b)]
    compiled = any(m.__dict__.get("_compiled_call_impl") is not None for m in training)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    numpy = sys.modules.get("numpy.random")
    streams = random.getstate(), numpy.get_state() if numpy is not None else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(attach.muted())
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_no_casts_kept())
        if compiled:  # ours are no passes worth compiling for
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            random.setstate(streams[0])
            if numpy is not None and streams[1] is not None:
                numpy.set_state(streams[1])
            for module in model.modules():
                module.training = training.get(module, model.training)
            for parameter, wanted, gradient in frozen:
                parameter.requires_grad_(wanted)
                if gradient is None or gradient.shape == parameter.shape:
                    parameter.grad = gradient
            for parameter in model.parameters():
                if parameter.grad is not None and not any(parameter is p for p, _, _ in frozen):
                    parameter.grad = None
            _put_back(buffers)


def _put_back(buffers: list[tuple[nn.Module, str, torch.Tensor]]) -> None:
    with torch.no_grad():
        for module, name, before in buffers:
            now = dict(module.named_buffers(recurse=False)).get(name)
            if now is not None and now.shape == before.shape:
                now.copy_(before)


@contextlib.contextmanager
def _no_casts_kept() -> Generator[None]:
    """Inside the user's autocast, copies of weights in half precision are kept until it ends: ours would be stale."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(kept)


# ---- what goes on during training ----------------------------------------------------------------------------------------


class Bed:
    """Calls what a patient's remedies left behind: around forward passes, before and after the steps of its optimizers.

    It keeps no model alive.

    Args:
        patient: its lists are read at every step, so what is added later counts too.
    """

    def __init__(self, patient: Patient) -> None:
        self._on_step = patient.on_step
        self._after_step = patient.after_step
        self._held: WeakSet[torch.optim.Optimizer] = WeakSet()

    def make(self, model: nn.Module, makers: list[Callable[[], Any]]) -> None:
        """Put what is wanted around the forward passes of the model."""
        if makers:
            Around.put(model, makers)

    def take_in(self, optimizer: torch.optim.Optimizer) -> None:
        """From here on the steps of this optimizer count."""
        if optimizer in self._held or not (self._on_step or self._after_step):
            return
        self._held.add(optimizer)
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._behind)

    def _before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._run(optimizer)
            return None

        def wrapped() -> Any:  # the gradients are those that the closure computes
            loss = closure()
            self._run(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (*args[:1], wrapped, *args[2:]), kwargs

    @torch.no_grad()
    def _run(self, optimizer: torch.optim.Optimizer) -> None:
        for function in self._on_step:
            function(optimizer)

    @torch.no_grad()
    def _behind(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        for function in self._after_step:
            function(optimizer)


class Around:
    """Stands for a model's ``forward`` and enters context managers around it.

    An attribute of the model, not a hook: ``model.forward(x)`` is caught too. A deep copy (an average of the weights, say)
    gets its own, and a pickled model its plain ``forward`` back.

    Args:
        model: the model.
        makers: lists of what makes a context manager, anew for every pass; they are read at every pass.
    """

    def __init__(self, model: nn.Module, makers: list[list[Callable[[], Any]]]) -> None:
        self.makers = makers
        self._model = model
        self._theirs = model.__dict__.get("forward")  # the script has replaced it itself
        self._forward = self._theirs or types.MethodType(type(model).forward, model)
        functools.update_wrapper(self, self._forward)
        with contextlib.suppress(TypeError, ValueError):
            self.__signature__ = inspect.signature(self._forward)  # some trainers go by the names of the arguments

    @staticmethod
    def put(model: nn.Module, makers: list[Callable[[], Any]]) -> None:
        """Put one in place; where there is one, of an earlier treatment, let it do this too."""
        around = model.__dict__.get("forward")
        if not isinstance(around, Around):
            model.__dict__["forward"] = Around(model, [makers])
        elif not any(held is makers for held in around.makers):
            around.makers.append(makers)

    @staticmethod
    def take_off(model: nn.Module) -> None:
        """Give the model its own ``forward`` back."""
        around = model.__dict__.get("forward")
        if isinstance(around, Around):
            del model.__dict__["forward"]
            if around._theirs is not None:
                model.__dict__["forward"] = around._theirs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A forward pass."""
        with contextlib.ExitStack() as stack:
            for make in [make for held in self.makers for make in held]:
                stack.enter_context(make())
            return self._forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._model))
        if copied is None or self._theirs is not None:
            return self
        return Around(copied, self.makers)

    def __reduce__(self) -> Any:
        return getattr, (self._model, "forward")
