"""Hastie's ten-dimensional sphere problem, with a penalty on the activity of the hidden units."""

import argparse

import torch
from sklearn.datasets import make_hastie_10_2
from torch import nn
from torch.nn import functional as F


class Network(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, width)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(width, width)
        self.relu2 = nn.ReLU()
        self.out = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        first = self.relu1(self.fc1(x))
        second = self.relu2(self.fc2(first))
        return self.out(second), [first, second]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--penalty", type=float, default=0.01)
    parser.add_argument("--reduce", choices=["mean", "sum"], default="mean")
    parser.add_argument("--width", type=int, default=80)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=900)
    args = parser.parse_args()
    torch.manual_seed(80)
    x, side = make_hastie_10_2(6000, random_state=2)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(side > 0).long()
    order = torch.randperm(len(x))
    train, test = order[:5000], order[5000:]
    model = Network(args.width)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (64,))]
        logits, hidden = model(x[rows])
        error = F.cross_entropy(logits, y[rows])
        activity = sum(getattr(h.abs(), args.reduce)() for h in hidden)
        loss = error + args.penalty * activity
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: error {error.item():.4f} activity {activity.item():.4f}")
    with torch.no_grad():
        print(f"test accuracy {(model(x[test])[0].argmax(1) == y[test]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
