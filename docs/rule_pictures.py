"""Draw docs/images/rules/RULE.svg: what each rule measures, in its own sick training and in the well one beside it.

    python docs/rule_pictures.py [RULE …]

The two trainings are a sick one of the zoo whose label names the rule and its reference configuration, which differs in what
is wrong and in nothing else; their records are those of benchmarks/detection.py, made if they are not there. Needs the
``dev`` extra and Debian's chromium.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from screenshots import IMAGES, chromium

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import gradiometer
from detection import recorded
from gradiometer import rules
from gradiometer.figures.scale import FONT, template
from gradiometer.record.depth import end_width, falls_towards_input, falls_towards_output
from gradiometer.record.frames import Flag
from gradiometer.record.trace import Trace
from gradiometer.rules.judging import hidden_sites, without_embeddings
from zoo import ZooRun, read_labels

FloatArray = NDArray[np.float64]
Series = tuple[NDArray[Any], FloatArray]

WIDTH, HEIGHT = 760, 340
SICK, WELL, INK = "#d55e00", "#0072b2", "#20242c"
FLOOR, CEILING = 1e-12, 1e12
"""A logarithmic axis reaches this far: an exact zero is drawn at its foot."""


@dataclass(frozen=True)
class Picture:
    """What is drawn of a rule.

    Attributes:
        what: label of the upright axis.
        series: from a trace to steps and values.
        levels: levels that the rule holds the values against.
        log: whether the axis is logarithmic.
    """

    what: str
    series: Callable[[Trace], Series]
    levels: tuple[float, ...] = ()
    log: bool = False


# ---- what each rule measures -------------------------------------------------------------------------------------------


def _looks(values: Callable[[Trace], FloatArray]) -> Callable[[Trace], Series]:
    return lambda trace: (trace.steps, values(trace))


def _along(signal: str, ends: Callable[[FloatArray], FloatArray], *, hidden: bool = False) -> Callable[[Trace], Series]:
    """A fall along depth, of the network that has it worst."""

    def values(trace: Trace) -> FloatArray:
        y: FloatArray = getattr(trace, signal)
        chains = [hidden_sites(trace, c) if hidden else c for c in trace.chains]
        falls = np.array([ends(np.where(np.isposinf(y[:, c]), np.nan, y[:, c])) for c in chains])
        return _most(falls.T)

    return _looks(values)


def _most(table: FloatArray) -> FloatArray:
    """The largest of each row, NaN where there is none."""
    known = np.where(np.isnan(table), -np.inf, table).max(axis=1, initial=-np.inf)
    return np.where(np.isneginf(known), np.nan, known)


def _least(table: FloatArray) -> FloatArray:
    return -_most(-table)


def _loss(trace: Trace) -> Series:
    return trace.ledger.step, trace.ledger["loss"]


def _ledger(values: Callable[[Trace], FloatArray]) -> Callable[[Trace], Series]:
    def series(trace: Trace) -> Series:
        y = values(trace)
        known = ~np.isnan(y)
        return trace.ledger.step[known], y[known]

    return series


def _seeing(trace: Trace) -> FloatArray:
    share = trace.varying_share[:, without_embeddings(trace, trace.chains[0])]
    known = [row[~np.isnan(row)] for row in share]
    return np.array([row[-end_width(row.size) :].max() if row.size else np.nan for row in known])


def _last_output(trace: Trace) -> FloatArray:
    return trace.varying_share[:, trace.chains[0][-1]]


def _size(log10: FloatArray) -> FloatArray:
    return np.asarray(10.0 ** np.minimum(log10, 300.0))


def _still(trace: Trace) -> FloatArray:
    """Share of all weights that no step of a look moved."""
    count = trace.values["weight_count"][:, trace.parameters]
    moved = np.nan_to_num(trace.values["update_sumsq"][:, trace.parameters]) > 0
    return np.where(moved, 0.0, np.nan_to_num(count)).sum(axis=1) / np.nan_to_num(count).sum(axis=1)


def _skipped(trace: Trace) -> FloatArray:
    skipped = trace.ledger.has(Flag.SKIPPED).astype(np.float64)
    return np.convolve(skipped, np.ones(20) / 20.0)[: skipped.size]


def _clipping(trace: Trace) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return trace.ledger["grad_norm"] / trace.ledger["clip_threshold"]


def _precision(trace: Trace) -> FloatArray:
    narrow = [i for i, site in enumerate(trace.sites) if site.dtype in ("float16", "bfloat16")] or list(range(len(trace.sites)))
    lost = np.fmax(trace.tiny_gradient_share, np.fmax(trace.zero_gradient_share, trace.unmoved_share))
    return np.nanmedian(lost[:, narrow], axis=1)


def _through_time(trace: Trace) -> FloatArray:
    """Decades gained (or lost) by the gradient over the whole sequence: recurrent modules, or cells that were unrolled."""
    decades = trace.time_decades[:, :, -1]
    if not np.isnan(decades).all():
        known = ~np.isnan(decades)
        count = known.sum(axis=1)
        total = np.where(known, np.clip(decades, -45.0, 45.0), 0.0).sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)
    calls = trace.unrolled[0]
    return np.clip(trace.log10_gradient[:, calls[0]] - trace.log10_gradient[:, calls[-1]], -45.0, 45.0)


def _units(trace: Trace) -> FloatArray:
    matrices = [i for i in trace.parameters if len(trace.sites[i].shape) > 1 and trace.sites[i].shape[0] > 1]
    return _least(trace.unit_difference[:, matrices])


def _correlation(trace: Trace) -> FloatArray:
    """At the input end."""
    chain = trace.chains[0]
    table = trace.gradient_correlation[:, chain]
    known = [row[~np.isnan(row)] for row in table]
    return np.array([row[: end_width(row.size)].max() if row.size else np.nan for row in known])


def _initial(trace: Trace) -> Series:
    """The gradient's profile at the first look: no time, but depth."""
    chain = trace.chains[0]
    y = trace.log10_gradient[0, chain]
    return np.arange(chain.size), y - np.nanmax(np.where(np.isfinite(y), y, np.nan))


