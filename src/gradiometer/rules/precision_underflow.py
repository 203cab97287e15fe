"""Precision underflow: numbers too small for the format they are kept in.

What it finds:
    Gradients in float16 that are zero or nearly so because the format holds nothing smaller than 6e-8; and weights in
    bfloat16 or float16 that do not move, because what a step adds to them is less than half the gap to the next number.

Why it hurts:
    A gradient that is rounded to zero is no gradient: the layers that get it stand still, whatever the step size. And a
    bfloat16 weight has three digits: a step of a thousandth of its size is rounded away, every time.

How we tell:
    For outputs computed in float16, the share of the gradient's non-zero elements below the smallest normal number
    (6.1e-5), as they flowed, loss scale included. Zeros alone tell nothing: rectifiers make half of all elements zero. They
    count where the gradient behind is of that small size already. For weights in float16 or bfloat16, the
    share of elements that have a gradient and that the step did not move. Looks while the learning rate is being warmed up
    or has decayed, and looks after the loss has fallen to a tenth, do not count: there small numbers are as they should be. It
    is an error where the training fails, or where most is lost and the loss has not fallen far, else a warning.

When it is wrong:
    Fine-tuning in bfloat16 with a tiny learning rate on purpose; stochastic rounding, which moves few elements far.

What helps:
    - a gradient scaler (torch.amp.GradScaler) with float16, or bfloat16, which needs none
    - weights kept in float32 (autocast does that; do not call .half() or .bfloat16() on the model)
    - a larger learning rate, or an optimizer that keeps a float32 copy or rounds stochastically

References:
    Micikevicius et al. 2018 (loss scaling, float32 master weights); Zamirai et al. 2020 (bfloat16 weights); IEEE 754.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.frames import Group
from gradiometer.record.trace import BoolArray, FloatArray, IntArray, Trace
from gradiometer.rules.judging import Case, plural, seen, when, worst_case
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "precision-underflow"

TINY_SHARE: Final = 0.5
"""Ours: half of the gradient's elements have lost digits, and more are lost entirely."""
ZERO_SHARE: Final = 0.9
"""Ours: rectifiers and masks leave more than a tenth of the elements of a gradient; the format does not."""
MOST_ZERO: Final = 0.8
"""Ours: rectifiers make half of the elements zero; the rest is what the format has taken."""
LEARNED_WELL: Final = 0.8
"""Ours: a loss that fell by four fifths got what it needed from what was left."""
UNMOVED_SHARE: Final = 0.5
"""Ours: half of the weights stand still although each has a gradient."""
ALL_UNMOVED: Final = 0.75
"""Ours: what moves is too little to train with; an error where the training fails."""
DONE: Final = 0.1
"""Share of the loss at the start; below it gradients are small because there is little left to learn."""
USUAL_RATE: Final = 0.3
"""Share of the largest learning rate so far; below it the schedule makes the steps small."""

_NARROW: Final = ("float16", "bfloat16")
_HELPS_GRADIENT: Final = (
    "scale the loss with torch.amp.GradScaler, so that float16 can hold the gradients",
    "train in bfloat16, which has the range of float32",
    "compute the layers concerned, or the loss, in float32",
)
_HELPS_WEIGHT: Final = (
    "keep the weights in float32 and compute in the smaller format (torch.autocast)",
    "use an optimizer that keeps a float32 copy of the weights or rounds stochastically",
    "raise the learning rate",
)
HELPS: Final = (*_HELPS_GRADIENT, *_HELPS_WEIGHT)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    early = _still_learning(trace)
    return worst_case([*(_gradients(trace, chain, early) for chain in trace.chains), _weights(trace, early)])


def _still_learning(trace: Trace) -> BoolArray:
    """Looks at which the loss is above a tenth of its start, shape (S,); all of them where no loss was seen."""
    loss = trace.ledger["loss"]
    known = np.flatnonzero(np.isfinite(loss))
    if known.size < 3:
        return np.ones(trace.steps.shape, np.bool_)
    start = float(np.median(loss[known[:3]]))
    # the median over a few steps: single batches may be easy
    at = np.searchsorted(trace.ledger.step[known], trace.steps)
    near = [float(np.median(loss[known[max(0, k - 2) : k + 3]])) if known[max(0, k - 2) : k + 3].size else start for k in at]
    return np.asarray(np.array(near, dtype=np.float64) >= DONE * start) if start > 0.0 else np.ones(trace.steps.shape, np.bool_)


def _usual_rate(trace: Trace) -> BoolArray:
    """Looks at which the learning rate was neither rising nor far below its largest value so far, shape (S,)."""
    rate, step = trace.ledger["learning_rate"], trace.ledger.step
    usual = np.ones(trace.steps.shape, np.bool_)
    if not np.isfinite(rate).any():
        return usual
    for k, look in enumerate(trace.steps):
        at = int(np.searchsorted(step, look))
        if at >= rate.size or not np.isfinite(rate[at]):
            continue
        before = rate[max(0, at - 1) : at]
        after = rate[at + 1 : at + 2]
        rising = bool((before < rate[at]).any() or (after > rate[at]).any())
        usual[k] = not rising and rate[at] >= USUAL_RATE * np.nanmax(rate)
    return usual


