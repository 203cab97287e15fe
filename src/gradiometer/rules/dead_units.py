"""Dead units: rectified units that are zero on every example.

What it finds:
    A layer most of whose ReLU units were exactly zero on all of the last examples looked at (up to 1,000).

Why it hurts:
    A unit that is never active passes no gradient, so nothing can bring it back. A layer of dead units cuts everything
    before it off: the gradient there is exactly zero.

How we tell:
    Per unit (channel), the examples since it was last non-zero. Half of all *elements* being zero is how a ReLU network
    works and is not counted.

When it is wrong:
    A wide layer of a trained network may rightly leave many units unused; experts that few examples are routed to.

What helps:
    - a smaller learning rate (one step too large pushes the biases far below zero)
    - LeakyReLU, GELU or ELU, which keep a slope below zero
    - He initialisation with zero biases
    - normalisation before the activation

References:
    Lu et al. 2019, "Dying ReLU and initialization"; Sokar et al. 2023 (dormant neurons).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.trace import Trace
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "dead-units"

WARN_SHARE: Final = 0.8
"""theory.md D1.5 proposes 0.5 for an error; a healthy wide layer can leave more than half of its units unused."""
BLOCKED_SHARE: Final = 0.99
"""A layer that lets nothing through."""
MIN_EXAMPLES: Final = 128
"""Fewer examples cannot tell dead from rare."""

_HELPS: Final = (
    "lower the learning rate",
    "use an activation that keeps a slope below zero (LeakyReLU, GELU, ELU)",
    "initialise with He and zero biases",
    "put normalisation before the activation",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, over all layers; see the module's text."""
    index = trace.outputs
    dead = trace.dead_share[:, index]
    dead = np.where(trace.values["output_examples"][:, index] >= MIN_EXAMPLES, dead, np.nan)
    with np.errstate(invalid="ignore"):
        ill = np.asarray(dead >= WARN_SHARE)
    span = trace.span(np.any(ill, axis=1))
    if span is None:
        return []
    last = int(span.looks[-1])
    worst = np.flatnonzero(ill[last])
    names = trace.names(index)
    blocked = [int(i) for i in worst if dead[last, i] >= BLOCKED_SHARE]
    cut_off = bool(blocked) and _nothing_before(trace, int(trace.steps.size - 1), int(index[blocked[0]]))
    severity = Severity.ERROR if span.at_end and not trace.learned and (cut_off or blocked) else Severity.WARNING
    top = int(worst[np.argmax(dead[last, worst])])
    onset = np.flatnonzero(np.any(ill, axis=1))[0]
    start = int(np.flatnonzero(ill[onset])[-1 if not blocked else 0])
    sentence = (
        f"{100 * dead[last, top]:.0f} % of the units of `{names[top]}` are dead (zero on every example) from step {span.first}"
        + (f"; {len(worst)} layers have more than {100 * WARN_SHARE:.0f} % dead units" if len(worst) > 1 else "")
        + ("; no gradient passes to the layers before" if cut_off else "")
        + "."
    )
    return [
        Finding(
            rule=NAME,
            severity=severity,
            confidence=0.95 if trace.values["output_examples"][last, index[top]] >= 1000 else 0.8,
            sites=tuple(names[int(i)] for i in worst),
            steps=(span.first, span.last),
            sentence=sentence,
            evidence=(
                Evidence(
                    f"share of units of {names[top]} that were zero on all of the last "
                    f"{trace.values['output_examples'][last, index[top]]:.0f} examples",
                    float(dead[last, top]),
                    WARN_SHARE,
                    "theory.md D1.5, raised on the calibration half of the zoo",
                    "an example that makes those units answer",
                ),
            ),
            helps=_HELPS,
            starts=names[start],
            shows=tuple(names[int(i)] for i in worst),
        )
    ]


def _nothing_before(trace: Trace, look: int, site: int) -> bool:
    """Whether every site before ``site`` has an exactly zero gradient."""
    before = trace.outputs[trace.outputs < site]
    y = trace.log10_gradient[look, before]
    return bool(y.size) and bool(np.isneginf(y[~np.isnan(y)]).all())
