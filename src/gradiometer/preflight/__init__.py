"""Check a network before it trains: read what the first step left on disk, forecast, judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from gradiometer.errors import GradiometerError
from gradiometer.preflight import explain, judge, learning_rate_ceiling
from gradiometer.preflight.result import LayerForecast as LayerForecast
from gradiometer.preflight.result import Preflight as Preflight
from gradiometer.preflight.result import StepSize
from gradiometer.record import frames
from gradiometer.record.blueprint import SUFFIX, Blueprint, CurvatureFacts, Node, Op, OptimizerFacts
from gradiometer.record.reading import read_trace
from gradiometer.record.trace import Trace
from gradiometer.theory.forecast import UNKNOWN_BAND, NodeForecast, forecast
from gradiometer.types import Finding, Role, Severity, Site, VerdictWord

FEW: Final = 0.5
"""A network of which theory covers less than this share, and of which no gradient was measured, cannot be judged."""
MAX_OPENED: Final = 4
PAGES: Final = {learning_rate_ceiling.NAME: learning_rate_ceiling.__doc__ or ""}
"""What only a check can find: name to text, beside the rules that read a training."""


def read(folder: Path) -> Preflight:
    """The reading of a check that was recorded in a run folder.

    Raises:
        GradiometerError: nothing of a first step was recorded there.
    """
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if not found:
        raise GradiometerError("No first step was recorded.", "Check that the command trains: it must call backward().")
    try:
        blueprint = Blueprint.read(found[0])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GradiometerError(f"{found[0]} cannot be read ({error}).", "Check the training again.") from error
    return assess(blueprint, read_trace(folder))


def assess(blueprint: Blueprint, trace: Trace) -> Preflight:
    """Forecast and judge a network from its blueprint and the one look at its first step."""
    nodes = blueprint.nodes
    told = forecast(blueprint)
    layers = _layers(nodes, told, trace)
    opened, hoped = _open(blueprint, told)
    by_design = None if opened is blueprint else _layers(opened.nodes, hoped, trace)
    rule = explain.UNKNOWN
    unmasked = _without_masks(blueprint, trace)
    findings: list[Finding] = []
    by_zero = by_design is not None
    for chain in dict.fromkeys(layer.chain for layer in layers):
        shown = [layer for layer in layers if layer.chain == chain]
        profile = judge.measured(shown)
        # a branch that starts at zero has no gradient of its own, by design, and leaves the trunk all of it
        gated = np.array([layer.gradient.middle == layer.measured_gradient == -math.inf for layer in shown])
        profile = replace(profile, gradient=np.where(gated, np.nan, profile.gradient))
        by_zero |= bool(gated.any())
        if unmasked:  # masks make any two outputs differ, whatever the inputs are
            seen = np.array([layer.apart.middle for layer in unmasked if layer.chain == chain])
            profile = replace(profile, apart=np.where(np.isnan(seen), profile.apart, seen))
        within = _network(nodes, shown)
        own = explain.chain_rule([opened.nodes[i] for i in within], [hoped[i] for i in within])
        rule = own if math.isnan(rule.trainable_depth) or own.trainable_depth < rule.trainable_depth else rule
        if by_design is not None:
            # the gradient is zero behind a layer that starts at zero, and will not be after a step: what then?
            expected = judge.predicted([layer for layer in by_design if layer.chain == chain])
            profile = replace(profile, gradient=expected.gradient, forecast=True)
        findings += judge.judge(profile)
        findings += judge.judge_units(shown)
    step_size = _step_size(blueprint.optimizer, blueprint.curvature)
    if step_size is not None:
        findings += learning_rate_ceiling.find(step_size)
    findings.sort(key=lambda f: f.severity.rank)
    covered = float(np.mean([k.covered for k in told])) if told else math.nan
    notes = [*trace.notes, *blueprint.notes]
    if any(node.op is Op.ENTRY and node.output is not None and math.isnan(node.output.apart) for node in nodes):
        notes.append("The batch has a single example, so it cannot be said whether the network tells inputs apart.")
    if step_size is not None and step_size.curvature.trouble:
        notes.append(f"The curvature could not be measured: {step_size.curvature.trouble}.")
    verdict, sentence = _verdict(findings, layers, by_zero)
    return Preflight(
        verdict=verdict,
        sentence=sentence,
        why=rule.sentence,
        findings=tuple(findings),
        layers=layers,
        trainable_depth=rule.trainable_depth,
        step_size=step_size,
        loss=blueprint.loss,
        covered=covered,
        agree=_agreement(layers),
        notes=tuple(dict.fromkeys(notes)),
    )


def _without_masks(blueprint: Blueprint, trace: Trace) -> tuple[LayerForecast, ...]:
    """The forecast of a network with dropout if both of two inputs met the same masks; empty for a network without."""
    if not any(node.numbers.get("dropout") for node in blueprint.nodes):
        return ()
    nodes = tuple(
        replace(node, numbers={**node.numbers, "cross": node.numbers["square"]}) if node.numbers.get("dropout") else node
        for node in blueprint.nodes
    )
    return _layers(nodes, forecast(replace(blueprint, nodes=nodes)), trace)


def _network(nodes: Sequence[Node], layers: Sequence[LayerForecast]) -> list[int]:
    """The operations that lead to the last of these layers, in order of execution."""
    names = {layer.name for layer in layers}
    last = max((i for i, node in enumerate(nodes) if any(name in names for _, name in node.names)), default=-1)
    wanted: set[int] = set()
    stack = [last] if last >= 0 else []
    while stack:
        index = stack.pop()
        if index not in wanted:
            wanted.add(index)
            stack.extend(nodes[index].inputs)
    return sorted(wanted)


def _verdict(findings: Sequence[Finding], layers: Sequence[LayerForecast], by_design: bool) -> tuple[VerdictWord, str]:
    if findings and findings[0].severity is Severity.ERROR:
        return VerdictWord.SICK, findings[0].sentence
    known = [layer for layer in layers if math.isfinite(layer.measured_gradient)]
    if len(known) < 2 and not by_design:
        return VerdictWord.UNKNOWN, "Too few layers with a gradient were seen to say anything about depth."
    sentence = f"Nothing vanishes and nothing explodes at the first step over {len(layers)} outputs."
    if by_design:
        sentence = f"Some layers start at zero, by design; behind them nothing vanishes or explodes over {len(layers)} outputs."
    if findings:
        sentence += f" {len(findings)} thing{'s' if len(findings) > 1 else ''} to know about."
    return VerdictWord.WELL, sentence


def _agreement(layers: Sequence[LayerForecast]) -> float:
    pairs = [(x.gradient, x.measured_gradient) for x in layers if x.gradient.known and math.isfinite(x.measured_gradient)]
    return float(np.mean([band.holds(value) for band, value in pairs])) if pairs else math.nan


# ---- layers ------------------------------------------------------------------------------------------------------------


def _layers(nodes: Sequence[Node], told: Sequence[NodeForecast], trace: Trace) -> tuple[LayerForecast, ...]:
    places = {name: i for i, node in enumerate(nodes) for name in node.names}
    broken = trace.nonfinite[frames.Group.OUTPUT]
    layers: list[LayerForecast] = []
    for index in trace.outputs:
        site = trace.sites[int(index)]
        place = places.get((site.model, site.name))
        node, expected = (nodes[place], told[place]) if place is not None else (None, None)
        layers.append(_layer(site, node, expected, trace, int(index), broken=bool(broken[:1, index].any())))
    return tuple(layers)


def _layer(
    site: Site, node: Node | None, told: NodeForecast | None, trace: Trace, index: int, *, broken: bool
) -> LayerForecast:
    look = 0
    share = float(trace.varying_share[look, index])
    count = node.output.apart / share if node is not None and node.output is not None and share > 0.0 else 1.0
    with np.errstate(divide="ignore"):
        apart = float(np.log10(share * (count if 1.0 <= count <= 2.0 else 1.0))) if share == share else math.nan
    return LayerForecast(
        name=site.name,
        kind=site.kind,
        depth=site.depth,
        signal=told.signal if told is not None else UNKNOWN_BAND,
        gradient=told.gradient if told is not None else UNKNOWN_BAND,
        apart=told.apart if told is not None else UNKNOWN_BAND,
        measured_signal=math.inf if broken else float(trace.log10_signal[look, index]),
        measured_gradient=float(trace.log10_gradient[look, index]),
        measured_apart=apart,
        covered=told is not None and told.covered,
        saturated=float(trace.saturated_share[look, index]),
        dead=float(trace.dead_share[look, index]),
        chain=site.chain,
        has_weights=site.role in (Role.LINEAR, Role.RECURRENT, Role.ATTENTION, Role.EMBEDDING),
    )


# ---- layers that start at zero -----------------------------------------------------------------------------------------


def _open(blueprint: Blueprint, told: Sequence[NodeForecast]) -> tuple[Blueprint, Sequence[NodeForecast]]:
    """The network, with its forecast, as it will be once layers on its trunk that start at zero have moved.

    A branch that starts at zero leaves the trunk its gradient and is let alone. A head or a block without a way around it
    that starts at zero (Fixup's classifier, a readout of muP) cuts everything before it off, for one step. Without any, the
    blueprint itself comes back.
    """
    for _ in range(MAX_OPENED):
        index = _cut(blueprint.nodes, told)
        if index is None:
            break
        nodes = list(blueprint.nodes)
        nodes[index] = _unit_gain(nodes[index])
        blueprint = replace(blueprint, nodes=tuple(nodes))
        told = forecast(blueprint)
    return blueprint, told


def _cut(nodes: Sequence[Node], told: Sequence[NodeForecast]) -> int | None:
    """The first operation that alone keeps every gradient from the data; None if some gradient comes through."""
    entries = [told[i].gradient.middle for i, node in enumerate(nodes) if node.op is Op.ENTRY and node.kind == "data"]
    if not entries or any(value != -math.inf for value in entries):
        return None
    for i, node in enumerate(nodes):
        zero = node.op in (Op.LINEAR, Op.SCALE) and _is_zero(node)
        if zero and told[i].gradient.middle > -math.inf and told[node.inputs[0]].gradient.middle == -math.inf:
            return i
    return None


def _is_zero(node: Node) -> bool:
    numbers: Mapping[str, float] = node.numbers
    return numbers.get("gain" if node.op is Op.LINEAR else "square", 1.0) == 0.0


def _unit_gain(node: Node) -> Node:
    numbers = dict(node.numbers)
    numbers.update({"gain": 1.0} if node.op is Op.LINEAR else {"square": 1.0, "cross": 1.0, "mean": 1.0})
    return replace(node, numbers=numbers, gains=tuple(math.nan for _ in node.gains))


# ---- learning rate -----------------------------------------------------------------------------------------------------


def _step_size(optimizer: OptimizerFacts | None, curvature: CurvatureFacts | None) -> StepSize | None:
    if curvature is None:
        return None
    adam = optimizer is not None and not math.isnan(optimizer.beta1)
    value = curvature.preconditioned if adam else curvature.largest
    if math.isnan(value):
        return StepSize(optimizer, curvature, math.nan)
    if value <= 0.0:
        return StepSize(optimizer, curvature, math.inf)
    if optimizer is not None and adam:
        return StepSize(optimizer, curvature, (2.0 + 2.0 * optimizer.beta1) / ((1.0 - optimizer.beta1) * value))
    momentum = optimizer.momentum if optimizer is not None else 0.0
    return StepSize(optimizer, curvature, (2.0 + 2.0 * momentum) / value)
