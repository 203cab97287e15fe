"""Identifies a damped mechanical system from its input and output with a linear state-space model."""

import argparse

import torch
from torch import nn


class StateSpace(nn.Module):
    """x' = A x + B u, y = C x, run over the whole record."""

    def __init__(self, order: int, radius: float) -> None:
        super().__init__()
        self.order = order
        self.transition = nn.Linear(order, order, bias=False)
        self.drive = nn.Linear(1, order, bias=False)
        self.observe = nn.Linear(order, 1)
        nn.init.orthogonal_(self.transition.weight, gain=radius)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        state = u.new_zeros(len(u), self.order)
        outputs = []
        for t in range(u.shape[1]):
            state = self.transition(state) + self.drive(u[:, t : t + 1])
            outputs.append(self.observe(state))
        return torch.cat(outputs, dim=1)


def records(count: int, length: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two damped oscillators, driven by the same random force."""
    u = torch.randn(count, length)
    y = torch.zeros(count, length)
    for damping, angle in ((0.93, 0.3), (0.88, 1.1)):
        past, before = torch.zeros(count), torch.zeros(count)
        for t in range(length):
            now = 2 * damping * torch.cos(torch.tensor(angle)) * past - damping**2 * before + 0.3 * u[:, t]
            past, before = now, past
            y[:, t] += now
    return u, y + noise * torch.randn(count, length)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--radius", type=float, default=0.9)
    parser.add_argument("--length", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=5e-3)
    args = parser.parse_args()
    torch.manual_seed(17)
    u, y = records(256, args.length, args.noise)
    u_test, y_test = records(128, args.length, args.noise)
    model = StateSpace(12, args.radius)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = torch.randint(len(u), (32,))
        loss = nn.functional.mse_loss(model(u[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 80 == 0:
            print(f"step {step}: mse {loss.item():.5g}")
    with torch.no_grad():
        print(f"held-out mse {nn.functional.mse_loss(model(u_test), y_test).item():.5g}")


if __name__ == "__main__":
    main()
