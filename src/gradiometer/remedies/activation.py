"""Activation: put another activation function in the place of the hidden ones.

What it does:
    Replaces the activations between hidden layers, as modules (in Sequential, attributes and lists, also one that several
    layers share) and as functions (`torch.sigmoid(x)`, `x.sigmoid()`, `F.relu(x)`), which are found in one forward pass and
    caught in every later one. By default only saturating ones are replaced: sigmoid, hard sigmoid, log-sigmoid, tanh, hard
    tanh, softsign, softplus. What has a meaning of its own stays: gates (whatever is multiplied with another signal: in
    LSTM and GRU cells, attention, squeeze-and-excitation, GLU), the activation of the output, and the one of a recurrent
    net unless that is asked for. Weights stay what they are, which may be far from right for the new function: give
    `initialise` with it. Only SELU brings its own (LeCun: variance 1 / fan_in, biases zero), without which it is nothing.

When it helps:
    Deep networks of sigmoids, softplus or default tanh layers, whose gradient vanishes: the mean slope of a sigmoid is at
    most 1/4, that of a ReLU is 1 wherever it is open. Dead ReLU units (`replace` = relu): a leaky ReLU, GELU or ELU has a
    slope below zero. Saturated units.

When it does not:
    A network whose weights are far too large or too small stays so: ReLU with torch's own initialisation still loses a
    factor of 0.4 a layer. Gates inside `nn.LSTM` and `nn.GRU` cannot be replaced. A ReLU in a recurrent net can explode. Very
    deep ReLU networks keep their gradient and lose its direction all the same (see `residual`). Functions that are called
    in a part that is computed again in the backward pass (activation checkpointing) are left as they are. In a compiled
    model `F.sigmoid` and `F.tanh`, old names that torch no longer advises, escape; `torch.sigmoid` and `torch.tanh` do not.

Cost:
    None for modules. A replaced function costs about 2 microseconds for every call of torch in the forward pass.

References:
    Nair & Hinton 2010 (ReLU); Maas et al. 2013 (leaky ReLU); Clevert et al. 2016 (ELU); Hendrycks & Gimpel 2016 (GELU);
    Klambauer et al. 2017 (SELU); Elfwing et al. 2018 (SiLU); Glorot & Bengio 2010 (why sigmoids saturate); Le et al. 2015
    (recurrent nets of ReLUs).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from types import CodeType
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradiometer.remedies.base import Anchor, CannotTreatError, Option, Patient, Remedy, Settings, Snippet, Stage, Symptoms
from gradiometer.remedies.seen import RECTIFIERS, SATURATING, hidden_activations
from gradiometer.remedies.tape import ACTIVATIONS
from gradiometer.remedies.wiring import Spot, Wiring, parsed, user_spot, wire
from gradiometer.types import Safety, Treatment

SLOPE: Final = 0.01
"""Of the leaky ReLU below zero (Maas et al. 2013)."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is put in.

    Attributes:
        module: makes the module.
        function: the function.
        make: the module, as code.
        call: the function, as code; further arguments follow the first one in ``more``.
        more: further arguments, as code.
    """

    module: Callable[[], nn.Module]
    function: Callable[[Tensor], Tensor]
    make: str
    call: str
    more: str = ""


TARGETS: Final[dict[str, Target]] = {
    "relu": Target(nn.ReLU, F.relu, "nn.ReLU()", "F.relu"),
    "leaky-relu": Target(
        partial(nn.LeakyReLU, SLOPE),
        partial(F.leaky_relu, negative_slope=SLOPE),
        f"nn.LeakyReLU({SLOPE})",
        "F.leaky_relu",
        f", {SLOPE}",
    ),
    "gelu": Target(nn.GELU, F.gelu, "nn.GELU()", "F.gelu"),
    "silu": Target(nn.SiLU, F.silu, "nn.SiLU()", "F.silu"),
    "elu": Target(nn.ELU, F.elu, "nn.ELU()", "F.elu"),
    "selu": Target(nn.SELU, F.selu, "nn.SELU()", "F.selu"),
    "tanh": Target(nn.Tanh, torch.tanh, "nn.Tanh()", "torch.tanh"),
}

MODULES: Final[tuple[type[nn.Module], ...]] = (
    *(nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Softsign, nn.Softplus, nn.ReLU, nn.ReLU6),
    *(nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanhshrink),
)
"""Modules that are an activation and nothing else."""

KEPT_GATE: Final = "a gate"
KEPT_OUTPUT: Final = "the activation of the output"
KEPT_LOOP: Final = "the step of a recurrent net"
KEPT_AGAIN: Final = "computed again in the backward pass"
KEPT_SHARED: Final = "one module with another that stays"


def plan(symptoms: Symptoms) -> tuple[Treatment, ...]:
    """A ReLU that leaks for dead units; SELU (which needs nothing else) or ReLU in the place of what saturates."""
    kinds = hidden_activations(symptoms.trace)
    saturating = bool(kinds & SATURATING)
    if symptoms.has("dead-units") and kinds & RECTIFIERS:
        return tuple(Treatment("activation", {"to": to, "replace": "relu"}) for to in ("leaky-relu", "elu", "gelu"))
    faint = ("vanishing-gradient", "input-blindness", "signal-collapse", "saturated-units")
    if saturating and symptoms.has(*faint):
        return tuple(Treatment("activation", {"to": to}) for to in ("selu", "relu", "gelu"))
    if kinds - SATURATING and symptoms.has("exploding-gradient", "signal-explosion") and not saturating:
        return (Treatment("activation", {"to": "tanh", "replace": "all"}),)  # bounds the signal, whatever the weights
    return ()


def apply(patient: Patient, settings: Settings, sites: tuple[str, ...]) -> list[str]:
    """Replace them; see the module's text.

    Raises:
        CannotTreatError: there is nothing to replace.
    """
    target, wanted = str(settings["to"]), _wanted(str(settings["replace"]), str(settings["to"]))
    recurrent = bool(settings["recurrent"])
    wiring = wire(patient)
    uses = _told_apart(patient, [_use(wiring, i, wanted, recurrent, sites) for i in wiring.activations])
    done, gone = _modules(patient, uses, target)
    rest = _reachable([use for use in uses if not (use.chosen and use.owner in gone)])
    done += _functions(patient, rest, target)
    if recurrent:
        done += _recurrent_modules(patient, target, wanted, sites)
    if not done:
        raise CannotTreatError(_nothing(rest, wanted, patient))
    if target == "selu":
        left = {use.node for use in rest if not use.chosen}
        done += _lecun(patient, wiring, [use for use in uses if use.node not in left])
    return done + _left(rest)


def _wanted(which: str, target: str) -> frozenset[str]:
    every = frozenset(ACTIVATIONS.values()) - {"erf", "sin"}
    wanted = {"saturating": SATURATING, "all": every, "relu": RECTIFIERS}[which]
    return wanted - {target.replace("-", "_")}


@dataclass(frozen=True, slots=True)
class _Use:
    """One use of an activation.

    Attributes:
        node: its number.
        name: what theory calls it.
        op: what theory calls the function that is called; of a `nn.ReLU6` that is a hard tanh.
        wanted: whether it is of the kind that is to be replaced.
        owner: the module that it is, if there is one; empty for a function.
        module: that module, or the one whose code calls the function.
        spot: where in the model's code it is called, None if torch's own code does it.
        kept: why it stays; empty if it does not.
        asked: whether the patterns of sites name it.
        places: names under which that module is registered; of one that stands in several places of a Sequential only the
            one of this call.
    """

    node: int
    name: str
    op: str
    wanted: bool
    owner: str
    module: str
    spot: Spot | None
    kept: str
    asked: bool
    places: tuple[str, ...] = ()

    @property
    def chosen(self) -> bool:
        """Whether it is replaced."""
        return self.wanted and self.asked and not self.kept


def _use(wiring: Wiring, i: int, wanted: frozenset[str], recurrent: bool, sites: tuple[str, ...]) -> _Use:
    node, mark, call = wiring.nodes[i], wiring.marks[i], wiring.maker(i)
    call = call if call is not None and type(call.module) in MODULES else None
    before = wiring.layers_before(i)
    # a function has the name that reports give it, or that of the module that calls it or feeds it
    names = [call.name] if call else [mark.module, *before, *(f"{name} > {node.op}" for name in before)]
    asked = not sites or any(fnmatchcase(name, site) for name in names for site in sites)
    if wiring.gates(i):
        kept = KEPT_GATE
    elif not wiring.feeds_weights(i):
        kept = KEPT_OUTPUT
    elif wiring.in_a_loop(i) and not recurrent:
        kept = KEPT_LOOP
    elif call is None and mark.recomputed:
        kept = KEPT_AGAIN
    else:
        kept = ""
    op = ACTIVATIONS.get(node.op, "")
    name = "relu6" if call is not None and isinstance(call.module, nn.ReLU6) else op
    module = call.name if call else mark.module
    return _Use(i, name, op, name in wanted, call.name if call else "", module, mark.spot, kept, asked)


def _reachable(uses: list[_Use]) -> list[_Use]:
    """What only a function can be caught of stays if its place in the code is not known and the same function has to stay."""
    stays = {use.op for use in uses if not use.chosen}
    return [replace(use, kept=KEPT_SHARED) if use.chosen and not use.spot and use.op in stays else use for use in uses]


# ---- modules -----------------------------------------------------------------------------------------------------------


def _modules(patient: Patient, uses: list[_Use], target: str) -> tuple[list[str], set[str]]:
    """Put new modules in the place of those all of whose calls are to be replaced.

    Returns:
        What was done, and the names of the modules that are done with.
    """
    done: list[str] = []
    gone: set[str] = set()
    for owner, same in _by_owner(uses).items():
        if not all(use.chosen for use in same):
            continue
        old = patient.model.get_submodule(owner)
        new = TARGETS[target].module().train(old.training)
        for name in same[0].places:
            patient.put(name, new)
            done.append(f"`{name}`: {type(old).__name__} is now {TARGETS[target].make}")
        gone.add(owner)
        if next(old.parameters(), None) is not None:
            patient.leave(old)
    return done, gone


def _by_owner(uses: list[_Use]) -> dict[str, list[_Use]]:
    found: dict[str, list[_Use]] = {}
    for use in uses:
        if use.owner:
            found.setdefault(use.owner, []).append(use)
    return found


def _told_apart(patient: Patient, uses: list[_Use]) -> list[_Use]:
    """Find the places of the modules. One instance may stand in several, which a Sequential passes in their order."""
    every: dict[int, list[str]] = {}
    for name, module in patient.model.named_modules(remove_duplicate=False):
        every.setdefault(id(module), []).append(name)
    apart: dict[int, _Use] = {}
    for owner, same in _by_owner(uses).items():
        names = every[id(patient.model.get_submodule(owner))]
        parents = [patient.model.get_submodule(name.rpartition(".")[0]) for name in names]
        own = len(names) == len(same) and all(isinstance(parent, nn.Sequential) for parent in parents)
        for name, use in zip(names if own else [owner] * len(same), same, strict=True):
            apart[use.node] = replace(use, owner=name, places=(name,) if own else tuple(names))
    return [apart.get(use.node, use) for use in uses]


# ---- functions ---------------------------------------------------------------------------------------------------------


_Place: TypeAlias = tuple[str, CodeType, int]
"""Name of the activation, and where in which code it is called."""


@dataclass(frozen=True, slots=True)
class _Order:
    """Which calls of functions are replaced.

    Attributes:
        function: what is called instead.
        always: functions all of whose calls are.
        places: for the others, by place in the code: whether each call of a forward pass is, in order; what comes after
            the last one is treated as that one.
    """

    function: Callable[[Tensor], Tensor]
    always: frozenset[str]
    places: dict[_Place, tuple[bool, ...]]


class _Replacing(TorchFunctionMode):
    """Around one forward pass: calls another function in the place of some."""

    def __init__(self, order: _Order) -> None:
        super().__init__()
        self._order = order
        self._count: dict[_Place, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        op = str(func.__name__)
        name = ACTIVATIONS.get(op.strip("_"), "")
        if name and self._replaces(name):
            x = args[0] if args else (kwargs or {})["input"]
            if op.endswith("_") or (kwargs or {}).get("inplace"):
                return x.copy_(self._order.function(x.clone()))
            return self._order.function(x)
        return func(*args, **(kwargs or {}))

    def _replaces(self, name: str) -> bool:
        if name in self._order.always:
            return True
        if not self._order.places:
            return False
        spot = user_spot()
        rule = self._order.places.get((name, *spot), ()) if spot else ()
        if not rule or spot is None:
            return False
        count = self._count.get((name, *spot), 0)
        self._count[name, *spot] = count + 1
        return rule[min(count, len(rule) - 1)]


def _functions(patient: Patient, uses: list[_Use], target: str) -> list[str]:
    """Catch the calls of functions, and of shared modules some of whose calls stay."""
    done = _encoder_layers(patient, uses, target)
    places: dict[_Place | str, list[_Use]] = {}
    for use in uses:
        place = (use.op, use.spot.code, use.spot.instruction) if use.spot is not None else use.op
        places.setdefault(place, []).append(use)
    chosen = {place: some for place, same in places.items() if (some := [use for use in same if use.chosen])}
    if not chosen:
        return done
    stays = {use.op for use in uses if not use.chosen}
    always = frozenset(some[0].op for some in chosen.values()) - stays
    rules = {
        place: tuple(use.chosen for use in places[place])
        for place in chosen
        if isinstance(place, tuple) and place[0] not in always
    }
    # before those of earlier remedies: what is entered first sees what the others have made of a call
    patient.on_forward.insert(0, partial(_Replacing, _Order(TARGETS[target].function, always, rules)))
    # where the same function stays elsewhere, its name alone does not tell which calls are meant
    also = {_called(use.spot) for use in uses if not use.chosen and use.spot is not None}
    for some in chosen.values():
        first = some[0]
        old, new = _words(first.spot, first.op, target, also)
        where = f" in {first.spot.where}" if first.spot is not None else f" in `{first.module}`"
        times = "" if len(some) == 1 else f" ({len(some)} calls)"
        done.append(f"`{old}`{where}{times} is now `{new}`")
    return done


def _encoder_layers(patient: Patient, uses: list[_Use], target: str) -> list[str]:
    """Torch's own transformer layers have their function in an attribute, and a second way for evaluation that has not."""
    done: list[str] = []
    for use in list(uses):
        module = patient.model.get_submodule(use.module) if use.chosen and use.module else None
        if not isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            continue
        module.activation = TARGETS[target].function
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = {"relu": 1, "gelu": 2}.get(target, 0)
        uses.remove(use)
        done.append(f"`{use.module}`: the activation of {type(module).__name__} is now {TARGETS[target].call}")
    return done


