"""Draws the blueprint of a network (`gradiometer.record.blueprint`) from the autograd graph of its loss.

The graph knows what was really computed: functional activations, skip connections, masks of dropout, weights that no
module holds. Its nodes saved what they need for the backward pass, among it weights and inputs. Nothing is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from gradiometer.probe import graph, signals
from gradiometer.probe.sites import unit_dimension
from gradiometer.probe.spread import alignment, likeness, mean_square, spread_of
from gradiometer.probe.weights import leaf_behind, matrix_numbers, saved_tensor, scaling, scaling_by, shape_of
from gradiometer.record.blueprint import NAN, Flow, Node, Op, Spread

_PASS: Final = frozenset(
    (
        *("View", "UnsafeView", "ReshapeAlias", "Reshape", "Squeeze", "Unsqueeze"),
        *("T", "Transpose", "Permute", "Alias", "Clone", "ToCopy"),
    )
)
_LINEAR: Final = frozenset(("Addmm", "Mm", "Convolution", "ConvolutionOverrideable", "Linear"))
_BATCH_NORM: Final = frozenset(("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "BatchNormWithUpdate"))


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A module that is one operation although the graph has several nodes for it.

    Attributes:
        source: graph node of its input; None for data.
        op: what it does.
        kind: its class.
        function: for an activation, its name, or ``sampled``.
        samples: for a ``sampled`` activation.
        numbers: what theory needs.
    """

    source: Any
    op: Op
    kind: str
    function: str = ""
    samples: tuple[float, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(slots=True)
class Sketch:
    """A node that is being drawn."""

    op: Op
    kind: str
    inputs: list[int]
    channels_first: bool
    shape: tuple[int, ...]
    names: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    numbers: dict[str, float] = field(default_factory=dict[str, float])
    function: str = ""
    samples: tuple[float, ...] = ()
    output: Spread | None = None
    gradient: Flow | None = None
    gains: list[float] = field(default_factory=list[float])
    slots: list[int] = field(default_factory=list[int])
    node: Any = None
    last: Tensor | None = None

    @property
    def unit(self) -> int:
        """Dimension that counts units."""
        return unit_dimension(torch.Size(self.shape), self.channels_first) if self.shape else 0


class Weights:
    """What parameters alone feed: a weight, its transpose, a normalised weight."""

    def __init__(self, leaf: Tensor | None) -> None:
        self.leaf = leaf


_WEIGHTS: Final = Weights(None)
Value = int | Weights | None


class Draft:
    """A blueprint while it is being drawn: before the backward pass `draw`, after it `finish`.

    Args:
        names: (model, name) of module outputs and functional activations, by sequence number of their graph node.
        shortcuts: modules to be taken as one operation, by sequence number of their output's node.
        outputs: measured outputs of modules, likewise.
        scale: loss scale in the gradients.
        last: the last few outputs of modules themselves, likewise.
    """

    def __init__(
        self,
        names: Mapping[int, tuple[str, str]],
        shortcuts: Mapping[int, Shortcut],
        outputs: Mapping[int, Spread],
        scale: float = 1.0,
        last: Mapping[int, Tensor] | None = None,
    ) -> None:
        self._names = names
        self._shortcuts = shortcuts
        self._outputs = outputs
        self._scale = scale
        self._last = dict(last or {})
        self._sketches: list[Sketch] = []
        self._values: dict[Any, Value] = {}
        self._handles: list[Any] = []
        self.notes: list[str] = []

    # ---- before the backward pass ----------------------------------------------------------------------------------

    def draw(self, roots: Sequence[Tensor]) -> None:
        """Read the graph of the loss and hook its nodes."""
        nodes, _ = graph.walk(roots)
        if len(nodes) >= graph.MAX_NODES:
            self.notes.append(f"The network has more than {graph.MAX_NODES:,} operations; only the last of them were read.")
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for node in sorted(nodes, key=lambda n: n._sequence_nr()):
                self._values[node] = value = self._visit(node)
                if isinstance(value, int):
                    self._label(node, self._sketches[value])
        for sketch in self._sketches:
            if sketch.node is not None:
                self._handles.append(sketch.node.register_hook(self._measure(sketch)))

    def _label(self, node: Any, sketch: Sketch) -> None:
        order = node._sequence_nr()
        name = self._names.get(order)
        if name is not None and name not in sketch.names:
            sketch.names.append(name)
        if order in self._last and sketch.last is None:
            sketch.last = self._last[order]
        output = self._outputs.get(order)
        if output is not None and sketch.output is None:
            sketch.output = output

    def _visit(self, node: Any) -> Value:
        shortcut = self._shortcuts.get(node._sequence_nr())
        if shortcut is not None:
            return self._take(shortcut, node)
        kind = node.name().removesuffix("0").removesuffix("1").removesuffix("2").removesuffix("Backward")
        feeds = [self._value(function) for function, _ in node.next_functions]
        if kind in _PASS:
            value = feeds[0]
            if isinstance(value, int):
                sketch = self._sketches[value]
                shape = shape_of(node)
                if kind in ("Transpose", "Permute", "View", "UnsafeView") and shape is not None and len(shape) == 3:
                    sketch.channels_first = sketch.channels_first and kind in ("View", "UnsafeView")
            return value
        if kind in _LINEAR:
            return self._linear(node, kind, feeds)
        if kind in _BATCH_NORM or kind in ("NativeLayerNorm", "NativeGroupNorm"):
            return self._norm(node, kind, feeds)
        if all(f is None or isinstance(f, Weights) for f in feeds) and any(feeds) and kind != "Embedding":
            return _WEIGHTS
        if kind in ("Add", "Sub"):
            return self._add(node, kind, feeds)
        if kind in ("Mul", "Div"):
            return self._scale_by(node, kind, feeds)
        if kind == "Neg":
            return self._new(node, Op.SCALE, "neg", [self._data(feeds[0], None)], numbers=scaling(1.0, 1.0, -1.0))
        described = _activation(node, kind)
        if described is not None and not isinstance(feeds[0], Weights):
            function, numbers = described
            source = self._data(feeds[0], saved_tensor(node, "self"))
            made = self._new(node, Op.ACTIVATION, function, [source], numbers=numbers)
            self._sketches[made].function = function
            return made
        return self._unknown(node, feeds)

    def _value(self, function: Any) -> Value:
        if function is None:
            return None
        if function.name() == "torch::autograd::AccumulateGrad":
            return Weights(function.variable)
        return self._values.get(function)

    def _new(self, node: Any, op: Op, kind: str, inputs: Sequence[int], *, numbers: Mapping[str, float] | None = None) -> int:
        shape = shape_of(node) or ()
        first = self._sketches[inputs[0]].channels_first if inputs else False
        sketch = Sketch(op, kind, list(inputs), first or len(shape) >= 4, shape, numbers=dict(numbers or {}), node=node)
        sketch.slots = list(range(len(inputs)))
        self._sketches.append(sketch)
        return len(self._sketches) - 1

    def _data(self, value: Value, saved: Tensor | None) -> int:
        """Index of the operation a signal comes from; data and parameters that enter the graph here get one."""
        if isinstance(value, int):
            sketch = self._sketches[value]
            if sketch.output is None and saved is not None:  # what takes it in has kept it
                sketch.output = spread_of(saved, self._unit(saved, sketch.channels_first))
            return value
        tensor = value.leaf if isinstance(value, Weights) and value.leaf is not None else saved
        entry = Sketch(Op.ENTRY, "data" if value is None else "parameter", [], False, ())
        if tensor is not None:
            tensor = signals.plain(tensor)
            entry.shape = tuple(tensor.shape)
            if value is None:
                entry.output = spread_of(tensor, self._unit(tensor, False))
            else:  # the same for every example
                square, mean = mean_square(tensor), float(tensor.double().mean()) if tensor.numel() else 0.0
                entry.output = Spread(square, mean, 0.0, 0.0)
        self._sketches.append(entry)
        return len(self._sketches) - 1

    def _unit(self, tensor: Tensor, channels_first: bool) -> int:
        return unit_dimension(tensor.shape, channels_first)

    def _take(self, shortcut: Shortcut, node: Any) -> int:
        source = shortcut.source
        feed = None if source is None else self._values.get(source)
        made = self._new(node, shortcut.op, shortcut.kind, [self._data(feed, None)], numbers=shortcut.numbers)
        sketch = self._sketches[made]
        sketch.function, sketch.samples = shortcut.function, shortcut.samples
        sketch.slots = []  # its inputs are not those of the graph node: nothing to be measured there
        return made

    def _linear(self, node: Any, kind: str, feeds: list[Value]) -> Value:
        if kind in ("Convolution", "ConvolutionOverrideable", "Linear"):
            data, weight, bias = 0, 1, 2
            saved, matrix = saved_tensor(node, "input"), saved_tensor(node, "weight")
        else:
            offset = 1 if kind == "Addmm" else 0
            data, weight, bias = offset, offset + 1, 0 if kind == "Addmm" else None
            names = ("mat1", "mat2") if kind == "Addmm" else ("self", "mat2")
            saved, matrix = saved_tensor(node, names[0]), saved_tensor(node, names[1])
            if isinstance(feeds[data], Weights) and not isinstance(feeds[weight], Weights):  # W @ x
                data, weight, saved, matrix = weight, data, matrix, saved
        feed = feeds[weight]
        if isinstance(feed, int) or (
            isinstance(feeds[data], Weights) and isinstance(feed, Weights) and kind == "Mm" and saved is None
        ):
            return self._unknown(node, feeds)  # a product of two signals, such as queries and keys
        if matrix is None and isinstance(feed, Weights):
            matrix = leaf_behind(node.next_functions[weight][0])
        if matrix is None:
            return self._unknown(node, feeds)
        matrix = signals.plain(matrix)
        source = self._data(feeds[data], saved)
        numbers = matrix_numbers(node, kind, matrix, shape_of(node), right=weight > data)
        if numbers is None:
            return self._unknown(node, feeds)
        given = feeds[bias] if bias is not None and bias < len(feeds) else None
        if isinstance(given, Weights) and given.leaf is not None and numbers:
            vector = signals.plain(given.leaf)
            numbers["bias_square"], numbers["bias_mean"] = mean_square(vector), float(vector.double().mean())
        elif isinstance(given, int):
            return self._unknown(node, feeds)
        made = self._new(node, Op.LINEAR, "convolution" if kind.startswith("Conv") else "linear", [source], numbers=numbers)
        sketch = self._sketches[made]
        sketch.slots = [data]
        sketch.channels_first = kind.startswith("Conv")
        return made

    def _norm(self, node: Any, kind: str, feeds: list[Value]) -> Value:
        saved = saved_tensor(node, "input")
        source = self._data(feeds[0], saved)
        numbers = {"eps": float(getattr(node, "_saved_eps", 1e-5))}
        for key, feed, name in (("gamma", feeds[1], "weight"), ("beta", feeds[2], "bias")):
            leaf = feed.leaf if isinstance(feed, Weights) else None
            tensor = leaf if leaf is not None else saved_tensor(node, name)
            if tensor is not None:
                tensor = signals.plain(tensor)
                numbers[f"{key}_square"], numbers[f"{key}_mean"] = mean_square(tensor), float(tensor.double().mean())
        shape = shape_of(node) or ()
        if kind in _BATCH_NORM:
            op = Op.BATCH_NORM
            training = getattr(node, "_saved_training", True)
            variance = saved_tensor(node, "running_var")
            if not training and variance is not None:
                numbers["running_inverse"] = float((1.0 / (signals.plain(variance).double() + numbers["eps"])).mean())
                mean = saved_tensor(node, "running_mean")
                numbers["running_mean_square"] = mean_square(signals.plain(mean)) if mean is not None else 0.0
        else:
            op = Op.LAYER_NORM
            batch = shape[0] if shape else 1
            groups = int(getattr(node, "_saved_group", 1))
            whole = 1
            for extent in (
                shape[1:] if kind == "NativeGroupNorm" else tuple(getattr(node, "_saved_normalized_shape", shape[-1:]))
            ):
                whole *= int(extent)
            numbers["size"] = max(whole / groups, 1.0)
            numbers["batch"] = float(batch)
        made = self._new(node, op, op.value, [source], numbers=numbers)
        self._sketches[made].slots = [0]
        self._sketches[made].channels_first = kind in _BATCH_NORM or kind == "NativeGroupNorm"
        return made

    def _add(self, node: Any, kind: str, feeds: list[Value]) -> Value:
        if len(feeds) != 2:
            return self._unknown(node, feeds)  # a number is added, and the graph does not say which
        shape = shape_of(node)
        signs = (1.0, float(getattr(node, "_saved_alpha", 1.0)) * (-1.0 if kind == "Sub" else 1.0))
        inputs: list[int] = []
        numbers: dict[str, float] = {}
        slots: list[int] = []
        for slot, (feed, sign) in enumerate(zip(feeds, signs, strict=True)):
            if isinstance(feed, Weights) and feed.leaf is None:
                return self._unknown(node, feeds)
            index = self._data(feed, None)
            function = node.next_functions[slot][0]
            if isinstance(feed, int) and shape is not None and shape_of(function) not in (None, shape):
                return self._unknown(node, feeds)  # broadcast: the gradient is summed
            numbers[f"factor{len(inputs)}"] = sign
            inputs.append(index)
            slots.append(slot)
        made = self._new(node, Op.ADD, "add", inputs, numbers=numbers)
        self._sketches[made].slots = slots
        return made

    def _scale_by(self, node: Any, kind: str, feeds: list[Value]) -> Value:
        data = [i for i, f in enumerate(feeds) if isinstance(f, int)]
        if len(data) != 1 or (kind == "Div" and data != [0]):
            return self._unknown(node, feeds)
        slot = data[0]
        other = feeds[1 - slot] if len(feeds) > 1 else None
        factor = saved_tensor(node, "other" if slot == 0 else "self")
        number = getattr(node, "_saved_other", None)
        if factor is None and isinstance(other, Weights):
            factor = other.leaf
        shape = shape_of(node)
        if factor is None and not isinstance(number, (int, float)):
            return self._unknown(node, feeds)
        if factor is None:
            value = float(number)  # type: ignore[arg-type]
            numbers = scaling_by(torch.tensor(value if kind == "Mul" else 1.0 / value if value else 0.0), shape)
        else:
            tensor = signals.plain(factor)
            if not tensor.is_floating_point():
                tensor = tensor.float()
            numbers = scaling_by(tensor if kind == "Mul" else tensor.reciprocal(), shape)
        if shape is not None and shape_of(node.next_functions[slot][0]) not in (None, shape):
            return self._unknown(node, feeds)
        made = self._new(
            node, Op.SCALE, "dropout" if numbers["dropout"] else "scale", [self._data(feeds[slot], None)], numbers=numbers
        )
        self._sketches[made].slots = [slot]
        return made

    def _unknown(self, node: Any, feeds: list[Value]) -> Value:
        inputs: list[int] = []
        slots: list[int] = []
        for slot, feed in enumerate(feeds):
            if isinstance(feed, int):
                inputs.append(feed)
                slots.append(slot)
        made = self._new(node, Op.UNKNOWN, node.name(), inputs)
        self._sketches[made].slots = slots
        return made

    # ---- during the backward pass ----------------------------------------------------------------------------------

    def _measure(self, sketch: Sketch) -> Callable[[Sequence[Any], Sequence[Any]], None]:
        def hook(to_inputs: Sequence[Tensor | None], of_outputs: Sequence[Tensor | None]) -> None:
            if sketch.gradient is not None:
                return
            with torch.no_grad(), torch._C.DisableTorchFunction():
                try:
                    self._note(sketch, to_inputs, of_outputs)
                except (RuntimeError, TypeError, NotImplementedError) as error:
                    self.notes.append(f"The gradient of {sketch.kind} could not be measured: {str(error).splitlines()[0]}")
                    sketch.gradient = Flow(NAN)

        return hook

    def _note(self, sketch: Sketch, to_inputs: Sequence[Tensor | None], of_outputs: Sequence[Tensor | None]) -> None:
        given = [signals.plain(g) for g in of_outputs if g is not None]
        square = sum(float(signals.sum_of_squares(g)) for g in given)
        shared, overlap = NAN, NAN
        if len(given) == 1 and given[0].ndim > 1:
            shared, overlap = likeness(given[0], sketch.unit if given[0].ndim == len(sketch.shape) else given[0].ndim - 1)
        along = NAN
        if len(given) == 1 and sketch.last is not None and sketch.last.numel() == given[0].numel():
            along = alignment(given[0], sketch.last)
        sketch.gradient = Flow(square / self._scale**2, shared, overlap, along)
        sums: dict[int, Tensor] = {}
        for index, slot in zip(sketch.inputs, sketch.slots, strict=False):
            gradient = to_inputs[slot] if slot < len(to_inputs) else None
            if gradient is not None:
                plain = signals.plain(gradient)
                sums[index] = sums[index] + plain if index in sums else plain
        first = {index: k for k, index in reversed(list(enumerate(sketch.inputs)))}
        sketch.gains = [NAN] * len(sketch.inputs)
        for index, gradient in sums.items():
            if square > 0.0:
                sketch.gains[first[index]] = float(signals.sum_of_squares(gradient)) / square
        for k, index in enumerate(sketch.inputs):
            if index in sums and first[index] != k:
                sketch.gains[k] = 0.0  # the first one has it all

    # ---- after the backward pass -----------------------------------------------------------------------------------

    def finish(self) -> tuple[Node, ...]:
        """Take the hooks off; the operations the loss depends on, in order of execution."""
        for handle in self._handles:
            handle.remove()
        wanted: set[int] = set()
        stack = [len(self._sketches) - 1] if self._sketches else []
        while stack:
            index = stack.pop()
            if index not in wanted:
                wanted.add(index)
                stack.extend(self._sketches[index].inputs)
        kept = {old: new for new, old in enumerate(sorted(wanted))}
        return tuple(_node(self._sketches[old], kept) for old in kept)


def _node(sketch: Sketch, kept: Mapping[int, int]) -> Node:
    units = sketch.shape[sketch.unit] if sketch.shape else 1
    size = 1
    for extent in sketch.shape:
        size *= extent
    return Node(
        op=sketch.op,
        kind=sketch.kind,
        inputs=tuple(kept[i] for i in sketch.inputs),
        units=int(units),
        count=max(size // max(units, 1), 1),
        names=tuple(sketch.names),
        numbers=sketch.numbers,
        function=sketch.function,
        samples=sketch.samples,
        output=sketch.output,
        gradient=sketch.gradient,
        gains=tuple(sketch.gains) if sketch.gains else (NAN,) * len(sketch.inputs),
    )


# ---- activations -----------------------------------------------------------------------------------------------------

_PLAIN: Final = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Silu": "silu",
    "Mish": "mish",
    "Erf": "erf",
    "Sin": "sin",
    "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish",
    "LogSigmoid": "logsigmoid",
}


KNOWN_ACTIVATIONS: Final = frozenset(
    (*_PLAIN, "Gelu", "LeakyRelu", "PreluKernel", "RreluWithNoise", "Elu", "Celu", "Softplus", "Hardtanh", "Threshold")
)
"""Graph nodes, without their ``Backward0``, that are an activation theory has a name for."""


def _activation(node: Any, kind: str) -> tuple[str, dict[str, float]] | None:
    """Name and parameters of the activation behind a graph node; None for anything else."""
    plain = _PLAIN.get(kind)
    if plain is not None:
        return plain, {}
    match kind:
        case "Gelu":
            return ("gelu_tanh" if node._saved_approximate == "tanh" else "gelu"), {}
        case "LeakyRelu":
            return "leaky_relu", {"negative_slope": float(node._saved_negative_slope)}
        case "PreluKernel":
            weight = saved_tensor(node, "weight")
            return None if weight is None else ("leaky_relu", {"negative_slope": float(weight.double().mean())})
        case "RreluWithNoise":
            return "leaky_relu", {"negative_slope": (float(node._saved_lower) + float(node._saved_upper)) / 2}
        case "Elu":
            alpha, scale, inner = float(node._saved_alpha), float(node._saved_scale), float(node._saved_input_scale)
            if scale == 1.0 and inner == 1.0:
                return "elu", {"alpha": alpha}
            return ("selu", {}) if abs(scale - 1.0507009873554805) < 1e-6 and inner == 1.0 else None
        case "Celu":
            return "celu", {"alpha": float(node._saved_alpha)}
        case "Softplus":
            return "softplus", {"beta": float(node._saved_beta)}
        case "Hardtanh":
            return "hardtanh", {"min_val": float(node._saved_min_val), "max_val": float(node._saved_max_val)}
        case "Threshold":
            return ("relu", {}) if float(node._saved_threshold) == 0.0 else None
        case _:
            return None
