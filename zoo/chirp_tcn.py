"""Tells rising, falling, steady and trembling tones apart with a deep stack of temporal convolutions."""

import argparse

import torch
from torch import nn


class Stack(nn.Module):
    """Convolutions with tanh in between, then the mean over time."""

    def __init__(self, width: int, depth: int, init: str) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 5, padding=2)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(depth))
        self.head = nn.Linear(width, 4)
        if init == "delta":
            for conv in self.layers:
                nn.init.dirac_(conv.weight)
                nn.init.zeros_(conv.bias)
                with torch.no_grad():
                    conv.weight.add_(0.02 * torch.randn_like(conv.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).tanh()
        for conv in self.layers:
            h = conv(h).tanh()
        return self.head(h.abs().mean(2))


def tones(count: int, length: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy tones with a phase of their own; the label is how the pitch moves."""
    label = torch.randint(4, (count,))
    t = torch.linspace(0, 1, length)
    pitch = (4 + 2 * torch.rand(count, 1)).expand(-1, length)
    slope = torch.where(label == 0, 6.0, torch.where(label == 1, -3.0, 0.0))[:, None]
    wobble = torch.where(label == 3, 3.0, 0.0)[:, None] * torch.sin(6 * torch.pi * t)
    phase = torch.cumsum(pitch + slope * t + wobble, dim=1) / length + torch.rand(count, 1)
    wave = torch.sin(2 * torch.pi * phase)
    return (wave + 0.1 * torch.randn(count, length)).unsqueeze(1), label


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--init", choices=["delta", "default"], default="delta")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.manual_seed(59)
    x_test, y_test = tones(1000)
    model = Stack(16, args.depth, args.init)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        x, y = tones(24)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 80 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        correct = model(x_test).argmax(1) == y_test
    print(f"held-out accuracy {correct.float().mean().item():.4f}")


if __name__ == "__main__":
    main()
