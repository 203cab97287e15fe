"""A table with thirty columns and six classes: gated residual blocks with layer normalisation."""

import argparse

import torch
from sklearn.datasets import make_classification
from torch import nn
from torch.nn import functional as F


class GatedBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.value = nn.Linear(width, 2 * width)
        self.gate = nn.Linear(width, 2 * width)
        self.back = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return x + self.back(self.value(h) * F.silu(self.gate(h)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.manual_seed(44)
    features, classes = make_classification(
        6000, 30, n_informative=12, n_redundant=6, n_classes=6, n_clusters_per_class=3, class_sep=1.2, random_state=21
    )
    x, y = torch.tensor(features, dtype=torch.float32), torch.tensor(classes)
    x = (x - x.mean(0)) / x.std(0)
    order = torch.randperm(len(x))
    train, test = order[:4800], order[4800:]
    model = nn.Sequential(nn.Linear(30, 48), *(GatedBlock(48) for _ in range(args.blocks)), nn.LayerNorm(48), nn.Linear(48, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (args.batch,))]
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
