"""Pre-train: hidden layers learn to reproduce what comes in, one after the other, before the training begins.

What it does:
    Greedy layer-wise pre-training. Each hidden layer is trained as the encoder of an autoencoder, on what the layers
    before it, already pre-trained, make of the training's own batches: code = phi(W x + b), answer = s W^T code + c, with tied
    weights, squared error against x (each feature with mean 0 and variance 1 over the data), Adam. With `corruption` a
    share of the inputs of each layer is set to zero and the whole input asked for (denoising). What is learned is written
    into the model's own weights; answers, decoder and Adam's state are thrown away, and the output layer is left as it is.

When it helps:
    Deep plain networks of sigmoid or tanh layers, for which it was invented: it starts every layer where its units answer to
    what differs between inputs. It needs no labels.

When it does not:
    Networks with ReLU, normalisation or skip connections, which train without it. It works on plain stacks of dense layers
    only. Weights that are right already are thrown away. One batch says little: it is better with several.

Cost:
    `steps` small steps for every hidden layer, once; none during the training.

References:
    Hinton, Osindero & Teh 2006; Bengio, Lamblin, Popovici & Larochelle 2007; Vincent et al. 2008 (denoising).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gradiometer.remedies.base import Anchor, CannotTreatError, Option, Patient, Remedy, Settings, Snippet, Stage, Symptoms
from gradiometer.remedies.layers import Layer, Reading, read
from gradiometer.remedies.tape import without_drawing
from gradiometer.types import Place, Role, Safety, Treatment

STEPS: Final = 100.0
"""Ours: steps of Adam for each layer."""
RATE: Final = 0.01
"""Ours: Adam's learning rate; features have variance one."""
EXAMPLES: Final = 64
"""Ours: examples in a step."""
CORRUPTION: Final = 0.2
"""Vincent et al. 2008 take 0.1 to 0.3."""
FLAT: Final = 1e-6
"""Deviation of a feature below which it is a constant, and asked for by nobody."""
LEAST_HIDDEN: Final = 2

_FUNCTIONS: Final[dict[str, tuple[Callable[[Tensor], Tensor], str]]] = {
    "linear": (lambda x: x, "lambda x: x"),
    "relu": (torch.relu, "torch.relu"),
    "relu6": (F.relu6, "nn.functional.relu6"),
    "sigmoid": (torch.sigmoid, "torch.sigmoid"),
    "hardsigmoid": (F.hardsigmoid, "nn.functional.hardsigmoid"),
    "logsigmoid": (F.logsigmoid, "nn.functional.logsigmoid"),
    "tanh": (torch.tanh, "torch.tanh"),
    "hardtanh": (F.hardtanh, "nn.functional.hardtanh"),
    "softsign": (F.softsign, "nn.functional.softsign"),
    "softplus": (F.softplus, "nn.functional.softplus"),
    "gelu": (F.gelu, "nn.functional.gelu"),
    "silu": (F.silu, "nn.functional.silu"),
    "mish": (F.mish, "nn.functional.mish"),
    "elu": (F.elu, "nn.functional.elu"),
    "selu": (F.selu, "nn.functional.selu"),
    "celu": (F.celu, "nn.functional.celu"),
    "erf": (torch.erf, "torch.erf"),
    "sin": (torch.sin, "torch.sin"),
}
"""Activations that a layer can be pre-trained with."""
_SATURATING: Final = ("sigmoid", "tanh", "hardtanh", "hardsigmoid", "softsign", "erf", "softplus", "logsigmoid")
_ANSWERED: Final = (
    "vanishing-gradient",
    "input-blindness",
    "signal-collapse",
    "poor-initialization",
    "saturated-units",
    "plateau",
)


def plan(symptoms: Symptoms) -> tuple[Treatment, ...]:
    """Plain and denoising, for deep networks of dense layers and saturating activations."""
    if not symptoms.findings or symptoms.findings[0].rule not in _ANSWERED:
        return ()
    sites = [s for s in symptoms.trace.sites if s.place is Place.OUTPUT]
    dense = [s for s in sites if s.role is Role.LINEAR]
    kinds = {s.kind.lower().removesuffix("()") for s in sites if s.role is Role.ACTIVATION}
    others = (Role.NORM, Role.RECURRENT, Role.ATTENTION, Role.EMBEDDING)
    plain = all("conv" not in s.kind.lower() for s in dense) and not any(s.role in others for s in sites)
    if len(dense) <= LEAST_HIDDEN or not plain or not kinds.intersection(_SATURATING):
        return ()
    return (Treatment("pretrain"), Treatment("pretrain", {"corruption": CORRUPTION}))


