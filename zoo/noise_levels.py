"""A mean and a noise level for every point: a Gaussian likelihood fitted by a network with two heads."""

import argparse
import math

import torch
from torch import nn


class TwoHeads(nn.Module):
    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.random = nn.Linear(4, features)
        self.body = nn.Sequential(nn.Linear(features, width), nn.Softplus())
        self.mean = nn.Linear(width, 1)
        self.log_sd = nn.Linear(width, 1)
        self.random.requires_grad_(False)
        with torch.no_grad():
            self.random.weight.mul_(2.0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.body(torch.cos(self.random(x)))
        return self.mean(h).squeeze(1), self.log_sd(h).squeeze(1)


def truth(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.sin(2 * x[:, 0]) + 0.5 * x[:, 1] * x[:, 2], -2.0 + 1.2 * torch.tanh(2 * x[:, 3])


def nll(y: torch.Tensor, mean: torch.Tensor, log_sd: torch.Tensor) -> torch.Tensor:
    return (0.5 * ((y - mean) / log_sd.exp()) ** 2 + log_sd + 0.5 * math.log(2 * math.pi)).mean()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    torch.manual_seed(90)
    x = torch.rand(8000, 4) * 2 - 1
    mean, log_sd = truth(x)
    y = mean + log_sd.exp() * torch.randn(len(x))
    model = TwoHeads(args.width, args.features)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps)
    for step in range(args.steps):
        rows = torch.randint(7000, (128,))
        loss = nll(y[rows], *model(x[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: negative log likelihood {loss.item():.4f}")
    with torch.no_grad():
        reached, possible = nll(y[7000:], *model(x[7000:])), nll(y[7000:], mean[7000:], log_sd[7000:])
    print(f"nats per example above the true distribution {(reached - possible).item():.4f}")


if __name__ == "__main__":
    main()
