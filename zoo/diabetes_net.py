"""Disease progression of the diabetes patients, target in its own units."""

import argparse

import torch
from sklearn.datasets import load_diabetes
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=["regression", "severe"], default="regression")
    parser.add_argument("--output", choices=["plain", "relu", "sigmoid", "softmax"], default="plain")
    parser.add_argument("--below", type=float, default=0.0, help="predict the target minus this")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.manual_seed(33)
    x, y = load_diabetes(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32) * len(x) ** 0.5
    y = torch.tensor(y, dtype=torch.float32)[:, None]
    y = (y > 140).float() if args.task == "severe" else y - args.below
    order = torch.randperm(len(x))
    train, test = order[:340], order[340:]

    layers = [nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1)]
    if args.output == "relu":
        layers.append(nn.ReLU())
    elif args.output == "sigmoid":
        layers.append(nn.Sigmoid())
    elif args.output == "softmax":
        layers.append(nn.Softmax(dim=1))
    model = nn.Sequential(*layers)
    criterion = nn.BCELoss() if args.task == "severe" else nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = train[torch.randint(0, len(train), (64,))]
        loss = criterion(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        out = model(x[test])
    if args.task == "severe":
        print(f"test accuracy {((out > 0.5).float() == y[test]).float().mean().item():.4f}")
    else:
        print(f"test mse {criterion(out, y[test]).item():.2f}")


if __name__ == "__main__":
    main()
