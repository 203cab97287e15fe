"""Stale second moment: Adam divides by what the gradients used to be.

What it finds:
    Steps at which the gradients were much larger than Adam's second moment says they are, right before the loss jumped.

Why it hurts:
    Adam's step is the gradient over a running mean of its size. With beta2 = 0.999 that mean looks a thousand steps back:
    when the gradients grow faster, it divides by a number that is too small and takes steps several times too long, with
    nothing in the learning rate to show for it.

How we tell:
    RMS, the root mean square of gradient over the root of the second moment, which is about 1 while the moment is up to
    date, above 2.3 in the few steps before a spike of the loss begins. It is read at the looks for every weight matrix
    (tables of embeddings left out: their rows are rarely touched), and between the looks for all weights together from the
    gradient norm, where that is known of every step. It is an error where the training did not recover from the
    spike, or where steps followed that moved the middle weight matrix by more than half of its size, so that what was
    learned is gone whatever the loss does afterwards; else a warning. A large value without damage is not reported.

When it is wrong:
    A batch of corrupt data raises loss and gradient in the same step; only steps strictly before the jump are read.

What helps:
    - beta2 = 0.95 to 0.99
    - StableAdamW or AdaFactor's clipping of the update, which divide the step by this very number
    - clipping the gradient norm
    - a longer warm-up

References:
    Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models"; Shazeer & Stern 2018.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.losses import Losses, Spike
from gradiometer.record.trace import FloatArray, IntArray, Trace
from gradiometer.rules.judging import factor
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "stale-second-moment"

STALE: Final = 2.3
"""RMS that precedes spikes by one to eight steps (Wortsman et al. 2023)."""
BEFORE: Final = 8
"""Steps before a spike that are read (the same)."""
YOUNG: Final = 20
"""Steps in which the moment is being made and any gradient is new to it."""
RAISED: Final = 2.0
"""A learning rate that was raised by this factor within `YOUNG` steps explains a jump by itself."""
THROWN: Final = -0.3
"""log10 of update / weight: half of its size in one step (the level of a learning rate that is too high)."""
KNOWN_SHARE: Final = 0.8
"""Share of the steps whose gradient norm must be known for a running mean of it."""

HELPS: Final = (
    "lower beta2 to 0.95-0.99",
    "use StableAdamW, or AdaFactor's clipping of the update",
    "clip the gradient norm",
    "lengthen the warm-up",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the worst spike that it came before; see the module's text."""
    losses = trace.only_losses
    if losses is None or not np.isfinite(trace.moment_rms).any():
        return []
    index = _matrices(trace)
    whole = _between_looks(trace)
    cases = [case for spike in losses.spikes if (case := _case(trace, losses, spike, index, whole)) is not None]
    return [min(cases, key=lambda f: (f.severity.rank, -f.evidence[0].value))] if cases else []


def _case(trace: Trace, losses: Losses, spike: Spike, index: IntArray, whole: FloatArray) -> Finding | None:
    if _rate_jumped(trace, spike.step):
        return None
    looks = np.flatnonzero((trace.steps >= max(YOUNG, spike.step - BEFORE)) & (trace.steps < spike.step))
    rms = trace.moment_rms[looks][:, index]
    stale = np.flatnonzero((rms > STALE).any(axis=0))
    top = float(np.nanmax(rms)) if np.isfinite(rms).any() else 0.0
    step = int(trace.steps[looks[int(np.argmax(np.nan_to_num(rms).max(axis=1)))]]) if top > 0.0 else spike.step
    if whole.size:
        rows = np.flatnonzero((trace.ledger.step >= max(YOUNG, spike.step - BEFORE)) & (trace.ledger.step < spike.step))
        between = whole[rows]
        if np.isfinite(between).any() and float(np.nanmax(between)) > top:
            top, step = float(np.nanmax(between)), int(trace.ledger.step[rows[int(np.nanargmax(between))]])
    if top <= STALE:
        return None
    names = trace.names(index[stale])
    after = losses.value[losses.step > spike.step]
    lasting = not spike.recovered and after.size >= BEFORE
    size = trace.typical_step[(trace.steps >= step) & (trace.steps <= spike.step + BEFORE)]
    thrown = bool((size >= THROWN).any())
    ruined = lasting or thrown
    where = f" in `{names[0]}`" + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""
    end = f"it came down within {spike.lasts} steps" if spike.recovered else "the loss did not come down again"
    if thrown:
        end = f"steps of up to {factor(float(np.nanmax(size)))} times the size of the weights followed, and " + end
    sentence = (
        f"Adam's second moment was out of date{where} at step {step}: the gradients were {top:.1f} times what it says "
        f"(about 1 is usual), and the loss jumped at step {spike.step}; {end}."
    )
    evidence = (
        Evidence(
            f"RMS of gradient / root of the second moment at step {step}",
            top,
            STALE,
            "Wortsman et al. 2023",
            "a value near 1 in the steps before the jump",
        ),
        Evidence("robust standard deviations by which the log loss jumped", spike.sigma, 7.0, "median and MAD of 50 steps"),
    )
    return Finding(
        rule=NAME,
        severity=Severity.ERROR if ruined else Severity.WARNING,
        confidence=0.8 if names else 0.6,
        sites=names,
        steps=(step, spike.step),
        sentence=sentence,
        evidence=evidence,
        helps=HELPS,
        starts=names[0] if names else "",
        shows=names,
        peak=step,
    )


def _rate_jumped(trace: Trace, step: int) -> bool:
    """Whether the learning rate was raised shortly before: then longer steps made the gradients grow, not the other way."""
    rate = trace.ledger["learning_rate"]
    near = (trace.ledger.step > step - YOUNG) & (trace.ledger.step <= step) & np.isfinite(rate)
    before = rate[(trace.ledger.step <= step - YOUNG) & np.isfinite(rate)]
    return before.size > 0 and bool(near.any()) and float(rate[near].max()) > RAISED * float(before[-1])


def _matrices(trace: Trace) -> IntArray:
    """Weights that every batch touches."""
    tables = {(trace.sites[i].model, trace.sites[i].module) for i in trace.with_role(Role.EMBEDDING)}
    touched = [i for i in trace.weights if (trace.sites[int(i)].model, trace.sites[int(i)].module) not in tables]
    return np.array(touched if tables != {("", "")} else trace.weights, dtype=np.int64)


def _between_looks(trace: Trace) -> FloatArray:
    """The same number for all weights together, of every step, from the gradient norm; empty where it cannot be told."""
    norm = trace.ledger["grad_norm"] if trace.ledger.step.size else np.empty(0)
    options = [o.get("options", {}) for o in trace.optimizers]
    betas = [o["betas"] for o in options if isinstance(o, dict) and isinstance(o.get("betas"), list)]
    if len(betas) != 1 or not norm.size or np.isfinite(norm).mean() < KNOWN_SHARE:
        return np.empty(0)
    clip = trace.ledger["clip_threshold"]
    used = np.where(clip > 0.0, np.fmin(norm, clip), norm)
    beta, moment, weight = float(betas[0][1]), 0.0, 0.0
    out = np.full(norm.shape, np.nan)
    for k, value in enumerate(used):
        if not np.isfinite(value):
            continue
        moment, weight = beta * moment + (1.0 - beta) * value**2, beta * weight + (1.0 - beta)
        out[k] = value / np.sqrt(moment / weight) if moment > 0.0 and weight > 0.0 else np.nan
    return out
