"""Every strategy of the subject on the same sick network, with and without it, measured.

A patient is trained untreated and with each strategy from the same seeds on the same batches. The strategies are the remedies
of `gradiometer.remedies`, given as `gradiometer.treat` gives them; verdicts are those of `gradiometer.trial.verdict`, which
holds every treated run against the untreated one of its seed and asks the rules what is still ill. Nothing is stored: a board
is trained when it is asked for, and kept in memory.

Sources: the docstring of each remedy names its papers; `Strategy.source` names the first.
"""

from __future__ import annotations

import functools
import math
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gradiometer.errors import GradiometerError
from gradiometer.lab import clinic
from gradiometer.lab.clinic import Record, Training
from gradiometer.record.frames import Group
from gradiometer.record.ledger import FloatArray
from gradiometer.record.trace import Trace
from gradiometer.trial.result import Ending, Verdict, Word
from gradiometer.trial.verdict import judge
from gradiometer.types import Prescription, Role, Treatment

LEVELS: Final = (Word.CURED, Word.HELPS, Word.NO_HELP, Word.HARMFUL, Word.FAILED)
"""Verdicts of a board, the best first."""
LAGS: Final = 8
"""Parts into which the probe divides the time of a recurrent network."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """Something that can be done about a gradient.

    Attributes:
        name: key.
        label: what people read.
        family: what kind of thing it is.
        prescription: what is given.
        idea: how it is meant to work, in a sentence.
        source: the paper it comes from; empty for what everybody does.
    """

    name: str
    label: str
    family: str
    prescription: Prescription
    idea: str
    source: str = ""


def _give(*treatments: tuple[str, dict[str, str | float | bool]]) -> Prescription:
    return Prescription(tuple(Treatment(remedy, settings) for remedy, settings in treatments))


def _activation(to: str) -> tuple[str, dict[str, str | float | bool]]:
    return "activation", {"to": to, "replace": "all"}


def _initialise(scheme: str) -> tuple[str, dict[str, str | float | bool]]:
    return "initialise", {"scheme": scheme}


def _optimizer(change: str, value: float) -> tuple[str, dict[str, str | float | bool]]:
    return "optimizer", {"change": change, "value": value}


STRATEGIES: Final[tuple[Strategy, ...]] = (
    Strategy(
        "fewer-layers",
        "Fewer layers",
        "architecture",
        _give(("fewer-layers", {"keep": 2.0})),
        "Two hidden layers stay: what each layer takes away is taken away less often.",
    ),
    Strategy(
        "relu",
        "ReLU, same weights",
        "activation",
        _give(_activation("relu")),
        "Its slope is 1 wherever it is open; the weights stay as they were drawn.",
        "Nair & Hinton 2010",
    ),
    Strategy(
        "relu-he",
        "ReLU + He weights",
        "activation",
        _give(_activation("relu"), _initialise("he")),
        "ReLU halves the power of a signal, and He's weights double it again.",
        "He et al. 2015",
    ),
    Strategy(
        "leaky-he",
        "Leaky ReLU + He weights",
        "activation",
        _give(_activation("leaky-relu"), _initialise("he")),
        "A slope of 0.01 below zero: no unit can die for good.",
        "Maas et al. 2013",
    ),
    Strategy(
        "gelu",
        "GELU + critical weights",
        "activation",
        _give(_activation("gelu"), _initialise("critical")),
        "A smooth relative of ReLU, with the weights its own slope asks for.",
        "Hendrycks & Gimpel 2016",
    ),
    Strategy(
        "selu",
        "SELU + its weights",
        "activation",
        _give(_activation("selu")),
        "With weights of variance 1 / fan_in it draws every layer back to mean 0 and variance 1.",
        "Klambauer et al. 2017",
    ),
    Strategy(
        "xavier",
        "Xavier weights",
        "initialisation",
        _give(_initialise("xavier")),
        "Keeps the size of a signal through layers whose slope is 1 at zero.",
        "Glorot & Bengio 2010",
    ),
    Strategy(
        "he",
        "He weights",
        "initialisation",
        _give(_initialise("he")),
        "Twice Xavier's variance, for what ReLU throws away.",
        "He et al. 2015",
    ),
    Strategy(
        "orthogonal",
        "Orthogonal weights",
        "initialisation",
        _give(_initialise("orthogonal")),
        "Every direction is multiplied alike, with the gain of the activation; sigmoids are centred.",
        "Saxe et al. 2013",
    ),
    Strategy(
        "critical",
        "Critical weights",
        "initialisation",
        _give(_initialise("critical")),
        "The edge of chaos of the layer's own activation, where one layer multiplies the gradient by 1 on average.",
        "Schoenholz et al. 2017",
    ),
    Strategy(
        "centred",
        "Centred sigmoid",
        "initialisation",
        _give(_initialise("centred-sigmoid")),
        "Biases take off the 0.5 that all sigmoids have in common; then a spread of 4 keeps the gradient.",
    ),
    Strategy(
        "lsuv",
        "LSUV",
        "initialisation",
        _give(_initialise("lsuv")),
        "Each layer is scaled by what it shows on the first batch.",
        "Mishkin & Matas 2016",
    ),
    Strategy(
        "recurrent",
        "Orthogonal through time",
        "initialisation",
        _give(_initialise("recurrent")),
        "Orthogonal recurrent weights: one step of time multiplies by 1 at the start.",
        "Le et al. 2015",
    ),
    Strategy(
        "batch-norm",
        "Batch normalisation",
        "normalisation",
        _give(("normalise", {"kind": "batch"})),
        "Every unit gets mean 0 and variance 1 over the batch, so what all images have in common goes.",
        "Ioffe & Szegedy 2015",
    ),
    Strategy(
        "layer-norm",
        "Layer normalisation",
        "normalisation",
        _give(("normalise", {"kind": "layer"})),
        "Every image gets mean 0 and variance 1 over the units of a layer.",
        "Ba et al. 2016",
    ),
    Strategy(
        "residual",
        "Residual connections",
        "architecture",
        _give(("residual", {"scale": 1.0})),
        "x + f(x): the sum passes on what the layer would lose.",
        "He et al. 2016",
    ),
    Strategy(
        "residual-depth",
        "Residual, 1/√depth",
        "architecture",
        _give(("residual", {"scale": "depth"})),
        "x + f(x) / √(number of layers): the growth over all layers stays bounded.",
        "Hayou et al. 2021",
    ),
    Strategy(
        "clip-norm",
        "Clipping by norm",
        "gradient",
        _give(("clip", {"kind": "norm", "threshold": 1.0})),
        "A gradient longer than 1 is made as long as 1; a shorter one is left as it is.",
        "Pascanu et al. 2013",
    ),
    Strategy(
        "clip-value",
        "Clipping by value",
        "gradient",
        _give(("clip", {"kind": "value", "threshold": 0.1})),
        "No element of the gradient may be larger than 0.1, which also bends its direction.",
    ),
    Strategy(
        "rate-up",
        "Learning rate × 10",
        "optimizer",
        _give(_optimizer("lr", 10.0)),
        "Longer steps, in all layers alike.",
    ),
    Strategy(
        "rate-down",
        "Learning rate ÷ 10",
        "optimizer",
        _give(_optimizer("lr", 0.1)),
        "Shorter steps, in all layers alike.",
    ),
    Strategy(
        "warm-up",
        "Warm-up",
        "optimizer",
        _give(_optimizer("warmup", 50.0)),
        "The learning rate grows from near zero over 50 steps.",
        "Goyal et al. 2017",
    ),
    Strategy(
        "adam",
        "Adam",
        "optimizer",
        _give(_optimizer("adam", 3e-3)),
        "Divides the size out of each gradient: small ones take steps as long as large ones.",
        "Kingma & Ba 2015",
    ),
    Strategy(
        "weight-decay",
        "Weight decay",
        "regularisation",
        _give(_optimizer("weight-decay", 1e-3)),
        "Pulls every weight towards zero; meant against overfitting.",
    ),
    Strategy(
        "dropout",
        "Dropout",
        "regularisation",
        _give(("regularise", {"kind": "dropout", "value": 0.2})),
        "Sets a fifth of the hidden activations to zero at random; meant against overfitting.",
        "Srivastava et al. 2014",
    ),
    Strategy(
        "pretrain",
        "Autoencoder pre-training",
        "initialisation",
        _give(("pretrain", {})),
        "Each layer first learns to reproduce what comes in, without any label.",
        "Bengio et al. 2007",
    ),
)
"""All strategies, in the order of the subject."""


@dataclass(frozen=True, slots=True)
class Patient:
    """A sick network.

    Attributes:
        name: key.
        label: what people read.
        training: what is trained.
        complaint: what is wrong with it, in a sentence.
    """

    name: str
    label: str
    training: Training
    complaint: str


PATIENTS: Final[tuple[Patient, ...]] = (
    Patient(
        "vanishing",
        "vanishes: eight sigmoid layers",
        Training(activation="sigmoid", depth=8, width=32, rate=0.05),
        "Eight sigmoid layers with PyTorch's own weights: each makes the gradient about seven times smaller.",
    ),
    Patient(
        "exploding",
        "explodes: eight ReLU layers, large weights",
        Training(activation="relu", depth=8, width=32, spread=3.0, rate=0.05),
        "Eight ReLU layers whose weights are drawn 2.1 times too large: signal and gradient grow at every layer.",
    ),
    Patient(
        "recurrent",
        "explodes through time: a recurrent layer",
        Training(activation="relu", recurrent=True, depth=4, width=32, spread=1.8, rate=0.05),
        "One recurrent ReLU layer reads 32 rows of pixels; each step of time makes the gradient larger on its way back.",
    ),
)
"""The patients."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a board is made of.

    Attributes:
        patient: name of a patient.
        strategies: names; all by default, in the order of `STRATEGIES`.
        seeds: each strategy and the untreated network are trained from so many, at least 1.
        steps: of a training, at least 10.
        every: every so many-th step is looked at closely.
    """

    patient: str = "vanishing"
    strategies: tuple[str, ...] = tuple(strategy.name for strategy in STRATEGIES)
    seeds: int = 3
    steps: int = 120
    every: int = 12


@dataclass(frozen=True)
class Course:
    """Trainings that differ in their seed only.

    Attributes:
        loss: of every step, (seeds, steps); NaN where it was no number.
        start: log10 of the gradient at the places of the board against that at the last, at the first step, (seeds, places);
            -inf for exactly zero, NaN where a place is not there or its gradient was no number.
        end: the same at the last look, of a recurrent layer at the last that followed it through time.
        accuracy: share of the training images that are right at the end, (seeds,).
        seconds_per_step: of this machine, the lowest median over the seeds; NaN where nothing was trained.
        errors: rules that found something which stops the training, at any seed.
        changes: what the treatment did, a sentence for each thing.
    """

    loss: FloatArray
    start: FloatArray
    end: FloatArray
    accuracy: FloatArray
    seconds_per_step: float
    errors: tuple[str, ...]
    changes: tuple[str, ...] = ()

    @property
    def ran(self) -> bool:
        """Whether it was trained at all: a strategy may not fit."""
        return self.loss.size > 0

    @property
    def typical_start(self) -> FloatArray:
        """Median of ``start`` over the seeds, (places,); empty where it was not trained."""
        return _middle(self.start)

    @property
    def typical_end(self) -> FloatArray:
        """Median of ``end`` over the seeds, (places,); empty where it was not trained."""
        return _middle(self.end)

    @property
    def right(self) -> float:
        """Median accuracy over the seeds; NaN where it was not trained."""
        return float(np.median(self.accuracy)) if self.accuracy.size else math.nan


def _middle(values: FloatArray) -> FloatArray:
    """Medians of columns that may hold -inf and NaN, each one of its values: no mean of a number and -inf."""
    columns = (column[~np.isnan(column)] for column in values.T)
    return np.array([statistics.median_low(column.tolist()) if column.size else math.nan for column in columns])


@dataclass(frozen=True)
class Arm:
    """A strategy on a patient.

    Attributes:
        strategy: itself.
        course: its trainings; empty where it does not fit.
        verdict: what they show beside the untreated ones.
    """

    strategy: Strategy
    course: Course
    verdict: Verdict


@dataclass(frozen=True)
class Board:
    """All strategies on one patient.

    Attributes:
        settings: what it was made of.
        patient: the network.
        places: where the gradient is known, from the input to the loss: layers, or steps of time before the end.
        untreated: the network without any strategy.
        arms: in the order of the settings.
    """

    settings: Settings
    patient: Patient
    places: tuple[str, ...]
    untreated: Course
    arms: tuple[Arm, ...]

    @property
    def ranked(self) -> tuple[Arm, ...]:
        """The best first: by verdict, then by accuracy."""
        return tuple(sorted(self.arms, key=lambda arm: (LEVELS.index(arm.verdict.word), -np.nan_to_num(arm.course.right))))

    def arm(self, strategy: str) -> Arm:
        """The arm of a strategy.

        Raises:
            GradiometerError: it is not on the board.
        """
        for arm in self.arms:
            if arm.strategy.name == strategy:
                return arm
        raise GradiometerError(
            f"The board has no strategy {strategy!r}.", "It has " + ", ".join(a.strategy.name for a in self.arms) + "."
        )

    def cost(self, arm: Arm) -> float:
        """Time of a step with a strategy as a multiple of that without; NaN where it does not fit."""
        return arm.course.seconds_per_step / self.untreated.seconds_per_step


def strategy(name: str) -> Strategy:
    """A strategy by its name.

    Raises:
        GradiometerError: there is none of that name.
    """
    for known in STRATEGIES:
        if known.name == name:
            return known
    raise GradiometerError(f"There is no strategy {name!r}.", "Strategies: " + ", ".join(s.name for s in STRATEGIES) + ".")


def patient(name: str) -> Patient:
    """A patient by its name.

    Raises:
        GradiometerError: there is none of that name.
    """
    for known in PATIENTS:
        if known.name == name:
            return known
    raise GradiometerError(f"There is no patient {name!r}.", "Patients: " + ", ".join(p.name for p in PATIENTS) + ".")


_ONE: Final = threading.Lock()
"""Two threads that want the same board wait for one."""


def board(settings: Settings) -> Board:
    """Train a patient without and with each strategy; kept in memory, so that asking again is instant.

    Args:
        settings: what it is made of.

    Raises:
        GradiometerError: the patient or a strategy does not exist, or a number is too small.
    """
    with _ONE:
        return _board(settings)


@functools.lru_cache(maxsize=8)
def _board(settings: Settings) -> Board:
    if settings.seeds < 1 or settings.steps < 10:
        raise GradiometerError(
            f"{settings.seeds} seeds of {settings.steps} steps are too few.", "At least 1 seed and 10 steps."
        )
    who, chosen = patient(settings.patient), [strategy(name) for name in settings.strategies]
    controls = _trained(who, None, settings)
    places = _places(who.training)
    arms: list[Arm] = []
    for one in chosen:
        treated = _trained(who, one.prescription, settings)
        verdict = judge([r.trial for r in controls], [r.trial for r in treated], settings.steps)
        arms.append(Arm(one, _course(treated, places), verdict))
    return Board(settings, who, tuple(places.values()), _course(controls, places), tuple(arms))


def _trained(who: Patient, prescription: Prescription | None, settings: Settings) -> list[Record]:
    records: list[Record] = []
    for seed in range(settings.seeds):
        records.append(clinic.run(who.training, prescription, seed=seed, steps=settings.steps, every=settings.every))
        if records[-1].trial.ending is Ending.REFUSED:  # it would not fit with another seed either
            break
    return records


# ---- gradients along depth or time ----------------------------------------------------------------------------------------


def _places(training: Training) -> dict[str, str]:
    """Name of a site, or number of a lag, -> what people call it, from the input to the loss."""
    if training.recurrent:
        steps = training.depth * clinic.SIDE
        return {str(k): str(-steps * k // LAGS) for k in range(LAGS, -1, -1)}
    per_layer = 1 + training.normed + (training.activation != "linear")
    hidden = {str(k * per_layer): str(k + 1) for k in range(training.depth)}
    return {**hidden, str(training.depth * per_layer): "head"}


def _course(records: Sequence[Record], places: dict[str, str]) -> Course:
    ran = [record for record in records if record.trial.ran]
    times = [record.seconds_per_step for record in ran]
    return Course(
        loss=np.array([record.loss for record in ran], dtype=np.float64),
        start=np.array([_profile(record.trace, 0, places) for record in ran], dtype=np.float64),
        end=np.array([_profile(record.trace, -1, places) for record in ran], dtype=np.float64),
        accuracy=np.array([record.accuracy for record in ran], dtype=np.float64),
        seconds_per_step=min(times) if times else math.nan,
        errors=tuple(dict.fromkeys(rule for record in ran for rule in record.trial.errors)),
        changes=records[0].changes,
    )


def _profile(trace: Trace, look: int, places: dict[str, str]) -> FloatArray:
    """log10 of the gradient at each place against the last, (places,)."""
    recurrent = [int(i) for i in trace.outputs if trace.sites[int(i)].role is Role.RECURRENT]
    if recurrent:
        replayed = np.flatnonzero(trace.recorded[Group.TIME][:, recurrent[0]])
        y = trace.time_decades[replayed[look], recurrent[0]] if replayed.size else np.full(LAGS + 1, np.nan)
        return np.array([y[int(lag)] for lag in places])
    known = {trace.sites[int(i)].name: trace.log10_gradient[look, i] for i in trace.with_role(Role.LINEAR)}
    y = np.array([known.get(name, math.nan) for name in places])
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(y[-1]), y - y[-1], np.nan)
