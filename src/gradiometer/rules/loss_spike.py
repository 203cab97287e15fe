"""Loss spike: the loss jumps far beyond its noise in the middle of a training.

What it finds:
    Steps at which the loss suddenly stands several robust deviations above what it was just before, by a sizeable part of
    all that had been learned.

Why it hurts:
    A spike throws away hours; some are never recovered from. Where it starts the weights have taken a step that the loss
    had not announced.

How we tell:
    On the log of the loss, against the median and the median absolute deviation of the fifty losses before (means and
    standard deviations are drawn along by the spike itself), seven deviations out, and a fifth of the fall so far at
    least: the log of a loss that is nearly zero has heavy tails that mean nothing. A spike is over when the loss has come
    down by three quarters. One that ruins the rest is an error: the run ends having given back half of its fall. One that
    passes is a warning if it takes ten steps or goes beyond the start, else nothing.

When it is wrong:
    A batch of corrupt data makes a spike of one step that harms nothing. Switching the task or the data in the middle of a
    run looks like one.

What helps:
    - clipping the gradient norm
    - beta2 = 0.95 to 0.99 in Adam, so that its second moment follows the gradients
    - a lower learning rate or a longer warm-up
    - going back to the checkpoint before and leaving out the batches in between

References:
    Wortsman et al. 2023, "Stable and low-precision training"; Chowdhery et al. 2022 (PaLM: skipping batches); OLMo 2 2024.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.losses import SPIKE_RISE, SPIKE_SIGMA, Losses, Spike
from gradiometer.record.trace import PATIENCE, Trace
from gradiometer.rules.judging import plural
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "loss-spike"

LONG: Final = 10
"""Steps from which a spike that passes is worth knowing of (ours); single batches and their echoes are shorter."""
BEYOND_START: Final = 1.0
"""A spike back to where the loss began."""
RUINED: Final = 0.5
"""Share of its fall that the run has given back at its end."""
FELL: Final = 0.2
"""Share by which the loss must have fallen before a spike for it to have ruined anything (that which counts as learning)."""
AFTER: Final = 10
"""Steps after a spike that it takes to call the rest ruined."""

HELPS: Final = (
    "clip the gradient norm",
    "lower beta2 of Adam to 0.95-0.99, so that its second moment follows the gradients",
    "lower the learning rate or lengthen the warm-up",
    "go back to the checkpoint before it and leave out the batches in between",
)


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the worst spike; see the module's text."""
    losses = trace.only_losses
    if losses is None or losses.learning.signless:
        return []
    ruinous = [s for s in losses.spikes if _ruins(losses, s) and not trace.relearned]
    if ruinous:
        return [_finding(trace, losses, ruinous[0], ruined=True)]
    passed = [s for s in losses.spikes if s.recovered and (s.lasts >= LONG or (s.share >= BEYOND_START and s.lasts >= 3))]
    return [_finding(trace, losses, max(passed, key=lambda s: (s.lasts, s.height)), ruined=False)] if passed else []


def _ruins(losses: Losses, spike: Spike) -> bool:
    """Whether what was learned before a spike is gone for good; that it came down from its peak is not enough."""
    moved = losses.learning
    after = losses.value[losses.step > spike.step + AFTER]
    fell = moved.start - spike.level
    if after.size < AFTER or fell < FELL * losses.unit:
        return False
    level = spike.level + RUINED * fell
    # neither at the end nor at any time before: a spike that was got over has not ruined what a later one did
    ever = np.median(np.lib.stride_tricks.sliding_window_view(after, AFTER), axis=1)
    return float(np.median(after[-max(AFTER, after.size // 2) :])) > level and float(ever.min()) > level


def _finding(trace: Trace, losses: Losses, spike: Spike, *, ruined: bool) -> Finding:
    last = int(trace.ledger.step[-1])
    times = spike.height / spike.level if spike.level > 0.0 and spike.height > 0.0 else float("nan")
    size = f"to {times:,.3g} times what it was" if np.isfinite(times) else f"from {spike.level:.3g} to {spike.height:.3g}"
    sentence = f"The loss jumps at step {spike.step} {size}"
    if spike.share < 1.0:
        sentence += f", {100 * spike.share:.0f} % of the way back to its start"
    elif np.isfinite(spike.share):
        sentence += ", beyond its start"
    recent = trace.running and last - spike.step < PATIENCE
    count = len(losses.spikes)
    down = f"; it comes down within {plural(spike.lasts, 'step', 'steps')}."
    sentence += ", and does not come down again." if ruined else down
    if ruined and spike.recovered:
        sentence = sentence.removesuffix("again.") + "to where it was."
    if count > 1 and not ruined:
        sentence += f" There are {count} such jumps."
    evidence = [
        Evidence(
            "robust standard deviations of the log loss by which it stands out from the steps before",
            spike.sigma,
            SPIKE_SIGMA,
            "median and MAD of the steps before; level as in the search for spikes of OLMo 2",
            "a loss that was as noisy before",
        )
    ]
    if np.isfinite(spike.share):
        claim = "how far the loss rose, as a share of what it had fallen since its start"
        evidence.append(Evidence(claim, spike.share, SPIKE_RISE, "ours", "a rise that is small against what was learned"))
    return Finding(
        rule=NAME,
        severity=Severity.ERROR if ruined and not recent else Severity.WARNING,
        confidence=0.9,
        sites=(),
        steps=(spike.step, last if ruined else min(spike.step + spike.lasts, last)),
        sentence=sentence,
        evidence=tuple(evidence),
        helps=HELPS,
        peak=spike.peak,
    )
