"""What a remedy is, and what it is given to work on. Every remedy is one file beside this one.

A remedy changes a model, its optimizer or its training in the process that trains it, before the first step. The order in
which several are applied is fixed by their stage: what changes the architecture comes before what sets the numbers in it,
and both before what acts on gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import nn

from gradiometer.types import Finding, Safety, Treatment

if TYPE_CHECKING:
    from gradiometer.record.trace import Trace

Value: TypeAlias = str | float | bool
Settings: TypeAlias = Mapping[str, Value]


class CannotTreatError(Exception):
    """A remedy does not fit this model or training. The message is one sentence that says why."""


class Stage(IntEnum):
    """When a remedy is applied, the lowest first."""

    FEWER_LAYERS = 10
    ACTIVATION = 20
    NORMALISE = 30
    RESIDUAL = 40
    REGULARISE = 50
    INITIALISE = 60
    PRETRAIN = 70
    OPTIMIZER = 80
    CLIP = 90


class Anchor(IntEnum):
    """Where the lines of an edit belong in the user's code."""

    BEFORE_OPTIMIZER = 1  # after the model is made, before the optimizer is
    AFTER_OPTIMIZER = 2
    BEFORE_STEP = 3  # between backward() and step()
    AFTER_STEP = 4
    IN_PLACE = 5  # at the places that `Snippet.replace` finds


@dataclass(frozen=True, slots=True)
class Snippet:
    """Lines of plain PyTorch that do what a treatment does, for the user's own code.

    Attributes:
        anchor: where they belong.
        lines: code; ``{model}``, ``{optimizer}`` and ``{loader}`` stand for the user's names, every other brace is doubled.
            Blocks are indented by four spaces.
        imports: import lines they need.
        replace: for ``IN_PLACE``: pairs of what stands in the user's source (a call, e.g. ``torch.sigmoid``) and what
            stands there instead.
        arguments: for a change of the optimizer's constructor: keyword and value, as code.
    """

    anchor: Anchor
    lines: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    replace: tuple[tuple[str, str], ...] = ()
    arguments: tuple[tuple[str, str], ...] = ()


