"""L2: the explorer in the foggy mountains, gradient descent in two dimensions."""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.app.pages.descent import (
    CLIPS,
    MOMENTA,
    MOMENTUM_ADVICE,
    NOISES,
    OPTIMIZERS,
    RATES,
    harness,
    harnessed,
    settings,
    spoken,
)
from gradiometer.app.scene import Choice, Exhibit, Frame, LabPage, Preset, Question, Scene, Slider, State, Toggle
from gradiometer.figures.lab import mountains as draw
from gradiometer.figures.scale import number
from gradiometer.lab.descent import read
from gradiometer.lab.explorer import Ground, Walk, explore, ground
from gradiometer.lab.landscapes import landscape, of_dimensions

GRID: Final = 55
"""Points of the ground along each side."""
MAX_FRAMES: Final = 60
SIGHTS: Final = (3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0)


def show(state: State) -> Scene:
    """The page in one state."""
    land = landscape(str(state["landscape"]), 2)
    plain = settings(state, land.name, 2, None, "constant")
    descent = harnessed(plain, state["clip"]) or plain
    low, high = land.domain[0]
    walk = explore(descent, float(state["sight"]) / 100.0 * (high - low))
    reading = read(walk.path)
    fog = bool(state["fog"])
    heights = ground(land, GRID)
    exhibits = (
        Exhibit(
            "map",
            "map of the loss",
            draw.map_figure(heights, walk, reading.word, fog=fog),
            draw.map_table(walk),
            "The explorer decides by the compass alone.",
            half=True,
        ),
        Exhibit(
            "surface",
            "the ground in three dimensions",
            draw.surface_figure(heights, walk),
            draw.surface_table(heights),
            "Drag to turn it.",
            half=True,
        ),
        Exhibit(
            "profile",
            "height and slope over time",
            draw.profile_figure(walk, descent.clip),
            draw.profile_table(walk),
            "Both level: the explorer stands still. A slope that swings: the explorer crosses a valley.",
        ),
    )
    readings = (
        f"The explorer: {spoken(reading)}",
        *([harness(walk.path)] if descent.clip is not None else []),
        _compass(walk),
        land.law,
    )
    return Scene(exhibits, readings, _frames(heights, walk, fog))


def _compass(walk: Walk) -> str:
    first, last = (float(walk.path.slopes[k]) for k in (0, -1))
    text = f"The slope under the compass is {number(first)} at the start and {number(last)} at the end"
    sharpest = float(np.max(walk.path.stability, initial=0.0))
    return f"{text}; learning rate × largest curvature reaches {number(sharpest)} (plain gradient descent bears 2)."


def _frames(heights: Ground, walk: Walk, fog: bool) -> tuple[Frame, ...]:
    last = walk.path.taken
    steps = np.unique(np.linspace(0, last, min(MAX_FRAMES, last + 1)).round().astype(int)).tolist()
    return tuple(
        Frame(
            _label(walk, step),
            {
                "map": draw.map_moment(walk, step, fog=fog),
                "surface": draw.surface_moment(heights, walk, step),
                "profile": draw.profile_moment(walk, step),
            },
        )
        for step in steps
    )


def _label(walk: Walk, step: int) -> str:
    held = ", the harness holds" if step and bool(walk.path.clipped[step - 1]) else ""
    height, slope = float(walk.path.values[step]), float(walk.path.slopes[step])
    return f"step {step}: height {number(height)}, slope {number(slope)}{held}"