def _called(spot: Spot) -> str:
    """``torch.sigmoid``, as it stands in the source."""
    tree = parsed(spot.text)
    return ast.unparse(tree.func) if isinstance(tree, ast.Call) else ""


def _words(spot: Spot | None, name: str, target: str, also: set[str]) -> tuple[str, str]:
    """What stands in the source, and what stands there instead.

    Args:
        spot: where it is called.
        name: what theory calls it.
        target: what is put in.
        also: functions that are called elsewhere too and stay there.
    """
    new = TARGETS[target]
    tree = parsed(spot.text) if spot is not None else None
    if spot is not None and isinstance(tree, ast.Call):
        function = ast.unparse(tree.func)
        first = tree.args[0] if tree.args else next((k.value for k in tree.keywords if k.arg == "input"), None)
        plain = function.rpartition(".")[2].strip("_")
        if first is not None and ACTIVATIONS.get(plain) == name:
            alone = len(tree.args) + len(tree.keywords) == 1 and not new.more and function not in also
            if alone and spot.text.startswith(function + "("):
                return function, new.call
            return spot.text, f"{new.call}({ast.unparse(first)}{new.more})"
        if isinstance(tree.func, ast.Attribute) and ACTIVATIONS.get(plain) == name:
            return spot.text, f"{new.call}({ast.unparse(tree.func.value)}{new.more})"
        if first is not None:  # a function or module by another name: self.act(x)
            return spot.text, f"{new.call}({ast.unparse(first)}{new.more})"
    return f"torch.{name}", new.call


