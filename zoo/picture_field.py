"""A picture as a function of its coordinates: a small network is fitted to a share of noisy pixels and judged on the others."""

import argparse
import math

import torch
from torch import nn

SIZE, NOISE = 48, 0.1


class Sine(nn.Module):
    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.omega * x)


def field(activation: str, depth: int, width: int, omega: float, init: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 2
    for i in range(depth):
        linear = nn.Linear(inputs, width)
        if activation == "sine" and init == "siren":
            bound = 1 / inputs if i == 0 else math.sqrt(6 / inputs) / omega
            nn.init.uniform_(linear.weight, -bound, bound)
        layers += [linear, Sine(omega) if activation == "sine" else {"sigmoid": nn.Sigmoid, "gelu": nn.GELU}[activation]()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(width, 1))


def picture() -> tuple[torch.Tensor, torch.Tensor]:
    side = torch.linspace(-1, 1, SIZE)
    place = torch.cartesian_prod(side, side)
    value = torch.zeros(len(place))
    for _ in range(8):
        centre, wave, phase = 1.2 * torch.rand(2) - 0.6, 4 * torch.randn(2), 6.28 * torch.rand(1)
        value += torch.exp(-4 * (place - centre).square().sum(1)) * torch.sin(place @ wave + phase)
    return place, ((value - value.mean()) / value.std())[:, None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--activation", choices=["sine", "sigmoid", "gelu"], default="sine")
    parser.add_argument("--init", choices=["siren", "torch"], default="siren")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--omega", type=float, default=8.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.manual_seed(71)
    place, clean = picture()
    order = torch.randperm(len(place))
    known, rest = order[:1200], order[1200:]
    noisy = clean + NOISE * torch.randn_like(clean)
    model = field(args.activation, args.depth, args.width, args.omega, args.init)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for step in range(args.steps):
        rows = known[torch.randint(len(known), (256,))]
        loss = nn.functional.mse_loss(model(place[rows]), noisy[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        print(f"mse on the other pixels {nn.functional.mse_loss(model(place[rest]), clean[rest]).item():.4f}")


if __name__ == "__main__":
    main()
