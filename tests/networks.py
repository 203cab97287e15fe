"""Small dense networks and a batch for them, for tests that look at a first step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def batch(width: int = 64, count: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian inputs and one of ten classes for each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def mlp(act: type[nn.Module], depth: int, width: int = 64, std: float | None = None) -> nn.Sequential:
    """Dense layers with their activation, and a head; Gaussian weights of deviation ``std`` / sqrt(fan_in) if that is given."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), act()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    if std is not None:
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std * module.in_features**-0.5)
                nn.init.zeros_(module.bias)
    return model