# ---- recurrent modules, SELU -------------------------------------------------------------------------------------------


def _recurrent_modules(patient: Patient, target: str, wanted: frozenset[str], sites: tuple[str, ...]) -> list[str]:
    """``nn.RNN`` and ``nn.RNNCell`` know tanh and ReLU only."""
    done: list[str] = []
    if target != "relu" or "tanh" not in wanted:
        return done
    for name, module in patient.modules(sites):
        if isinstance(module, nn.RNN) and module.mode == "RNN_TANH":
            module.mode, module.nonlinearity = "RNN_RELU", "relu"
        elif isinstance(module, nn.RNNCell) and module.nonlinearity == "tanh":
            module.nonlinearity = "relu"
        else:
            continue
        done.append(f"`{name}`: the nonlinearity of {type(module).__name__} is now relu")
    return done


def _lecun(patient: Patient, wiring: Wiring, chosen: list[_Use]) -> list[str]:
    before = [wiring.nodes[n] for use in chosen for n in wiring.weights_before(use.node)]
    done: list[str] = []
    for name in dict.fromkeys(node.owner for node in before if node.owner):
        layer = patient.model.get_submodule(name)
        weight, bias = layer.weight, getattr(layer, "bias", None)
        if not isinstance(weight, nn.Parameter):
            continue
        nn.init.kaiming_normal_(weight, nonlinearity="linear")
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
        done.append(f"`{name}`: weights drawn anew with variance 1 / fan_in (LeCun), biases zero")
    for name, turned in {node.matrix: node.turned for node in before if node.matrix}.items():
        mode = "fan_out" if turned else "fan_in"  # of x @ weight the rows are the inputs
        nn.init.kaiming_normal_(patient.model.get_parameter(name), mode=mode, nonlinearity="linear")
        done.append(f"`{name}`: drawn anew with variance 1 / {mode} (LeCun)")
    return done


