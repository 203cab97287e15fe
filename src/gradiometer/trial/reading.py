"""A record, read as a `Trial`: the same numbers whether a command or a notebook was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from gradiometer.record.frames import Flag
from gradiometer.record.trace import Trace
from gradiometer.rules import diagnose
from gradiometer.trial.result import Ending, Given, Mark, Place, Trial
from gradiometer.types import Finding, Prescription

BINS: Final = 60
"""Entries of the loss curve of a full trial."""
WARM_UP: Final = 0.1
"""Share of the steps at the start whose time says nothing: allocations, compilation, cold caches."""
HELD_OUT: Final = "held-out loss"
"""What a loss is called that the training computes without a gradient; the function and the place in the code follow."""


def bin_steps(steps: int) -> int:
    """How many steps make one entry of the loss curve of trials of at most so many steps."""
    return max(1, math.ceil(steps / BINS))


def mark(finding: Finding) -> Mark:
    """A finding in short."""
    return Mark(finding.rule, finding.severity, finding.because, finding.sentence)


def as_trial(
    name: str, prescription: Prescription | None, seed: int, steps: int, width: int, trace: Trace, early: bool
) -> Trial:
    """What a record shows; whether its command ended well is the caller's matter.

    Args:
        name: of the trial.
        prescription: what it was treated with.
        seed: of the trial.
        steps: it was given.
        width: steps of an entry of the loss curve.
        trace: its numbers.
        early: whether it is judged as a training that would go on.
    """
    trace = replace(trace, running=early)
    treated = [e for e in trace.events if e.get("event") == "treated"]
    failed = next((e for e in trace.events if e.get("event") == "treatment-failed"), None)
    trouble = ""
    if failed is not None:
        trouble = str(failed.get("sentence") or "the remedy could not be applied").strip().rstrip(".")
    elif prescription is not None and not treated and trace.steps_seen:
        trouble = "no model was found that it could be given to"
    return Trial(
        name=name,
        prescription=prescription,
        seed=seed,
        steps=steps,
        ending=Ending.REFUSED if trouble else Ending.RAN,
        trouble=f"{trouble[0].upper()}{trouble[1:]}." if trouble else "",
        taken=trace.steps_seen,
        bin_steps=width,
        curve=curve(trace, width),
        several=len(trace.losses) > 1,
        learned=trace.learned,
        findings=tuple(mark(f) for f in diagnose(trace)),
        metrics=metrics(trace.events),
        seconds_per_step=seconds_per_step(trace),
        given=tuple(one for event in treated if event.get("rank", 0) == 0 for one in _given(event)),
        places=places(trace.events),
    )


def curve(trace: Trace, width: int) -> tuple[float, ...]:
    """Median loss of each ``width`` steps; NaN where one was no number, or none is known."""
    ledger = trace.ledger
    if not ledger.step.size:
        return ()
    loss, bad = ledger["loss"], ledger.has(Flag.NONFINITE) & ~np.isfinite(ledger["loss"])
    which = ledger.step // width
    values: list[float] = []
    for k in range(int(which[-1]) + 1):
        here = which == k
        known = loss[here][np.isfinite(loss[here])]
        values.append(math.nan if bad[here].any() or not known.size else float(np.median(known)))
    return tuple(values)


def seconds_per_step(trace: Trace) -> float:
    """Median time of a step without the first ones and without the probe's own; NaN if unknown."""
    ledger = trace.ledger
    if ledger.step.size < 10:
        return math.nan
    first = max(1, round(WARM_UP * ledger.step.size))
    own = np.nan_to_num(ledger["own_seconds"])
    steps = np.diff(ledger.step)[first:]
    times = (np.diff(ledger["seconds"] - own))[first:] / np.maximum(steps, 1)
    times = times[np.isfinite(times)]
    return float(np.median(times)) if times.size else math.nan


# ---- what the process said ---------------------------------------------------------------------------------------------


def metrics(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last value of each number that the training evaluated or logged."""
    found: dict[str, float] = {}
    for event in events:
        if event.get("event") == "metric":
            found[str(event.get("name", "metric"))] = _number(event.get("value"))
        elif event.get("event") == "evaluated":
            found[f"{HELD_OUT} ({event.get('name')}, {event.get('where')})"] = _number(event.get("value"))
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _given(event: Mapping[str, Any]) -> list[Given]:
    return [
        Given(str(one["remedy"]), dict(one["settings"]), tuple(str(change) for change in one["changes"]))
        for one in event.get("given", ())
    ]


def places(events: Sequence[Mapping[str, Any]]) -> tuple[Place, ...]:
    """Calls in the user's code, from the events ``treated`` and ``places`` of the first rank; each once."""
    found: list[Place] = []
    for event in events:
        if event.get("rank", 0) != 0:
            continue
        if event.get("event") == "treated":
            names = tuple(event.get("names", ()))
            found += _place("forward", event.get("call"), names)
            found += _place("wrapped", event.get("wrapped"), names)
            for made in event.get("optimizers", ()):
                found += _place("optimizer", made.get("place"), tuple(made.get("models", ())), made.get("kind", ""))
            found += _makings(event.get("modules", ()))
        elif event.get("event") == "places":
            found += _place("step", event.get("stepped"), tuple(event.get("names", ())), event.get("optimizer", ""))
            for call in event.get("activations", ()):
                found += _place("activation", call, (), call.get("function", ""))
    return tuple(dict.fromkeys(found))


def _place(what: str, facts: Mapping[str, Any] | None, names: tuple[str, ...], detail: str = "") -> list[Place]:
    """A place from what an event says of it, in a list; an empty list where it says nothing."""
    if not facts:
        return []
    lines = (int(facts["line"]), int(facts["end_line"]), int(facts["column"]), int(facts["end_column"]))
    statement = (int(facts["statement_line"]), int(facts["statement_end"]))
    return [Place(what, str(facts["file"]), *lines, *statement, names, detail)]


def _makings(modules: Sequence[Mapping[str, Any]]) -> list[Place]:
    """One place for each call that made modules, with their names."""
    made: dict[Place, list[str]] = {}
    for module in modules:
        for place in _place("module", module, (), str(module.get("kind", ""))):
            made.setdefault(place, []).extend(str(name) for name in module.get("modules", ()))
    return [replace(place, modules=tuple(names)) for place, names in made.items()]
