"""How a gradient fares on its way back through the time of a recurrent layer, from a replay of its cell.

A module of torch hides its steps: only the outputs of a whole sequence are seen, and their gradients mix what comes from
the loss at that step with what comes through time. So the first layer, forward direction, is run again step by step over
a few examples, and a fixed random projection of its last state is led back through the linearised steps by hand: no
autograd, no random numbers, no dropout, nothing of the user's is written to. This costs about a hundred small products,
so it is done in a module's first few looks and then seldom (`due`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from gradiometer.probe.signals import Scalar

EXAMPLES: Final = 4
"""Sequences that are replayed (the leading ones)."""
STEPS: Final = 128
"""Steps that the gradient is led back through, the last ones of the sequence."""
APPROACH: Final = 128
"""Steps before those that are run to come to the right state; longer sequences start there from zero."""
LAGS: Final = 8
"""Parts of the way at whose ends the gradient is measured."""
FIRST_LOOKS: Final = 4
EVERY: Final = 8

_SEED: Final = 20_131_219
_FORWARDS: Final = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


def due(looks: int) -> bool:
    """Whether a module that was looked at ``looks`` times before is replayed in this look."""
    return looks < FIRST_LOOKS or looks % EVERY == 0


def can_replay(module: nn.Module, args: Any) -> bool:
    """Whether it is a recurrent layer of torch's own, called with a sequence of at least two steps that is no packed one."""
    if not isinstance(module, nn.RNNBase) or type(module).forward not in _FORWARDS:
        return False
    sequence = args[0] if isinstance(args, tuple) and args else None
    if not isinstance(sequence, Tensor) or sequence.is_meta or sequence.is_nested or sequence.ndim not in (2, 3):
        return False
    return sequence.shape[1 if module.batch_first and sequence.ndim == 3 else 0] >= 2


def replay(module: nn.RNNBase, args: Sequence[Any]) -> list[Scalar] | None:
    """A row of `Group.TIME`; None if the layer's weights are made anew at every use (reading them could change them).

    The last columns: nine sums of squares of d (projection of the last state) / d (state k/8 of the way back), over the
    hidden state and, of an LSTM, the cell state; then the length of the way, at most `STEPS`.

    Args:
        module: for which `can_replay` holds.
        args: it was called with.
    """
    weights = _weights(module)
    if weights is None:
        return None
    dtype = torch.float64 if weights["weight_hh_l0"].dtype is torch.float64 else torch.float32
    w = {name: weight.to(dtype) for name, weight in weights.items()}
    x: Tensor = args[0].detach()
    lone = x.ndim == 2
    if lone:
        x = x.unsqueeze(1)
    elif module.batch_first:
        x = x.transpose(0, 1)
    length = min(x.shape[0], STEPS)
    whole = x.shape[0] <= length + APPROACH
    x = x[-(length + APPROACH) :, :EXAMPLES].to(dtype)
    given = args[1] if whole and len(args) > 1 else None
    hidden, cell = _first_state(module, given, x, lone)
    inputs = x @ w["weight_ih_l0"].T
    if "bias_ih_l0" in w:
        inputs = inputs + w["bias_ih_l0"]
    size = module.hidden_size
    generator = torch.Generator("cpu").manual_seed(_SEED)
    ways = torch.randn(2 * size, generator=generator, dtype=dtype, device="cpu").to(x.device, non_blocking=True)
    back = ways[: hidden.shape[1]].expand_as(hidden)
    if module.mode == "LSTM":
        way = _Lstm(w, inputs, hidden, cell, length)
        back = torch.cat((back, ways[size:].expand_as(cell)), 1)
    elif module.mode == "GRU":
        way = _Gru(w, inputs, hidden, length)
    else:
        way = _Plain(w, inputs, hidden, length, module.mode == "RNN_RELU")
    return [*_lead_back(way, back, length), float(length)]


def _weights(module: nn.RNNBase) -> dict[str, Tensor] | None:
    """Weights of the first layer, forward direction, out of the graph.

    Not by ``getattr``: a parametrized weight is computed when it is read, and spectral normalisation then changes state.
    """
    found: dict[str, Tensor] = {}
    names = ["weight_ih_l0", "weight_hh_l0"]
    names += ["bias_ih_l0", "bias_hh_l0"] if module.bias else []
    names += ["weight_hr_l0"] if module.proj_size else []
    for name in names:
        weight = module._parameters.get(name)
        if weight is None:
            weight = module.__dict__.get(name)
        if not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter):
            return None
        found[name] = weight.detach()
    return found


def _first_state(module: nn.RNNBase, given: Any, x: Tensor, lone: bool) -> tuple[Tensor, Tensor]:
    """Hidden state and cell state to begin with (without the latter: what is in its place has no meaning)."""
    pair = given if isinstance(given, (tuple, list)) else (given, None)
    states: list[Tensor] = []
    for state, size in zip(pair, (module.proj_size or module.hidden_size, module.hidden_size), strict=True):
        if isinstance(state, Tensor):
            first = state.detach()[0].to(x)
            states.append(first.unsqueeze(0) if lone else first[:EXAMPLES])
        else:
            states.append(x.new_zeros(x.shape[1], size))
    return states[0], states[1]


