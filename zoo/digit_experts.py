"""A mixture of experts on digits: a router sends every image through its two best experts."""

import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

CONTAINER = os.environ.get("CONTAINER", "module")
EXPERTS = int(os.environ.get("EXPERTS", "8"))


class Expert(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.up(x)))


class Mixture(nn.Module):
    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.router = nn.Linear(width, EXPERTS)
        experts = [Expert(width) for _ in range(EXPERTS)]
        self.experts = nn.ModuleList(experts) if CONTAINER == "module" else experts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.stem(x))
        weight, chosen = self.router(x).softmax(1).topk(2, dim=1)
        out = torch.zeros(len(x), 10)
        for i, expert in enumerate(self.experts):
            gate = (weight * (chosen == i)).sum(1)
            rows = gate.nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, gate[rows, None] * expert(x[rows]))
        return out


torch.manual_seed(17)
digits = load_digits()
order = torch.randperm(len(digits.target))
x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
y = torch.tensor(digits.target)[order]
model = Mixture()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(400):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.4f}")
with torch.no_grad():
    accuracy = (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
