"""From profiles to findings: the same diseases and thresholds as the rules that read a training, at its very first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gradiometer.preflight.result import LayerForecast
from gradiometer.record.depth import ZERO_DECADES, end_width, fall_towards_input, fall_towards_output
from gradiometer.record.ledger import FloatArray
from gradiometer.rules import (
    dead_units,
    exploding_gradient,
    input_blindness,
    saturated_units,
    signal_collapse,
    signal_explosion,
    vanishing_gradient,
)
from gradiometer.rules.judging import factor, size
from gradiometer.types import Evidence, Finding, Severity

VANISHING: Final = vanishing_gradient.WARN_DECADES
"""The level of the rule, set on the zoo; docs/forecast.md counts how many trainings beyond it failed, and how many did not."""
EXPLODING: Final = exploding_gradient.WARN_DECADES
EXPLODED: Final = 2.0
"""An error from here on: see benchmarks/forecast.py. Between the two a warmup or a norm usually copes."""
BLIND: Final = math.log10(input_blindness.BLIND_SHARE)
SIGHTED: Final = math.log10(input_blindness.SIGHTED_SHARE)
SIGNAL: Final = signal_collapse.WARN_DECADES
SIGNAL_EXTREME: Final = signal_collapse.EXTREME_DECADES
MIN_LAYERS: Final = 3

_SOURCE: Final = "our level, the rule's; see docs/forecast.md for what trainings beyond it did"


@dataclass(frozen=True, slots=True)
class Profile:
    """What is judged, along one network, in order of execution; log10.

    Attributes:
        layers: the sites.
        signal, gradient, apart: shape (n,), -inf for an exact zero, NaN where unknown.
        forecast: whether the gradients are forecast ones: those measured are zero by design at the first step.
    """

    layers: Sequence[LayerForecast]
    signal: FloatArray
    gradient: FloatArray
    apart: FloatArray
    forecast: bool = False


def measured(layers: Sequence[LayerForecast]) -> Profile:
    """The profile that the first pass showed."""
    return Profile(
        layers,
        np.array([layer.measured_signal for layer in layers]),
        np.array([layer.measured_gradient for layer in layers]),
        np.array([layer.measured_apart for layer in layers]),
    )


def predicted(layers: Sequence[LayerForecast]) -> Profile:
    """The profile that theory expects."""
    return Profile(
        layers,
        np.array([layer.signal.middle for layer in layers]),
        np.array([layer.gradient.middle for layer in layers]),
        np.array([layer.apart.middle for layer in layers]),
        forecast=True,
    )


def judge(profile: Profile) -> list[Finding]:
    """What is wrong with one network before its first step, worst first.

    Args:
        profile: of one connected network.
    """
    if len(profile.layers) < MIN_LAYERS:
        return []
    found = [*_broken(profile)]
    if not found:
        found = [*_vanishing(profile), *_exploding(profile), *_blind(profile), *_signal(profile)]
    return sorted(found, key=lambda f: f.severity.rank)


def decades(profile: Profile) -> tuple[float, float]:
    """Decades by which the gradient falls, and by which it rises, on its way to the input."""
    return fall_towards_input(profile.gradient), fall_towards_output(_finite(profile.gradient))


def _finite(y: FloatArray) -> FloatArray:
    return np.where(np.isfinite(y), y, np.nan)


def _broken(profile: Profile) -> list[Finding]:
    """A signal that is no number: where it is born."""
    for layer, value in zip(profile.layers, profile.signal, strict=True):
        if value == math.inf:
            sentence = f"The output of `{layer.name}` is not finite at the very first forward pass."
            evidence = Evidence("log10 of the output's root mean square", value, math.nan, "measured")
            helps = (
                "look at what this layer computes from its input: a logarithm, a root or a division by zero",
                "check the weights and the data for NaN",
            )
            return [finding("nonfinite", Severity.ERROR, sentence, [evidence], helps, layer.name, [layer.name])]
    return []


def _vanishing(profile: Profile) -> list[Finding]:
    fall = fall_towards_input(profile.gradient)
    if not fall >= VANISHING:
        return []
    y = profile.gradient
    level = float(np.max(y[np.isfinite(y)]))
    source = int(np.flatnonzero(y >= level - 1.0)[0])
    starved = [i for i in np.flatnonzero(y < level - VANISHING) if i < source] or [0]
    names = [layer.name for layer in profile.layers]
    if fall >= ZERO_DECADES:
        how = f"The gradient is exactly zero before `{names[source]}`: {len(starved)} of {len(names)} outputs get none."
    else:
        verb = "is expected to shrink" if profile.forecast else "shrinks"
        how = (
            f"The gradient {verb} by {fall:.1f} decades on its way from `{names[source]}` back to `{names[starved[0]]}`: "
            f"{len(starved)} of {len(names)} outputs get almost none."
        )
    evidence = Evidence(
        "decades by which the gradient of the outputs is smaller near the input than near the output, at the first step",
        fall,
        VANISHING,
        _SOURCE,
        "a fall below 3 decades",
    )
    shows = [names[i] for i in starved]
    return [finding("vanishing-gradient", Severity.ERROR, how, [evidence], vanishing_gradient.HELPS, names[source], shows)]


def _exploding(profile: Profile) -> list[Finding]:
    y = _finite(profile.gradient)
    rise = fall_towards_output(y)
    if not rise >= EXPLODING or sum(layer.has_weights for layer in profile.layers) < exploding_gradient.MIN_LAYERS:
        return []
    names = [layer.name for layer in profile.layers]
    top = int(np.nanargmax(y))
    loud = np.flatnonzero(y >= y[top] - exploding_gradient.LOUD_DECADES)
    verb = "is expected to grow" if profile.forecast else "grows"
    last = int(np.flatnonzero(np.isfinite(y))[-1])
    how = f"The gradient {verb} by {rise:.1f} decades on its way from `{names[last]}` back to `{names[top]}`."
    evidence = Evidence(
        "decades by which the gradient of the outputs is larger near the input than near the output, at the first step",
        rise,
        EXPLODED,
        _SOURCE,
        "a rise below 1.5 decades",
    )
    severity = Severity.ERROR if rise >= EXPLODED else Severity.WARNING
    shows = [names[i] for i in loud]
    return [finding("exploding-gradient", severity, how, [evidence], exploding_gradient.HELPS, names[last], shows)]


def _blind(profile: Profile) -> list[Finding]:
    known = np.flatnonzero(~np.isnan(profile.apart))
    if known.size < 4:
        return []
    y = profile.apart[known]
    near, far = float(y[: max(2, known.size // 3)].max()), float(y[-end_width(known.size) :].max())
    if not (far < BLIND and near > SIGHTED and far < near - 2.0):
        return []
    names = [profile.layers[int(i)].name for i in known]
    start = int(np.flatnonzero(y >= BLIND)[-1]) + 1 if (y >= BLIND).any() else 0
    left = "nothing" if far < -14.0 else f"only {size(far)}"
    sentence = (
        f"The network is blind to its input from `{names[start]}` on: {left} of what its last layers say differs from one "
        f"input to another, against {size(near)} near the input."
    )
    evidence = Evidence(
        "share 1 - c of the output that differs between two inputs, at the output end", 10.0**far, 10.0**BLIND, _SOURCE
    )
    return [
        finding("input-blindness", Severity.ERROR, sentence, [evidence], input_blindness.HELPS, names[start], names[start:])
    ]


def _signal(profile: Profile) -> list[Finding]:
    y = profile.signal
    weighted = [i for i, layer in enumerate(profile.layers) if layer.has_weights]
    if not weighted or weighted[-1] < MIN_LAYERS:
        return []
    hidden = _finite(y[: weighted[-1]])  # the head has the size of the targets, whatever the layers before it do
    fall, rise = fall_towards_output(hidden), fall_towards_input(hidden)
    names = [layer.name for layer in profile.layers]
    found: list[Finding] = []
    for amount, rule, helps, verb in (
        (fall, "signal-collapse", signal_collapse.HELPS, "shrinks"),
        (rise, "signal-explosion", signal_explosion.HELPS, "grows"),
    ):
        if amount >= SIGNAL:
            last = names[weighted[-1] - 1]
            sentence = f"The signal {verb} by a factor of {factor(amount)} from `{names[0]}` to `{last}`."
            severity = Severity.ERROR if amount >= SIGNAL_EXTREME else Severity.WARNING
            evidence = Evidence(f"decades by which the activations' size {verb} along depth", amount, SIGNAL, _SOURCE)
            found.append(finding(rule, severity, sentence, [evidence], helps, names[0], [last]))
    return found


def judge_units(layers: Sequence[LayerForecast]) -> list[Finding]:
    """Activations that let nothing through from the start: dead or saturated ones."""
    found: list[Finding] = []
    blocked = [layer for layer in layers if layer.dead >= dead_units.BLOCKED_SHARE]
    if blocked:
        worst = max(blocked, key=lambda layer: layer.dead)
        sentence = f"`{worst.name}` is zero for every example of the first batch, so that it passes no gradient."
        evidence = Evidence(
            "share of the units that are zero on the whole batch",
            worst.dead,
            dead_units.BLOCKED_SHARE,
            _SOURCE,
            "one unit at work",
        )
        names = [layer.name for layer in blocked]
        found.append(finding("dead-units", Severity.ERROR, sentence, [evidence], dead_units.HELPS, names[0], names))
    flat = [layer for layer in layers if layer.saturated >= saturated_units.WARN_SHARE]
    if flat:
        worst = max(flat, key=lambda layer: layer.saturated)
        sentence = (
            f"{100 * worst.saturated:.0f} % of `{worst.name}` is saturated at the first step: it passes hardly any gradient."
        )
        severity = Severity.ERROR if worst.saturated >= saturated_units.ERROR_SHARE else Severity.WARNING
        evidence = Evidence(
            "share of an activation's elements in its flat part",
            worst.saturated,
            saturated_units.ERROR_SHARE,
            _SOURCE,
            "inputs or weights of another scale",
        )
        names = [layer.name for layer in flat]
        found.append(finding("saturated-units", severity, sentence, [evidence], saturated_units.HELPS, names[0], names))
    return found


def finding(
    rule: str,
    severity: Severity,
    sentence: str,
    evidence: Sequence[Evidence],
    helps: Sequence[str],
    starts: str,
    shows: Sequence[str],
) -> Finding:
    """A finding of the first step."""
    return Finding(
        rule=rule,
        severity=severity,
        confidence=0.9,
        sites=tuple(shows),
        steps=(0, 0),
        sentence=sentence,
        evidence=tuple(evidence),
        helps=tuple(helps),
        starts=starts,
        shows=tuple(shows),
        peak=0,
    )
