"""Full-batch gradient descent with a large step on three hundred digits, squared error."""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn

LR = float(os.environ.get("LR", "0.4"))
STEPS, WIDTH = 600, 50

torch.manual_seed(6)
digits = load_digits()
order = torch.randperm(len(digits.target))
images = torch.tensor(digits.data, dtype=torch.float32)[order]
images = (images - images.mean()) / images.std()
labels = torch.tensor(digits.target)[order]
x, target = images[:300], nn.functional.one_hot(labels[:300], 10).float()

model = nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))
losses = []
for step in range(STEPS):
    loss = ((model(x) - target) ** 2).sum(1).mean() / 2
    losses.append(loss.item())
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= LR * parameter.grad
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

ups = sum(b > a for a, b in zip(losses, losses[1:], strict=False))
print(f"the loss went up in {ups} of {STEPS - 1} steps")
with torch.no_grad():
    accuracy = (model(images[300:]).argmax(1) == labels[300:]).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
