"""Names for what is measured: which module, which parameter, in which model."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from gradiometer.probe import signals
from gradiometer.probe.signals import ActivationKind

ACTIVATIONS: Final[tuple[tuple[type[nn.Module], ActivationKind], ...]] = (
    (nn.ReLU6, signals.RELU6),
    (nn.ReLU, signals.RELU),
    (nn.Threshold, signals.RELU),
    (nn.Sigmoid, signals.SIGMOID),
    (nn.Tanh, signals.TANH),
    (nn.Hardtanh, signals.HARDTANH),
    (nn.Hardsigmoid, signals.HARDSIGMOID),
    (nn.Softsign, signals.SOFTSIGN),
    (nn.GELU, signals.SMOOTH),
    (nn.SiLU, signals.SMOOTH),
    (nn.ELU, signals.SMOOTH),
    (nn.SELU, signals.SMOOTH),
    (nn.CELU, signals.SMOOTH),
    (nn.LeakyReLU, signals.SMOOTH),
    (nn.PReLU, signals.SMOOTH),
    (nn.RReLU, signals.SMOOTH),
    (nn.Softplus, signals.SMOOTH),
    (nn.Mish, signals.SMOOTH),
    (nn.Hardswish, signals.SMOOTH),
    (nn.LogSigmoid, signals.SMOOTH),
    (nn.GLU, signals.SMOOTH),
)

_NORMS: Final = (
    nn.modules.batchnorm._NormBase,  # pyright: ignore[reportPrivateUsage]
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
_LINEAR: Final = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]
_RECURRENT: Final = (nn.RNNBase, nn.RNNCellBase)
_EMBEDDING: Final = (nn.Embedding, nn.EmbeddingBag)
_NOT_A_SITE: Final = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.modules.dropout._DropoutNd,  # pyright: ignore[reportPrivateUsage]
    nn.AlphaDropout,
    nn.modules.loss._Loss,  # pyright: ignore[reportPrivateUsage]
)
_WRAPPERS: Final = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}

MAX_SITES: Final = 6000
"""Sites of one process; a network unrolled further than this is recorded as far as this."""


def role_of(module: nn.Module) -> str:
    """Role (see `gradiometer.types.Role`) of a module."""
    if activation_of(module) is not None:
        return "activation"
    for classes, role in ((_LINEAR, "linear"), (_NORMS, "norm"), (_RECURRENT, "recurrent"), (_EMBEDDING, "embedding")):
        if isinstance(module, classes):
            return role
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    # a module of its own with weights directly in it is a layer somebody wrote; else it holds others or is arithmetic
    return "container" if module._modules else "other"  # pyright: ignore[reportPrivateUsage]


def activation_of(module: nn.Module) -> ActivationKind | None:
    """What the output of an activation module tells; None for any other module."""
    for kind, what in ACTIVATIONS:
        if isinstance(module, kind):
            if isinstance(module, nn.Hardtanh) and kind is nn.Hardtanh and (module.min_val, module.max_val) != (-1, 1):
                return signals.SMOOTH
            return what
    return None


def is_site(module: nn.Module) -> bool:
    """Whether the output of a module is worth a row: reshaping, dropout and losses are not."""
    return not isinstance(module, _NOT_A_SITE)


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that stands for a module's output: the first floating one with more than one element.

    Tuples and lists (LSTM, attention), mappings (model outputs) are searched two levels deep.
    """
    return _first_tensor(output, 2)


