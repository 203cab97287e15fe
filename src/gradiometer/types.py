"""The nouns every room shares: Site, Evidence, Finding, Treatment, Prescription.

Plain frozen values, no behaviour beyond reading them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Place(StrEnum):
    """What a site is: the output of an operation, a parameter, or weights of attention."""

    OUTPUT = "output"
    PARAMETER = "parameter"
    ATTENTION = "attention"


class Role(StrEnum):
    """What the operation behind a site does. Rules choose sites by role, never by class name."""

    LINEAR = "linear"  # dense, convolution: weights times input
    ACTIVATION = "activation"
    NORM = "norm"
    RECURRENT = "recurrent"
    ATTENTION = "attention"
    EMBEDDING = "embedding"
    CONTAINER = "container"  # a block of other modules, e.g. a residual block
    OTHER = "other"


class Severity(StrEnum):
    """How bad a finding is. A run with an ERROR is sick."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for ERROR, 1 for WARNING, 2 for INFO: sorts the worst first."""
        return ("error", "warning", "info").index(self.value)


class VerdictWord(StrEnum):
    """The one-word reading of a run."""

    WELL = "well"
    SICK = "sick"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the network where signals are measured.

    Attributes:
        name: what the user calls it, e.g. ``layers.3`` or ``layers.3.weight``; a functional activation is
            named after the module before it: ``conv1 > relu``. Untrusted text: escape it where it is shown.
        place: output of an operation, or parameter.
        kind: class or function name, e.g. ``Linear``, ``Sigmoid``, ``relu()``.
        role: what the operation does.
        depth: position in the order of execution, 0 nearest the input; a parameter has the depth of its module.
        model: name of the root module the site belongs to; empty if there is none.
        units: number of units (features or channels) of an output, number of elements of a parameter; 0 if unknown.
        trainable: for a parameter, whether it requires a gradient.
        chain: number of the connected network an output belongs to: an actor and a critic that meet only in their loss
            are two chains, and must not be compared. -1 for a parameter.
        module: qualified name of the module behind it; empty for an operation without one.
        call: which call of its module within one forward pass this is, from 0: a cell unrolled in time has many.
        dtype: number format, e.g. ``float32``; empty if unknown.
        shape: of a parameter; empty for anything else.
    """

    name: str
    place: Place
    kind: str
    role: Role
    depth: int
    model: str = ""
    units: int = 0
    trainable: bool = True
    chain: int = 0
    module: str = ""
    call: int = 0
    dtype: str = ""
    shape: tuple[int, ...] = ()

    @property
    def fan_in(self) -> int:
        """How many inputs each unit of a weight matrix or kernel sums over; 0 for anything else."""
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """One checkable number behind a finding.

    Attributes:
        claim: what the number is, in words.
        value: the number measured.
        threshold: the number it is compared with; NaN where there is none.
        source: where the threshold comes from: a paper, or our own calibration.
        refute: what measurement would change the diagnosis.
    """

    claim: str
    value: float
    threshold: float
    source: str
    refute: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A disease a rule found in a trace.

    Attributes:
        rule: name of the rule, e.g. ``vanishing-gradient``.
        severity: how bad.
        confidence: 0 to 1, how sure the rule is that the finding is real.
        sites: the guilty sites, in order of execution.
        steps: first and last step (inclusive) at which it was seen.
        sentence: one plain sentence with the numbers in it.
        evidence: numbers that can be checked.
        helps: what usually helps, the most promising first.
        starts: name of the site where it starts (the cause).
        shows: names of the sites where it shows (the symptom).
        peak: step at which it shows most clearly; -1 if none stands out. The report pins its profiles there.
        because: name of the rule whose finding in the same run is the cause of this one; empty for a root cause.
    """

    rule: str
    severity: Severity
    confidence: float
    sites: tuple[str, ...]
    steps: tuple[int, int]
    sentence: str
    evidence: tuple[Evidence, ...]
    helps: tuple[str, ...]
    starts: str = ""
    shows: tuple[str, ...] = ()
    peak: int = -1
    because: str = ""


class Safety(StrEnum):
    """How deep a remedy cuts."""

    SAME_FUNCTION = "same-function"  # other numbers to start from; the model and its training stay what they are
    CHANGES_TRAINING = "changes-training"  # optimizer, clipping, schedule
    CHANGES_MODEL = "changes-model"  # another architecture

    @property
    def rank(self) -> int:
        """0 for the least invasive."""
        return ("same-function", "changes-training", "changes-model").index(self.value)


@dataclass(frozen=True, slots=True)
class Treatment:
    """One remedy with its settings.

    Attributes:
        remedy: name of the remedy, e.g. ``initialise``.
        settings: what is set, by name; plain values only. What is left out has the remedy's default.
        sites: patterns (fnmatch) of qualified module names it is applied to; empty for wherever it fits.
    """

    remedy: str
    settings: Mapping[str, str | float | bool] = field(default_factory=dict[str, "str | float | bool"])
    sites: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """``initialise scheme=he``: what it is called in tables."""
        return " ".join([self.remedy, *(f"{k}={_word(v)}" for k, v in self.settings.items())])


@dataclass(frozen=True, slots=True)
class Prescription:
    """Treatments that are given together; the order in which they are applied is that of the remedies, not of this list.

    Attributes:
        treatments: at least one.
        reason: why, in a sentence; empty if nobody said.
    """

    treatments: tuple[Treatment, ...]
    reason: str = ""

    @property
    def label(self) -> str:
        """The labels of its treatments, joined by plus signs."""
        return " + ".join(t.label for t in self.treatments)


def _word(value: str | float | bool) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value:.4g}"
