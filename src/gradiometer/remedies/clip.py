"""Clip: bounds the gradient right before every step of the optimizer.

What it does:
    `norm` scales the whole gradient down to a norm of at most the threshold; `value` cuts every element off there; `agc`
    (adaptive) bounds the gradient of each unit by a share of the norm of its weights, the output layer left out;
    `autoclip` takes a percentile of all norms so far as threshold; `zclip` bounds a norm that stands out from its running
    mean by that many standard deviations. Where no threshold is given the usual one of the kind is taken; a cure measures
    the norms of the untreated training first.

When it helps:
    Gradients that explode now and then: through time, on a cliff of the loss, on a bad batch. Where they explode along
    depth, only `agc` treats each layer by its own measure.

When it does not:
    It cannot cure vanishing: it never makes a gradient larger. A norm that is clipped at nearly every step is a smaller
    learning rate in disguise. It does not repair a gradient that is not a number. Under Adam, which divides the size of
    the gradient out again, it only tames single steps.

Cost:
    One pass over the gradients a step; `autoclip` and `zclip` also wait for the norm. `value` changes the direction of
    the gradient.

References:
    Pascanu et al. 2013 (norm); Brock et al. 2021 (adaptive, per unit); Seetharaman et al. 2020 (AutoClip); Kumar et al.
    2025 (ZClip).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from gradiometer.remedies.base import (
    WEIGHTED,
    Anchor,
    CannotTreatError,
    Option,
    Patient,
    Remedy,
    Settings,
    Snippet,
    Stage,
    Symptoms,
)
from gradiometer.remedies.layers import layers
from gradiometer.types import Safety, Treatment

KINDS: Final = ("norm", "value", "agc", "autoclip", "zclip")
USUAL: Final = {
    "norm": 1.0,  # the default of language models (Wortsman et al. 2023)
    "value": 1.0,  # ours
    "agc": 0.01,  # Brock et al. 2021
    "autoclip": 10.0,  # percent, Seetharaman et al. 2020
    "zclip": 2.5,  # standard deviations, Kumar et al. 2025
}
AGC_LEAST: Final = 1e-3
"""Norm that a unit's weights count with at least (Brock et al. 2021): zeros must be able to move."""
ZCLIP_MEMORY: Final = 0.97
ZCLIP_STEPS: Final = 25
"""Decay of the running mean and variance of the norm, and steps before the first is clipped (Kumar et al. 2025)."""
TINY: Final = 1e-6
LONG_STEP: Final = -2.0
"""log10 of update / weight that a typical step should not exceed: ten times the usual thousandth (CS231n notes)."""

BURSTS: Final = ("exploding-through-time", "loss-spike", "divergence", "nonfinite", "exploding-gradient")


def plan(symptoms: Symptoms) -> tuple[Treatment, ...]:
    """Where gradients burst, and nothing clips them yet."""
    if not symptoms.has(*BURSTS) or symptoms.has("clipping-always-on"):
        return ()
    norm = Treatment("clip", {"kind": "norm", "threshold": _measured(symptoms)})
    agc, zclip = Treatment("clip", {"kind": "agc"}), Treatment("clip", {"kind": "zclip"})
    if symptoms.has("exploding-through-time"):
        return norm, zclip
    if symptoms.has("exploding-gradient"):
        return agc, norm
    return norm, zclip, agc


def _measured(symptoms: Symptoms) -> float:
    """The median norm of the gradient before it went wrong; less where even the median makes steps that are too long."""
    trace = symptoms.trace
    if not trace.ledger.step.size:
        return 0.0
    onset = min((f.steps[0] for f in symptoms.findings if f.rule in BURSTS), default=0)
    norms = trace.ledger["grad_norm"]
    known = np.isfinite(norms) & (norms > 0.0)
    before = known & (trace.ledger.step < onset)
    # a handful of steps is no distribution
    chosen = norms[before] if np.count_nonzero(before) >= 10 else norms[known]
    if not chosen.size:
        return 0.0
    steps = trace.typical_step[np.isfinite(trace.typical_step)]
    shorter = min(1.0, 10.0 ** (LONG_STEP - float(np.median(steps)))) if steps.size else 1.0
    return float(f"{np.median(chosen) * shorter:.2g}")


