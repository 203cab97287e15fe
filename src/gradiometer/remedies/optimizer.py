"""Optimizer: other steps, from the same model: their length, their warm-up, their kind, their precision.

What it does:
    `lr` multiplies the learning rate, whatever a schedule makes of it, `warmup` lets it grow from near zero over so many
    steps; `adam` and `adamw` take the place of another optimizer and keep its parameters, its groups and its schedule;
    `epsilon`, `beta2`, `momentum` and `weight-decay` set what their name says; `loss-scale` multiplies the loss before the
    backward pass and divides the gradients again, so that they fit into float16; `float32-copy` lets the optimizer step on
    a float32 copy of weights that are kept in a shorter format.

When it helps:
    Steps that overshoot, die or diverge (a rate below 2 / the largest curvature), steps that never arrive (a larger one,
    Adam), oscillation with heavy momentum, first steps of Adam that are thrown, gradients that float16 rounds to zero,
    updates that bfloat16 weights round away.

When it does not:
    A network that does not tell its inputs apart any more: no length of step repairs that, and what comes out of its first
    layers is noise. Adam makes up for gradients that are small, not for gradients that say nothing.

Cost:
    None to speak of; Adam keeps two numbers more for each weight, `float32-copy` one. A smaller rate takes more steps.

References:
    Cohen et al. 2021 (2 / lambda); Goyal et al. 2017 and Kalra and Barkeshli 2024 (warm-up); Kingma and Ba 2015 (Adam);
    Loshchilov and Hutter 2019 (AdamW); Wortsman et al. 2023 (beta2); Micikevicius et al. 2018 (loss scale, float32 copy).
"""

from __future__ import annotations

import functools
import gc
import re
import weakref
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.optim import LBFGS, Adam, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradiometer.probe import graph
from gradiometer.remedies.base import Anchor, CannotTreatError, Option, Patient, Remedy, Settings, Snippet, Stage, Symptoms
from gradiometer.types import Safety, Treatment

USUAL: Final = {
    "lr": 0.1,  # three to ten times lower is the usual advice
    "warmup": 100.0,  # steps
    "adam": 1e-3,  # Kingma and Ba 2015
    "adamw": 1e-3,
    "epsilon": 1e-6,  # ours: a hundred times torch's
    "beta2": 0.95,  # Wortsman et al. 2023
    "momentum": 0.9,
    "weight-decay": 0.0,
    "loss-scale": 65536.0,  # torch.amp.GradScaler
    "float32-copy": 0.0,
}
SCALE_GROWTH: Final = 2000
"""Steps without an overflow after which a loss scale is doubled (torch.amp.GradScaler)."""
LOWER: Final = 0.1
SLIGHTLY_LOWER: Final = 0.3
HIGHER: Final = 10.0
BEYOND: Final = 1.2
"""Learning rate times curvature along the step from which on it ends clearly beyond the bottom; 2 is where it diverges."""
LOWEST: Final = 0.01
"""A curvature along noisy steps is no ground for a rate more than a hundred times lower."""
HEAVY: Final = 0.95
"""Momentum that sums up more than twenty gradients."""
LONG_STEP: Final = -1.5
"""log10 of update / weight from which on a step can throw a unit where nothing reaches it any more (ours)."""
SHORT_FORMATS: Final = ("float16", "bfloat16")


# ---- what to try -----------------------------------------------------------------------------------------------------------


def plan(symptoms: Symptoms) -> tuple[Treatment, ...]:
    """By what was found, the root cause first."""
    changes: list[tuple[str, float]] = []
    for rule in symptoms.rules:
        changes += _ANSWERS[rule](symptoms) if rule in _ANSWERS else []
    return tuple(Treatment("optimizer", {"change": c, "value": v}) for c, v in dict.fromkeys(changes))[:3]


def _adaptive(symptoms: Symptoms) -> bool:
    return any("betas" in optimizer.get("options", {}) for optimizer in symptoms.trace.optimizers)


def _too_high(symptoms: Symptoms) -> list[tuple[str, float]]:
    ceiling = _ceiling(symptoms)
    return [("lr", ceiling or LOWER), ("lr", SLIGHTLY_LOWER if not ceiling else ceiling / 3), ("warmup", _warmup(symptoms))]


