"""Initialise: weights and biases drawn anew, by a scheme that suits the network.

What it does:
    Sets the numbers that training starts from; model, optimizer and data stay what they are. `xavier`, `he`: Glorot's and
    He's normal weights. `orthogonal`: orthogonal matrices (in the middle of a kernel), with the gain of the activation
    (and the biases of `critical` for GELU and SiLU, whose signals would run away without).
    `critical`: weights and biases at the edge of chaos of the layer's own activation; the branches of a residual network
    without normalisation also times 1 / sqrt(their number). `centred-sigmoid`: deviation 4 / sqrt(inputs per unit) and
    biases of minus half the row sums, which take off the 0.5 that all sigmoids have in common; softplus likewise. (`critical`
    and `orthogonal` centre them, too.) `mirrored`: [[q, -q], [-q, q]], which makes a ReLU network linear at the start.
    `lsuv`: orthogonal, then each layer scaled by what it shows on the first batch; before a sigmoid the mean of each unit is
    taken off as well. `fixup`, `skipinit`, `depth-scaled`: branches of a residual network start at zero, or at
    1 / sqrt(their number). `gpt`: deviation 0.02, the last layer of a branch less. `recurrent`: orthogonal recurrent
    weights, gates that keep the state, and quiet inputs where there are no gates. `default`: PyTorch's own, for weights that
    somebody scaled. Biases become zero where a scheme does not say otherwise.

    What is before a layer decides its gain; a first layer, whose input is data, gets that of the activation behind it
    (`critical` and `orthogonal` look at the size of the data). An output layer is left as it is (but by `default` and
    `fixup`), unless its weights are far out of order: not zero, and their root mean square times the square root of the
    inputs per unit is below 0.05 or above 3 (1 is usual, PyTorch's default is 0.58); then it gets Xavier's. Frozen weights
    are left alone.

When it helps:
    Gradients or signals that shrink or grow from layer to layer or from step to step of time, units that are saturated or
    dead from the start, units that are copies of each other, inputs drowned in what sigmoids have in common.

When it does not:
    Layers between normalisations, whose size does not matter. Weights that were trained before: it throws them away.
    What goes wrong later (learning rate, precision), and features of very different size in the data, which a few steps
    bring back. `xavier` and `he` do not save a deep sigmoid network: its gradient shrinks at any size of weights as
    long as the 0.5 is there.

Cost:
    None per step. Once, two or three forward passes on the first batch.

References:
    Glorot & Bengio 2010; He et al. 2015; Saxe et al. 2013; Xiao et al. 2018 (delta-orthogonal); Poole et al. 2016 and
    Schoenholz et al. 2017 (critical); Balduzzi et al. 2017 (mirrored); Mishkin & Matas 2016 (LSUV); Zhang, Dauphin & Ma 2019
    (Fixup); De & Smith 2020 (SkipInit); Bachlechner et al. 2021 (ReZero); Radford et al. 2019 (GPT-2); Le, Jaitly & Hinton
    2015; Gers et al. 2000, Jozefowicz et al. 2015 and Tallec & Ollivier 2018 (forget gate's bias).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import nn
from torch.nn.utils import parametrize

from gradiometer.remedies import residual_init, schemes
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
)
from gradiometer.remedies.drawing import attention_weights, can_set
from gradiometer.remedies.initialise_plan import plan
from gradiometer.remedies.layers import Layer, Reading, fan_in, read
from gradiometer.remedies.orders import Order, follow, lines
from gradiometer.remedies.recipes import Recipe, recipe
from gradiometer.types import Safety

SCHEMES: Final = (
    "xavier",
    "he",
    "orthogonal",
    "critical",
    "centred-sigmoid",
    "mirrored",
    "lsuv",
    "fixup",
    "skipinit",
    "depth-scaled",
    "gpt",
    "recurrent",
    "default",
)
BY_HAND: Final = ("xavier", "he", "orthogonal", "critical", "centred-sigmoid", "mirrored", "default")
"""Schemes that matrices get, too, which somebody multiplies by without a layer of torch's."""
HEAD_IN_ORDER: Final = (0.05, 3.0)
"""Ours: sigma_w of an output layer that is left as it is; below, its gradient is too small to reach the others soon, above,
a softmax starts saturated."""
FORGET_BIAS: Final = 1.0
"""Jozefowicz et al. 2015. Over T steps a gate keeps a third of a state or more if its bias is ln(T - 1), which is taken where
it is more (Tallec & Ollivier 2018)."""
QUIET: Final = 2.0
"""Ours: over T steps the input weights of a plain cell are multiplied by 2 / T where that is less than one, so that what comes
in on the way does not drive the state out of the range in which its slope is one (Le et al. 2015 take 0.001)."""


