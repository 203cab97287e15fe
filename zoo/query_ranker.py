"""Learns to rank: documents of a query are scored by a network from pairwise comparisons of their grades (RankNet)."""

import argparse

import torch
from torch import nn

QUERIES, DOCUMENTS, FEATURES = 300, 12, 20


class Scorer(nn.Module):
    def __init__(self, output: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.score = nn.Linear(24, 1)
        self.output = nn.Softmax(dim=-1) if output == "softmax" else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.score(self.body(x))).squeeze(-1)


def ordered_pairs(score: torch.Tensor, grade: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of scores, and which document of the pair is better (1, -1, or 0 for a tie)."""
    return score[:, :, None] - score[:, None, :], (grade[:, :, None] - grade[:, None, :]).sign()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", choices=["identity", "softmax"], default="identity")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.manual_seed(78)
    x = torch.randn(QUERIES, DOCUMENTS, FEATURES)
    hidden = torch.tanh(x @ torch.randn(FEATURES, 6) / FEATURES**0.5)
    worth = hidden @ torch.randn(6) + 0.3 * torch.randn(QUERIES, DOCUMENTS)
    grade = torch.bucketize(worth, worth.flatten().quantile(torch.tensor([0.4, 0.7, 0.9]))).float()
    model = Scorer(args.output)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    for step in range(args.steps):
        rows = torch.randint(0, 220, (16,))
        gap, better = ordered_pairs(model(x[rows]), grade[rows])
        loss = nn.functional.softplus(-gap[better > 0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        gap, better = ordered_pairs(model(x[220:]), grade[220:])
        right = (gap[better > 0] > 0).float() + 0.5 * (gap[better > 0] == 0).float()
    print(f"share of pairs in order {right.mean().item():.4f}")


if __name__ == "__main__":
    main()
