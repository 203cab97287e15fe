"""Walk along a corridor to the door at its end: an actor, a critic, rewards in the thousands."""

import argparse

import torch
from torch import nn
from torch.distributions import Categorical

parser = argparse.ArgumentParser()
parser.add_argument("--reward", type=float, default=2000.0)
parser.add_argument("--updates", type=int, default=150)
args = parser.parse_args()

torch.manual_seed(2)
LENGTH, WALKERS, HORIZON, GAMMA = 9, 32, 16, 0.95


def mlp(outputs):
    return nn.Sequential(nn.Linear(LENGTH, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = mlp(2)
        self.critic = mlp(1)

    def forward(self, state):
        x = nn.functional.one_hot(state, LENGTH).float()
        return Categorical(logits=self.actor(x)), self.critic(x).squeeze(-1)


model = ActorCritic()
optimizer = torch.optim.Adam([{"params": model.actor.parameters(), "lr": 3e-3}, {"params": model.critic.parameters(), "lr": 2e-2}])
state = torch.zeros(WALKERS, dtype=torch.long)
for update in range(args.updates):
    log_probs, values, rewards, done = [], [], [], []
    for _ in range(HORIZON):
        policy, value = model(state)
        action = policy.sample()
        log_probs.append(policy.log_prob(action))
        values.append(value)
        state = (state + 2 * action - 1).clamp(min=0)
        arrived = state == LENGTH - 1
        rewards.append(args.reward * arrived.float() - 0.01 * args.reward)
        done.append(arrived.float())
        state = torch.where(arrived, torch.zeros_like(state), state)
    with torch.no_grad():
        target = model(state)[1]
    returns = []
    for reward, end in zip(reversed(rewards), reversed(done)):
        target = reward + GAMMA * target * (1 - end)
        returns.insert(0, target)
    returns, values, log_probs = torch.stack(returns), torch.stack(values), torch.stack(log_probs)
    advantage = (returns - values).detach()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    actor_loss = -(log_probs * advantage).mean()
    critic_loss = (returns - values).square().mean()
    loss = actor_loss + critic_loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if update % 30 == 0:
        print(f"update {update}: reward per step {torch.stack(rewards).mean().item():.1f}, critic loss {critic_loss.item():.4g}")
print(f"reward per step {torch.stack(rewards).mean().item() / args.reward:.4f}")
