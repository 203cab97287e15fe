"""Digits: a network is trained on upright images and then adapted to turned ones with low-rank updates only."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """A frozen linear layer with a trainable update of low rank beside it."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + 2 * x @ self.down.T @ self.up.T


def fit(model, optimizer, x, y, steps):
    for step in range(steps):
        rows = torch.randint(1300, (64,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--train-names", default="down,up", help="parameters to train, by the end of their names")
    args = parser.parse_args()
    torch.manual_seed(31)
    d = load_digits()
    images, y = torch.tensor(d.images, dtype=torch.float32) / 16, torch.tensor(d.target)
    perm = torch.randperm(len(y))
    images, y = images[perm], y[perm]
    upright, turned = images.flatten(1), images.rot90(1, (1, 2)).flatten(1)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 10))
    fit(model, torch.optim.Adam(model.parameters(), lr=2e-3), upright, y, 200)

    for i in (0, 2, 4):
        model[i] = LowRank(model[i], args.rank)
    ends = tuple(args.train_names.split(","))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(ends))
    trained = [p for p in model.parameters() if p.requires_grad]
    print("training", sum(p.numel() for p in trained), "of", sum(p.numel() for p in model.parameters()))
    fit(model, torch.optim.AdamW(trained, lr=args.lr), turned, y, 400)
    with torch.no_grad():
        print(f"test accuracy {(model(turned[1300:]).argmax(1) == y[1300:]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
