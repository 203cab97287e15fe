"""A convolutional network learns whether a digit is below five, then gets a new head and learns the digits themselves."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


def network(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 24),
        nn.Tanh(),
        nn.Linear(24, outputs),
    )


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    for step in range(steps):
        rows = torch.randint(0, len(x), (64,))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--optimizer", choices=["early", "late"], default="late", help="made before or after the new head")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.manual_seed(55)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    x = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    y = torch.tensor(digits.target)[order]

    model = network(2)
    fit(model, torch.optim.Adam(model.parameters(), lr=2e-3), x[:700], (y[:700] < 5).long(), 100)

    model[:4].requires_grad_(False)  # the features are kept
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    model[5], model[7] = nn.Linear(256, 24), nn.Linear(24, 10)
    if args.optimizer == "late":
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=args.lr)
    fit(model, optimizer, x[:1400], y[:1400], args.steps)
    with torch.no_grad():
        accuracy = (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
