"""What a check comes to: one frozen value that reports format and tests ask."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradiometer.errors import GradiometerError
from gradiometer.record.blueprint import CurvatureFacts, OptimizerFacts
from gradiometer.theory.forecast import Band
from gradiometer.types import Finding, Severity, VerdictWord


class SickNetworkError(GradiometerError, AssertionError):
    """A check found the network sick; an AssertionError too, so that a test that calls for it fails rather than errs."""


@dataclass(frozen=True, slots=True)
class LayerForecast:
    """One layer's output: what theory expects, beside what one forward and one backward pass measured.

    Attributes:
        name: the user's name for it; untrusted text.
        kind: what it is.
        depth: position in the order of execution.
        signal, gradient: log10 of the root mean square of the output, and of the L2 norm of its gradient.
        apart: log10 of 1 - c, c being the correlation of the outputs for two inputs.
        measured_signal, measured_gradient, measured_apart: the same, measured; NaN where they could not be.
        covered: whether theory covers the operation; else its gain is the measured one.
        saturated, dead: share of an activation's elements in its flat part, and of its units that were zero on the whole
            batch; NaN where it has no such part.
        chain: number of the connected network it belongs to.
        has_weights: whether it is a layer with weights.
    """

    name: str
    kind: str
    depth: int
    signal: Band
    gradient: Band
    apart: Band
    measured_signal: float
    measured_gradient: float
    measured_apart: float
    covered: bool
    saturated: float = math.nan
    dead: float = math.nan
    chain: int = 0
    has_weights: bool = False


@dataclass(frozen=True, slots=True)
class StepSize:
    """The learning rate beside the largest that the curvature of the first batch allows.

    Attributes:
        optimizer: as it was about to step; None without one.
        curvature: as it was measured.
        ceiling: largest stable learning rate: 2 / lambda for gradient descent, (2 + 2 beta) / lambda with momentum, and
            (2 + 2 beta1) / ((1 - beta1) lambda) in the metric of an Adam-like optimizer (Cohen et al. 2021, 2022); NaN if
            it could not be told, infinity where the loss curves nowhere upwards.
    """

    optimizer: OptimizerFacts | None
    curvature: CurvatureFacts
    ceiling: float

    @property
    def ratio(self) -> float:
        """Learning rate over ceiling; NaN if either is not known."""
        rate = self.optimizer.learning_rate if self.optimizer is not None else math.nan
        return rate / self.ceiling if self.ceiling > 0.0 else math.nan


@dataclass(frozen=True, slots=True)
class Preflight:
    """The reading of a check.

    Attributes:
        verdict: sick if a finding is an error; unknown if too little could be seen.
        sentence: the verdict in one or two sentences.
        why: the chain rule of this network in words; empty where theory has nothing to say.
        findings: worst first.
        layers: in order of execution.
        trainable_depth: how many layers of this kind and initialisation keep a gradient that can train; infinity if any
            number does, NaN if it cannot be told.
        step_size: None if the curvature was not asked for.
        loss: of the first batch; NaN if it is no single number.
        covered: share of the operations that theory covers, 0..1.
        agree: share of the layers whose measured gradient lies within the 90 % interval of its forecast; NaN without any.
        notes: what could not be measured.
    """

    verdict: VerdictWord
    sentence: str
    why: str
    findings: tuple[Finding, ...]
    layers: tuple[LayerForecast, ...]
    trainable_depth: float
    step_size: StepSize | None
    loss: float
    covered: float
    agree: float
    notes: tuple[str, ...]

    def fails(self, level: Severity = Severity.ERROR) -> bool:
        """Whether a finding is at least as bad as ``level``."""
        return any(finding.severity.rank <= level.rank for finding in self.findings)

    def raise_if_sick(self, level: Severity = Severity.ERROR) -> None:
        """Raise if a finding is at least as bad as ``level``.

        Raises:
            SickNetworkError: a `GradiometerError` that is an AssertionError too; its text says what was found.
        """
        found = [f for f in self.findings if f.severity.rank <= level.rank]
        if found:
            said = " ".join([*(f"[{f.rule}] {f.sentence}" for f in found), self.why]).strip()
            raise SickNetworkError(said, "; ".join(found[0].helps[:2]).capitalize() + "." if found[0].helps else "")
