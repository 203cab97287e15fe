"""Twenty sigmoid layers learn to read handwritten digits, or would if their gradients let them.

A plain PyTorch training, the textbook case: no trick, no tool, nothing that knows it is being watched.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--depth", type=int, default=20, help="number of hidden layers")
parser.add_argument("--width", type=int, default=256, help="units of a hidden layer")
parser.add_argument("--sigma", type=float, help="draw weights with std sigma / sqrt(fan_in); default: PyTorch's own")
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--steps", type=int, default=600)
args = parser.parse_args()

torch.manual_seed(0)
digits = np.load(Path(__file__).with_name("digits.npz"))
images = torch.tensor(digits["x"], dtype=torch.float32) / 16
labels = torch.tensor(digits["y"], dtype=torch.long)
order = torch.randperm(len(images))
train, test = order[:1500], order[1500:]

layers = []
size = 64
for _ in range(args.depth):
    layer = nn.Linear(size, args.width)
    if args.sigma is not None:
        nn.init.normal_(layer.weight, std=args.sigma / math.sqrt(size))
        nn.init.zeros_(layer.bias)
    layers += [layer, nn.Sigmoid()]
    size = args.width
model = nn.Sequential(*layers, nn.Linear(size, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
loss_fn = nn.CrossEntropyLoss()

for step in range(args.steps):
    batch = train[torch.randint(len(train), (64,))]
    loss = loss_fn(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with torch.no_grad():
    right = (model(images).argmax(1) == labels).float()
print(
    f"loss {loss.item():.3f}, training accuracy {right[train].mean():.3f}, test accuracy {right[test].mean():.3f} "
    "(a guess is right in 0.1 of cases)"
)
