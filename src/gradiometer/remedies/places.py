"""Places in the user's own code, for the edit that a treatment stands for: where something is made, called, or named."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import sys
import sysconfig
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradiometer.probe.sites import ACTIVATIONS, unwrap
from gradiometer.remedies.base import WEIGHTED

FUNCTIONS: Final = frozenset(
    (
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "threshold", "sigmoid", "sigmoid_"),
        *("tanh", "tanh_", "hardtanh", "hardtanh_", "hardsigmoid", "hardswish", "softsign", "softplus", "gelu", "silu"),
        *("mish", "elu", "elu_", "selu", "selu_", "celu", "celu_", "logsigmoid", "tanhshrink", "special_expit", "expit"),
    )
)
"""Activations as functions or tensor methods, by ``__name__``."""
MADE: Final = (*(kind for kind, _ in ACTIVATIONS), *WEIGHTED, nn.RNNBase, nn.RNNCellBase)
"""Modules whose making is worth knowing: an edit may change that line."""
_ASKS: Final = frozenset(("locals", "vars", "dir", "eval", "exec", "_getframe", "currentframe"))
MOST_NAMES: Final = 5
MOST_ATTRIBUTES: Final = 200
"""Attributes of one variable that are looked at for a name."""

_TORCH: Final = str(Path(torch.__file__).parent) + "/"
_FUNCTIONAL: Final = (_TORCH + "overrides.py", _TORCH + "nn/functional.py")
_OURS: Final = tuple(str(Path(__file__).parents[1] / room) + "/" for room in ("remedies", "probe"))
_LIBRARIES: Final = tuple(
    {str(Path(p)) + "/" for p in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))}
)


@dataclass(frozen=True, slots=True)
class Place:
    """A call in the user's code.

    Attributes:
        file: absolute path.
        line, end_line: of the call, from 1.
        column, end_column: of the call in its first and last line, from 0, in characters; -1 if unknown.
        within: name of the function it stands in, ``<module>`` for none.
        statement: the whole (innermost) statement around it, as it is written; empty if the source cannot be read.
        statement_line, statement_end: its first and last line.
    """

    file: str
    line: int
    end_line: int
    column: int
    end_column: int
    within: str
    statement: str
    statement_line: int
    statement_end: int

    def as_dict(self) -> dict[str, Any]:
        """For an event."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Spot:
    """A call, as cheaply as it can be kept: `Place` is made of it when it is wanted."""

    code: CodeType
    instruction: int
    line: int

    def place(self) -> Place:
        """Where that is."""
        return place_of(self)


# ---- frames ------------------------------------------------------------------------------------------------------------


def caller(start: FrameType | None, *, making: object = None) -> FrameType | None:
    """The innermost frame of the user's own code, else of anybody's but torch and us.

    Args:
        start: where to begin.
        making: an object under construction, whose own ``__init__`` methods do not count.
    """
    fallback: FrameType | None = None
    frame = start
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, *_OURS, "<frozen")) and not _makes(frame, making):
            if not file.startswith(_LIBRARIES):
                return frame
            fallback = fallback or frame
        frame = frame.f_back
    return fallback


def _makes(frame: FrameType, making: object) -> bool:
    if making is None or frame.f_code.co_name != "__init__" or not frame.f_code.co_varnames:
        return False
    return frame.f_locals.get(frame.f_code.co_varnames[0]) is making


def spot(frame: FrameType) -> Spot:
    """The call that a frame is in."""
    return Spot(frame.f_code, frame.f_lasti, frame.f_lineno)


