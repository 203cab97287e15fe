"""The rules: pure functions from a `Trace` to findings, one file each, listed in `RULES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from gradiometer.errors import GradiometerError
from gradiometer.record.trace import Trace
from gradiometer.rules import (
    attention_collapse,
    clipping_always_on,
    dead_output,
    dead_units,
    disconnected_parameters,
    divergence,
    exploding_gradient,
    exploding_through_time,
    input_blindness,
    learning_rate_too_high,
    learning_rate_too_low,
    loss_spike,
    nonfinite,
    oscillation,
    plateau,
    poor_initialization,
    precision_underflow,
    saturated_units,
    shattered_gradient,
    signal_collapse,
    signal_explosion,
    skipped_steps,
    stale_second_moment,
    symmetric_initialization,
    vanishing_gradient,
    vanishing_through_time,
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
        disconnected_parameters,
        symmetric_initialization,
        precision_underflow,
        exploding_through_time,
        vanishing_through_time,
        poor_initialization,
        learning_rate_too_high,
        stale_second_moment,
        signal_explosion,
        exploding_gradient,
        nonfinite,
        attention_collapse,
        dead_output,
        dead_units,
        saturated_units,
        vanishing_gradient,
        input_blindness,
        signal_collapse,
        shattered_gradient,
        skipped_steps,
        clipping_always_on,
        divergence,
        loss_spike,
        oscillation,
        learning_rate_too_low,
        plateau,
    )
)


def diagnose(trace: Trace) -> list[Finding]:
    """Every finding of every rule: root causes by severity and onset, each before the symptoms that follow from it."""
    rank = {rule.name: i for i, rule in enumerate(RULES)}
    return in_order([finding for rule in RULES for finding in rule.find(trace)], rank, trace.steps.tolist())


def rule_named(name: str) -> Rule:
    """A rule by its name.

    Raises:
        GradiometerError: there is none of that name; the message lists them.
    """
    for rule in RULES:
        if rule.name == name:
            return rule
    raise GradiometerError(f"There is no rule {name!r}.", "The rules are: " + ", ".join(r.name for r in RULES) + ".")
