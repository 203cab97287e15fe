"""Normalise: put a normalisation behind (or before) every hidden layer that has none.

What it does:
    Puts batch, layer, group or RMS normalisation of the right dimension between each hidden layer with weights and the
    activation that follows it, or standardises the weights themselves. Layers that have a normalisation beside them
    already, layers that feed a gate or an attention, and the head stay as they are; of a residual branch the last layer
    gets one too. The layer remains the module that it was: it is given a class of its own whose call goes on through the
    norm, which becomes its child `inserted_norm`. So `self.fc1.weight`, parameter names, tied weights, hooks, references to
    it from anywhere and checks of its type go on working, which a Sequential around it would break; and hooks see the layer
    and its norm as two modules, one after the other. New parameters join the optimizer group of the layer.

When it helps:
    Gradients and signals that shrink or grow with depth, saturated or dead units: each layer starts again at size one.
    Batch normalisation (and weight standardisation, which needs no batch) also takes out what is the same for all examples,
    and with it rescues deep sigmoid and softplus networks.

When it does not:
    Layer, group and RMS normalisation keep the common mean: in a deep sigmoid network the correlation of two inputs stays
    1, and what tells them apart sinks below rounding. Batch normalisation needs a batch (below 16 it is noisy, one example
    is refused), goes badly with recurrent nets (refused), and without skip connections makes the gradient of a deep ReLU
    network grow by a factor of 1.21 a layer (Yang et al. 2019). Weight standardisation is a parametrisation: the module can
    then be saved by its state only, and not pickled as a whole.

Cost:
    2 to 30 % of a step, and two numbers per unit (none for weight standardisation).

References:
    Ioffe & Szegedy 2015 (batch); Ba et al. 2016 (layer); Wu & He 2018 (group); Zhang & Sennrich 2019 (RMS); Qiao et al. 2019
    and Brock et al. 2021 (weight standardisation and its gain); Yang et al. 2019 (explosion).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradiometer.errors import GradiometerError
from gradiometer.record.trace import LOST_DECADES
from gradiometer.remedies.base import (
    WEIGHTED,
    Anchor,
    CannotTreatError,
    Option,
    Patient,
    Remedy,
    Settings,
    Snippet,
    Stage,
    Symptoms,
)
from gradiometer.remedies.fronts import Front, put_in_front
from gradiometer.remedies.seen import ONE_SIDED, hidden_activations, hidden_layers, recurrent
from gradiometer.remedies.tape import ADDS, NORMS, POOLS
from gradiometer.remedies.wiring import INSERTED, Call, Wiring, wire
from gradiometer.theory import activation, expectation
from gradiometer.theory.structures import batch_norm_growth
from gradiometer.types import Role, Safety, Treatment

GROUPS: Final = 32
"""Wu & He 2018."""
LEAST_IN_GROUP: Final = 16
"""Values that a group should have at least: of two, only the sign is left. Wu & He's channels per group."""
LEAST_UNITS: Final = 3
"""Layer normalisation takes out two directions (Ba et al. 2016)."""
EPS: Final = 1e-4
"""Of weight standardisation (Brock et al. 2021)."""

_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH: Final = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

FAULTS: Final = (
    *("vanishing-gradient", "exploding-gradient", "input-blindness", "signal-collapse", "signal-explosion"),
    *("saturated-units", "dead-units", "poor-initialization"),
)


def plan(symptoms: Symptoms) -> tuple[Treatment, ...]:
    """Batch first, unless it would explode; nothing that keeps the mean where the mean is the disease."""
    if not symptoms.has(*FAULTS):
        return ()
    kinds, trace = hidden_activations(symptoms.trace), symptoms.trace
    found: list[str] = []
    if not recurrent(trace) and not _explodes(kinds, hidden_layers(trace)):
        found.append("batch")
    if kinds & ONE_SIDED:
        found.append("weight-standard")  # a norm over units keeps the common mean: input correlation stays 1
    else:
        found += ["layer", "group" if any(site.kind.startswith("Conv") for site in trace.sites) else "rms"]
    return tuple(Treatment("normalise", {"kind": kind}) for kind in found if trace.with_role(Role.LINEAR).size > 1)


def _explodes(kinds: frozenset[str], layers: int) -> bool:
    """Whether batch normalisation alone would multiply the gradient by `LOST_DECADES`."""
    growth = 1.0
    for kind in kinds:
        try:
            growth = max(growth, batch_norm_growth(kind))
        except GradiometerError:
            continue
    return 0.5 * layers * math.log10(growth) >= LOST_DECADES


# ---- a layer with a norm -----------------------------------------------------------------------------------------------


