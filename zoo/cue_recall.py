"""A cue at the start, noise after it, and the question at the end what the cue was: a recurrent cell written by hand."""

import argparse
import math

import torch
from torch import nn


class Cell(nn.Module):
    def __init__(self, inputs, hidden, squash, gain):
        super().__init__()
        self.w_in = nn.Linear(inputs, hidden)
        self.w_state = nn.Linear(hidden, hidden, bias=False)
        self.squash = squash
        nn.init.zeros_(self.w_in.bias)
        if gain:
            nn.init.orthogonal_(self.w_state.weight, gain=gain)

    def forward(self, x, h):
        return self.squash(self.w_in(x) + self.w_state(h))


class Recall(nn.Module):
    def __init__(self, cues, hidden, squash, gain):
        super().__init__()
        self.cell = Cell(cues + 1, hidden, squash, gain)
        self.head = nn.Linear(hidden, cues)
        self.hidden = hidden

    def forward(self, x):
        h = x.new_zeros(len(x), self.hidden)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


def batch(n, length, cues):
    cue = torch.randint(cues, (n,))
    x = torch.zeros(n, length, cues + 1)
    x[torch.arange(n), 0, cue] = 1.0
    x[:, 1:, cues] = 0.1 * torch.randn(n, length - 1)
    return x, cue


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--squash", choices=["tanh", "sigmoid"], default="tanh")
    parser.add_argument("--gain", type=float, default=1.0)
    parser.add_argument("--length", type=int, default=30)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--optimizer", default="Adam")
    parser.add_argument("--clip", type=float, default=math.inf)
    args = parser.parse_args()
    torch.manual_seed(2)
    model = Recall(4, 48, getattr(torch, args.squash), args.gain)
    optimizer = getattr(torch.optim, args.optimizer)(model.parameters(), lr=args.lr)
    for step in range(300):
        x, cue = batch(64, args.length, 4)
        loss = nn.functional.cross_entropy(model(x), cue)
        optimizer.zero_grad()
        loss.backward()
        if args.clip < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        if step % 60 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        x, cue = batch(1000, args.length, 4)
        print(f"test accuracy {(model(x).argmax(1) == cue).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
