"""A check as text, JSON and HTML. The JSON format is versioned and described in docs/report-json.md."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.rule import Rule as Line
from rich.table import Table
from rich.text import Text

from gradiometer.figures.forecast import forecast_table, gradient_forecast, signal_forecast
from gradiometer.figures.scale import number
from gradiometer.preflight.result import LayerForecast, Preflight
from gradiometer.report.html import VERDICTS, card, page, panel
from gradiometer.report.json import finding_dict, number_or_null
from gradiometer.report.text import MAX_BARS, STYLES, draws_blocks, finding_block, plain, show, thinned
from gradiometer.theory.forecast import Band
from gradiometer.words import counted

SCHEMA: Final = 1
_WIDTH: Final = 24
_NARROW: Final = 10
_WIDE: Final = 100
_DECADES_SHOWN: Final = 6.0


# ---- text --------------------------------------------------------------------------------------------------------------


def print_check(preflight: Preflight, console: Console, remarks: Sequence[str] = ()) -> None:
    """Print a check to a console; ``remarks`` are sentences about how it was made."""
    wide = console.width >= _WIDE
    show(console, renderable(preflight, remarks, blocks=draws_blocks(console), bar=_WIDTH if wide else _NARROW))


def renderable(preflight: Preflight, remarks: Sequence[str] = (), *, blocks: bool = True, bar: int = _WIDTH) -> RenderableType:
    """The check as something rich can print.

    Args:
        preflight: what to say.
        remarks: sentences about how it was made.
        blocks: draw bars with block characters instead of ``#``.
        bar: characters of the longest bar.
    """
    style, word = STYLES[preflight.verdict]
    parts: list[RenderableType] = [
        Line("gradiometer check", style="dim"),
        Text.assemble((f" {word} ", style), " ", (plain(preflight.sentence), "bold")),
    ]
    if preflight.why:
        parts.append(Text(plain(preflight.why)))
    bars = _bars(preflight, "█" if blocks else "#", bar)
    if bars is not None:
        parts += [Text(), bars]
    for index, finding in enumerate(preflight.findings, 1):
        parts += [Text(), finding_block(index, finding, said=finding.sentence == preflight.sentence)]
    parts += [Text(), Text(" ".join(basis(preflight)), style="dim")]
    parts += [Text(f"Not measured: {plain(note)}", style="yellow") for note in preflight.notes]
    parts += [Text(plain(remark), style="dim") for remark in remarks]
    return Group(*parts)


def _bars(preflight: Preflight, full: str, width: int) -> RenderableType | None:
    layers = [layer for layer in preflight.layers if layer.has_weights]
    layers = layers if len(layers) >= 2 else list(preflight.layers)
    known = [layer.measured_gradient for layer in layers if math.isfinite(layer.measured_gradient)]
    if len(layers) < 2 or not known:
        return None
    chosen = thinned(layers, MAX_BARS)
    top = max(known)
    span = max(top - min(known), _DECADES_SHOWN)
    table = Table(box=None, padding=(0, 1), show_header=True, header_style="dim")
    table.add_column("layer", no_wrap=True, max_width=30)
    table.add_column("log scale", no_wrap=True)
    for heading in ("|gradient|", "expected", "signal", "differs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in reversed(chosen):
        value = layer.measured_gradient
        bar = _bar(value, top, span, full, width)
        table.add_row(Text(plain(layer.name)), bar, _power(value), _range(layer.gradient), *_both(layer))
    left_out = f"; {len(chosen)} of {len(layers)} layers shown" if len(chosen) < len(layers) else ""
    title = f"The first step, from output (top) to input (bottom); expected: 90 % interval of theory{left_out}"
    return Group(Text(title), table)


def _bar(value: float, top: float, span: float, full: str, width: int) -> Text:
    if math.isfinite(value):
        return Text(full * (1 + round((width - 1) * (1.0 - (top - value) / span))))
    return Text("exactly zero" if value == -math.inf else "not measured", style="dim")


def _both(layer: LayerForecast) -> tuple[str, str]:
    return _power(layer.measured_signal), _power(layer.measured_apart)


def _power(log10: float) -> str:
    if not math.isfinite(log10):
        return "0" if log10 == -math.inf else ""
    return f"{10**log10:.1e}" if abs(log10) < 300 else f"1e{log10:.0f}"


def _range(band: Band) -> str:
    if not band.known:
        return "not covered"
    return "0" if band.middle == -math.inf else f"{_power(band.low)} to {_power(band.high)}"


def basis(preflight: Preflight) -> list[str]:
    """What the check rests on, in sentences."""
    lines: list[str] = []
    if math.isfinite(preflight.covered):
        lines.append(
            f"Theory covers {100 * preflight.covered:.0f} % of the operations; for the others the measured gain is used."
        )
    if math.isfinite(preflight.agree):
        lines.append(f"{100 * preflight.agree:.0f} % of the layers measured lie within the 90 % interval of their forecast.")
    if math.isfinite(preflight.loss):
        lines.append(f"Loss of the first batch {preflight.loss:.4g}.")
    return [*lines, *_step_size(preflight)]


def _step_size(preflight: Preflight) -> list[str]:
    step = preflight.step_size
    if step is None or math.isnan(step.ceiling):
        return []
    rate = step.optimizer
    largest = f"Largest curvature on the batch {step.curvature.largest:.3g}"
    if rate is not None and not math.isnan(rate.beta1):
        largest += f", {step.curvature.preconditioned:.3g} in the metric of {rate.kind}"
    if math.isinf(step.ceiling):
        return [f"{largest}: the loss curves upwards in no direction, so it sets no limit to the learning rate."]
    used = f"; the optimizer uses {rate.learning_rate:g}" if rate is not None else ""
    return [f"{largest}: learning rates up to {step.ceiling:.3g} are stable{used}."]


# ---- JSON --------------------------------------------------------------------------------------------------------------


def render_json(preflight: Preflight, command: Sequence[str], remarks: Sequence[str] = ()) -> str:
    """The check as a JSON text (strict JSON: what is unknown is null, never NaN)."""
    step = preflight.step_size
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "command": list(command),
        "verdict": preflight.verdict.value,
        "sentence": preflight.sentence,
        "why": preflight.why or None,
        "findings": [finding_dict(f) for f in preflight.findings],
        "trainable_depth": number_or_null(preflight.trainable_depth),
        "covered": number_or_null(preflight.covered),
        "agree": number_or_null(preflight.agree),
        "loss": number_or_null(preflight.loss),
        "learning_rate": None
        if step is None
        else {
            "optimizer": step.optimizer.kind if step.optimizer is not None else None,
            "learning_rate": number_or_null(step.optimizer.learning_rate) if step.optimizer is not None else None,
            "largest_stable": number_or_null(step.ceiling),
            "largest_curvature": number_or_null(step.curvature.largest),
            "preconditioned_curvature": number_or_null(step.curvature.preconditioned),
            "iterations": step.curvature.iterations,
        },
        "layers": [_layer(layer) for layer in preflight.layers],
        "notes": list(preflight.notes),
        "remarks": list(remarks),
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _layer(layer: LayerForecast) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "depth": layer.depth,
        "chain": layer.chain,
        "covered": layer.covered,
        "log10_gradient": number_or_null(layer.measured_gradient),
        "zero_gradient": layer.measured_gradient == -math.inf,
        "expected_log10_gradient": _band(layer.gradient),
        "log10_signal": number_or_null(layer.measured_signal),
        "expected_log10_signal": _band(layer.signal),
        "log10_apart": number_or_null(layer.measured_apart),
        "expected_log10_apart": _band(layer.apart),
    }


def _band(band: Band) -> list[float | None] | None:
    return [number_or_null(v) for v in (band.low, band.middle, band.high)] if band.known else None


# ---- HTML --------------------------------------------------------------------------------------------------------------


def render_html(preflight: Preflight, command: str, version: str, remarks: Sequence[str] = ()) -> str:
    """The check as one self-contained HTML page."""
    panels = [
        panel("gradient-forecast", "Gradient", "", gradient_forecast(preflight), lambda: forecast_table(preflight)),
        panel("signal-forecast", "Signal", "", signal_forecast(preflight), lambda: forecast_table(preflight)),
    ]
    return page(
        "check.html.j2",
        {p.name: p.figure for p in panels if not p.empty},
        name=command,
        sentence=preflight.sentence,
        word=preflight.verdict.value,
        version=version,
        verdict=VERDICTS[preflight.verdict],
        findings=[card(i, f, preflight.sentence) for i, f in enumerate(preflight.findings, 1)],
        facts=_facts(preflight),
        steps_to_take=[],
        command=command,
        why=preflight.why,
        panels={p.name: p for p in panels},
        order=[p.name for p in panels],
        notes=preflight.notes,
        basis=[*basis(preflight), *remarks],
        again=f"gradiometer check -- {command}",
    )


def _facts(preflight: Preflight) -> list[tuple[str, str, str]]:
    facts = [
        ("Network", counted(sum(x.has_weights for x in preflight.layers), "layer"), counted(len(preflight.layers), "output"))
    ]
    depth = preflight.trainable_depth
    if not math.isnan(depth):
        any_number = math.isinf(depth)
        facts.append(
            ("Trainable depth", "any" if any_number else f"about {max(math.floor(depth), 1):,}", "layers of this kind")
        )
    if math.isfinite(preflight.covered):
        facts.append(("Covered by theory", f"{100 * preflight.covered:.0f} %", "of the operations"))
    if math.isfinite(preflight.agree):
        facts.append(("As expected", f"{100 * preflight.agree:.0f} %", "of the layers, within the 90 % interval"))
    step = preflight.step_size
    if step is not None and not math.isnan(step.ceiling):
        rate = f"optimizer: {step.optimizer.learning_rate:g}" if step.optimizer is not None else "no optimizer"
        facts.append(("Largest learning rate", "none" if math.isinf(step.ceiling) else number(step.ceiling), rate))
    return facts