def place_of(where: Spot) -> Place:
    """Where a call is, with the statement around it."""
    code, line, end_line, column, end_column = where.code, where.line, where.line, -1, -1
    positions = list(code.co_positions())[where.instruction // 2] if where.instruction >= 0 else (None,) * 4
    if None not in positions:
        line, end_line, column, end_column = (int(p or 0) for p in positions)
    file = code.co_filename
    first, last = _statement(file, line, end_line)
    text = [linecache.getline(file, n) for n in range(first, last + 1)]
    column, end_column = _characters(file, line, column), _characters(file, end_line, end_column)
    absolute = str(Path(file).absolute()) if not file.startswith("<") else file
    return Place(absolute, line, end_line, column, end_column, code.co_name, "".join(text).rstrip("\n"), first, last)


def _characters(file: str, line: int, column: int) -> int:
    """Python counts bytes of UTF-8."""
    return len(linecache.getline(file, line).encode()[:column].decode(errors="replace")) if column >= 0 else -1


def _statement(file: str, line: int, end_line: int) -> tuple[int, int]:
    """First and last line of the smallest statement around some lines; a compound one counts with its header only."""
    best = (line, end_line)
    smallest = sys.maxsize
    for first, last in _statements(file):
        if first <= line and end_line <= last and last - first < smallest:
            best, smallest = (first, last), last - first
    return best


@functools.lru_cache(maxsize=64)
def _statements(file: str) -> tuple[tuple[int, int], ...]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()
    found: list[tuple[int, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            body: list[ast.stmt] | None = getattr(node, "body", None)
            end = max(body[0].lineno - 1, node.lineno) if body else (node.end_lineno or node.lineno)
            found.append((node.lineno, end))
    return tuple(found)


# ---- names -------------------------------------------------------------------------------------------------------------


def names_of(frame: FrameType, wanted: Callable[[Any], bool]) -> list[str]:
    """How the code in a frame would call something: its variables, and attributes of them (``self.model``).

    Args:
        frame: where it is called.
        wanted: whether a value is what is looked for.
    """
    local = _locals(frame)
    variables = {**frame.f_globals, **local}
    order = [*local, *(name for name in variables if name not in local)]
    plain = [name for name in order if not name.startswith("__") and wanted(variables[name])]
    if plain:
        return plain[:MOST_NAMES]
    found: list[str] = []
    for name in order:
        value = variables[name]
        if name.startswith("__") or isinstance(value, (ModuleType, type, Tensor)):
            continue
        for attribute, inner in list(_attributes(value).items())[:MOST_ATTRIBUTES]:
            if attribute.isidentifier() and wanted(inner):
                found.append(f"{name}.{attribute}")
    return found[:MOST_NAMES]


def _locals(frame: FrameType) -> dict[str, Any]:
    """Local variables of a frame, without keeping them alive there.

    Before Python 3.13 a look at them leaves a copy in the frame, which holds a model for as long as the function runs.
    """
    seen = frame.f_locals
    found = dict(seen)
    a_copy = frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.version_info < (3, 13)
    # a function that asks for its variables may have been given that very copy, and a debugger writes it back
    if a_copy and not _ASKS.intersection(frame.f_code.co_names) and sys.gettrace() is None:
        seen.clear()
    return found


def _attributes(value: Any) -> dict[str, Any]:
    """Its instance attributes (and the modules of a module), without running any code of its own."""
    try:
        attributes: Any = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    if not isinstance(attributes, dict):
        return {}
    modules = attributes.get("_modules") if issubclass(type(value), nn.Module) else None
    return {**(modules or {}), **attributes}


def is_model(root: nn.Module) -> Callable[[Any], bool]:
    """Whether a value is this model, or a wrapper around it."""
    return lambda value: issubclass(type(value), nn.Module) and unwrap(value) is root


# ---- what is called, what is made ----------------------------------------------------------------------------------------


class Calls(TorchFunctionMode):
    """Notes where the user's code calls activations as functions (or tensor methods) while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, Spot]] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function and take note of it."""
        name = getattr(func, "__name__", "")
        if name in FUNCTIONS:
            frame = inspect.currentframe()
            # past torch's own way here, and past a remedy that replaces an activation
            while frame is not None and frame.f_code.co_filename.startswith((*_OURS, *_FUNCTIONAL)):
                frame = frame.f_back
            # a module of torch calls functions too: its place is where it is made
            if frame is not None and not frame.f_code.co_filename.startswith(_TORCH):
                self.found[name, spot(frame)] += 1
        return func(*args, **(kwargs or {}))

    def facts(self) -> list[dict[str, Any]]:
        """For an event: its name, how often it was called there, and the place."""
        return [{"function": name, "times": n, **where.place().as_dict()} for (name, where), n in self.found.items()]


class Makings:
    """Notes where the user's code makes activations and layers with weights, while it is installed."""

    def __init__(self) -> None:
        self._spots: weakref.WeakKeyDictionary[nn.Module, Spot] = weakref.WeakKeyDictionary()
        self._original = nn.Module.__init__
        self._wrapper: Any = None

    def install(self) -> None:
        """Wrap the constructor of modules."""
        original, spots = self._original, self._spots

        @functools.wraps(original)
        def __init__(module: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(module, *args, **kwargs)
            if isinstance(module, MADE):
                frame = caller(inspect.currentframe(), making=module)
                if frame is not None:
                    spots[module] = spot(frame)

        self._wrapper = __init__
        nn.Module.__init__ = __init__  # pyright: ignore[reportAttributeAccessIssue]

    def remove(self) -> None:
        """Take the wrapper off."""
        if nn.Module.__init__ is self._wrapper:
            nn.Module.__init__ = self._original

    def facts(self, root: nn.Module) -> list[dict[str, Any]]:
        """For an event: each place where modules of a model were seen being made, with their kind and names."""
        found: dict[tuple[Spot, str], list[str]] = {}
        for name, module in root.named_modules():
            if (where := self._spots.get(module)) is not None:
                found.setdefault((where, type(module).__name__), []).append(name)
        return [{"kind": kind, "modules": names, **where.place().as_dict()} for (where, kind), names in found.items()]
