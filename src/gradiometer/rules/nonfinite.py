"""Non-finite numbers: a NaN or an infinity in the loss or the weights.

What it finds:
    The first step and the first place at which the loss, a weight, an activation or a gradient stopped being a number.

Why it hurts:
    A NaN spreads to everything it touches: after one step every weight is NaN and the training is lost.

How we tell:
    A loss that is not finite is searched at that very step: first the weights, then the autograd graph in order of
    execution, so that the first operation that made it is named. Weights that are not finite before the first step are
    their own case (a bad checkpoint or initialisation), not an explosion. Steps that a gradient scaler skips because
    of an overflow are normal and do not count; neither do infinities that a mask puts into activations on purpose while
    the loss stays finite. Where the training recovers, it is a warning.

When it is wrong:
    A loss that is infinite by definition for some examples (log of zero probability) is named here too.

What helps:
    - clip the gradient norm
    - a smaller learning rate, or a warm-up
    - guard logarithms, exponentials, divisions and square roots (add an epsilon, clamp)
    - bfloat16 or a smaller loss scale instead of float16

References:
    Pascanu, Mikolov, Bengio 2013; Micikevicius et al. 2018 (loss scaling).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from gradiometer.record.frames import Flag, Group
from gradiometer.record.trace import BoolArray, Trace
from gradiometer.rules.judging import factor, plural
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "nonfinite"

LARGE_UPDATE: Final = 0.1
"""An update of a tenth of a parameter's size is a hundred times the usual (about 1e-3: CS231n notes)."""

HELPS: Final = (
    "lower the learning rate or warm it up",
    "clip the gradient norm",
    "guard logarithms, exponentials, divisions and square roots near zero",
)
_HELPS_START: Final = ("check the initialisation or the checkpoint that was loaded, before the first step",)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    weight_is_bad = trace.recorded[Group.PARAMETER] & ~np.isfinite(trace.values["weight_sumsq"])
    if trace.steps.size and trace.steps[0] == 0 and weight_is_bad[0].any():
        return [_before_the_first_step(trace, weight_is_bad[0])]
    bad_loss = trace.ledger.has(Flag.NONFINITE) & ~trace.ledger.has(Flag.SKIPPED)
    loss_steps, weight_looks = trace.ledger.step[bad_loss], np.flatnonzero(weight_is_bad.any(axis=1))
    births = [int(s) for s in (*loss_steps[:1], *trace.steps[weight_looks[:1]])]
    if births:
        what = "loss" if loss_steps.size and int(loss_steps[0]) == min(births) else "weights"
        return [_born(trace, min(births), what, bad_loss, weight_is_bad)]
    return []


def _before_the_first_step(trace: Trace, bad: BoolArray) -> Finding:
    names = trace.names(np.flatnonzero(bad))
    who = f"The parameter `{names[0]}` is" if len(names) == 1 else f"{len(names)} parameters are"
    first = "" if len(names) == 1 else f" (`{names[0]}` first)"
    sentence = f"{who} not finite before the first step{first}: the training cannot start."
    evidence = Evidence("parameters that are not finite at step 0", float(len(names)), float("nan"), "IEEE 754")
    return _finding(trace, 0, names, sentence, evidence, _HELPS_START)


def _born(trace: Trace, step: int, what: str, bad_loss: BoolArray, weight_is_bad: BoolArray) -> Finding:
    event = next((e for e in trace.events if e.get("event") == "nonfinite" and e.get("step") == step), None)
    sites, where = _where(trace, step, event)
    sentence = f"The {what} became non-finite at step {step}{where}."
    later = trace.ledger.step > step
    # what comes after tells whether the training survived: a NaN in the weights never goes away by itself
    recovered = np.count_nonzero(later) >= 3 and not bad_loss[-3:].any()
    if weight_is_bad.size:
        recovered = recovered and not weight_is_bad[-1].any()
    severity = Severity.WARNING if recovered else Severity.ERROR
    if recovered:
        sentence += f" It recovered: {plural(int(bad_loss.sum()), 'step was', 'steps were')} lost."
    evidence = Evidence(f"first step with a non-finite {what}", float(step), float("nan"), "IEEE 754", "none: a NaN is a fact")
    return _finding(trace, step, sites, sentence, evidence, HELPS, severity)


def _where(trace: Trace, step: int, event: Mapping[str, Any] | None) -> tuple[tuple[str, ...], str]:
    """Guilty sites, and the clause that says where it was born."""
    if event is not None:
        sites = tuple(str(s) for s in event.get("sites", ()))
        if event.get("what") == "parameter":
            # the step before broke the weights: its gradients or its size
            share = 100 * float(event.get("share", 0.0))
            first = f", `{sites[0]}` first" if sites else ""
            culprit, size = _largest_update(trace, step)
            return sites or culprit, f": the step before made {share:.0f} % of the parameters non-finite{first}{size}"
        operation = str(event.get("operation", ""))
        operation = "the loss itself" if operation == "the loss" else f"`{operation}`"
        culprit, size = _largest_update(trace, step)
        at = f" at `{sites[0]}`" if sites else ""
        return sites or culprit, f": it was born in the forward pass in {operation}{at}, while every weight was finite{size}"
    looks = np.flatnonzero(trace.steps >= step)
    for group, what in ((Group.OUTPUT, "output"), (Group.GRADIENT, "gradient"), (Group.PARAMETER, "parameter")):
        bad = np.flatnonzero(trace.nonfinite[group][looks[0]]) if looks.size else looks
        if bad.size:
            names = trace.names(bad)
            # a forward pass spoils what comes after, a backward pass what comes before
            born = names[-1] if group is Group.GRADIENT else names[0]
            ordered = names[::-1] if group is Group.GRADIENT else names
            return ordered, f": the first non-finite {what} is that of `{born}`" if group is not Group.PARAMETER else ""
    return (), ""


def _largest_update(trace: Trace, step: int) -> tuple[tuple[str, ...], str]:
    """The parameter whose last measured update was unreasonably large, and a clause that says so."""
    looks = np.flatnonzero(trace.steps < step)
    ratio = trace.log10_update_ratio[looks[-1]] if looks.size else np.empty(0)
    if not np.isfinite(ratio).any() or np.nanmax(ratio) < np.log10(LARGE_UPDATE):
        return (), ""
    worst = int(np.nanargmax(ratio))
    name, before = trace.sites[worst].name, int(trace.steps[looks[-1]])
    return (name,), f"; at step {before} the update of `{name}` was {factor(float(ratio[worst]))} times its size"


def _finding(
    trace: Trace,
    step: int,
    sites: tuple[str, ...],
    sentence: str,
    evidence: Evidence,
    helps: tuple[str, ...],
    severity: Severity = Severity.ERROR,
) -> Finding:
    last = int(trace.ledger.step[-1]) if trace.ledger.step.size else step
    return Finding(
        rule=NAME,
        severity=severity,
        confidence=1.0,
        sites=sites,
        steps=(step, max(last, step)),
        sentence=sentence,
        evidence=(evidence,),
        helps=helps,
        starts=sites[0] if sites else "",
        shows=sites,
        peak=step,
    )
