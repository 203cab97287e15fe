"""Symmetric initialisation: the units of a layer began as copies of each other, and still are.

What it finds:
    Hidden layers whose units all have the same weights at the start and at every later look.

Why it hurts:
    Units that start alike get the same gradient and stay alike: a layer of a thousand of them can do what a layer of one
    can. With all weights zero nothing passes at all, forward or back.

How we tell:
    Of each weight matrix with more than one unit, the share of its second moment in which units differ, at the
    first look and at every look after the first five steps: zero, down to rounding. What moves apart after the start is well:
    last layers and branches that begin at zero, LoRA's second matrix, an output layer (the targets tell its units
    apart). Gains and biases are no matrices, and a frozen matrix was made that way. It is an error where the loss does not
    fall far, and a note where a network of one unit per layer is all the task needs.

When it is wrong:
    A layer that is constant on purpose and trained only in its scale.

What helps:
    - draw the weights at random (PyTorch's default does; He or Xavier for deep networks)
    - keep zeros and constants for biases, gains and the last layer of a residual branch

References:
    Goodfellow, Bengio & Courville 2016, Deep Learning, section 8.4; Rumelhart, Hinton & Williams 1986.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.frames import Group
from gradiometer.record.trace import SETTLE, IntArray, Trace
from gradiometer.rules.judging import plural
from gradiometer.types import Evidence, Finding, Severity, Site

NAME: Final = "symmetric-initialization"

SAME: Final = 1e-9
"""Share of the second moment in which units differ: rounding leaves 1e-14 in float32; random weights have about 1."""
SAME_NARROW: Final = 1e-4
"""The same for weights in half precision, whose rounding is 1e-3 of their size."""
LEARNED_WELL: Final = 0.8
"""Ours: a loss that fell by four fifths needed no more than the one unit."""

HELPS: Final = (
    "draw the weights at random (leave PyTorch's default, or He or Xavier)",
    "keep constants for biases, gains and the last layer of a residual branch",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, over all layers; see the module's text."""
    index = _hidden(trace)
    settled = trace.steps >= SETTLE
    if not index.size or not trace.steps.size or trace.steps[0] != 0 or np.count_nonzero(settled) < 2:
        return []
    share, square = trace.unit_difference[:, index], trace.values["weight_sumsq"][:, index]
    looked = trace.recorded[Group.PARAMETER][:, index]
    narrow = np.array([trace.sites[int(i)].dtype in ("float16", "bfloat16") for i in index], dtype=np.bool_)
    same = np.asarray((share < np.where(narrow, SAME_NARROW, SAME)) | (square == 0.0))
    counted = settled[:, None] & looked
    stays = looked[0] & same[0] & np.all(same | ~counted, axis=0) & (np.count_nonzero(counted, axis=0) >= 2)
    if not stays.any():
        return []
    guilty = index[stays]
    names = list(trace.names(guilty))
    zero = bool(np.all(square[0, stays] == 0.0))
    learned = trace.learning.fall
    severity = Severity.WARNING
    if np.isfinite(learned) and not trace.too_early and (trace.stalled or learned < LEARNED_WELL):
        severity = Severity.ERROR
    elif trace.learned:
        severity = Severity.INFO
    last = int(trace.steps[-1])
    units = sum(_units(trace.sites[int(i)]) for i in guilty)
    how = "are all zero" if zero else "are the same in every unit"
    who = f"{plural(len(names), 'layer', 'layers')} (`{names[0]}`{' first' if len(names) > 1 else ''})"
    sentence = f"The weights of {who} {how} at the start and still are at step {last}: "
    sentence += "nothing passes through them." if zero else f"{units} units do the work of {len(names)}."
    return [
        Finding(
            rule=NAME,
            severity=severity,
            confidence=0.95,
            sites=tuple(names),
            steps=(0, last),
            sentence=sentence,
            evidence=(
                Evidence(
                    f"share of the second moment of {names[0]} in which its units differ, at step {last}",
                    0.0 if zero else float(np.nan_to_num(share[:, stays][counted[:, stays][:, 0], 0][-1])),
                    SAME,
                    "random weights have about 1",
                    "units that differ at a later look",
                ),
                Evidence("share by which the loss fell", float(np.nan_to_num(learned)), LEARNED_WELL, "ours"),
            ),
            helps=HELPS,
            starts=names[0],
            shows=tuple(names),
            peak=last,
        )
    ]


def _hidden(trace: Trace) -> IntArray:
    """Trainable matrices with more than one unit that other matrices come after: not the output layer's."""
    matrices = [int(i) for i in trace.parameters if len(trace.sites[int(i)].shape) > 1 and trace.sites[int(i)].trainable]
    last = {trace.sites[i].model: trace.sites[i].depth for i in matrices}
    for i in matrices:
        model = trace.sites[i].model
        last[model] = max(last[model], trace.sites[i].depth)
    hidden = [i for i in matrices if _units(trace.sites[i]) > 1 and trace.sites[i].depth < last[trace.sites[i].model]]
    return np.array(hidden, dtype=np.int64)


def _units(site: Site) -> int:
    """Units of a weight matrix or kernel: its rows."""
    return next(iter(site.shape), 0)
