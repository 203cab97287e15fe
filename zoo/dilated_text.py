"""A character model from dilated causal convolutions; the decoder shares its weights with the embedding."""

import argparse
import inspect
import statistics
import threading

import torch
from torch import nn


class Causal(nn.Module):
    """A gated causal convolution with a skip connection."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.norm = nn.GroupNorm(1, width)
        self.conv = nn.Conv1d(width, 2 * width, 3, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(nn.functional.pad(self.norm(x), (self.pad, 0)))
        return x + self.mix(nn.functional.glu(h, dim=1))


class DilatedText(nn.Module):
    """Embedding, blocks of growing dilation, tied decoder."""

    def __init__(self, vocab: int, width: int, std: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.Sequential(*(Causal(width, d) for d in (1, 2, 4, 8)))
        self.decode = nn.Linear(width, vocab)
        self.decode.weight = self.embed.weight
        self.scale = width**0.5
        nn.init.normal_(self.embed.weight, std=std)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.decode(self.blocks(self.scale * self.embed(codes).transpose(1, 2)).transpose(1, 2))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--std", type=float, default=0.125)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--window", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(97)
    text = " ".join((inspect.getsource(argparse) + inspect.getsource(statistics) + inspect.getsource(threading)).split())
    chars = sorted(set(text))
    lookup = {c: i for i, c in enumerate(chars)}
    codes = torch.tensor([lookup[c] for c in text])
    rows = codes[: len(codes) // args.window * args.window].view(-1, args.window)
    order = torch.randperm(len(rows))
    train, test = rows[order[:-200]], rows[order[-200:]]
    model = DilatedText(len(chars), 64, args.std)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    for step in range(args.steps):
        batch = train[torch.randint(len(train), (24,))]
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 60 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(test[:, :-1]).flatten(0, 1), test[:, 1:].flatten())
    print(f"held-out loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
