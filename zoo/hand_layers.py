"""Miles per gallon of cars from seven of their properties, with layers written by hand."""

import argparse

import torch
from mlxtend.data import autompg_data
from torch import nn


class Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int, scaled: bool) -> None:
        super().__init__()
        weight = torch.randn(inputs, outputs)
        self.weight = nn.Parameter(weight / inputs**0.5 if scaled else weight)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Network(nn.Module):
    def __init__(self, width: int, scaled: bool) -> None:
        super().__init__()
        self.first = Dense(7, width, scaled)
        self.second = Dense(width, width, scaled)
        self.third = Dense(width, width, scaled)
        self.out = Dense(width, 1, scaled)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x))
        x = torch.relu(self.third(x))
        return self.out(x).squeeze(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", choices=["randn", "scaled"], default="scaled")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    torch.manual_seed(40)
    features, mpg = autompg_data()
    x, y = torch.tensor(features[:, :7], dtype=torch.float32), torch.tensor(mpg, dtype=torch.float32)
    order = torch.randperm(len(x))
    train, test = order[:300], order[300:]
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = (y - y[train].mean()) / y[train].std()

    model = Network(args.width, args.weights == "scaled")
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        total = 0.0
        for rows in train[torch.randperm(len(train))].split(20):
            loss = nn.functional.mse_loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        if epoch % 10 == 0:
            print(f"epoch {epoch}: mse {total / len(train):.4f}")
    with torch.no_grad():
        print(f"test mse {nn.functional.mse_loss(model(x[test]), y[test]).item():.4f}")


if __name__ == "__main__":
    main()
