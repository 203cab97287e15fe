"""Where a blurred spot lies in a noisy picture, and how wide it is: a small convolutional regression."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F


def make_pictures(n: int, size: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    centre, width = torch.rand(n, 2) * 8 + 3, torch.rand(n, 1) * 1.5 + 0.8
    grid = torch.arange(size, dtype=torch.float32)
    across = (grid[None, :] - centre[:, :1]) ** 2
    down = (grid[None, :] - centre[:, 1:]) ** 2
    pictures = torch.exp(-(across[:, None, :] + down[:, :, None]) / (2 * width[:, :, None] ** 2))
    pictures = pictures + 0.15 * torch.randn_like(pictures)
    targets = torch.cat([(centre - 7) / 2.3, (width - 1.55) / 0.43], 1)
    return pictures.unsqueeze(1), targets


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(784, 48),
        nn.Tanh(),
        nn.Linear(48, 3),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--optimizer", choices=["sgd", "adagrad"], default="sgd")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.manual_seed(72)
    x, y = make_pictures(3000)
    train_x, train_y, test_x, test_y = x[:2400], y[:2400], x[2400:], y[2400:]
    model = network()
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    else:
        optimizer = torch.optim.Adagrad(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = torch.randint(len(train_x), (args.batch,))
        loss = F.mse_loss(model(train_x[rows]), train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step}: mse {loss.item():.4f}")
    with torch.no_grad():
        print(f"test mse {F.mse_loss(model(test_x), test_y).item():.4f}")


if __name__ == "__main__":
    main()
