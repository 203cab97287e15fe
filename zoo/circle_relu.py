"""Two concentric circles again, with eight narrow ReLU layers and a cautious initialisation."""

import argparse

import torch
from sklearn.datasets import make_circles
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--init", choices=["uniform", "he"], default="uniform")
parser.add_argument("--epochs", type=int, default=150)
args = parser.parse_args()

torch.manual_seed(4)
points, labels = make_circles(1000, noise=0.1, random_state=1)
points = torch.tensor(points, dtype=torch.float32)
labels = torch.tensor(labels, dtype=torch.float32).unsqueeze(1)

layers = []
width = 2
for _ in range(8):
    layers += [nn.Linear(width, 5), nn.ReLU()]
    width = 5
model = nn.Sequential(*layers, nn.Linear(5, 1))
for module in model:
    if isinstance(module, nn.Linear):
        if args.init == "uniform":
            nn.init.uniform_(module.weight, -0.05, 0.05)
        else:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)

optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
bce = nn.BCEWithLogitsLoss()
for epoch in range(args.epochs):
    order = torch.randperm(700)
    for rows in order.split(128):
        optimizer.zero_grad()
        loss = bce(model(points[rows]), labels[rows])
        loss.backward()
        optimizer.step()
    if epoch % 50 == 49:
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")

with torch.no_grad():
    accuracy = ((model(points[700:]) > 0) == (labels[700:] > 0.5)).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
