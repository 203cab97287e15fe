"""What a model does with its first batch, operation by operation: the graph that `layers` reads. No remedy.

Module hooks do not see ``F.relu(x)`` or ``x + branch(x)``; a function mode sees every call of torch, with modules or without.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradiometer.remedies.base import WEIGHTED, CannotTreatError, Patient

ACTIVATIONS: Final = {
    "relu": "relu",
    "threshold": "relu",
    "clamp_min": "relu",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "rrelu": "leaky_relu",
    "prelu": "leaky_relu",
    "sigmoid": "sigmoid",
    "special_expit": "sigmoid",
    "hardsigmoid": "hardsigmoid",
    "log_sigmoid": "logsigmoid",
    "logsigmoid": "logsigmoid",
    "tanh": "tanh",
    "hardtanh": "hardtanh",
    "tanhshrink": "tanhshrink",
    "softsign": "softsign",
    "softplus": "softplus",
    "gelu": "gelu",
    "silu": "silu",
    "mish": "mish",
    "elu": "elu",
    "selu": "selu",
    "celu": "celu",
    "hardswish": "hardswish",
    "erf": "erf",
    "sin": "sin",
}
"""Functions of torch (without the underscore of those that work in place), and what theory calls them."""

ADDS: Final = frozenset(("add", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "__rsub__", "__isub__"))
SCALES: Final = frozenset(
    ("mul", "__mul__", "__rmul__", "__imul__", "multiply", "div", "__truediv__", "__itruediv__", "divide")
)
NORMS: Final = frozenset(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm"))
PRODUCTS: Final = frozenset(
    (
        *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "bilinear"),
        *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "einsum", "multi_head_attention_forward"),
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
    )
)
_FACTORS: Final = frozenset(("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm"))
POOLS: Final = frozenset(
    f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp") for n in (1, 2, 3)
) | frozenset(("mean", "boolean_dispatch", "interpolate"))
PASSES: Final = frozenset(
    (
        *("view", "reshape", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "permute", "transpose", "swapaxes"),
        *("t", "movedim", "contiguous", "clone", "to", "type", "float", "half", "bfloat16", "double", "type_as", "detach"),
        *("__getitem__", "__get__", "chunk", "split", "unbind", "narrow", "select", "expand", "expand_as", "neg", "__neg__"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "pad", "identity"),
        *("pixel_shuffle", "pixel_unshuffle", "view_as", "roll", "flip"),
    )
)
"""What leaves the size of a signal (about) as it is."""

_LABELLED: Final = (
    *WEIGHTED,
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanh),
    *(nn.Hardtanh, nn.Tanhshrink, nn.Softsign, nn.Softplus, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Hardswish),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
    *(nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm),
)


@dataclass(slots=True)
class Node:
    """One operation.

    Attributes:
        op: name of the function; ``input`` for a tensor that came from outside, ``parameter`` for a parameter of the model.
        inputs: numbers of the nodes it works on; parameters are not among them.
        weighted: whether it multiplies by parameters.
        activation: what theory calls it, empty if it is none.
        slope: below zero, of a leaky ReLU.
        owner: qualified name of the module it is the output of; empty for a functional call.
        matrix: qualified name of the parameter that it multiplies by, if that is no layer of torch's but one written by hand.
        turned: whether that is ``x @ weight``, with inputs in its rows.
        above: bits of the nodes it depends on.
        users: numbers of the nodes that take it in.
    """

    op: str
    inputs: list[int]
    weighted: bool = False
    activation: str = ""
    slope: float = 0.0
    owner: str = ""
    matrix: str = ""
    turned: bool = False
    above: int = 0
    users: list[int] = field(default_factory=list[int])

    @property
    def passes(self) -> bool:
        """Whether it only moves, scales or drops what it gets."""
        return self.op in PASSES or (self.op in SCALES and len(self.inputs) == 1)


class Tape(TorchFunctionMode):
    """Keeps the operations of a forward pass.

    Args:
        names: qualified names of the modules that own a weight, by the identity of that weight.
        matrices: qualified names of parameters that are matrices of no such module, likewise; none if not given.
    """

    def __init__(self, names: dict[int, str], matrices: dict[int, str] | None = None) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self._names = names
        self._matrices = matrices or {}
        self._transposed: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._where: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function and take note of it."""
        kwargs = kwargs or {}
        taken = tensors((args, kwargs), 3)
        # read before the call: one that works in place gives its input back
        inputs = list(dict.fromkeys(self._number(t) for t in taken if not isinstance(t, nn.Parameter)))
        result = func(*args, **kwargs)
        made = tensors(result, 3)
        if made:
            self._add(str(func.__name__), inputs, taken, args, kwargs)
            if len(taken) == 1 and id(taken[0]) in self._matrices and made[0].shape == taken[0].shape[::-1]:
                self._transposed[id(made[0])] = (weakref.ref(made[0]), self._matrices[id(taken[0])])
            for tensor in made:
                self._where[id(tensor)] = (weakref.ref(tensor), len(self.nodes) - 1)
        return result

    def _add(self, name: str, inputs: list[int], taken: list[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        parameters = [t for t in taken if isinstance(t, nn.Parameter)]
        op = name if name.startswith("__") else name.rstrip("_").lstrip("_")
        activation = ACTIVATIONS.get(op, "")
        if op in ("clamp", "clip") and _rectifies(args[1:], kwargs):
            activation = "relu"
        if activation == "gelu" and kwargs.get("approximate", "none") == "tanh":
            activation = "gelu_tanh"
        owner = next((self._names[id(p)] for p in parameters if id(p) in self._names), "") if op in PRODUCTS else ""
        node = Node(op, inputs, op in PRODUCTS and bool(parameters), activation, _slope(op, args, kwargs), owner)
        if op in _FACTORS and not owner:
            self._note_matrix(node, args)
        for i in inputs:
            node.above |= self.nodes[i].above | 1 << i
            self.nodes[i].users.append(len(self.nodes))
        self.nodes.append(node)

    def _note_matrix(self, node: Node, args: Sequence[Any]) -> None:
        a, b = (args[1], args[0]) if node.op == "__rmatmul__" else args[1:3] if node.op == "addmm" else args[:2]
        transposed = self._transposed.get(id(b))
        if transposed is not None and transposed[0]() is b:
            node.matrix, node.weighted = transposed[1], True
        elif id(b) in self._matrices:
            node.matrix, node.turned = self._matrices[id(b)], node.op != "linear"
        elif id(a) in self._matrices:
            node.matrix = self._matrices[id(a)]

    def _number(self, tensor: Tensor) -> int:
        known = self._where.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        self.nodes.append(Node("input", []))
        self._where[id(tensor)] = (weakref.ref(tensor), len(self.nodes) - 1)
        return len(self.nodes) - 1

    def label(self, output: Any, name: str, *, weighted: bool) -> None:
        """Say which module the output of an operation belongs to."""
        for tensor in tensors(output, 1)[:1]:
            known = self._where.get(id(tensor))
            if known is None or known[0]() is not tensor:
                continue
            node = self.nodes[known[1]]
            # a weight that two layers share names one of them; the layer that was called knows better
            if weighted or not node.owner:
                node.owner = name
                node.weighted |= weighted

    def back(self, number: int, through: Callable[[Node], bool]) -> int:
        """The first node on the way back from this one (itself included) that is not to be gone through."""
        while through(self.nodes[number]) and self.nodes[number].inputs:
            number = self.nodes[number].inputs[0]
        return number


def tensors(value: Any, depth: int) -> list[Tensor]:
    """The tensors in a value, in tuples, lists and dicts as deep as this."""
    if isinstance(value, Tensor):
        return [value]
    inside: Iterable[Any] = ()
    if depth and isinstance(value, (tuple, list)):
        inside = value
    elif depth and isinstance(value, dict):
        inside = value.values()
    return [t for item in inside for t in tensors(item, depth - 1)]


def _rectifies(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    least = args[0] if args else kwargs.get("min")
    most = args[1] if len(args) > 1 else kwargs.get("max")
    return isinstance(least, (int, float)) and least == 0 and most is None


def _slope(op: str, args: Sequence[Any], kwargs: dict[str, Any]) -> float:
    """Slope below zero of leaky rectifiers; theory's parameter of the others is torch's default."""
    if op == "leaky_relu":
        return float(args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01))
    if op == "prelu":
        weight: Tensor = args[1] if len(args) > 1 else kwargs["weight"]
        return float(weight.detach().double().mean())
    if op == "rrelu":
        low = args[1] if len(args) > 1 else kwargs.get("lower", 1 / 8)
        high = args[2] if len(args) > 2 else kwargs.get("upper", 1 / 3)
        return (float(low) + float(high)) / 2
    return 0.0


def record(patient: Patient) -> Tape | None:
    """The operations of one forward pass on the first batch; None if no batch is known.

    Raises:
        CannotTreatError: the model fails on it.
    """
    if patient.inputs is None:
        return None
    named = list(patient.model.named_modules())
    names = {id(m.weight): n for n, m in named if isinstance(m, WEIGHTED)}
    tape = Tape(names, _matrices(named))
    handles = [
        module.register_forward_hook(_labeller(tape, name, weighted=isinstance(module, WEIGHTED)))
        for name, module in named
        if name and isinstance(module, _LABELLED)
    ]
    try:
        with without_drawing(), tape:
            patient.run()
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as problem:
        raise CannotTreatError(f"the model could not be read on its first batch: {problem}") from problem
    finally:
        for handle in handles:
            handle.remove()
    return tape


def _matrices(named: list[tuple[str, nn.Module]]) -> dict[int, str]:
    known = (*WEIGHTED, nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
    return {
        id(p): f"{name}.{own}" if name else own
        for name, module in named
        if not isinstance(module, known)
        for own, p in module.named_parameters(recurse=False)
        if p.dim() == 2
    }


def without_drawing() -> AbstractContextManager[None]:
    """Inside, random numbers (of dropout) are drawn from a fork, so that what is drawn afterwards does not depend on them."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ())


def _labeller(tape: Tape, name: str, *, weighted: bool) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        tape.label(output, name, weighted=weighted)

    return hook
