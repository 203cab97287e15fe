"""Shattered gradient: deep in the network, the gradients of different examples have nothing to do with each other.

What it finds:
    A deep network without skip connections in which gradients have a good size everywhere, but those of two examples that
    agree at the output are unrelated near the input: white noise.

Why it hurts:
    A step is the mean over a batch. Where the gradients of similar examples point in random directions, the mean is
    noise, and what one step builds the next one tears down: the explorer's compass needle spins.

How we tell:
    The similarity of pairs of examples' gradients at an output, regressed on the similarity of the same pairs at the last
    layer: 1 when all of it is left, 0 when none is. It is a finding only if it is lost over many layers, sizes of signals and
    gradients are ordinary along depth, the outputs vary with the input, and after a hundred steps the loss has not halved:
    plain networks that are shattered at the start may put their gradients in order, and train.

When it is wrong:
    A training that fails for another reason, in a network that is also deep and plain.

What helps:
    - residual connections, with branches scaled by 1/sqrt(number of blocks)
    - fewer layers
    - an initialisation that makes the network linear at the start (looks-linear, or identity layers)
    - larger batches

References:
    Balduzzi et al. 2017, "The shattered gradients problem".
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.depth import end_width, falls_towards_input, falls_towards_output
from gradiometer.record.frames import Group
from gradiometer.record.trace import FloatArray, IntArray, Trace
from gradiometer.rules.judging import Case, each_network, layers_between, seen, when, without_embeddings
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "shattered-gradient"

SHATTERED: Final = 0.15
"""Ours; well runs of the calibration half keep 0.3 or get back to it. Theory: 24 rectified layers leave 0.005, skips 0.6."""
WHOLE: Final = 0.3
"""Ours: what the sites near the output must have, or there was nothing to shatter."""
MIN_LAYERS: Final = 16
"""Ours: over fewer layers plain networks train well."""
ORDINARY: Final = 2.0
"""Decades along depth; beyond it sizes are the disease, and other rules name it."""
VARIES: Final = 1e-2
"""Share of the output that must vary with the input; less is input blindness."""
FAR_FALL: Final = 0.5
"""Ours: a loss that has not halved."""
MIN_STEPS: Final = 100
"""Ours: a plain deep network that will train takes some tens of steps to put its gradients in order."""

HELPS: Final = (
    "add residual connections, with branches scaled by 1/sqrt(number of blocks)",
    "use fewer layers",
    "start as a linear network (looks-linear or identity initialisation)",
    "use larger batches",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the network that has it worst; see the module's text."""
    slow = trace.stalled or trace.learning.fall < FAR_FALL
    return each_network(trace, _judge) if slow and trace.steps_seen >= MIN_STEPS else []


def _judge(trace: Trace, chain: IntArray) -> Case | None:
    index = without_embeddings(trace, chain)
    if index.size < MIN_LAYERS or layers_between(trace, int(index[0]), int(index[-1])) < MIN_LAYERS:
        return None
    left = trace.gradient_correlation[:, index]
    near, far = np.array([_ends(row) for row in left], dtype=np.float64).reshape(-1, 2).T
    y, varying = trace.log10_gradient[:, index], trace.varying_share[:, index]
    level = (falls_towards_input(y) < ORDINARY) & (falls_towards_output(np.where(np.isfinite(y), y, np.nan)) < ORDINARY)
    end = varying[:, -end_width(index.size) :]
    sees = np.nanmax(np.where(np.isnan(end), -1.0, end), axis=1, initial=-1.0) >= VARIES
    held = np.asarray((np.abs(near) < SHATTERED) & (far > WHOLE) & level & sees)
    span = trace.span(held, seen(trace, Group.GRADIENT, index) & ~np.isnan(near))
    if span is None or not span.at_end:
        return None
    look = int(span.looks[np.argmin(np.abs(near[span.looks]))])
    step, names = int(trace.steps[look]), trace.names(index)
    row = left[look]
    whole = np.flatnonzero(row > SHATTERED)
    lost = np.flatnonzero(row <= SHATTERED)
    lost = lost[lost < whole[-1]]
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR,
        confidence=0.7,
        sites=tuple(names[int(i)] for i in lost),
        steps=(span.first, span.last),
        sentence=(
            f"Gradients are shattered before `{names[int(whole[whole > lost[-1]][0])]}`, {when(span)}: of the similarity that "
            f"examples' gradients have at the output {abs(near[look]):.2g} is left near the input, though their size is "
            "ordinary at every depth; the mean over a batch is noise there."
        ),
        evidence=(
            Evidence(
                f"share of the similarity of examples' gradients that is left near the input, at step {step}",
                float(near[look]),
                SHATTERED,
                "Balduzzi et al. 2017; the level is ours",
                f"a share above {SHATTERED:g} in most looks",
            ),
            Evidence("the same in the last third of the network", float(far[look]), WHOLE, "ours"),
        ),
        helps=HELPS,
        starts=names[int(whole[whole > lost[-1]][0])],
        shows=tuple(names[int(i)] for i in lost),
        peak=step,
    )
    return Case(finding, -float(abs(near[look])))


def _ends(share: FloatArray) -> tuple[float, float]:
    """Median share at the input end, largest share in the last third; NaN for fewer than six known sites."""
    known = share[~np.isnan(share)]
    if known.size < 6:
        return float("nan"), float("nan")
    return float(np.median(known[: max(2, end_width(known.size))])), float(known[-(known.size // 3) :].max())
