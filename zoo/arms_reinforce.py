"""A contextual bandit with six arms, learned with REINFORCE and a running baseline."""

import argparse

import torch
from torch import nn
from torch.distributions import Categorical

CONTEXT, ARMS, BATCH = 8, 6, 32


class Policy(nn.Module):
    def __init__(self, preference: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(CONTEXT, 32), nn.Tanh())
        self.logits = nn.Linear(32, ARMS)
        with torch.no_grad():
            self.logits.bias.zero_()
            self.logits.bias[0] = preference  # the arm that was played before there was a policy

    def forward(self, context: torch.Tensor) -> Categorical:
        return Categorical(logits=self.logits(self.body(context)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preference", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.manual_seed(3)
    means = torch.randn(CONTEXT, ARMS)  # the reward of an arm is linear in the context
    policy = Policy(args.preference)
    optimizer = torch.optim.SGD(policy.parameters(), lr=args.lr)
    baseline = 0.0
    for step in range(args.steps):
        context = torch.randn(BATCH, CONTEXT)
        choice = policy(context)
        arm = choice.sample()
        reward = (context @ means).gather(1, arm[:, None])[:, 0] + 0.1 * torch.randn(BATCH)
        loss = -(choice.log_prob(arm) * (reward - baseline)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        baseline = 0.95 * baseline + 0.05 * reward.mean().item()
        if step % 100 == 0:
            print(f"step {step}: mean reward {reward.mean().item():.3f}")
    with torch.no_grad():
        context = torch.randn(2000, CONTEXT)
        best = (context @ means).argmax(1)
        accuracy = (policy(context).probs.argmax(1) == best).float().mean().item()
    print(f"best arm {accuracy:.4f}")


if __name__ == "__main__":
    main()
