"""Follows a ground motion with an LSTM that learns online, one window at a time; the noise has heavy tails."""

import argparse

import torch
from torch import nn


class Follower(nn.Module):
    """An LSTM over sixteen samples and a linear readout that starts at zero."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, 1)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (state, _) = self.lstm(x.unsqueeze(-1))
        return self.readout(state[0]).squeeze(1)


def motion(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth motion, and what the instrument reports: with Student noise of three degrees of freedom."""
    t = torch.arange(count, dtype=torch.float32)
    smooth = torch.sin(0.4 * t) + 0.5 * torch.sin(0.17 * t + 1)
    normal, chi = torch.randn(count), torch.randn(count, 3).square().sum(1)
    return smooth, smooth + 0.4 * normal / (chi / 3).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--samples", type=int, default=1500)
    args = parser.parse_args()
    torch.manual_seed(79)
    smooth, report = motion(args.samples + 1000)
    windows, following = report.unfold(0, 16, 1)[:-1], report[16:]
    truth = smooth[16:]
    model = Follower(24)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    for step in range(args.samples):
        loss = nn.functional.smooth_l1_loss(model(windows[step : step + 1]), following[step : step + 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"sample {step}: loss {loss.item():.4f}")
    rest = slice(args.samples, None)
    with torch.no_grad():
        error = (model(windows[rest]) - truth[rest]).square().mean()
    persistence = (windows[rest, -1] - truth[rest]).square().mean()
    print(f"variance of the motion {truth[rest].var().item():.4f}, error of the last report {persistence.item():.4f}")
    print(f"mean squared error {error.item():.4f}")


if __name__ == "__main__":
    main()