def apply(patient: Patient, settings: Settings, sites: tuple[str, ...]) -> list[str]:
    """Pre-train the hidden layers; see the module's text."""
    steps, corruption = int(settings["steps"]), float(settings["corruption"])
    if steps < 1:
        raise CannotTreatError(f"there must be at least one step, not {steps}")
    if not 0.0 <= corruption < 1.0:
        raise CannotTreatError(f"the share of inputs that are taken away must be in [0, 1), not {corruption:g}")
    if patient.inputs is None:
        raise CannotTreatError("pre-training needs data, and the first batch is not known yet")
    reading = read(patient)
    chosen = _stack(reading, patient.model)
    wanted = {layer.name for layer in reading.within(sites)}
    changes: list[str] = []
    for layer in chosen:
        if layer.name in wanted:
            before, after = _fit(layer, _inputs(patient, layer), steps, corruption)
            changes.append(_sentence(layer, 1 + len(patient.batches), before, after, corruption))
    if not changes:
        raise CannotTreatError("no hidden layer of it has that name")
    return changes


def _sentence(layer: Layer, batches: int, before: float, after: float, corruption: float) -> str:
    units = f"leaky_relu({layer.slope:g})" if layer.activation == "leaky_relu" else layer.activation or "linear"
    how = f"a denoising autoencoder ({100 * corruption:.3g} % of its inputs taken away)" if corruption else "an autoencoder"
    on = "1 batch" if batches == 1 else f"{batches} batches"
    return (
        f"`{layer.name}`: pre-trained on {on} as the encoder of {how} with {units} units; it reproduces "
        f"{100 * max(0.0, 1.0 - after):.0f} % of the variance of its inputs ({100 * max(0.0, 1.0 - before):.0f} % before)."
    )


# ---- which layers ------------------------------------------------------------------------------------------------------


def _stack(reading: Reading, model: nn.Module) -> list[Layer]:
    """The hidden layers of a plain stack.

    Raises:
        CannotTreatError: it is none.
    """
    layers = [layer for layer in reading.layers if layer.calls]
    hidden = [layer for layer in layers if not layer.head]
    strange = [m for m in model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Embedding))]
    plain = (
        not strange
        and not reading.branches
        and all(isinstance(layer.module, nn.Linear) and layer.calls == 1 and not layer.normed for layer in layers)
        and sum(layer.first for layer in layers) == 1
        and sum(layer.head for layer in layers) == 1
        and all(b.fan_in == a.width for a, b in pairwise(layers))
    )
    if not plain:
        raise CannotTreatError("layer-wise pre-training is for plain stacks of dense layers, and this network is none")
    if len(hidden) < LEAST_HIDDEN:
        raise CannotTreatError(
            f"layer-wise pre-training needs at least {LEAST_HIDDEN} hidden layers, and there are {len(hidden)}"
        )
    for layer in hidden:
        if layer.activation not in _FUNCTIONS and layer.activation != "leaky_relu":
            raise CannotTreatError(
                f"a layer behind which {layer.activation or 'something unknown'} stands cannot be pre-trained"
            )
        if parametrize.is_parametrized(layer.module) or not all(p.requires_grad for p in layer.module.parameters()):
            raise CannotTreatError(f"the weights of `{layer.name}` are frozen or computed from others")
    return hidden


def _inputs(patient: Patient, layer: Layer) -> Tensor:
    """What a layer takes in on all batches that are known, shape (examples, features)."""
    taken: list[Tensor] = []

    def watch(_module: nn.Module, args: tuple[Any, ...]) -> None:
        taken.append(args[0].detach().reshape(-1, args[0].shape[-1]))

    handle = layer.module.register_forward_pre_hook(watch)
    first = patient.inputs
    try:
        with without_drawing():
            for batch in [first, *patient.batches]:
                patient.inputs = batch
                patient.run()
    finally:
        handle.remove()
        patient.inputs = first
    data = torch.cat(taken).float()
    if not bool(torch.isfinite(data).all()):
        raise CannotTreatError(f"what comes into `{layer.name}` is not finite")
    return data


# ---- an autoencoder ----------------------------------------------------------------------------------------------------


def _function(layer: Layer) -> Callable[[Tensor], Tensor]:
    if layer.activation == "leaky_relu":
        return lambda x: F.leaky_relu(x, layer.slope)
    return _FUNCTIONS[layer.activation or "linear"][0]


