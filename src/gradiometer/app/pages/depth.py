"""L3: signals and gradients along depth, real networks beside theory."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, cast

from gradiometer.app.scene import Choice, Exhibit, LabPage, Preset, Question, Scene, Slider, State, Toggle
from gradiometer.errors import GradiometerError
from gradiometer.figures.lab import depth as draw
from gradiometer.figures.scale import factor, number
from gradiometer.lab.depth import SEEDS, DeepNetwork, Norm, Sampled, Summary, expect, sample, summarise
from gradiometer.lab.elementwise import elementwise
from gradiometer.lab.phases import SIGMA_B, SIGMA_W
from gradiometer.theory.criticality import critical_initialisation
from gradiometer.theory.structures import initialisation

ACTIVATIONS: Final = ("tanh", "sigmoid", "relu", "gelu", "silu", "selu", "softplus", "linear")
DEPTHS: Final = (2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 70.0, 100.0, 140.0, 200.0)
WIDTHS: Final = (16.0, 32.0, 64.0, 128.0)

BUDGET: Final = SEEDS * 200 * 64 * 64
"""Weights that may be drawn for one state: beyond it fewer networks are sampled, so that a slider does not have to wait."""
LEAST_SEEDS: Final = 5


def scales(state: State) -> tuple[float, float, str]:
    """sigma_w and sigma_b of a state, and what to say of them."""
    name, width = str(state["init"]), int(cast("float", state["width"]))
    if name == "own":
        return float(state["sigma_w"]), float(state["sigma_b"]), ""
    if name != "critical":
        return *initialisation(name, width), ""
    try:
        point = critical_initialisation(str(state["activation"]))
    except GradiometerError as error:
        return 1.0, 0.0, f"{error.message} Shown instead: σ_w = 1, σ_b = 0."
    return point.sigma_w, point.sigma_b, ""


def network(state: State) -> DeepNetwork:
    """The network of a state."""
    sigma_w, sigma_b, _ = scales(state)
    return DeepNetwork(
        str(state["activation"]),
        sigma_w,
        sigma_b,
        int(cast("float", state["depth"])),
        int(cast("float", state["width"])),
        cast("Norm", state["norm"]),
        bool(state["skip"]),
    )


def seeds(deep: DeepNetwork) -> int:
    """How many networks are sampled of a kind."""
    return max(LEAST_SEEDS, min(SEEDS, BUDGET // (deep.depth * deep.width**2)))


@lru_cache(maxsize=64)
def _sampled(deep: DeepNetwork) -> Sampled:
    return sample(deep, seeds(deep))


def show(state: State) -> Scene:
    """The page in one state."""
    deep = network(state)
    sampled, expected = _sampled(deep), expect(deep)
    summary = summarise(sampled, expected)
    exhibit = Exhibit(
        "profile",
        "signal, gradient and likeness along depth",
        draw.depth_figure(deep, sampled, expected, summary),
        draw.depth_table(sampled, expected),
        "A straight line is a steady factor per layer; read the gradient from right to left, as it travels.",
    )
    return Scene((exhibit,), _sentences(state, deep, summary))


def _sentences(state: State, deep: DeepNetwork, summary: Summary) -> tuple[str, ...]:
    said = [f"χ = {number(round(summary.chi, 6))} per layer deep in the network; {_reach(summary)}."]
    if summary.expected and math.isfinite(summary.measured):
        said.append(
            f"From the last layer to the input the gradient's norm changes by {factor(summary.measured)} in the median network "
            f"and by {factor(summary.expected)} in theory."
        )
    said.append(f"`{elementwise(deep.activation).title}`, σ_w = {number(deep.sigma_w)}, σ_b = {number(deep.sigma_b)}.")
    if wrong := scales(state)[2]:
        said.append(wrong)
    if seeds(deep) < SEEDS:
        said.append(f"Only {seeds(deep)} networks were sampled instead of {SEEDS}: more would make the sliders wait.")
    return tuple(said)


def _reach(summary: Summary) -> str:
    if math.isinf(summary.layers):
        return "the gradient's norm never changes a million times at that rate"
    change = "10⁻⁶ of its norm is left" if summary.chi < 1.0 else "its norm has grown 10⁶ times"
    layers = f"{summary.layers:.1f}" if summary.layers < 100 else f"{summary.layers:,.0f}"
    return f"at that rate {change} after {layers} layers"


PAGE: Final = LabPage(
    name="depth",
    number="L3",
    title="Depth explorer",
    summary="Stack random layers and watch signal, gradient and the difference of two inputs, in real networks and in theory.",
    law=(
        "Each layer multiplies the squared gradient by `χ = σ_w² E φ′(√q z)²`: how strong the weights are, times how steep the "
        "activation is where its inputs lie. Over depth these factors multiply, so any χ but 1 ends in nothing or in infinity.",
        "What size the signal settles at decides where the activation works, so forward and backward hang together: "
        "`q′ = σ_w² E φ(√q z)² + σ_b²`.",
        "A gradient of the right size is not enough. Where χ < 1, two inputs become one on their way: what arrives no longer "
        "says what went in.",
    ),
    question=Question(
        "Thirty sigmoid layers, weights drawn by Xavier's rule (`σ_w = 1`, no biases). How much of the gradient's norm at the "
        "last layer is left at the input?",
        ("about a tenth", "about a thousandth", "about a billionth", "less than a millionth of a billionth"),
        3,
        "A sigmoid is nowhere steeper than a quarter: every layer keeps less than a quarter of the norm here, and thirty of "
        "them leave about 10⁻¹⁹.",
    ),
    controls=(
        Choice("activation", "Activation φ", tuple((name, elementwise(name).title) for name in ACTIVATIONS), "sigmoid"),
        Choice(
            "init",
            "Initialisation",
            (
                ("own", "your own σ_w and σ_b"),
                ("pytorch", "PyTorch's default"),
                ("xavier", "Xavier (Glorot)"),
                ("he", "He"),
                ("critical", "critical (edge of chaos)"),
            ),
            "own",
            "All but the first set σ_w and σ_b themselves.",
        ),
        Slider(
            "sigma_w",
            "Weights σ_w",
            SIGMA_W,
            1.0,
            advice="Standard deviation of a weight times the root of its layer's inputs.",
        ),
        Slider("sigma_b", "Biases σ_b", SIGMA_B, 0.0, advice="Standard deviation of a bias."),
        Slider("depth", "Depth", DEPTHS, 30.0, "layers"),
        Slider("width", "Width", WIDTHS, 64.0, "units", "Narrow networks differ more from each other and from theory."),
        Choice(
            "norm",
            "Normalisation",
            (("none", "none"), ("batch", "batch (16 inputs)"), ("layer", "layer")),
            "none",
        ),
        Toggle("skip", "Skip connections", False, "Each layer adds to its input instead of replacing it."),
    ),
    presets=(
        Preset(
            "textbook",
            "Sigmoid: vanishing",
            {},
            "A straight line down: every layer takes the same share of the gradient.",
        ),
        Preset(
            "exploding",
            "Large tanh: exploding",
            {"activation": "tanh", "sigma_w": 3.175, "depth": 50.0},
            "The gradient grows at every layer although the signal is bounded, and two inputs forget that they were alike.",
        ),
        Preset(
            "critical",
            "Tanh at the edge of chaos",
            {"activation": "tanh", "init": "critical", "depth": 50.0, "width": 128.0},
            "χ = 1: theory is flat, and networks stray from it by their finite width alone.",
        ),
        Preset(
            "he",
            "ReLU by He's rule",
            {"activation": "relu", "init": "he", "depth": 100.0},
            "The gradient is kept on average, yet all inputs become alike: the right size is not enough.",
        ),
        Preset(
            "batchnorm",
            "Batch normalisation explodes",
            {"activation": "relu", "init": "he", "norm": "batch", "depth": 50.0},
            "The signal is perfect, and the gradient grows by a steady factor that no weights can change.",
        ),
        Preset(
            "residual",
            "Skip and layer normalisation",
            {"activation": "relu", "init": "he", "norm": "layer", "skip": True, "depth": 200.0},
            "The gradient grows by a power of depth instead of an exponential: 200 layers cost two decades of variance.",
        ),
        Preset(
            "layernorm",
            "Layer normalisation alone",
            {"norm": "layer"},
            "It holds the signal, but not the gradient of sigmoids: their slope is too small and two inputs still become one.",
        ),
    ),
    show=show,
    exported={
        "activation": ("sigmoid", "tanh", "relu"),
        "init": ("own", "pytorch", "xavier", "he", "critical"),
        "depth": (10.0, 30.0, 100.0),
        "norm": ("none", "batch", "layer"),
        "skip": (False, True),
    },
)
