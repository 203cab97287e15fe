"""Residual: lead the signal past hidden layers, x + scale · f(x).

What it does:
    Finds the parts of a model that give what has the shape of what they get and that are the only way for their signal: a
    hidden layer with its normalisation and its activation, or a module of several layers. Each of them becomes
    x + scale · f(x). No parameter is added, renamed or changed. A module, or a Sequential around a part, is given a class
    of its own that adds; where a layer stands alone in the code (`x = F.relu(self.fc2(x))`) what its activation gives is
    caught at every forward pass. The layer that gets the data, the head, what lies beside a shortcut already, gates and
    recurrent nets stay as they are. `scale` = depth makes every branch 1 / sqrt(number of branches), which bounds the growth
    of signal and gradient over all of them by a factor of e.

When it helps:
    Vanishing gradients, input blindness and signals that collapse: the sum passes on what the layer would lose. Shattered
    gradients: with small branches the gradients of similar inputs stay similar, which no initialisation of a deep plain
    ReLU network achieves. Exploding gradients too, with `scale` = depth.

When it does not:
    Networks whose layers all change the shape have no such parts. With `scale` = 1 and a good initialisation the signal
    doubles at every layer (2^L: give `scale` = depth). A sigmoid in the branch adds its mean at every layer. Where a
    function is caught, a part that is computed again in the backward pass (activation checkpointing) is left as it is.

Cost:
    One addition per part. A part whose activation is a function costs about 2 microseconds for every call of torch besides.

References:
    He et al. 2016 (residual networks); Balduzzi et al. 2017 (shattered gradients); Hayou et al. 2021 (branches of
    1/sqrt(L)).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradiometer.remedies.base import Anchor, CannotTreatError, Option, Patient, Remedy, Settings, Snippet, Stage, Symptoms
from gradiometer.remedies.fronts import Front, put_in_front
from gradiometer.remedies.seen import hidden_layers, recurrent
from gradiometer.remedies.tape import ACTIVATIONS, NORMS, without_drawing
from gradiometer.remedies.wiring import DROPOUTS, Span, Spot, Unit, Wiring, fed, wire
from gradiometer.types import Safety, Treatment

FAINT: Final = ("vanishing-gradient", "shattered-gradient", "input-blindness", "signal-collapse")
LOUD: Final = ("exploding-gradient", "signal-explosion")


def plan(symptoms: Symptoms) -> tuple[Treatment, ...]:
    """Branches of 1/sqrt(L) first; whole ones where layers lose so much that they do not add up."""
    if hidden_layers(symptoms.trace) < 2 or recurrent(symptoms.trace):
        return ()
    small, whole = Treatment("residual", {"scale": "depth"}), Treatment("residual", {"scale": 1.0})
    if symptoms.has(*FAINT):
        return small, whole
    return (small,) if symptoms.has(*LOUD) else ()


# ---- parts that are modules --------------------------------------------------------------------------------------------


class Skip(Front):
    """In front of a module's class: adds what goes in to what comes out."""

    skip_scale: float

    def forward(self, x: Tensor) -> Any:
        """Give x + scale · f(x)."""
        return x + self.skip_scale * super().forward(x)  # pyright: ignore[reportAttributeAccessIssue]


class Skips(Front):
    """In front of a Sequential's class: adds past some of its modules in a row.

    Attributes:
        skip_ends: last place of each part, by its first.
        skip_scale: of every branch.
    """

    skip_ends: Mapping[int, int] = MappingProxyType({})
    skip_scale: float = 1.0

    def __getitem__(self, place: Any) -> Any:
        """A part of it has the skips that lie in that part."""
        part = super().__getitem__(place)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(part, Skips) and isinstance(place, slice):
            assert isinstance(self, nn.Sequential)
            kept = range(*place.indices(len(self)))
            if kept.step == 1:
                ends = {a - kept.start: b - kept.start for a, b in self.skip_ends.items() if a in kept and b in kept}
                part.skip_ends, part.skip_scale = ends, self.skip_scale
        return part

    def forward(self, x: Any) -> Any:
        """As a Sequential, with sums."""
        end, kept = -1, x
        assert isinstance(self, nn.Sequential)
        for place, module in enumerate(self):
            if place in self.skip_ends:
                end, kept = self.skip_ends[place], x
            x = module(x)
            if place == end:
                x = kept + self.skip_scale * x
        return x


# ---- parts whose activation is called in the code ----------------------------------------------------------------------


