"""Schemes that set a layer's weights by what is before and behind it: which recipe each layer gets. No remedy."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gradiometer.errors import GradiometerError
from gradiometer.remedies.base import Patient
from gradiometer.remedies.drawing import CONVOLUTIONS, TRANSPOSED, set_weight
from gradiometer.remedies.layers import Layer, Reading
from gradiometer.remedies.orders import Order
from gradiometer.remedies.recipes import Recipe, deviation, recipe
from gradiometer.remedies.tape import without_drawing
from gradiometer.theory.activations import activation
from gradiometer.theory.criticality import backward_gain, critical_initialisation
from gradiometer.theory.finite_width import slope_kurtosis
from gradiometer.theory.meanfield import MeanField, second_moment, slope_moment

CENTRED: Final = {
    "sigmoid": (4.0, 0.5, "sigmoid_centred"),
    "hardsigmoid": (6.0, 0.5, ""),
    "softplus": (2.0, math.log(2.0), ""),
    "logsigmoid": (2.0, -math.log(2.0), ""),
}
"""Activations that are not zero at zero: 1 / slope there, the value there, and theory's name of what is left without it.

Taken off by the biases, that value no longer drowns what differs between inputs; the critical sigma_w is then 1 / slope."""
LINES: Final = ("relu", "leaky_relu", "linear", "")
SPREAD: Final = 1.0
"""Variance of the squared singular values of the whole Jacobian that orthogonal weights may have: as far above the edge of
chaos the signal is kept as that allows (Pennington et al. 2017)."""
INPUT_IN_ORDER: Final = (0.3, 3.0)
"""Ours: root mean square of data that no first layer needs to make up for; normalised data have 1, pixels in [0, 1] about
a half."""
CENTRED_START: Final = 2.0
"""Ours: deviation of the first pre-activation before a centred sigmoid, which bends at about that."""


def bent_by(layer: Layer) -> tuple[str, float]:
    """The activation (and its slope) that a layer's weights have to make up for: the one its input comes from.

    The first layer, whose input is data, gets the size that the activation behind it asks of all the others.
    """
    if layer.before not in ("linear", ""):
        return layer.before, layer.before_slope
    if layer.first or (not layer.before and layer.activation):
        return layer.activation, layer.slope
    return "linear", 0.0


def rectifier_gain(name: str, slope: float) -> float:
    """He's gain of an activation made of two straight lines."""
    return 1.0 if name in ("linear", "") else math.sqrt(2.0 / (1.0 + slope * slope))


def xavier(layer: Layer, gain: float) -> Recipe:
    """Glorot & Bengio 2010, with a gain of its own."""
    return recipe("xavier", gain)


def he(layer: Layer, gain: float) -> Recipe:
    """He et al. 2015, for the slope of the leaky ReLU before the layer (or behind the first one)."""
    _, slope = bent_by(layer)
    if gain != 1.0 or isinstance(layer.module, TRANSPOSED):
        return deviation(layer.module, gain * math.sqrt(2.0 / (1.0 + slope * slope)))
    return recipe("he-leaky", slope) if slope else recipe("he")


def centred(layer: Layer, gain: float) -> Recipe:
    """Weights of deviation 4 / sqrt(fan_in) and biases of minus half the row sums behind a sigmoid; likewise its relatives."""
    name, _ = bent_by(layer)
    if name not in CENTRED:
        return critical(layer, gain, 1.0)
    sigma, value, _ = CENTRED[name]
    if layer.first:
        return deviation(layer.module, gain * CENTRED_START)
    return recipe("centred", gain * sigma, value)


