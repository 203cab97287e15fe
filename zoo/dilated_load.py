"""Forecasts an electricity load six hours ahead from the last four days with a temporal convolutional network."""

import argparse

import torch
from torch import nn


class Branch(nn.Module):
    """Two causal convolutions beside a skip connection."""

    def __init__(self, width: int, dilation: int, scale: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.scale = scale
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.conv2(self.conv1(x.relu()).relu())


class LoadNet(nn.Module):
    """A stack of branches; the last position is decoded."""

    def __init__(self, width: int, depth: int, scale: float) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(Branch(width, 2 ** (i % 5), scale) for i in range(depth))
        self.head = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x.unsqueeze(1))
        for block in self.blocks:
            h = block(h)
        return self.head(h[:, :, -1]).squeeze(1)


def load_curve(hours: int) -> torch.Tensor:
    """Daily and weekly rhythm, weather that wanders, noise."""
    t = torch.arange(hours, dtype=torch.float32)
    day = torch.sin(2 * torch.pi * t / 24) + 0.4 * torch.sin(4 * torch.pi * t / 24 + 1)
    week = 0.5 * (t // 24 % 7 >= 5).float()
    weather = torch.zeros(hours)
    shocks = 0.05 * torch.randn(hours)
    for i in range(1, hours):
        weather[i] = 0.98 * weather[i - 1] + shocks[i]
    return day * (1 - week) + weather + 0.1 * torch.randn(hours)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=250)
    args = parser.parse_args()
    torch.manual_seed(13)
    curve = load_curve(4000).unfold(0, 96 + 6, 1)
    x, y = curve[:, :96], curve[:, -1]
    train, test = slice(0, 3000), slice(3100, None)
    model = LoadNet(16, args.depth, args.scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = torch.randint(3000, (16,))
        loss = nn.functional.mse_loss(model(x[train][rows]), y[train][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: mse {loss.item():.4f}")
    with torch.no_grad():
        mse = nn.functional.mse_loss(model(x[test]), y[test])
    print(f"variance of the load {y[test].var().item():.4f}")
    print(f"held-out mse {mse.item():.4f}")


if __name__ == "__main__":
    main()
