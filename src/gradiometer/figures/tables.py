"""The data behind each figure as a plain table: the text alternative for people, and something to copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gradiometer.figures.activation_health import shares
from gradiometer.figures.cells import Kind, kinds
from gradiometer.figures.rows import pinned_look
from gradiometer.record.frames import Flag, Group
from gradiometer.record.ledger import IntArray
from gradiometer.record.trace import Trace
from gradiometer.types import Role

MAX_LINES: Final = 500
"""Lines of a table; a longer one is thinned evenly and says so."""

MAX_LOOKS: Final = 8
"""Looks in the table of the heatmap, the pinned one among them."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and lines, all text; the first column heads its line.

    Attributes:
        caption: what it holds, and what was left out.
    """

    caption: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def gradient_table(trace: Trace, step: int | None = None) -> Table:
    """log10 of the gradient of each layer at a few looks."""
    look = pinned_look(trace, step)
    spread = np.linspace(0, trace.steps.size - 1, min(MAX_LOOKS - 1, trace.steps.size)).round().astype(int)
    looks = sorted({*spread.tolist(), look})
    outputs = bool(trace.outputs.size)
    y = trace.log10_gradient if outputs else trace.log10_weight_gradient
    group, sumsq = (Group.GRADIENT, "gradient_sumsq") if outputs else (Group.PARAMETER, "weight_gradient_sumsq")
    kind = kinds(y, trace.values[sumsq], trace.nonfinite[group])
    sites, left_out = _thinned(trace.outputs if outputs else trace.parameters)
    lines = [(trace.sites[i].name, *(_cell(y[s, i], int(kind[s, i])) for s in looks)) for i in sites.tolist()]
    size = "L2 norm of the gradient of an output" if outputs else "rms gradient of a parameter"
    return Table(
        f"log10 of the {size}, at {len(looks)} of {trace.steps.size} looks{left_out}",
        ("layer", *(f"step {int(trace.steps[s])}" for s in looks)),
        tuple(lines),
    )


def profile_table(trace: Trace, step: int | None = None) -> Table:
    """log10 of gradient and signal of each layer at the pinned step."""
    look = pinned_look(trace, step)
    sites, left_out = _thinned(trace.outputs)
    return Table(
        f"log10 of gradient (L2 norm) and signal (root mean square) at step {int(trace.steps[look])}{left_out}",
        ("layer", "kind", "log10 gradient", "log10 signal"),
        tuple(
            (
                trace.sites[i].name,
                trace.sites[i].kind,
                plain(trace.log10_gradient[look, i]),
                plain(trace.log10_signal[look, i]),
            )
            for i in sites.tolist()
        ),
    )


def gain_table(trace: Trace, step: int | None = None) -> Table:
    """log10 of the backward and forward gain of each layer at the pinned step."""
    look = pinned_look(trace, step)
    sites, left_out = _thinned(trace.outputs)
    return Table(
        f"log10 of the gain of one layer at step {int(trace.steps[look])}{left_out}",
        ("layer", "kind", "backward", "forward"),
        tuple(
            (trace.sites[i].name, trace.sites[i].kind, plain(trace.backward_gain[look, i]), plain(trace.forward_gain[look, i]))
            for i in sites.tolist()
        ),
    )


def loss_table(trace: Trace, step: int | None = None) -> Table:
    """Loss, learning rate and gradient norm of steps spread evenly over the run."""
    del step
    ledger = trace.ledger
    index = np.unique(np.linspace(0, ledger.step.size - 1, min(25, ledger.step.size)).round().astype(int))
    bad, skipped = ledger.has(Flag.NONFINITE), ledger.has(Flag.SKIPPED)
    return Table(
        f"{index.size} of {ledger.step.size} steps",
        ("step", "loss", "learning rate", "gradient norm", "remarks"),
        tuple(
            (
                str(int(ledger.step[i])),
                _short(float(ledger["loss"][i])),
                _short(float(ledger["learning_rate"][i])),
                _short(float(ledger["grad_norm"][i])),
                ", ".join(word for word, mask in (("not finite", bad), ("skipped", skipped)) if mask[i]),
            )
            for i in index.tolist()
        ),
    )


def activation_table(trace: Trace, step: int | None = None) -> Table:
    """Dead, saturated and active share of each activation at the pinned step."""
    look = pinned_look(trace, step)
    sites, left_out = _thinned(trace.with_role(Role.ACTIVATION))
    parts = shares(trace, look)
    return Table(
        f"Share of each activation at step {int(trace.steps[look])}{left_out}",
        ("layer", "kind", "dead", "saturated", "active"),
        tuple(
            (trace.sites[i].name, trace.sites[i].kind, *(_percent(float(part[i])) for part in parts)) for i in sites.tolist()
        ),
    )


TABLES: Final[dict[str, Callable[[Trace, int | None], Table]]] = {
    "heatmap": gradient_table,
    "depth-profile": profile_table,
    "layer-gain": gain_table,
    "loss": loss_table,
    "activations": activation_table,
}
"""Name of a figure to the function that makes its table."""


def plain(log10: float) -> str:
    """A log10 with two digits, ``exactly 0`` or ``unknown``; a hyphen for minus, so that it can be copied."""
    if math.isnan(log10):
        return "unknown"
    return "exactly 0" if log10 == -math.inf else f"{log10:.2f}"


def _cell(value: float, kind: int) -> str:
    words: dict[int, str] = {Kind.NAN: "NaN", Kind.INF: "infinite"}
    return words.get(kind) or plain(float(value))


def _short(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.4g}"


def _percent(share: float) -> str:
    return "unknown" if math.isnan(share) else f"{100 * share:.1f} %"


def _thinned(index: Sequence[int] | IntArray) -> tuple[IntArray, str]:
    sites = np.asarray(index, dtype=np.int64)
    if sites.size <= MAX_LINES:
        return sites, ""
    keep = sites[np.linspace(0, sites.size - 1, MAX_LINES).round().astype(int)]
    return keep, f"; {MAX_LINES} of {sites.size} layers, evenly spaced"