def _ceiling(symptoms: Symptoms) -> float:
    """The factor that brings the learning rate to half of 2 / curvature, measured along the steps; 0 if that is not known.

    The slope along a step after it over that before it is 1 - rate x curvature of a bowl.
    """
    overshoot = symptoms.trace.overshoot
    known = 1.0 - overshoot[np.isfinite(overshoot)]
    product = float(np.median(known[:5])) if known.size else 0.0
    return float(f"{max(LOWEST, 1.0 / product):.1g}") if product > BEYOND else 0.0


def _warmup(symptoms: Symptoms) -> float:
    return float(max(10, min(int(USUAL["warmup"]), symptoms.steps // 4)))


def _thrown(symptoms: Symptoms) -> list[tuple[str, float]]:
    """Units that died or saturate: by steps that were too long, or they were born so."""
    longest = symptoms.trace.longest_step
    return [("lr", LOWER)] if bool((longest[np.isfinite(longest)] > LONG_STEP).any()) else []


def _spikes(symptoms: Symptoms) -> list[tuple[str, float]]:
    moment = [("beta2", USUAL["beta2"])] if _adaptive(symptoms) else []
    return [*moment, ("lr", SLIGHTLY_LOWER), ("warmup", _warmup(symptoms))]


def _swings(symptoms: Symptoms) -> list[tuple[str, float]]:
    momenta = [float(o.get("options", {}).get("momentum", 0.0)) for o in symptoms.trace.optimizers]
    lighter = [("momentum", USUAL["momentum"])] if max(momenta, default=0.0) > HEAVY else []
    return [*lighter, ("lr", SLIGHTLY_LOWER), ("lr", LOWER)]


def _blind(symptoms: Symptoms) -> bool:
    return symptoms.has("input-blindness", "signal-collapse", "dead-output", "symmetric-initialization")


def _small(symptoms: Symptoms) -> list[tuple[str, float]]:
    """Gradients that are small in some layers: Adam divides their size out, if they say anything."""
    return [] if _adaptive(symptoms) or _blind(symptoms) else [("adam", USUAL["adam"])]


def _too_low(symptoms: Symptoms) -> list[tuple[str, float]]:
    return [] if _blind(symptoms) else [("lr", HIGHER), *_small(symptoms), ("lr", HIGHER**2)]


def _stale(symptoms: Symptoms) -> list[tuple[str, float]]:
    return [("beta2", USUAL["beta2"]), ("warmup", _warmup(symptoms)), ("lr", SLIGHTLY_LOWER)]


def _rounded(symptoms: Symptoms) -> list[tuple[str, float]]:
    trace = symptoms.trace
    if any(trace.sites[int(i)].dtype in SHORT_FORMATS and trace.sites[int(i)].trainable for i in trace.parameters):
        return [("float32-copy", 0.0), ("lr", HIGHER)]
    return [("loss-scale", USUAL["loss-scale"])]


_ANSWERS: Final[dict[str, Callable[[Symptoms], list[tuple[str, float]]]]] = {
    "learning-rate-too-high": _too_high,
    "divergence": _too_high,
    "nonfinite": _too_high,
    "skipped-steps": lambda _: [("lr", SLIGHTLY_LOWER), ("lr", LOWER)],
    "exploding-through-time": lambda _: [("lr", LOWER)],
    "exploding-gradient": lambda s: [*_small(s), ("lr", LOWER)],
    "loss-spike": _spikes,
    "oscillation": _swings,
    "attention-collapse": lambda s: [("warmup", _warmup(s)), ("lr", SLIGHTLY_LOWER)],
    "dead-units": _thrown,
    "dead-output": _thrown,
    "saturated-units": _thrown,
    "vanishing-gradient": _small,
    "learning-rate-too-low": _too_low,
    "plateau": _too_low,
    "clipping-always-on": lambda _: [("lr", HIGHER)],
    "stale-second-moment": _stale,
    "precision-underflow": _rounded,
}


# ---- doing it ----------------------------------------------------------------------------------------------------------------


def apply(patient: Patient, settings: Settings, sites: tuple[str, ...]) -> list[str]:
    """Change the patient's optimizers; a change that fits none of them is refused."""
    if sites:
        raise CannotTreatError("it acts on whole optimizers, not on places in the model")
    if not patient.optimizers:
        raise CannotTreatError("there is no optimizer yet")
    change, value = str(settings["change"]), float(settings["value"])
    value = USUAL[change] if value < 0.0 else value
    return _CHANGES[change](patient, value)


_own_rates: WeakKeyDictionary[Optimizer, list[tuple[dict[str, Any], Any]]] = WeakKeyDictionary()
"""Learning rates as the script and its schedules know them, of an optimizer that is stepping."""


def _put_back(optimizer: Optimizer, *_: Any) -> None:
    for group, own in _own_rates.pop(optimizer, ()):
        group["lr"] = own


_hooks: list[Any] = []


def _keep_own_rates() -> None:
    """Put the rates back after every step; before every step too, for the one before may have failed."""
    while _hooks:
        _hooks.pop().remove()
    _hooks.append(register_optimizer_step_pre_hook(_put_back))
    # anew each time, so after the hooks of all others: the probe's reads the rate that the step was taken with
    _hooks.append(register_optimizer_step_post_hook(_put_back))


def _multiply(patient: Patient, factor: Callable[[Optimizer, int], float]) -> None:
    """Take every step with the learning rate times a factor (of the optimizer and the number of the step).

    Only while the step is taken: so it works with any schedule, also with one that the script computes and sets itself.
    """
    taken: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    def multiply(optimizer: Optimizer) -> None:
        step = taken.get(optimizer, 0)
        taken[optimizer] = step + 1
        if optimizer not in _own_rates:
            _own_rates[optimizer] = [(group, group["lr"]) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor(optimizer, step)

    _keep_own_rates()
    patient.on_step.append(multiply)


def _only_for(optimizer: Optimizer, factor: float) -> Callable[[Optimizer, int], float]:
    reference = weakref.ref(optimizer)
    return lambda stepping, _: factor if stepping is reference() else 1.0


def _base_rate(group: dict[str, Any]) -> float:
    """The learning rate that a schedule, if there is one, refers to."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def _lr(patient: Patient, value: float) -> list[str]:
    if value == 0.0:
        raise CannotTreatError("a learning rate of zero trains nothing")
    _multiply(patient, lambda _o, _s: value)
    groups = [group for optimizer in patient.optimizers for group in optimizer.param_groups]
    rates = {_base_rate(group) for group in groups}
    if len(rates) == 1 and not any("max_lr" in group for group in groups):
        rate = rates.pop()
        return [f"The learning rate is {rate * value:.6g} instead of {rate:.6g}."]
    return [f"Every step is taken with {value:g} times the learning rate that is set."]


def _warm_up(patient: Patient, value: float) -> list[str]:
    steps = int(value)
    if steps < 2:
        raise CannotTreatError(f"a warm-up takes two steps at least, not {value:g}")
    _multiply(patient, lambda _, step: min(1.0, (step + 1) / steps))
    scheduled = any("initial_lr" in group for optimizer in patient.optimizers for group in optimizer.param_groups)
    more = ", on top of its schedule" if scheduled else ""
    return [f"The learning rate grows from near zero over the first {steps} steps{more}."]


def _adam(patient: Patient, value: float, kind: type[Adam] = Adam) -> list[str]:
    if value == 0.0:
        raise CannotTreatError("a learning rate of zero trains nothing")
    if all("betas" in optimizer.defaults for optimizer in patient.optimizers):
        raise CannotTreatError(f"{_kinds(patient)} divides by the size of its gradients already")
    changed: list[str] = []
    for optimizer in patient.optimizers:
        if "betas" in optimizer.defaults:
            continue
        was, rate = type(optimizer).__name__, next((_base_rate(g) for g in optimizer.param_groups if _base_rate(g)), 0.0)
        _become(optimizer, kind)
        if rate and rate != value:
            _multiply(patient, _only_for(optimizer, value / rate))
        decay = float(optimizer.param_groups[0].get("weight_decay", 0.0))
        changed.append(f"{kind.__name__} with learning rate {value:g} and weight decay {decay:g} instead of {was}.")
    return changed


def _become(optimizer: Optimizer, kind: type[Adam]) -> None:
    """Turn an optimizer object into one of another class: schedulers, scalers and the script hold on to the object."""
    if not type(optimizer).__module__.startswith("torch.optim") or isinstance(optimizer, LBFGS):
        raise CannotTreatError(f"{type(optimizer).__name__} cannot be turned into {kind.__name__}")
    shadow = optimizer.__dict__.get("step")
    if shadow is not None and not getattr(shadow, "_wrapped_by_lr_sched", False):
        raise CannotTreatError("the script has replaced the step of its optimizer")
    fresh = kind([torch.zeros(1, requires_grad=True)])  # also lets torch prepare the class for hooks
    known, new = set(optimizer.defaults), fresh.defaults
    for group in (optimizer.defaults, *optimizer.param_groups):
        for name in known - set(new):
            group.pop(name, None)
        for name, default in new.items():
            group.setdefault(name, default)
        group.update({name: new[name] for name in ("foreach", "fused", "capturable", "differentiable") if name in new})
        if "decoupled_weight_decay" in new:
            group["decoupled_weight_decay"] = new["decoupled_weight_decay"]
    optimizer.state.clear()
    optimizer.__dict__.pop("_step_supports_amp_scaling", None)  # a fused one's
    optimizer.__class__ = kind
    if shadow is not None:
        _step_that_schedulers_know(optimizer, kind)


def _step_that_schedulers_know(optimizer: Optimizer, kind: type[Adam]) -> None:
    """A scheduler has put a step of its own before that of the class (to warn where its order is wrong): the same anew."""
    reference = weakref.ref(optimizer)
    original = kind.step

    @functools.wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        alive: Any = reference()
        alive._opt_called = True
        return original(alive, *args, **kwargs)

    marked: Any = step
    marked._wrapped_by_lr_sched = True
    optimizer.__dict__["step"] = step


def _kinds(patient: Patient) -> str:
    return " and ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in patient.optimizers))


def _set(patient: Patient, key: str, value: float, of: Callable[[dict[str, Any]], float | None], what: str) -> list[str]:
    """Set an entry of all parameter groups that have it."""
    changed: list[str] = []
    for optimizer in patient.optimizers:
        before = {v for group in optimizer.param_groups if (v := of(group)) is not None}
        if not before or before == {value}:
            continue
        for group in optimizer.param_groups:
            if key == "beta1" and "betas" in group:
                group["betas"] = (value, group["betas"][1])
            elif key == "beta2" and "betas" in group:
                group["betas"] = (group["betas"][0], value)
            elif key in group:
                group[key] = value
        first = optimizer.param_groups[0].get("betas")
        pair = f" (betas {float(first[0]):g}, {float(first[1]):g})" if first is not None and "beta" in key else ""
        was = " and ".join(f"{v:g}" for v in sorted(before))
        changed.append(f"{what} of {type(optimizer).__name__} is {value:g} instead of {was}{pair}.")
    if not changed:
        raise CannotTreatError(f"{_kinds(patient)} has no {what.removeprefix('The ')} other than {value:g}")
    return changed


def _epsilon(patient: Patient, value: float) -> list[str]:
    return _set(patient, "eps", value, lambda group: group.get("eps"), "The epsilon")


def _beta2(patient: Patient, value: float) -> list[str]:
    if not 0.0 <= value < 1.0:
        raise CannotTreatError(f"beta2 lies between 0 and 1, not at {value:g}")
    return _set(patient, "beta2", value, lambda g: float(g["betas"][1]) if "betas" in g else None, "The beta2")


def _momentum(patient: Patient, value: float) -> list[str]:
    if not 0.0 <= value < 1.0:
        raise CannotTreatError(f"momentum lies between 0 and 1, not at {value:g}")
    if any("momentum" in group for optimizer in patient.optimizers for group in optimizer.param_groups):
        return _set(patient, "momentum", value, lambda group: group.get("momentum"), "The momentum")
    return _set(patient, "beta1", value, lambda g: float(g["betas"][0]) if "betas" in g else None, "The momentum")


def _weight_decay(patient: Patient, value: float) -> list[str]:
    return _set(patient, "weight_decay", value, lambda group: group.get("weight_decay"), "The weight decay")


# ---- precision ---------------------------------------------------------------------------------------------------------------


class _LossScale:
    """Multiplies the gradient of the loss and divides that of each weight as it arrives, so that nobody else notices.

    Clipping, accumulation and closures of the script see gradients of their true size. Overflows skip the step. There is
    one for the process, as there is one backward pass for all models; a loss that no treated model has a part in is left
    alone.
    """

    def __init__(self) -> None:
        self.scale = 1.0
        self._now = 1.0
        self._good = 0
        self._known: WeakSet[Optimizer] = WeakSet()
        self._hooked: dict[int, weakref.ref[Tensor]] = {}
        self._treated: dict[int, weakref.ref[Tensor]] = {}
        original = torch.autograd.backward

        @functools.wraps(original)
        def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
            # inside another backward pass (a checkpoint) the gradient that arrives is multiplied already
            if self._now != 1.0 or grad_tensors is not None or not self._concerns(tensors):
                return original(tensors, grad_tensors, *args, **kwargs)
            self._now = min(self.scale, torch.finfo(tensors.dtype).max / 2.0)
            try:
                return original(tensors, torch.full_like(tensors, self._now), *args, **kwargs)
            finally:
                self._now = 1.0

        torch.autograd.backward = backward

    def take_in(self, optimizer: Optimizer) -> None:
        """Its parameters are treated."""
        if optimizer not in self._known:
            self._known.add(optimizer)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.requires_grad:
                        self._treated[id(parameter)] = weakref.ref(parameter)
                        self._hook(parameter)

    def _concerns(self, loss: Any) -> bool:
        """Whether a treated parameter has a part in this loss; whatever else has gets its gradient divided too."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return False
        nodes, leaves = graph.walk([loss])
        if len(nodes) >= graph.MAX_NODES or not any(_is_in(leaf, self._treated) for leaf in leaves):
            return False
        for leaf in leaves:
            self._hook(leaf)
        return True

    def _hook(self, leaf: Tensor) -> None:
        if not _is_in(leaf, self._hooked):
            self._hooked[id(leaf)] = weakref.ref(leaf)
            leaf.register_hook(self._divided)

    def _divided(self, gradient: Tensor) -> Tensor:
        return gradient / self._now if self._now != 1.0 else gradient

    def __call__(self, optimizer: Optimizer) -> None:
        """Before a step: leave it out if something has overflown."""
        held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if all(bool(torch.isfinite(p.grad).all()) for p in held):
            self._good += 1
            if self._good % SCALE_GROWTH == 0:
                self.scale *= 2.0
            return
        self._good, self.scale = 0, self.scale / 2.0
        for parameter in held:
            parameter.grad = None


def _is_in(tensor: Tensor, known: dict[int, weakref.ref[Tensor]]) -> bool:
    """By identity: a comparison of tensors is one of their elements."""
    found = known.get(id(tensor))
    return found is not None and found() is tensor


@functools.cache
def _loss_scale() -> _LossScale:
    return _LossScale()


def _scale_loss(patient: Patient, value: float) -> list[str]:
    if value <= 1.0:
        raise CannotTreatError(f"{value:g} is no loss scale")
    trained = [p for optimizer in patient.optimizers for group in optimizer.param_groups for p in group["params"]]
    if any(p.dtype == torch.float16 for p in trained):
        raise CannotTreatError("its weights are kept in float16, which their gradients would not fit in after unscaling either")
    if any(p.dtype == torch.bfloat16 for p in trained):
        raise CannotTreatError("its weights are kept in bfloat16, whose gradients do not get too small")
    if _scalers():
        raise CannotTreatError("the script scales its loss itself")
    scale = _loss_scale()
    scale.scale = value
    for optimizer in patient.optimizers:
        scale.take_in(optimizer)
    patient.on_step.append(scale)
    return [f"The loss is multiplied by {value:g} for the backward pass, and the gradients are divided by it."]


def _scalers() -> bool:
    """Whether a gradient scaler that is enabled is alive."""
    # type(o), never isinstance: a proxy's __class__ may run the user's code
    return any(issubclass(type(o), torch.amp.GradScaler) and o.is_enabled() for o in gc.get_objects())


class _Copies:
    """Float32 copies of weights, which stand in for them while the optimizer steps."""

    def __init__(self) -> None:
        self._copies: weakref.WeakKeyDictionary[Optimizer, dict[int, tuple[Tensor, Tensor]]] = WeakKeyDictionary()

    def before(self, optimizer: Optimizer) -> None:
        """Let the optimizer see the copies."""
        copies = self._copies.setdefault(optimizer, {})
        for group in optimizer.param_groups:
            for n, weight in enumerate(group["params"]):
                if weight.dtype not in (torch.float16, torch.bfloat16):
                    continue
                known = copies.get(id(weight))
                if known is None or not torch.equal(known[1].to(weight.dtype), weight):  # somebody has set the weight
                    known = copies[id(weight)] = (weight, weight.detach().float().requires_grad_(True))
                copy = known[1]
                copy.grad = weight.grad.float() if weight.grad is not None else None
                group["params"][n] = copy
                if weight in optimizer.state:
                    optimizer.state[copy] = optimizer.state.pop(weight)

    def after(self, optimizer: Optimizer) -> None:
        """Round the copies to the weights."""
        originals = {id(copy): weight for weight, copy in self._copies.get(optimizer, {}).values()}
        for group in optimizer.param_groups:
            for n, copy in enumerate(group["params"]):
                weight = originals.get(id(copy))
                if weight is None:
                    continue
                weight.copy_(copy)
                copy.grad = None
                group["params"][n] = weight
                if copy in optimizer.state:
                    optimizer.state[weight] = optimizer.state.pop(copy)


def _float32_copy(patient: Patient, _value: float) -> list[str]:
    short = (torch.float16, torch.bfloat16)
    weights = [p for o in patient.optimizers for g in o.param_groups for p in g["params"] if p.dtype in short]
    if not weights:
        raise CannotTreatError("no weights are kept in a format shorter than float32")
    if any(isinstance(optimizer, LBFGS) for optimizer in patient.optimizers):
        raise CannotTreatError("LBFGS sets the weights itself during its step")
    copies = _Copies()
    patient.on_step.append(copies.before)
    patient.after_step.insert(0, copies.after)
    return [f"The optimizer steps on float32 copies of {len(weights)} weights."]


_CHANGES: Final[dict[str, Callable[[Patient, float], list[str]]]] = {
    "lr": _lr,
    "warmup": _warm_up,
    "adam": _adam,
    "adamw": functools.partial(_adam, kind=AdamW),
    "epsilon": _epsilon,
    "beta2": _beta2,
    "momentum": _momentum,
    "weight-decay": _weight_decay,
    "loss-scale": _scale_loss,
    "float32-copy": _float32_copy,
}


# ---- as code -----------------------------------------------------------------------------------------------------------------


def edit(settings: Settings, changes: tuple[str, ...]) -> Snippet:
    """An argument of the optimizer's constructor where that says it all, else lines after it."""
    change, value = str(settings["change"]), float(settings["value"])
    value = USUAL[change] if value < 0.0 else value
    text = " ".join(changes)
    if change == "lr":
        return _lr_edit(value, text)
    if change == "warmup":
        return _warmup_edit(int(value), text)
    if change in ("adam", "adamw"):
        decay = re.search(r"weight decay (\S+) instead", text)
        more = f", weight_decay={decay.group(1)}" if decay and float(decay.group(1)) else ""
        kind = "Adam" if change == "adam" else "AdamW"
        more = more or (", weight_decay=0.0" if change == "adamw" else "")
        line = f"{{optimizer}} = torch.optim.{kind}({{model}}.parameters(), lr={value:g}{more})"
        return Snippet(Anchor.AFTER_OPTIMIZER, (line,), ("import torch",))
    if change == "loss-scale":
        return Snippet(
            Anchor.AFTER_OPTIMIZER,
            (f"scaler = torch.amp.GradScaler(next({{model}}.parameters()).device.type, init_scale={value:g})",),
            ("import torch",),
            (
                ("loss.backward()", "scaler.scale(loss).backward()"),
                ("optimizer.step()", "scaler.step(optimizer); scaler.update()"),
            ),
        )
    if change == "float32-copy":
        return Snippet(Anchor.AFTER_OPTIMIZER, _COPY_LINES, ("import torch",))
    return Snippet(Anchor.AFTER_OPTIMIZER, arguments=(_argument(change, value, text),))


def _argument(change: str, value: float, text: str) -> tuple[str, str]:
    pair = re.search(r"\(betas (\S+), (\S+)\)", text)
    if pair is not None:
        return "betas", f"({pair.group(1)}, {pair.group(2)})"
    return {"epsilon": "eps", "weight-decay": "weight_decay"}.get(change, change), f"{value:g}"


def _lr_edit(value: float, text: str) -> Snippet:
    single = re.search(r"learning rate is (\S+) instead", text)
    if single is not None:
        return Snippet(Anchor.AFTER_OPTIMIZER, arguments=(("lr", single.group(1)),))
    return Snippet(Anchor.AFTER_OPTIMIZER, _rate_lines(f"{value:g}"))


def _rate_lines(factor: str) -> tuple[str, ...]:
    return (
        "def other_rate(optimizer, *_):",
        "    for group in optimizer.param_groups:",
        '        group["own_lr"] = group["lr"]',
        f'        group["lr"] = group["lr"] * {factor}',
        "",
        "def own_rate(optimizer, *_):",
        "    for group in optimizer.param_groups:",
        '        group["lr"] = group.pop("own_lr")',
        "",
        "{optimizer}.register_step_pre_hook(other_rate)",
        "{optimizer}.register_step_post_hook(own_rate)",
    )


def _warmup_edit(steps: int, text: str) -> Snippet:
    if "schedule" in text:
        lines = ("from itertools import count", "", "taken = count(1)", *_rate_lines(f"min(1.0, step / {steps})"))
        step = lines.index("def other_rate(optimizer, *_):") + 1
        return Snippet(Anchor.AFTER_OPTIMIZER, (*lines[1:step], "    step = next(taken)", *lines[step:]), lines[:1])
    scheduler = f"torch.optim.lr_scheduler.LinearLR({{optimizer}}, start_factor=1 / {steps}, total_iters={steps - 1})"
    hook = "{optimizer}.register_step_post_hook(lambda *_: warmup.step())"
    return Snippet(Anchor.AFTER_OPTIMIZER, (f"warmup = {scheduler}", hook), ("import torch",))


_COPY_LINES: Final = (
    "# the model keeps its short format; the optimizer steps on these",
    "copies = {{p: p.detach().float().requires_grad_(True) for p in {model}.parameters()}}",
    "for group in {optimizer}.param_groups:",
    '    group["params"] = [copies[p] for p in group["params"]]',
    "",
    "def take_gradients(*_):",
    "    for p, c in copies.items():",
    "        c.grad = None if p.grad is None else p.grad.float()",
    "",
    "@torch.no_grad()",
    "def round_weights(*_):",
    "    for p, c in copies.items():",
    "        p.copy_(c)",
    "        p.grad = None",
    "",
    "{optimizer}.register_step_pre_hook(take_gradients)",
    "{optimizer}.register_step_post_hook(round_weights)",
)


REMEDY: Final = Remedy(
    name="optimizer",
    safety=Safety.CHANGES_TRAINING,
    stage=Stage.OPTIMIZER,
    options=(
        Option("change", "lr", "what is changed", tuple(USUAL)),
        Option("value", -1.0, "a factor (lr), steps (warmup), a rate (adam), else the value itself; below zero: the usual one"),
    ),
    plan=plan,
    apply=apply,
    edit=edit,
    text=__doc__ or "",
)
