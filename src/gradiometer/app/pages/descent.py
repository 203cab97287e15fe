"""L1: gradient descent in one dimension."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from gradiometer.app.scene import Choice, Exhibit, Frame, LabPage, Preset, Question, Scene, Slider, State, Value
from gradiometer.figures.lab import descent as draw
from gradiometer.figures.scale import number
from gradiometer.lab.descent import SCHEDULES, Descent, Path, Reading, descend, read, takes_momentum
from gradiometer.lab.landscapes import curve, landscape, of_dimensions
from gradiometer.words import counted

STEPS: Final = 120

RATES: Final = tuple(
    sorted({float(f"{m * 10.0**k:.3g}") for k in range(-3, 1) for m in (1, 1.5, 2, 3, 5, 7)} | {1.9, 2.1, 2.5, 10.0})
)
"""Learning rates, with stops on both sides of 2: that is where a bowl of curvature 1 throws the ball out."""

OPTIMIZERS: Final = (
    ("SGD", "SGD (gradient descent)"),
    ("RMSprop", "RMSprop"),
    ("Adagrad", "Adagrad"),
    ("Adam", "Adam"),
    ("NAdam", "NAdam"),
    ("Rprop", "Rprop"),
)
CLIPS: Final = (("none", "no harness"), *((text, text) for text in ("0.01", "0.1", "0.3", "1", "3", "10")))
"""Thresholds of the harness."""
MOMENTA: Final = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
NOISES: Final = (0.0, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
MOMENTUM_ADVICE: Final = "Share of the last step that is kept; the first beta of Adam. Adagrad and Rprop have none."


def settings(state: State, name: str, dimensions: int, start: tuple[float, ...] | None, schedule: str) -> Descent:
    """The descent of a state without its harness."""
    optimizer = str(state["optimizer"])
    return Descent(
        landscape(name, dimensions),
        optimizer,
        float(state["rate"]),
        float(state["momentum"]) if takes_momentum(optimizer) else 0.0,
        None,
        float(state["noise"]),
        schedule,
        STEPS,
        start=start,
    )


def harnessed(free: Descent, clip: Value) -> Descent | None:
    """The same descent with the harness of a state; None if none is worn."""
    if clip == "none":
        return None
    return replace(free, clip=float(clip))


def spoken(reading: Reading) -> str:
    """What the rules that judge networks say of a descent."""
    if not reading.rule:
        others = ", ".join(f"`{f.rule}`" for f in reading.findings)
        heard = f"the rules for networks only say {others}" if others else "no rule for networks speaks"
        return f"{reading.word} ({heard}; told by its height and slope)"
    finding = next(f for f in reading.findings if f.rule == reading.rule)
    return f"{reading.word}. The rules for networks say `{finding.rule}` ({finding.severity}): {finding.sentence}"


def harness(path: Path) -> str:
    """What the harness did."""
    held = int(path.clipped.sum())
    steps = counted(path.taken, "step")
    if not held:
        return f"The harness never held: no gradient was longer than {path.settings.clip:g}."
    at = int(np.argmax(np.where(path.clipped, np.hypot.reduce(path.unclipped, axis=1), 0.0)))
    lengths = (float(np.hypot.reduce(moves[at])) for moves in (path.unclipped, path.moves))
    free, short = (number(length) for length in lengths)
    return f"The harness held in {held} of {steps}. Where it mattered most it made a step of {free} one of {short} (step {at})."


def show(state: State) -> Scene:
    """The page in one state."""
    land = landscape(str(state["landscape"]))
    plain = settings(state, land.name, 1, (land.along(float(state["start"]) / 100.0),), str(state["schedule"]))
    worn = harnessed(plain, state["clip"])
    free, held = descend(plain), descend(worn) if worn is not None else None
    readings = tuple(read(path) for path in (free, held) if path is not None)
    ground = curve(land)
    exhibits = (
        Exhibit(
            "landscape",
            "loss over the weight",
            draw.landscape_figure(ground, plain.rate, free, held, [r.word for r in readings]),
            draw.landscape_table(free, held),
            "The tangent under a ball is all that it knows.",
        ),
        Exhibit(
            "slope",
            "size of the slope",
            draw.slope_figure(ground, free, held, worn.clip if worn is not None else None),
            draw.slope_table(free, held),
            "A straight line here is a slope that changes by a steady factor.",
            half=True,
        ),
        Exhibit(
            "course",
            "place over time",
            draw.course_figure(ground, [m[0] for m in land.minima], free, held),
            draw.course_table(free, held),
            "Level: the ball stands still. Zigzag: it crosses the valley.",
            half=True,
        ),
    )
    return Scene(exhibits, _sentences(land.law, free, held, readings), _frames(state, free, held))


def _sentences(law: str, free: Path, held: Path | None, readings: tuple[Reading, ...]) -> tuple[str, ...]:
    names = ("The ball",) if held is None else ("Without harness", "With harness")
    said = [f"{name}: {spoken(reading)}" for name, reading in zip(names, readings, strict=True)]
    above = int(np.count_nonzero(free.stability > draw.UNSTABLE))
    start = f"At the start learning rate × f″ is {number(float(free.stability[0]))}" if free.taken else "There is no first step"
    whose = "" if held is None else " without harness"
    limit = f"{start}; it was above 2 in {above} of {counted(free.taken, 'step')}{whose}."
    return (*said, *([harness(held)] if held is not None else []), limit, law)


def _frames(state: State, free: Path, held: Path | None) -> tuple[Frame, ...]:
    ground = curve(free.settings.landscape)
    count = max(p.taken for p in (free, held) if p is not None)
    return tuple(
        Frame(
            _label(step, free, held),
            {
                "landscape": draw.landscape_moment(ground, free, held, step),
                "slope": draw.slope_moment(ground, free, held, step),
                "course": draw.course_moment(free, held, step),
            },
        )
        for step in range(count + 1)
    )


def _label(step: int, free: Path, held: Path | None) -> str:
    balls = [("x", free)] if held is None else [("without harness x", free), ("with it x", held)]
    return f"step {step}: " + ", ".join(f"{name} = {_at(path, step)}" for name, path in balls)


def _at(path: Path, step: int) -> str:
    return number(float(path.positions[step, 0])) if step <= path.taken else "no number"


PAGE: Final = LabPage(
    name="descent",
    number="L1",
    title="A ball on a slope",
    summary="Gradient descent on one weight: why a plateau holds it, a cliff throws it, and what a harness can do.",
    law=(
        "Gradient descent moves a weight against the slope: `x ← x − η f′(x)`, with learning rate `η`. The slope under "
        "the ball is all that it knows.",
        "Too small a slope is vanishing: on a plateau the steps shrink with `f′`, however high the ball still is. Too "
        "long a step is exploding: in a bowl with `η f″ > 2` each step of plain gradient descent lands further from the "
        "bottom than the one before.",
        "The harness (clipping) makes a gradient longer than `c` exactly `c` long. A plain step is then at most `η c`. It "
        "tames a cliff; on a plateau it has nothing to hold.",
    ),
    question=Question(
        "The ball starts at `x = 3.5` on a plateau and rolls for 120 steps with learning rate 0.1. How far does it get on "
        "its way to the bottom at `x = 0`?",
        ("All the way", "About half of the way", "Less than a tenth of the way"),
        2,
        "The slope is 0.007 at the start, so the first step is 0.0007 long. In all the ball moves by 0.1, and stays "
        "almost as high as it was.",
    ),
    controls=(
        Choice("landscape", "Landscape", tuple((land.name, land.label) for land in of_dimensions(1)), "plateau"),
        Choice("optimizer", "Optimizer", OPTIMIZERS, "SGD", "A class of torch.optim."),
        Slider("rate", "Learning rate", RATES, 0.1),
        Slider("momentum", "Momentum", MOMENTA, 0.0, advice=MOMENTUM_ADVICE),
        Choice("clip", "Harness: clip the gradient at", CLIPS, "none", "Shows a second ball that wears it."),
        Slider("noise", "Noise of the gradient", NOISES, 0.0, advice="Standard deviation, as mini-batches would add it."),
        Choice("schedule", "Schedule", tuple((name, name) for name in SCHEDULES), "constant"),
        Slider("start", "Start", tuple(float(s) for s in range(5, 100, 5)), 85.0, "%", "Share of the picture, from the left."),
    ),
    presets=(
        Preset("plateau", "Plateau", {}, "The loss is almost as high as it can be, and the slope says nothing of it."),
        Preset(
            "plateau-adam",
            "Plateau, Adam",
            {"optimizer": "Adam", "momentum": 0.9},
            "Adam divides the slope by its own recent size: a step is about as long on flat ground as on steep, and the "
            "ball arrives.",
        ),
        Preset(
            "cliff",
            "Cliff, with and without harness",
            {"landscape": "cliff", "rate": 0.5, "clip": "1"},
            "At the foot of the wall one step meets a slope of up to 30: the ball without harness is thrown back up the "
            "hill, the one with it goes on from where it was.",
        ),
        Preset(
            "explosion",
            "Explosion",
            {"landscape": "quartic", "rate": 0.3, "clip": "1"},
            "The curvature grows with every overshoot, so each step is longer than the last, until there is no number for "
            "it. The harness prevents it.",
        ),
        Preset(
            "edge",
            "Just too high",
            {"landscape": "bowl", "rate": 2.1},
            "The curvature is 1 everywhere: below a learning rate of 2 the ball comes to rest, above 2 every step ends higher.",
        ),
        Preset(
            "bouncing",
            "Bouncing",
            {"landscape": "plateau", "rate": 2.5},
            "The bottom is too sharp for this learning rate and the plateau too flat to leave: the ball bounces without "
            "settling.",
        ),
        Preset(
            "momentum",
            "Over the pass",
            {"landscape": "double-well", "rate": 0.02, "momentum": 0.9, "start": 95.0},
            "With momentum the ball rolls over the pass into the deeper well; set momentum to 0 and it stays in the first.",
        ),
        Preset(
            "chain",
            "Deep sigmoid chain",
            {"landscape": "chain", "rate": 1.0},
            "Five neurons of weight 2 multiply the slope by at most 1/32 before it reaches the first weight.",
        ),
        Preset(
            "dead",
            "Dead ReLU",
            {"landscape": "rectifier", "rate": 3.0},
            "The first step throws the ball to where the neuron is off and the slope exactly 0: it never moves again.",
        ),
        Preset(
            "network",
            "A real network",
            {"landscape": "network", "rate": 0.02},
            "The loss of a real network along one line in its weights: a steep flank, then a long flat floor.",
        ),
    ),
    show=show,
    exported={
        "landscape": tuple(land.name for land in of_dimensions(1)),
        "rate": (0.01, 0.1, 0.5, 1.0, 2.1),
        "clip": ("none", "1"),
    },
)
"""The page."""