def _gradients(trace: Trace, chain: IntArray, early: BoolArray) -> Case | None:
    index = np.array([i for i in chain if trace.sites[int(i)].dtype == "float16"], dtype=np.int64)
    if not index.size:
        return None
    tiny, zero = trace.tiny_gradient_share[:, index], trace.zero_gradient_share[:, index]
    lost = _lost(tiny, zero)
    # where a whole look is lost: a single branch that rightly carries little is no disease
    ill = np.count_nonzero(lost, axis=1) * 2 >= np.maximum(np.count_nonzero(~np.isnan(zero), axis=1), 1)
    known = seen(trace, Group.GRADIENT, index) & ~np.isnan(zero).all(axis=1) & early
    span = trace.span(np.asarray(ill & lost.any(axis=1)), known)
    if span is None:
        return None
    strength = np.nansum(np.where(lost, 1.0, 0.0), axis=1)
    look = int(span.looks[np.argmax(strength[span.looks])])
    worst = np.flatnonzero(lost[look])
    step, names = int(trace.steps[look]), trace.names(index)
    gone = float(np.nanmean(zero[look, worst]))
    small = tiny[look, worst]
    small = float(np.nanmean(small)) if np.isfinite(small).any() else 1.0
    fails = trace.stalled or (gone >= MOST_ZERO and trace.learning.fall < LEARNED_WELL)
    scale = trace.ledger["loss_scale"]
    scaled = np.isfinite(scale) & (scale != 1.0)
    sentence = (
        f"float16 is too coarse for the gradients of {plural(len(worst), 'output', 'outputs')} (`{names[worst[0]]}` first), "
        f"{when(span)}: {100 * gone:.0f} % of their elements are zero, and {100 * small:.0f} % of the others have lost digits"
    )
    sentence += "." if scaled.any() else "; the loss is not scaled."
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR if fails and span.at_end else Severity.WARNING,
        confidence=0.9,
        sites=tuple(names[int(i)] for i in worst),
        steps=(span.first, span.last),
        sentence=sentence,
        evidence=(
            Evidence(
                f"share of the non-zero elements of those gradients below 6.1e-5, at step {step}",
                small,
                TINY_SHARE,
                "smallest normal number of float16 (IEEE 754); the share is ours",
                "the same zeros when the loss is multiplied by 1,000",
            ),
            Evidence("share of the elements of those gradients that are exactly zero", gone, ZERO_SHARE, "ours"),
        ),
        helps=_HELPS_GRADIENT,
        starts=names[int(worst[-1])],
        shows=tuple(names[int(i)] for i in worst),
        peak=step,
    )
    return Case(finding, float(len(worst)))


def _lost(tiny: FloatArray, zero: FloatArray) -> BoolArray:
    """Gradients that the format does not hold: mostly subnormal; or nearly all zero where those behind are mostly subnormal."""
    lost = np.asarray(tiny >= TINY_SHARE)
    for k in range(lost.shape[1] - 2, -1, -1):
        lost[:, k] |= (zero[:, k] >= ZERO_SHARE) & lost[:, k + 1]
    return lost


def _weights(trace: Trace, early: BoolArray) -> Case | None:
    narrow = [i for i in trace.parameters if trace.sites[int(i)].dtype in _NARROW and trace.sites[int(i)].trainable]
    index = np.array(narrow, dtype=np.int64)
    if not index.size:
        return None
    unmoved = trace.unmoved_share[:, index]
    size = np.array([max(trace.sites[int(i)].units, 1) for i in index], dtype=np.float64)
    told = ~np.isnan(unmoved)
    weight = np.where(told, size, 0.0)
    total = weight.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(total > 0.0, np.nansum(np.where(told, unmoved, 0.0) * weight, axis=1) / total, np.nan)
    known = np.asarray((total > 0.0) & early & _usual_rate(trace))
    span = trace.span(np.asarray(share >= UNMOVED_SHARE), known)
    if span is None:
        return None
    look = int(span.looks[np.argmax(share[span.looks])])
    level, step = float(share[look]), int(trace.steps[look])
    worst = np.flatnonzero(unmoved[look] >= UNMOVED_SHARE)
    worst = worst if worst.size else np.array([int(np.nanargmax(unmoved[look]))])
    names, kind = trace.names(index), trace.sites[int(index[worst[0]])].dtype
    failing = (trace.stalled or trace.learning.fall < LEARNED_WELL) and span.at_end and level >= ALL_UNMOVED
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR if failing else Severity.WARNING,
        confidence=0.9,
        sites=tuple(names[int(i)] for i in worst),
        steps=(span.first, span.last),
        sentence=(
            f"The steps are rounded away: {100 * level:.0f} % of the {kind} weights have a gradient and did not move at step "
            f"{step}, {when(span)}, because the change is smaller than half the gap to the next number."
        ),
        evidence=(
            Evidence(
                f"share of the weights in {kind} that have a gradient and that the step did not move, at step {step}",
                level,
                UNMOVED_SHARE,
                "ours",
                "weights that move when they are kept in float32",
            ),
        ),
        helps=_HELPS_WEIGHT,
        starts=names[int(worst[0])],
        shows=tuple(names[int(i)] for i in worst),
        peak=step,
    )
    return Case(finding, level)
