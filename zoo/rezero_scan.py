"""Classifies the rows of handwritten digits with a deep encoder whose branches start at zero weight (ReZero)."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


class ReZeroLayer(nn.Module):
    """Attention and feed-forward branches, each multiplied by a learned number that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.alpha = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.alpha[0] * self.attention(x, x, x, need_weights=False)[0]
        return x + self.alpha[1] * self.feed(x)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=220)
    args = parser.parse_args()
    torch.manual_seed(67)
    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    width = 32
    position = nn.Parameter(0.1 * torch.randn(8, width))
    embed = nn.Linear(8, width)
    layers = nn.Sequential(*(ReZeroLayer(width) for _ in range(args.layers)))
    head = nn.Linear(8 * width, 10)
    model = nn.ModuleDict({"embed": embed, "layers": layers, "head": head})
    model.register_parameter("position", position)

    def predict(rows: torch.Tensor) -> torch.Tensor:
        return head(layers(embed(rows) + position).flatten(1))

    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        picked = torch.randint(1400, (32,))
        loss = nn.functional.cross_entropy(predict(x[picked]), y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        correct = predict(x[1400:]).argmax(1) == y[1400:]
    print(f"held-out accuracy {correct.float().mean().item():.4f}")


if __name__ == "__main__":
    main()
