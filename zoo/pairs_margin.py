"""An embedding of digits: pairs of the same class close together, others at least a margin apart."""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn

EPS = float(os.environ.get("EPS", "0"))
SCALER = os.environ.get("SCALER", "on") == "on"


class Embedding(nn.Module):
    def __init__(self, dimension=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.project = nn.Linear(64, dimension)

    def forward(self, x):
        return self.project(self.body(x))


def pair_loss(z, labels, margin=2.0):
    distance = torch.sqrt(((z[:, None] - z[None]) ** 2).sum(2) + EPS)
    same = (labels[:, None] == labels[None]).float()
    return (same * distance**2 + (1 - same) * (margin - distance).clamp(min=0) ** 2).mean()


torch.manual_seed(6)
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
order = torch.randperm(len(x))
train, test = order[:1300], order[1300:]
model = Embedding()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
scaler = torch.amp.GradScaler("cpu", enabled=SCALER)
for step in range(300):
    rows = train[torch.randint(len(train), (64,))]
    optimizer.zero_grad()
    loss = pair_loss(model(x[rows]), y[rows])
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

with torch.no_grad():
    print(f"test loss {pair_loss(model(x[test]), y[test]).item():.4f}")
