"""Forecasts the next reading of a meter with a GRU, from deliveries of past readings."""

import argparse

import torch
from torch import nn


class MeterNet(nn.Module):
    """A GRU over the last 24 readings and a linear readout of the change."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(1, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(x.unsqueeze(-1))
        return self.readout(states[:, -1]).squeeze(1)


def readings(count: int) -> torch.Tensor:
    """A load with two rhythms and correlated noise."""
    t = torch.arange(count, dtype=torch.float32)
    noise = torch.zeros(count)
    shocks = 0.15 * torch.randn(count)
    for i in range(1, count):
        noise[i] = 0.7 * noise[i - 1] + shocks[i]
    return torch.sin(2 * torch.pi * t / 24) * (1 + 0.5 * torch.sin(2 * torch.pi * t / 168)) + noise


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--glitches", type=int, default=0, help="deliveries in Wh instead of kWh")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--clip", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.manual_seed(47)
    windows = readings(3000).unfold(0, 25, 1)
    train, test = windows[:2400], windows[2430:]
    model = MeterNet(32)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    wrong = set((torch.linspace(0.4, 0.97, args.glitches) * args.steps).long().tolist())
    for step in range(args.steps):
        batch = train[torch.randint(len(train), (32,))]
        if step in wrong:
            batch = batch * 1000
        loss = nn.functional.mse_loss(model(batch[:, :-1]), batch[:, -1])
        optimizer.zero_grad()
        loss.backward()
        if args.clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: mse {loss.item():.4f}")
    with torch.no_grad():
        mse = nn.functional.mse_loss(model(test[:, :-1]), test[:, -1])
    print(f"held-out mse {mse.item():.5g}")


if __name__ == "__main__":
    main()
