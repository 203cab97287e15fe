"""Digits with a small convolutional network: functional ReLU and pooling, batch normalisation, StepLR."""

import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn, optim

BATCH_NORM = os.environ.get("BATCH_NORM", "1") == "1"


class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=not BATCH_NORM)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=not BATCH_NORM)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=not BATCH_NORM)
        self.bn1 = nn.BatchNorm2d(16) if BATCH_NORM else nn.Identity()
        self.bn2 = nn.BatchNorm2d(32) if BATCH_NORM else nn.Identity()
        self.bn3 = nn.BatchNorm2d(32) if BATCH_NORM else nn.Identity()
        self.fc = nn.Linear(32 * 4, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        x = torch.flatten(x, 1)
        return F.log_softmax(self.fc(x), dim=1)


def train(model, optimizer, x, y):
    model.train()
    order = torch.randperm(len(x))
    for chunk in order.split(64):
        optimizer.zero_grad()
        loss = F.nll_loss(model(x[chunk]), y[chunk])
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def test(model, x, y):
    model.eval()
    return (model(x).argmax(dim=1) == y).float().mean().item()


def main():
    torch.manual_seed(42)
    d = load_digits()
    x = torch.tensor(d.images, dtype=torch.float32).unsqueeze(1) / 16.0
    y = torch.tensor(d.target)
    model = Net()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.3)
    for epoch in range(12):
        loss = train(model, optimizer, x[:1400], y[:1400])
        scheduler.step()
        print("epoch", epoch, "loss", round(loss, 4), "test accuracy", round(test(model, x[1400:], y[1400:]), 4))


if __name__ == "__main__":
    main()