def apply(patient: Patient, settings: Settings, sites: tuple[str, ...]) -> list[str]:
    """Clip before every step of the patient's optimizers."""
    kind, threshold = str(settings["kind"]), float(settings["threshold"])
    if threshold < 0.0 or (kind == "autoclip" and threshold > 100.0):
        raise CannotTreatError(f"{threshold:g} is no threshold")
    if not patient.optimizers:
        raise CannotTreatError("there is no optimizer yet whose steps could be clipped")
    if any(isinstance(optimizer, LBFGS) for optimizer in patient.optimizers):
        raise CannotTreatError("LBFGS searches along its gradient, and would be misled by one that is clipped")
    threshold = threshold or USUAL[kind]
    chosen = [(name, module) for name, module in patient.modules(sites) if any(True for _ in module.parameters())]
    if sites and not chosen:
        raise CannotTreatError(f"no module with parameters is called {' or '.join(sites)}")
    only = {id(p) for _, module in chosen for p in module.parameters()} if sites else None
    heads = _heads(patient) if kind == "agc" else []
    left_out = {id(p) for name in heads for p in patient.model.get_submodule(name).parameters()}

    def clipped(optimizer: Optimizer) -> list[Tensor]:
        held: Iterable[Tensor] = (p for group in optimizer.param_groups for p in group["params"])
        return [
            p
            for p in held
            if p.grad is not None and not p.grad.is_sparse and id(p) not in left_out and (only is None or id(p) in only)
        ]

    act = _ACTS[kind](threshold)
    # before anything else that is done to gradients or weights at a step
    patient.on_step.insert(0, lambda optimizer: act(clipped(optimizer), _scale(optimizer)))
    where = f" in {_quoted(name for name, _ in _outermost(chosen))} only" if sites else ""
    return [_sentence(kind, threshold, where, heads)]


def _heads(patient: Patient) -> list[str]:
    """Names of the output layers; the last layer with weights where the model cannot be read."""
    try:
        found = [layer.name for layer in layers(patient) if layer.head and layer.name]
    except CannotTreatError:
        found = []
    return found or [name for name, module in patient.modules() if isinstance(module, WEIGHTED)][-1:]


def _outermost(chosen: list[tuple[str, torch.nn.Module]]) -> list[tuple[str, torch.nn.Module]]:
    names = {name for name, _ in chosen}
    return [(n, m) for n, m in chosen if not any(n.startswith(f"{other}.") for other in names)]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _sentence(kind: str, threshold: float, where: str, heads: list[str]) -> str:
    if kind == "norm":
        return f"The norm of the gradient{where} is clipped at {threshold:g} before every step."
    if kind == "value":
        return f"Every element of the gradient{where} is clipped at {threshold:g} before every step."
    if kind == "agc":
        rest = f", except in the output layer {_quoted(heads)}" if heads else ""
        return f"The gradient of each unit{where} is clipped at {threshold:g} of the norm of its weights{rest}."
    if kind == "autoclip":
        return f"The norm of the gradient{where} is clipped at percentile {threshold:g} of all norms so far."
    return f"The norm of the gradient{where} is clipped where it stands out by {threshold:g} standard deviations."


def _scale(optimizer: Optimizer) -> float:
    """What a gradient scaler still holds in the gradients: a fused optimizer takes it out itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return float(scale) if isinstance(scale, Tensor) else 1.0


# ---- the kinds: made with a threshold; called with parameters and the factor that is still in their gradients ---------------

_Act = Callable[[list[Tensor], float], None]


def _norm(threshold: float) -> _Act:
    def act(parameters: list[Tensor], scale: float) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, threshold * scale)

    return act


def _value(threshold: float) -> _Act:
    def act(parameters: list[Tensor], scale: float) -> None:
        torch.nn.utils.clip_grad_value_(parameters, threshold * scale)

    return act


def _agc(threshold: float) -> _Act:
    def act(parameters: list[Tensor], scale: float) -> None:
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            most = _unit_norm(parameter.detach()).clamp(min=AGC_LEAST) * (threshold * scale)
            gradient.mul_((most / _unit_norm(gradient).clamp(min=TINY)).clamp(max=1.0))

    return act


def _unit_norm(x: Tensor) -> Tensor:
    """Norm of what leads into each unit (first dimension); of the whole of a vector."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)) or None, keepdim=True)


def _autoclip(threshold: float) -> _Act:
    norms: list[float] = []

    def act(parameters: list[Tensor], scale: float) -> None:
        norm = _total(parameters) / scale
        if np.isfinite(norm):
            norms.append(norm)
            torch.nn.utils.clip_grad_norm_(parameters, float(np.percentile(norms, threshold)) * scale)

    return act


def _zclip(threshold: float) -> _Act:
    first: list[float] = []
    mean, variance = 0.0, 0.0

    def act(parameters: list[Tensor], scale: float) -> None:
        nonlocal mean, variance
        norm = _total(parameters) / scale
        if not np.isfinite(norm):
            return
        if len(first) < ZCLIP_STEPS:
            first.append(norm)
            mean, variance = float(np.mean(first)), float(np.var(first))
            return
        z = (norm - mean) / (variance**0.5 + TINY)
        if z > threshold:
            norm = mean + threshold * variance**0.5 * threshold / z
            torch.nn.utils.clip_grad_norm_(parameters, norm * scale)
        variance = ZCLIP_MEMORY * variance + (1.0 - ZCLIP_MEMORY) * (norm - mean) ** 2
        mean = ZCLIP_MEMORY * mean + (1.0 - ZCLIP_MEMORY) * norm

    return act


