"""Bicycles rented in an hour, judged by the root mean squared logarithmic error."""

import argparse

import torch
from torch import nn


def make_hours(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    hour, warmth, rain = torch.rand(n) * 24, torch.randn(n), torch.distributions.LogNormal(-1.0, 1.5).sample((n,))
    rush = torch.exp(-((hour - 8) ** 2) / 4) + torch.exp(-((hour - 18) ** 2) / 6)
    rate = (1 + 9 * rush) * torch.exp(0.5 * warmth - 0.8 * rain)
    angle = hour * (2 * torch.pi / 24)
    features = torch.stack([angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos(), warmth, rain], 1)
    return features, torch.poisson(rate)


def rmsle(predicted: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    return ((torch.log1p(predicted) - torch.log1p(counted)) ** 2).mean().sqrt()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", choices=["linear", "softplus"], default="softplus")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    torch.manual_seed(23)
    x, y = make_hours(6000)
    train_x, train_y, test_x, test_y = x[:5000], y[:5000], x[5000:], y[5000:]
    layers = [nn.Linear(6, 64), nn.LeakyReLU(), nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 1)]
    if args.output == "softplus":
        layers.append(nn.Softplus())
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = torch.randint(len(train_x), (64,))
        loss = rmsle(model(train_x[rows]).squeeze(1), train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: rmsle {loss.item():.4f}")
    with torch.no_grad():
        print(f"test rmsle {rmsle(model(test_x).squeeze(1), test_y).item():.4f}")


if __name__ == "__main__":
    main()
