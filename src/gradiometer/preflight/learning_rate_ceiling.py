"""Learning rate beyond the ceiling: a step on the first batch would overshoot.

What it finds:
    A learning rate larger than the curvature of the loss allows at the initial weights. Only `gradiometer check
    --curvature` measures that.

Why it hurts:
    Along the direction of largest curvature lambda, gradient descent multiplies the distance to the minimum by
    1 - lr lambda at every step: beyond lr = 2 / lambda it grows. On a cliff one such step throws the weights far away; in
    a rectifier network it kills units that never come back.

How we tell:
    The largest eigenvalue of the Hessian on the first batch (Lanczos' method on Hessian-vector products), against 2 / lr;
    (2 + 2 momentum) / lr with heavy-ball momentum; for Adam and its kin (2 + 2 beta1) / ((1 - beta1) lr) in the metric of
    its first step, |g| + eps. A warning beyond the ceiling, an error beyond twice the ceiling;
    for Adam and its kin never more than a note.

When it is wrong:
    Between once and twice the ceiling a network often lands in a flatter place and trains well (a catapult). A warmup
    starts below the rate the optimizer is made with. The curvature of one batch is noisy, and Adam's metric at its first
    step is a rough guide, which healthy trainings often pass: that is never more than a note. Curvature grows during
    training, so a rate below the ceiling may still hover at the edge of stability later, which is healthy.

What helps:
    - a learning rate below the ceiling
    - a warmup over the first hundreds of steps
    - gradient clipping, as a harness
    - normalisation, which makes the loss less curved

References:
    Cohen et al. 2021 (edge of stability); Cohen et al. 2022 (adaptive methods); Lewkowycz et al. 2020 (catapult);
    Pearlmutter 1994 (Hessian-vector products).
"""

from __future__ import annotations

import math
from typing import Final

from gradiometer.preflight.judge import finding
from gradiometer.preflight.result import StepSize
from gradiometer.types import Evidence, Finding, Severity

NAME: Final = "learning-rate-ceiling"
RATE_ERROR: Final = 2.0
"""Learning rate over the largest stable one: a catapult (Lewkowycz et al. 2020) still lands below twice 2 / lambda."""


def find(step: StepSize) -> list[Finding]:
    """Whether the learning rate is beyond what the curvature of the first batch allows."""
    optimizer, ratio = step.optimizer, step.ratio
    if optimizer is None or math.isnan(ratio) or ratio <= 1.0:
        return []
    adam = not math.isnan(optimizer.beta1)
    sentence = (
        f"The learning rate {optimizer.learning_rate:g} is {ratio:.2g} times the largest that is stable on the first batch, "
        f"{step.ceiling:.2g}."
    )
    if adam:
        sentence += " For Adam this is a rough guide: its metric is that of one batch, and warming up is the usual answer."
    evidence = Evidence(
        "learning rate over the largest stable one",
        ratio,
        1.0 if adam else RATE_ERROR,
        "Cohen et al. 2021 (2 / lambda); Lewkowycz et al. 2020 (up to twice that still lands)",
        "the curvature of other batches, or a schedule that warms up",
    )
    worst = Severity.ERROR if ratio > RATE_ERROR else Severity.WARNING
    severity = Severity.INFO if adam else worst
    helps = (f"lower the learning rate below {step.ceiling:.2g}", "warm the learning rate up over the first few hundred steps")
    return [finding(NAME, severity, sentence, [evidence], helps, "", [])]