LOSS = Picture("loss", _loss, log=True)
PICTURES: dict[str, Picture] = {
    "nonfinite": LOSS,
    "divergence": LOSS,
    "loss-spike": LOSS,
    "oscillation": LOSS,
    "plateau": LOSS,
    "vanishing-gradient": Picture(
        "decades the gradient falls<br>towards the input",
        _along("log10_gradient", falls_towards_input),
        (rules.vanishing_gradient.WARN_DECADES, rules.vanishing_gradient.ERROR_DECADES),
    ),
    "exploding-gradient": Picture(
        "decades the gradient grows<br>towards the input",
        _along("log10_gradient", falls_towards_output),
        (rules.exploding_gradient.WARN_DECADES, rules.exploding_gradient.ERROR_DECADES),
    ),
    "signal-collapse": Picture(
        "decades the signal falls<br>towards the output",
        _along("log10_signal", falls_towards_output, hidden=True),
        (rules.signal_collapse.WARN_DECADES,),
    ),
    "signal-explosion": Picture(
        "decades the signal grows<br>towards the output",
        _along("log10_signal", falls_towards_input, hidden=True),
        (rules.signal_explosion.WARN_DECADES, rules.signal_explosion.ERROR_DECADES),
    ),
    "input-blindness": Picture(
        "share of the last layers' output<br>that varies with the input",
        _looks(_seeing),
        (rules.input_blindness.BLIND_SHARE,),
        True,
    ),
    "dead-output": Picture(
        "share of the network's output<br>that varies with the input",
        _looks(_last_output),
        (rules.dead_output.CONSTANT_SHARE,),
        True,
    ),
    "dead-units": Picture("largest share of dead units", _looks(lambda t: _most(t.dead_share)), (rules.dead_units.WARN_SHARE,)),
    "saturated-units": Picture(
        "largest share of saturated elements", _looks(lambda t: _most(t.saturated_share)), (rules.saturated_units.WARN_SHARE,)
    ),
    "learning-rate-too-high": Picture(
        "update / weight of the middle matrix",
        _looks(lambda t: _size(t.typical_step)),
        (10.0**rules.learning_rate_too_high.LONG_STEP,),
        True,
    ),
    "learning-rate-too-low": Picture(
        "largest update / weight of a matrix",
        _looks(lambda t: _size(t.longest_step)),
        (10.0**rules.learning_rate_too_low.SHORT_STEP,),
        True,
    ),
    "disconnected-parameters": Picture(
        "share of the weights that did not move", _looks(_still), (rules.disconnected_parameters.LARGE_SHARE,)
    ),
    "precision-underflow": Picture(
        "share lost to rounding, median", _looks(_precision), (rules.precision_underflow.TINY_SHARE,)
    ),
    "skipped-steps": Picture("skipped of the last 20 steps", _ledger(_skipped), (rules.skipped_steps.ERROR_SHARE,)),
    "clipping-always-on": Picture(
        "gradient norm / clipping threshold", _ledger(_clipping), (1.0, rules.clipping_always_on.CUT), True
    ),
    "stale-second-moment": Picture(
        "largest rms of gradient / √second moment",
        _looks(lambda t: _most(t.moment_rms)),
        (rules.stale_second_moment.STALE,),
        True,
    ),
    "vanishing-through-time": Picture(
        "decades gained back through time", _looks(_through_time), (-rules.vanishing_through_time.WARN_DECADES,)
    ),
    "exploding-through-time": Picture(
        "decades gained back through time", _looks(_through_time), (rules.exploding_through_time.WARN_DECADES,)
    ),
    "attention-collapse": Picture(
        "least spread of attention (1: even)", _looks(lambda t: _least(t.attention_spread)), (rules.attention_collapse.SPREAD,)
    ),
    "poor-initialization": Picture("gradient before the first step,<br>decades below its largest", _initial),
    "symmetric-initialization": Picture(
        "least difference between units", _looks(_units), (rules.symmetric_initialization.SAME,), True
    ),
    "shattered-gradient": Picture(
        "similarity of gradients that is left<br>at the input",
        _looks(_correlation),
        (rules.shattered_gradient.SHATTERED,),
        True,
    ),
}


