"""The doctor game: a network out of a pool is trained, sick or well; name what ails it, choose a cure, and be scored.

A case number decides which network it is and with which seed it is trained, so a number is a game that can be played again.
The name is held against what was done to the network and against what the rules find in its record; the cure is really given
and trained beside the untreated network, from the same seed and on the same batches.
"""

from __future__ import annotations

import functools
import random
import threading
from dataclasses import dataclass, replace
from typing import Final

from gradiometer.errors import GradiometerError
from gradiometer.lab import clinic
from gradiometer.lab.clinic import Record, Training
from gradiometer.rules.diagnosis import Diagnosis, examine
from gradiometer.trial.result import Verdict, Word
from gradiometer.trial.verdict import judge
from gradiometer.types import Prescription, Treatment

STEPS: Final = 200
EVERY: Final = 8
"""Every so many-th step of a case is looked at closely."""
FULL: Final = 2
"""Points for the right name, and for a cure that cures."""


@dataclass(frozen=True, slots=True)
class Disease:
    """What can be wrong with a case.

    Attributes:
        name: key.
        label: what people read.
        rules: rules that call it by its name; empty for a network that is well.
        lesson: what tells it from the others, in a sentence.
    """

    name: str
    label: str
    rules: tuple[str, ...]
    lesson: str


WELL: Final = "well"
DISEASES: Final[tuple[Disease, ...]] = (
    Disease(WELL, "Nothing: it is well", (), "The loss falls, and the gradient keeps its size along depth."),
    Disease(
        "vanishing",
        "Vanishing gradient: the activation takes too much",
        ("vanishing-gradient",),
        "Every sigmoid takes the same factor from the gradient: the profile is a straight line down to the input.",
    ),
    Disease(
        "small-weights",
        "Weights drawn too small",
        ("poor-initialization",),
        "Signal and gradient shrink alike, each on its way: both gains of a layer with its activation are far below 1.",
    ),
    Disease(
        "large-weights",
        "Exploding gradient: weights drawn too large",
        ("poor-initialization", "exploding-gradient", "signal-explosion"),
        "Signal and gradient grow at every layer, and the first loss is far above ln 10 = 2.3.",
    ),
    Disease(
        "dead",
        "Dead units: they are zero for every image",
        ("dead-units",),
        "The gradient is exactly zero from some layer on, and no step can change that.",
    ),
    Disease(
        "saturated",
        "Saturated units: they sit where the activation is flat",
        ("saturated-units",),
        "Most activations sit at their ends, where a step changes nothing. The gradient need not show it; the hint does.",
    ),
    Disease(
        "rate-high",
        "Learning rate too high",
        ("learning-rate-too-high",),
        "The start is sound and the first steps throw the network: the heatmap begins well and does not stay so.",
    ),
    Disease(
        "rate-low",
        "Learning rate too low",
        ("learning-rate-too-low",),
        "The gradient arrives everywhere, the loss falls steadily, and an update is a tiny part of its weight.",
    ),
    Disease(
        "symmetric",
        "All units of a layer start alike",
        ("symmetric-initialization",),
        "The loss stops halfway: units that start alike stay alike, so a layer counts as one unit.",
    ),
    Disease(
        "disconnected",
        "Some layers are in no optimizer",
        ("disconnected-parameters",),
        "The gradient arrives in every layer, and yet the first ones do not move at all: only the end of the network learns.",
    ),
    Disease(
        "blind",
        "Blind to its input: all images arrive as one",
        ("input-blindness",),
        "Signal and gradient have ordinary sizes, but what differs from image to image is lost under what they share.",
    ),
)


@dataclass(frozen=True, slots=True)
class Cure:
    """What can be done about a case.

    Attributes:
        name: key.
        label: what people read.
        prescription: what is given; None for nothing.
        attach: whether the optimizer is given every layer.
    """

    name: str
    label: str
    prescription: Prescription | None = None
    attach: bool = False


def _give(*treatments: tuple[str, dict[str, str | float | bool]]) -> Prescription:
    return Prescription(tuple(Treatment(remedy, settings) for remedy, settings in treatments))


