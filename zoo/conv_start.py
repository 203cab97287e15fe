"""Digits with four convolutions and a choice of initialisations."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


def initialise(model: nn.Module, kind: str) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if kind == "constant":
                nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            elif kind == "kaiming":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


parser = argparse.ArgumentParser()
parser.add_argument("--init", choices=["default", "kaiming", "constant"], default="default")
parser.add_argument("--steps", type=int, default=250)
args = parser.parse_args()

torch.manual_seed(1)
digits = load_digits()
order = torch.randperm(len(digits.target))
images = torch.tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1) / 16
labels = torch.tensor(digits.target)[order]

model = nn.Sequential(
    nn.Conv2d(1, 12, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(12, 12, 3, padding=1, stride=2),
    nn.ReLU(),
    nn.Conv2d(12, 24, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(24, 24, 3, padding=1, stride=2),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(96, 10),
)
initialise(model, args.init)
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
for step in range(args.steps):
    batch = torch.randint(0, 1400, (64,))
    loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.4f}")
with torch.no_grad():
    accuracy = (model(images[1400:]).argmax(1) == labels[1400:]).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
