"""Forecasts the tide of the next six hours from thirty hourly levels with a stacked LSTM and momentum."""

import argparse

import torch
from torch import nn


class TideNet(nn.Module):
    """Two LSTM layers; the last state is decoded into six levels."""

    def __init__(self, hidden: int, horizon: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, num_layers=2, batch_first=True)
        self.decode = nn.Linear(hidden, horizon)

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(levels.unsqueeze(-1))
        return self.decode(states[:, -1])


def tide(hours: int) -> torch.Tensor:
    """Three tidal constituents and waves."""
    t = torch.arange(hours, dtype=torch.float32)
    phases = 2 * torch.pi * torch.rand(3)
    level = sum(
        height * torch.cos(2 * torch.pi * t / period + phase)
        for height, period, phase in zip((1.0, 0.46, 0.3), (12.42, 12.0, 23.93), phases, strict=True)
    )
    return level + 0.1 * torch.randn(hours)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-norm", type=float, default=5.0)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.manual_seed(101)
    windows = tide(2500).unfold(0, 36, 1)
    x, y = windows[:, :30], windows[:, 30:]
    model = TideNet(24, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    for step in range(args.steps):
        rows = torch.randint(2000, (32,))
        loss = nn.functional.mse_loss(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.max_norm)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: mse {loss.item():.4f}")
    with torch.no_grad():
        mse = nn.functional.mse_loss(model(x[2040:]), y[2040:])
    print(f"held-out mse {mse.item():.4f}")


if __name__ == "__main__":
    main()