NOTHING: Final = "nothing"
CURES: Final[tuple[Cure, ...]] = (
    Cure(NOTHING, "Nothing: leave it as it is"),
    Cure("weights", "Weights drawn anew, at the critical size", _give(("initialise", {"scheme": "critical"}))),
    Cure(
        "gelu",
        "GELU, with weights to match",
        _give(("activation", {"to": "gelu", "replace": "all"}), ("initialise", {"scheme": "critical"})),
    ),
    Cure("batch-norm", "Batch normalisation", _give(("normalise", {"kind": "batch"}))),
    Cure("residual", "Residual connections", _give(("residual", {"scale": "depth"}))),
    Cure("fewer-layers", "Fewer layers: two hidden ones", _give(("fewer-layers", {"keep": 2.0}))),
    Cure("clip", "Clipping by norm, at 1", _give(("clip", {"kind": "norm", "threshold": 1.0}))),
    Cure("rate-down", "Learning rate ÷ 30", _give(("optimizer", {"change": "lr", "value": 1 / 30}))),
    Cure("rate-up", "Learning rate × 100", _give(("optimizer", {"change": "lr", "value": 100.0}))),
    Cure("adam", "Adam", _give(("optimizer", {"change": "adam", "value": 3e-3}))),
    Cure("attach", "Give the optimizer every layer", attach=True),
    Cure("dropout", "Dropout", _give(("regularise", {"kind": "dropout", "value": 0.2}))),
)

_POOL: Final[tuple[tuple[str, Training], ...]] = (
    (WELL, Training("relu", 4, spread=1.41, rate=0.03)),
    (WELL, Training("tanh", 6, spread=1.0, rate=0.03)),
    (WELL, Training("sigmoid", 6, normed=True, rate=0.03)),
    (WELL, Training("relu", 6, normed=True, rate=0.03)),
    ("vanishing", Training("sigmoid", 6, rate=0.1)),
    ("vanishing", Training("sigmoid", 9, 48, rate=0.05)),
    ("small-weights", Training("tanh", 10, spread=0.4, rate=0.05)),
    ("small-weights", Training("relu", 9, spread=0.5, rate=0.05)),
    ("large-weights", Training("relu", 8, spread=3.0, rate=0.02)),
    ("large-weights", Training("linear", 9, spread=2.5, rate=0.01, momentum=0.0)),
    ("dead", Training("relu", 4, spread=1.4, bias=-3.0, rate=0.05)),
    ("dead", Training("relu", 5, spread=1.0, bias=-1.5, rate=0.05)),
    ("saturated", Training("sigmoid", 3, spread=40.0, rate=0.02)),
    ("saturated", Training("tanh", 3, spread=20.0, rate=0.02, momentum=0.5)),
    ("rate-high", Training("relu", 3, spread=1.41, rate=1.0)),
    ("rate-high", Training("tanh", 4, spread=1.0, rate=2.0)),
    ("rate-low", Training("relu", 4, spread=1.41, rate=2e-4)),
    ("rate-low", Training("tanh", 4, spread=1.0, rate=5e-4, momentum=0.0)),
    ("symmetric", Training("tanh", 3, constant=1.0, rate=0.05)),
    ("symmetric", Training("relu", 3, constant=1.0, rate=0.02)),
    ("disconnected", Training("relu", 4, spread=1.41, rate=0.02, left_out=3)),
    ("disconnected", Training("tanh", 6, spread=1.0, rate=0.02, left_out=5)),
    ("blind", Training("tanh", 7, spread=1.0, bias=1.5, rate=0.02)),
    ("blind", Training("tanh", 4, spread=0.8, bias=2.0, rate=0.05)),
)
CASES: Final = len(_POOL)
"""How many cases there are; their numbers begin at 1."""
_ORDER: Final = 41
"""Seed of the order in which the pool is dealt."""


@dataclass(frozen=True, slots=True)
class Case:
    """A hidden network.

    Attributes:
        number: from 1 to `CASES`.
        disease: what was done to it; `WELL` for nothing.
        training: what is trained.
        seed: of its weights and batches.
    """

    number: int
    disease: Disease
    training: Training
    seed: int


@dataclass(frozen=True)
class Examination:
    """What there is to see of a case.

    Attributes:
        case: the case.
        record: its untreated training.
        diagnosis: what the rules make of it.
    """

    case: Case
    record: Record
    diagnosis: Diagnosis

    @property
    def found(self) -> tuple[str, ...]:
        """Rules that found something, the root cause first."""
        return tuple(finding.rule for finding in self.diagnosis.findings)


