"""Remember the first symbol of a sequence: a recurrent cell, unrolled by hand."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--length", type=int, default=50)
parser.add_argument("--recurrent", choices=["default", "orthogonal"], default="default")
parser.add_argument("--steps", type=int, default=250)
args = parser.parse_args()

SYMBOLS, HIDDEN, BATCH = 8, 48, 64
torch.manual_seed(9)


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, HIDDEN)
        self.cell = nn.RNNCell(HIDDEN, HIDDEN)
        self.readout = nn.Linear(HIDDEN, SYMBOLS)
        if args.recurrent == "orthogonal":
            nn.init.orthogonal_(self.cell.weight_hh)
            nn.init.normal_(self.embed.weight, std=0.3)
            nn.init.normal_(self.cell.weight_ih, std=0.02)

    def forward(self, tokens):
        h = torch.zeros(tokens.shape[0], HIDDEN)
        for t in range(tokens.shape[1]):
            h = self.cell(self.embed(tokens[:, t]), h)
        return self.readout(h)


def batch():
    tokens = torch.randint(0, SYMBOLS, (BATCH, args.length))
    tokens[:, 1:] = 0  # the rest is silence
    return tokens, tokens[:, 0].clone()


model = Memory()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(args.steps):
    tokens, first = batch()
    optimizer.zero_grad()
    loss = criterion(model(tokens), first)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

with torch.no_grad():
    tokens, first = batch()
    print(f"accuracy {(model(tokens).argmax(1) == first).float().mean().item():.4f}")
