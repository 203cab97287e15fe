"""Digits with a residual convolutional trunk of twenty-eight blocks."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, channels: int, norm: bool, drop: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels) if norm else nn.Identity()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.drop = drop
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.drop and torch.rand(()).item() < self.drop:
            return x
        return x + self.conv2(F.relu(self.conv1(F.relu(self.norm(x)))))


class Trunk(nn.Module):
    def __init__(self, blocks: int, channels: int, norm: bool, drop: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(channels, norm, drop) for _ in range(blocks))
        self.last = nn.GroupNorm(2, channels) if norm else nn.Identity()
        self.head = nn.Linear(channels * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(F.relu(self.last(x)).flatten(1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--norm", choices=["group", "none"], default="group")
    parser.add_argument("--blocks", type=int, default=28)
    parser.add_argument("--drop", type=float, default=0.0, help="probability that a block is left out of a step")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args()
    torch.manual_seed(14)
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, test = order[:1300], order[1300:]
    model = Trunk(args.blocks, 10, args.norm == "group", args.drop)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (32,))]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step}: loss {loss.item():.4g}")
    model.eval()
    with torch.no_grad():
        print(f"test accuracy {(model(x[test]).argmax(1) == y[test]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
