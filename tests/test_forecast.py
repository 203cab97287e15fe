"""The forecast against real networks: theory along a blueprint, with its interval, beside what one pass measures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradiometer.probe.checking import measure
from gradiometer.record.blueprint import Blueprint, Node, Op, Spread
from gradiometer.theory.activations import activation
from gradiometer.theory.forecast import NodeForecast, forecast
from gradiometer.theory.moments import moments
from gradiometer.theory.quadrature import expectation, pair_expectation
from networks import batch, mlp


def blueprint(model: nn.Module, batch: tuple[Tensor, Tensor], folder: Path, loss: nn.Module | None = None) -> Blueprint:
    folder.mkdir(parents=True, exist_ok=True)
    measure(model, batch, loss or nn.CrossEntropyLoss(), None, folder, with_curvature=False)
    return Blueprint.read(next(folder.glob("*.blueprint.json")))


def named(drawn: Blueprint, told: tuple[NodeForecast, ...], name: str) -> tuple[Node, NodeForecast]:
    return next((n, k) for n, k in zip(drawn.nodes, told, strict=True) if n.name == name)


# ---- moments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "gelu", "silu", "elu", "softplus", "hardtanh", "softsign", "mish"])
@pytest.mark.parametrize("q", [1e-6, 0.3, 1.0, 40.0])
def test_fast_moments_are_those_of_the_exact_quadrature(name: str, q: float) -> None:
    act = activation(name)
    fast = moments(act, np.zeros(1), np.full(1, math.sqrt(q)))
    assert fast.square[0] == pytest.approx(expectation(lambda u: act.f(u) ** 2, q, act.kinks), rel=1e-3)
    assert fast.slope_square[0] == pytest.approx(expectation(lambda u: act.slope(u) ** 2, q, act.kinks), rel=1e-2)
    for c in (0.0, 0.5, 0.95):
        exact = pair_expectation(act.f, act.f, q, q, c, act.kinks)
        assert 1.0 - fast.apart(np.full(1, 1.0 - c))[0] == pytest.approx(exact / fast.square[0], abs=2e-3)


def test_the_correlation_map_keeps_its_precision_where_inputs_are_almost_the_same() -> None:
    act = activation("sigmoid")
    fast = moments(act, np.zeros(1), np.ones(1))
    tiny = fast.apart(np.full(1, 1e-18))[0]
    slope = expectation(lambda u: act.slope(u) ** 2, 1.0) / expectation(lambda u: act.f(u) ** 2, 1.0)
    assert tiny == pytest.approx(1e-18 * slope, rel=1e-3)  # 1 - c itself would be lost in rounding


# ---- the blueprint -----------------------------------------------------------------------------------------------------


def test_a_blueprint_survives_the_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    drawn = blueprint(nn.Sequential(nn.Linear(64, 32), nn.Softsign(), nn.LayerNorm(32), nn.Linear(32, 10)), batch(), tmp_path)
    drawn.write(tmp_path / "again.json")
    again = Blueprint.read(tmp_path / "again.json")
    assert repr(again) == repr(drawn)  # NaN is not equal to itself


def test_operations_are_read_off_the_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(64, 64), nn.Linear(64, 64, bias=False), nn.RMSNorm(64)
            self.position = nn.Parameter(torch.randn(64))
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x)) + self.position
            h = h + 0.5 * nn.functional.dropout(nn.functional.gelu(self.b(h)), 0.25)
            return self.head(self.norm(h))

    drawn = blueprint(Net(), batch(), tmp_path)
    kinds = [(node.op, node.function or node.kind) for node in drawn.nodes]
    assert (Op.ACTIVATION, "tanh") in kinds
    assert (Op.ACTIVATION, "gelu") in kinds
    assert (Op.RMS_NORM, "RMSNorm") in kinds
    assert (Op.SCALE, "dropout") in kinds
    assert sum(op is Op.LINEAR for op, _ in kinds) == 3
    assert sum(op is Op.ADD for op, _ in kinds) == 2
    parameter = next(n for n in drawn.nodes if n.kind == "parameter")
    assert parameter.output is not None
    assert parameter.output.apart == 0.0  # the same for every example
    dropout = next(n for n in drawn.nodes if n.kind == "dropout")
    assert dropout.numbers["square"] == pytest.approx(1 / 0.75, rel=0.05)
    assert dropout.numbers["cross"] == pytest.approx(1.0, rel=0.05)


def test_weights_say_their_scale_and_whether_they_are_random(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
    nn.init.normal_(model[0].weight, std=2.0 / 8.0)
    nn.init.orthogonal_(model[2].weight, gain=1.3)
    first, second, _ = (n.numbers for n in blueprint(model, batch(), tmp_path).nodes if n.op is Op.LINEAR)
    assert first["gain"] == pytest.approx(4.0, rel=0.03)
    assert first["forward_excess"] == pytest.approx(1 / 256, rel=0.1)
    assert first["backward_excess"] == pytest.approx(1 / 64, rel=0.1)
    assert second["gain"] == pytest.approx(1.69, rel=1e-3)
    assert second["backward_excess"] < 1e-6


def test_a_convolution_loses_what_meets_its_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 256, 3, padding=1), nn.Flatten(), nn.Linear(256 * 16, 10))
    images = torch.randn(64, 16, 4, 4), torch.randint(0, 10, (64,))
    drawn = blueprint(model, images, tmp_path)
    node, told = named(drawn, forecast(drawn), "0")
    assert node.output is not None
    assert 10 ** (2 * told.signal.middle) == pytest.approx(node.output.square, rel=0.1)
    full = node.numbers["gain"] * 1.0 + node.numbers["bias_square"]
    assert node.output.square < 0.8 * full  # 2.5 of 3 taps meet the image in each direction


# ---- the forecast ------------------------------------------------------------------------------------------------------


class _Residual(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.weights, self.scale = nn.Linear(width, width), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.relu(self.weights(x))


def _total(model: nn.Module, data: tuple[Tensor, Tensor], folder: Path) -> tuple[float, float, float]:
    """Measured and forecast log10 of the gradient's total gain, and half the 90 % interval."""
    drawn = blueprint(model, data, folder)
    told = forecast(drawn)
    linear = [i for i, n in enumerate(drawn.nodes) if n.op is Op.LINEAR]
    first, head = linear[0], linear[-1]
    flows = drawn.nodes[first].gradient, drawn.nodes[head].gradient
    assert flows[0] is not None
    assert flows[1] is not None
    measured = 0.5 * math.log10(flows[0].square / flows[1].square)
    band = told[first].gradient
    return measured, band.middle - told[head].gradient.middle, (band.high - band.low) / 2


