"""The shape of a loaded string, u'' = -f with both ends fixed, by a physics-informed network."""

import argparse
import math

import torch
from torch import nn


def load(x: torch.Tensor) -> torch.Tensor:
    return math.pi**2 * torch.sin(math.pi * x) + 2 * math.pi**2 * torch.sin(2 * math.pi * x)


def exact(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(math.pi * x) + 0.5 * torch.sin(2 * math.pi * x)


def derivative(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--activation", choices=["Tanh", "ReLU", "SiLU"], default="Tanh")
    parser.add_argument("--width", type=int, default=40)
    parser.add_argument("--boundary", type=float, default=100.0, help="weight of the boundary")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    torch.manual_seed(72)
    act = getattr(nn, args.activation)
    net = nn.Sequential(nn.Linear(1, args.width), act(), nn.Linear(args.width, args.width), act(), nn.Linear(args.width, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    ends = torch.tensor([[0.0], [1.0]])
    for step in range(args.steps):
        x = torch.rand(64, 1, requires_grad=True)
        u = net(x)
        bend = derivative(derivative(u, x), x)
        residual = (bend + load(x)).square().mean()
        boundary = net(ends).square().mean()
        loss = residual + args.boundary * boundary
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == args.steps // 2:
            optimizer.param_groups[0]["lr"] = args.lr / 5
        if step % 200 == 0:
            print(f"step {step}: residual {residual.item():.4f} boundary {boundary.item():.5f}")
    with torch.no_grad():
        x = torch.linspace(0, 1, 201)[:, None]
        error = (net(x) - exact(x)).norm() / exact(x).norm()
    print(f"relative error {error.item():.4f}")


if __name__ == "__main__":
    main()