class NormAfter(Front):
    """In front of a layer's class: what the layer gives goes on through its child `inserted_norm`."""

    inserted_norm: nn.Module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer as ever (hooks too), then the norm."""
        return self.inserted_norm(super().__call__(*args, **kwargs))  # pyright: ignore[reportAttributeAccessIssue]


class NormBefore(Front):
    """In front of a layer's class: what goes into the layer comes through its child `inserted_norm`."""

    inserted_norm: nn.Module

    def __call__(self, signal: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the norm, then the layer as ever."""
        normed = self.inserted_norm(signal)
        return super().__call__(normed, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


class Rows(nn.Module):
    """A norm for features in the last dimension, whatever the dimensions before it.

    Args:
        norm: takes (examples, features).
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return self.norm(x.flatten(0, -2)).view_as(x)


class Channels(nn.Module):
    """A norm over channels at every position.

    Args:
        norm: takes features in the last dimension.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Standardised(nn.Module):
    """Weights with mean 0 and variance gain² / fan_in in every output unit.

    Args:
        gain: makes up for what the activation before the layer does to the variance.
    """

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, weight: Tensor) -> Tensor:
        """Standardise."""
        inside = tuple(range(1, weight.ndim))
        spread = weight.var(inside, correction=0, keepdim=True) * weight[0].numel()
        return (weight - weight.mean(inside, keepdim=True)) * (self.gain * spread.clamp(min=EPS).rsqrt())


# ---- apply -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Spot:
    """A layer that gets a norm.

    Attributes:
        name: of the layer.
        layer: the module.
        shape: of the tensor that is normalised.
        size: its units (channels).
        calls: how often the layer is called in a pass.
        before: the activation that its input comes from, empty for none.
    """

    name: str
    layer: nn.Module
    shape: tuple[int, ...]
    size: int
    calls: int
    before: str


def apply(patient: Patient, settings: Settings, sites: tuple[str, ...]) -> list[str]:
    """Insert them; see the module's text.

    Raises:
        CannotTreatError: no layer lacks one, or the kind does not fit.
    """
    kind, after = str(settings["kind"]), settings["place"] == "after-activation"
    wiring = wire(patient)
    spots = [s for s in _spots(wiring, kind, after) if not sites or any(fnmatchcase(s.name, site) for site in sites)]
    if kind == "batch":
        _check_batch(patient, wiring, spots)
        spots = [spot for spot in spots if spot.calls == 1]
    if not spots:
        raise CannotTreatError("there is no hidden layer with an activation that is not normalised already")
    done: list[str] = []
    for spot in spots:
        change = _standardise(spot) if kind == "weight-standard" else _insert(spot, kind, after)
        if change:
            done.append(change)
            _no_fast_path(patient, spot.name)
    if not done:
        raise CannotTreatError(f"no layer here can have {kind} normalisation: too few units, or a transposed convolution")
    _join(patient, [spot.layer for spot in spots if isinstance(spot.layer, (NormAfter, NormBefore))])
    return done


def _check_batch(patient: Patient, wiring: Wiring, spots: list[_Spot]) -> None:
    modules = patient.model.modules()
    if any(isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in modules) or any(map(wiring.in_a_loop, wiring.activations)):
        raise CannotTreatError("batch normalisation does not fit a recurrent net: its statistics differ from step to step")
    if any(spot.shape[0] == 1 for spot in spots):
        raise CannotTreatError("batch normalisation needs more than one example in a batch")
    if spots and all(spot.calls > 1 for spot in spots):
        raise CannotTreatError("batch normalisation does not fit layers that are called several times in a pass")


def _spots(wiring: Wiring, kind: str, after: bool) -> list[_Spot]:
    found: list[_Spot] = []
    by_name: dict[str, list[Call]] = {}
    for call in wiring.calls:
        if isinstance(call.module, WEIGHTED) and call.inputs and call.outputs:
            by_name.setdefault(call.name, []).append(call)
    for name, calls in by_name.items():
        call = calls[0]
        layer, n = call.module, call.outputs[0]
        if isinstance(layer, (NormAfter, NormBefore)) or parametrize.is_parametrized(layer, "weight"):
            continue
        if not all(_wants(wiring, c, kind, after) for c in calls):
            continue
        source = wiring.source(call.inputs[0])
        before = wiring.nodes[source].activation if not wiring.gates(source) else ""
        width = _size(layer, after and kind != "weight-standard")
        at = call.inputs[0] if after and kind != "weight-standard" else n
        found.append(_Spot(name, layer, wiring.marks[at].shape, width, len(calls), before))
    return found


def _size(layer: nn.Module, incoming: bool) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features if incoming else layer.out_features
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED))
    return layer.in_channels if incoming else layer.out_channels


def _wants(wiring: Wiring, call: Call, kind: str, after: bool) -> bool:
    """Whether a layer is a hidden one that has no norm beside it."""
    n, source = call.outputs[0], wiring.source(call.inputs[0])
    if not wiring.feeds_weights(n):
        return False  # the head
    follows, normed = _following(wiring, n)
    if normed:
        return False
    ours = NORMS if kind != "batch" else frozenset(("batch_norm",))  # a norm over units keeps what a batch's takes out
    if wiring.nodes[source].op in ours:
        return False
    if after and kind != "weight-standard":
        return bool(wiring.nodes[source].activation) and not wiring.gates(source)
    return bool(follows) and not any(_meets(wiring, i, ours) for i in follows)


def _following(wiring: Wiring, n: int) -> tuple[list[int], bool]:
    """Hidden activations that the output of a layer goes into, and whether a norm comes first."""
    queue, seen, found, normed = list(wiring.nodes[n].users), set[int](), list[int](), False
    while queue:
        i = queue.pop()
        if i in seen:
            continue
        seen.add(i)
        node = wiring.nodes[i]
        if node.activation:
            if wiring.feeds_weights(i) and not wiring.gates(i):
                found.append(i)
        elif node.op in NORMS:
            normed = True
        elif (node.passes or node.op in ADDS or node.op in POOLS) and not node.weighted:
            queue.extend(node.users)
    return found, normed


def _meets(wiring: Wiring, n: int, norms: frozenset[str]) -> bool:
    """Whether what comes of an activation is normalised before it meets weights."""
    queue, seen = list(wiring.nodes[n].users), set[int]()
    while queue:
        i = queue.pop()
        if i in seen or wiring.nodes[i].weighted:
            continue
        seen.add(i)
        node = wiring.nodes[i]
        if node.op in norms:
            return True
        if node.passes or node.op in ADDS or node.op in POOLS:
            queue.extend(node.users)
    return False


def _insert(spot: _Spot, kind: str, after: bool) -> str:
    made = _norm(kind, spot)
    if made is None:
        return ""
    norm, _ = made
    layer = spot.layer
    layer.inserted_norm = norm.train(layer.training)
    put_in_front(NormBefore if after else NormAfter, layer)
    return f"`{spot.name}`: {made[1]} {'before' if after else 'behind'} it"


def _join(patient: Patient, layers: list[nn.Module]) -> None:
    """Let the new norms be trained with their layers, all those of one group at once: a network may have thousands."""
    groups = [group for optimizer in patient.optimizers for group in optimizer.param_groups]
    where = {id(parameter): k for k, group in enumerate(groups) for parameter in group["params"]}
    together: dict[tuple[int, torch.device, torch.dtype], list[nn.Module]] = {}
    for layer in layers:
        assert isinstance(layer.weight, nn.Parameter)
        group = where.get(id(layer.weight), -1)
        together.setdefault((group, layer.weight.device, layer.weight.dtype), []).append(layer)
    for same in together.values():
        norms = nn.ModuleList([layer.get_submodule(INSERTED) for layer in same])
        weight = same[0].weight
        patient.join(norms, weight if isinstance(weight, nn.Parameter) else None)


def _norm(kind: str, spot: _Spot) -> tuple[nn.Module, str] | None:
    """The norm for a layer, and the code that makes it; None if none fits."""
    space = 0 if isinstance(spot.layer, nn.Linear) else len(_kernel(spot.layer))
    examples = len(spot.shape) - space - 1  # dimensions before the features
    if examples < 1 or (space and examples != 1):
        return None  # one example without a batch dimension
    spread = math.prod(spot.shape[2:]) if space else 1
    size, rows = spot.size, not space and examples > 1
    if kind != "rms" and kind != "batch" and size * spread < LEAST_UNITS:
        return None
    if kind == "batch":
        norm, code = _BATCH[space or 1](size), f"nn.BatchNorm{space or 1}d({size})"
    elif kind == "layer" and not space:
        norm, code, rows = nn.LayerNorm(size), f"nn.LayerNorm({size})", False
    elif kind == "rms":
        norm, code, rows = nn.RMSNorm(size), f"nn.RMSNorm({size})", False
        if space:
            norm, code = Channels(norm), f"Channels({code})"
    else:
        groups = 1 if kind == "layer" else _groups(size, spread)
        norm, code = nn.GroupNorm(groups, size), f"nn.GroupNorm({groups}, {size})"
    return (Rows(norm), f"Rows({code})") if rows else (norm, code)


def _kernel(layer: nn.Module) -> tuple[int, ...]:
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED))
    return layer.kernel_size


def _groups(size: int, spread: int) -> int:
    """`GROUPS`, or the largest divisor below it that leaves each group enough to normalise by."""
    fits = (g for g in range(min(GROUPS, size), 0, -1) if size % g == 0 and size // g * spread >= LEAST_IN_GROUP)
    return next(fits, 1)


def _standardise(spot: _Spot) -> str:
    if isinstance(spot.layer, _TRANSPOSED) or _fan_in(spot.layer) < LEAST_UNITS:
        return ""
    gain = standard_gain(spot.before)
    parametrize.register_parametrization(spot.layer, "weight", Standardised(gain))
    return f"`{spot.name}`: weights standardised with gain {gain!r}"


def _fan_in(layer: nn.Module) -> int:
    weight = layer.weight
    return weight[0].numel() if isinstance(weight, Tensor) else 0


def standard_gain(before: str) -> float:
    """1 / standard deviation of an activation of a standard normal: with it the variance stays 1 (Brock et al. 2021)."""
    if not before:
        return 1.0
    try:
        known = activation(before)
    except GradiometerError:
        return 1.0
    mean = expectation(known.f, 1.0, known.kinks)
    square = expectation(lambda u: known.f(u) ** 2, 1.0, known.kinks)
    return round((square - mean**2) ** -0.5, 4)


def _no_fast_path(patient: Patient, name: str) -> None:
    """Torch's own encoder layer has a second way for evaluation that takes the weights and calls no layer."""
    parent = patient.model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0


# ---- the edit ----------------------------------------------------------------------------------------------------------

_INSERTED: Final = re.compile(r"`([^`]*)`: (.*) (before|behind) it$")
_STANDARDISED: Final = re.compile(r"`([^`]*)`: weights standardised with gain (.*)$")

_CLASSES: Final = {
    "Rows": (
        "class Rows(nn.Module):",
        "    def __init__(self, norm):",
        "        super().__init__()",
        "        self.norm = norm",
        "",
        "    def forward(self, x):",
        "        return self.norm(x.flatten(0, -2)).view_as(x)",
        "",
    ),
    "Channels": (
        "class Channels(nn.Module):",
        "    def __init__(self, norm):",
        "        super().__init__()",
        "        self.norm = norm",
        "",
        "    def forward(self, x):",
        "        return self.norm(x.movedim(1, -1)).movedim(-1, 1)",
        "",
    ),
}
_AFTER: Final = ("def normalised(layer, inputs, output):", "    return layer.inserted_norm(output)", "")
_BEFORE: Final = ("def normalised(layer, inputs):", "    return (layer.inserted_norm(inputs[0]), *inputs[1:])", "")
_WEIGHTS: Final = (
    "class Standardised(nn.Module):",
    "    def __init__(self, gain):",
    "        super().__init__()",
    "        self.gain = gain",
    "",
    "    def forward(self, weight):",
    "        inside = tuple(range(1, weight.ndim))",
    "        spread = weight.var(inside, correction=0, keepdim=True) * weight[0].numel()",
    f"        return (weight - weight.mean(inside, keepdim=True)) * (self.gain * spread.clamp(min={EPS}).rsqrt())",
    "",
)


def edit(settings: Settings, changes: tuple[str, ...]) -> Snippet:
    """The same norms as children of the layers, called by hooks: attribute access goes on working here too."""
    standard = [match.groups() for match in filter(None, map(_STANDARDISED.match, changes))]
    if settings["kind"] == "weight-standard":
        table = ", ".join(f'"{name}": {gain}' for name, gain in standard)
        lines = (
            *_WEIGHTS,
            f"for name, gain in {{{{{table}}}}}.items():",
            '    parametrize.register_parametrization({model}.get_submodule(name), "weight", Standardised(gain))',
        )
        return Snippet(Anchor.BEFORE_OPTIMIZER, lines, ("from torch import nn", "from torch.nn.utils import parametrize"))
    norms = [match.groups() for match in filter(None, map(_INSERTED.match, changes))]
    after = settings["place"] == "after-activation"
    table = ", ".join(f'"{name}": {code}' for name, code, _ in norms)
    lines = (
        *(line for name, written in _CLASSES.items() if any(name in code for _, code, _ in norms) for line in written),
        *(_BEFORE if after else _AFTER),
        f"for name, norm in {{{{{table}}}}}.items():",
        "    layer = {model}.get_submodule(name)",
        "    layer.inserted_norm = norm.to(layer.weight.device)",
        f"    layer.{'register_forward_pre_hook' if after else 'register_forward_hook'}(normalised)",
    )
    return Snippet(Anchor.BEFORE_OPTIMIZER, lines, ("from torch import nn",))


REMEDY: Final = Remedy(
    name="normalise",
    safety=Safety.CHANGES_MODEL,
    stage=Stage.NORMALISE,
    options=(
        Option("kind", "batch", "what is normalised over", ("batch", "layer", "group", "rms", "weight-standard")),
        Option("place", "before-activation", "where the norm stands", ("before-activation", "after-activation")),
    ),
    plan=plan,
    apply=apply,
    edit=edit,
    text=__doc__ or "",
    needs_batch=True,
)
