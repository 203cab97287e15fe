"""A plain convolutional network on digits, with warm-up, a cosine schedule and weight decay."""

import math
import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

STEPS = int(os.environ.get("STEPS", "300"))
WARMUP = int(os.environ.get("WARMUP", "60"))
DEPTH = int(os.environ.get("DEPTH", "4"))
PEAK = 0.03


def factor(step: int) -> float:
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def build() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1)]
    for i in range(DEPTH):
        conv = nn.Conv2d(16, 16, 3, padding=1, stride=2 if i % 4 == 1 else 1)
        nn.init.kaiming_normal_(conv.weight, a=0.1)
        layers += [conv, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


def main() -> None:
    torch.manual_seed(13)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    x = torch.tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1) / 8 - 1
    y = torch.tensor(digits.target)[order]
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scheduler = LambdaLR(optimizer, factor)
    for step in range(STEPS):
        rows = torch.randint(0, 1400, (64,))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f} lr {scheduler.get_last_lr()[0]:.4f}")
    with torch.no_grad():
        print(f"test accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
