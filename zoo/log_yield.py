"""The logarithm of a yield between 0 and 1, from six measurements: a tanh network with a regression head."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn


class YieldNet(nn.Module):
    def __init__(self, positive):
        super().__init__()
        self.hidden1 = nn.Linear(6, 40)
        self.hidden2 = nn.Linear(40, 40)
        self.head = nn.Linear(40, 1)
        self.positive = positive

    def forward(self, x):
        x = torch.tanh(self.hidden1(x))
        x = torch.tanh(self.hidden2(x))
        y = self.head(x).squeeze(1)
        return F.relu(y) if self.positive else y


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--positive", action="store_true", help="the output must not be negative")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.manual_seed(3)
    x = torch.rand(1500, 6) * 2 - 1
    amount = torch.sigmoid(2 * x[:, 0] - x[:, 1] * x[:, 2] + torch.sin(2 * x[:, 3]) + 0.1 * torch.randn(1500))
    y = torch.log(amount)
    model = YieldNet(args.positive)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(1, args.epochs + 1):
        for rows in torch.randperm(1200).split(100):
            loss = F.mse_loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 10 == 0:
            print(f"epoch {epoch}: mse {loss.item():.4f}")
    with torch.no_grad():
        print(f"test mse {F.mse_loss(model(x[1200:]), y[1200:]).item():.4f}")


if __name__ == "__main__":
    main()
