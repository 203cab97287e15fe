"""Values of a random walk with drift, learnt by temporal differences from a replay buffer."""

import argparse

import torch
from torch import nn

STATES, GAMMA = 20, 0.98


def walk(n):
    """Transitions of n walkers from the left; the walk ends at the right and pays there."""
    transitions = []
    position = torch.zeros(n, dtype=torch.long)
    for _ in range(60):
        step = torch.where(torch.rand(n) < 0.85, 1, -1)
        after = (position + step).clamp(0, STATES)
        done = after == STATES
        transitions.append(torch.stack([position, after, done.long()], 1))
        position = torch.where(done, 0, after)
    return torch.cat(transitions)


def features(position):
    x = position.float().unsqueeze(1) / 4
    return torch.cat([x, x**2 / 4, torch.ones_like(x)], 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=int, default=STATES, help="keep transitions from states before this one")
    parser.add_argument("--lr", type=float, default=0.015)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    torch.manual_seed(12)
    replay = walk(100)
    replay = replay[replay[:, 0] < args.keep]
    value = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(value.parameters(), lr=args.lr)
    for step in range(args.steps):
        now, after, done = replay[torch.randint(len(replay), (128,))].unbind(1)
        with torch.no_grad():
            future = value(features(after)).squeeze(1) * (1 - done)
        loss = nn.functional.mse_loss(value(features(now)).squeeze(1), done + GAMMA * future)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4g}")

    up, down = torch.arange(1, STATES + 1), torch.arange(-1, STATES - 1).clamp(min=0)
    true = torch.zeros(STATES + 1)
    for _ in range(2000):
        ahead = torch.where(up == STATES, torch.ones(STATES), GAMMA * true[up])
        true = torch.cat([0.85 * ahead + 0.15 * GAMMA * true[down], torch.zeros(1)])
    with torch.no_grad():
        error = (value(features(torch.arange(STATES))).squeeze(1) - true[:-1]).abs().mean().item()
    print(f"mean value error {error:.4g}")


if __name__ == "__main__":
    main()
