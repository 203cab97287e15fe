"""Twenty SELU layers without any normalisation on a synthetic table of house prices in dollars."""

import argparse

import torch
from torch import nn


def houses(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    income = torch.distributions.Gamma(4.0, 1.0).sample((count,))
    rooms = 2 + 6 * torch.rand(count)
    age = 50 * torch.rand(count)
    north, west = torch.rand(count), torch.rand(count)
    coast = torch.exp(-4 * west)
    price = 40_000 * income * (0.6 + coast) + 9_000 * rooms - 600 * age + 50_000 * torch.sin(3 * north)
    price = price + 8_000 * torch.randn(count)
    return torch.stack([income, rooms, age, north, west], 1), price[:, None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(88)
    x, price = houses(2000)
    x = (x - x.mean(0)) / x.std(0)
    layers: list[nn.Module] = []
    for i in range(args.depth):
        layers += [nn.Linear(5 if i == 0 else 32, 32), nn.SELU()]
    model = nn.Sequential(*layers, nn.Linear(32, 1))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(400):
        rows = torch.randint(0, 1600, (64,))
        error = model(x[rows]) * 100_000 + 200_000 - price[rows]
        loss = (error**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4g}")
    with torch.no_grad():
        error = model(x[1600:]) * 100_000 + 200_000 - price[1600:]
    print(f"relative error {(error.pow(2).mean().sqrt() / price[1600:].std()).item():.4f}")


if __name__ == "__main__":
    main()