def _fit(layer: Layer, data: Tensor, steps: int, corruption: float) -> tuple[float, float]:
    """Train one layer; the share of the variance of its inputs that is not reproduced, before and afterwards."""
    function, linear = _function(layer), layer.module
    mean, deviation = data.mean(0), data.std(0, correction=0)
    target = torch.where(deviation > FLAT, (data - mean) / deviation.clamp_min(FLAT), torch.zeros_like(data))
    with torch.enable_grad():
        weight = linear.weight.detach().float().clone().requires_grad_(True)
        bias = torch.zeros(layer.width, device=data.device) if linear.bias is None else linear.bias.detach().float().clone()
        bias.requires_grad_(linear.bias is not None)
        scale = torch.ones((), device=data.device, requires_grad=True)
        centre = torch.zeros_like(mean).requires_grad_(True)
        trained = [weight, scale, centre, *([bias] if bias.requires_grad else [])]
        adam = torch.optim.Adam(trained, lr=RATE)

        def lost(x: Tensor, y: Tensor) -> Tensor:
            return (scale * (function(F.linear(x, weight, bias)) @ weight) + centre - y).square().mean()

        whole = max(float(target.square().mean()), 1e-12)
        before = min(float(lost(data, target).detach()) / whole, 1.0)
        for _ in range(steps):
            rows = torch.randint(len(data), (min(EXAMPLES, len(data)),), device=data.device)
            x = data[rows]
            if corruption:
                x = x * (torch.rand_like(x) >= corruption)
            loss = lost(x, target[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
        after = float(lost(data, target).detach()) / whole
    if not math.isfinite(after):
        raise CannotTreatError(f"`{layer.name}` could not be pre-trained: its error was no longer finite")
    with torch.no_grad():
        linear.weight.copy_(weight)
        if linear.bias is not None:
            linear.bias.copy_(bias)
    return before, after


# ---- as code -----------------------------------------------------------------------------------------------------------


_SENTENCE: Final = re.compile(r"`([^`]*)`: pre-trained on (\d+) batch.* with (\w+)(?:\(([-+.\de]+)\))? units; .*")


def edit(settings: Settings, changes: tuple[str, ...]) -> Snippet:
    """The same in plain PyTorch, on the first batches of the user's loader."""
    known = [match for change in changes if (match := _SENTENCE.fullmatch(change))]
    batches = max((int(match[2]) for match in known), default=1)
    corruption = float(settings["corruption"])
    layers = [f'    ("{match[1]}", {_code(match[3], match[4])}),' for match in known]
    mask = (f"        x = x * (torch.rand_like(x) >= {corruption:g})",) if corruption else ()
    return Snippet(
        Anchor.BEFORE_OPTIMIZER,
        (
            "def pretrain(layer, activation, data):",
            "    mean, deviation = data.mean(0), data.std(0, correction=0)",
            f"    target = torch.where(deviation > {FLAT:g}, (data - mean) / deviation.clamp_min({FLAT:g}), 0.0)",
            "    scale = torch.ones((), device=data.device, requires_grad=True)",
            "    centre = torch.zeros_like(mean).requires_grad_(True)",
            f"    adam = torch.optim.Adam([*layer.parameters(), scale, centre], lr={RATE:g})",
            f"    for _ in range({int(settings['steps'])}):",
            f"        rows = torch.randint(len(data), (min({EXAMPLES}, len(data)),), device=data.device)",
            "        x = data[rows]",
            *mask,
            "        answer = scale * (activation(layer(x)) @ layer.weight) + centre",
            "        loss = (answer - target[rows]).square().mean()",
            "        adam.zero_grad()",
            "        loss.backward()",
            "        adam.step()",
            "    layer.zero_grad()",
            "",
            "for name, activation in (",
            *layers,
            "):",
            "    layer, taken = {model}.get_submodule(name), []",
            "    hook = layer.register_forward_pre_hook(lambda _, args: taken.append(args[0].reshape(-1, args[0].shape[-1])))",
            "    with torch.no_grad():",
            f"        for batch in itertools.islice({{loader}}, {batches}):",
            "            {model}(batch[0] if isinstance(batch, (tuple, list)) else batch)",
            "    hook.remove()",
            "    pretrain(layer, activation, torch.cat(taken))",
        ),
        ("import itertools", "import torch", "from torch import nn"),
    )


def _code(name: str, slope: str | None) -> str:
    if slope is not None:
        return f"lambda x: nn.functional.leaky_relu(x, {slope})"
    return _FUNCTIONS[name][1]


REMEDY: Final = Remedy(
    name="pretrain",
    safety=Safety.SAME_FUNCTION,
    stage=Stage.PRETRAIN,
    options=(
        Option("steps", STEPS, "steps of Adam for each layer"),
        Option("corruption", 0.0, "share of its inputs that a layer has to do without (denoising)"),
    ),
    plan=plan,
    apply=apply,
    edit=edit,
    text=__doc__ or "",
    needs_batch=True,
)
