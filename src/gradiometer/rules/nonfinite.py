"""Non-finite numbers: a NaN or an infinity in the loss or the weights.

What it finds:
    The first step and the first place at which the loss, a weight, an activation or a gradient stopped being a number.

Why it hurts:
    A NaN spreads to everything it touches: after one step every weight is NaN and the training is lost.

How we tell:
    A loss that is not finite is searched at that very step: first the weights, then the autograd graph in order of
    execution, so that the first operation that made it is named. Weights that are not finite before the first step are
    their own case (a bad checkpoint or initialisation), not an explosion. Steps that a gradient scaler skips because
    of an overflow are normal and do not count, and neither do infinities that a mask puts into activations on purpose
    while the loss stays finite.

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
from gradiometer.record.trace import Trace
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "nonfinite"

_HELPS: Final = (
    "lower the learning rate or warm it up",
    "clip the gradient norm",
    "guard logarithms, exponentials, divisions and square roots near zero",
)
_HELPS_START: Final = ("check the initialisation or the checkpoint that was loaded, before the first step",)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    start = _before_first_step(trace)
    if start:
        sentence = f"{len(start)} parameters are not finite before the first step, `{start[0]}` first: training cannot start."
        return [_finding(trace, 0, start, sentence, _HELPS_START, "parameters not finite at step 0", float(len(start)))]
    bad_loss = trace.ledger.step[trace.ledger.has(Flag.NONFINITE)]
    weights = np.flatnonzero(trace.nonfinite[Group.PARAMETER].any(axis=1))
    first_loss = int(bad_loss[0]) if bad_loss.size else None
    first_weight = int(trace.steps[weights[0]]) if weights.size else None
    known = [s for s in (first_loss, first_weight) if s is not None]
    if not known:
        return []
    step = min(known)
    event = next((e for e in trace.events if e.get("event") == "nonfinite" and int(e.get("step", -1)) == step), None)
    sites, where = _where(trace, step, event)
    what = "loss" if first_loss is not None and step == first_loss else "weights"
    sentence = f"The {what} became non-finite at step {step}{where}."
    return [_finding(trace, step, sites, sentence, _HELPS, f"first step with a non-finite {what}", float(step))]


def _before_first_step(trace: Trace) -> list[str]:
    if not trace.steps.size or int(trace.steps[0]) != 0:
        return []
    return list(trace.names(np.flatnonzero(trace.nonfinite[Group.PARAMETER][0] & _weight_is_bad(trace))))


def _weight_is_bad(trace: Trace) -> np.ndarray[Any, np.dtype[np.bool_]]:
    weight = trace.values["weight_sumsq"][0]
    return trace.recorded[Group.PARAMETER][0] & ~np.isfinite(weight)


def _where(trace: Trace, step: int, event: Mapping[str, Any] | None) -> tuple[list[str], str]:
    """Guilty sites and the clause that says where it was born."""
    if event is not None:
        sites = [str(s) for s in event.get("sites", [])]
        if event.get("what") == "parameter":
            share = float(event.get("share", 0.0))
            # the step before broke the weights: its gradients or its size
            blown = f"the update of step {step - 1} made {100 * share:.0f} % of the parameters non-finite"
            before = _largest_update(trace, step)
            return sites, f": {blown}" + (f", `{sites[0]}` first" if sites else "") + before
        operation = str(event.get("operation", ""))
        at = f" at `{sites[0]}`" if sites else ""
        return sites, f": it was born in the forward pass in `{operation}`{at}, while every weight was finite"
    look = np.flatnonzero(trace.steps >= step)
    if look.size:
        for group, what in ((Group.OUTPUT, "output"), (Group.GRADIENT, "gradient")):
            bad = np.flatnonzero(trace.nonfinite[group][look[0]])
            if bad.size:
                first = bad[0] if group is Group.OUTPUT else bad[-1]
                return list(trace.names(bad)), f": the first non-finite {what} is that of `{trace.sites[int(first)].name}`"
    return [], ""


def _largest_update(trace: Trace, step: int) -> str:
    """How large the last measured updates were, when they were unreasonable."""
    looks = np.flatnonzero(trace.steps < step)
    if not looks.size:
        return ""
    ratio = trace.log10_update_ratio[looks[-1]]
    if not np.isfinite(ratio).any() or np.nanmax(ratio) < -1.0:
        return ""
    worst = int(np.nanargmax(ratio))
    name, step_before = trace.sites[worst].name, int(trace.steps[looks[-1]])
    return f"; at step {step_before} the update of `{name}` was {10 ** ratio[worst]:.2g} of its size"


def _finding(
    trace: Trace, step: int, sites: list[str], sentence: str, helps: tuple[str, ...], claim: str, value: float
) -> Finding:
    last = int(trace.ledger.step[-1]) if trace.ledger.step.size else step
    return Finding(
        rule=NAME,
        severity=Severity.ERROR,
        confidence=1.0,
        sites=tuple(sites),
        steps=(step, max(last, step)),
        sentence=sentence,
        evidence=(Evidence(claim, value, float("nan"), "IEEE 754", "none: a NaN is a fact"),),
        helps=helps,
        starts=sites[0] if sites else "",
        shows=tuple(sites),
    )