def _first_tensor(output: Any, depth: int) -> Tensor | None:
    if isinstance(output, Tensor):
        fits = output.numel() > 1 and (output.is_floating_point() or output.is_complex())
        return output if fits else None
    if depth:
        inside: Iterable[Any] = ()
        if isinstance(output, (tuple, list)):
            inside = output[:4]
        elif isinstance(output, Mapping):
            inside = list(output.values())[:8]
        for item in inside:
            found = _first_tensor(item, depth - 1)
            if found is not None:
                return found
    return None


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel or a compiled wrapper."""
    while (inner := _WRAPPERS.get(type(module).__name__)) is not None:
        module = getattr(module, inner)
    return module


class Names:
    """Qualified names of modules and parameters, for every root module met so far."""

    def __init__(self) -> None:
        self._modules: weakref.WeakKeyDictionary[nn.Module, tuple[str, str]] = weakref.WeakKeyDictionary()
        # by id, with a weak reference to see that the id is still the same tensor: Tensor.__eq__ is elementwise, so
        # tensors cannot be keys of a WeakKeyDictionary
        self._parameters: dict[int, tuple[weakref.ref[Tensor], str, str, str]] = {}
        self._roots: list[str] = []

    def adopt(self, root: nn.Module) -> None:
        """Name every module and parameter below ``root``, unless it is known already."""
        if root in self._modules:
            return
        inner = unwrap(root)
        label = type(inner).__name__
        if label in self._roots:
            label = f"{label} {sum(r.split(' ')[0] == label for r in self._roots) + 1}"
        self._roots.append(label)
        for name, module in inner.named_modules():
            self._modules.setdefault(module, (label, name))
            for own, parameter in module.named_parameters(recurse=False):
                full = f"{name}.{own}" if name else own
                self._remember(parameter, label, name, full)
        self._modules.setdefault(root, (label, ""))

    def adopt_within(self, module: nn.Module, root: nn.Module) -> None:
        """Name a module that was met inside ``root`` and has no name yet.

        It may have been put there after the root was named, or be kept in a plain list, dict or attribute that the root does
        not count among its modules; otherwise it is a root of its own.
        """
        if module in self._modules:
            return
        model, prefix = self._modules.get(root, ("", ""))
        place = _place_within(unwrap(root), module) if model else None
        if place is None:
            self.adopt(module)
            return
        name = f"{prefix}.{place}" if prefix else place
        for below, inner in module.named_modules():
            full = f"{name}.{below}" if below else name
            self._modules.setdefault(inner, (model, full))
            for own, parameter in inner.named_parameters(recurse=False):
                self._remember(parameter, model, full, self._unused(model, f"{full}.{own}", parameter))

    def _unused(self, model: str, name: str, parameter: Tensor) -> str:
        """The name, with a number if another parameter that is still alive had it: of a layer that was replaced, say."""
        alive = [known for known in self._parameters.values() if known[0]() is not None and known[0]() is not parameter]
        taken = {known[3] for known in alive if known[1] == model}
        number = 2
        unused = name
        while unused in taken:
            unused, number = f"{name} #{number}", number + 1
        return unused

    def _remember(self, parameter: Tensor, model: str, module: str, name: str) -> None:
        known = self._parameters.get(id(parameter))
        if known is None or known[0]() is not parameter:
            self._parameters[id(parameter)] = (weakref.ref(parameter), model, module, name)

    def knows(self, module: nn.Module) -> bool:
        """Whether the module belongs to a root met before."""
        return module in self._modules

    def module(self, module: nn.Module) -> tuple[str, str]:
        """(model, qualified name) of a module; the name of a root is empty."""
        return self._modules[module]

    def parameter(self, parameter: Tensor) -> tuple[str, str, str] | None:
        """(model, module, name) of a parameter, None if it is not known."""
        known = self._parameters.get(id(parameter))
        return known[1:] if known is not None and known[0]() is parameter else None

    def name_all(self, parameters: Iterable[Tensor]) -> None:
        """Find names for parameters that no root module met so far holds: their module, else a variable of the script."""
        missing = [p for p in parameters if self.parameter(p) is None]
        if not missing:
            return
        self._adopt_owners({id(p) for p in missing})
        missing = [p for p in missing if self.parameter(p) is None]
        variables = _script_variables(missing) if missing else {}
        for number, parameter in enumerate(missing, 1):
            # by position: a script that makes new tensors every step keeps its site names
            name = variables.get(id(parameter), f"tensor {number} {tuple(parameter.shape)}")
            self._remember(parameter, "", name, name)

    def _adopt_owners(self, wanted: set[int]) -> None:
        """Adopt the outermost modules that own a wanted parameter, found among live objects (once, when needed)."""
        # type(o), never isinstance: a proxy's __class__ may run the user's code
        modules = [o for o in gc.get_objects() if issubclass(type(o), nn.Module) and "_parameters" in o.__dict__]
        owners = [m for m in modules if any(id(p) in wanted for p in m.parameters())]
        children = {id(c) for m in owners for c in m.modules() if c is not m}
        for module in owners:
            if id(module) not in children:
                self.adopt(module)


def _place_within(root: nn.Module, module: nn.Module) -> str | None:
    """Where ``module`` is kept below ``root``: as one of its modules, or in a plain list, tuple or dict of one of them."""
    if (registered := _registered_within(root, module)) is not None:
        return registered
    for name, inner in root.named_modules():
        front = f"{name}." if name else ""
        for attribute, value in list(inner.__dict__.items()):
            if type(value) in (list, tuple):
                entries: Iterable[tuple[Any, Any]] = enumerate(value[:1000])
            elif type(value) is dict and not attribute.startswith("_"):
                entries = list(value.items())[:1000]
            else:
                continue
            for key, item in entries:
                if item is module:
                    return f"{front}{attribute}[{key!r}]" if type(value) is dict else f"{front}{attribute}.{key}"
                if issubclass(type(item), nn.Module) and (below := _registered_within(item, module)) is not None:
                    return f"{front}{attribute}.{key}.{below}"
    return None


def _registered_within(root: nn.Module, module: nn.Module) -> str | None:
    return next((name for name, inner in root.named_modules() if inner is module), None)


def _script_variables(parameters: list[Tensor]) -> dict[int, str]:
    """Names of the script's own global variables (also inside lists and dicts) that are one of these tensors."""
    wanted = {id(p) for p in parameters}
    found: dict[int, str] = {}
    main = sys.modules.get("__main__")
    for name, value in list(vars(main).items()) if main is not None else []:
        if name.startswith("__"):
            continue
        if id(value) in wanted:
            found.setdefault(id(value), name)
        elif type(value) in (list, tuple):
            for i, item in enumerate(value[:10000]):
                if id(item) in wanted:
                    found.setdefault(id(item), f"{name}[{i}]")
                elif type(item) in (list, tuple):
                    for j, inner in enumerate(item[:100]):
                        if id(inner) in wanted:
                            found.setdefault(id(inner), f"{name}[{i}][{j}]")
        elif type(value) is dict:
            for key, item in list(value.items())[:10000]:
                if id(item) in wanted:
                    found.setdefault(id(item), f"{name}[{key!r}]")
    return found


def unit_dimension(shape: torch.Size, channels_first: bool) -> int:
    """Which dimension of an output counts its units: channels of an image, features of anything else."""
    return 1 if len(shape) >= 4 or (len(shape) == 3 and channels_first) else len(shape) - 1
