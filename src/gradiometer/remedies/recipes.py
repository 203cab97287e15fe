"""What can be done to the numbers of one layer, in three forms: done, said in words, and written as code. No remedy.

The words hold all that the code needs, so that an edit can be made from what `apply` said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from gradiometer.remedies import drawing
from gradiometer.remedies.drawing import TRANSPOSED, Numbers
from gradiometer.remedies.layers import Weighted, fan_in

DIGITS: Final = 6
"""Significant digits of a number in a recipe: it is rounded before it is used, so that words and code say what was done."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One thing to do to a layer.

    Attributes:
        kind: name of a row of `KINDS`.
        numbers: what its words and code have in braces.
    """

    kind: str
    numbers: Numbers = ()

    @property
    def words(self) -> str:
        """A phrase that says it."""
        return _ROWS[self.kind].words.format(*map(_text, self.numbers))

    @property
    def code(self) -> tuple[str, ...]:
        """Lines that do it to ``layer``, to be run without a graph."""
        return tuple(line.format(*map(_text, self.numbers)) for line in _ROWS[self.kind].code)

    def run(self, module: nn.Module) -> None:
        """Do it."""
        with torch.no_grad():
            _ROWS[self.kind].run(module, self.numbers)


def recipe(kind: str, *numbers: float) -> Recipe:
    """A recipe whose numbers are rounded to what its words will say."""
    return Recipe(kind, tuple(float(_text(x)) for x in numbers))


def _text(x: float) -> str:
    return f"{x:.{DIGITS}g}"


# ---- saying ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of `KINDS`.

    Attributes:
        name: of the kind.
        words: a phrase, with a brace for each number.
        code: lines that do it to ``layer``, the same.
        run: does it to a module.
    """

    name: str
    words: str
    code: tuple[str, ...]
    run: Callable[[nn.Module, Numbers], None]


_ZERO_BIAS: Final = ("if layer.bias is not None:", "    nn.init.zeros_(layer.bias)")
_NORMAL_BIAS: Final = ("if layer.bias is not None:", "    nn.init.normal_(layer.bias, std={1})")
_SUMS: Final = ("sums = layer.weight.flatten(1).sum(1)", "if layer.bias is not None:")
_NO_BIAS: Final = (
    "else:",
    "    layer.weight.sub_((sums / layer.weight[0].numel()).view(-1, *[1] * (layer.weight.dim() - 1)))",
)
_WIDER: Final = "max(1, layer.weight.shape[0] / layer.weight[0].numel()) ** 0.5"

