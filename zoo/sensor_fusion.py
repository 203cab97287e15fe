"""Estimates a position from twenty-four noisy readings with self-attention and a mean over the readings."""

import argparse

import torch
from torch import nn


class Fusion(nn.Module):
    """One learned query reads all sensors; a small network turns what it read into a position."""

    def __init__(self, width: int, init: str) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.w_q = nn.Parameter(torch.empty(width, width))
        self.w_k = nn.Parameter(torch.empty(width, width))
        self.w_v = nn.Linear(width, width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        for weight in (self.w_q, self.w_k):
            if init == "randn":
                nn.init.normal_(weight)
            else:
                nn.init.xavier_uniform_(weight)

    def forward(self, readings: torch.Tensor) -> torch.Tensor:
        h = self.embed(readings)
        scores = (h @ self.w_q) @ (h @ self.w_k).transpose(1, 2) / h.shape[-1] ** 0.5
        fused = scores.softmax(dim=-1) @ self.w_v(h)
        return self.head(fused.mean(1))


def scenes(count: int, sensors: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Readings of a position in two frames of reference, each with its own error."""
    position = torch.randn(count, 2)
    angle = 0.6
    turn = torch.tensor([[torch.cos(torch.tensor(angle)), -torch.sin(torch.tensor(angle))], [0.56, 0.83]])
    direct = position[:, None] + 1.5 * torch.randn(count, sensors, 2)
    turned = (position @ turn)[:, None] + 1.5 * torch.randn(count, sensors, 2)
    clutter = torch.randn(count, sensors, 2)
    return torch.cat([direct, turned, clutter], dim=-1), position


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--init", choices=["xavier", "randn"], default="xavier")
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.manual_seed(29)
    x_test, y_test = scenes(1000)
    model = Fusion(args.width, args.init)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        x, y = scenes(64)
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: mse {loss.item():.4f}")
    with torch.no_grad():
        print(f"held-out mse {nn.functional.mse_loss(model(x_test), y_test).item():.4f}")


if __name__ == "__main__":
    main()
