"""A plain MLP of very many layers reads handwritten digits, or would if anything arrived at its end.

The training that benchmarks/depth.py cures. It is written as users write, and knows nothing of Gradiometer.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--activation", choices=("Tanh", "ReLU"), default="Tanh")
parser.add_argument("--layers", type=int, default=1000)
parser.add_argument("--width", type=int, default=32)
parser.add_argument("--lr", type=float, default=1e-4)
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--steps", type=int, default=600)
args = parser.parse_args()

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32) / 8 - 1
labels = torch.tensor(labels)
order = torch.randperm(len(images))
train, test = order[:1500], order[1500:]

layers = []
size = 64
for _ in range(args.layers):
    layers += [nn.Linear(size, args.width), getattr(nn, args.activation)()]
    size = args.width
model = nn.Sequential(*layers, nn.Linear(size, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)

for step in range(args.steps):
    batch = train[torch.randint(len(train), (args.batch,))]
    loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 99:
        print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)

with torch.no_grad():
    right = model(images).argmax(1) == labels
print(f"training accuracy {right[train].float().mean():.4f}, test accuracy {right[test].float().mean():.4f}")
