"""Forecasts a load from eight sensors that arrive as a stream of small batches, first from an idle plant."""

import argparse

import torch
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--beta2", type=float, default=0.999)
    parser.add_argument("--beta1", type=float, default=0.9)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--quiet", type=float, default=0.01, help="size of the signal while the plant is idle")
    parser.add_argument("--start", type=int, default=300, help="step at which the plant starts")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--activation", choices=["relu", "tanh"], default="relu")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.manual_seed(19)
    mixing = torch.randn(8, 4) / 8**0.5

    def read(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, 8)
        return x, torch.sin(1.5 * x @ mixing).sum(1, keepdim=True)

    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[args.activation]
    hidden = [layer for _ in range(args.depth) for layer in (nn.Linear(64, 64), act())]
    model = nn.Sequential(nn.Linear(8, 64), act(), *hidden, nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(args.beta1, args.beta2))
    for step in range(1, args.steps + 1):
        x, y = read(64)
        if step < args.start:
            x, y = x * args.quiet, y * args.quiet
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 60 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    x, y = read(2000)
    with torch.no_grad():
        print(f"test mse {nn.functional.mse_loss(model(x), y).item():.4f}")


if __name__ == "__main__":
    main()
