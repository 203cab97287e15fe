"""Digits with twelve 3x3 convolutions and softplus."""

import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

NORM = os.environ.get("NORM", "group")
CHANNELS, LAYERS = 16, 12


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, channels) if NORM == "group" else nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.softplus(self.norm(self.conv(x)))


torch.manual_seed(11)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
model = nn.Sequential(
    nn.Conv2d(1, CHANNELS, 3, padding=1), *[Block(CHANNELS) for _ in range(LAYERS)], nn.Flatten(), nn.Linear(CHANNELS * 64, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
for step in range(150):
    rows = torch.randint(0, 1400, (48,))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images[rows]), labels[rows])
    loss.backward()
    optimizer.step()
    if step % 30 == 0:
        print(f"{step}: {loss.item():.4f}")
model.eval()
with torch.no_grad():
    accuracy = (model(images[1400:]).argmax(1) == labels[1400:]).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
