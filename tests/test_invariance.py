"""What must not change a verdict: the size of the loss, of the batch and of the layers, micro-batches, a loss scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradiometer
from gradiometer.rules.diagnosis import Diagnosis, examine

STEPS: Final = 100
BATCH: Final = 64
INPUTS: Final = 20
CLASSES: Final = 4


@dataclass(frozen=True)
class Training:
    """A classifier on four Gaussian clouds, and the ways in which it may be trained that must not matter."""

    build: Callable[[int], nn.Module]
    rate: float
    adam: bool = False
    width: int = 48
    factor: float = 1.0
    repeat: int = 1
    accumulate: int = 1
    scaled: bool = False

    def run(self, folder: Path) -> Diagnosis:
        torch.manual_seed(3)
        data = torch.Generator().manual_seed(5)
        centres = torch.randn(CLASSES, INPUTS, generator=data)
        model = self.build(self.width)
        # plain SGD follows the size of the loss, so its rate is made up for it; Adam does not
        rate = self.rate if self.adam else self.rate / self.factor
        optimizer = (torch.optim.Adam if self.adam else torch.optim.SGD)(model.parameters(), lr=rate)
        scaler = torch.amp.GradScaler("cpu", enabled=self.scaled)
        with gradiometer.watch(out=folder, every=2):
            for _ in range(STEPS):
                y = torch.randint(0, CLASSES, (BATCH,), generator=data)
                x = centres[y] + 0.6 * torch.randn(BATCH, INPUTS, generator=data)
                optimizer.zero_grad()
                for part_x, part_y in zip(self.parts(x), self.parts(y), strict=True):
                    loss = self.factor * F.cross_entropy(model(part_x), part_y) / self.accumulate
                    scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        return examine(gradiometer.load(folder).trace)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.cat([x] * self.repeat).chunk(self.accumulate)


def mlp(
    depth: int, act: type[nn.Module], init: Callable[[Tensor], object] | None = None, bias: float = 0.0
) -> Callable[[int], nn.Module]:
    def build(width: int) -> nn.Module:
        layers: list[nn.Module] = []
        for k in range(depth):
            linear = nn.Linear(INPUTS if k == 0 else width, width)
            if init is not None:
                init(linear.weight)
                nn.init.constant_(linear.bias, bias)
            layers += [linear, act()]
        return nn.Sequential(*layers, nn.Linear(width, CLASSES))

    return build


def normal(gain: float) -> Callable[[Tensor], object]:
    def init(weight: Tensor) -> None:
        nn.init.normal_(weight, std=gain / weight.shape[1] ** 0.5)

    return init


TRAININGS: Final = {
    "well: He": Training(mlp(6, nn.ReLU, normal(2**0.5)), 0.05),
    "well: Adam": Training(mlp(4, nn.GELU), 2e-3, adam=True),
    "well: tanh": Training(mlp(5, nn.Tanh, normal(1.0)), 0.1),
    "sick: sigmoid": Training(mlp(12, nn.Sigmoid), 0.1),
    "sick: small weights": Training(mlp(20, nn.ReLU, normal(0.4)), 0.1),
    "sick: dead": Training(mlp(4, nn.ReLU, normal(0.5), bias=-10.0), 0.1),
    "sick: large weights": Training(mlp(16, nn.ReLU, normal(4.0)), 1e-3),
    "sick: too slow": Training(mlp(4, nn.ReLU), 1e-5),
}

CHANGES: Final[dict[str, Callable[[Training], Training]]] = {
    "loss times 1000": lambda t: replace(t, factor=1000.0),
    "every example twice": lambda t: replace(t, repeat=2),
    "half as wide again": lambda t: replace(t, width=t.width * 3 // 2),
    "four micro-batches": lambda t: replace(t, accumulate=4),
    "a loss scale": lambda t: replace(t, scaled=True),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Diagnosis]:
    return {name: training.run(tmp_path_factory.mktemp("plain") / "run") for name, training in TRAININGS.items()}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_trainings_are_what_they_are_called(name: str, plain: dict[str, Diagnosis]) -> None:
    assert plain[name].verdict == name.split(":")[0], plain[name].sentence


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", TRAININGS)
def test_a_change_that_must_not_matter_changes_no_verdict(
    name: str, change: str, plain: dict[str, Diagnosis], tmp_path: Path
) -> None:
    before, after = plain[name], CHANGES[change](TRAININGS[name]).run(tmp_path / "run")
    assert after.verdict == before.verdict, after.sentence
    if before.findings and before.verdict == "sick":
        assert after.findings[0].rule == before.findings[0].rule
