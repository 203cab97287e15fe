"""One look: everything measured during one sampled step, until its rows are written."""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook

from gradiometer.probe import attention, graph, signals, through_time
from gradiometer.probe.kernel import Kernels, zeros_and_tiny
from gradiometer.probe.parameters import ParameterRows
from gradiometer.probe.recorder import Recorder
from gradiometer.probe.signals import NAN, ActivationKind, QuietUnits, Scalar
from gradiometer.probe.sites import MAX_SITES, Names, activation_of, first_tensor, is_site, role_of, unit_dimension
from gradiometer.record.frames import Flag, Group

LINK_LOOKS: Final = 8
"""Looks whose graph is searched for what is connected with what; later ones only when they bring new sites."""
MAX_CALLS: Final = 64
"""Calls of one module within one forward pass that get rows of their own (a cell unrolled in time, a shared ReLU)."""


@dataclass(slots=True)
class SiteRow:
    """What one output site gathered in this look; sums over forward passes of the step."""

    index: int
    order: int
    output: list[Scalar] | None = None
    gradient: list[Scalar] | None = None
    time: list[Scalar] | None = None
    graph: bool = False

    def add_output(self, values: list[Scalar]) -> None:
        """Add the statistics of one forward pass."""
        self.output = values if self.output is None else _merge(self.output, values, 6)

    def add_gradient(self, values: list[Scalar]) -> None:
        """Add the statistics of one backward pass."""
        self.gradient = values if self.gradient is None else _merge(self.gradient, values, None)


def _merge(old: list[Scalar], new: list[Scalar], smallest: int | None) -> list[Scalar]:
    """Add two rows column by column; the column ``smallest`` takes the minimum."""
    merged = [a + b for a, b in zip(old, new, strict=True)]
    if smallest is not None:
        pair = [torch.as_tensor(v, dtype=torch.float64) for v in (old[smallest], new[smallest])]
        value = torch.minimum(pair[0].to(pair[1].device), pair[1])
        merged[smallest] = float(value) if value.device.type == "cpu" else value
    return merged


class Covered(NamedTuple):
    """The output of a module with a row of its own, by the autograd node that made it."""

    label: str
    model: str
    site: int


class Memory:
    """What outlives a look: names, quiet units of each activation, sites that failed."""

    def __init__(self, names: Names, recorder: Recorder) -> None:
        self.names = names
        self.recorder = recorder
        self.quiet: dict[int, QuietUnits] = {}
        self.failures: dict[str, str] = {}
        self.current: Look | None = None
        self.covered: dict[int, Covered] = {}
        self.covered_before: dict[int, Covered] = {}
        self.links_read = 0
        self.linked: set[int] = set()
        self.ends: dict[int, bool] = {}
        self.time_looks: dict[int, int] = {}

    def new_look(self, look: Look | None) -> None:
        """A step begins, looked at or not. Graphs may outlive one look (a GAN's generator), so two looks' are kept."""
        self.current = look
        if look is not None:
            self.covered_before, self.covered = self.covered, {}


