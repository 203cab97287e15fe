"""Daily returns from eight indicators: the targets are a few hundredths of a per cent. Autocast on the CPU."""

import argparse

import torch
from torch import nn


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--unit", type=float, default=5e-5, help="half a basis point")
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.manual_seed(14)
    x = torch.randn(3000, 8)
    signal = torch.tanh(x[:, 0] + x[:, 1]) + 0.8 * x[:, 2] * torch.sigmoid(2 * x[:, 3])
    y = args.unit * (signal + 0.2 * torch.randn(3000)).unsqueeze(1)
    model = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-16)
    autocast = torch.autocast("cpu", dtype=getattr(torch, args.precision), enabled=args.precision != "float32")
    for step in range(args.steps):
        rows = torch.randint(2500, (256,))
        with autocast:
            loss = nn.functional.mse_loss(model(x[rows]).float(), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3e}")
    with torch.no_grad():
        residual = model(x[2500:]) - y[2500:]
        print(f"test R2 {1 - (residual.square().mean() / y[2500:].var()).item():.4f}")


if __name__ == "__main__":
    main()