# ---- words -------------------------------------------------------------------------------------------------------------


def _left(uses: Iterable[_Use]) -> list[str]:
    """One sentence for each reason why something stays."""
    reasons: dict[str, dict[str, None]] = {}
    for use in uses:
        if use.kept and use.asked and use.wanted:
            where = f" in {use.spot.where}" if use.spot is not None else ""
            what = f"{use.owner} ({use.name})" if use.owner else f"{use.name}{where}"
            reasons.setdefault(use.kept, {})[what] = None
    return [f"left as it is, being {reason}: {', '.join(what)}" for reason, what in reasons.items()]


def _nothing(uses: list[_Use], wanted: frozenset[str], patient: Patient) -> str:
    kinds = "saturating activation" if wanted <= SATURATING else "ReLU" if wanted <= RECTIFIERS else "activation"
    left = _left(uses)
    if left:
        return f"no {kinds} can be replaced; {'; '.join(left)}"
    if any(isinstance(module, (nn.RNNBase, nn.RNNCellBase)) for module in patient.model.modules()):
        return f"there is no {kinds} outside of the recurrent modules, whose own are left as they are"
    return f"there is no {kinds} between hidden layers"


_MODULE: Final = re.compile(r"`([^`]*)`: (\w+) is now nn\.")
_FUNCTION: Final = re.compile(r"`(.*)` in .* is now `(.*)`$")
_LECUN: Final = re.compile(r"`([^`]*)`: weights drawn anew")
_MATRIX: Final = re.compile(r"`([^`]*)`: drawn anew with variance 1 / (\w+)")
_RECURRENT: Final = re.compile(r"`([^`]*)`: the nonlinearity of (\w+) is now")
_ENCODER: Final = re.compile(r"`([^`]*)`: the activation of (\w+) is now")


