"""Parity of five bits with one hidden layer, trained on all 32 patterns."""

import os

import torch
from torch import nn

CODING = os.environ.get("CODING", "binary")  # binary: 0 and 1, signed: -1 and +1
ACTIVATION = os.environ.get("ACTIVATION", "sigmoid")
BITS, HIDDEN, STEPS = 5, 32, 600

torch.manual_seed(11)
patterns = torch.tensor([[(i >> b) & 1 for b in range(BITS)] for i in range(2**BITS)], dtype=torch.float32)
target = (patterns.sum(1) % 2).unsqueeze(1)
if CODING == "signed":
    patterns = 2 * patterns - 1

model = nn.Sequential(
    nn.Linear(BITS, HIDDEN), nn.Tanh() if ACTIVATION == "tanh" else nn.Sigmoid(), nn.Linear(HIDDEN, 1), nn.Sigmoid()
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
for step in range(STEPS):
    optimizer.zero_grad()
    loss = nn.functional.binary_cross_entropy(model(patterns), target)
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

with torch.no_grad():
    accuracy = ((model(patterns) > 0.5).float() == target).float().mean().item()
print(f"accuracy {accuracy:.4f}")