PAGE: Final = LabPage(
    name="mountains",
    number="L2",
    title="The explorer in the fog",
    summary="Gradient descent on two weights: an explorer in foggy mountains who has only a compass, and perhaps a harness.",
    law=(
        "The explorer stands in fog and has a compass that points straight downhill, `−∇f`. The length of its needle "
        "shows the logarithm of the slope: one that is hardly there moves nobody.",
        "On a plateau the slope vanishes; at a cliff it explodes, and one step `η |∇f|` may lead out of the mountains. A "
        "harness (clipping) shortens such a step and keeps its direction.",
        "In a ravine the slope across is larger than the slope along it: the learning rate must stay below `2 / λ` for "
        "the largest curvature `λ`, and the number of steps along the bottom then grows with the ratio of the two "
        "curvatures.",
    ),
    question=Question(
        "The explorer follows the compass for 120 steps. Will the lowest ground in the picture be found?",
        ("Yes", "No, a higher valley will be the end", "No, the explorer will leave the picture"),
        1,
        "The compass knows the slope underfoot and nothing else. It leads into the nearest valley, and there its needle "
        "is gone.",
    ),
    controls=(
        Choice("landscape", "Landscape", tuple((land.name, land.label) for land in of_dimensions(2)), "range"),
        Choice("optimizer", "Optimizer", OPTIMIZERS, "SGD", "A class of torch.optim."),
        Slider("rate", "Learning rate", RATES, 0.1),
        Slider("momentum", "Momentum", MOMENTA, 0.0, advice=MOMENTUM_ADVICE),
        Choice("clip", "Harness: clip the gradient at", CLIPS, "none"),
        Slider("noise", "Noise of the compass", NOISES, 0.0, advice="Standard deviation of each component of the gradient."),
        Slider("sight", "Sight", SIGHTS, 10.0, "%", "How far one sees, as a share of the picture."),
        Toggle("fog", "Fog", True),
    ),
    presets=(
        Preset("range", "Mountain range", {}, "The walk ends in a valley that is not the deepest; nothing on the way tells."),
        Preset(
            "plateau",
            "Plateau",
            {"landscape": "plateau"},
            "The needle is short and the explorer hardly moves: the hollow is there, but its slope does not reach this far.",
        ),
        Preset(
            "cliff",
            "Cliff without harness",
            {"landscape": "cliff", "rate": 0.5},
            "At the foot of the wall the slope grows a hundredfold and one step throws the explorer back up the valley.",
        ),
        Preset(
            "harness",
            "Cliff with harness",
            {"landscape": "cliff", "rate": 0.5, "clip": "1"},
            "The same wall, the same step: the harness holds it to half a unit, and the explorer stays at the foot.",
        ),
        Preset(
            "ravine",
            "Ravine",
            {"landscape": "ravine", "rate": 0.3},
            "Across the ravine the path zigzags at once to the bottom; along it 120 steps are not enough.",
        ),
        Preset(
            "ravine-momentum",
            "Ravine, momentum",
            {"landscape": "ravine", "rate": 0.3, "momentum": 0.9},
            "Momentum adds up the small slopes that point along the ravine: the same 120 steps reach the lowest point.",
        ),
        Preset(
            "sigmoid",
            "Sigmoid terrain",
            {"landscape": "sigmoid", "rate": 0.05},
            "Two saturated sigmoid neurons: far from where they answer, the ground is a plateau.",
        ),
        Preset(
            "relu",
            "ReLU terrain",
            {"landscape": "relu", "rate": 0.05},
            "The same start and learning rate with ReLU neurons: the slope is thousands of times larger and leads to a "
            "valley of perfect weights.",
        ),
        Preset(
            "relu-dead",
            "ReLU terrain, a step too long",
            {"landscape": "relu", "rate": 0.1},
            "Twice the learning rate, and the explorer lands where a neuron is off: exactly level ground, and no compass.",
        ),
        Preset(
            "network",
            "A real network",
            {"landscape": "network", "rate": 0.05},
            "The loss of a real network: from a high flank down into the wide floor around the trained weights.",
        ),
    ),
    show=show,
    exported={
        "landscape": tuple(land.name for land in of_dimensions(2)),
        "rate": (0.05, 0.1, 0.3, 0.5),
        "clip": ("none", "1"),
        "momentum": (0.0, 0.9),
    },
)
"""The page."""
