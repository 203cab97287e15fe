"""The replay of a recurrent layer: derivatives through time against known cells and against autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradiometer
import trainings
from gradiometer.probe import through_time
from gradiometer.record.frames import Group

CELLS: dict[str, Callable[..., nn.RNNBase]] = {
    "tanh": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
    "lstm": nn.LSTM,
    "projected": lambda *a, **k: nn.LSTM(*a, proj_size=3, **k),
    "gru": nn.GRU,
}


def row_of(module: nn.RNNBase, *args: Any) -> list[float]:
    assert through_time.can_replay(module, args)
    with torch.no_grad():
        row = through_time.replay(module, args)
    assert row is not None
    return [float(v) for v in row]


def decades(row: list[float]) -> np.ndarray[Any, Any]:
    return 0.5 * np.log10(np.array(row[:9]) / row[0])


def by_autograd(module: nn.RNNBase, x: Tensor, hx: Any, lag: int) -> float:
    """Sum of squares of the derivative of the projected last state with respect to the state ``lag`` steps earlier."""
    lstm = module.mode == "LSTM"
    start = x.shape[1] - lag
    with torch.no_grad():
        state = module(x[:, :start], hx)[1] if start else hx
    if state is None:
        size = module.proj_size or module.hidden_size
        state = torch.zeros(1, x.shape[0], size, dtype=x.dtype)
        state = (state, torch.zeros(1, x.shape[0], module.hidden_size, dtype=x.dtype)) if lstm else state
    states = [s.detach().requires_grad_() for s in (state if lstm else (state,))]
    last = module(x[:, start:], tuple(states) if lstm else states[0])[1] if lag else (tuple(states) if lstm else states[0])
    ways = torch.randn(2 * module.hidden_size, generator=torch.Generator().manual_seed(through_time._SEED), dtype=x.dtype)
    hidden = last[0] if lstm else last
    total = (hidden * ways[: hidden.shape[-1]]).sum()
    if lstm:
        total = total + (last[1] * ways[module.hidden_size :]).sum()
    gradients = torch.autograd.grad(total, states, allow_unused=True)
    return sum(float(g.square().sum()) for g in gradients if g is not None)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_equals_autograd(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    module = CELLS[name](5, 7, batch_first=True, bias=bias).double()
    for weight in module.parameters():
        weight.data.mul_(2.0)
    x = torch.randn(3, 24, 5, dtype=torch.float64)
    first = torch.randn(1, 3, 3 if name == "projected" else 7, dtype=torch.float64)
    hx = (first, torch.randn(1, 3, 7, dtype=torch.float64)) if module.mode == "LSTM" else first
    row = row_of(module, x, hx)
    assert row[9] == 24
    for k in range(9):
        assert row[k] == pytest.approx(by_autograd(module, x, hx, 3 * k), rel=1e-9), k
    row = row_of(module.float(), x.float())
    assert row[8] == pytest.approx(by_autograd(module.double(), x.float().double(), None, 24), rel=1e-4)


@pytest.mark.parametrize("name", CELLS)
def test_layouts_say_the_same(name: str) -> None:
    torch.manual_seed(0)
    module = CELLS[name](5, 7, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)
    other = CELLS[name](5, 7, num_layers=2, bidirectional=True, dropout=0.5)
    other.load_state_dict(module.state_dict())
    x = torch.randn(1, 16, 5)
    rows = [row_of(module, x), row_of(other, x.transpose(0, 1)), row_of(module, x[0]), row_of(other, x[0])]
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], rel=1e-5)
    single = CELLS[name](5, 7, batch_first=True)
    single.load_state_dict({k: v for k, v in module.state_dict().items() if k.endswith("_l0")})
    assert row_of(single, x) == pytest.approx(rows[0], rel=1e-5)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.2])
def test_a_diagonal_recurrence_falls_by_its_factor(factor: float) -> None:
    """a I with zero input: tanh at zero has slope one, so a step multiplies by a."""
    module = nn.RNN(4, 8, bias=False)
    module.weight_hh_l0.data = factor * torch.eye(8)
    row = row_of(module, torch.zeros(64, 6, 4))
    assert decades(row) == pytest.approx(math.log10(factor) * np.arange(9) * 8, abs=1e-4)


def test_a_fall_beyond_float32_is_still_a_number() -> None:
    module = nn.RNN(4, 8, bias=False)
    module.weight_hh_l0.data = 0.1 * torch.eye(8)
    row = row_of(module, torch.zeros(128, 6, 4))
    assert decades(row) == pytest.approx(-16.0 * np.arange(9), abs=1e-3)


def test_an_orthogonal_rectifier_with_positive_states_keeps_all() -> None:
    module = nn.RNN(4, 8, bias=False, nonlinearity="relu")
    module.weight_hh_l0.data = torch.eye(8)[torch.randperm(8, generator=torch.Generator().manual_seed(1))]
    module.weight_ih_l0.data.abs_()
    row = row_of(module, torch.ones(40, 6, 4))
    assert decades(row) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("bias", "low", "high"), [(20.0, -0.5, 0.3), (-5.0, -150.0, -60.0)])
def test_the_forget_gate_opens_and_shuts_the_way(bias: float, low: float, high: float) -> None:
    torch.manual_seed(0)
    module = nn.LSTM(4, 16, batch_first=True)
    for name, weight in module.named_parameters():
        if "weight_hh" in name:
            weight.data.mul_(0.1)
        elif "bias" in name:
            weight.data.zero_()
    module.bias_ih_l0.data[16:32] = bias
    end = decades(row_of(module, torch.randn(4, 64, 4)))[8]
    assert low < end < high


def test_long_sequences_are_cut() -> None:
    module = nn.RNN(4, 8)
    x = 0.1 * torch.randn(600, 9, 4, generator=torch.Generator().manual_seed(0))
    row = row_of(module, x)
    assert row[9] == 128
    assert row == pytest.approx(row_of(module, x[-256:]))


def test_what_is_not_replayed() -> None:
    module = nn.LSTM(4, 8, batch_first=True)
    x = torch.zeros(2, 5, 4)
    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3], batch_first=True)
    assert not through_time.can_replay(module, (packed,))
    assert not through_time.can_replay(module, (x[:, :1],))
    assert not through_time.can_replay(module, ())
    assert not through_time.can_replay(nn.Linear(4, 4), (x,))
    assert through_time.can_replay(module, (x,))
    nn.utils.parametrizations.spectral_norm(module, "weight_hh_l0")
    before = [b.clone() for b in module.buffers()]
    assert through_time.replay(module, (x,)) is None
    assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))


# ---- within a training -------------------------------------------------------------------------------------------------


class Sequences(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = cell(8, 16, 2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def train(cell: type[nn.RNNBase], steps: int) -> list[Tensor]:
    torch.manual_seed(0)
    model = Sequences(cell)
    x = torch.randn(32, 12, 8)
    trainings.fit(model, torch.optim.Adam(model.parameters()), x, steps=steps)
    return [*[p.detach().clone() for p in model.parameters()], torch.get_rng_state()]


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_rows_of_a_training(cell: type[nn.RNNBase], tmp_path: Path) -> None:
    plain = train(cell, 18)
    with gradiometer.watch(out=tmp_path / "run", every=1) as watch:
        watched = train(cell, 18)
        assert watch.attached
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    trace = gradiometer.load(tmp_path / "run").trace
    assert not trace.notes
    (site,) = [i for i, s in enumerate(trace.sites) if s.name == "cell"]
    recorded = trace.recorded[Group.TIME]
    assert np.flatnonzero(recorded[:, site]).tolist() == [0, 1, 2, 3, 8, 16]
    assert not np.delete(recorded, site, axis=1).any()
    assert trace.values["time_steps"][0, site] == 12
    assert trace.time_decades[0, site, 0] == 0
    assert -15 < trace.time_decades[0, site, 8] < -1


def test_autocast_does_not_blur_the_replay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Sequences(nn.RNN)
    expected = row_of(model.cell, x := torch.randn(32, 12, 8))
    with gradiometer.watch(out=tmp_path / "run", every=1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), trainings.Y)
        loss.backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    trace = gradiometer.load(tmp_path / "run").trace
    (site,) = np.flatnonzero(trace.recorded[Group.TIME].any(0))
    assert [trace.values[f"time_lag_{k}"][0, site] for k in range(9)] == pytest.approx(expected[:9], rel=1e-4)
