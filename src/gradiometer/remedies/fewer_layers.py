"""Fewer layers: take hidden layers out, down to the depth that such a network can train.

What it does:
    Takes out hidden layers that keep the shape, together with their normalisation, dropout and activation, or blocks that
    keep it; spread evenly over the depth. A module that is left in their place gives what it gets. Their parameters leave
    the optimizer, all others stay what they are, under their names. `keep` = 0 asks theory: six depth scales of the
    correlation (or the layers until the gradient is gone, if that is fewer) for the activation of the network and the
    spread of its weights as they are. Where layers are called one by one in the code (`x = F.relu(layer(x))`) their
    activation is passed over at every forward pass.

When it helps:
    Everything that comes of depth: vanishing and exploding gradients, inputs that can no longer be told apart, shattered
    gradients. Often a smaller network is also as good.

When it does not:
    A network that is as shallow as its task allows, or whose layers all change the shape. An initialisation that lets even
    two layers lose too much (then it is `initialise` or `activation`). Code that looks at its layers from outside, such as
    a penalty on every `layer.weight`, meets layers without weights.

Cost:
    None; every layer less saves time.

References:
    Schoenholz et al. 2017 (trainable depth).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradiometer.errors import GradiometerError
from gradiometer.remedies import layers
from gradiometer.remedies.base import Anchor, CannotTreatError, Option, Patient, Remedy, Settings, Snippet, Stage, Symptoms
from gradiometer.remedies.seen import hidden_layers, recurrent
from gradiometer.remedies.tape import ACTIVATIONS, NORMS, without_drawing
from gradiometer.remedies.wiring import DROPOUTS, Span, Wiring, fed, wire
from gradiometer.theory import MeanField, activation
from gradiometer.types import Safety, Treatment

LEAST: Final = 2
"""Hidden layers that are always left: one alone is no deep network any more."""

FAULTS: Final = (
    *("vanishing-gradient", "exploding-gradient", "input-blindness", "signal-collapse", "signal-explosion"),
    *("shattered-gradient", "poor-initialization"),
)


def plan(symptoms: Symptoms) -> tuple[Treatment, ...]:
    """Down to what theory says; else down to a half."""
    deep = hidden_layers(symptoms.trace)
    if deep <= LEAST + 1 or recurrent(symptoms.trace) or not symptoms.has(*FAULTS):
        return ()
    half = Treatment("fewer-layers", {"keep": float(max(LEAST, deep // 2))})
    if symptoms.has("shattered-gradient") and not symptoms.has("vanishing-gradient", "exploding-gradient"):
        return (half,)  # the correlation length is infinite there
    return Treatment("fewer-layers"), half


# ---- apply -------------------------------------------------------------------------------------------------------------


def apply(patient: Patient, settings: Settings, sites: tuple[str, ...]) -> list[str]:
    """Take them out; see the module's text.

    Raises:
        CannotTreatError: there is nothing to take out, or no reason to.
    """
    wiring = wire(patient)
    reading = [layer for layer in layers.layers(patient) if layer.calls and not layer.head]
    spans = [span for span in _repeated(patient, wiring.spans()) if _wanted(wiring, span, sites)]
    if not spans:
        raise CannotTreatError("no hidden layer or block keeps the shape of its input, so that it could be taken out")
    depth, keep = len(reading), int(settings["keep"])
    why = ""
    if keep <= 0:
        limit, why = trainable_depth(reading)
        keep = max(LEAST, math.ceil(limit)) if limit < depth else depth
    if keep >= depth:
        raise CannotTreatError(f"there are {depth} hidden layers, no more than there may be{why}")
    chosen = _spread(spans, depth - keep)
    if not chosen:
        raise CannotTreatError(f"taking out any block would leave fewer than {keep} of {depth} hidden layers")
    removal = _Removal(patient, wiring)
    for span in chosen:
        removal.take_out(span)
    done = removal.finish()
    left = depth - sum(len(span.layers) for span in chosen)
    return [*done, f"{left} of {depth} hidden layers are left{why}"]


def _repeated(patient: Patient, spans: list[Span]) -> list[Span]:
    """Without modules of several layers that are the only one of their kind: such a one is no layer among many."""
    kinds = [type(patient.model.get_submodule(span.block)) for span in spans if not span.units]
    return [s for s in spans if s.units or kinds.count(type(patient.model.get_submodule(s.block))) > 1]


def _wanted(wiring: Wiring, span: Span, sites: tuple[str, ...]) -> bool:
    names = (*span.layers, span.block) if span.block else span.layers
    asked = not sites or any(fnmatchcase(name, site) for name in names for site in sites)
    caught = bool(span.block) or span.parent is not None
    free = not any(wiring.in_a_loop(u.node) or wiring.gates(u.node) or u.node in wiring.results for u in span.units)
    return asked and free and (caught or not any(wiring.marks[u.node].recomputed for u in span.units))


def _spread(spans: list[Span], most: int) -> list[Span]:
    """Evenly spread parts with no more than so many layers in all."""
    layers_in = [len(span.layers) for span in spans]
    count = len(spans)
    while count:
        places = np.unique(np.round((np.arange(count) + 0.5) * len(spans) / count - 0.5).astype(int))
        if sum(layers_in[k] for k in places) <= most:
            return [spans[k] for k in places]
        count -= 1
    return []


def trainable_depth(reading: list[layers.Layer]) -> tuple[float, str]:
    """How many hidden layers can train, and the words for why; infinity where theory sets no limit.

    The typical hidden layer is repeated: the activation of most, the middle of the spreads of weights and of biases.

    Raises:
        CannotTreatError: theory does not know the activation.
    """
    kinds = [layer.activation for layer in reading if layer.activation not in ("", "linear")]
    if not kinds:
        raise CannotTreatError("there is no activation that theory could say a depth for; give keep")
    kind = max(sorted(set(kinds)), key=kinds.count)
    same = [layer for layer in reading if layer.activation == kind]
    if any(layer.normed or layer.branch >= 0 for layer in same):
        return math.inf, f": where {kind} layers are normalised or have shortcuts theory sets no limit"
    weight = float(np.median([_spread_of(layer.module.weight) * layer.fan_in**0.5 for layer in same]))
    bias = float(np.median([_spread_of(layer.module.bias) for layer in same]))
    slope = {"negative_slope": float(np.median([layer.slope for layer in same]))} if kind == "leaky_relu" else {}
    try:
        field = MeanField(activation(kind, **slope), weight, bias)
        limit = field.trainable_depth(1.0)
    except GradiometerError as error:
        raise CannotTreatError(f"theory sets no depth for {kind} with sigma_w = {weight:.3g}; give keep") from error
    places = 0 if limit > 100 else 1
    network = f"{kind} with sigma_w = {weight:.2f}, sigma_b = {bias:.2f}"
    return limit, f": {limit:,.{places}f} is the trainable depth of {network}"


def _spread_of(values: Tensor | None) -> float:
    """Root mean square."""
    return float(values.detach().double().square().mean().sqrt()) if values is not None else 0.0


# ---- taking out --------------------------------------------------------------------------------------------------------


class Gone(nn.Module):
    """Left in the place of a layer that is called in the code: gives what it gets, and has the activation passed over.

    Args:
        passing: which is told.
    """

    def __init__(self, passing: _Passing) -> None:
        super().__init__()
        self._passing = passing

    def forward(self, x: Tensor) -> Tensor:
        """Give the same signal as another tensor, so that it can be told from the one that came."""
        same = x.view_as(x)
        self._passing.gone(same)
        return same


class _Passing:
    """What is passed over. A copy of the model goes by the same."""

    def __init__(self) -> None:
        self.passes: list[_Over] = []
        self.done = 0

    def gone(self, signal: Tensor) -> None:
        if self.passes:
            self.passes[-1].open.append(signal)

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Passing:
        return self


class _Over(TorchFunctionMode):
    """Around one forward pass: calls no norm, dropout and activation of layers that are gone."""

    def __init__(self, passing: _Passing) -> None:
        super().__init__()
        self._passing = passing
        self.open: list[Tensor] = []

    def __enter__(self) -> _Over:
        self._passing.passes.append(self)
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        self._passing.passes.remove(self)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = str(func.__name__).strip("_")
        if self.open and (op in ACTIVATIONS or op in NORMS or op in DROPOUTS):
            signal: Any = args[0] if args else kwargs.get("input")
            for k, one in enumerate(self.open):
                if one is signal:
                    if op in ACTIVATIONS:
                        del self.open[k]
                        self._passing.done += 1
                    return signal
        return func(*args, **kwargs)


@dataclass
class _Removal:
    """Takes parts out of one model, and puts everything back if the model does not work without them."""

    patient: Patient
    wiring: Wiring

    def __post_init__(self) -> None:
        self._old: dict[str, nn.Module] = {}
        self._passing = _Passing()
        self._loose: list[Span] = []
        self._done: list[str] = []

    def take_out(self, span: Span) -> None:
        if span.block:
            self._put(span.block, nn.Identity())
            self._done.append(f"`{span.block}` is taken out")
        elif span.parent is not None:
            names = [f"{span.parent}.{k}".lstrip(".") for k in range(span.first, span.last + 1)]
            for name in names:
                self._put(name, nn.Identity())
            self._done.append(f"`{names[0]}` to `{names[-1]}` are taken out")
        else:
            self._put(span.layers[0], Gone(self._passing))
            for norm in span.units[0].norms:
                if not norm.startswith(span.layers[0] + "."):
                    self._put(norm, nn.Identity())
            self._loose.append(span)

    def _put(self, name: str, new: nn.Module) -> None:
        self._old[name] = self.patient.model.get_submodule(name)
        self.patient.put(name, new.train(self._old[name].training))

    def finish(self) -> list[str]:
        """What was done.

        Raises:
            CannotTreatError: the model does not run without these parts; it is as it was.
        """
        patient = self.patient
        make: Callable[[], Any] = partial(_Over, self._passing)
        if self._loose:
            # before those of earlier remedies: what is entered first sees what the others have made of a call
            patient.on_forward.insert(0, make)
        problem = ""
        try:
            with without_drawing():
                patient.run()
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            problem = f"the model does not run without these layers: {error}"
        if not problem and self._passing.done != len(self._loose):
            problem = "the activations behind these layers cannot be passed over"
        if problem:
            for name, module in self._old.items():
                patient.put(name, module)
            if self._loose:
                patient.on_forward.remove(make)
            raise CannotTreatError(problem)
        patient.leave(nn.ModuleList(self._old.values()))
        return [*self._done, *self._told()]

    def _told(self) -> list[str]:
        """The parts that are called in the code."""
        done: list[str] = []
        for span in self._loose:
            name, unit, spot = span.layers[0], span.units[0], self.wiring.marks[span.node].spot
            here = [i for i in self.wiring.activations if self.wiring.marks[i].spot == spot]
            holder = self.patient.model.get_submodule(name.rpartition(".")[0])
            where = f" in {spot.where}" if spot is not None else ""
            x = fed(spot, name, unit.between) if spot is not None and len(here) == 1 else None
            if isinstance(holder, nn.ModuleList) and len(here) > 1 and not unit.norms:
                done.append(f"`{name}` is taken out of its list, and its {self.wiring.nodes[unit.node].op}{where}")
            elif x is not None and spot is not None:
                done.append(f"`{spot.text}`{where} is now `{ast.unparse(x)}`, without `{name}`")
            else:
                behind = " and ".join([*(f"`{norm}`" for norm in unit.norms), f"the {self.wiring.nodes[unit.node].op}"])
                done.append(f"`{name}` is taken out, with {behind} behind it{where}")
        return done


# ---- the edit ----------------------------------------------------------------------------------------------------------

_ONE: Final = re.compile(r"`([^`]*)` is taken out$")
_ROW: Final = re.compile(r"`([^`]*)` to `([^`]*)` are taken out$")
_LISTED: Final = re.compile(r"`([^`]*)` is taken out of its list")
_PAIR: Final = re.compile(r"`(.*)`(?: in .*)? is now `(.*)`, without `(.*)`$")
_LOOSE: Final = re.compile(r"`([^`]*)` is taken out, with (.*) behind it(?: in )?(.*)$")


def edit(settings: Settings, changes: tuple[str, ...]) -> Snippet:
    """Identities in the place of modules, shorter lists, and calls that are left out."""
    lines: list[str] = []
    names = [match[1] for match in filter(None, map(_ONE.match, changes))]
    for match in filter(None, map(_ROW.match, changes)):
        parent, _, first = match[1].rpartition(".")
        last = match[2].rpartition(".")[2]
        names += [f"{parent}.{k}".lstrip(".") for k in range(int(first), int(last) + 1)]
    pairs = [match.groups() for match in filter(None, map(_PAIR.match, changes))]
    if names:
        listed = ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "")
        lines += [f"for name in ({listed}):", "    {model}.set_submodule(name, nn.Identity())"]
    lists: dict[str, list[str]] = {}
    for match in filter(None, map(_LISTED.match, changes)):
        parent, _, place = match[1].rpartition(".")
        lists.setdefault(parent, []).append(place)
    for parent, places in lists.items():
        backwards = ", ".join(sorted(places, key=int, reverse=True)) + ("," if len(places) == 1 else "")
        lines += [f"for place in ({backwards}):", f'    del {{model}}.get_submodule("{parent}")[place]']
    for match in filter(None, map(_LOOSE.match, changes)):
        where = f"{match[3]}: " if match[3] else ""
        lines.append(f"# {where}leave out `{match[1]}`, with {match[2]} behind it")
    lines += [f'{{model}}.set_submodule("{name}", nn.Identity())' for _, _, name in pairs]
    imports = ("from torch import nn",) if names or pairs else ()
    replaced = tuple((str(old), str(new)) for old, new, _ in pairs)
    return Snippet(Anchor.BEFORE_OPTIMIZER, tuple(lines), imports, replaced)


REMEDY: Final = Remedy(
    name="fewer-layers",
    safety=Safety.CHANGES_MODEL,
    stage=Stage.FEWER_LAYERS,
    options=(Option("keep", 0.0, "how many hidden layers stay; 0 for as many as theory says can train"),),
    plan=plan,
    apply=apply,
    edit=edit,
    text=__doc__ or "",
    needs_batch=True,
)
