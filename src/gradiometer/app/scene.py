"""Scene: what a page of the lab is made of, without a web server in sight.

A page is a few controls, a law, a question, and one pure function from the controls' values (the *state*) to a `Scene`:
figures, tables and sentences. Because the function is pure, a link that holds the state reproduces the page, and the whole lab
can be written to disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import plotly.graph_objects as go

from gradiometer.errors import GradiometerError
from gradiometer.figures.tables import Table

Value = float | str | bool
State = Mapping[str, Value]

UNQUOTED: Final = "!*'()"
"""What JavaScript's encodeURIComponent leaves alone beside what Python's quote does: both must write the same link."""

NEAR: Final = 1e-5
"""Relative distance within which a number in a link is the stop of a slider."""


# ---- controls ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slider:
    """A number out of a ladder of stops.

    Attributes:
        name: key in the state and in links.
        label: what the reader sees.
        stops: all values, increasing.
        default: one of them.
        unit: behind the value; empty for none.
        advice: one short sentence on what it does; empty for none.
    """

    name: str
    label: str
    stops: tuple[float, ...]
    default: float
    unit: str = ""
    advice: str = ""

    def __post_init__(self) -> None:
        if self.default not in self.stops or list(self.stops) != sorted(set(self.stops)):
            raise ValueError(f"slider {self.name}: the stops must increase and hold the default {self.default}")

    def text(self, value: Value) -> str:
        """A value as a link holds it."""
        return f"{value:.6g}"

    def shown(self, value: Value) -> str:
        """A value as the reader sees it."""
        return f"{value:.4g} {self.unit}".strip().replace("-", "\N{MINUS SIGN}")

    def parse(self, text: str) -> float:
        """The stop that a link names.

        Raises:
            GradiometerError: it is no stop of this slider.
        """
        try:
            wanted = float(text)
        except ValueError:
            wanted = math.nan
        for stop in self.stops:
            if math.isclose(stop, wanted, rel_tol=NEAR, abs_tol=1e-12):
                return stop
        raise GradiometerError(
            f"{self.label} cannot be {text!r}.", f"It goes from {self.text(self.stops[0])} to {self.text(self.stops[-1])}."
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few.

    Attributes:
        options: value and what the reader sees, in order.
        default: a value.
    """

    name: str
    label: str
    options: tuple[tuple[str, str], ...]
    default: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.default not in dict(self.options):
            raise ValueError(f"choice {self.name}: there is no option {self.default}")

    def text(self, value: Value) -> str:
        """A value as a link holds it."""
        return str(value)

    def shown(self, value: Value) -> str:
        """A value as the reader sees it."""
        return dict(self.options)[str(value)]

    def parse(self, text: str) -> str:
        """The option that a link names.

        Raises:
            GradiometerError: there is none of that name.
        """
        if text not in dict(self.options):
            raise GradiometerError(f"{self.label} cannot be {text!r}.", "Options: " + ", ".join(dict(self.options)) + ".")
        return text


@dataclass(frozen=True, slots=True)
class Toggle:
    """On or off."""

    name: str
    label: str
    default: bool
    advice: str = ""

    def text(self, value: Value) -> str:
        """A value as a link holds it."""
        return "on" if value else "off"

    def shown(self, value: Value) -> str:
        """A value as the reader sees it."""
        return self.text(value)

    def parse(self, text: str) -> bool:
        """On or off.

        Raises:
            GradiometerError: it is neither.
        """
        if text not in ("on", "off"):
            raise GradiometerError(f"{self.label} cannot be {text!r}.", "It is on or off.")
        return text == "on"


Control = Slider | Choice | Toggle


def ladder(low: float, high: float, count: int) -> tuple[float, ...]:
    """Stops evenly spaced between two ends, both included, without the noise of binary fractions."""
    return tuple(float(f"{low + (high - low) * i / (count - 1):.6g}") for i in range(count))


