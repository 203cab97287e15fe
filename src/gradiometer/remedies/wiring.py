"""Where in a model, and in the user's code, something is computed: what remedies need that cut and sew. No remedy.

A `Wiring` is a tape (see `tape`) that also keeps which module and which line of code made a call, what went into and came
out of every module, and what signals are multiplied with each other.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import torch
from torch import Tensor, nn

from gradiometer.remedies.base import WEIGHTED, CannotTreatError, Patient
from gradiometer.remedies.tape import ADDS, NORMS, PASSES, POOLS, PRODUCTS, SCALES, Tape, tensors, without_drawing

_TORCH: Final = str(Path(torch.__file__).parent)
_OURS: Final = str(Path(__file__).parent)
_CHECKPOINT: Final = str(Path("utils", "checkpoint.py"))

INSERTED: Final = "inserted_norm"
"""Name of a norm that a remedy has made a child of a layer."""

DROPOUTS: Final = frozenset(op for op in PASSES if "dropout" in op)
MATRIX: Final = frozenset(("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"))
_NO_SIGNAL: Final = ("_like", "new_", "rand", "bernoulli", "multinomial", "normal")
"""Parts of names of functions whose result has only shape and kind from what they are given."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A call in the user's code.

    Attributes:
        code: what is executed there.
        instruction: offset in it.
        line: number of the line.
    """

    code: CodeType
    instruction: int
    line: int

    @property
    def where(self) -> str:
        """``net.py, line 12``."""
        return f"{Path(self.code.co_filename).name}, line {self.line}"

    @property
    def text(self) -> str:
        """The call as it stands in the source, on one line; empty where the source cannot be read."""
        positions = list(self.code.co_positions())
        index = self.instruction // 2
        if index >= len(positions):
            return ""
        first, last, start, end = positions[index]
        if first is None or last is None or start is None or end is None:
            return ""
        lines = [linecache.getline(self.code.co_filename, n).encode() for n in range(first, last + 1)]
        if not all(lines):
            return ""
        lines[-1] = lines[-1][:end]
        lines[0] = lines[0][start:]
        text = " ".join(line.decode(errors="replace").strip() for line in lines)
        return text if isinstance(parsed(text), ast.Call) else ""


def fed(spot: Spot, layer: str, between: int) -> ast.expr | None:
    """What the code puts into a layer, where that and the activation behind it are called in one expression; None if not.

    Args:
        spot: where the activation is called.
        layer: name of the layer.
        between: how many operations there are between the two.
    """
    inner, calls = parsed(spot.text), list[ast.Call]()
    while isinstance(inner, ast.Call):
        calls.append(inner)
        if inner.args:
            inner = inner.args[0]
        elif isinstance(inner.func, ast.Attribute):
            inner = inner.func.value  # a method of a tensor
        else:
            return None
    own = [c for c in calls[1:] if isinstance(c.func, ast.Attribute) and c.func.attr == layer.rpartition(".")[2]]
    called = own[0] if own else calls[-1] if len(calls) == 2 + between else None
    return called.args[0] if called is not None and called.args else None


def parsed(text: str) -> ast.expr | None:
    """An expression as a tree; None if it is none."""
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Mark:
    """What a wiring knows of a node beside what the tape does.

    Attributes:
        module: qualified name of the innermost module that was being called; empty in the root.
        shape: of what it made.
        signal: whether it depends on the input of the model.
        learned: whether it depends on parameters.
        switches: nodes it works on that are masks: no parameters behind them, and one value besides zero at most.
        spot: of an activation, where in the model's code it is called; None if torch's own code does it.
        recomputed: of an activation, whether it is computed again in the backward pass (activation checkpointing), where
            nothing that is put around forward passes reaches it.
    """

    module: str = ""
    shape: tuple[int, ...] = ()
    signal: bool = False
    learned: bool = False
    switches: tuple[int, ...] = ()
    spot: Spot | None = None
    recomputed: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module.

    Attributes:
        name: qualified name of the module.
        module: the module.
        inputs: nodes of the tensors that went in.
        outputs: nodes of the tensors that came out.
        plain: whether one tensor went in and one came out, and nothing else.
        first: number of the first node made inside.
        end: number after the last one.
        serial: which call this is, in the order in which they began.
        inside: serial of the call around it, -1 for the model's own.
    """

    name: str
    module: nn.Module
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    plain: bool
    first: int
    end: int
    serial: int
    inside: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A hidden layer that is used once: weights, then normalisation or dropout if there is any, then an activation.

    Attributes:
        layer: the call of the layer with weights.
        node: of the activation.
        source: node that goes in.
        between: how many operations there are between the two.
        norms: names of the normalisation modules between them that are called once.
    """

    layer: Call
    node: int
    source: int
    between: int = 0
    norms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a model that could be taken out, or stepped over: it gives what has the shape of what it gets.

    Attributes:
        units: the hidden layers that it consists of, one after the other; empty if it is a module of another make.
        source: node that goes in.
        node: node that comes out.
        layers: names of the layers with weights in it.
        block: the module that is just this, and nothing else; empty if there is none.
        parent: if it is a number of modules in a row in a Sequential: name of that one; None if it is not.
        first: position of the first of them.
        last: position of the last of them.
    """

    units: tuple[Unit, ...]
    source: int
    node: int
    layers: tuple[str, ...]
    block: str = ""
    parent: str | None = None
    first: int = -1
    last: int = -1


