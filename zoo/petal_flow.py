"""A normalising flow of affine couplings for points on three petals; judged by the likelihood of fresh points."""

import argparse
import math

import torch
from torch import nn


def petals(count: int) -> torch.Tensor:
    angle = 2 * math.pi * torch.randint(3, (count,)) / 3
    along, across = 1.5 + 0.5 * torch.randn(count), 0.15 * torch.randn(count)
    angle = angle + 0.4 * along
    return torch.stack([along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()], 1)


class Coupling(nn.Module):
    """Scales and shifts one coordinate by functions of the other."""

    def __init__(self, first: int, width: int, zero: bool) -> None:
        super().__init__()
        self.first = first
        self.net = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        if zero:
            nn.init.zeros_(self.net[-1].weight)
            nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fixed, moved = x[:, self.first], x[:, 1 - self.first]
        raw, shift = self.net(fixed[:, None]).unbind(1)
        log_scale = 2 * torch.tanh(raw / 2)
        moved = moved * log_scale.exp() + shift
        pair = [fixed, moved] if self.first == 0 else [moved, fixed]
        return torch.stack(pair, 1), log_scale


class Flow(nn.Module):
    def __init__(self, couplings: int, width: int, zero: bool) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(i % 2, width, zero) for i in range(couplings))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        volume = torch.zeros(len(x))
        for coupling in self.couplings:
            x, log_scale = coupling(x)
            volume = volume + log_scale
        return volume - 0.5 * x.square().sum(1) - math.log(2 * math.pi)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--couplings", type=int, default=6)
    parser.add_argument("--zero-last", action="store_true", help="every coupling starts as the identity")
    parser.add_argument("--steps", type=int, default=700)
    args = parser.parse_args()
    torch.manual_seed(74)
    flow = Flow(args.couplings, 40, args.zero_last)
    optimizer = torch.optim.Adam(flow.parameters(), lr=args.lr)
    for step in range(args.steps):
        loss = -flow(petals(256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        print(f"test nll {-flow(petals(4000)).mean().item():.4f}")


if __name__ == "__main__":
    main()
