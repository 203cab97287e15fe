"""The ward: gives a prescription to the models of a command whose code nobody changes (``GRADIOMETER_PRESCRIPTION``).

It learns of optimizers by wrapping their constructor. A root module that an optimizer trains is treated right before its
first forward pass after that; a model without an optimizer (a teacher, say) is left alone. A model inside
``DistributedDataParallel`` is treated before its first training pass, which every rank makes; it is then wrapped anew, which
gives every rank the weights of the first one and makes buckets for new parameters. A treatment that fits no model ends the
process: it never goes on untreated.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, Never, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradiometer.errors import GradiometerError
from gradiometer.probe import attach
from gradiometer.probe.sites import unwrap
from gradiometer.remedies import prescription as prescriptions
from gradiometer.remedies import remedy
from gradiometer.remedies.base import CannotTreatError, Patient, Stage
from gradiometer.remedies.bedside import Around, Bed, Given, give, in_order, refusal, undisturbed
from gradiometer.remedies.places import Calls, Makings, Spot, caller, is_model, names_of, spot
from gradiometer.types import Prescription

VARIABLE: Final = "GRADIOMETER_PRESCRIPTION"
FAILED: Final = 2
"""Exit status of a command that could not be treated."""

Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(eq=False)
class _Made:
    """An optimizer, and what is known of where it comes from."""

    optimizer: weakref.ref[torch.optim.Optimizer]
    where: Spot | None
    models: list[tuple[str, weakref.ref[nn.Module]]]
    kind: str
    stepped: bool = False

    def holds(self, parameters: set[int]) -> bool:
        optimizer = self.optimizer()
        return optimizer is not None and any(id(p) in parameters for g in optimizer.param_groups for p in g["params"])


@dataclass(eq=False)
class _Wrapped:
    """A data-parallel wrapper, how it was made, and where; and the modules inside the model that it wraps."""

    shell: weakref.ref[DistributedDataParallel]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    where: Spot | None
    inside: WeakSet[nn.Module]


@dataclass(eq=False)
class _Treated:
    """What became of a root module.

    Attributes:
        kind: name of its class.
        bed: what goes on during training.
        given, refused: treatments that it took, and why it did not take the others.
        parameters: identities of its parameters.
        modules: where its modules are made.
        calls: activations that its forward pass calls as functions.
    """

    kind: str
    bed: Bed
    modules: list[dict[str, Any]]
    given: list[Given] = field(default_factory=list[Given])
    refused: list[str] = field(default_factory=list[str])
    parameters: set[int] = field(default_factory=set[int])
    calls: Calls | None = None


def wait_from_environment() -> None:
    """Wait for models to treat, because ``GRADIOMETER_PRESCRIPTION`` names a file; called once torch has been imported."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        prescription = prescriptions.read(path)
    except GradiometerError as error:
        _fail("", str(error))
    Ward(prescription).install()


def _fail(name: str, sentence: str) -> Never:
    """End the process: it must not go on untreated."""
    attach.event("treatment-failed", remedy=name, sentence=sentence)
    try:
        sys.stdout.flush()
        sys.stderr.write(f"gradiometer: {sentence}\n")
    finally:
        attach.end_process(FAILED)


