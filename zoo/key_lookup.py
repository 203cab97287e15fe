"""Looks up the value that belongs to a key in a list of key-value pairs, with attention."""

import argparse

import torch
from torch import nn

KEYS, VALUES, PAIRS = 24, 8, 10


class Lookup(nn.Module):
    """The query attends to the pairs; what it finds is decoded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Embedding(KEYS, width)
        self.value = nn.Embedding(VALUES, width)
        self.ask = nn.Linear(width, width, bias=False)
        self.match = nn.Linear(width, width, bias=False)
        self.carry = nn.Linear(width, width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, VALUES))

    def forward(self, keys: torch.Tensor, values: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        pairs = self.key(keys) + self.value(values)
        scores = self.match(pairs) @ self.ask(self.key(query)).unsqueeze(2)
        weights = (scores / pairs.shape[-1] ** 0.5).softmax(dim=1)
        return self.head((weights * self.carry(pairs)).sum(1))


def lists(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distinct keys, any values, one of the keys as the query, and its value."""
    keys = torch.rand(count, KEYS).argsort(1)[:, :PAIRS]
    values = torch.randint(VALUES, (count, PAIRS))
    which = torch.randint(PAIRS, (count,))
    rows = torch.arange(count)
    return keys, values, keys[rows, which], values[rows, which]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=700)
    args = parser.parse_args()
    torch.manual_seed(37)
    model = Lookup(args.width).to(getattr(torch, args.dtype))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        keys, values, query, answer = lists(64)
        loss = nn.functional.cross_entropy(model(keys, values, query).float(), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        keys, values, query, answer = lists(2000)
        correct = model(keys, values, query).argmax(1) == answer
    print(f"right answers {correct.float().mean().item():.4f}")


if __name__ == "__main__":
    main()