# ---- drawing -----------------------------------------------------------------------------------------------------------


def cases(rule: str) -> tuple[ZooRun, ZooRun]:
    """The rule's own sick training, one of the calibration half where there is one, and its reference configuration."""
    runs = read_labels()
    own = sorted((r for r in runs if r.sick and r.rule == rule), key=lambda r: r.half != "calibration")
    if not own:
        raise SystemExit(f"no training of the zoo is labelled {rule}")
    # clipping by value, say, leaves no norm to draw
    drawn = next((r for r in own if np.isfinite(PICTURES[rule].series(_trace(r))[1]).any()), own[0])
    return drawn, next(r for r in runs if r.reference == drawn.name)


def _trace(run: ZooRun) -> Trace:
    return gradiometer.load(recorded(run, run.seeds[0])[0]).trace


def figure(rule: str) -> tuple[go.Figure, str]:
    """The drawing of a rule and the sentence that is its text alternative."""
    picture = PICTURES[rule]
    fig = go.Figure()
    sick, well = cases(rule)
    ends: list[str] = []
    for run, colour, dash, word in ((well, WELL, "dash", "well"), (sick, SICK, "solid", "sick")):
        x, y = picture.series(_trace(run))
        if picture.log:
            y = np.where(np.isfinite(y), np.clip(y, FLOOR, CEILING), np.nan)
        y = np.where(np.isneginf(y), -45.0, y)
        seen = ~np.isnan(y)  # what is measured in some looks only is joined over the others
        x, y = x[seen], y[seen]
        mode = "lines" if x.size > 60 else "lines+markers"
        fig.add_scatter(x=x, y=y, mode=mode, name=word, line={"color": colour, "dash": dash, "width": 2.2}, marker={"size": 5})
        known = y[np.isfinite(y)]
        ends.append(f"{word}: {known[0]:.2g} at first, {known[-1]:.2g} at the end" if known.size else f"{word}: none")
    for level in picture.levels:
        fig.add_hline(y=level, line={"color": INK, "dash": "dot", "width": 1.2})
    fig.update_layout(
        template=template("light"),
        width=WIDTH,
        height=HEIGHT,
        margin={"l": 92, "r": 16, "t": 16, "b": 48},
        font={"family": FONT, "size": 13, "color": INK},
        legend={"orientation": "h", "x": 1.0, "xanchor": "right", "y": 1.0, "yanchor": "bottom"},
        xaxis={"title": "place in the network, from the input on" if picture.series is _initial else "step"},
        yaxis={"title": picture.what, "type": "log" if picture.log else "linear", "exponentformat": "power"},
    )
    what = picture.what.replace("<br>", " ")
    levels = f" The rule's levels are {' and '.join(f'{v:g}' for v in picture.levels)}." if picture.levels else ""
    return fig, f"{what[0].upper()}{what[1:]}, {'; '.join(reversed(ends))}.{levels}"


def main() -> None:
    """Draw the rules that were named, or all."""
    names = sys.argv[1:] or list(PICTURES)
    folder = IMAGES / "rules"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        for name in names:
            fig, said = figure(name)
            path = Path(scratch) / "figure.html"
            fig.write_html(path, include_plotlyjs=True, div_id="figure", config={"staticPlot": True})
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(path.as_uri())
            page.wait_for_selector("#figure .scatterlayer .trace path", state="attached")  # a level line has no height
            options = {"format": "svg", "width": WIDTH, "height": HEIGHT}
            _, _, drawing = page.evaluate("options => Plotly.toImage('figure', options)", options).partition(",")
            (folder / f"{name}.svg").write_text(unquote(drawing), encoding="utf-8")
            sick, well = cases(name)
            caption = {"alt": said, "sick": _named(sick), "well": _named(well)}
            (folder / f"{name}.txt").write_text("\n".join(caption.values()) + "\n", encoding="utf-8")
            page.close()


def _named(run: ZooRun) -> str:
    setting = " ".join([*(f"{k}={v}" for k, v in run.env.items()), f"zoo/{run.script}.py", *run.args])
    return f"{run.cause} (`{setting}`)" if run.sick else f"`{setting}`"


if __name__ == "__main__":
    main()