def apply(patient: Patient, settings: Settings, sites: tuple[str, ...]) -> list[str]:
    """Draw the weights anew; see the module's text."""
    scheme, gain = str(settings["scheme"]), float(settings["gain"])
    if not (math.isfinite(gain) and gain > 0.0):
        raise CannotTreatError(f"a gain must be a positive number, not {gain:g}")
    reading = read(patient)
    chosen = _trainable(reading, sites, by_hand=scheme in BY_HAND)
    orders = _orders(patient, scheme, gain, reading, chosen, sites)
    if not orders:
        raise CannotTreatError(_nothing(scheme, chosen, sites))
    if scheme not in ("default", "fixup", "recurrent"):
        orders += [(layer.name, recipe("xavier", 1.0)) for layer in chosen if layer.head and _out_of_order(layer)]
    changes = follow(patient.model, orders, reading.by_hand)
    if scheme == "lsuv":
        schemes.unit_variance(patient, [o for o in orders if o[1].kind.endswith("unit-variance")])
    return changes


def edit(settings: Settings, changes: tuple[str, ...]) -> Snippet:
    """The same in plain PyTorch, layer by layer."""
    made = lines(changes)
    imports = ["import torch", "from torch import nn"]
    if any("watched.append" in line for line in made):
        made = ("watched = []", *made, *_WATCH)
    return Snippet(Anchor.BEFORE_OPTIMIZER, made, tuple(imports))


_WATCH: Final = (
    "hooks, done = [], set()",
    "for layer, deviation, centred in watched:",
    "    def unit_variance(layer, inputs, output, deviation=deviation, centred=centred):",
    "        if layer in done or not output.std() > 0:",
    "            return None",
    "        done.add(layer)",
    "        if centred and layer.bias is not None:",
    "            unit = output.dim() + 1 - layer.weight.dim()",
    "            mean = output.mean([d for d in range(output.dim()) if d != unit], keepdim=True)",
    "            layer.bias.sub_(mean.flatten())",
    "            output = output - mean",
    "        scale = output.std() / deviation",
    "        layer.weight.div_(scale)",
    "        if layer.bias is not None:",
    "            layer.bias.div_(scale)",
    "        return output / scale",
    "    hooks.append(layer.register_forward_hook(unit_variance))",
    "batch = next(iter({loader}))",
    "with torch.no_grad():",
    "    {model}(batch[0] if isinstance(batch, (tuple, list)) else batch)",
    "for hook in hooks:",
    "    hook.remove()",
)


# ---- which layers get what ---------------------------------------------------------------------------------------------


def _trainable(reading: Reading, sites: tuple[str, ...], *, by_hand: bool) -> list[Layer]:
    """The layers to be treated: trained, and each weight once. An output layer that is asked for by name is none."""
    found: list[Layer] = []
    seen: set[int] = set()
    candidates = reading.within(sites)
    if by_hand:
        matrices = [one.layer for one in reading.by_hand if one.layer.module.weight.any()]  # a gate may be meant to be shut
        candidates += [m for m in matrices if _wanted(m.name, sites) or _wanted(m.name.rpartition(".")[0], sites)]
    for layer in candidates:
        weights = [p for p in layer.module.parameters() if p.dim() > 1]
        if can_set(layer.module) and not any(id(w) in seen for w in weights):
            seen.update(id(w) for w in weights)
            found.append(replace(layer, head=layer.head and layer.name not in sites))
    return found


def _orders(
    patient: Patient, scheme: str, gain: float, reading: Reading, chosen: Sequence[Layer], sites: tuple[str, ...]
) -> list[Order]:
    model = patient.model
    if scheme == "default":
        return _default(model, chosen, sites)
    if scheme == "recurrent":
        return _recurrent(patient, chosen, sites)
    if scheme == "fixup":
        return residual_init.fixup(model, reading, chosen)
    if scheme == "skipinit":
        return residual_init.closed(model, reading, chosen)
    if scheme == "depth-scaled":
        return residual_init.depth_scaled(model, reading, chosen, gain)
    if scheme == "gpt":
        return residual_init.gpt(model, reading, chosen, gain)
    hidden = [layer for layer in chosen if not layer.head]
    if scheme == "lsuv":
        if patient.inputs is None:
            raise CannotTreatError("lsuv looks at the first batch, which is not known yet")
        last = gain / math.sqrt(max(reading.depth, 1))
        hidden = [layer for layer in hidden if not parametrize.is_parametrized(layer.module)]  # they scale themselves
        return [(layer.name, _unit_variance(layer, last if layer.branch_last else gain)) for layer in hidden]
    sizes = schemes.input_sizes(patient, reading) if scheme in ("critical", "orthogonal") else {}
    orders: list[Order] = [
        (layer.name, _recipe(scheme, layer, gain, len(hidden), sizes.get(layer.name, 1.0))) for layer in hidden
    ]
    if scheme == "xavier":
        orders += [(name, Recipe("attention")) for name in _attentions(model, sites)]
    if scheme == "critical" and reading.branches and hidden:
        plain = {name for branch in reading.branches if not branch.normed for name in branch.layers}
        if inside := [layer for layer in hidden if layer.name in plain]:
            orders += residual_init.depth_scaled(model, reading, inside, 1.0)
    return orders


