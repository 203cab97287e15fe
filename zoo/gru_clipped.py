"""The adding problem with a gated recurrent network; the gradient is clipped at a norm below every norm there is."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--clip", type=float, default=0.02)
parser.add_argument("--length", type=int, default=20)
parser.add_argument("--steps", type=int, default=500)
args = parser.parse_args()
torch.manual_seed(0)


class Adder(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.rnn = nn.GRU(2, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 1)

    def forward(self, x):
        _, h = self.rnn(x)
        return self.fc(h[-1]).squeeze(1)


def batch(size=64):
    values = torch.rand(size, args.length)
    marks = torch.zeros(size, args.length)
    half = args.length // 2
    rows = torch.arange(size)
    marks[rows, torch.randint(0, half, (size,))] = 1
    marks[rows, torch.randint(half, args.length, (size,))] = 1
    return torch.stack([values, marks], 2), (values * marks).sum(1)


model = Adder()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(args.steps):
    x, y = batch()
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), args.clip)
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: mse {loss.item():.4f}, gradient norm {norm.item():.3f}")

with torch.no_grad():
    x, y = batch(1000)
    print(f"test mse {nn.functional.mse_loss(model(x), y).item():.4f}")