class _Plain:
    """h' = act(W h + input)."""

    def __init__(self, w: dict[str, Tensor], inputs: Tensor, hidden: Tensor, length: int, rectified: bool) -> None:
        self._weight = w["weight_hh_l0"]
        turned = self._weight.T
        if "bias_hh_l0" in w:
            inputs = inputs + w["bias_hh_l0"]
        states: list[Tensor] = []
        for given in inputs:
            hidden = torch.addmm(given, hidden, turned)
            hidden = hidden.relu_() if rectified else hidden.tanh_()
            states.append(hidden)
        after = torch.stack(states[-length:])
        self._slope = (after > 0).to(after.dtype) if rectified else 1 - after.square()

    def back(self, step: int, gradient: Tensor) -> Tensor:
        return (gradient * self._slope[step]) @ self._weight


class _Lstm:
    """i, f, o = sigmoid, g = tanh of (W h + input); c' = f c + i g; h' = o tanh c', projected if the layer says so."""

    def __init__(self, w: dict[str, Tensor], inputs: Tensor, hidden: Tensor, cell: Tensor, length: int) -> None:
        self._weight = w["weight_hh_l0"]
        self._projection = w.get("weight_hr_l0")
        self._hidden = hidden.shape[1]
        turned = self._weight.T
        if "bias_hh_l0" in w:
            inputs = inputs + w["bias_hh_l0"]
        gates: list[Tensor] = []
        cells: list[Tensor] = [cell]
        for given in inputs:
            sums = torch.addmm(given, hidden, turned)
            i, f, g, o = sums.chunk(4, 1)
            for gate in (i, f, o):
                gate.sigmoid_()
            g.tanh_()
            cell = torch.addcmul(f * cell, i, g)
            hidden = o * cell.tanh()
            if self._projection is not None:
                hidden = hidden @ self._projection.T
            gates.append(sums)
            cells.append(cell)
        i, f, g, o = torch.stack(gates[-length:]).chunk(4, 2)
        before, after = torch.stack(cells[-length - 1 : -1]), torch.stack(cells[-length:]).tanh_()
        self._keep = f
        self._open = o * (1 - after.square())
        factors = (g * i * (1 - i), before * f * (1 - f), i * (1 - g.square()), after * o * (1 - o))
        self._factors = torch.cat(factors, 2)

    def back(self, step: int, gradient: Tensor) -> Tensor:
        out, cell = gradient[:, : self._hidden], gradient[:, self._hidden :]
        if self._projection is not None:
            out = out @ self._projection
        cell = torch.addcmul(cell, out, self._open[step])
        sums = torch.cat((cell, cell, cell, out), 1).mul_(self._factors[step])
        return torch.cat((sums @ self._weight, cell * self._keep[step]), 1)


class _Gru:
    """r, z = sigmoid of (W h + input); n = tanh(input + r (W h + b)); h' = (1 - z) n + z h."""

    def __init__(self, w: dict[str, Tensor], inputs: Tensor, hidden: Tensor, length: int) -> None:
        self._weight = w["weight_hh_l0"]
        turned, bias = self._weight.T, w.get("bias_hh_l0")
        size = hidden.shape[1]
        gates: list[Tensor] = []
        states: list[Tensor] = [hidden]
        for given in inputs:
            own = hidden @ turned if bias is None else torch.addmm(bias, hidden, turned)
            doors = (given[:, : 2 * size] + own[:, : 2 * size]).sigmoid_()
            r, z = doors.chunk(2, 1)
            new = torch.addcmul(given[:, 2 * size :], r, own[:, 2 * size :]).tanh_()
            hidden = torch.lerp(new, hidden, z)
            gates.append(torch.cat((doors, new, own[:, 2 * size :]), 1))
            states.append(hidden)
        r, z, new, own = torch.stack(gates[-length:]).chunk(4, 2)
        before = torch.stack(states[-length - 1 : -1])
        inner = (1 - z) * (1 - new.square())
        self._keep = z
        self._factors = torch.cat((inner * own * r * (1 - r), (before - new) * z * (1 - z), inner * r), 2)

    def back(self, step: int, gradient: Tensor) -> Tensor:
        sums = gradient.repeat(1, 3).mul_(self._factors[step])
        return torch.addmm(gradient * self._keep[step], sums, self._weight)


def _lead_back(way: _Plain | _Lstm | _Gru, gradient: Tensor, length: int) -> list[Scalar]:
    """Sums of squares at each lag. The gradient is scaled to about one at each, so that it may fall by any number."""
    factor = torch.ones((), dtype=torch.float64, device=gradient.device)
    sums: list[Tensor] = []
    step = length
    for lag in range(LAGS + 1):
        until = length - (lag * length + LAGS // 2) // LAGS
        while step > until:
            step -= 1
            gradient = way.back(step, gradient)
        sums.append((torch.linalg.vector_norm(gradient, dtype=torch.float64) * factor).square())
        largest = gradient.abs().amax()
        largest = torch.where((largest > 0) & (largest < float("inf")), largest, 1.0)
        gradient = gradient / largest
        factor = factor * largest.double()
    return torch.stack(sums).tolist() if gradient.device.type == "cpu" else list(sums)
