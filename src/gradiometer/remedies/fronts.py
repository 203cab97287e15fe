"""Fronts: a class put in front of the class of one module, to change what it does and nothing else. No remedy.

The module stays the object that it was: its attributes, the names of its parameters, its hooks, whatever refers to it, and
checks of its type go on working, none of which is true of a wrapper around it. `torch.nn.utils.parametrize` does the same.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn


class Front:
    """Base of classes that are put in front of others. Copies and pickles know the two, for the made one has no home."""

    def __reduce__(self) -> Any:
        """Make it again from the classes that can be imported."""
        fronts: list[type] = []
        kind = type(self)
        while kind in _MADE:
            front, kind = kind.__mro__[1], _MADE[kind]
            fronts.append(front)
        return _again, (tuple(reversed(fronts)), kind), self.__dict__


_MADE: dict[type, type] = {}
"""The classes that were made, and the class that each stands in front of."""


@functools.cache
def _with(front: type, kind: type) -> type:
    # the name stays: what prints or groups modules by it should not change
    made = type(kind.__name__, (front, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    _MADE[made] = kind
    return made


def put_in_front(front: type[Front], module: nn.Module) -> None:
    """Give a module a class that is ``front`` first and then what it was."""
    module.__class__ = _with(front, type(module))


def _again(fronts: tuple[type, ...], kind: type) -> Any:
    for front in fronts:
        kind = _with(front, kind)
    return object.__new__(kind)
