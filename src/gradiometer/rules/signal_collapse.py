"""Signal collapse: the activations shrink to nothing along depth.

What it finds:
    The root mean square of module outputs falls by several decades from the input to the output.

Why it hurts:
    What reaches the last layers is a whisper. Their weights get a gradient proportional to it, and the layers before
    them one that is small as well. The trap: in a small-weight ReLU or tanh network the gradients of the *weights* are
    equally small at every depth, so a tool that compares weight gradients calls the network healthy.

How we tell:
    log10 of the root mean square of outputs in order of execution, upper envelopes from both ends, lasting beyond the
    first five steps. A single layer that starts at zero (the head, the last layer of a residual branch) does not count.

When it is wrong:
    A network whose data are large numbers and whose targets are small ones shrinks its signal rightly; it learns, and
    then this is a warning at most.

What helps:
    - larger initial weights: He for ReLU, Xavier for tanh; orthogonal
    - normalisation between the layers
    - residual connections

References:
    Poole et al. 2016; He et al. 2015; Mishkin & Matas 2016 (LSUV).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.depth import ZERO_DECADES, fall_towards_output
from gradiometer.record.trace import Trace
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "signal-collapse"

WARN_DECADES: Final = 3.0
"""Healthy trainings of the calibration half of the zoo stay below 2."""

_HELPS: Final = (
    "initialise with the gain of the activation (He for ReLU, Xavier for tanh)",
    "put normalisation between the layers",
    "add residual connections around blocks of layers",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    index = np.array([i for i in trace.outputs if trace.sites[i].role is not Role.EMBEDDING], dtype=np.int64)
    y = trace.log10_signal[:, index]
    falls = np.array([fall_towards_output(row) for row in y])
    span = trace.span(falls >= WARN_DECADES)
    if span is None:
        return []
    look = int(span.looks[int(np.argmax(falls[span.looks]))])
    row, fall = y[look], float(falls[look])
    severity = Severity.ERROR if span.at_end and not trace.learned else Severity.WARNING
    names = trace.names(index)
    level = np.nanmax(np.where(np.isfinite(row), row, np.nan))
    silent = np.flatnonzero(row < level - WARN_DECADES)
    start = int(np.flatnonzero(row >= level - 0.3)[-1])
    quiet_end = "nothing at all" if fall >= ZERO_DECADES else f"{fall:.1f} decades less"
    since = f"from step {span.first}" + ("" if span.at_end else f" until step {span.last}")
    sentence = (
        f"The signal collapses along depth: after `{names[start]}` (rms {10 ** row[start]:.3g}) the last layers carry "
        f"{quiet_end}, {since}."
    )
    if not span.at_end:
        sentence += f" The training was stalled until about step {span.last} and then grew out of it."
    return [
        Finding(
            rule=NAME,
            severity=severity,
            confidence=0.95,
            sites=tuple(names[int(i)] for i in silent),
            steps=(span.first, span.last),
            sentence=sentence,
            evidence=(
                Evidence(
                    f"log10 of the rms of outputs, input end minus output end, at step {int(trace.steps[look])}",
                    fall,
                    WARN_DECADES,
                    "calibrated on the calibration half of the zoo",
                    f"a fall below {WARN_DECADES:g} decades in most looks",
                ),
                Evidence(
                    "share by which the loss fell",
                    trace.learning.fall,
                    0.2,
                    "a class prior alone is worth at most about a tenth",
                    "a loss that falls clearly",
                ),
            ),
            helps=_HELPS,
            starts=names[start],
            shows=tuple(names[int(i)] for i in silent),
        )
    ]
