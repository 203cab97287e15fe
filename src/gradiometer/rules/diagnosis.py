"""The reading of a whole run: its findings, and one word for it that is never better than what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gradiometer.record.trace import SETTLE, Trace
from gradiometer.rules import diagnose
from gradiometer.types import Finding, Severity, VerdictWord

NOT_EXPLAINED: Final = (
    "The loss did not fall, though: the cause is none that the present rules look for. "
    "The learning rate, the data and the labels are worth a look."
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a run shows.

    Attributes:
        verdict: sick if a finding is an error; unknown if too little was seen to call the training well.
        sentence: the verdict in one or two sentences.
        findings: worst first.
        unexplained: whether nothing that stops a training was found, and the loss did not fall all the same.
    """

    verdict: VerdictWord
    sentence: str
    findings: tuple[Finding, ...]
    unexplained: bool = False


def examine(trace: Trace) -> Diagnosis:
    """Run every rule and say what it comes to."""
    findings = tuple(diagnose(trace))
    if findings and findings[0].severity is Severity.ERROR:
        return Diagnosis(VerdictWord.SICK, findings[0].sentence, findings)
    gap = _too_little(trace)
    if gap:
        return Diagnosis(VerdictWord.UNKNOWN, gap, findings)
    return Diagnosis(VerdictWord.WELL, _well(trace, findings), findings, _stands_still(trace))


def _too_little(trace: Trace) -> str:
    """Why the run cannot be called well; empty if it can."""
    steps = trace.steps_seen
    if not steps:
        return "No training step was seen."
    if steps <= SETTLE:
        return (
            f"Only {steps} step{'s were' if steps > 1 else ' was'} seen; "
            f"calling a training well takes more than {SETTLE}, because some disorders heal by then and others begin."
        )
    settled = trace.steps >= SETTLE
    if not settled.any():
        return (
            f"None of the {steps} steps after the first {SETTLE} was looked at closely: "
            "the budget was too small. Give a larger --overhead, or --every 10."
        )
    outputs = np.isfinite(trace.log10_gradient[settled][:, trace.outputs])
    if not outputs.any() and not trace.learned:
        seen = np.isfinite(trace.log10_weight_gradient[settled][:, trace.parameters]).any()
        what = "Only parameters could be measured, no layer's output" if seen else "No gradient was seen"
        return f"{what}, and the loss did not fall clearly: that is too little to tell."
    return ""


def _well(trace: Trace, findings: tuple[Finding, ...]) -> str:
    layers = len(trace.outputs) or len(trace.parameters)
    what = "outputs" if len(trace.outputs) else "parameters"
    sentence = f"Nothing vanishes and nothing explodes over {trace.steps_seen} steps and {layers} {what}."
    if findings:
        sentence = f"No disease that stops the training over {trace.steps_seen} steps, but {_count(len(findings))}."
    return f"{sentence} {NOT_EXPLAINED}" if _stands_still(trace) else sentence


def _stands_still(trace: Trace) -> bool:
    moved = trace.learning
    return bool(np.isfinite(moved.fall) and not trace.learned and moved.end >= moved.start - 3.0 * moved.noise)


def _count(number: int) -> str:
    return "one thing to know about" if number == 1 else f"{number} things to know about"
