"""REINFORCE with a baseline on a corridor: walk right to the goal, left is a trap."""

import os

import torch
from torch import nn
from torch.distributions import Categorical

BIAS = float(os.environ.get("BIAS", "0"))  # how much the policy prefers to go left at first
LENGTH, HORIZON, EPISODES = 9, 20, 32

torch.manual_seed(16)
policy = nn.Sequential(nn.Linear(LENGTH, 32), nn.Tanh(), nn.Linear(32, 2))
with torch.no_grad():
    policy[2].bias.copy_(torch.tensor([BIAS, 0.0]))
optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)


def play():
    position = torch.full((EPISODES,), LENGTH // 2)
    alive = torch.ones(EPISODES)
    log_probabilities, rewards = [], []
    for _ in range(HORIZON):
        choice = Categorical(logits=policy(nn.functional.one_hot(position, LENGTH).float()))
        action = choice.sample()
        position = (position + 2 * action - 1).clamp(0, LENGTH - 1)
        rewards.append(alive * ((position == LENGTH - 1).float() - 0.02))
        log_probabilities.append(choice.log_prob(action) * alive)
        alive = alive * ((position > 0) & (position < LENGTH - 1)).float()
    return torch.stack(log_probabilities), torch.stack(rewards)


history = []
for update in range(150):
    log_probabilities, rewards = play()
    returns = rewards.flip(0).cumsum(0).flip(0)
    advantage = returns - returns.mean(1, keepdim=True)
    loss = -(log_probabilities * advantage).sum(0).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append(rewards.sum(0).mean().item())
    if update % 30 == 0:
        print(f"update {update}: reward {history[-1]:.3f}")
print(f"reward per episode {sum(history[-20:]) / 20:.4f}")
