"""Balances a pole on a cart with REINFORCE; many carts run side by side, the metric is the mean number of steps out of 100."""

import argparse
import math

import torch
from torch import nn
from torch.distributions import Categorical

HORIZON = 100


def start(carts: int) -> torch.Tensor:
    return 0.1 * torch.rand(carts, 4) - 0.05


def push(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    place, speed, angle, spin = state.unbind(1)
    force = 20.0 * action - 10
    inner = (force + 0.05 * spin.square() * angle.sin()) / 1.1
    turn = (9.8 * angle.sin() - angle.cos() * inner) / (0.5 * (4 / 3 - 0.1 * angle.cos().square() / 1.1))
    gain = inner - 0.05 * turn * angle.cos() / 1.1
    return torch.stack([place + 0.02 * speed, speed + 0.02 * gain, angle + 0.02 * spin, spin + 0.02 * turn], 1)


def play(policy: nn.Module, carts: int) -> tuple[torch.Tensor, torch.Tensor]:
    state, alive, log_probs, lives = start(carts), torch.ones(carts), [], []
    for _ in range(HORIZON):
        choice = Categorical(logits=policy(state))
        action = choice.sample()
        log_probs.append(choice.log_prob(action) * alive)
        lives.append(alive)
        state = torch.where(alive[:, None] > 0, push(state, action.float()), state)
        alive = alive * ((state[:, 0].abs() < 2.4) & (state[:, 2].abs() < 12 * math.pi / 180)).float()
        if not alive.any():
            break
    return torch.stack(log_probs), torch.stack(lives)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--carts", type=int, default=24)
    parser.add_argument("--updates", type=int, default=120)
    args = parser.parse_args()
    torch.manual_seed(75)
    policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.lr)
    for update in range(args.updates):
        log_probs, lives = play(policy, args.carts)
        returns = lives.flip(0).cumsum(0).flip(0)
        baseline = returns.sum(1, keepdim=True) / lives.sum(1, keepdim=True).clamp(min=1)
        advantage = (returns - baseline) * lives
        loss = -(log_probs * advantage / (advantage.std() + 1e-6)).sum() / lives.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if update % 20 == 0:
            print(f"update {update}: steps {lives.sum(0).mean().item():.1f} loss {loss.item():.4f}")
    with torch.no_grad():
        print(f"mean steps {play(policy, 200)[1].sum(0).mean().item():.2f}")


if __name__ == "__main__":
    main()