@dataclass(slots=True)
class Look:
    """Everything measured during one sampled step.

    Module hooks call `enter` and `leave`; the wrapped backward calls `read_graph`; the step hooks call the methods of
    ``parameters``; `write_outputs` packs the rows.
    """

    step: int
    memory: Memory
    loss_scale: float = 1.0
    hook_seconds: float = 0.0
    hook_calls: int = 0
    has_gradient: bool = False
    evaluations: int = 0
    muted: bool = False
    rows: dict[int, SiteRow] = field(default_factory=dict[int, SiteRow])
    parameters: ParameterRows = field(init=False)
    leaves: list[Tensor] = field(default_factory=list[Tensor])
    _stack: list[nn.Module] = field(default_factory=list[nn.Module])
    _calls: dict[int, int] = field(default_factory=dict[int, int])
    _opened: int = 0
    _opaque: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    channels_first: bool = False
    _functional: dict[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])
    _clock: int = 0
    _kernels: Kernels = field(default_factory=Kernels)
    _attending: list[tuple[int, int, str, str]] = field(default_factory=list[tuple[int, int, str, str]])
    _attention: dict[int, list[Scalar]] = field(default_factory=dict[int, list[Scalar]])

    def __post_init__(self) -> None:
        self.parameters = ParameterRows(self.memory.names, self.memory.recorder)

    # ---- forward -----------------------------------------------------------------------------------------------------

    def enter(self, module: nn.Module) -> None:
        """A module's forward begins."""
        if not self._stack:
            if not self.memory.names.knows(module):
                self.memory.names.adopt(module)
            self._calls.clear()
        self._stack.append(module)
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
            self._opened = torch._C._autograd._get_sequence_nr()

    def leave(self, module: nn.Module, output: Any, args: Any = ()) -> None:
        """A module's forward has ended with ``output``; it was called with ``args``."""
        while self._stack and self._stack.pop() is not module:
            pass  # an exception the user caught left inner modules on the stack
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            self._opaque.append((self._opened, torch._C._autograd._get_sequence_nr()))
        recomputing = torch._C._current_graph_task_id() != -1  # activation checkpointing runs the forward again
        with_grad = torch.is_grad_enabled()
        if not with_grad and not module.training:
            self.evaluations += 1
            return
        if isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)):  # pyright: ignore[reportPrivateUsage]
            self.channels_first = True
        elif isinstance(module, nn.Linear):
            self.channels_first = False
        if not is_site(module):
            return
        tensor = first_tensor(output)
        if tensor is None or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return
        if not self.memory.names.knows(module):
            self.memory.names.adopt_within(module, self._stack[0] if self._stack else module)
        model, name = self.memory.names.module(module)
        if isinstance(module, nn.MultiheadAttention):
            self._attending.append((self._opened, torch._C._autograd._get_sequence_nr(), model, name or type(module).__name__))
        if self._is_alias(tensor):
            return
        call = self._calls.get(id(module), 0)
        self._calls[id(module)] = call + 1
        if call >= MAX_CALLS or self.memory.recorder.site_count > MAX_SITES:
            return
        label = f"{name or type(module).__name__}{f' #{call + 1}' if call else ''}"
        unit = unit_dimension(tensor.shape, self.channels_first)
        kind = activation_of(module)
        index = self.memory.recorder.site(
            model,
            "output",
            label,
            kind=type(module).__name__,
            role=role_of(module),
            module=name,
            units=tensor.shape[unit],
            call=call,
            dtype=signals.format_of(tensor),
        )
        row = self.rows.get(index)
        if row is None:
            row = self.rows[index] = SiteRow(index, self._order_of(tensor))
        if not recomputing or row.output is None:
            self._measure_output(row, tensor, kind, unit, label)
            if with_grad and call == 0 and through_time.can_replay(module, args):
                self._measure_time(row, module, args, label)
        if with_grad and tensor.requires_grad and tensor.grad_fn is not None:
            row.graph = True
            self.memory.covered[tensor.grad_fn._sequence_nr()] = Covered(label, model, index)
            tensor.register_hook(self._gradient_hook(row, label))

    def _is_alias(self, tensor: Tensor) -> bool:
        """A container that returns its last child's output, a module that returns its input."""
        return tensor.grad_fn is not None and tensor.grad_fn._sequence_nr() in self.memory.covered

    def _order_of(self, tensor: Tensor) -> int:
        # without a graph (no_grad, frozen front) the order is that of the calls: just after what came before
        self._clock = max(self._clock, tensor.grad_fn._sequence_nr() if tensor.grad_fn is not None else self._clock)
        return self._clock

    def _measure_output(self, row: SiteRow, tensor: Tensor, kind: ActivationKind | None, unit: int, label: str) -> None:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            try:
                x = signals.plain(tensor)
                values = signals.output_statistics(x, kind, self.step)
                dead: Scalar = NAN
                examples: Scalar = NAN
                if kind is not None and kind.zero_is_dead:
                    quiet = self.memory.quiet.setdefault(row.index, QuietUnits())
                    dead, examples, _ = quiet.update(x, unit)
                row.add_output([*values, dead, examples])
            except (RuntimeError, TypeError, NotImplementedError) as error:
                self.memory.failures.setdefault(label, str(error).splitlines()[0])

    def _measure_time(self, row: SiteRow, module: Any, args: Any, label: str) -> None:
        looks = self.memory.time_looks.get(row.index, 0)
        if row.time is not None or not through_time.due(looks):
            self.memory.time_looks[row.index] = looks + (row.time is None)
            return
        self.memory.time_looks[row.index] = looks + 1
        device = args[0].device.type
        with torch.no_grad(), torch._C.DisableTorchFunction(), torch.autocast(device, enabled=False):
            try:
                row.time = through_time.replay(module, args)
            except (RuntimeError, TypeError, NotImplementedError, ValueError, IndexError) as error:
                self.memory.failures.setdefault(f"{label} (through time)", str(error).splitlines()[0])

    def _gradient_hook(self, row: SiteRow, label: str) -> Any:
        memory, index, order = self.memory, row.index, row.order

        def hook(gradient: Tensor) -> None:
            # a graph may outlive the step it was built in (a generator's output used by two losses): the gradient
            # belongs to the step in which it flows
            look = memory.current
            if look is not None and not look.muted:
                look.measure_gradient(look.rows.setdefault(index, SiteRow(index, order)), gradient, label)

        return unserializable_hook(hook)  # else torch warns of it when the user saves the tensor

    def measure_gradient(self, row: SiteRow, gradient: Tensor, label: str) -> None:
        """Add the gradient of an output. Called by autograd, possibly from another thread: never raises."""
        began = time.perf_counter()
        with torch.no_grad(), torch._C.DisableTorchFunction():
            try:
                g = signals.plain(gradient)
                network, is_end = self.memory.recorder.network_of(row.index), self.memory.ends.get(row.index, False)
                kernel = self._kernels.columns(row.index, network, g, is_end=is_end)
                row.add_gradient([*signals.gradient_statistics(g, self.loss_scale), *zeros_and_tiny(g), *kernel])
                self.has_gradient = True
            except Exception as error:  # noqa: BLE001
                self.memory.failures.setdefault(label, str(error).splitlines()[0] if str(error) else type(error).__name__)
        self.hook_seconds += time.perf_counter() - began

    # ---- backward ----------------------------------------------------------------------------------------------------

    def read_graph(self, roots: Sequence[Tensor]) -> list[Tensor]:
        """Find functional activations in the graph of the loss and hook their gradients; returns the leaves."""
        nodes, leaves = graph.walk(roots)
        self._kernels.clear()
        covered = {**self.memory.covered_before, **self.memory.covered}
        before = sorted(covered.items())
        counts: dict[str, int] = {}
        position, previous = 0, Covered("", "", -1)
        sites = {order: covered.site for order, covered in before}
        for found in graph.activations(nodes, set(covered)):
            if any(low <= found.order < high for low, high in self._opaque):
                continue  # the gates inside a recurrent layer are not the user's activations
            while position < len(before) and before[position][0] < found.order:
                previous = before[position][1]
                position += 1
            base = f"{previous.label} > {found.name}" if previous.label else found.name
            counts[base] = counts.get(base, 0) + 1
            label = base if counts[base] == 1 else f"{base} #{counts[base]}"
            if counts[base] <= MAX_CALLS and self.memory.recorder.site_count <= MAX_SITES:
                self._add_graph_site(found, label, previous.model, sites)
        # the way through the network seldom changes: a few looks tell it, and whatever is new later
        if self.memory.links_read < LINK_LOOKS or not self.memory.linked.issuperset(sites.values()):
            self.memory.links_read += 1
            self.memory.linked.update(sites.values())
            for group in graph.connected(nodes, sites):
                self.memory.recorder.link(group)
            self.memory.ends.update(graph.ends(nodes, sites))
        self._read_attention(nodes, before)
        return leaves

    def _read_attention(self, nodes: Sequence[Any], before: Sequence[tuple[int, Covered]]) -> None:
        counts: dict[str, int] = {}
        for found in attention.find(nodes):
            model, module, name = self._place_of(found, before)
            counts[name] = counts.get(name, 0) + 1
            label = name if counts[name] == 1 else f"{name} #{counts[name]}"
            if counts[name] > MAX_CALLS or self.memory.recorder.site_count > MAX_SITES:
                continue
            with torch.no_grad(), torch._C.DisableTorchFunction():
                try:
                    measured = attention.measure(found, self.step)
                except (RuntimeError, TypeError, NotImplementedError, ValueError, IndexError, AttributeError) as error:
                    self.memory.failures.setdefault(label, str(error).splitlines()[0])
                    continue
            if measured is None:
                continue
            row, keys, form = measured
            facts = {"kind": f"{found.name}()", "role": "attention", "module": module, "units": keys, "dtype": form}
            self._attention.setdefault(self.memory.recorder.site(model, "attention", label, **facts), row)

    def _place_of(self, found: attention.Found, before: Sequence[tuple[int, Covered]]) -> tuple[str, str, str]:
        """(model, module, name) of a place of attention: in a module of torch's, a softmax module, or after the site before."""
        for opened, closed, model, module in self._attending:
            if opened <= found.order < closed:
                return model, module, f"{module} > {found.name}"
        position = bisect.bisect_left(before, found.order, key=lambda item: item[0])
        if position < len(before) and before[position][0] == found.order:
            at = before[position][1]
            return at.model, at.label.split(" #")[0], at.label
        if not position:
            return "", "", found.name
        at = before[position - 1][1]
        return at.model, at.label.split(" #")[0], f"{at.label} > {found.name}"

    def _add_graph_site(self, found: graph.GraphNode, label: str, model: str, sites: dict[int, int]) -> None:
        activation = found.activation
        assert activation is not None
        with torch.no_grad(), torch._C.DisableTorchFunction():
            try:
                output = graph.saved_output(found.node, activation)
            except (RuntimeError, TypeError, NotImplementedError) as error:
                self.memory.failures.setdefault(label, str(error).splitlines()[0])
                return
        shape = output.shape if output is not None else torch.Size((1, 0))
        unit = unit_dimension(shape, False)
        role = "other" if activation.label == "exp" else "activation"
        index = self.memory.recorder.site(
            model,
            "output",
            label,
            kind=f"{activation.label}()",
            role=role,
            module="",
            units=shape[unit] if shape else 1,
            dtype=signals.format_of(output) if output is not None else "",
        )
        sites[found.order] = index
        self._functional[found.order] = (model, label)
        row = self.rows.get(index)
        if row is None:
            row = self.rows[index] = SiteRow(index, found.order)
        if output is not None and output.ndim:
            self._measure_output(row, output, activation.kind, unit, label)

        def prehook(gradients: tuple[Tensor | None, ...]) -> None:
            if gradients[0] is not None and self.memory.current is self and not self.muted:
                self.measure_gradient(row, gradients[0], label)

        found.node.register_prehook(prehook)

    def names_of_nodes(self) -> dict[int, tuple[str, str]]:
        """(model, name) of the sites met so far, by sequence number of their graph node."""
        modules = {order: (covered.model, covered.label) for order, covered in self.memory.covered.items()}
        return {**self._functional, **modules}

    def end_of_pass(self) -> None:
        """A backward pass has ended: the next forward counts its calls anew."""
        self._stack.clear()
        self._calls.clear()

    # ---- writing -----------------------------------------------------------------------------------------------------

    def write_outputs(self) -> None:
        """Queue the rows of output sites, in order of execution."""
        for row in sorted(self.rows.values(), key=lambda r: r.order):
            if row.output is not None:
                self.memory.recorder.row(
                    self.step, row.index, Group.OUTPUT, int(Flag.HAS_GRAPH) if row.graph else 0, row.output
                )
            if row.gradient is not None:
                self.memory.recorder.row(self.step, row.index, Group.GRADIENT, 0, row.gradient)
            if row.time is not None:
                self.memory.recorder.row(self.step, row.index, Group.TIME, 0, row.time)
        for index, values in self._attention.items():
            self.memory.recorder.row(self.step, index, Group.ATTENTION, 0, values)
        self.rows.clear()
        self._attention.clear()