def critical(layer: Layer, gain: float, size: float) -> Recipe:
    """The edge of chaos of the layer's own activation.

    Args:
        layer: the layer.
        gain: on top of the critical sigma_w.
        size: root mean square of what a first layer takes in.
    """
    name, slope = bent_by(layer)
    if layer.recurrent:
        return orthogonal(layer, gain, 1, size)
    if name in LINES:
        sigma = rectifier_gain(name, slope) * gain / _out_of_order(layer, size)
        return he(layer, gain) if name != "linear" and sigma == rectifier_gain(name, slope) else deviation(layer.module, sigma)
    value = 0.0
    if name in CENTRED:
        sigma, value, plain = CENTRED[name]
        point = _critical(plain) if plain else (sigma, 0.0, CENTRED_START**2)
    else:
        point = _critical(name)
    sigma, bias, q = point
    if layer.normed:
        bias = 0.0  # taken off again, or in the way
    if layer.first:
        # data have no fixed point: what matters is that the next layers find theirs
        return deviation(layer.module, gain * math.sqrt(max(q - bias**2, 0.1 * q)) / size, bias)
    if value and not isinstance(layer.module, TRANSPOSED):
        biased = bias and layer.module.bias is not None
        return recipe("centred-biased", gain * sigma, value, bias) if biased else recipe("centred", gain * sigma, value)
    return deviation(layer.module, gain * sigma, bias)


def orthogonal(layer: Layer, gain: float, depth: int, size: float) -> Recipe:
    """Orthogonal weights (Saxe et al. 2013), of convolutions in the middle of the kernel (Xiao et al. 2018).

    Args:
        layer: the layer.
        gain: on top of the activation's own.
        depth: how many layers get it.
        size: root mean square of what a first layer takes in.
    """
    name, slope = bent_by(layer)
    module = layer.module
    biased = module.bias is not None
    if name not in (*LINES, *CENTRED) and _runs_away(name):
        sigma, bias, _ = _critical(name)
        if isinstance(module, nn.Linear) and biased and not layer.first:
            return recipe("orthogonal-biased", gain * sigma, bias)
        return critical(layer, gain, size)
    sigma, _, plain = CENTRED.get(name, (0.0, 0.0, name))
    own = rectifier_gain(name, slope) if name in LINES else _isometric(plain, depth) if plain else sigma
    own = own * gain / _out_of_order(layer, size)
    if isinstance(module, TRANSPOSED):
        return deviation(module, own)
    if name in CENTRED and not layer.first and not isinstance(module, CONVOLUTIONS):
        return recipe("centred-orthogonal", own, CENTRED[name][1])
    if name in CENTRED and not layer.first:
        return recipe("centred", own, CENTRED[name][1])
    whole = isinstance(module, CONVOLUTIONS) and all(s == 1 for s in module.stride) and all(k % 2 for k in module.kernel_size)
    if whole and isinstance(module, CONVOLUTIONS) and (layer.width >= module.in_channels or not layer.first):
        return recipe("delta-orthogonal", own)
    return recipe("orthogonal", own)


def mirrored(layer: Layer, gain: float) -> Recipe:
    """Weights that make a ReLU network linear at the start (Balduzzi et al. 2017), where the widths are even."""
    name, slope = bent_by(layer)
    behind = layer.activation in ("relu", "leaky_relu")
    if name not in ("relu", "leaky_relu") or isinstance(layer.module, TRANSPOSED) or layer.width % 2:
        return he(layer, gain)
    if layer.before not in ("relu", "leaky_relu"):
        return recipe("mirrored-first", gain) if behind else he(layer, gain)
    inputs = layer.module.weight.shape[1]
    grouped = isinstance(layer.module, CONVOLUTIONS) and layer.module.groups > 1
    return he(layer, gain) if inputs % 2 or grouped else recipe("mirrored", gain / (1.0 + slope))


def _out_of_order(layer: Layer, size: float) -> float:
    """What the data of a first layer are divided by: their size if it is far from one."""
    low, high = INPUT_IN_ORDER
    return size if layer.first and not low <= size <= high else 1.0


@cache
def _critical(name: str) -> tuple[float, float, float]:
    """(sigma_w, sigma_b, q) of an activation: on the edge of chaos where signals stay on it, else a gradient kept at q = 1."""
    try:
        point = critical_initialisation(name)
    except GradiometerError:
        return backward_gain(name), 0.0, 1.0
    return point.sigma_w, point.sigma_b, point.q


