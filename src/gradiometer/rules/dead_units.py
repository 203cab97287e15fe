"""Dead units: rectified units that are zero on every example.

What it finds:
    A layer most of whose ReLU units were exactly zero on all of the last examples looked at (up to 1,000).

Why it hurts:
    A unit that is never active passes no gradient, so nothing can bring it back. A layer of dead units cuts everything
    before it off: the gradient there is exactly zero.

How we tell:
    Per unit (channel), the examples since it was last non-zero. Half of all *elements* being zero is how a ReLU network
    works and is not counted. It is an error where the training keeps more than half of its loss and a dead layer cuts off
    what is before it, or half of the rectified layers are dead; a few unused layers of a network that learns are only a note.

When it is wrong:
    A wide layer of a trained network may rightly leave many units unused, and so may experts that few examples are
    routed to, or a layer that is made sparse on purpose.

What helps:
    - a smaller learning rate (one step too large pushes the biases far below zero)
    - LeakyReLU, GELU or ELU, which keep a slope below zero
    - He initialisation with zero biases
    - normalisation before the activation

References:
    Lu et al. 2019, "Dying ReLU and initialization"; Sokar et al. 2023 (dormant neurons).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from gradiometer.record.frames import Group
from gradiometer.record.trace import IntArray, Span, Trace
from gradiometer.rules.judging import plural, seen, when
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "dead-units"

WARN_SHARE: Final = 0.8
"""Half would be a natural level; a healthy wide layer can leave more than half of its units unused."""
BLOCKED_SHARE: Final = 0.99
"""A layer that lets nothing through."""
MIN_EXAMPLES: Final = 128
"""Fewer examples cannot tell dead from rare."""

HELPS: Final = (
    "lower the learning rate",
    "use an activation that keeps a slope below zero (LeakyReLU, GELU, ELU)",
    "initialise with He and zero biases",
    "put normalisation before the activation",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, over all layers; see the module's text."""
    examples = trace.values["output_examples"]
    counted = examples >= MIN_EXAMPLES
    rectified = np.array([i for i in trace.outputs if np.isfinite(trace.dead_share[:, i]).any()], dtype=np.int64)
    dead = np.where(counted, trace.dead_share, np.nan)[:, rectified]
    ill = np.asarray(dead >= WARN_SHARE)
    span = trace.span(np.any(ill, axis=1), seen(trace, Group.OUTPUT, rectified))
    if span is None:
        return []
    # the last look at which it held: what is dead stays dead, and more join
    look, onset = int(span.looks[-1]), int(span.looks[0])
    first = _silent_since(trace, onset, rectified[ill[onset]])
    step, worst = int(trace.steps[look]), np.flatnonzero(ill[look])
    names = trace.names(rectified)
    blocked = np.flatnonzero(dead[look] >= BLOCKED_SHARE)
    cut_off = blocked.size > 0 and _cut_off(trace, look, int(rectified[blocked[0]]))
    most = 2 * len(worst) >= len(rectified)
    top = int(blocked[0]) if cut_off else int(worst[np.argmax(dead[look, worst])])
    seen_examples = float(examples[look, rectified[top]])
    others = len(worst) - 1
    since = when(replace(span, first=first))
    sentence = f"{100 * dead[look, top]:.0f} % of the units of `{names[top]}` are dead (zero on every example), {since}"
    if others:
        verb = "has" if others == 1 else "have"
        sentence += f"; {plural(others, 'other layer', 'other layers')} {verb} more than {100 * WARN_SHARE:.0f} % dead units"
    if cut_off:
        sentence += "; no gradient reaches the layers before"
    finding = Finding(
        rule=NAME,
        severity=_severity(trace, span, severe=cut_off or most, noticeable=blocked.size > 0 or most),
        confidence=0.95 if seen_examples >= 1000 else 0.8,
        sites=tuple(names[int(i)] for i in worst),
        steps=(first, span.last),
        sentence=sentence + ".",
        evidence=(
            Evidence(
                f"share of the units of {names[top]} that were zero on all of the last {seen_examples:,.0f} examples, "
                f"at step {step}",
                float(dead[look, top]),
                WARN_SHARE,
                "our level; well runs of the calibration half of the zoo stay below 0.4",
                "an example that makes those units answer",
            ),
        ),
        helps=HELPS,
        starts=names[int(np.flatnonzero(ill[onset])[0])],
        shows=tuple(names[int(i)] for i in worst),
        peak=step,
    )
    return [finding]


def _silent_since(trace: Trace, onset: int, sites: IntArray) -> int:
    """The step from which on these sites gave (almost) nothing but zeros, up to the look that had seen enough to say so."""
    zeros = trace.values["output_zeros"][:, sites] / trace.values["output_count"][:, sites]
    silent = np.all(zeros >= WARN_SHARE, axis=1)
    while onset > 0 and silent[onset - 1]:
        onset -= 1
    return int(trace.steps[onset])


def _severity(trace: Trace, span: Span, *, severe: bool, noticeable: bool) -> Severity:
    if span.at_end and trace.suffers and severe:
        return Severity.ERROR
    return Severity.WARNING if noticeable or not trace.learned else Severity.INFO


def _cut_off(trace: Trace, look: int, site: int) -> bool:
    """Whether no gradient gets past ``site``: every site before it in its network has an exactly zero one."""
    chain: IntArray = next(c for c in trace.chains if site in c)
    y = trace.log10_gradient[:, chain[chain < site]]
    # the last look may have seen no gradient (the other network's turn)
    known = np.flatnonzero(~np.isnan(y).all(axis=1))
    known = known[known <= look]
    if not known.size:
        return False
    row = y[known[-1]]
    return bool(np.isneginf(row[~np.isnan(row)]).all())
