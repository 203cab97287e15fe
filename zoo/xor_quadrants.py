"""Points in the plane belong to class 1 where both coordinates have the same sign."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--std", type=float, default=1.0, help="spread of the initial weights")
parser.add_argument("--lr", type=float, default=0.3)
args = parser.parse_args()

torch.manual_seed(29)
points = torch.rand(1200, 2) * 2 - 1
target = (points.prod(1) > 0).float().unsqueeze(1)


class QuadrantNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 24)
        self.last = nn.Linear(24, 1)
        for layer in (self.first, self.last):
            nn.init.normal_(layer.weight, std=args.std)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


model = QuadrantNet()
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
criterion = nn.BCEWithLogitsLoss()
for step in range(600):
    rows = torch.randint(1000, (50,))
    loss = criterion(model(points[rows]), target[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

with torch.no_grad():
    accuracy = ((model(points[1000:]) > 0) == (target[1000:] > 0.5)).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