class Ward:
    """Waits for models that are trained, and treats them.

    Args:
        prescription: what all of them get, as far as it fits: each treatment must fit one model at least.
    """

    def __init__(self, prescription: Prescription) -> None:
        self._prescription = prescription
        self._treatments = in_order(prescription.treatments)
        self._refusals: dict[int, str] = {}
        self._fitted: set[int] = set()
        self._optimizers: list[_Made] = []
        self._roots: WeakKeyDictionary[nn.Module, _Treated] = WeakKeyDictionary()
        self._wrapped: WeakKeyDictionary[nn.Module, _Wrapped] = WeakKeyDictionary()
        self._judged: WeakSet[nn.Module] = WeakSet()
        self._changed: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._makings = Makings()
        self._busy = False
        self._call_original: Any = None
        self._call_wrapper: Any = None

    # ---- what it sees ------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Begin to wait."""
        self._makings.install()
        _wrap(torch.optim.Optimizer, "__init__", self._optimizer_init)
        _wrap(DistributedDataParallel, "__init__", self._parallel_init)
        register_optimizer_step_pre_hook(self._before_step)

    def _optimizer_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(optimizer, *args, **kwargs)
            if not self._busy:
                self._optimizer_made(optimizer, inspect.currentframe())

        return __init__

    def _optimizer_made(self, optimizer: torch.optim.Optimizer, frame: Any) -> None:
        made = _Made(weakref.ref(optimizer), None, [], type(optimizer).__name__)
        user = caller(frame, making=optimizer)
        if user is not None:
            made.where = spot(user)
            held = {id(p) for g in optimizer.param_groups for p in g["params"]}
            seen: list[nn.Module] = []

            def trained(value: Any) -> bool:
                if not issubclass(type(value), nn.Module) or not any(id(p) in held for p in value.parameters()):
                    return False
                seen.append(unwrap(value))
                return True

            # which of them is the root shows at its first forward pass
            made.models = [(n, weakref.ref(m)) for n, m in zip(names_of(user, trained), seen, strict=False)]
        self._optimizers = [*(m for m in self._optimizers if m.optimizer() is not None), made]
        for treated in self._roots.values():
            if made.holds(treated.parameters):
                treated.bed.take_in(optimizer)
        self._look_out()

    def _parallel_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(shell: DistributedDataParallel, module: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(shell, module, *args, **kwargs)
            if not self._busy:
                frame = caller(inspect.currentframe(), making=shell)
                where = spot(frame) if frame is not None else None
                root = unwrap(module)
                inside = WeakSet(m for m in root.modules() if m is not root)
                self._wrapped[root] = _Wrapped(weakref.ref(shell), args, kwargs, where, inside)

        return __init__

    def _look_out(self) -> None:
        """Watch module calls as long as some optimizer trains what has not been treated."""
        self._judged.clear()
        if self._call_wrapper is None and self._untreated():
            original = self._call_original = nn.Module.__call__

            @functools.wraps(original)
            def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
                if torch.compiler.is_compiling():
                    return original(module, *args, **kwargs)
                if module not in self._judged and not self._busy:
                    self._before_forward(module, (args, kwargs), inspect.currentframe())
                return original(module, *args, **kwargs)

            self._call_wrapper = __call__
            nn.Module.__call__ = __call__

    def _look_away(self) -> None:
        if self._call_wrapper is not None and nn.Module.__call__ is self._call_wrapper:
            nn.Module.__call__ = self._call_original
            self._call_wrapper = None

    def _untreated(self) -> set[int]:
        """Parameters that an optimizer trains and that belong to no treated model."""
        done = set[int]().union(*(treated.parameters for treated in self._roots.values()))
        live = [o for made in self._optimizers if (o := made.optimizer()) is not None]
        return {id(p) for o in live for g in o.param_groups for p in g["params"]} - done

    def _before_forward(self, module: nn.Module, inputs: Inputs, frame: Any) -> None:
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return
        root = unwrap(module)
        wrapped = self._wrapped.get(root)
        if wrapped is not None and not (torch.is_grad_enabled() and module.training):
            return  # it may be one rank alone that looks how good the model is
        self._judged.add(module)
        if any(module in w.inside for other, w in self._wrapped.items() if other not in self._roots):
            return  # of a model that waits for such a pass
        wanted = self._untreated()
        if root not in self._roots and any(id(p) in wanted for p in root.parameters()):
            self._treat(root, module, inputs, caller(frame), wrapped)

    # ---- treating ----------------------------------------------------------------------------------------------------

    def _treat(
        self, root: nn.Module, shell: nn.Module, inputs: Inputs, frame: FrameType | None, wrapped: _Wrapped | None
    ) -> None:
        """Treat a root module.

        Args:
            root: the model.
            shell: what is called: the model, or a wrapper around it.
            inputs: of its first forward pass.
            frame: of the user's code that calls it.
            wrapped: how it was wrapped for data-parallel training, if it was.
        """
        trained = {id(p) for p in root.parameters()}
        optimizers = [o for m in self._optimizers if m.holds(trained) and (o := m.optimizer()) is not None]
        patient = Patient(root, optimizers, inputs if shell is root else _moved(inputs, root))
        treated = self._roots[root] = _Treated(type(root).__name__, Bed(patient), self._makings.facts(root))
        numbers = range(len(self._treatments))
        self._give(treated, patient, [n for n in numbers if not self._acts_on_optimizers(n)])
        changed = bool(treated.given)
        # one that trains several models is changed once
        patient.optimizers = fresh = [o for o in optimizers if o not in self._changed]
        self._changed.update(fresh)
        self._give(treated, patient, [n for n in numbers if self._acts_on_optimizers(n)])
        treated.parameters = {id(p) for p in root.parameters()}
        if _on_several_devices(shell):
            if patient.on_forward:
                _fail("", "the forward pass of a DataParallel model on several devices cannot be changed; use one device.")
        elif _is_compiled(root, shell):
            torch.compiler.reset()  # what was compiled of the model before it was treated
        elif not isinstance(root, torch.jit.ScriptModule):
            treated.calls = Calls()
            patient.on_forward.append(_first_pass(root, patient.on_forward, treated.calls))
        treated.bed.make(root, patient.on_forward)
        for optimizer in fresh or optimizers:
            treated.bed.take_in(optimizer)
        if changed and wrapped is not None and (parallel := wrapped.shell()) is not None:
            self._wrap_anew(parallel, wrapped)
        self._report(treated, root, frame, wrapped)
        if not self._untreated():
            self._look_away()

    def _wrap_anew(self, shell: DistributedDataParallel, wrapped: _Wrapped) -> None:
        """Construct a wrapper a second time, for the model as it is now: the object is the one that the script has."""
        if shell.mixed_precision is not None:
            _fail("", "a DistributedDataParallel model with mixed precision of its own cannot be wrapped anew.")
        kept = {name: shell.__dict__[name] for name in nn.Module().__dict__ if "hook" in name or name == "training"}
        gradients, static = list(shell._comm_hooks), shell.static_graph  # pyright: ignore[reportPrivateUsage]
        self._busy = True
        try:
            DistributedDataParallel.__init__(shell, shell.module, *wrapped.args, **wrapped.kwargs)
        finally:
            self._busy = False
        vars(shell).update(kept)
        for hook, state in gradients:
            shell.register_comm_hook(state, hook)
        if static and not shell.static_graph:
            shell._set_static_graph()  # pyright: ignore[reportPrivateUsage]

    def _acts_on_optimizers(self, number: int) -> bool:
        treatment = self._treatments[number]
        return remedy(treatment.remedy).stage >= Stage.OPTIMIZER or treatment.settings.get("kind") == "weight-decay"

    def _give(self, treated: _Treated, patient: Patient, numbers: Sequence[int]) -> None:
        self._busy = True
        name = ""
        try:
            with undisturbed(patient.model):
                for number in numbers:
                    treatment = self._treatments[number]
                    name = treatment.label
                    try:
                        treated.given.append(give(patient, treatment))
                        self._fitted.add(number)
                    except CannotTreatError as error:  # it may fit another model of this training
                        treated.refused.append(refusal(treatment, error))
                        self._refusals.setdefault(number, refusal(treatment, error))
        except Exception as error:  # noqa: BLE001  half treated is worse than not at all
            _fail(name, f"{name} failed on {type(patient.model).__name__} ({type(error).__name__}: {error}).")
        finally:
            self._busy = False

    # ---- the first step ----------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._busy:
            return
        made = next((m for m in self._optimizers if m.optimizer() is optimizer), None)
        if made is None or made.stepped:
            return
        made.stepped = True
        if not self._roots:
            _fail("", "the prescription fits nothing: no forward pass of a module that this optimizer trains was seen.")
        missing = [n for n in range(len(self._treatments)) if n not in self._fitted]
        if missing:
            _fail(self._treatments[missing[0]].label, self._refusals.get(missing[0], "a treatment could not be given."))
        self._report_step(optimizer, made, caller(inspect.currentframe()))
        if all(m.stepped for m in self._optimizers if m.optimizer() is not None):
            self._look_away()
            self._makings.remove()

    # ---- what it tells -----------------------------------------------------------------------------------------------

    def _report(self, treated: _Treated, root: nn.Module, frame: FrameType | None, wrapped: _Wrapped | None) -> None:
        """The event ``treated``."""
        given = [
            {"remedy": g.treatment.remedy, "settings": g.settings, "sites": g.treatment.sites, "changes": g.changes}
            for g in treated.given
        ]
        optimizers = [
            {"kind": made.kind, "models": [n for n, m in made.models if m() is root], "place": _place(made.where)}
            for made in self._optimizers
            if made.holds(treated.parameters)
        ]
        attach.event(
            "treated",
            rank=_rank(),
            model=treated.kind,
            prescription=self._prescription.label,
            given=given,
            refused=treated.refused,
            names=names_of(frame, is_model(root)) if frame is not None else [],
            call=_place(frame),
            wrapped=_place(wrapped.where) if wrapped is not None else None,
            optimizers=optimizers,
            modules=treated.modules,
        )

    def _report_step(self, optimizer: torch.optim.Optimizer, made: _Made, frame: Any) -> None:
        """The event ``places``: what is only known at the first step of an optimizer."""
        treated = [t for t in self._roots.values() if made.holds(t.parameters)]
        activations = [fact for t in treated if t.calls is not None for fact in t.calls.facts()]
        names = names_of(frame, lambda value: value is optimizer) if frame is not None else []
        attach.event(
            "places",
            rank=_rank(),
            models=[t.kind for t in treated],
            optimizer=made.kind,
            names=names,
            stepped=_place(frame),
            made=_place(made.where),
            activations=activations,
        )


def _rank() -> int:
    text = os.environ.get("RANK", "")
    return int(text) if text.isdigit() else 0


def _place(where: Spot | FrameType | None) -> dict[str, Any] | None:
    """A place for an event."""
    if isinstance(where, FrameType):
        where = spot(where)
    return where.place().as_dict() if where is not None else None


def _first_pass(root: nn.Module, makers: list[Callable[[], Any]], calls: Calls) -> Callable[[], Any]:
    """A maker that notes activations during the first pass and then goes: the last, so that it sees the user's own calls."""
    model = weakref.ref(root)

    def make() -> Calls:
        makers.remove(make)
        if not makers and (alive := model()) is not None:
            Around.take_off(alive)
        return calls

    return make


def _moved(inputs: Inputs, root: nn.Module) -> Inputs:
    """Inputs where the model is: a data-parallel wrapper moves them itself."""
    first = next(root.parameters(), None)
    return _to(inputs, first.device) if first is not None else inputs


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_to(item, device) for item in value)
    if type(value) is dict:
        return {key: _to(item, device) for key, item in value.items()}
    return value


def _on_several_devices(shell: nn.Module) -> bool:
    return isinstance(shell, nn.DataParallel) and len(shell.device_ids) > 1


def _is_compiled(root: nn.Module, shell: nn.Module) -> bool:
    kinds = {type(shell).__name__, type(getattr(shell, "module", None)).__name__}
    return "OptimizedModule" in kinds or any(m.__dict__.get("_compiled_call_impl") is not None for m in root.modules())


def _wrap(home: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(home, name)
    setattr(home, name, functools.wraps(original)(make(original)))
