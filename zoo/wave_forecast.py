"""The next value of a noisy mixture of waves from the sixteen before it; the series may get louder on the way."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F


def series(n, volume):
    t = torch.arange(n, dtype=torch.float32)
    wave = torch.sin(0.31 * t) + 0.6 * torch.sin(0.77 * t + 1.0) * torch.cos(0.05 * t) + 0.05 * torch.randn(n)
    return wave * volume


def windows(x, length=16):
    w = x.unfold(0, length + 1, 1)
    return w[:, :-1], w[:, -1:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quiet", type=int, default=0, help="steps on the quiet part of the series")
    parser.add_argument("--volume", type=float, default=0.02, help="how loud that part is")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--beta2", type=float, default=0.98)
    parser.add_argument("--momentum", type=float, default=0.9)
    args = parser.parse_args()
    torch.manual_seed(23)
    quiet, loud, test = (windows(series(1500, v)) for v in (args.volume, 1.0, 1.0))
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, args.beta2))
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    for step in range(args.quiet + args.steps):
        x, y = quiet if step < args.quiet else loud
        rows = torch.randint(len(x), (64,))
        loss = F.mse_loss(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: mse {loss.item():.5f}")
    with torch.no_grad():
        print(f"test mse {F.mse_loss(model(test[0]), test[1]).item():.5f}")


if __name__ == "__main__":
    main()
