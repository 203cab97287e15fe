"""Digits as sixteen patches of 2x2 pixels, pooled by one layer of attention."""

import argparse
import math

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F


class AttentionPool(nn.Module):
    def __init__(self, width: int, queries: int, scaled: bool, std: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width) * std)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        nn.init.normal_(self.key.weight, std=std)
        self.factor = 1 / math.sqrt(width) if scaled else 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.query @ self.key(x).transpose(1, 2) * self.factor  # batch, queries, patches
        return (scores.softmax(-1) @ self.value(x)).flatten(1)


class PatchClassifier(nn.Module):
    def __init__(self, scaled: bool, std: float, width: int = 64, queries: int = 4) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.position = nn.Parameter(torch.randn(16, width))
        self.pool = AttentionPool(width, queries, scaled, std)
        self.head = nn.Sequential(nn.Linear(queries * width, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(F.layer_norm(self.patch(x) + self.position, (64,))))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--unscaled", action="store_true")
    parser.add_argument("--std", type=float, default=0.1, help="of the queries and keys")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.manual_seed(77)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 8 - 1
    patches = F.unfold(images[:, None], 2, stride=2).transpose(1, 2)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    train, test = order[:1400], order[1400:]
    model = PatchClassifier(not args.unscaled, args.std)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = train[torch.randint(0, len(train), (64,))]
        loss = F.cross_entropy(model(patches[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        accuracy = (model(patches[test]).argmax(1) == labels[test]).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
