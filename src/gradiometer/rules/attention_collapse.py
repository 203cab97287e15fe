"""Attention collapse: every query looks at a single place, whatever the input is worth.

What it finds:
    Attention weights that have become choices: nearly all of each row on one entry, with logits so large that the softmax
    has no slope, in most attention layers of a training that fails or has come undone.

Why it hurts:
    A softmax at the end of its range passes no gradient to queries and keys: what was chosen stays chosen. The logits
    keep growing, and with them the sharpness of the loss, until a step throws the training off.

How we tell:
    The mean entropy of the rows as a share of the largest possible (1 uniform, 0 one choice), and the share of rows with more
    than 0.99 on one entry, in at least half of the attention layers, lasting to the end; and a loss that has not
    fallen, or that ends well above the best it had. Heads of a trained model are rightly sharp, and say nothing while it trains
    well. Rows that are choices before the first step and at the end have learned none: an error where the loss has not
    fallen by nine tenths, and a warning else. With few places to look at some rows are undecided by chance; there
    logits above 50 from the first step on, and less than half of the entropy, are enough in a training that fails. Logits in
    the tens of thousands are a warning.

When it is wrong:
    A task that is solved by copying and fails for another reason.

What helps:
    - normalise queries and keys before their product (QK-norm), or cap the logits
    - divide the product by the square root of the head's width
    - a smaller learning rate or a longer warm-up
    - smaller initial weights of queries and keys

References:
    Zhai et al. 2023 (entropy collapse, sigma-reparametrisation); Wortsman et al. 2023 (growth of attention logits);
    Dehghani et al. 2023 (QK-norm).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.frames import Group
from gradiometer.record.trace import Trace
from gradiometer.rules.judging import size, when
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "attention-collapse"

SPREAD: Final = 0.1
"""Ours: the entropy of a row that has nine tenths on one of 64 entries is about 0.15 of the largest possible."""
PEAKED: Final = 0.8
"""Ours: four rows of five with more than 0.99 on one entry."""
STEEP_LOGIT: Final = 50.0
"""Ours: of two logits that lie tens apart the softmax passes less than 1e-9 of the gradient."""
HALF_SPREAD: Final = 0.5
"""Ours: rows start near 1, whatever there is to look at."""
HUGE_LOGIT: Final = 1e4
"""Wortsman et al. 2023: trainings become unstable near there."""
FROZEN: Final = 0.03
"""Ours: rows that were choices before the first step, and in every look since, were never learned and cannot be."""
LEARNED_WELL: Final = 0.9
"""Ours: a loss that fell by nine tenths did not need those choices to be good ones."""
UNDONE: Final = 1.2
"""Ours: the loss ends a fifth above the best level it had, beyond its noise."""

HELPS: Final = (
    "normalise queries and keys before their product (QK-norm), or cap the logits",
    "divide the product of queries and keys by the square root of the head's width",
    "lower the learning rate or warm it up longer",
    "initialise queries and keys smaller",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, over all attention layers; see the module's text."""
    index = trace.attentions
    if not index.size:
        return []
    spread, logit = trace.attention_spread[:, index], trace.values["attention_logit"][:, index]
    with np.errstate(divide="ignore", invalid="ignore"):
        peaked = trace.values["attention_peaked"][:, index] / trace.values["attention_rows"][:, index]
    ill = np.asarray((spread <= SPREAD) | (peaked >= PEAKED))
    steep = np.asarray((spread <= HALF_SPREAD) & (logit >= STEEP_LOGIT))
    if trace.stalled and trace.steps.size and trace.steps[0] == 0 and np.count_nonzero(steep[0]) * 2 >= index.size:
        ill |= steep
    huge = np.asarray(logit >= HUGE_LOGIT)
    known = ~np.isnan(spread)
    most = np.count_nonzero(ill & known, axis=1) * 2 >= np.maximum(np.count_nonzero(known, axis=1), 1)
    collapsed = np.asarray(most & ill.any(axis=1))
    born = bool(collapsed.size and trace.steps[0] == 0 and collapsed[0])
    frozen = np.count_nonzero((spread <= FROZEN) & known, axis=1) * 2 >= np.maximum(np.count_nonzero(known, axis=1), 1)
    stuck = born and bool(np.all(frozen | ~known.any(axis=1))) and trace.learning.fall < LEARNED_WELL
    fails = trace.stalled or _undone(trace) or stuck or (born and not trace.running and trace.learning.fall < LEARNED_WELL)
    collapse = fails or born
    held = collapsed if collapse else huge.any(axis=1)
    span = trace.span(np.asarray(held), np.asarray(np.any(trace.recorded[Group.ATTENTION][:, index], axis=1)))
    if span is None or not span.at_end:
        return []
    look, step = int(span.looks[-1]), int(trace.steps[span.looks[-1]])
    worst = np.flatnonzero(ill[look] if collapse else huge[look])
    names, top = trace.names(index), int(worst[0])
    largest = float(np.nanmax(logit[look])) if np.isfinite(logit[look]).any() else float("nan")
    sentence = (
        f"Attention has collapsed in {len(worst)} of {len(names)} layers (`{names[top]}` first), {when(span)}: rows keep "
        f"{100 * max(spread[look, top], 0.0):.0f} % of the entropy they could have"
        if collapse
        else f"Attention logits are huge in {len(worst)} of {len(names)} layers (`{names[top]}` first), {when(span)}"
    )
    if np.isfinite(largest):
        sentence += f", and the largest logit is {size(float(np.log10(max(largest, 1e-30))))}"
    evidence = [
        Evidence(
            f"mean entropy of the rows of {names[top]} as a share of the largest possible, at step {step}",
            float(spread[look, top]) if np.isfinite(spread[look, top]) else 0.0,
            SPREAD,
            "ours; Zhai et al. 2023 describe the fall",
            "a spread above it in most layers",
        )
    ]
    if np.isfinite(largest):
        evidence.append(Evidence("largest absolute logit", largest, HUGE_LOGIT, "Wortsman et al. 2023"))
    return [
        Finding(
            rule=NAME,
            severity=Severity.ERROR if fails else Severity.WARNING,
            confidence=0.85 if fails else 0.7,
            sites=tuple(names[int(i)] for i in worst),
            steps=(span.first, span.last),
            sentence=sentence + ".",
            evidence=tuple(evidence),
            helps=HELPS,
            starts=names[top],
            shows=tuple(names[int(i)] for i in worst),
            peak=step,
        )
    ]


def _undone(trace: Trace) -> bool:
    """Whether the loss ends well above the best level it had."""
    moved = trace.learning
    if not np.isfinite(moved.fall) or moved.best <= 0.0:
        return False
    return moved.end > UNDONE * moved.best and moved.end - moved.best > 3.0 * moved.noise