class Wiring(Tape):
    """A tape with marks.

    Args:
        names: as for a tape.
        matrices: as for a tape.
        fixed: identities of parameters and buffers.
    """

    def __init__(self, names: dict[int, str], matrices: dict[int, str], fixed: dict[int, Tensor]) -> None:
        super().__init__(names, matrices)
        self.marks: list[Mark] = []
        self.calls: list[Call] = []
        self.results: tuple[int, ...] = ()
        self._fixed = fixed
        self._stack: list[str] = []
        self._entered: list[tuple[nn.Module, tuple[int, ...], bool, int, int]] = []
        self._begun = 0
        self._rows: dict[int, tuple[dict[tuple[int, ...], int], dict[tuple[int, ...], int]]] = {}

    # ---- while it is recorded ------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function and take note of it."""
        taken = tensors((args, kwargs or {}), 3)
        name = str(func.__name__)
        product = name in SCALES or name in PRODUCTS or name.rstrip("_") in SCALES
        switches = [t for t in taken if product and not isinstance(t, nn.Parameter) and _is_switch(t)]
        result = super().__torch_function__(func, types, args, kwargs)
        made = tensors(result, 3)
        if not made:
            self._pad(len(self.nodes))
            return result
        self._pad(len(self.nodes) - 1)
        node = self.nodes[-1]
        behind = [self.marks[i] for i in node.inputs]
        spot, again = _spot(inspect.currentframe()) if node.activation else (None, False)
        in_place = {id(t) for t in made}  # their number is that of the result by now
        numbers = [self._number(t) for t in switches if id(t) not in in_place]
        mark = Mark(
            self._stack[-1] if self._stack else "",
            tuple(made[0].shape),
            any(m.signal for m in behind) and not any(part in name for part in _NO_SIGNAL),
            any(m.learned for m in behind) or any(isinstance(t, nn.Parameter) for t in taken),
            tuple(i for i in numbers if i in node.inputs and not self.marks[i].learned),
            spot,
            again,
        )
        node.weighted |= node.op in PRODUCTS and mark.signal and any(m.learned and not m.signal for m in behind)
        self.marks.append(mark)
        return result

    def _pad(self, count: int) -> None:
        """Marks for tensors that came from outside."""
        while len(self.marks) < count:
            self.marks.append(Mark())

    def feed(self, value: Any) -> None:
        """Say that these tensors are the input of the model."""
        for tensor in tensors(value, 4):
            number = self._number(tensor)
            self._pad(number)
            if number == len(self.marks):
                self.marks.append(Mark(shape=tuple(tensor.shape), signal=True))

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A module is about to be called."""
        taken = tensors((args, kwargs), 3)
        numbers = tuple(self._number(t) for t in taken if id(t) not in self._fixed)
        self._pad(len(self.nodes))
        plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        self._stack.append(name)
        self._entered.append((module, numbers, plain, len(self.nodes), self._begun))
        self._begun += 1

    def leave(self, output: Any) -> None:
        """It has been called."""
        name = self._stack.pop()
        module, inputs, plain, first, serial = self._entered.pop()
        inside = self._entered[-1][-1] if self._entered else -1
        made = tuple(self._number(t) for t in tensors(output, 3))
        self._pad(len(self.nodes))
        plain = plain and isinstance(output, Tensor)
        self.calls.append(Call(name, module, inputs, made, plain, first, len(self.nodes), serial, inside))
        if made and type(module).__module__.startswith("torch.nn."):
            self.label(output, name, weighted=isinstance(module, WEIGHTED))

    def finish(self, output: Any) -> None:
        """This is what the model returned."""
        self.results = tuple(self._number(t) for t in tensors(output, 4))
        self._pad(len(self.nodes))

    # ---- what is asked of it --------------------------------------------------------------------------------------------

    @property
    def activations(self) -> Iterator[int]:
        """Numbers of the activations, in order of execution."""
        return (i for i, node in enumerate(self.nodes) if node.activation)

    @cached_property
    def _fed(self) -> int:
        """Bits of the nodes that weights depend on."""
        fed = 0
        for node in self.nodes:
            if node.weighted:
                fed |= node.above
        return fed

    @cached_property
    def _sums(self) -> list[int]:
        """Sums of two signals."""
        return [n for n, node in enumerate(self.nodes) if node.op in ADDS and len(node.inputs) > 1]

    @cached_property
    def _uses(self) -> dict[str, list[int]]:
        """Nodes that multiply by the weights of a module."""
        uses: dict[str, list[int]] = {}
        for n, node in enumerate(self.nodes):
            if node.weighted and (node.owner or node.matrix):
                uses.setdefault(node.owner or node.matrix, []).append(n)
        return uses

    @cached_property
    def _makers(self) -> dict[int, Call]:
        """Modules without modules inside that made a node themselves."""
        makers: dict[int, Call] = {}
        for call in self.calls:
            for n in call.outputs:
                if call.first <= n < call.end and not list(call.module.children()):
                    makers.setdefault(n, call)
        return makers

    def maker(self, i: int) -> Call | None:
        """The call of the module without modules inside that made a node, if one did."""
        return self._makers.get(i)

    def source(self, i: int) -> int:
        """Where a signal comes from, past what only moves, scales, drops or pools it."""
        return self.back(i, lambda node: node.passes or node.op in POOLS)

    def feeds_weights(self, i: int) -> bool:
        """Whether anything that comes of it is multiplied by parameters."""
        return bool(self._fed >> i & 1)

    def gates(self, i: int) -> bool:
        """Whether an activation is multiplied with another signal, so that one of the two opens and shuts the other.

        A product with a mask, with parameters or numbers, or with something that was made from the activation itself is
        none; nor is the product of an adjacency matrix that comes with the data.
        """
        queue, seen = list(self.nodes[i].users), set[int]()
        from_it = {i}
        while queue:
            n = queue.pop()
            if n in seen:
                continue
            seen.add(n)
            node, mark = self.nodes[n], self.marks[n]
            others = [k for k in node.inputs if k not in from_it and not self.nodes[k].above >> i & 1]
            if node.op in SCALES or node.op in MATRIX:
                divides = "div" in node.op and node.inputs[0] not in from_it
                for k in others:
                    other = self.marks[k]
                    constant = self.nodes[k].op == "input" and not other.signal
                    free = other.learned and other.signal if node.op in MATRIX else not (constant or k in mark.switches)
                    if free and ("div" not in node.op or divides):
                        return True
                if node.op in MATRIX:
                    continue
            elif not (node.passes or node.activation or (node.op in ADDS and not any(self.marks[k].signal for k in others))):
                continue
            from_it.add(n)
            queue.extend(node.users)
        return False

    def in_a_loop(self, i: int) -> bool:
        """Whether the weights right before it are applied again to what came of them: the step of a recurrent net."""
        for n in self.weights_before(i):
            others = (k for k in self._uses.get(self.nodes[n].owner or self.nodes[n].matrix, []) if k != n)
            if any(self.nodes[k].above >> n & 1 or self.nodes[n].above >> k & 1 for k in others):
                return True
        return False

    def weights_before(self, i: int) -> list[int]:
        """Numbers of the nodes whose weights come right before a node, with nothing but sums and norms between."""
        found, queue, seen = list[int](), list(self.nodes[i].inputs), set[int]()
        while queue:
            n = queue.pop()
            if n in seen:
                continue
            seen.add(n)
            if self.nodes[n].weighted:
                found.append(n)
            elif not self.nodes[n].activation:
                queue.extend(self.nodes[n].inputs)
        return sorted(found)

    def layers_before(self, i: int) -> list[str]:
        """Names of the modules whose weights come right before a node, with nothing but sums and norms between."""
        return list(dict.fromkeys(o for n in self.weights_before(i) if (o := self.nodes[n].owner)))

    # ---- parts that keep the shape ---------------------------------------------------------------------------------------

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each module is called."""
        counts: dict[str, int] = {}
        for call in self.calls:
            counts[call.name] = counts.get(call.name, 0) + 1
        return counts

    def units(self) -> list[Unit]:
        """Hidden layers that a signal passes once, one tensor in and one out, in order of execution."""
        found = (self._unit(c) for c in self.calls if isinstance(c.module, WEIGHTED) and self.counts[c.name] == 1 and c.plain)
        return sorted((u for u in found if u is not None and self.feeds_weights(u.node)), key=lambda u: u.node)

    def _unit(self, layer: Call) -> Unit | None:
        n, norms, between = layer.outputs[0], list[str](), 0
        while True:
            users = self.nodes[n].users
            if len(users) != 1 or n in self.results:
                return None
            n = users[0]
            node = self.nodes[n]
            if node.activation:
                return Unit(layer, n, layer.inputs[0], between, tuple(norms))
            if node.op not in NORMS and node.op not in DROPOUTS:
                return None
            maker = self.maker(n)
            between += maker is None or maker.name != f"{layer.name}.{INSERTED}"
            if maker is not None and node.op in NORMS and self.counts[maker.name] == 1:
                norms.append(maker.name)

    def spans(self, length: int = 1) -> list[Span]:
        """Parts that keep the shape, between other layers, past which no other way leads; in order of execution.

        Args:
            length: how many hidden layers in a row make a part.
        """
        found: list[Span] = []
        units = {unit.source: unit for unit in self.units()}
        taken = 0  # bits of the nodes in parts that were found
        for start in sorted(units.values(), key=lambda u: u.node):
            row = [start]
            while len(row) < length and (after := units.get(row[-1].node)) is not None:
                row.append(after)
            span = Span(tuple(row), start.source, row[-1].node, tuple(u.layer.name for u in row))
            if len(row) == length and not taken >> start.layer.outputs[0] & 1 and self._steps_over(span):
                found.append(self._seated(span))
                for unit in row:
                    taken |= 1 << unit.layer.outputs[0] | 1 << unit.node
        alone = {u.layer.name for u in units.values() if self.marks[u.source].shape == self.marks[u.node].shape}
        for call in sorted(self.calls, key=lambda c: -c.serial):  # inner ones first
            span = self._block(call)
            inside = (1 << call.end) - (1 << call.first)
            if span is not None and set(span.layers) <= alone:
                continue  # a row that was too short
            if span is not None and not taken & inside and self._steps_over(span):
                found.append(span)
                taken |= inside
        return sorted(found, key=lambda s: s.node)

    def _block(self, call: Call) -> Span | None:
        """A module of modules with weights that is called once."""
        if not call.plain or not call.name or self.counts[call.name] > 1 or isinstance(call.module, WEIGHTED):
            return None
        inner = (n for n, m in call.module.named_modules() if n and isinstance(m, WEIGHTED))
        layers = tuple(f"{call.name}.{n}" for n in inner if f"{call.name}.{n}" in self.counts)
        return Span((), call.inputs[0], call.outputs[0], layers, block=call.name) if layers else None

    def _steps_over(self, span: Span) -> bool:
        """Whether a part keeps the shape, lies between layers with weights, and is the only way for its signal."""
        source, node = self.marks[span.source], self.marks[span.node]
        if source.shape != node.shape or not source.learned or not self.feeds_weights(span.node):
            return False
        return not self._bypassed(span)

    def _bypassed(self, span: Span) -> bool:
        """Whether the signal also gets past a part on another way, and meets it again in a sum."""
        before = self.nodes[span.source].above | 1 << span.source
        for n in self._sums:
            through = [k for k in self.nodes[n].inputs if k == span.node or self.nodes[k].above >> span.node & 1]
            past = [k for k in self.nodes[n].inputs if k not in through and self.marks[k].signal]
            if through and any((self.nodes[k].above | 1 << k) & before for k in past):
                return True
        return False

    def has_sum(self, span: Span) -> bool:
        """Whether two signals that come of what goes in are added up inside of a part."""
        return any(span.source < n <= span.node and self.nodes[n].above >> span.source & 1 for n in self._sums)

    def _seated(self, span: Span) -> Span:
        """The same with the place in the model where it can be got at."""
        around = list(self._around(span.units[0].layer))
        for call in around:
            just = call.plain and call.inputs == (span.source,) and call.outputs == (span.node,)
            if just and call.name and self.counts[call.name] == 1:
                return replace(span, block=call.name)
        for call in around:
            if isinstance(call.module, nn.Sequential) and self.counts[call.name] == 1:
                starts, ends = self._row(call)
                first, last = starts.get((span.source,), -1), ends.get((span.node,), -1)
                if 0 <= first <= last:
                    return replace(span, parent=call.name, first=first, last=last)
        return span

    def _around(self, call: Call) -> Iterator[Call]:
        """The calls that a call is made from, the innermost first."""
        while call.inside >= 0:
            call = self._serials[call.inside]
            yield call

    @cached_property
    def _serials(self) -> dict[int, Call]:
        return {call.serial: call for call in self.calls}

    def _row(self, parent: Call) -> tuple[dict[tuple[int, ...], int], dict[tuple[int, ...], int]]:
        """Places of a Sequential by what goes in and by what comes out; none if it has its own way of calling its modules."""
        known = self._rows.get(parent.serial)
        if known is None:
            known = self._rows[parent.serial] = self._read_row(parent)
        return known

    def _read_row(self, parent: Call) -> tuple[dict[tuple[int, ...], int], dict[tuple[int, ...], int]]:
        if type(parent.module).forward is not nn.Sequential.forward:
            return {}, {}
        rows: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        for call in self._children.get(parent.serial, []):
            owner, _, leaf = call.name.rpartition(".")
            if leaf == INSERTED and rows and rows[-1][0] == owner:  # behind its layer
                rows[-1] = (owner, rows[-1][1], call.outputs)
            elif rows and rows[-1][0] == f"{call.name}.{INSERTED}":  # in front of it
                rows[-1] = (call.name, rows[-1][1], call.outputs)
            else:
                rows.append((call.name, call.inputs, call.outputs))
        if len(rows) != _length(parent.module):
            return {}, {}
        starts = {taken: k for k, (_, taken, _) in reversed(list(enumerate(rows)))}
        return starts, {made: k for k, (_, _, made) in enumerate(rows)}

    @cached_property
    def _children(self) -> dict[int, list[Call]]:
        children: dict[int, list[Call]] = {}
        for call in sorted(self.calls, key=lambda c: c.serial):
            children.setdefault(call.inside, []).append(call)
        return children


