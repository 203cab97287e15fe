"""Regularise: dropout or weight decay, against a gap between what is trained on and what is not.

What it does:
    `dropout` sets a share of the hidden activations to zero at random in training mode and scales the others up;
    `weight-decay` lets the optimizer pull every weight towards zero.

When it helps:
    A network that learns its training data and fails on others. That is no disease of the gradient, so a cure never
    proposes it by itself.

When it does not:
    It cures neither vanishing nor exploding gradients. Dropout adds noise to a signal that may be faint already, and so
    makes the depth smaller at which a network can be trained. Weight decay keeps weights from growing, but a strong one
    shrinks them until the gradient vanishes.

Cost:
    Dropout: random numbers for every activation, and usually more steps. Weight decay: none.

References:
    Srivastava et al. 2014 (dropout); Schoenholz et al. 2017 (dropout bounds the trainable depth); Krogh and Hertz 1991 and
    Loshchilov and Hutter 2019 (weight decay).
"""

from __future__ import annotations

import re
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from gradiometer.probe.sites import activation_of
from gradiometer.remedies.base import Anchor, CannotTreatError, Option, Patient, Remedy, Settings, Snippet, Stage, Symptoms
from gradiometer.remedies.layers import Layer, read
from gradiometer.types import Safety, Treatment

KINDS: Final = ("dropout", "weight-decay")
USUAL: Final = {"dropout": 0.1, "weight-decay": 1e-2}
"""Share of activations (0.5 of Srivastava et al. 2014 is for wide layers); AdamW's decay (Loshchilov and Hutter 2019)."""


def plan(_symptoms: Symptoms) -> tuple[Treatment, ...]:
    """Nothing: no finding about gradients is answered by it."""
    return ()


def apply(patient: Patient, settings: Settings, sites: tuple[str, ...]) -> list[str]:
    """Put dropout behind hidden activations, or set the weight decay of the optimizers."""
    kind, value = str(settings["kind"]), float(settings["value"])
    value = USUAL[kind] if value < 0.0 else value
    return _dropout(patient, value, sites) if kind == "dropout" else _decay(patient, value, sites)


def _dropout(patient: Patient, share: float, sites: tuple[str, ...]) -> list[str]:
    if not 0.0 < share < 1.0:
        raise CannotTreatError(f"a dropout of {share:g} leaves all or nothing")
    hidden = [layer for layer in read(patient).layers if not layer.head]
    behind = _activations(patient, hidden, sites)
    if behind:
        for name in behind:
            patient.model.get_submodule(name).register_forward_hook(Dropout(share))
        return [f"Dropout of {share:g} behind {_quoted(behind)}."]
    before = _fed(patient, sites)
    if not before:
        raise CannotTreatError("there is no hidden activation to drop")
    for name in before:
        patient.model.get_submodule(name).register_forward_pre_hook(DropoutBefore(share))
    return [f"Dropout of {share:g} before {_quoted(before)}."]


def _activations(patient: Patient, hidden: list[Layer], sites: tuple[str, ...]) -> list[str]:
    """Activation modules that hidden layers feed; the ones that match where places are given."""
    fed = {layer.follower for layer in hidden if layer.follower}
    named = patient.modules(sites)
    return [name for name, module in named if activation_of(module) is not None and (sites or name in fed)]


def _fed(patient: Patient, sites: tuple[str, ...]) -> list[str]:
    """Layers with weights that take in the output of others: where activations are functions, their inputs are those."""
    chosen = {name for name, _ in patient.modules(sites)}
    return [layer.name for layer in read(patient).layers if not layer.first and layer.name in chosen]


class Dropout:
    """Forward hook: dropout behind a module, in its training mode.

    Args:
        share: of the elements that become zero.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        """Drop from the output."""
        return F.dropout(output, self._share, module.training) if isinstance(output, Tensor) else None


class DropoutBefore:
    """Forward pre-hook: dropout on what a module takes in.

    Args:
        share: of the elements that become zero.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """Drop from the first input."""
        if not inputs or not isinstance(inputs[0], Tensor):
            return None
        return (F.dropout(inputs[0], self._share, module.training), *inputs[1:])


def _quoted(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _decay(patient: Patient, value: float, sites: tuple[str, ...]) -> list[str]:
    if sites:
        raise CannotTreatError("weight decay acts on whole optimizers, not on places in the model")
    if not patient.optimizers:
        raise CannotTreatError("there is no optimizer yet")
    able = [o for o in patient.optimizers if any("weight_decay" in group for group in o.param_groups)]
    if not able:
        raise CannotTreatError(f"{type(patient.optimizers[0]).__name__} has no weight decay")
    return [_decayed(optimizer, value) for optimizer in able]


def _decayed(optimizer: Optimizer, value: float) -> str:
    was = {float(group["weight_decay"]) for group in optimizer.param_groups if "weight_decay" in group}
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = value
    return (
        f"The weight decay of {type(optimizer).__name__} is {value:g} instead of {' and '.join(f'{v:g}' for v in sorted(was))}."
    )


def edit(settings: Settings, changes: tuple[str, ...]) -> Snippet:
    """Hooks on the same modules, or an argument of the optimizer."""
    kind, value = str(settings["kind"]), float(settings["value"])
    value = USUAL[kind] if value < 0.0 else value
    if kind == "weight-decay":
        return Snippet(Anchor.AFTER_OPTIMIZER, arguments=(("weight_decay", f"{value:g}"),))
    text = " ".join(changes)
    names = tuple(re.findall(r"`([^`]*)`", text))
    if " behind " in text:
        hook = f"lambda module, _, output: F.dropout(output, {value:g}, module.training)"
        register = "register_forward_hook"
    else:
        hook = f"lambda module, inputs: (F.dropout(inputs[0], {value:g}, module.training), *inputs[1:])"
        register = "register_forward_pre_hook"
    lines = (f"for name in {names!r}:", f"    {{model}}.get_submodule(name).{register}(", f"        {hook}", "    )")
    return Snippet(Anchor.BEFORE_OPTIMIZER, lines, ("import torch.nn.functional as F",))


REMEDY: Final = Remedy(
    name="regularise",
    safety=Safety.CHANGES_TRAINING,
    stage=Stage.REGULARISE,
    options=(
        Option("kind", "dropout", "what is done", KINDS),
        Option("value", -1.0, "share of activations, or decay; below zero: the usual one"),
    ),
    plan=plan,
    apply=apply,
    edit=edit,
    text=__doc__ or "",
)
