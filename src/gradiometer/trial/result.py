"""What came of a cure, as frozen values, and their form on disk (``trial.json``, ``cure.json``). No torch.

The same values come from the command line and from a notebook. On disk they are strict JSON: what is unknown is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from gradiometer.errors import GradiometerError
from gradiometer.types import Prescription, Safety, Severity

T = TypeVar("T")

SCHEMA: Final = 1
CURE_FILE: Final = "cure.json"
PRESCRIPTION_FILE: Final = "prescription.json"
TRIAL_FILE: Final = "trial.json"


class Ending(StrEnum):
    """How a trial ended."""

    RAN = "ran"  # as far as it was asked to, or to the end of the training
    REFUSED = "refused"  # the remedy does not fit this model
    FAILED = "failed"  # the command crashed, trained nothing, or took too long
    INTERRUPTED = "interrupted"  # somebody stopped the race; it is run again when the race goes on


@dataclass(frozen=True, slots=True)
class Mark:
    """A finding of a trial, in short.

    Attributes:
        rule: its name.
        severity: how bad.
        because: rule that is the cause of it; empty for a root cause.
        sentence: what it says.
    """

    rule: str
    severity: Severity
    because: str = ""
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A call in the user's code that a treatment may be about.

    Attributes:
        what: ``optimizer`` (made there), ``step`` (of it), ``forward`` (the model is called), ``wrapped`` (for data-parallel
            training), ``activation`` (a function is called) or ``module`` (one is made).
        file: path, relative to the folder the command is run in where it lies below it.
        line, end_line: of the call, from 1.
        column, end_column: of the call in its first and last line, from 0; -1 if unknown.
        first, last: lines of the statement around it.
        names: what is called so there: the model for ``optimizer`` and ``forward``, the optimizer for ``step``.
        detail: class of the optimizer or module, or name of the function.
        modules: qualified names of the modules that were made there.
    """

    what: str
    file: str
    line: int
    end_line: int
    column: int
    end_column: int
    first: int
    last: int
    names: tuple[str, ...] = ()
    detail: str = ""
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """A treatment as it was given.

    Attributes:
        remedy: its name.
        settings: all of them, defaults filled in.
        changes: what it did, a sentence for each thing.
    """

    remedy: str
    settings: Mapping[str, str | float | bool]
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the training.

    Attributes:
        name: of its folder.
        prescription: what it was treated with; None for an untreated run.
        seed: what was added to every seed the training sets.
        steps: optimizer steps it was given.
        ending: how it ended.
        trouble: why, in a sentence, where it did not run; empty otherwise.
        taken: optimizer steps it took.
        bin_steps: steps that are one entry of ``curve``.
        curve: median loss of each ``bin_steps`` steps in order; NaN where it was no number.
        several: whether losses of several optimizers take turns: their level then says nothing.
        learned: whether the loss fell clearly.
        findings: root causes first.
        metrics: last value of what the training evaluated on held-out data or logged, by name.
        seconds_per_step: median, without the first steps and without the time of the probe; NaN if unknown.
        seconds: of the whole command.
        given: what it was treated with, as it was done.
        places: calls in the user's code that this is about.
    """

    name: str
    prescription: Prescription | None
    seed: int
    steps: int
    ending: Ending
    trouble: str = ""
    taken: int = 0
    bin_steps: int = 1
    curve: tuple[float, ...] = ()
    several: bool = False
    learned: bool = False
    findings: tuple[Mark, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    seconds_per_step: float = math.nan
    seconds: float = math.nan
    given: tuple[Given, ...] = ()
    places: tuple[Place, ...] = ()

    @property
    def ran(self) -> bool:
        """Whether it says anything about its treatment."""
        return self.ending is Ending.RAN

    @property
    def errors(self) -> tuple[str, ...]:
        """Rules that found something that stops the training, root causes first."""
        return tuple(mark.rule for mark in self.findings if mark.severity is Severity.ERROR)

    @property
    def roots(self) -> tuple[str, ...]:
        """Those of them that follow from no other."""
        return tuple(mark.rule for mark in self.findings if mark.severity is Severity.ERROR and not mark.because)


class Promise(StrEnum):
    """What theory says of a treatment."""

    SUFFICES = "suffices"
    MAY_HELP = "may help"
    UNKNOWN = "not covered"
    CANNOT = "cannot help"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What theory expects of a network after a treatment.

    Attributes:
        promise: in a word.
        decades: by which the gradient changes from the last layer to the first: negative where it vanishes; NaN unknown.
        apart: log10 of the share of the last layer's signal that differs between two inputs; NaN unknown.
        alike: log10 of what is left at the first layer of the likeness of two inputs' gradients; NaN unknown.
        sentence: why.
    """

    promise: Promise
    decades: float = math.nan
    apart: float = math.nan
    alike: float = math.nan
    sentence: str = ""

    @property
    def covered(self) -> bool:
        """Whether theory has numbers for it."""
        return not math.isnan(self.decades)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prescription worth a trial.

    Attributes:
        prescription: what is given.
        safety: the deepest cut in it.
        prediction: what theory expects.
    """

    prescription: Prescription
    safety: Safety
    prediction: Prediction

    @property
    def invasiveness(self) -> int:
        """How much it changes: 0 for other numbers to start from, more for deeper cuts and for several at once."""
        return self.safety.rank + len(self.prescription.treatments) - 1


@dataclass(frozen=True, slots=True)
class NotTried:
    """A treatment that was left out, or put last.

    Attributes:
        label: of the treatment, or name of the remedy.
        reason: a sentence.
    """

    label: str
    reason: str


class Word(StrEnum):
    """What a treatment was shown to do."""

    CURED = "cured"  # nothing ill is left, and the loss is better beyond noise
    PROMISING = "promising"  # so with one seed; it was not held against the control over more
    HELPS = "helps"  # the loss is better beyond noise, but something ill is left, or something new has come
    BEHIND = "left behind"  # by others, before it was tried in full
    NO_HELP = "no help"
    HARMFUL = "harmful"  # worse on held-out data, or in the loss
    FAILED = "failed"  # it could not be given, or the training crashed with it


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95 % interval.

    Attributes:
        middle, low, high: NaN where unknown.
        pairs: how many differences it rests on.
    """

    middle: float
    low: float
    high: float
    pairs: int

    @property
    def below(self) -> bool:
        """Whether all of it lies below zero."""
        return self.high < 0.0

    @property
    def above(self) -> bool:
        """Whether all of it lies above zero."""
        return self.low > 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What trials of a treatment showed beside untreated ones of the same seeds.

    Attributes:
        word: in one word.
        sentence: why.
        loss: natural logarithm of (loss at the end / that of the control), paired by seed; see `gradiometer.trial.verdict`.
        seeds: how many pairs of runs.
        steps: at which they were compared.
        loss_end, control_end: medians over the seeds.
        gone: whether what ailed the control was not found any more.
        left: rules that still find an error.
        new: rules that find an error in a treated run and in no control.
        harmed: metrics that are worse beyond noise.
        cost: time per step, as a multiple of the control's; NaN if unknown.
    """

    word: Word
    sentence: str
    loss: Interval
    seeds: int
    steps: int
    loss_end: float = math.nan
    control_end: float = math.nan
    gone: bool = False
    left: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    harmed: tuple[str, ...] = ()
    cost: float = math.nan


@dataclass(frozen=True, slots=True)
class Arm:
    """A candidate and what came of it.

    Attributes:
        candidate: what was tried.
        trials: in the order in which they were run.
        verdict: on the longest of them.
    """

    candidate: Candidate
    trials: tuple[Trial, ...]
    verdict: Verdict

    @property
    def label(self) -> str:
        """Of its prescription."""
        return self.candidate.prescription.label


@dataclass(frozen=True, slots=True)
class Edit:
    """The change of the user's code that a prescription stands for.

    Attributes:
        diff: unified diff; empty where the code could not be found or changed with certainty.
        notes: what to write where, in words and lines: all of it without a diff, what the diff leaves out with one.
    """

    diff: str = ""
    notes: tuple[str, ...] = ()


class Outcome(StrEnum):
    """What came of a cure."""

    CURED = "cured"
    WELL = "already well"
    NO_CURE = "no cure"
    INTERRUPTED = "interrupted"  # what was known by then


@dataclass(frozen=True, slots=True)
class Cure:
    """What came of an attempt to cure a training.

    Attributes:
        outcome: in a word.
        sentence: in one or two sentences.
        command: what was run; empty for a training in a notebook.
        cwd: folder it was run in.
        steps: optimizer steps of a full trial.
        budget: optimizer steps that all trials together were allowed.
        spent: that they took.
        seeds: of the finalists.
        control: untreated runs, one for each seed.
        diagnosis: findings of the first of them, in full sentences.
        arms: candidates that were tried, the best first.
        not_tried: what was not, and why.
        best: position of the cure in ``arms``; -1 without one.
        edit: what to write in the code for it.
        folder: where everything lies.
        version: of gradiometer.
        notes: what a reader should know: what was not protected, what was cut short.
        schema: of this format.
    """

    outcome: Outcome
    sentence: str
    command: tuple[str, ...]
    cwd: str
    steps: int
    budget: int
    spent: int
    seeds: int
    control: tuple[Trial, ...]
    arms: tuple[Arm, ...] = ()
    not_tried: tuple[NotTried, ...] = ()
    best: int = -1
    edit: Edit = field(default_factory=Edit)
    folder: str = ""
    version: str = ""
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    @property
    def cure(self) -> Arm | None:
        """The arm that cures; None without one."""
        return self.arms[self.best] if self.best >= 0 else None

    @property
    def prescription(self) -> Prescription | None:
        """What cures; apply it with `gradiometer.treat`. None where nothing does."""
        return self.arms[self.best].candidate.prescription if self.best >= 0 else None


# ---- on disk -----------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value of this file as dicts, lists, strings and numbers; a number that is not finite becomes None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in cast("tuple[Any, ...]", value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def restored(kind: type[T], data: Any) -> T:
    """What `plain` was made from.

    Raises:
        ValueError, TypeError, KeyError: it was made from something else.
    """
    return cast("T", _restored(kind, data))


def _restored(kind: Any, data: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if data is None and NoneType in arguments:
            return None
        inner = [a for a in arguments if a is not NoneType]
        return _restored(inner[0], data) if len(inner) == 1 else data
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_restored(arguments[0], each) for each in data)
        return tuple(_restored(each, part) for each, part in zip(arguments, data, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _restored(arguments[1], each) for key, each in data.items()}
    if is_dataclass(kind):
        hints = _hints(cast("type", kind))
        return cast("type", kind)(**{name: _restored(hints[name], each) for name, each in data.items() if name in hints})
    if kind is float:
        return math.nan if data is None else float(data)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(data)
    return data


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def write(path: Path, value: Any) -> Path:
    """Write a value of this file as JSON, whole or not at all; returns its path.

    Raises:
        GradiometerError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(plain(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise GradiometerError(
            f"{path} cannot be written ({error.strerror or error}).", "Give --out another folder."
        ) from error
    return path


def read(kind: type[T], path: Path) -> T:
    """Read what `write` wrote.

    Raises:
        GradiometerError: there is none, or it is damaged or of another version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and "schema" in data and data["schema"] != SCHEMA:
            raise ValueError(f"its format is {data['schema']}, this version reads {SCHEMA}")
        return restored(kind, data)
    except OSError as error:
        raise GradiometerError(f"{path} cannot be read ({error.strerror or error}).", "Check the path.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GradiometerError(f"{path} cannot be read ({error}).", "Remove it, or give --out another folder.") from error
