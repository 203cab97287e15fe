"""Figures: the scale, what is drawn for numbers that are none, thinning, conclusions, and names that are untrusted."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import traces
from gradiometer.figures import FIGURES, activation_health, depth_profile, heatmap, layer_gain, loss_curve
from gradiometer.figures.cells import MAX_COLUMNS, Kind, Rectangle, gradient_cells, make_cells, rectangles
from gradiometer.figures.loss_curve import MAX_POINTS, envelope
from gradiometer.figures.rows import MAX_ROWS, NAME_WIDTH, output_rows
from gradiometer.figures.scale import PALETTE, colorscale, factor, number, relative_to_median, shortened, wrapped
from gradiometer.figures.tables import TABLES
from gradiometer.record.frames import Flag, Group
from gradiometer.record.trace import Trace
from gradiometer.rules import diagnose
from gradiometer.types import Role

EVIL = "<img src=x onerror=alert(1)>"
VANISHING = traces.make(8, gradient=traces.ramp(17, -16.0, 0.0), loss=traces.FLAT)
EXPLODING = traces.make(8, gradient=traces.ramp(17, 5.0, 0.0), loss=traces.FLAT)
NAN_SITES = np.zeros((len(traces.LOOKS), 17 + 9), dtype=bool)
NAN_SITES[6:, 3:9] = True
WITH_NAN = traces.make(
    8, gradient=np.where(NAN_SITES[:, :17], np.nan, 0.0), nonfinite={Group.GRADIENT: NAN_SITES}, loss=traces.FALLING
)
DEAD = traces.make(
    8, gradient=np.where(np.arange(17) < 5, -np.inf, 0.0), dead=np.where(np.arange(17) == 5, 1.0, 0.1), loss=traces.FLAT
)
CHAINS = traces.make([*traces.stack(3, 0, "actor."), *traces.stack(2, 1, "critic.")])
HOSTILE = traces.make(
    [traces.output(f"{EVIL}{k}", Role.ACTIVATION if k % 2 else Role.LINEAR) for k in range(6)], saturated=0.99
)
NAN_LOSS = traces.make(3, loss=np.where(np.arange(120) < 60, 1.0, np.nan), flags={3: Flag.SKIPPED})
SAMPLES = {
    "well": traces.make(8, saturated=0.2),
    "vanishing": VANISHING,
    "exploding": EXPLODING,
    "nan": WITH_NAN,
    "dead": DEAD,
    "chains": CHAINS,
    "hostile": HOSTILE,
    "nan loss": NAN_LOSS,
    "one layer": traces.make([traces.output("fc")]),
    "no gradient of outputs": traces.make(4, gradient=np.nan, signal=np.nan),
    "one look": traces.make(4, looks=(0,)),
    "no looks": traces.make(4, looks=()),
    "empty": traces.empty(),
    "deep": traces.make(700),
}


def test_the_scale_is_the_one_of_the_design() -> None:
    stops = ["2d004b", "542788", "8073ac", "b2abd2", "d8daeb", "f7f7f7", "fee0b6", "fdb863", "e08214", "b35806", "7f3b08"]
    assert tuple(f"#{s}" for s in stops) == PALETTE
    assert colorscale()[5] == (0.5, "#f7f7f7")
    tiles = heatmap(VANISHING).data[0]
    assert (tiles.zmin, tiles.zmax) == (-6.0, 6.0)


def test_the_reference_is_the_median_of_a_chain_at_the_same_step() -> None:
    gradient = np.concatenate([np.full(7, 3.0), np.full(5, -5.0)])
    trace = traces.make([*traces.stack(3, 0, "a."), *traces.stack(2, 1, "b.")], gradient=gradient)
    assert np.allclose(relative_to_median(trace, trace.log10_gradient)[:, :12], 0.0)
    z = relative_to_median(VANISHING, VANISHING.log10_gradient)[:, :17]
    assert np.allclose(z[:, 8], 0.0)
    assert np.allclose(z[:, [0, 16]], [-8.0, 8.0])


@pytest.mark.parametrize("kind", FIGURES, ids=lambda k: k.name)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_figure_of_every_sample_builds_and_serialises(name: str, kind) -> None:
    trace = SAMPLES[name]
    fig = kind.draw(trace, diagnose(trace) if trace.steps.size else (), None)
    layout = json.loads(fig.to_json())["layout"]
    assert layout["title"]["text"].strip()
    assert layout["meta"]["title"].strip()
    assert layout["meta"]["alt"].strip()
    if not layout["meta"]["empty"]:
        table = TABLES[kind.name](trace, None)
        assert table.lines
        assert {len(line) for line in table.lines} == {len(table.columns)}


# ---- what is no number ---------------------------------------------------------------------------------------------------


def test_a_nan_cell_is_hatched_and_has_no_colour() -> None:
    fig = heatmap(WITH_NAN)
    z = np.asarray(fig.data[0].z)
    assert np.isnan(z[3:9, 6:]).all()
    assert np.isfinite(z[:3]).all()
    (hatch,) = [part for part in fig.data if part.name == "NaN" and part.type == "scatter"]
    assert hatch.fillpattern.shape == "/"
    assert {hatch.fillpattern.fgcolor, hatch.fillpattern.bgcolor}.isdisjoint(PALETTE)
    corners = [(x, y) for x, y in zip(hatch.x, hatch.y, strict=True) if x is not None]
    assert {(min(c[i] for c in corners), max(c[i] for c in corners)) for i in (0, 1)} == {(5.5, 9.5), (2.5, 8.5)}


def test_infinite_zero_and_unknown_differ() -> None:
    gradient = np.zeros((len(traces.LOOKS), 17))
    gradient[:, 0], gradient[:, 1], gradient[:, 2] = -np.inf, np.inf, np.nan
    trace = traces.make(8, gradient=gradient)
    kind = gradient_cells(trace, output_rows(trace)).kind
    assert kind[:4, 0].tolist() == [Kind.ZERO, Kind.INF, Kind.UNKNOWN, Kind.VALUE]
    shapes = {part.name: part.fillpattern.shape for part in heatmap(trace).data if part.type == "scatter" and part.fill}
    assert shapes == {"infinite": "x", "exactly 0": "."}
    assert "not measured" in {part.name for part in heatmap(trace).data}


def test_an_output_that_is_not_finite_and_lost_its_gradient_is_not_merely_unknown() -> None:
    bad = np.zeros((len(traces.LOOKS), 17 + 9), dtype=bool)
    bad[8:, :17] = True
    trace = traces.make(8, gradient=np.where(bad[:, :17], np.nan, 0.0), nonfinite={Group.OUTPUT: bad})
    assert (gradient_cells(trace, output_rows(trace)).kind[:, 8:] == Kind.NAN).all()


def test_past_the_threshold_there_is_a_triangle_too() -> None:
    fig = heatmap(VANISHING)
    symbols = {part.marker.symbol: part for part in fig.data if part.type == "scatter" and part.mode == "markers"}
    assert set(symbols) == {"triangle-down", "triangle-up"}
    assert set(symbols["triangle-down"].y) == {0, 1, 2, 3, 4, 5}
    assert not [part for part in heatmap(traces.make(8)).data if part.type == "scatter"]


def test_rectangles_cover_exactly_the_mask() -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.4
    cover = np.zeros_like(mask, dtype=int)
    for r in rectangles(mask):
        cover[r.bottom : r.top + 1, r.left : r.right + 1] += 1
    assert (cover == mask).all()
    assert rectangles(np.ones((5, 7), bool)) == [Rectangle(0, 6, 0, 4)]


# ---- thinning ------------------------------------------------------------------------------------------------------------


def test_bins_keep_a_spike_of_six_steps_in_fifty_thousand() -> None:
    looks = 50_000
    z, kind = np.zeros((looks, 17 + 9)), np.full((looks, 17 + 9), Kind.VALUE, dtype=np.int8)
    z[31_415:31_421, 5] = 7.0
    z[100, 6], kind[100, 6] = np.nan, Kind.NAN
    cells = make_cells(z, kind, output_rows(traces.make(8)))
    assert cells.z.shape[1] <= MAX_COLUMNS
    assert np.nanmax(cells.z[5]) == 7.0
    assert cells.bins[int(np.nanargmax(cells.z[5]))][0] <= 31_420
    assert (cells.kind[6] == Kind.NAN).sum() == 1


def test_a_thousand_layers_are_drawn_in_few_rows_and_keep_the_worst_of_each() -> None:
    gradient = np.zeros(1401)
    gradient[777] = -9.0
    trace = traces.make(700, gradient=gradient)
    rows = output_rows(trace)
    assert len(rows) <= MAX_ROWS
    assert np.nanmin(gradient_cells(trace, rows).z) == pytest.approx(-9.0)
    assert "Each row stands for 4" in heatmap(trace).layout.meta["note"]
    assert sum(len(row.sites) for row in rows.rows) == 1401


def test_a_long_loss_curve_keeps_its_extremes() -> None:
    y = np.ones(100_000)
    y[4321], y[9876] = 50.0, -3.0
    x, thin = envelope(np.arange(100_000), y)
    assert thin.size <= MAX_POINTS + 2
    assert (thin.min(), thin.max()) == (-3.0, 50.0)
    assert (np.diff(x) > 0).all()


def test_the_drawing_of_a_long_run_stays_small() -> None:
    looks = 10_000
    trace = traces.make(
        99, looks=range(looks), gradient=np.random.default_rng(0).normal(size=(looks, 199)), loss=np.ones(looks)
    )
    assert len(heatmap(trace).to_json()) < 2_000_000


# ---- words ---------------------------------------------------------------------------------------------------------------


def _title(fig) -> str:
    return fig.layout.meta["title"]


def test_titles_state_the_conclusion() -> None:
    # an end of 17 outputs is two wide: 15 of the 16 decades lie between the ends
    assert _title(heatmap(VANISHING, step=0)) == "Gradient falls by 15 decades on its way from act7 back to fc0, at step 0"
    assert _title(heatmap(EXPLODING, step=0)).startswith("Gradient grows by 4.7 decades on its way from head back to fc0")
    assert _title(heatmap(traces.make(8))).startswith("Gradient has one size in all 17 outputs")
    assert _title(heatmap(WITH_NAN)) == "Gradients stop being finite at step 20, in the end in 6 of 17 outputs"
    assert _title(heatmap(DEAD)).startswith("Exactly no gradient reaches fc0")
    assert _title(depth_profile(VANISHING)) == "The gradient loses 15 decades towards the input; the signal keeps its size"
    assert "1×10⁻¹⁶" in _title(layer_gain(VANISHING))
    assert "No single guilty layer: each of the 9 layers multiplies it by about 0.017" in _title(layer_gain(VANISHING))
    assert _title(layer_gain(DEAD)).startswith("act2 lets no gradient through")
    assert "act2 is dead" in _title(activation_health(DEAD))
    assert _title(loss_curve(traces.make(3))) == "The loss falls from 0.9751 to 0.06679 in 120 steps"
    assert _title(loss_curve(NAN_LOSS)) == "The loss is not finite at 60 steps, first at step 60"


def test_one_guilty_layer_is_named() -> None:
    gradient = np.where(np.arange(17) < 6, -7.0, 0.0)
    assert _title(layer_gain(traces.make(8, gradient=gradient))).endswith("the guilty layer is fc3 with ×1×10⁻⁷")


def test_the_gain_between_two_networks_is_nobodys() -> None:
    gradient = np.concatenate([np.full(7, -9.0), np.zeros(5)])
    fig = layer_gain(traces.make([*traces.stack(3, 0, "a."), *traces.stack(2, 1, "b.")], gradient=gradient))
    assert max(abs(x) for bar in fig.data if bar.type == "bar" for x in bar.x) == 0.0


def test_findings_are_outlined_and_numbered() -> None:
    findings = diagnose(VANISHING)
    fig = heatmap(VANISHING, findings)
    assert [a.text for a in fig.layout.annotations if a.text and a.text.startswith("<b>")] == [
        f"<b>{i}</b>" for i in range(1, 1 + len([f for f in findings if f.sites]))
    ]
    assert len(fig.layout.shapes) >= 2


def test_losses_of_several_optimizers_are_several_curves() -> None:
    trace = traces.make(3)
    trace.ledger.values["optimizer"][:] = np.arange(120) % 2
    assert [part.name for part in loss_curve(trace).data] == ["loss of optimizer 1", "loss of optimizer 2"]


def test_clipped_and_skipped_steps_are_in_the_rug() -> None:
    trace = traces.make(3, flags={7: Flag.SKIPPED, 9: Flag.SKIPPED})
    trace.ledger.values["grad_norm"][:], trace.ledger.values["clip_threshold"][:] = np.arange(120), 100.0
    fig = loss_curve(trace)
    assert {p.name: len(p.x) for p in fig.data} == {"loss": 120, "clipped": 19, "skipped": 2}
    assert list(fig.layout.yaxis3.ticktext) == ["clipped (19)", "skipped (2)"]


@pytest.mark.parametrize("kind", FIGURES, ids=lambda k: k.name)
def test_names_are_escaped_wherever_plotly_reads_markup(kind) -> None:
    fig = kind.draw(HOSTILE, diagnose(HOSTILE), None)
    fig.layout.meta = None  # raw on purpose: no renderer of plotly reads it
    text = fig.to_json()
    assert "<img" not in text
    assert "u003cimg" not in text
    assert "onerror" in text or kind.name == "loss"


def test_full_names_are_on_the_axis_and_short_ones_on_its_ticks() -> None:
    name = "transformer.encoder.layers.11.self_attention.output_projection"
    axis = heatmap(traces.make([traces.output(name), traces.output("head")])).layout.yaxis
    assert axis.categoryarray[0].strip("\u200b") == name
    assert len(axis.ticktext[0]) <= NAME_WIDTH
    assert "11" in axis.ticktext[0]


def test_words_and_numbers() -> None:
    assert shortened("encoder.layers.158.attention.output.dense", 22) == "en.la.158.at.ou.dense"
    assert shortened("a" * 50, 9) == "aaaa…aaaa"
    assert shortened("short", 9) == "short"
    assert wrapped("one two three", 7) == ["one two", "three"]
    assert [factor(v) for v in (0.0, -1.0, -17.2, 2.5, float("nan"))] == ["×1", "×0.1", "×6×10⁻¹⁸", "×316", "unknown"]
    assert [number(v) for v in (0.25, -3.0, 1.382e-14, float("nan"))] == ["0.25", "−3", "1.38×10⁻¹⁴", "unknown"]


def test_figures_and_page_start_without_torch() -> None:
    code = "import sys, gradiometer.figures, gradiometer.report.html; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_to_draw_says_why() -> None:
    fig = heatmap(traces.empty())
    assert isinstance(traces.empty(), Trace)
    assert fig.layout.meta["empty"]
    assert fig.layout.meta["alt"].endswith(".")
