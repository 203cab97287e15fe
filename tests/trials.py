"""Trials made up for tests of verdicts and races: a training that is told how it will go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradiometer.record.trace import Trace
from gradiometer.trial.race import Order
from gradiometer.trial.result import Candidate, Ending, Mark, Prediction, Promise, Trial
from gradiometer.types import Prescription, Safety, Severity, Treatment
from traces import make

NOISE = 0.05


def curve(start: float, end: float, bins: int, seed: int = 0, noise: float = NOISE) -> tuple[float, ...]:
    """A loss that falls from start to end, with noise."""
    rng = np.random.default_rng(seed)
    return tuple((np.geomspace(start, end, bins) * np.exp(noise * rng.standard_normal(bins))).tolist())


def trial(
    *curve: float,
    treated: bool = True,
    seed: int = 0,
    steps: int = 0,
    errors: Sequence[str] = (),
    ending: Ending = Ending.RAN,
    metrics: Mapping[str, float] | None = None,
    step_time: float = 0.01,
    several: bool = False,
) -> Trial:
    """A trial with one step in each entry of its curve."""
    findings = tuple(Mark(rule, Severity.ERROR, errors[0] if k else "") for k, rule in enumerate(errors))
    return Trial(
        name="t",
        prescription=Prescription((Treatment("clip"),)) if treated else None,
        seed=seed,
        steps=steps or len(curve),
        ending=ending,
        trouble="" if ending is Ending.RAN else "It crashed.",
        taken=len(curve),
        curve=curve,
        findings=findings,
        metrics=metrics or {},
        seconds_per_step=step_time,
        learned=bool(curve) and curve[-1] < 0.8 * curve[0],
        several=several,
    )


@dataclass
class Course:
    """How a training goes.

    Attributes:
        end: loss after all steps; it starts at 2.3.
        ill: rules that find an error, in trials of all steps.
        ending: of every trial.
        seeds: end by seed, where it is not that of the others.
        died: step from which on the loss is no number.
    """

    end: float = 2.3
    ill: tuple[str, ...] = ()
    ending: Ending = Ending.RAN
    seeds: Mapping[int, float] = field(default_factory=dict[int, float])
    died: int = 10**9


@dataclass
class Theatre:
    """Performs trials as they are told, and takes note; joblib can carry it.

    Attributes:
        courses: label of a prescription (empty for the control) to how it goes.
        steps: of a full training.
    """

    courses: Mapping[str, Course]
    steps: int = 300
    length: int = 10**9

    def __call__(self, order: Order) -> Trial:
        label = order.prescription.label if order.prescription is not None else ""
        course = self.courses[label]
        taken = min(order.steps, self.length) if course.ending is Ending.RAN else 0
        bins = max(1, math.ceil(min(self.steps, self.length) / order.bin_steps))
        end = course.seeds.get(order.seed, course.end)
        whole = curve(2.3, end, bins, seed=order.seed)
        shown = whole[: max(1, taken // order.bin_steps)]
        shown = tuple(math.nan if k * order.bin_steps >= course.died else x for k, x in enumerate(shown))
        ill = () if order.early else course.ill
        return Trial(
            name=order.name,
            prescription=order.prescription,
            seed=order.seed,
            steps=order.steps,
            ending=course.ending,
            trouble="" if course.ending is Ending.RAN else "It does not fit.",
            taken=taken,
            bin_steps=order.bin_steps,
            curve=shown if course.ending is Ending.RAN else (),
            learned=end < 1.8,
            findings=tuple(Mark(rule, Severity.ERROR) for rule in ill),
            seconds_per_step=0.01,
            seconds=1.0,
        )


def sick(_name: str = "") -> Trace:
    """A record of an untreated training that vanishes and does not learn."""
    return make(12, gradient=np.linspace(-9.0, 0.0, 25), loss=np.full(300, 2.3))


def well(_name: str = "") -> Trace:
    """A record of an untreated training with nothing wrong."""
    return make(12)


def candidate(name: str, safety: Safety = Safety.SAME_FUNCTION, promise: Promise = Promise.UNKNOWN) -> Candidate:
    """A candidate with one treatment of this name."""
    return Candidate(Prescription((Treatment(name),)), safety, Prediction(promise))