@dataclass
class Patient:
    """A model that is about to be trained, and what it is trained by.

    Attributes:
        model: the root module, unwrapped (not the ``DistributedDataParallel`` or compiled shell).
        optimizers: those that hold at least one of its parameters; may be empty if none has been made yet.
        inputs: positional and keyword arguments of its first forward pass; None where that has not come yet.
        batches: yields further inputs of the training (arguments as in ``inputs``), where they are known; a remedy that
            needs several (pre-training) must do with what it gets. Empty at a first forward pass.
        on_step: functions that are called right before every step of one of its optimizers, with the optimizer, in the
            order in which they were added; they may change gradients (clipping).
        after_step: the same right after every step (schedules).
        on_forward: entered around every forward pass of the model: context managers made anew by each call
            (replacing functional activations).
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list[torch.optim.Optimizer])
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    batches: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list[tuple[tuple[Any, ...], dict[str, Any]]])
    on_step: list[Callable[[torch.optim.Optimizer], None]] = field(
        default_factory=list[Callable[[torch.optim.Optimizer], None]]
    )
    after_step: list[Callable[[torch.optim.Optimizer], None]] = field(
        default_factory=list[Callable[[torch.optim.Optimizer], None]]
    )
    on_forward: list[Callable[[], Any]] = field(default_factory=list[Callable[[], Any]])

    def modules(self, sites: tuple[str, ...] = ()) -> list[tuple[str, nn.Module]]:
        """Named modules without the root, in order of registration; those that match one of the patterns, if there are any."""
        named = [(name, module) for name, module in self.model.named_modules() if name]
        return [(n, m) for n, m in named if not sites or any(fnmatchcase(n, pattern) for pattern in sites)]

    def run(self) -> Any:
        """One forward pass on the first batch, without a graph, in the mode the model is in; what it returns.

        What earlier remedies put around forward passes (`on_forward`) is around this one too. Buffers (running
        statistics) are put back afterwards. Random numbers are the caller's matter: the whole treatment runs on a fork
        of them.

        Raises:
            CannotTreatError: the first batch is not known yet.
        """
        if self.inputs is None:
            raise CannotTreatError("the first batch is not known before the first forward pass")
        args, kwargs = self.inputs
        before = {name: value.clone() for name, value in self.model.named_buffers()}
        try:
            with ExitStack() as around, torch.no_grad():
                for make in self.on_forward:
                    around.enter_context(make())
                return self.model(*args, **kwargs)
        finally:
            for name, value in self.model.named_buffers():
                if name in before:
                    value.copy_(before[name])

    def join(self, new: nn.Module, beside: nn.Parameter | None) -> None:
        """Let the parameters of a new module be trained: by the group that holds ``beside``, else by the first group.

        Args:
            new: module that was put into the model; its parameters are moved to device and dtype of ``beside``.
            beside: a parameter of the layer it stands by.
        """
        if beside is not None:
            new.to(device=beside.device, dtype=beside.dtype if beside.is_floating_point() else None)
        fresh = [p for p in new.parameters() if p.requires_grad]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                held: list[nn.Parameter] = group["params"]
                if any(p is beside for p in held):
                    known = {id(p) for p in held}
                    held.extend(p for p in fresh if id(p) not in known)
                    return
        if self.optimizers and fresh:
            held = self.optimizers[0].param_groups[0]["params"]
            known = {id(p) for p in held}
            held.extend(p for p in fresh if id(p) not in known)

    def leave(self, old: nn.Module) -> None:
        """Take the parameters of a module that has left the model out of its optimizers."""
        still = {id(p) for p in self.model.parameters()}
        gone = {id(p) for p in old.parameters() if id(p) not in still}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["params"][:] = [p for p in group["params"] if id(p) not in gone]

    def put(self, name: str, module: nn.Module) -> None:
        """Replace the module of a qualified name."""
        parent, _, leaf = name.rpartition(".")
        holder = self.model.get_submodule(parent) if parent else self.model
        setattr(holder, leaf, module)


@dataclass(frozen=True, slots=True)
class Symptoms:
    """What is known of a sick training before a remedy is chosen. No torch in it: a reading of the record.

    Attributes:
        findings: the root cause first.
        trace: numbers of the untreated run.
        steps: how many steps a trial has.
    """

    findings: tuple[Finding, ...]
    trace: Trace
    steps: int

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules that found something, the root cause first."""
        return tuple(f.rule for f in self.findings)

    def has(self, *rules: str) -> bool:
        """Whether one of these was found."""
        return any(rule in rules for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Option:
    """A setting of a remedy.

    Attributes:
        name: of the setting.
        default: what it is if nobody says.
        meaning: one line.
        choices: the values it may have; empty for any of the default's type.
        words: words that it may be instead of a number.
    """

    name: str
    default: Value
    meaning: str
    choices: tuple[Value, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Remedy:
    """A treatment that can be given.

    Attributes:
        name: e.g. ``initialise``.
        safety: how deep it cuts.
        stage: when it is applied.
        options: its settings.
        plan: what of it to try, the most promising first, for these symptoms; empty where it cannot help. No torch.
        apply: do it. Takes the patient, all settings (defaults filled in) and the patterns of sites; returns one
            sentence for each thing that it changed.
        edit: the same as code, from all settings and the sentences that `apply` returned.
        text: documentation, the docstring of its file.
        needs_batch: whether it must see the first batch.
    """

    name: str
    safety: Safety
    stage: Stage
    options: tuple[Option, ...]
    plan: Callable[[Symptoms], tuple[Treatment, ...]]
    apply: Callable[[Patient, Settings, tuple[str, ...]], list[str]]
    edit: Callable[[Settings, tuple[str, ...]], Snippet]
    text: str
    needs_batch: bool = False

    def filled(self, settings: Settings) -> dict[str, Value]:
        """All settings, the ones given over the defaults.

        Raises:
            CannotTreatError: a setting does not exist or has a value that it may not have.
        """
        known = {option.name: option for option in self.options}
        for name, value in settings.items():
            if name not in known:
                raise CannotTreatError(f"{self.name} has no setting {name}; it has {', '.join(known) or 'none'}")
            option = known[name]
            if option.choices and value not in option.choices:
                raise CannotTreatError(f"{self.name}: {name} may be {', '.join(map(str, option.choices))}, not {value}")
            if isinstance(option.default, str) != isinstance(value, str) and value not in option.words:
                raise CannotTreatError(f"{self.name}: {name} must be like {option.default!r}, not {value!r}")
        return {option.name: settings.get(option.name, option.default) for option in self.options}


WEIGHTED: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers that multiply a signal by weights and that remedies know how to set."""
