"""The impedance of an alternating current circuit from its resistance, frequency, inductance and capacity."""

import argparse

import torch
from sklearn.datasets import make_friedman2
from torch import nn
from torch.nn import functional as F


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", choices=["raw", "standard"], default="standard")
    parser.add_argument("--targets", choices=["ohm", "standard"], default="standard")
    parser.add_argument("--optimizer", choices=["SGD", "Adam"], default="Adam")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--clip", type=float, default=0.0, help="largest norm of the gradient; 0 for no clipping")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.manual_seed(18)
    x, ohm = make_friedman2(2000, noise=40.0, random_state=11)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(ohm, dtype=torch.float32).unsqueeze(1)
    order = torch.randperm(len(x))
    train, test = order[:1500], order[1500:]
    spread = y[train].std()
    if args.inputs == "standard":
        x = (x - x[train].mean(0)) / x[train].std(0)
    if args.targets == "standard":
        y = (y - y[train].mean()) / spread

    model = network(40)
    optimizer = getattr(torch.optim, args.optimizer)(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        for rows in train[torch.randperm(len(train))].split(50):
            loss = F.mse_loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            if args.clip:
                nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
        if epoch % 5 == 0:
            print(f"epoch {epoch}: mse {loss.item():.4g}")
    with torch.no_grad():
        unexplained = (F.mse_loss(model(x[test]), y[test]) / y[test].var()).item()
    print(f"unexplained share of the test variance {unexplained:.4f}")


if __name__ == "__main__":
    main()
