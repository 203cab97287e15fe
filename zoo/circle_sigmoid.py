"""Two concentric circles, a narrow deep classifier with one logit."""

import sys

import torch
import torch.nn as nn
from sklearn.datasets import make_circles
from torch.utils.data import DataLoader, TensorDataset

HIDDEN = 8
WIDTH = 5
EPOCHS = 200
ACTIVATION = nn.Tanh if "--tanh" in sys.argv else nn.Sigmoid


class CircleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [2] + [WIDTH] * HIDDEN
        self.hidden = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:])])
        self.act = nn.ModuleList([ACTIVATION() for _ in range(HIDDEN)])
        self.out = nn.Linear(WIDTH, 1)
        if ACTIVATION is nn.Tanh:
            for layer in self.hidden:
                nn.init.xavier_normal_(layer.weight, gain=5 / 3)
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        for linear, act in zip(self.hidden, self.act):
            x = act(linear(x))
        return self.out(x).squeeze(1)


def main() -> None:
    torch.manual_seed(7)
    X, y = make_circles(1000, noise=0.1, random_state=1)
    X, y = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    train, test = TensorDataset(X[:700], y[:700]), (X[700:], y[700:])
    loader = DataLoader(train, batch_size=128, shuffle=True)
    model = CircleNet()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    bce = nn.BCEWithLogitsLoss()
    for epoch in range(EPOCHS):
        for xb, yb in loader:
            opt.zero_grad()
            loss = bce(model(xb), yb)
            loss.backward()
            opt.step()
        if epoch % 50 == 49:
            print("epoch", epoch + 1, "loss", round(loss.item(), 4))
    with torch.no_grad():
        accuracy = ((model(test[0]) > 0) == (test[1] > 0.5)).float().mean()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
