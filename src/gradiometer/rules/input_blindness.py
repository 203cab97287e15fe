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
    Schoenholz et al. 2017 (ordered phase, depth scale of correlations); theory.md C5.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.depth import end_width
from gradiometer.record.trace import FloatArray, Trace
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "input-blindness"

BLIND_SHARE: Final = 1e-4
"""Healthy trainings keep more than 0.07 (theory.md F); a 3-layer sigmoid network, which still trains, has 1.5e-3 (C5)."""
SIGHTED_SHARE: Final = 1e-3
"""The input end must vary at least this much: otherwise the data, not the depth, are uniform."""

_HELPS: Final = (
    "put batch normalisation between the layers (layer normalisation keeps the common part)",
    "use activations centred on zero, with weights at their critical scale",
    "add residual connections around blocks of layers",
    "use fewer layers",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding; see the module's text."""
    index = np.array([i for i in trace.outputs if trace.sites[i].role is not Role.EMBEDDING], dtype=np.int64)
    share = trace.varying_share[:, index]
    ends = np.array([_ends(row) for row in share]).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        blind = (ends[:, 1] < BLIND_SHARE) & (ends[:, 0] > SIGHTED_SHARE) & (ends[:, 1] < 1e-2 * ends[:, 0])
    span = trace.span(blind)
    if span is None:
        return []
    look = int(span.looks[int(np.argmin(ends[span.looks, 1]))])
    row = share[look]
    severity = Severity.ERROR if span.at_end and not trace.learned else Severity.WARNING
    names = trace.names(index)
    lost = np.flatnonzero(row < BLIND_SHARE)
    start = int(lost[0])
    since = f"from step {span.first}" + ("" if span.at_end else f" until step {span.last}")
    chance = " The loss stands at the chance level ln K." if trace.at_chance else ""
    sentence = (
        f"The network is blind to its input from `{names[start]}` on: {ends[look, 1]:.1g} of what the last layers say varies "
        f"with the input, against {ends[look, 0]:.2g} near the input, {since}.{chance}"
    )
    return [
        Finding(
            rule=NAME,
            severity=severity,
            confidence=0.95,
            sites=tuple(names[int(i)] for i in lost),
            steps=(span.first, span.last),
            sentence=sentence,
            evidence=(
                Evidence(
                    f"share of the second moment that varies over the batch, output end, at step {int(trace.steps[look])}",
                    float(ends[look, 1]),
                    BLIND_SHARE,
                    "theory.md C5 and F: healthy above 0.07",
                    f"a share above {BLIND_SHARE:g} in most looks",
                ),
                Evidence("the same at the input end", float(ends[look, 0]), SIGHTED_SHARE, "own", "uniform input data"),
            ),
            helps=_HELPS,
            starts=names[start],
            shows=tuple(names[int(i)] for i in lost),
        )
    ]


def _ends(share: FloatArray) -> tuple[float, float]:
    """Largest varying share in the first third and in the output end of the known sites."""
    known = share[~np.isnan(share)]
    if known.size < 4:
        return float("nan"), float("nan")
    return float(known[: max(2, known.size // 3)].max()), float(known[-end_width(known.size) :].max())