KINDS: Final[tuple[Kind, ...]] = (
    Kind(
        "xavier",
        "Xavier initialisation (gain {0}, biases zero)",
        ("nn.init.xavier_normal_(layer.weight, gain={0})", *_ZERO_BIAS),
        drawing.xavier,
    ),
    Kind(
        "he",
        "He initialisation (biases zero)",
        ('nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")', *_ZERO_BIAS),
        drawing.he,
    ),
    Kind(
        "he-leaky",
        "He initialisation for a slope of {0} below zero (biases zero)",
        ('nn.init.kaiming_normal_(layer.weight, a={0}, nonlinearity="leaky_relu")', *_ZERO_BIAS),
        drawing.he_leaky,
    ),
    Kind(
        "normal",
        "normal weights of deviation {0} / sqrt(inputs per unit), biases zero",
        ("nn.init.normal_(layer.weight, std={0} / layer.weight[0].numel() ** 0.5)", *_ZERO_BIAS),
        drawing.normal,
    ),
    Kind(
        "normal-biased",
        "normal weights of deviation {0} / sqrt(inputs per unit), biases of deviation {1}",
        ("nn.init.normal_(layer.weight, std={0} / layer.weight[0].numel() ** 0.5)", *_NORMAL_BIAS),
        drawing.normal,
    ),
    Kind(
        "deviation",
        "normal weights of deviation {0}, biases zero",
        ("nn.init.normal_(layer.weight, std={0})", *_ZERO_BIAS),
        drawing.deviation,
    ),
    Kind(
        "deviation-biased",
        "normal weights of deviation {0}, biases of deviation {1}",
        ("nn.init.normal_(layer.weight, std={0})", *_NORMAL_BIAS),
        drawing.deviation,
    ),
    Kind(
        "orthogonal",
        "orthogonal weights (gain {0}, biases zero)",
        (f"nn.init.orthogonal_(layer.weight, gain={{0}} * {_WIDER})", *_ZERO_BIAS),
        drawing.orthogonal,
    ),
    Kind(
        "orthogonal-biased",
        "orthogonal weights (gain {0}), biases of deviation {1}",
        (f"nn.init.orthogonal_(layer.weight, gain={{0}} * {_WIDER})", *_NORMAL_BIAS),
        drawing.orthogonal_biased,
    ),
    Kind(
        "delta-orthogonal",
        "kernels that are orthogonal in the middle and zero elsewhere (gain {0}, biases zero)",
        (
            "nn.init.zeros_(layer.weight)",
            "for block in layer.weight.chunk(layer.groups):",
            "    taps = block[(..., *(size // 2 for size in layer.kernel_size))]",
            "    nn.init.orthogonal_(taps, gain={0} * max(1, taps.shape[0] / taps.shape[1]) ** 0.5)",
            *_ZERO_BIAS,
        ),
        drawing.delta,
    ),
    Kind(
        "mirrored",
        "mirrored orthogonal weights [[q, -q], [-q, q]] (gain {0}, biases zero)",
        (
            "nn.init.zeros_(layer.weight)",
            "taps = layer.weight[(..., *(size // 2 for size in layer.weight.shape[2:]))]",
            "out, inputs = taps.shape[0] // 2, taps.shape[1] // 2",
            "q = nn.init.orthogonal_(torch.empty(out, inputs), gain={0} * max(1, out / inputs) ** 0.5).to(taps)",
            "taps.copy_(torch.cat([torch.cat([q, -q], 1), torch.cat([-q, q], 1)]))",
            *_ZERO_BIAS,
        ),
        drawing.mirrored,
    ),
    Kind(
        "mirrored-first",
        "normal weights of deviation {0} / sqrt(inputs per unit), the second half of the units minus the first (biases zero)",
        (
            "nn.init.normal_(layer.weight, std={0} / layer.weight[0].numel() ** 0.5)",
            "half = layer.weight.shape[0] // 2",
            "layer.weight[half:] = -layer.weight[:half]",
            *_ZERO_BIAS,
        ),
        drawing.mirrored_first,
    ),
    Kind(
        "centred",
        "normal weights of deviation {0} / sqrt(inputs per unit), biases -{1} times the sum of the row (zero without a bias)",
        (
            "nn.init.normal_(layer.weight, std={0} / layer.weight[0].numel() ** 0.5)",
            *_SUMS,
            "    layer.bias.copy_(-{1} * sums)",
            *_NO_BIAS,
        ),
        drawing.centred,
    ),
    Kind(
        "centred-biased",
        "normal weights of deviation {0} / sqrt(inputs per unit), biases of deviation {2} around -{1} times the sum of the row",
        (
            "nn.init.normal_(layer.weight, std={0} / layer.weight[0].numel() ** 0.5)",
            *_SUMS,
            "    nn.init.normal_(layer.bias, std={2}).sub_({1} * sums)",
            *_NO_BIAS,
        ),
        drawing.centred,
    ),
    Kind(
        "centred-orthogonal",
        "orthogonal weights (gain {0}), biases -{1} times the sum of the row (zero without a bias)",
        (
            f"nn.init.orthogonal_(layer.weight, gain={{0}} * {_WIDER})",
            *_SUMS,
            "    layer.bias.copy_(-{1} * sums)",
            *_NO_BIAS,
        ),
        drawing.centred_orthogonal,
    ),
    Kind(
        "scaled",
        "weights and biases times {0}",
        ("layer.weight.mul_({0})", "if layer.bias is not None:", "    layer.bias.mul_({0})"),
        drawing.scaled,
    ),
    Kind(
        "scaled-norm",
        "gains and biases of the normalisation times {0}",
        ("for p in layer.parameters():", "    p.mul_({0})"),
        drawing.scaled_norm,
    ),
    Kind("zero", "weights and biases zero", ("nn.init.zeros_(layer.weight)", *_ZERO_BIAS), drawing.zero),
    Kind(
        "zero-norm",
        "gains and biases of the normalisation zero",
        ("for p in layer.parameters():", "    nn.init.zeros_(p)"),
        drawing.zero_norm,
    ),
    Kind(
        "attention",
        "Xavier initialisation of queries, keys and values each (biases zero)",
        (
            "for w in (p for n, p in layer.named_parameters(recurse=False) if n.endswith('proj_weight')):",
            "    for block in w.chunk(3) if w is layer.in_proj_weight else (w,):",
            "        nn.init.xavier_uniform_(block)",
            "if layer.in_proj_bias is not None:",
            "    nn.init.zeros_(layer.in_proj_bias)",
        ),
        drawing.attention,
    ),
    Kind(
        "attention-normal",
        "normal queries, keys and values of deviation {0} (biases zero)",
        (
            "for w in (p for n, p in layer.named_parameters(recurse=False) if n.endswith('proj_weight')):",
            "    nn.init.normal_(w, std={0})",
            "if layer.in_proj_bias is not None:",
            "    nn.init.zeros_(layer.in_proj_bias)",
        ),
        drawing.attention_normal,
    ),
    Kind(
        "embedding",
        "normal vectors of deviation {0}",
        (
            "nn.init.normal_(layer.weight, std={0})",
            "if layer.padding_idx is not None:",
            "    layer.weight[layer.padding_idx].zero_()",
        ),
        drawing.embedding,
    ),
    Kind(
        "recurrent-plain",
        "orthogonal recurrent weights (the identity for ReLU), Xavier input weights (gain {0}), biases zero",
        (
            "for key, p in layer.named_parameters():",
            "    if key.startswith('weight_hh'):",
            "        nn.init.eye_(p) if layer.nonlinearity == 'relu' else nn.init.orthogonal_(p)",
            "    elif key.startswith('weight_ih'):",
            "        nn.init.xavier_uniform_(p, gain={0})",
            "    else:",
            "        nn.init.zeros_(p)",
        ),
        drawing.plain,
    ),
    Kind(
        "recurrent-gated",
        "orthogonal recurrent and Xavier input weights for each gate, biases zero but {0} at the gate that keeps the state",
        (
            "for key, p in layer.named_parameters():",
            "    if key.startswith('weight'):",
            "        for gate in p.split(layer.hidden_size):",
            "            nn.init.orthogonal_(gate) if key.startswith('weight_hh') else nn.init.xavier_uniform_(gate)",
            "    else:",
            "        nn.init.zeros_(p)",
            "        if key.startswith('bias_ih'):",
            "            p[layer.hidden_size : 2 * layer.hidden_size].fill_({0})",
        ),
        drawing.gated,
    ),
    Kind(
        "unit-variance",
        "orthogonal weights, scaled to outputs of deviation {0} on the first batch (biases zero)",
        (f"nn.init.orthogonal_(layer.weight, gain={_WIDER})", *_ZERO_BIAS, "watched.append((layer, {0}, False))"),
        drawing.orthogonal_start,
    ),
    Kind(
        "centred-unit-variance",
        "orthogonal weights, scaled to outputs of deviation {0} on the first batch, biases that take off each unit's mean",
        (f"nn.init.orthogonal_(layer.weight, gain={_WIDER})", *_ZERO_BIAS, "watched.append((layer, {0}, True))"),
        drawing.orthogonal_start,
    ),
    Kind("reset", "PyTorch's own initialisation", ("layer.reset_parameters()",), drawing.reset),
)
"""Everything that can be done to a layer."""

_ROWS: Final = {row.name: row for row in KINDS}


def deviation(module: Weighted, sigma_w: float, sigma_b: float = 0.0) -> Recipe:
    """Normal weights of deviation sigma_w / sqrt(inputs per unit), as a plain number where torch counts inputs otherwise."""
    transposed = isinstance(module, TRANSPOSED)
    kind, first = ("deviation", sigma_w / fan_in(module) ** 0.5) if transposed else ("normal", sigma_w)
    return recipe(f"{kind}-biased", first, sigma_b) if sigma_b and module.bias is not None else recipe(kind, first)
