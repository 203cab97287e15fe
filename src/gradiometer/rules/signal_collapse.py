"""Signal collapse: the activations shrink to nothing along depth.

What it finds:
    The root mean square of module outputs falls by several decades from the input to the output.

Why it hurts:
    What reaches the last layers is a whisper. Their weights get a gradient proportional to it, and the layers before
    them one that is small as well. The trap: in a small-weight ReLU or tanh network the gradients of the *weights* are
    equally small at every depth, so a tool that compares weight gradients calls the network healthy.

How we tell:
    log10 of the root mean square of outputs in order of execution, the most that the last hidden layers
    carry against the most of all others, lasting beyond the first five steps. The head does not count (the targets give it
    its size), nor does a single layer that starts at zero (the last layer of a residual branch).

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

from gradiometer.record.depth import ZERO_DECADES, falls_towards_output
from gradiometer.record.frames import Group
from gradiometer.record.trace import LEARNED_FALL, IntArray, Trace
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

NAME: Final = "signal-collapse"

WARN_DECADES: Final = 3.0
"""Well runs of the calibration half of the zoo stay below 1.1, those of the evaluation half below 2."""
EXTREME_DECADES: Final = 6.0
"""Beyond the relative resolution of float32 (seven digits): what biases add in the first step drowns the signal, so that
the collapse may show at the very first look only."""

HELPS: Final = (
    "initialise with the gain of the activation (He for ReLU, Xavier for tanh)",
    "put normalisation between the layers",
    "add residual connections around blocks of layers",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the network that has it worst; see the module's text."""
    return each_network(trace, _judge)


def _judge(trace: Trace, chain: IntArray) -> Case | None:
    index = hidden_sites(trace, chain)
    y = trace.log10_signal[:, index]
    falls = falls_towards_output(y)
    extreme = (falls >= EXTREME_DECADES) & (falls < ZERO_DECADES)
    span = span_from_start(trace, falls >= WARN_DECADES, seen(trace, Group.OUTPUT, index), extreme)
    if span is None:
        return None
    look = int(span.looks[np.argmax(falls[span.looks])])
    step, row, fall = int(trace.steps[look]), y[look], float(falls[look])
    names = trace.names(index)
    level = np.max(row[np.isfinite(row)])
    start = int(np.flatnonzero(row >= level - 0.3)[-1])
    silent = np.flatnonzero(row < level - WARN_DECADES)
    silent = silent[silent > start] if (silent > start).any() else silent
    quiet_end = "carry nothing at all" if fall >= ZERO_DECADES else f"carry {fall:.1f} decades less"
    sentence = (
        f"The signal collapses along depth: after `{names[start]}` (rms {size(row[start])}) the last layers {quiet_end}, "
        f"{when(span)}."
    )
    if not span.at_end and trace.learned:
        sentence += f" The training was stalled until about step {span.last} and then grew out of it."
    elif not span.at_end:
        sentence += " Later the biases fill the gap, with numbers that do not depend on the input."
    evidence = [
        Evidence(
            f"decades (log10) by which the rms of outputs is smaller near the output than near the input, at step {step}"
            + (" (an exact zero counts as 45)" if fall >= ZERO_DECADES else ""),
            fall,
            WARN_DECADES,
            "checked on the calibration half of the zoo",
            f"a fall below {WARN_DECADES:g} decades in most looks",
        )
    ]
    if np.isfinite(trace.learning.fall):
        source = "a class prior alone is worth at most about a tenth"
        evidence.append(
            Evidence("share by which the loss fell", trace.learning.fall, LEARNED_FALL, source, "a loss that falls clearly")
        )
    severity = severity_of(trace, span, extreme=False)
    if broke_the_start(trace, span):
        severity = Severity.ERROR
    finding = Finding(
        rule=NAME,
        severity=severity,
        confidence=0.95,
        sites=tuple(names[int(i)] for i in silent),
        steps=(span.first, span.last),
        sentence=sentence,
        evidence=tuple(evidence),
        helps=HELPS,
        starts=names[start],
        shows=tuple(names[int(i)] for i in silent),
        peak=step,
    )
    return Case(finding, fall)
