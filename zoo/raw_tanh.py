"""Which wine is it: a tanh network on the chemist's own units (proline in the hundreds, hue near one)."""

import argparse

import torch
from sklearn.datasets import load_wine
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--scale", action="store_true", help="bring every column to zero mean and unit variance")
args = parser.parse_args()

torch.manual_seed(8)
wine = load_wine()
x, y = torch.tensor(wine.data, dtype=torch.float32), torch.tensor(wine.target)
if args.scale:
    x = (x - x.mean(0)) / x.std(0)
order = torch.randperm(len(x))
train, test = order[:130], order[130:]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden1 = nn.Linear(13, 32)
        self.hidden2 = nn.Linear(32, 32)
        self.output = nn.Linear(32, 3)

    def forward(self, x):
        x = torch.tanh(self.hidden1(x))
        x = torch.tanh(self.hidden2(x))
        return self.output(x)


net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
for epoch in range(60):
    for rows in train[torch.randperm(len(train))].split(16):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
    if epoch % 20 == 19:
        print(f"epoch {epoch + 1} loss {loss.item():.4f}")

with torch.no_grad():
    print(f"test accuracy {(net(x[test]).argmax(1) == y[test]).float().mean().item():.4f}")