def _length(module: nn.Module) -> int:
    return len(module) if isinstance(module, nn.Sequential) else -1


def _is_switch(tensor: Tensor) -> bool:
    """Whether it is a mask, or a single number."""
    if tensor.numel() <= 1 or not tensor.is_floating_point():
        return True
    other = tensor.detach()[tensor.detach() != 0]
    return other.numel() == 0 or bool(other.max() == other.min())


def _spot(frame: FrameType | None) -> tuple[Spot | None, bool]:
    """Where in the model's code a call comes from, and whether activation checkpointing is on the way."""
    spot, again = None, False
    while frame is not None and frame.f_code is not Patient.run.__code__:
        name = frame.f_code.co_filename
        again |= name.endswith(_CHECKPOINT)
        if spot is None and not name.startswith((_TORCH, _OURS)):
            spot = Spot(frame.f_code, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return spot, again


def user_spot() -> tuple[CodeType, int] | None:
    """The call in the user's code that is being executed: nearest frame that is neither torch's nor a remedy's."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, _OURS)):
        frame = frame.f_back
    return (frame.f_code, frame.f_lasti) if frame is not None else None


def wire(patient: Patient) -> Wiring:
    """The wiring of a model on its first batch.

    Raises:
        CannotTreatError: no batch is known, or the model fails on it.
    """
    model = patient.model
    named = list(model.named_modules())
    fixed = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    names = {id(m.weight): n for n, m in named if isinstance(m, WEIGHTED)}
    matrices = {id(p): n for n, p in model.named_parameters() if p.ndim == 2 and id(p) not in names}
    wiring = Wiring(names, matrices, fixed)
    if patient.inputs is None:
        raise CannotTreatError("the first batch is not known before the first forward pass")
    wiring.feed(patient.inputs)
    handles: list[Any] = []
    for name, module in named:
        handles.append(module.register_forward_pre_hook(_enters(wiring, name), with_kwargs=True))
        handles.append(module.register_forward_hook(_leaves(wiring), prepend=True))
    try:
        with warnings.catch_warnings(), without_drawing(), wiring:
            warnings.simplefilter("ignore")  # of this pass; the user's own passes warn as ever
            output = patient.run()
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as problem:
        raise CannotTreatError(f"the model could not be read on its first batch: {problem}") from problem
    finally:
        for handle in handles:
            handle.remove()
    wiring.finish(output)
    return wiring


def _enters(wiring: Wiring, name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        wiring.enter(name, module, args, kwargs)

    return hook


def _leaves(wiring: Wiring) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        wiring.leave(output)

    return hook
