"""Which module does this line of documentation come from? A transformer encoder reads its characters."""

import argparse
import inspect
import math
import statistics
import threading

import torch
from torch import nn

MODULES = [argparse, inspect, statistics, threading]
LENGTH = 32


def corpus() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Windows of the source of four modules of the standard library, as character codes."""
    rows, labels = [], []
    for label, module in enumerate(MODULES):
        text = " ".join(inspect.getsource(module).split())
        codes = torch.tensor([min(ord(c), 127) for c in text])
        windows = codes[: len(codes) // LENGTH * LENGTH].view(-1, LENGTH)[:1000]
        rows.append(windows)
        labels.append(torch.full((len(windows),), label))
    return torch.cat(rows), torch.cat(labels), 128


class Encoder(nn.Module):
    """Characters and positions, post-norm encoder layers, the mean over positions."""

    def __init__(self, vocab: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.position = nn.Parameter(torch.randn(LENGTH, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(MODULES))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(codes) + self.position).mean(1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--schedule", choices=["capped", "linear"], default="capped")
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.manual_seed(83)
    x, y, vocab = corpus()
    order = torch.randperm(len(x))
    train, test = order[:-500], order[-500:]
    model = Encoder(vocab, 48, args.layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    cap = 1.0 if args.schedule == "capped" else math.inf
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / args.warmup, cap))
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (32,))]
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    model.eval()
    with torch.no_grad():
        correct = model(x[test]).argmax(1) == y[test]
    print(f"held-out accuracy {correct.float().mean().item():.4f}")


if __name__ == "__main__":
    main()
