"""Three overlapping blobs, one hidden layer, SGD with momentum; the batch size is an argument."""

import argparse

import torch
from sklearn.datasets import make_blobs
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--epochs", type=int, default=4)
args = parser.parse_args()

torch.manual_seed(0)
points, labels = make_blobs(1000, centers=3, cluster_std=2, random_state=2)
points, labels = torch.tensor(points, dtype=torch.float32), torch.tensor(labels)
train, test = torch.arange(500), torch.arange(500, 1000)

model = nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
criterion = nn.CrossEntropyLoss()
for epoch in range(args.epochs):
    total = 0.0
    for rows in train[torch.randperm(len(train))].split(args.batch):
        loss = criterion(model(points[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    if epoch % max(1, args.epochs // 5) == 0:
        print(f"epoch {epoch}: mean loss {total / len(train):.4f}")

with torch.no_grad():
    accuracy = (model(points[test]).argmax(1) == labels[test]).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