@cache
def _runs_away(name: str) -> bool:
    """Whether signals leave q = 1 where the gradient is kept there: GELU and SiLU, which biases hold elsewhere."""
    act = activation(name)
    return second_moment(act, 1e4) > 10.0 and MeanField(act, backward_gain(act)).chi_parallel(1.0) > 1.0


@cache
def _isometric(name: str, depth: int) -> float:
    """Gain of orthogonal weights between which an activation stands: chi = 1, and a Jacobian as even as `SPREAD` allows.

    For a bounded activation the length map settles at a small variance q a little above the edge, sigma_w^2 = q / E phi^2;
    the larger q, the larger the signal and the more uneven the Jacobian. For the others chi = 1 at q = 1, where they stay.
    """
    act = activation(name)
    if second_moment(act, 1e4) > 10.0:
        return backward_gain(act)
    low, high = math.log(1e-6), 0.0
    for _ in range(40):
        middle = (low + high) / 2.0
        uneven = depth * (slope_kurtosis(act, math.exp(middle)) - 1.0) > SPREAD
        low, high = (low, middle) if uneven else (middle, high)
    q = math.exp(low)
    return math.sqrt(q / second_moment(act, q)) if slope_moment(act, q) > 0.0 else 1.0


# ---- what data say -----------------------------------------------------------------------------------------------------


def input_sizes(patient: Patient, reading: Reading) -> dict[str, float]:
    """Root mean square of what each first layer takes in on the first batch; 1 for what is not known."""
    sizes: dict[str, float] = {}
    if patient.inputs is None:
        return sizes

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if name not in sizes and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
                size = float(args[0].detach().double().square().mean().sqrt())
                sizes[name] = size if math.isfinite(size) and size > 0.0 else 1.0

        return hook

    handles = [layer.module.register_forward_pre_hook(watch(layer.name)) for layer in reading.layers if layer.first]
    try:
        with without_drawing():
            patient.run()
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def sequence_lengths(patient: Patient) -> dict[str, int]:
    """Steps of time that each recurrent module is run over in the first pass; empty where that is not known."""
    steps: dict[str, int] = {}
    if patient.inputs is None:
        return steps

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            length = 1  # a cell is called for every step
            if isinstance(module, nn.RNNBase) and args:
                data = args[0]
                if isinstance(data, PackedSequence):
                    length = len(data.batch_sizes)
                elif isinstance(data, Tensor) and data.dim() > 1:
                    length = data.shape[1 if module.batch_first and data.dim() == 3 else 0]
            steps[name] = steps.get(name, 0) + length

        return hook

    named = patient.model.named_modules()
    recurrent = [(name, m) for name, m in named if name and isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in recurrent]
    try:
        with without_drawing():
            patient.run()
    finally:
        for handle in handles:
            handle.remove()
    return steps


def unit_variance(patient: Patient, orders: list[Order]) -> None:
    """Scale layers one after the other, in one pass, until their outputs have the deviation that their recipe says (LSUV).

    An output is linear in the weights, so that each is scaled exactly by what it shows, and what is passed on is the scaled
    output. What varies by nothing, or is not finite, is left as it is.
    """
    modules = dict(patient.model.named_modules())
    done: set[nn.Module] = set()

    def watch(what: Recipe) -> Any:
        def hook(module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            if module in done:
                return None
            assert isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED))
            scale = float(output.double().std())
            if not (math.isfinite(scale) and scale > 0.0):
                return None
            done.add(module)
            if what.kind == "centred-unit-variance" and module.bias is not None:
                unit = output.dim() + 1 - module.weight.dim()
                mean = output.mean([d for d in range(output.dim()) if d != unit], keepdim=True)
                module.bias.sub_(mean.flatten())
                output = output - mean
            scale = float(output.double().std()) / what.numbers[0]
            set_weight(module, module.weight / scale)
            if module.bias is not None:
                module.bias.div_(scale)
            return output / scale

        return hook

    handles = [modules[name].register_forward_hook(watch(what)) for name, what in orders]
    try:
        with torch.no_grad():
            patient.run()
    finally:
        for handle in handles:
            handle.remove()