MAKERS = {
    "tanh": lambda: mlp(nn.Tanh, 10, 128, 1.3),
    "relu": lambda: mlp(nn.ReLU, 10, 128, math.sqrt(2.0)),
    "sigmoid": lambda: mlp(nn.Sigmoid, 8, 128),
    "softsign": lambda: mlp(nn.Softsign, 8, 128, 1.5),
    "gelu": lambda: mlp(nn.GELU, 8, 128, 1.5),
    "batch norm": lambda: nn.Sequential(
        *(m for _ in range(8) for m in (nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU())), nn.Linear(128, 10)
    ),
    "residual": lambda: nn.Sequential(nn.Linear(128, 128), *(_Residual(128, 0.5) for _ in range(10)), nn.Linear(128, 10)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_total_gain_is_forecast_on_average_and_within_its_interval(name: str, tmp_path: Path) -> None:
    errors: list[float] = []
    inside = 0
    seeds = 10
    for seed in range(seeds):
        torch.manual_seed(seed)
        measured, expected, half = _total(MAKERS[name](), batch(128, 64, seed), tmp_path / str(seed))
        errors.append(measured - expected)
        inside += abs(measured - expected) <= half
    # a systematic error of 0.06 decades over ten layers is 1.4 % a layer; ten seeds of ReLU know it to 0.02
    assert abs(float(np.mean(errors))) < 0.06
    # of ten at 90 %, fewer than six inside has a chance of 0.2 %; that the share is right is for benchmarks/forecast.py
    assert inside >= 6


def test_a_wrong_weight_scale_would_be_seen(tmp_path: Path) -> None:
    """The check of the check: the forecast of another network is far outside."""
    torch.manual_seed(0)
    measured, _, _ = _total(mlp(nn.Tanh, 10, 128, 1.3), batch(128), tmp_path / "a")
    _, expected, half = _total(mlp(nn.Tanh, 10, 128, 1.0), batch(128), tmp_path / "b")
    assert abs(measured - expected) > 2 * half


def test_what_theory_does_not_cover_takes_its_measured_gain(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(dim=-1).values ** 3

    model = nn.Sequential(nn.Linear(64, 64), Sorted(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    drawn = blueprint(model, batch(), tmp_path)
    told = forecast(drawn)
    unknown = [i for i, n in enumerate(drawn.nodes) if n.op is Op.UNKNOWN and n.name == "1"]
    assert len(unknown) == 1
    assert not told[unknown[0]].covered
    gain = drawn.nodes[unknown[0]].gains[0]
    assert told[unknown[0]].backward_gain == pytest.approx(0.5 * math.log10(gain))
    first, node = named(drawn, told, "0")
    assert first.gradient is not None
    assert node.gradient.holds(0.5 * math.log10(first.gradient.square))


def test_a_module_of_the_users_own_is_sampled_as_a_function(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Snake(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.sin(x) ** 2

    drawn = blueprint(nn.Sequential(nn.Linear(64, 64), Snake(), nn.Linear(64, 10)), batch(), tmp_path)
    told = forecast(drawn)
    node, expected = named(drawn, told, "1")
    assert node.op is Op.ACTIVATION
    assert node.output is not None
    scale = math.sqrt(named(drawn, told, "0")[0].output.square)  # type: ignore[union-attr]
    exact = expectation(lambda u: (1.0 + np.sin(2 * u)) ** 2, scale**2)
    assert expected.slope == pytest.approx(math.sqrt(exact), rel=0.03)


def test_noise_of_the_forecast_is_its_own_and_repeatable() -> None:
    nodes = (
        Node(Op.ENTRY, "data", output=Spread(1.0, 0.0, 0.5, 0.5), units=8, count=16),
        Node(
            Op.LINEAR, "linear", (0,), 8, 16,
            numbers={"gain": 1.0, "ones": 1.0, "row_mean": 0.0, "forward_excess": 0.1, "backward_excess": 0.1, "fan_in": 8.0},
            gains=(math.nan,),
        ),
    )  # fmt: skip
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first, second = forecast(Blueprint(nodes)), forecast(Blueprint(nodes))
    assert [f.signal for f in first] == [f.signal for f in second]
    assert (np.random.get_state()[1] == state).all()
