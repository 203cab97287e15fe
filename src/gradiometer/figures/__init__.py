"""Figures: plain functions from a `Trace` (and findings) to plotly Figures, used by report, page and notebook alike.

Every figure has the signature ``(trace, findings=(), step=None) -> Figure`` and shows in a notebook on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import plotly.graph_objects as go

from gradiometer.figures.activation_health import activation_health
from gradiometer.figures.depth_profile import depth_profile
from gradiometer.figures.heatmap import heatmap
from gradiometer.figures.layer_gain import layer_gain
from gradiometer.figures.loss_curve import loss_curve
from gradiometer.record.trace import Trace
from gradiometer.types import Finding


class Draw(Protocol):
    """A figure: the trace, findings to point at, and the step to pin profiles to (the last look by default)."""

    def __call__(self, trace: Trace, findings: Sequence[Finding] = (), step: int | None = None) -> go.Figure:
        """Draw it."""
        ...


class FigureKind(NamedTuple):
    """A row of the table of figures."""

    name: str
    title: str
    draw: Draw
    doc: str


FIGURES: Final[tuple[FigureKind, ...]] = (
    FigureKind("heatmap", "Gradient of every layer over time", heatmap, "Where and when the gradient fades or blows up."),
    FigureKind("depth-profile", "Along depth", depth_profile, "How much gradient and signal is left at each layer."),
    FigureKind("layer-gain", "Gain of each layer", layer_gain, "What each layer multiplies the gradient and the signal by."),
    FigureKind("loss", "Loss", loss_curve, "Whether the network learned, and which steps were clipped or skipped."),
    FigureKind("activations", "Activations", activation_health, "How much of each activation is dead, saturated or at work."),
)