def _recipe(scheme: str, layer: Layer, gain: float, depth: int, size: float) -> Recipe:
    if scheme == "xavier":
        return schemes.xavier(layer, gain)
    if scheme == "he":
        return schemes.he(layer, gain)
    if scheme == "orthogonal":
        return schemes.orthogonal(layer, gain, depth, size)
    if scheme == "mirrored":
        return schemes.mirrored(layer, gain)
    if scheme == "centred-sigmoid":
        return schemes.centred(layer, gain)
    return schemes.critical(layer, gain, size)


def _unit_variance(layer: Layer, target: float) -> Recipe:
    centred = layer.activation in schemes.CENTRED
    return recipe("centred-unit-variance" if centred else "unit-variance", target)


def _default(model: nn.Module, chosen: Sequence[Layer], sites: tuple[str, ...]) -> list[Order]:
    orders: list[Order] = [(layer.name, Recipe("reset")) for layer in chosen]
    known = {layer.name for layer in chosen}
    for name, module in model.named_modules():
        if name in known or not name or not _wanted(name, sites):
            continue
        if isinstance(module, (nn.Bilinear, nn.RNNBase, nn.RNNCellBase)) and _trains(module):
            orders.append((name, Recipe("reset")))
    return orders + [(name, Recipe("attention")) for name in _attentions(model, sites)]


def _recurrent(patient: Patient, chosen: Sequence[Layer], sites: tuple[str, ...]) -> list[Order]:
    steps = schemes.sequence_lengths(patient)
    orders: list[Order] = []
    for name, module in patient.model.named_modules():
        if not name or not _wanted(name, sites) or not isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or not _trains(module):
            continue
        length = steps.get(name, 1)
        if isinstance(module, (nn.RNN, nn.RNNCell)):
            orders.append((name, recipe("recurrent-plain", min(1.0, QUIET / length))))
        else:
            orders.append((name, recipe("recurrent-gated", max(FORGET_BIAS, round(math.log(max(length - 1, 1)), 2)))))
    for layer in chosen:
        if layer.recurrent and isinstance(layer.module, nn.Linear):
            behind = replace(layer, before=layer.before if layer.before != "linear" else layer.activation)
            orders.append((layer.name, schemes.orthogonal(behind, 1.0, layer.calls, 1.0)))
    return orders


def _attentions(model: nn.Module, sites: tuple[str, ...]) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if name
        and isinstance(module, nn.MultiheadAttention)
        and _wanted(name, sites)
        and all(w.requires_grad for w in attention_weights(module))
    ]


def _wanted(name: str, sites: tuple[str, ...]) -> bool:
    return not sites or any(fnmatchcase(name, site) for site in sites)


def _trains(module: nn.Module) -> bool:
    return all(p.requires_grad for p in module.parameters())


def _out_of_order(layer: Layer) -> bool:
    """Whether the weights of an output layer are so small or large that it must not be left as it is."""
    assert isinstance(layer.module, WEIGHTED)
    with torch.no_grad():
        sigma = float(layer.module.weight.double().square().mean().sqrt()) * math.sqrt(fan_in(layer.module))
    low, high = HEAD_IN_ORDER
    return sigma != 0.0 and not low <= sigma <= high


def _nothing(scheme: str, chosen: Sequence[Layer], sites: tuple[str, ...]) -> str:
    where = f" that {' or '.join(sites)} names" if sites else ""
    if scheme == "recurrent":
        return f"there is no recurrent layer{where} that is trained"
    if chosen:
        return f"there is only an output layer{where}, which is left as it is"
    return f"there is no dense layer or convolution{where} that is trained"


REMEDY: Final = Remedy(
    name="initialise",
    safety=Safety.SAME_FUNCTION,
    stage=Stage.INITIALISE,
    options=(
        Option("scheme", "critical", "how the weights are drawn", SCHEMES),
        Option("gain", 1.0, "factor on top of what the scheme says"),
    ),
    plan=plan,
    apply=apply,
    edit=edit,
    text=__doc__ or "",
    needs_batch=True,
)
