"""Which finding explains which: a root cause comes first, and what follows from it is listed under it.

Rules do not know of each other; what they say together is put in order here. Of two findings the one that began earlier is
the cause, if the table says that it can be; of two that began together, the one that stands earlier in `RULES`.
Diseases change their face (an initialisation that explodes has saturated some steps later), so the onset decides, not
what is strongest in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from gradiometer.types import Finding, Severity

_SCALE: Final = ("poor-initialization", "exploding-through-time", "signal-explosion", "exploding-gradient")
_STEP: Final = ("learning-rate-too-high", "stale-second-moment")
_STILL: Final = (
    "disconnected-parameters",
    "precision-underflow",
    "skipped-steps",
    "clipping-always-on",
    "vanishing-through-time",
    "vanishing-gradient",
    "input-blindness",
    "signal-collapse",
    "dead-units",
    "saturated-units",
    "dead-output",
    "attention-collapse",
    "symmetric-initialization",
    "shattered-gradient",
)

CAUSES: Final[Mapping[str, tuple[str, ...]]] = {
    "nonfinite": (*_SCALE, *_STEP, "divergence", "loss-spike", "attention-collapse"),
    "divergence": ("disconnected-parameters", "nonfinite", *_SCALE, *_STEP, "loss-spike", "precision-underflow"),
    "loss-spike": ("disconnected-parameters", *_SCALE, *_STEP, "attention-collapse"),
    "oscillation": (*_SCALE, *_STEP, "saturated-units", "dead-units"),
    "learning-rate-too-high": (*_SCALE, "stale-second-moment", "loss-spike"),
    "stale-second-moment": ("loss-spike",),
    "signal-explosion": ("poor-initialization", "exploding-through-time", *_STEP, "divergence", "loss-spike"),
    "exploding-gradient": ("poor-initialization", "exploding-through-time", "signal-explosion", *_STEP, "saturated-units"),
    "exploding-through-time": _STEP,
    "clipping-always-on": _SCALE,
    "skipped-steps": ("nonfinite", *_SCALE, *_STEP),
    # along the calls of one cell the factor per step of time is the finding, and depth only what it looks like
    "poor-initialization": ("exploding-through-time", "vanishing-through-time"),
    "saturated-units": (*_SCALE, *_STEP, "divergence", "loss-spike"),
    "dead-units": (
        "symmetric-initialization",
        *_SCALE,
        *_STEP,
        "divergence",
        "loss-spike",
        "signal-collapse",
        "dead-output",
    ),
    "attention-collapse": ("poor-initialization", "signal-explosion", *_STEP),
    "dead-output": (*_SCALE, *_STEP, "dead-units", "saturated-units", "divergence", "signal-collapse", "loss-spike"),
    "vanishing-through-time": ("saturated-units", *_STEP),
    "vanishing-gradient": (
        "disconnected-parameters",
        "symmetric-initialization",
        "precision-underflow",
        *_SCALE,
        *_STEP,
        "vanishing-through-time",
        "dead-units",
        "saturated-units",
        "attention-collapse",
        "dead-output",
        "divergence",
        "loss-spike",
    ),
    "input-blindness": (
        *_SCALE,
        *_STEP,
        "vanishing-through-time",
        "symmetric-initialization",
        "dead-units",
        "saturated-units",
        "attention-collapse",
        "dead-output",
        "vanishing-gradient",
        "signal-collapse",
        "divergence",
        "loss-spike",
    ),
    "signal-collapse": ("poor-initialization", *_STEP, "dead-units", "dead-output", "divergence", "loss-spike"),
    "shattered-gradient": ("poor-initialization", *_STEP, "input-blindness", "dead-units", "saturated-units"),
    "precision-underflow": ("vanishing-through-time", "vanishing-gradient", "dead-units", "poor-initialization"),
    "disconnected-parameters": ("dead-output", "dead-units", "nonfinite"),
    "learning-rate-too-low": (*_STILL, "poor-initialization", "nonfinite"),
    "plateau": (*_STILL, *_SCALE, *_STEP, "learning-rate-too-low", "divergence", "loss-spike", "oscillation", "nonfinite"),
}
"""Symptom -> what can be its cause. A rule that is not a key is never a symptom."""

_OF_STEPS: Final = frozenset(
    (*_STEP, "divergence", "loss-spike", "oscillation", "learning-rate-too-low", "plateau", "clipping-always-on")
)
"""Rules about what steps do: they begin at the first step at the earliest, after whatever step 0 showed of the network."""


_OF_LOOKS: Final = frozenset(CAUSES) - {
    "nonfinite",
    "divergence",
    "loss-spike",
    "oscillation",
    "plateau",
    "skipped-steps",
    "clipping-always-on",
}
"""Rules that judge looks, which lie apart; the others see every step."""

_CHRONIC: Final = frozenset(("oscillation", "plateau"))
"""Rules about the run as a whole: they say how it went and have no onset of their own, so whatever can be their cause is."""


def _can_explain(cause: Finding, symptom: Finding) -> bool:
    """A note is no cause of anything, and what is only worth a warning is no cause of steps that go wrong."""
    if symptom.rule in _OF_STEPS:
        return cause.severity.rank <= symptom.severity.rank and cause.severity is not Severity.INFO
    return cause.severity is not Severity.INFO


def in_order(findings: Sequence[Finding], rank: Mapping[str, int], looks: Sequence[int] = ()) -> list[Finding]:
    """Findings with their root causes filled in (``because``): roots by severity and onset, each before its symptoms.

    A root cause is at least as severe as the worst of what follows from it.

    Args:
        findings: at most one of each rule.
        rank: position of each rule in `RULES`.
        looks: steps that were looked at. What a look shows may have begun at any step since the look before it.
    """

    def onset(finding: Finding) -> tuple[int, int]:
        first = finding.steps[0]
        if finding.rule in _OF_LOOKS:
            first = max((look + 1 for look in looks if look < first), default=first)
        if finding.rule in _CHRONIC:
            first = max(first, finding.steps[1])
        return max(first, 1) if finding.rule in _OF_STEPS else first, rank[finding.rule]

    by_time = sorted(findings, key=onset)
    root_of: dict[str, str] = {}
    for position, finding in enumerate(by_time):
        possible = CAUSES.get(finding.rule, ())
        earlier = [f for f in by_time[:position] if f.rule in possible and _can_explain(f, finding)]
        root_of[finding.rule] = root_of[earlier[0].rule] if earlier else finding.rule
    worst: dict[str, Severity] = {}
    for finding in findings:
        root = root_of[finding.rule]
        worst[root] = min(worst.get(root, finding.severity), finding.severity, key=lambda s: s.rank)
    explained = [
        replace(f, because="" if root_of[f.rule] == f.rule else root_of[f.rule], severity=worst.get(f.rule, f.severity))
        for f in findings
    ]
    roots = sorted((f for f in explained if not f.because), key=lambda f: (f.severity.rank, *onset(f)))
    ordered: list[Finding] = []
    for root in roots:
        symptoms = [f for f in explained if f.because == root.rule]
        ordered += [root, *sorted(symptoms, key=lambda f: (f.severity.rank, *onset(f)))]
    return ordered