def log_ladder(low: float, high: float, per_decade: int) -> tuple[float, ...]:
    """Stops evenly spaced on a logarithmic scale, both ends included, rounded to three digits."""
    count = round(math.log10(high / low) * per_decade)
    return tuple(sorted({float(f"{low * 10 ** (i * math.log10(high / low) / count):.3g}") for i in range(count + 1)}))


# ---- what is shown -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One figure of a scene, finished by `figures.scale.finish` or `nothing` (title, alt and note stand in its meta).

    Attributes:
        name: the same in every state of the page, so that a redraw finds its place.
        kind: what it is about, in a few words; the same in every state.
        figure: the drawing.
        table: the numbers in it: what a reader who cannot see it reads, and what CSV holds.
        reading: how to read it, in one sentence; empty for none.
        half: whether it may stand beside another on a wide screen.
    """

    name: str
    kind: str
    figure: go.Figure
    table: Table
    reading: str = ""
    half: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One moment of a scene that moves.

    Attributes:
        label: what is said of it, aloud and beneath the slider: ``step 12: x = 0.3``.
        patches: name of an exhibit -> index of a trace -> attributes of that trace which differ now (plain lists or arrays).
    """

    label: str
    patches: Mapping[str, Mapping[int, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a page shows in one state.

    Attributes:
        exhibits: figures, in order.
        readings: a few sentences with the numbers that matter, the most important first; backticks set code.
        frames: moments to step, play and scrub through; empty where nothing moves. The figures as given show the last.
    """

    exhibits: tuple[Exhibit, ...]
    readings: tuple[str, ...]
    frames: tuple[Frame, ...] = ()


# ---- pages -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """What the reader should guess before the page shows it.

    Attributes:
        text: the question, about the page as it opens.
        answers: possible answers.
        right: index of the right one; a test holds it against the engine.
        because: why, in a sentence or two.
    """

    text: str
    answers: tuple[str, ...]
    right: int
    because: str


@dataclass(frozen=True, slots=True)
class Preset:
    """A state worth seeing.

    Attributes:
        name: short key, unique in its page.
        label: what the reader sees.
        state: controls that differ from their defaults.
        lesson: one sentence on what to look at.
    """

    name: str
    label: str
    state: State
    lesson: str


@dataclass(frozen=True, slots=True)
class LabPage:
    """A page of the lab.

    Attributes:
        name: last part of its address.
        number: its place among them, ``L1``.
        title: what it is called.
        summary: one sentence for the home page.
        law: the law it shows, in short paragraphs; backticks set code.
        question: asked before anything is shown.
        controls: in order.
        presets: at least one.
        show: pure: the same state gives the same scene, bit for bit.
        slow: seconds that a state may take on two cores; above 1 the page says so while it computes.
        exported: values that a lab on disk offers, by control, the default among them; controls that are not named keep their
            default there.
    """

    name: str
    number: str
    title: str
    summary: str
    law: tuple[str, ...]
    question: Question
    controls: tuple[Control, ...]
    presets: tuple[Preset, ...]
    show: Callable[[State], Scene]
    slow: float = 0.0
    exported: Mapping[str, Sequence[Value]] = field(default_factory=dict[str, "Sequence[Value]"])

    @property
    def default(self) -> State:
        """Every control at its default."""
        return {control.name: control.default for control in self.controls}

    def state(self, texts: Mapping[str, str]) -> State:
        """A full state from the texts of a link; what is not named has its default.

        Raises:
            GradiometerError: a name or a value that this page does not have.
        """
        known = {control.name: control for control in self.controls}
        for name in texts:
            if name not in known:
                raise GradiometerError(f"{self.title} has no control {name!r}.", "Controls: " + ", ".join(known) + ".")
        return {**self.default, **{name: known[name].parse(text) for name, text in texts.items()}}

    def link(self, state: State) -> str:
        """The part of an address that reproduces a state: controls that differ from their defaults, in order."""
        return "&".join(
            f"{control.name}={quote(control.text(state[control.name]), safe=UNQUOTED)}"
            for control in self.controls
            if state.get(control.name, control.default) != control.default
        )
