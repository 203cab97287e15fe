"""Handwritten digits with a deep stack of sigmoid layers, written the way a first course would."""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--depth", type=int, default=12)
parser.add_argument("--activation", choices=["sigmoid", "relu"], default="sigmoid")
parser.add_argument("--init", choices=["default", "he"], default="default")
parser.add_argument("--epochs", type=int, default=15)
args = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
X_train, X_test, y_train, y_test = train_test_split(digits.data / 16.0, digits.target, test_size=0.25, random_state=0)
X_train, X_test = torch.tensor(X_train, dtype=torch.float32), torch.tensor(X_test, dtype=torch.float32)
y_train, y_test = torch.tensor(y_train), torch.tensor(y_test)

layers: list[nn.Module] = []
width = 64
for _ in range(args.depth):
    layer = nn.Linear(width, 64)
    if args.init == "he":
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    layers += [layer, nn.Sigmoid() if args.activation == "sigmoid" else nn.ReLU()]
    width = 64
model = nn.Sequential(*layers, nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
loss_fn = nn.CrossEntropyLoss()

for epoch in range(args.epochs):
    order = torch.randperm(len(X_train))
    for i in range(0, len(order), 64):
        idx = order[i : i + 64]
        optimizer.zero_grad()
        loss = loss_fn(model(X_train[idx]), y_train[idx])
        loss.backward()
        optimizer.step()
    if epoch % 5 == 4:
        print(f"epoch {epoch + 1} loss {loss.item():.4f}")

model.eval()
with torch.no_grad():
    accuracy = (model(X_test).argmax(1) == y_test).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
