"""How the numbers of one layer are set: what the recipes of `recipes` do. No remedy.

Every function takes a module and the numbers of its recipe, and is called without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradiometer.remedies.base import WEIGHTED, CannotTreatError
from gradiometer.remedies.layers import Weighted

Numbers: TypeAlias = tuple[float, ...]

NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def weighted(module: nn.Module) -> Weighted:
    """The module as one with weights.

    Raises:
        CannotTreatError: it has none that could be set.
    """
    if not isinstance(module, WEIGHTED):
        raise CannotTreatError(f"{type(module).__name__} has no weights that can be set")
    return module


def can_set(module: nn.Module) -> bool:
    """Whether the weights of a layer are trained, and are a parameter (or made from one that can be found back)."""
    if not isinstance(module, WEIGHTED):
        return False
    if parametrize.is_parametrized(module, "weight"):
        return any(p.requires_grad for p in module.parameters())
    return any(name == "weight" and p.requires_grad for name, p in module.named_parameters(recurse=False))


def set_weight(module: Weighted, value: Tensor) -> None:
    """Give a layer these weights, through its parametrization if it has one."""
    if parametrize.is_parametrized(module, "weight"):
        module.weight = value  # pyright: ignore[reportAttributeAccessIssue]  # goes back through the parametrization
    else:
        module.weight.copy_(value)


def draw(module: nn.Module, fill: Callable[[Tensor], Any]) -> Weighted:
    """Draw the weights of a layer anew; ``fill`` gets an empty tensor of their shape (float32 at least: QR needs it)."""
    layer = weighted(module)
    old = layer.weight
    dtype = torch.float32 if old.dtype in (torch.float16, torch.bfloat16) else old.dtype
    fresh = torch.empty(old.shape, dtype=dtype, device=old.device)
    fill(fresh)
    set_weight(layer, fresh)
    return layer


def set_bias(layer: Weighted, deviation: float = 0.0) -> None:
    """Normal biases of this deviation."""
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=deviation) if deviation else nn.init.zeros_(layer.bias)


def xavier(module: nn.Module, n: Numbers) -> None:
    """Glorot & Bengio 2010; numbers: gain."""
    set_bias(draw(module, lambda w: nn.init.xavier_normal_(w, gain=n[0])))


def he(module: nn.Module, _n: Numbers) -> None:
    """He et al. 2015."""
    set_bias(draw(module, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")))


def he_leaky(module: nn.Module, n: Numbers) -> None:
    """The same for a leaky ReLU; numbers: its slope."""
    set_bias(draw(module, lambda w: nn.init.kaiming_normal_(w, a=n[0], nonlinearity="leaky_relu")))


def normal(module: nn.Module, n: Numbers) -> None:
    """Normal weights; numbers: sigma_w, and sigma_b if the biases are not zero."""
    set_bias(draw(module, lambda w: nn.init.normal_(w, std=n[0] / w[0].numel() ** 0.5)), *n[1:])


def deviation(module: nn.Module, n: Numbers) -> None:
    """Normal weights; numbers: their deviation, and that of the biases if they are not zero."""
    set_bias(draw(module, lambda w: nn.init.normal_(w, std=n[0])), *n[1:])


def _orthogonal_fill(w: Tensor, gain: float) -> None:
    nn.init.orthogonal_(w, gain=gain * max(1.0, w.shape[0] / w[0].numel()) ** 0.5)


def orthogonal(module: nn.Module, n: Numbers) -> None:
    """Orthogonal weights (rms kept where there are more units than inputs); numbers: gain."""
    set_bias(draw(module, lambda w: _orthogonal_fill(w, n[0])))


def orthogonal_biased(module: nn.Module, n: Numbers) -> None:
    """The same with normal biases; numbers: gain, deviation of the biases."""
    set_bias(draw(module, lambda w: _orthogonal_fill(w, n[0])), n[1])


def orthogonal_start(module: nn.Module, _n: Numbers) -> None:
    """Orthogonal weights with gain 1, which will be scaled."""
    orthogonal(module, (1.0,))


def _delta_fill(w: Tensor, gain: float, groups: int) -> None:
    nn.init.zeros_(w)
    for block in w.chunk(groups):
        _orthogonal_fill(block[(..., *(size // 2 for size in block.shape[2:]))], gain)


def delta(module: nn.Module, n: Numbers) -> None:
    """Orthogonal in the middle of the kernel, zero elsewhere; numbers: gain."""
    groups = module.groups if isinstance(module, CONVOLUTIONS) else 1
    set_bias(draw(module, lambda w: _delta_fill(w, n[0], groups)))


def centre_taps(w: Tensor) -> Tensor:
    """A view of a weight matrix, or of the middle of a kernel."""
    return w[(..., *(size // 2 for size in w.shape[2:]))]


def mirrored(module: nn.Module, n: Numbers) -> None:
    """[[q, -q], [-q, q]]; numbers: gain."""

    def fill(w: Tensor) -> None:
        nn.init.zeros_(w)
        taps = centre_taps(w)
        out, inputs = taps.shape[0] // 2, taps.shape[1] // 2
        q = nn.init.orthogonal_(torch.empty(out, inputs, device=w.device), gain=n[0] * max(1.0, out / inputs) ** 0.5)
        taps.copy_(torch.cat([torch.cat([q, -q], 1), torch.cat([-q, q], 1)]))

    set_bias(draw(module, fill))


def mirrored_first(module: nn.Module, n: Numbers) -> None:
    """Normal weights, the second half of the units minus the first; numbers: sigma_w."""

    def fill(w: Tensor) -> None:
        half = w.shape[0] // 2
        nn.init.normal_(w, std=n[0] / w[0].numel() ** 0.5)
        w[half:] = -w[:half]

    set_bias(draw(module, fill))


def _centre(layer: Weighted, shift: float, deviation: float = 0.0) -> None:
    w = layer.weight
    sums = w.flatten(1).sum(1)
    if layer.bias is not None:
        set_bias(layer, deviation)
        layer.bias.sub_(shift * sums)
    else:  # rows that sum to zero take no notice of what all inputs have in common
        set_weight(layer, w - (sums / w[0].numel()).view(-1, *[1] * (w.dim() - 1)))


def centred(module: nn.Module, n: Numbers) -> None:
    """Normal weights and biases that take off what the inputs have in common; numbers: sigma_w, that value, sigma_b if any."""
    _centre(draw(module, lambda w: nn.init.normal_(w, std=n[0] / w[0].numel() ** 0.5)), *n[1:])


def centred_orthogonal(module: nn.Module, n: Numbers) -> None:
    """The same with orthogonal weights; numbers: gain, that value."""
    _centre(draw(module, lambda w: _orthogonal_fill(w, n[0])), n[1])


def scaled(module: nn.Module, n: Numbers) -> None:
    """Weights and biases times a number."""
    layer = weighted(module)
    set_weight(layer, layer.weight * n[0])
    if layer.bias is not None:
        layer.bias.mul_(n[0])


def scaled_norm(module: nn.Module, n: Numbers) -> None:
    """Gains and biases of a normalisation times a number."""
    for p in module.parameters(recurse=False):
        p.mul_(n[0])


def zero(module: nn.Module, _n: Numbers) -> None:
    """Weights and biases zero."""
    set_bias(draw(module, nn.init.zeros_))


def zero_norm(module: nn.Module, _n: Numbers) -> None:
    """Gains and biases of a normalisation zero."""
    for p in module.parameters(recurse=False):
        p.zero_()


def attention(module: nn.Module, _n: Numbers) -> None:
    """Xavier for queries, keys and values each."""
    assert isinstance(module, nn.MultiheadAttention)
    for w in attention_weights(module):
        for block in w.chunk(3) if w is module.in_proj_weight else (w,):
            nn.init.xavier_uniform_(block)
    _zero_projection_biases(module)


def _zero_projection_biases(module: nn.MultiheadAttention) -> None:
    for name, p in module.named_parameters(recurse=False):
        if name == "in_proj_bias":
            nn.init.zeros_(p)


def attention_normal(module: nn.Module, n: Numbers) -> None:
    """Normal queries, keys and values; numbers: deviation."""
    assert isinstance(module, nn.MultiheadAttention)
    for w in attention_weights(module):
        nn.init.normal_(w, std=n[0])
    _zero_projection_biases(module)


def attention_weights(module: nn.MultiheadAttention) -> list[nn.Parameter]:
    """The projections of an attention's queries, keys and values; one matrix for all three, or three."""
    return [p for n, p in module.named_parameters(recurse=False) if n.endswith("proj_weight")]


