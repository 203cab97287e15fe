"""Signal explosion: the activations grow without bound along depth.

What it finds:
    The root mean square of module outputs grows by several decades from the input to the output.

Why it hurts:
    The loss and its gradient are dominated by a few huge numbers, the number format overflows, softmax and sigmoid
    saturate. With float16 anything above 65,504 is infinite.

How we tell:
    log10 of the root mean square of outputs in order of execution, upper envelopes from both ends (so one large output
    layer does not count), lasting beyond the first five steps.

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

from gradiometer.record.depth import fall_towards_input
from gradiometer.record.trace import Trace
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "signal-explosion"

WARN_DECADES: Final = 3.0
"""Healthy trainings of the calibration half of the zoo stay below 2."""
ERROR_DECADES: Final = 6.0
"""Beyond the relative resolution of float32 (seven digits): an error whatever the loss does."""

_HELPS: Final = (
    "scale the initial weights down to the critical point of the activation",
    "put normalisation between the layers",
    "scale residual branches by 1/sqrt(number of blocks), or start them at zero",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    index = np.array([i for i in trace.outputs if trace.sites[i].role is not Role.EMBEDDING], dtype=np.int64)
    y = np.where(np.isfinite(trace.log10_signal[:, index]), trace.log10_signal[:, index], np.nan)
    rises = np.array([fall_towards_input(row) for row in y])
    span = trace.span(rises >= WARN_DECADES)
    if span is None:
        return []
    look = int(span.looks[int(np.argmax(rises[span.looks]))])
    row, rise = y[look], float(rises[look])
    lasting = span.at_end or span.first <= 5
    severity = Severity.ERROR if lasting and (not trace.learned or rise >= ERROR_DECADES) else Severity.WARNING
    names = trace.names(index)
    top = float(np.nanmax(row))
    loud = np.flatnonzero(row >= top - 1.0)
    start = int(np.flatnonzero(row <= top - rise + 0.3)[0]) if (row <= top - rise + 0.3).any() else 0
    since = f"from step {span.first}" + ("" if span.at_end else f" until step {span.last}")
    sentence = (
        f"The signal explodes along depth: from rms {10 ** row[start]:.3g} at `{names[start]}` to {10**top:.3g} at "
        f"`{names[int(np.nanargmax(row))]}` ({rise:.1f} decades), {since}."
    )
    return [
        Finding(
            rule=NAME,
            severity=severity,
            confidence=0.95,
            sites=tuple(names[i] for i in range(start, int(loud[-1]) + 1)),
            steps=(span.first, span.last),
            sentence=sentence,
            evidence=(
                Evidence(
                    f"log10 of the rms of outputs, output end minus input end, at step {int(trace.steps[look])}",
                    rise,
                    WARN_DECADES,
                    "calibrated on the calibration half of the zoo",
                    f"a growth below {WARN_DECADES:g} decades in most looks",
                ),
            ),
            helps=_HELPS,
            starts=names[start],
            shows=tuple(names[int(i)] for i in loud),
        )
    ]
