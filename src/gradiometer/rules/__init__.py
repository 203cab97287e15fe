"""The rules: pure functions from a `Trace` to findings, one file each, listed in `RULES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from gradiometer.errors import GradiometerError
from gradiometer.record.trace import Trace
from gradiometer.rules import (
    dead_units,
    exploding_gradient,
    input_blindness,
    nonfinite,
    saturated_units,
    signal_collapse,
    signal_explosion,
    vanishing_gradient,
)
from gradiometer.rules.causes import in_order
from gradiometer.types import Finding


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: its name, its function, and its documentation (docstring of its file)."""

    name: str
    find: Callable[[Trace], list[Finding]]
    doc: str


def _rule(module: ModuleType) -> Rule:
    return Rule(module.__name__.rpartition(".")[2].replace("_", "-"), module.find, module.__doc__ or "")


# In the order in which causes precede symptoms: of two findings that begin together, the earlier in this table leads.
RULES: Final[tuple[Rule, ...]] = tuple(
    _rule(module)
    for module in (
        nonfinite,
        signal_explosion,
        exploding_gradient,
        dead_units,
        saturated_units,
        vanishing_gradient,
        input_blindness,
        signal_collapse,
    )
)


def diagnose(trace: Trace) -> list[Finding]:
    """Every finding of every rule: root causes by severity and onset, each before the symptoms that follow from it."""
    rank = {rule.name: i for i, rule in enumerate(RULES)}
    return in_order([finding for rule in RULES for finding in rule.find(trace)], rank)


def rule_named(name: str) -> Rule:
    """A rule by its name.

    Raises:
        GradiometerError: there is none of that name; the message lists them.
    """
    for rule in RULES:
        if rule.name == name:
            return rule
    raise GradiometerError(f"There is no rule {name!r}.", "The rules are: " + ", ".join(r.name for r in RULES) + ".")
