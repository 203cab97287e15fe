"""A hypernetwork writes the middle layer of a small regression network for every family of curves, given by two numbers."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, FAMILIES, POINTS = 16, 12, 32


class Curves(nn.Module):
    def __init__(self, write: str) -> None:
        super().__init__()
        self.write = write
        self.hyper = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, WIDTH * WIDTH + WIDTH))
        self.enter, self.leave = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 1)
        if write == "copy":
            self.middle = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        made = self.hyper(code)
        weight, bias = made[: WIDTH * WIDTH].view(WIDTH, WIDTH), made[WIDTH * WIDTH :]
        h = torch.tanh(self.enter(x))
        if self.write == "copy":
            self.middle.weight.data.copy_(weight)
            self.middle.bias.data.copy_(bias)
            h = self.middle(h)
        else:
            h = F.linear(h, weight, bias)
        return self.leave(torch.tanh(h))


def curve(x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    return torch.sin(2 * x + 1.5 * code[0]) * code[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", choices=["copy", "call"], default="call")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.manual_seed(77)
    model = Curves(args.write)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        codes = torch.randn(FAMILIES, 2)
        losses = []
        optimizer.zero_grad()
        for code in codes:
            x = 4 * torch.rand(POINTS, 1) - 2
            loss = F.mse_loss(model(x, code), curve(x, code)) / FAMILIES
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        if step % 60 == 0:
            print(f"step {step}: loss {sum(losses):.4f}")
    with torch.no_grad():
        x = torch.linspace(-2, 2, 50)[:, None]
        errors = [F.mse_loss(model(x, code), curve(x, code)) for code in torch.randn(200, 2)]
    print(f"test mse {torch.stack(errors).mean().item():.4f}")


if __name__ == "__main__":
    main()
