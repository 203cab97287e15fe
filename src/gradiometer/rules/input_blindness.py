"""Input blindness: the deep layers say the same whatever the input is.

What it finds:
    The share of an activation's second moment that varies over the batch is healthy near the input and vanishes along
    depth. Inputs that differ arrive as the same vector.

Why it hurts:
    A network that does not see its input can learn the mean of the targets and nothing else: a classifier stays at
    chance, ln K. Its gradients may have any size: rescaling them (Adam, loss scaling, clipping) cannot help, because no
    gradient can carry what the forward pass has lost.

How we tell:
    The varying share (sum of squares about the batch mean / sum of squares) at the output end, against the input end, as
    upper envelopes; lasting beyond the first five steps. Batches of one example cannot tell.

When it is wrong:
    A batch that holds one example many times. A regression whose targets vary by less than a hundredth of their mean.

What helps:
    - batch normalisation, which removes the common part (layer normalisation keeps it)
    - activations centred on zero: tanh instead of sigmoid, or sigmoid weights centred by their biases
    - weights at the critical scale of the activation (the ordered phase forgets its input)
    - residual connections
    - fewer layers

References:
    Schoenholz et al. 2017 (ordered phase, depth scale of correlations).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.depth import end_width
from gradiometer.record.frames import Group
from gradiometer.record.trace import FloatArray, IntArray, Trace
from gradiometer.rules.judging import Case, each_network, seen, severity_of, when, without_embeddings
from gradiometer.types import Evidence, Finding

NAME: Final = "input-blindness"

BLIND_SHARE: Final = 1e-4
"""Ours. In a first study healthy trainings kept more than 0.07; three sigmoid layers, which still train, leave 1.5e-3."""
SIGHTED_SHARE: Final = 1e-3
"""The input end must vary at least this much: otherwise the data, not the depth, are uniform."""

HELPS: Final = (
    "put batch normalisation between the layers (layer normalisation keeps the common part)",
    "use activations centred on zero, with weights at their critical scale",
    "add residual connections around blocks of layers",
    "use fewer layers",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the network that has it worst; see the module's text."""
    return each_network(trace, _judge)


def _judge(trace: Trace, chain: IntArray) -> Case | None:
    index = without_embeddings(trace, chain)
    share = trace.varying_share[:, index]
    near, far = np.array([_ends(row) for row in share], dtype=np.float64).reshape(-1, 2).T
    blind = (far < BLIND_SHARE) & (near > SIGHTED_SHARE) & (far < 1e-2 * near)
    span = trace.span(blind, seen(trace, Group.OUTPUT, index))
    if span is None:
        return None
    look = int(span.looks[np.argmin(far[span.looks])])
    step, row = int(trace.steps[look]), share[look]
    names = trace.names(index)
    lost = np.flatnonzero(row < BLIND_SHARE)
    sighted = np.flatnonzero(row >= BLIND_SHARE)
    # the cause lies where the share falls for good: sites that lose it and find it again (a constant gate) do not count
    start = int(lost[lost > sighted[-1]][0]) if (lost > sighted[-1]).any() else int(lost[0])
    lost = lost[lost >= start]
    left = "nothing" if far[look] < 1e-14 else f"only {far[look]:.1g}"
    sentence = (
        f"The network is blind to its input from `{names[start]}` on: {left} of what its last layers say varies with the "
        f"input, against {near[look]:.2g} near the input, {when(span)}."
    )
    if trace.at_chance and span.at_end:
        sentence += " The loss stands at the level of guessing."
    if not span.at_end and trace.learned:
        sentence += f" It recovered: the training was stalled until about step {span.last}."
    finding = Finding(
        rule=NAME,
        severity=severity_of(trace, span, extreme=False),
        confidence=0.95,
        sites=tuple(names[int(i)] for i in lost),
        steps=(span.first, span.last),
        sentence=sentence,
        evidence=(
            Evidence(
                f"share of the second moment that varies over the batch, at the output end, at step {step}",
                float(far[look]),
                BLIND_SHARE,
                "our level; healthy trainings keep more than 0.07",
                f"a share above {BLIND_SHARE:g} in most looks",
            ),
            Evidence(
                "the same share at the input end",
                float(near[look]),
                SIGHTED_SHARE,
                "a tenth of the variation that the data themselves have in the zoo",
                "input data that are all alike",
            ),
        ),
        helps=HELPS,
        starts=names[start],
        shows=tuple(names[int(i)] for i in lost),
        peak=step,
    )
    return Case(finding, -float(np.log10(max(far[look], 1e-16))))


def _ends(share: FloatArray) -> tuple[float, float]:
    """Largest varying share in the first third and in the output end of the known sites; NaN for fewer than four."""
    known = share[~np.isnan(share)]
    if known.size < 4:
        return float("nan"), float("nan")
    return float(known[: max(2, known.size // 3)].max()), float(known[-end_width(known.size) :].max())