def edit(settings: Settings, changes: tuple[str, ...]) -> Snippet:
    """New modules by name as lines, new functions as replacements in the source."""
    target = TARGETS[str(settings["to"])]
    lines: list[str] = []
    modules = _named(_MODULE, changes)
    if modules:
        lines += [f"for name in {modules}:", f"    {{model}}.set_submodule(name, {target.make})"]
    layers = _named(_LECUN, changes)
    if layers:
        lines += [
            f"for name in {layers}:",
            "    layer = {model}.get_submodule(name)",
            '    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")',
            "    if layer.bias is not None:",
            "        nn.init.zeros_(layer.bias)",
        ]
    for match in filter(None, map(_MATRIX.match, changes)):
        drawn = f'nn.init.kaiming_normal_({{model}}.get_parameter("{match[1]}"), mode="{match[2]}", nonlinearity="linear")'
        lines.append(drawn)
    for match in filter(None, map(_RECURRENT.match, changes)):
        lines.append(f'{{model}}.get_submodule("{match[1]}").nonlinearity = "relu"')
        if match[2] == "RNN":
            lines.append(f'{{model}}.get_submodule("{match[1]}").mode = "RNN_RELU"')
    for match in filter(None, map(_ENCODER.match, changes)):
        lines.append(f'{{model}}.get_submodule("{match[1]}").activation = {target.call}')
        if match[2] == "TransformerEncoderLayer":
            fast = {"relu": 1, "gelu": 2}.get(str(settings["to"]), 0)
            lines.append(f'{{model}}.get_submodule("{match[1]}").activation_relu_or_gelu = {fast}')
    pairs = {str(match[1]): str(match[2]) for match in filter(None, map(_FUNCTION.match, changes))}
    imports = ["from torch import nn"] if lines else []
    if any("torch." in new for new in [*pairs.values(), *lines]):
        imports.append("import torch")
    if any("F." in new for new in [*pairs.values(), *lines]):
        imports.append("import torch.nn.functional as F")
    anchor = Anchor.BEFORE_OPTIMIZER if lines else Anchor.IN_PLACE
    return Snippet(anchor, tuple(lines), tuple(imports), tuple(pairs.items()))


def _named(pattern: re.Pattern[str], changes: tuple[str, ...]) -> str:
    """Names in the sentences, as code for a tuple; empty if there are none."""
    names = [f'"{match[1]}"' for match in filter(None, map(pattern.match, changes))]
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})" if names else ""


REMEDY: Final = Remedy(
    name="activation",
    safety=Safety.CHANGES_MODEL,
    stage=Stage.ACTIVATION,
    options=(
        Option("to", "relu", "the activation that is put in", tuple(TARGETS)),
        Option("replace", "saturating", "which activations are replaced", ("saturating", "all", "relu")),
        Option("recurrent", False, "whether the tanh of recurrent nets is replaced too", (False, True)),
    ),
    plan=plan,
    apply=apply,
    edit=edit,
    text=__doc__ or "",
    needs_batch=True,
)
