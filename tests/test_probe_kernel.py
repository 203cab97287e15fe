"""How alike the gradients of examples are along depth, and the counts of lost elements, against known networks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradiometer
import networks
from gradiometer.probe import kernel
from gradiometer.record.trace import Trace


def watched(model: nn.Module, x: Tensor, y: Tensor, folder: Path) -> Trace:
    with gradiometer.watch(out=folder, every=1) as watch:
        F.cross_entropy(model(x), y).backward()
        torch.optim.SGD(model.parameters(), 0.0).step()
        assert watch.attached
    trace = gradiometer.load(folder).trace
    assert not trace.notes
    return trace


def correlation(trace: Trace, name: str) -> float:
    (site,) = [i for i in trace.outputs if trace.sites[i].name == name]
    return float(trace.gradient_correlation[0, site])


# ---- networks ----------------------------------------------------------------------------------------------------------


def test_a_deep_linear_orthogonal_network_keeps_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64, bias=False) for _ in range(12)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    trace = watched(nn.Sequential(*layers), *networks.batch(64), tmp_path / "run")
    assert trace.gradient_correlation[0, trace.outputs] == pytest.approx(1.0, abs=1e-5)


def predicted(depth: int) -> float:
    """What is left behind ``depth`` rectifiers in a wide network of orthogonal inputs: half of them agree at first."""
    cosine, share = 0.0, 1.0
    for _ in range(depth):
        share *= 1 - math.acos(cosine) / math.pi
        cosine = (math.sqrt(1 - cosine**2) + cosine * (math.pi - math.acos(cosine))) / math.pi
    return share


@pytest.mark.parametrize(("depth", "published", "tolerance"), [(2, 0.30, 0.04), (8, 0.05, 0.02), (24, 0.0055, 0.012)])
def test_rectifiers_shatter_as_predicted(depth: int, published: float, tolerance: float, tmp_path: Path) -> None:
    assert predicted(depth) == pytest.approx(published, rel=0.2)
    found: list[float] = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = networks.mlp(nn.ReLU, depth, width=500, std=math.sqrt(2))
        trace = watched(model, *networks.batch(500, 32, seed), tmp_path / str(seed))
        found.append(correlation(trace, "0"))
    assert np.mean(found) == pytest.approx(predicted(depth), abs=tolerance)


class Residual(nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.first = nn.Linear(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + F.relu(layer(x))
        return self.head(x)


def test_a_residual_network_keeps_much_more(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = watched(networks.mlp(nn.ReLU, 24, 256, math.sqrt(2)), *networks.batch(256), tmp_path / "plain")
    residual = watched(Residual(24, 256), *networks.batch(256), tmp_path / "residual")
    assert correlation(residual, "first") > 10 * abs(correlation(plain, "0"))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(16, 16)
        self.last = nn.Linear(16, 16)
        self.a, self.b = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.last(F.relu(self.trunk(x)))
        return self.a(x), self.b(x)


def test_which_head_a_network_has(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = networks.batch(16, 32)
    left, right = networks.mlp(nn.Tanh, 2, 16), nn.Sequential(*networks.mlp(nn.Tanh, 2, 16), nn.LogSoftmax(1))
    with gradiometer.watch(out=tmp_path / "apart", every=1):
        (F.cross_entropy(left(x), y) + F.nll_loss(right(x), y)).backward()  # two networks that meet only in the loss
    trace = gradiometer.load(tmp_path / "apart").trace
    names = ["Sequential.4", "Sequential 2.5"]
    assert [correlation(trace, name) for name in names] == [1.0, 1.0]
    assert 0.3 < correlation(trace, "Sequential.3") < 1.2
    with gradiometer.watch(out=tmp_path / "two", every=1):
        a, b = TwoHeads()(x)
        (F.cross_entropy(a, y % 3) + F.cross_entropy(b, y % 2)).backward()
    trace = gradiometer.load(tmp_path / "two").trace
    assert math.isnan(correlation(trace, "trunk")), "of two heads neither is the measure"


def test_a_batch_of_one_says_nothing(tmp_path: Path) -> None:
    x, y = networks.batch(16, 1)
    trace = watched(networks.mlp(nn.ReLU, 2, 16), x, y, tmp_path / "run")
    assert np.isnan(trace.values["gradient_kernel_cross"]).all()
    assert np.isnan(trace.values["gradient_kernel_head"]).all()
    assert np.isfinite(trace.values["gradient_zeros"][0, trace.outputs]).all()


# ---- the arithmetic ----------------------------------------------------------------------------------------------------


def pairs(table: Tensor) -> Tensor:
    unit = F.normalize(table.double(), dim=1)
    return (unit @ unit.T).fill_diagonal_(0.0)


def test_sums_by_hand() -> None:
    torch.manual_seed(0)
    head, low = torch.randn(40, 10), torch.randn(40, 3, 7)
    kernels = kernel.Kernels()
    first = kernels.columns(1, 5, head, is_end=True)
    square = float(pairs(head[:24]).square().sum())
    assert first == pytest.approx([square, square])
    expected = float((pairs(low.flatten(1)[:24]) * pairs(head[:24])).sum())
    assert kernels.columns(0, 5, low, is_end=False) == pytest.approx([expected, square])
    assert kernels.columns(2, 6, low, is_end=False)[0] != pytest.approx(expected), "another network has its own head"
    assert kernels.columns(0, 5, low[:30], is_end=False) != pytest.approx([expected, square]), "and so has another batch"
    assert math.isnan(kernels.columns(0, 5, head[0], is_end=False)[0])
    again = kernels.columns(1, 5, low, is_end=True)
    assert again[0] == again[1] == pytest.approx(float(pairs(low.flatten(1)[:24]).square().sum()))
    kernels.clear()
    assert kernels.columns(0, 5, head, is_end=False)[0] == pytest.approx(square)


def test_examples_without_a_gradient_are_left_out() -> None:
    torch.manual_seed(0)
    head, low = torch.randn(12, 10), torch.randn(12, 7)
    low[[2, 5]] = 0.0
    kept = [i for i in range(12) if i not in (2, 5)]
    kernels = kernel.Kernels()
    kernels.columns(1, None, head, is_end=True)
    cross = float((pairs(low[kept]) * pairs(head[kept])).sum())
    square = float(pairs(head[kept]).square().sum())
    assert kernels.columns(0, None, low, is_end=False) == pytest.approx([cross, square])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosines_of_gradients_of_any_size(scale: float) -> None:
    table = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    cosines, alive = kernel.cosines_of(table * scale)
    assert alive is None or bool(alive.all())
    assert torch.allclose(cosines, pairs(table), atol=1e-6)


def test_a_vocabulary_is_no_head() -> None:
    kernels = kernel.Kernels()
    generator = torch.Generator().manual_seed(0)
    assert math.isnan(kernels.columns(2, 1, torch.randn(3, 2, 40_000, generator=generator), is_end=True)[0])
    below = kernels.columns(1, 1, torch.randn(3, 20, generator=generator), is_end=False)
    assert below[0] == below[1] > 0


def test_cosines_of_long_gradients_are_estimated() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(8, 1, generator=generator) + torch.randn(8, 50_000, generator=generator)
    assert torch.allclose(kernel.cosines_of(table)[0], pairs(table), atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("large", [False, True])
def test_counts(dtype: torch.dtype, large: bool) -> None:
    smallest = torch.finfo(dtype).smallest_normal
    values = [0.0, -0.0, smallest, -smallest, smallest / 2, -smallest / 4, 1.0, -3.0, torch.finfo(dtype).max, smallest * 1.5]
    g = torch.tensor(values, dtype=torch.float64).to(dtype)
    assert torch.count_nonzero(g) == 8, "this test needs subnormal numbers"
    g = g.repeat(20_001) if large else g
    zeros, tiny = kernel.zeros_and_tiny(g)
    times = 20_001 if large else 1
    assert zeros == pytest.approx(2 * times, rel=0.01)
    assert tiny == pytest.approx(2 * times, rel=0.01)


def test_counts_of_an_empty_gradient() -> None:
    assert kernel.zeros_and_tiny(torch.zeros(0, 3)) == [0.0, 0.0]
    assert kernel.zeros_and_tiny(torch.tensor(0.0)) == [1.0, 0.0]


def test_a_half_precision_gradient_is_counted_as_it_flows(tmp_path: Path) -> None:
    """The loss is averaged over so many elements that some gradients are below the smallest normal number of float16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).half()
    with gradiometer.watch(out=tmp_path / "run", every=1):
        (model(torch.randn(64, 16).half()).float().square().mean()).backward()
        torch.optim.SGD(model.parameters(), 0.0).step()
    trace = gradiometer.load(tmp_path / "run").trace
    last = trace.outputs[-1]
    assert trace.values["gradient_count"][0, last] == 1024
    assert 0.02 < trace.tiny_gradient_share[0, last] < 0.2
