"""A twenty-two layer ReLU network with the framework's default initialisation."""

import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

INIT = os.environ.get("INIT", "default")  # "he" for the initialisation of He et al.


class Deep(nn.Module):
    def __init__(self, depth=22, width=64):
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.head = nn.Linear(width, 10)
        if INIT == "he":
            for layer in [self.stem, *self.layers]:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


def accuracy(model, x, y):
    model.eval()
    with torch.no_grad():
        result = (model(x).argmax(1) == y).float().mean().item()
    model.train()
    return result


def main():
    torch.manual_seed(3)
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    y = torch.tensor(data.target)
    perm = torch.randperm(len(x))
    train, test = perm[:1400], perm[1400:]
    model = Deep()
    opt = torch.optim.SGD(model.parameters(), lr=float(os.environ.get("LR", "0.01")), momentum=0.9)
    for step in range(400):
        batch = train[torch.randint(len(train), (64,))]
        loss = F.cross_entropy(model(x[batch]), y[batch])
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}, accuracy so far {accuracy(model, x[test], y[test]):.3f}")
    print(f"test accuracy {accuracy(model, x[test], y[test]):.4f}")


main()