class _Sums:
    """What is added where, for parts that are not modules.

    Args:
        scale: of every branch.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.done = 0
        self.passes: list[_Adding] = []

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Sums:
        """A copy of the model (an average of its weights) calls the same."""
        return self


class _Adding(TorchFunctionMode):
    """Around one forward pass: adds to what an activation gives what went into the layers before it.

    Args:
        sums: which is told of the layers' calls.
    """

    def __init__(self, sums: _Sums) -> None:
        super().__init__()
        self._sums = sums
        self.open: list[tuple[Tensor, Tensor, int]] = []
        """For each part that has been entered: where its signal is now, what went in, activations to come."""

    def __enter__(self) -> _Adding:
        self._sums.passes.append(self)
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        self._sums.passes.remove(self)

    def take(self, signal: Any) -> tuple[Tensor, int] | None:
        """What belongs to a signal, which moves on."""
        for k, (now, kept, count) in enumerate(self.open):
            if now is signal:
                del self.open[k]
                return kept, count
        return None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = str(func.__name__).strip("_")
        moves = self.open and (op in ACTIVATIONS or op in NORMS or op in DROPOUTS)
        found = self.take(args[0] if args else kwargs.get("input")) if moves else None
        result = func(*args, **kwargs)
        if found is None:
            return result
        kept, count = found
        count -= op in ACTIVATIONS
        if count == 0:
            self._sums.done += 1
            return kept + self._sums.scale * result
        self.open.append((result, kept, count))
        return result


def _enters(sums: _Sums, count: int, _layer: nn.Module, args: Any, output: Any) -> None:
    """The first layer of a part, with ``count`` activations in it, or (0) a later one was called."""
    if not sums.passes or not args:
        return
    adding = sums.passes[-1]
    found: tuple[Tensor, int] | None = (args[0], count) if count else adding.take(args[0])
    if found is not None:
        adding.open.append((output, found[0], found[1]))


# ---- apply -------------------------------------------------------------------------------------------------------------


def apply(patient: Patient, settings: Settings, sites: tuple[str, ...]) -> list[str]:
    """Put the skips in; see the module's text.

    Raises:
        CannotTreatError: there is no part that keeps the shape.
    """
    wiring = wire(patient)
    spans = [span for span in wiring.spans(max(1, int(settings["blocks"]))) if _wanted(wiring, span, sites)]
    if not spans:
        raise CannotTreatError("no hidden layer or block keeps the shape of its input and has no shortcut yet")
    scale = round(len(spans) ** -0.5, 4) if settings["scale"] == "depth" else float(settings["scale"])
    blocks = [span for span in spans if span.block]
    rows = [span for span in spans if not span.block and span.parent is not None]
    loose = [span for span in spans if not span.block and span.parent is None]
    done: list[str] = []
    caught = _catch(patient, wiring, loose, scale) if loose else []
    if not caught and not blocks and not rows:
        raise CannotTreatError("what comes of the layers that keep the shape cannot be caught in this model")
    for span in blocks:
        module: Any = patient.model.get_submodule(span.block)
        put_in_front(Skip, module)
        module.skip_scale = scale
        done.append(f"`{span.block}`: x + {scale!r} * f(x) around it")
    for span in rows:
        assert span.parent is not None
        parent: Any = patient.model.get_submodule(span.parent)
        if not isinstance(parent, Skips):
            put_in_front(Skips, parent)
            parent.skip_scale = scale
        parent.skip_ends = {**parent.skip_ends, span.first: span.last}
        names = [f"{span.parent}.{k}".lstrip(".") for k in (span.first, span.last)]
        done.append(f"`{names[0]}` to `{names[1]}`: x + {scale!r} * f(x) around them")
    return done + caught


def _wanted(wiring: Wiring, span: Span, sites: tuple[str, ...]) -> bool:
    names = (*span.layers, span.block) if span.block else span.layers
    asked = not sites or any(fnmatchcase(name, site) for name in names for site in sites)
    once = not any(wiring.in_a_loop(u.node) or wiring.gates(u.node) for u in span.units)
    return asked and once and not (span.units == () and wiring.has_sum(span))


def _catch(patient: Patient, wiring: Wiring, spans: list[Span], scale: float) -> list[str]:
    """Add where activations are called; nothing, and no trace of it, if they cannot all be caught."""
    spans = [s for s in spans if s.units and not any(wiring.marks[u.node].recomputed for u in s.units)]
    if not spans:
        return []
    sums = _Sums(scale)
    handles: list[Any] = []
    for span in spans:
        for k, unit in enumerate(span.units):
            count = len(span.units) if k == 0 else 0
            handles.append(unit.layer.module.register_forward_hook(partial(_enters, sums, count)))
    make: Callable[[], Any] = partial(_Adding, sums)
    # before those of earlier remedies: what is entered first sees what the others have made of a call
    patient.on_forward.insert(0, make)
    with without_drawing():
        patient.run()
    if sums.done != len(spans):
        patient.on_forward.remove(make)
        for handle in handles:
            handle.remove()
        return []
    return _told(wiring, spans, scale)


def _told(wiring: Wiring, spans: list[Span], scale: float) -> list[str]:
    places: dict[tuple[Any, int], list[Span]] = {}
    rest: list[Span] = []
    for span in spans:
        spot = wiring.marks[span.node].spot
        if spot is None:
            rest.append(span)
        else:
            places.setdefault((spot.code, spot.instruction), []).append(span)
    done: list[str] = []
    for same in places.values():
        spot = wiring.marks[same[0].node].spot
        assert spot is not None
        here = sum(1 for i in wiring.activations if wiring.marks[i].spot == spot)
        words = _words(spot, same[0].units[0], scale) if here == len(same) and len(same[0].units) == 1 else None
        if words is None:
            rest += same
            continue
        times = "" if len(same) == 1 else f" ({len(same)} calls)"
        done.append(f"`{words[0]}` in {spot.where}{times} is now `{words[1]}`")
    for span in rest:
        spot = wiring.marks[span.node].spot
        where = f" in {spot.where}" if spot is not None else ""
        op = wiring.nodes[span.node].op
        done.append(f"`{span.layers[0]}`: what goes into it is added to {scale!r} * what {op} makes of it{where}")
    return done


def _words(spot: Spot, unit: Unit, scale: float) -> tuple[str, str] | None:
    """``F.relu(self.fc(x))``, and that with x added to it; None where they are not called in one expression."""
    x = fed(spot, unit.layer.name, unit.between)
    if not isinstance(x, (ast.Name, ast.Attribute, ast.Subscript)):
        return None  # or what goes in would be computed twice
    factor = "" if scale == 1 else f"{scale!r} * "
    return spot.text, f"({ast.unparse(x)} + {factor}{spot.text})"


# ---- the edit ----------------------------------------------------------------------------------------------------------

_BLOCK: Final = re.compile(r"`([^`]*)`: x \+ (.*) \* f\(x\) around it$")
_ROW: Final = re.compile(r"`([^`]*)` to `([^`]*)`: x \+ (.*) \* f\(x\) around them$")
_PAIR: Final = re.compile(r"`(.*)` in .* is now `(.*)`$")
_LOOSE: Final = re.compile(r"`([^`]*)`: what goes into it is added to (.*) what (\w+) makes of it(?: in )?(.*)$")

_CLASS: Final = (
    "class Residual(nn.Module):",
    "    def __init__(self, *body, scale):",
    "        super().__init__()",
    "        self.body, self.scale = nn.Sequential(*body), scale",
    "",
    "    def forward(self, x):",
    "        return x + self.scale * self.body(x)",
    "",
)


def edit(settings: Settings, changes: tuple[str, ...]) -> Snippet:
    """A module `Residual` around modules, and sums in the place of functional calls."""
    lines: list[str] = []
    blocks = [match.groups() for match in filter(None, map(_BLOCK.match, changes))]
    rows = [match.groups() for match in filter(None, map(_ROW.match, changes))]
    if blocks or rows:
        lines += _CLASS
    if blocks:
        names = ", ".join(f'"{name}"' for name, _ in blocks) + ("," if len(blocks) == 1 else "")
        lines += [
            f"for name in ({names}):",
            f"    {{model}}.set_submodule(name, Residual({{model}}.get_submodule(name), scale={blocks[0][1]}))",
        ]
    for parent in dict.fromkeys(first.rpartition(".")[0] for first, _, _ in rows):
        own = [(a.rpartition(".")[2], b.rpartition(".")[2]) for a, b, _ in rows if a.rpartition(".")[0] == parent]
        ends = ", ".join(f"({a}, {b})" for a, b in own) + ("," if len(own) == 1 else "")
        lines += [
            f'layers = {{model}}.get_submodule("{parent}")' if parent else "layers = {model}",
            f"for first, last in ({ends}):",
            f"    layers[first] = Residual(*layers[first : last + 1], scale={rows[0][2]})",
            "    for place in range(first + 1, last + 1):",
            "        layers[place] = nn.Identity()",
        ]
    for match in filter(None, map(_LOOSE.match, changes)):
        where = f"{match[4]}: " if match[4] else ""
        lines.append(f"# {where}add what goes into `{match[1]}` to {match[2]} what {match[3]} gives behind it")
    pairs = tuple((str(match[1]), str(match[2])) for match in filter(None, map(_PAIR.match, changes)))
    imports = ("from torch import nn",) if blocks or rows else ()
    return Snippet(Anchor.BEFORE_OPTIMIZER if lines else Anchor.IN_PLACE, tuple(lines), imports, pairs)


REMEDY: Final = Remedy(
    name="residual",
    safety=Safety.CHANGES_MODEL,
    stage=Stage.RESIDUAL,
    options=(
        Option("scale", 1.0, "factor of every branch; depth is 1 / sqrt(number of branches)", words=("depth",)),
        Option("blocks", 1.0, "how many hidden layers in a row one skip goes past"),
    ),
    plan=plan,
    apply=apply,
    edit=edit,
    text=__doc__ or "",
    needs_batch=True,
)