def _total(parameters: list[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


_ACTS: Final[dict[str, Callable[[float], _Act]]] = {
    "norm": _norm,
    "value": _value,
    "agc": _agc,
    "autoclip": _autoclip,
    "zclip": _zclip,
}


# ---- as code -----------------------------------------------------------------------------------------------------------------


def edit(settings: Settings, changes: tuple[str, ...]) -> Snippet:
    """A call before the step; a hook of the optimizer where something is remembered or there is more to compute."""
    kind = str(settings["kind"])
    threshold = f"{float(settings['threshold']) or USUAL[kind]:g}"
    only, heads = _names(changes)
    parameters = "{model}.parameters()"
    if only:
        parameters = f"[p for name in {only!r} for p in {{model}}.get_submodule(name).parameters()]"
    if kind in ("norm", "value"):
        return Snippet(Anchor.BEFORE_STEP, (f"torch.nn.utils.clip_grad_{kind}_({parameters}, {threshold})",), ("import torch",))
    if kind == "agc":
        return Snippet(Anchor.AFTER_OPTIMIZER, _agc_lines(parameters, threshold, heads), ("import torch",))
    lines = _autoclip_lines(threshold) if kind == "autoclip" else _zclip_lines(threshold)
    imports = ("import numpy as np", "import torch") if kind == "autoclip" else ("import statistics", "import torch")
    return Snippet(Anchor.AFTER_OPTIMIZER, (f"clipped = list({parameters})", *lines), imports)


def _names(changes: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(modules it was restricted to, output layers) from what `apply` said."""
    text = " ".join(changes)
    within = re.search(r" in ((?:`[^`]*`(?:, )?)+) only", text)
    without = re.search(r"output layer ((?:`[^`]*`(?:, )?)+)", text)
    found = [tuple(re.findall(r"`([^`]*)`", m.group(1))) if m else () for m in (within, without)]
    return found[0], found[1]


def _agc_lines(parameters: str, threshold: str, heads: tuple[str, ...]) -> tuple[str, ...]:
    return (
        f"head = {{{{id(p) for name in {heads!r} for p in {{model}}.get_submodule(name).parameters()}}}}",
        f"clipped = [p for p in {parameters} if id(p) not in head]",
        "",
        "def unit_norm(x):",
        "    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)) or None, keepdim=True)",
        "",
        "@torch.no_grad()",
        "def clip_per_unit(*_):",
        "    for p in clipped:",
        "        if p.grad is not None:",
        f"            most = unit_norm(p).clamp(min={AGC_LEAST:g}) * {threshold}",
        f"            p.grad.mul_((most / unit_norm(p.grad).clamp(min={TINY:g})).clamp(max=1.0))",
        "",
        "{optimizer}.register_step_pre_hook(clip_per_unit)",
    )


def _autoclip_lines(threshold: str) -> tuple[str, ...]:
    return (
        "norms = []",
        "",
        "def autoclip(*_):",
        "    norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in clipped if p.grad is not None])))",
        f"    torch.nn.utils.clip_grad_norm_(clipped, float(np.percentile(norms, {threshold})))",
        "",
        "{optimizer}.register_step_pre_hook(autoclip)",
    )


def _zclip_lines(threshold: str) -> tuple[str, ...]:
    keep, take = f"{ZCLIP_MEMORY:g}", f"{1.0 - ZCLIP_MEMORY:g}"
    return (
        "first, running = [], {{}}",
        "",
        "def zclip(*_):",
        "    norm = float(torch.nn.utils.get_total_norm([p.grad for p in clipped if p.grad is not None]))",
        f"    if len(first) < {ZCLIP_STEPS}:",
        "        first.append(norm)",
        "        running.update(mean=statistics.fmean(first), variance=statistics.pvariance(first))",
        "        return",
        '    mean, variance = running["mean"], running["variance"]',
        f"    z = (norm - mean) / (variance**0.5 + {TINY:g})",
        f"    if z > {threshold}:",
        f"        norm = mean + {threshold} * variance**0.5 * {threshold} / z",
        "        torch.nn.utils.clip_grad_norm_(clipped, norm)",
        f"    running.update(mean={keep} * mean + {take} * norm, variance={keep} * variance + {take} * (norm - mean) ** 2)",
        "",
        "{optimizer}.register_step_pre_hook(zclip)",
    )


REMEDY: Final = Remedy(
    name="clip",
    safety=Safety.CHANGES_TRAINING,
    stage=Stage.CLIP,
    options=(
        Option("kind", "norm", "what is bounded, and how", KINDS),
        Option(
            "threshold", 0.0, "norm, element, share of the weights (agc), percentile (autoclip) or deviations (zclip); 0: usual"
        ),
    ),
    plan=plan,
    apply=apply,
    edit=edit,
    text=__doc__ or "",
)
