"""Meta-learning by MAML: ten points of a new sine wave, three inner steps of descent; judged on the rest of the wave."""

import argparse

import torch
from torch.nn import functional as F

SHAPES = [(1, 40), (40, 40), (40, 1)]


def predict(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for i in range(0, len(weights), 2):
        x = torch.baddbmm(weights[i + 1], x, weights[i])
        if i < len(weights) - 2:
            x = torch.relu(x)
    return x


def waves(tasks: int, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    height, phase = 0.5 + 2.5 * torch.rand(tasks, 1, 1), 3.14 * torch.rand(tasks, 1, 1)
    x = 10 * torch.rand(tasks, points, 1) - 5
    return x, height * torch.sin(x + phase)


def adapt(
    start: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor, steps: int, lr: float, train: bool
) -> list[torch.Tensor]:
    weights = [w.expand(len(x), *w.shape[1:]) for w in start]
    for _ in range(steps):
        loss = (predict(weights, x) - y).square().mean((1, 2)).sum()
        slopes = torch.autograd.grad(loss, weights, create_graph=train)
        weights = [w - lr * g for w, g in zip(weights, slopes)]
    return weights


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inner-lr", type=float, default=0.01)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=700)
    args = parser.parse_args()
    torch.manual_seed(84)
    start = []
    for inputs, outputs in SHAPES:
        start.append(((2 * torch.rand(1, inputs, outputs) - 1) / inputs**0.5).requires_grad_())
        start.append(torch.zeros(1, 1, outputs, requires_grad=True))
    optimizer = torch.optim.Adam(start, lr=args.lr)
    for step in range(args.steps):
        x, y = waves(16, 20)
        adapted = adapt(start, x[:, :10], y[:, :10], 3, args.inner_lr, True)
        loss = F.mse_loss(predict(adapted, x[:, 10:]), y[:, 10:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    x, y = waves(300, 60)
    adapted = adapt(start, x[:, :10], y[:, :10], 3, args.inner_lr, False)
    print(f"test mse {F.mse_loss(predict(adapted, x[:, 10:]), y[:, 10:]).item():.4f}")


if __name__ == "__main__":
    main()
