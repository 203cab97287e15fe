"""Signal explosion: the activations grow without bound along depth.

What it finds:
    The root mean square of module outputs grows by several decades from the input to the output.

Why it hurts:
    The loss and its gradient are dominated by a few huge numbers, the number format overflows, softmax and sigmoid
    saturate. With float16 anything above 65,504 is infinite.

How we tell:
    log10 of the root mean square of outputs in order of execution, the most that the first layers carry against
    the most of all others, lasting beyond the first five steps. The head does not count: the targets give it its size.

When it is wrong:
    Regression onto targets that are themselves large numbers.

What helps:
    - smaller initial weights: the critical scale of the activation
    - normalisation between the layers
    - residual branches scaled by 1/sqrt(number of blocks), or started at zero

References:
    Poole et al. 2016; Zhang et al. 2019 (Fixup); De & Smith 2020 (SkipInit).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.depth import falls_towards_input
from gradiometer.record.frames import Group
from gradiometer.record.trace import IntArray, Trace
from gradiometer.rules.judging import (
    Case,
    broke_the_start,
    each_network,
    hidden_sites,
    seen,
    severity_of,
    size,
    span_from_start,
    when,
)
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "signal-explosion"

WARN_DECADES: Final = 3.0
"""Well runs of the calibration half of the zoo stay below 1.1, those of the evaluation half below 2."""
ERROR_DECADES: Final = 6.0
"""Beyond the relative resolution of float32 (seven digits): an error whatever the loss does."""

HELPS: Final = (
    "scale the initial weights down to the critical point of the activation",
    "put normalisation between the layers",
    "scale residual branches by 1/sqrt(number of blocks), or start them at zero",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the network that has it worst; see the module's text."""
    return each_network(trace, _judge)


def _judge(trace: Trace, chain: IntArray) -> Case | None:
    index = hidden_sites(trace, chain)
    y = trace.log10_signal[:, index]
    y = np.where(np.isfinite(y), y, np.nan)
    rises = falls_towards_input(y)
    span = span_from_start(trace, rises >= WARN_DECADES, seen(trace, Group.OUTPUT, index), rises >= ERROR_DECADES)
    if span is None:
        return None
    look = int(span.looks[np.argmax(rises[span.looks])])
    step, row, rise = int(trace.steps[look]), y[look], float(rises[look])
    severity = severity_of(trace, span, extreme=rise >= ERROR_DECADES)
    if broke_the_start(trace, span):
        severity = Severity.ERROR
    names = trace.names(index)
    largest = int(np.nanargmax(row))
    loud = np.flatnonzero(row >= row[largest] - 1.0)
    quiet = np.flatnonzero(row <= row[largest] - rise + 0.3)
    start = int(quiet[0]) if quiet.size else int(np.flatnonzero(np.isfinite(row))[0])
    guilty = [i for i in range(start, int(loud[-1]) + 1) if np.isfinite(row[i])] or [int(i) for i in loud]
    sentence = (
        f"The signal explodes along depth: from rms {size(row[start])} at `{names[start]}` to {size(row[largest])} at "
        f"`{names[largest]}` ({rise:.1f} decades), {when(span)}."
    )
    finding = Finding(
        rule=NAME,
        severity=severity,
        confidence=0.95,
        sites=tuple(names[i] for i in guilty),
        steps=(span.first, span.last),
        sentence=sentence,
        evidence=(
            Evidence(
                f"decades (log10) by which the rms of outputs is larger near the output than near the input, at step {step}",
                rise,
                WARN_DECADES,
                "checked on the calibration half of the zoo",
                f"a growth below {WARN_DECADES:g} decades in most looks",
            ),
        ),
        helps=HELPS,
        starts=names[start],
        shows=tuple(names[int(i)] for i in loud),
        peak=step,
    )
    return Case(finding, rise)
