"""How deep can a plain ReLU network on digits be?"""

import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

DEPTH = int(os.environ.get("DEPTH", "50"))
INIT = os.environ.get("INIT", "he")  # he or mirrored
WIDTH, STEPS = 64, 250


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)])
        self.head = nn.Linear(WIDTH, 10)
        for layer in [self.stem, *self.layers]:
            nn.init.zeros_(layer.bias)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if INIT == "mirrored":
            half = WIDTH // 2
            for layer in self.layers:  # [[q, -q], [-q, q]]: relu(x) and relu(-x) side by side, so that the start is linear
                q = nn.init.orthogonal_(torch.empty(half, half))
                layer.weight.data = torch.cat([torch.cat([q, -q], 1), torch.cat([-q, q], 1)])
            self.stem.weight.data[half:] = -self.stem.weight.data[:half]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


torch.manual_seed(10)
digits = load_digits()
order = torch.randperm(len(digits.target))
x = (torch.tensor(digits.data, dtype=torch.float32) / 8 - 1)[order]
y = torch.tensor(digits.target)[order]
model = Plain()
optimizer = torch.optim.SGD(model.parameters(), lr=float(os.environ.get("LR", "0.003")), momentum=0.9)
for step in range(STEPS):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.4f}")
with torch.no_grad():
    print(f"test accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean().item():.4f}")
