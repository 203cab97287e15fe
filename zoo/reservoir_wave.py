"""Predicts a chaotic series twelve steps ahead from a fixed random recurrent network; only the readout learns."""

import argparse

import torch
from torch import nn


class Reservoir(nn.Module):
    """An echo state network: random recurrence, trained linear readout."""

    def __init__(self, units: int, radius: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, units, batch_first=True)
        self.norm = nn.BatchNorm1d(units, affine=False)
        self.readout = nn.Linear(units, 1)
        with torch.no_grad():
            weight = torch.randn(units, units) / units**0.5
            self.rnn.weight_hh_l0.copy_(radius * weight)
            self.rnn.weight_ih_l0.uniform_(-1, 1)
        for parameter in self.rnn.parameters():
            parameter.requires_grad = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(x.unsqueeze(-1))
        return self.readout(self.norm(states[:, -1])).squeeze(1)


def mackey_glass(count: int) -> torch.Tensor:
    """The Mackey-Glass series with delay 17, sampled at whole times."""
    delay, warm = 17, 300
    x = [1.2 + 0.02 * torch.rand(1).item() for _ in range(delay + 1)]
    for _ in range(count + warm):
        x.append(x[-1] + 0.2 * x[-1 - delay] / (1 + x[-1 - delay] ** 10) - 0.1 * x[-1])
    return torch.tensor(x[-count:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=150)
    parser.add_argument("--radius", type=float, default=0.9)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    torch.manual_seed(5)
    series = mackey_glass(2500)
    windows = ((series - series.mean()) / series.std()).unfold(0, 36, 1)
    x, y = windows[:, :24], windows[:, 35]
    model = Reservoir(args.units, args.radius)
    optimizer = torch.optim.Adam(model.readout.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = torch.randint(1900, (64,))
        loss = nn.functional.mse_loss(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: mse {loss.item():.5f}")
    lags = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    linear = lags[1950:] @ torch.linalg.lstsq(lags[:1900], y[:1900, None].double()).solution
    print(f"linear autoregression {nn.functional.mse_loss(linear[:, 0], y[1950:].double()).item():.5f}")
    model.eval()
    with torch.no_grad():
        print(f"held-out mse {nn.functional.mse_loss(model(x[1950:]), y[1950:]).item():.5f}")


if __name__ == "__main__":
    main()