@dataclass(frozen=True)
class Score:
    """How a player did.

    Attributes:
        examination: the case.
        named: the disease that the player named.
        cure: the cure that the player chose.
        treated: the training with that cure; the untreated one where nothing was done.
        verdict: what it shows beside the untreated one; None where nothing was done.
        name_points: `FULL` for the cause, 1 for something that the rules find too, else 0.
        cure_points: `FULL` for a cure, 1 for what helps (or does no harm to a network that is well), else 0.
        hint_points: 0, or -1 where a hint was taken.
    """

    examination: Examination
    named: Disease
    cure: Cure
    treated: Record
    verdict: Verdict | None
    name_points: int
    cure_points: int
    hint_points: int

    @property
    def points(self) -> int:
        """All of them, never below zero."""
        return max(0, self.name_points + self.cure_points + self.hint_points)


def disease(name: str) -> Disease:
    """A disease by its name.

    Raises:
        GradiometerError: there is none of that name.
    """
    for known in DISEASES:
        if known.name == name:
            return known
    raise GradiometerError(f"There is no disease {name!r}.", "Diseases: " + ", ".join(d.name for d in DISEASES) + ".")


def cure(name: str) -> Cure:
    """A cure by its name.

    Raises:
        GradiometerError: there is none of that name.
    """
    for known in CURES:
        if known.name == name:
            return known
    raise GradiometerError(f"There is no cure {name!r}.", "Cures: " + ", ".join(c.name for c in CURES) + ".")


def case(number: int) -> Case:
    """A case by its number.

    Raises:
        GradiometerError: there is none of that number.
    """
    if not 1 <= number <= CASES:
        raise GradiometerError(f"There is no case {number}.", f"Cases have numbers from 1 to {CASES}.")
    dealt = list(range(CASES))
    random.Random(_ORDER).shuffle(dealt)
    name, training = _POOL[dealt[number - 1]]
    return Case(number, disease(name), training, seed=100 + number)


_ONE: Final = threading.Lock()
"""Two threads that want the same training wait for one."""


def examination(number: int) -> Examination:
    """Train a case untreated and look at it; kept in memory.

    Raises:
        GradiometerError: there is no case of that number.
    """
    with _ONE:
        return _examination(number)


def treatment(number: int, name: str) -> Record:
    """Train a case with a cure, from the same seed; kept in memory.

    Returns:
        The record; its trial is refused where the cure does not fit the network.

    Raises:
        GradiometerError: there is no case of that number, or no cure of that name.
    """
    with _ONE:
        return _treatment(number, name)


@functools.lru_cache(maxsize=2 * CASES)
def _examination(number: int) -> Examination:
    record = _treatment(number, NOTHING)
    return Examination(case(number), record, examine(record.trace))


@functools.lru_cache(maxsize=3 * CASES)
def _treatment(number: int, name: str) -> Record:
    who, chosen = case(number), cure(name)
    training = replace(who.training, left_out=0) if chosen.attach else who.training
    return clinic.run(training, chosen.prescription, seed=who.seed, steps=STEPS, every=EVERY)


def score(number: int, named: str, chosen: str, *, hint: bool = False) -> Score:
    """Score a name and a cure.

    Args:
        number: of the case.
        named: name of a disease.
        chosen: name of a cure.
        hint: whether a hint was taken.

    Raises:
        GradiometerError: there is no such case, disease or cure.
    """
    who, what, how = examination(number), disease(named), cure(chosen)
    treated = treatment(number, chosen)
    verdict = judge([who.record.trial], [treated.trial], STEPS) if how.name != NOTHING else None
    return Score(who, what, how, treated, verdict, _name_points(who, what), _cure_points(who, verdict), -1 if hint else 0)


def _name_points(who: Examination, named: Disease) -> int:
    if named == who.case.disease:
        return FULL
    return int(bool(set(named.rules).intersection(who.found)))


def _cure_points(who: Examination, verdict: Verdict | None) -> int:
    if who.case.disease.name == WELL:
        return FULL if verdict is None else int(verdict.word not in (Word.HARMFUL, Word.FAILED))
    if verdict is None:
        return 0
    return {Word.CURED: FULL, Word.HELPS: 1}.get(verdict.word, 0)