def embedding(module: nn.Module, n: Numbers) -> None:
    """Normal vectors; numbers: deviation."""
    assert isinstance(module, nn.Embedding)
    nn.init.normal_(module.weight, std=n[0])
    if module.padding_idx is not None:
        module.weight[module.padding_idx].zero_()


def plain(module: nn.Module, n: Numbers) -> None:
    """A recurrent layer without gates; numbers: gain of the input weights."""
    assert isinstance(module, (nn.RNN, nn.RNNCell))
    for name, p in module.named_parameters():
        if name.startswith("weight_hh"):
            nn.init.eye_(p) if module.nonlinearity == "relu" else nn.init.orthogonal_(p)
        elif name.startswith("weight_ih"):
            nn.init.xavier_uniform_(p, gain=n[0])
        elif name.startswith("bias"):
            nn.init.zeros_(p)


def gated(module: nn.Module, n: Numbers) -> None:
    """An LSTM or GRU; numbers: bias of the gate that keeps the state."""
    assert isinstance(module, (nn.RNNBase, nn.RNNCellBase))
    size = module.hidden_size
    for name, p in module.named_parameters():
        if name.startswith("weight"):
            for gate in p.split(size):
                nn.init.orthogonal_(gate) if name.startswith("weight_hh") else nn.init.xavier_uniform_(gate)
        else:
            nn.init.zeros_(p)
            if name.startswith("bias_ih"):
                p[size : 2 * size].fill_(n[0])


def reset(module: nn.Module, _n: Numbers) -> None:
    """PyTorch's own."""
    if isinstance(module, (*WEIGHTED, nn.Bilinear, nn.RNNBase, nn.RNNCellBase)):
        module.reset_parameters()
