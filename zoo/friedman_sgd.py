"""Friedman's first regression problem with a small network."""

import argparse

import torch
from sklearn.datasets import make_friedman1
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LOSSES = {"mse": nn.MSELoss(), "huber": nn.SmoothL1Loss()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--loss", choices=sorted(LOSSES), default="mse")
    parser.add_argument("--activation", choices=["relu", "tanh"], default="tanh")
    args = parser.parse_args()
    torch.manual_seed(5)
    features, target = make_friedman1(1000, n_features=8, noise=0.5, random_state=0)
    x = torch.tensor(features, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    y = torch.tensor(target, dtype=torch.float32)[:, None]
    y = (y - y.mean()) / y.std()
    rows = torch.randperm(len(x))
    train, test = rows[:800], rows[800:]
    loader = DataLoader(TensorDataset(x[train], y[train]), batch_size=args.batch, shuffle=True)

    act = nn.ReLU if args.activation == "relu" else nn.Tanh
    model = nn.Sequential(nn.Linear(8, 48), act(), nn.Linear(48, 48), act(), nn.Linear(48, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    criterion = LOSSES[args.loss]
    for epoch in range(args.epochs):
        total = 0.0
        for inputs, values in loader:
            loss = criterion(model(inputs), values)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        if epoch % 4 == 0:
            print(f"epoch {epoch}: loss {total / len(loader):.4f}")
    with torch.no_grad():
        mse = nn.functional.mse_loss(model(x[test]), y[test]).item()
    print(f"test mse {mse:.4f}")


if __name__ == "__main__":
    main()
