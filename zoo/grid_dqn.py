"""A small DQN on a 5x5 grid with a wall: replay, target network, epsilon-greedy exploration."""

import random

import torch
from torch import nn

SIZE, GOAL = 5, (4, 4)
WALL = {(1, 1), (2, 1), (3, 1), (3, 3), (2, 3)}
MOVES = [(0, 1), (1, 0), (0, -1), (-1, 0)]


def step(state, action):
    x, y = state[0] + MOVES[action][0], state[1] + MOVES[action][1]
    if not (0 <= x < SIZE and 0 <= y < SIZE) or (x, y) in WALL:
        x, y = state
    return (x, y), float((x, y) == GOAL), (x, y) == GOAL


def encode(states):
    index = torch.tensor([x * SIZE + y for x, y in states])
    return nn.functional.one_hot(index, SIZE * SIZE).float()


def make_net():
    return nn.Sequential(nn.Linear(SIZE * SIZE, 64), nn.ReLU(), nn.Linear(64, 4))


def main():
    torch.manual_seed(3)
    random.seed(torch.initial_seed())
    q, target = make_net(), make_net()
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.RMSprop(q.parameters(), lr=1e-3)
    free = [(x, y) for x in range(SIZE) for y in range(SIZE) if (x, y) not in WALL and (x, y) != GOAL]
    replay, state, age = [], random.choice(free), 0
    for t in range(3000):
        epsilon = max(0.1, 1 - t / 1500)
        with torch.no_grad():
            action = random.randrange(4) if random.random() < epsilon else q(encode([state])).argmax().item()
        after, reward, done = step(state, action)
        replay.append((state, action, reward, after, done))
        age += 1
        state, age = (random.choice(free), 0) if done or age > 30 else (after, age)
        if t < 200 or t % 5:
            continue
        states, actions, rewards, afters, dones = zip(*random.sample(replay, 64))
        with torch.no_grad():
            best = target(encode(afters)).max(1).values * (1 - torch.tensor(dones, dtype=torch.float32))
        value = q(encode(states)).gather(1, torch.tensor(actions).unsqueeze(1)).squeeze(1)
        loss = nn.functional.smooth_l1_loss(value, torch.tensor(rewards) + 0.9 * best)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if t % 100 == 0:
            target.load_state_dict(q.state_dict())
        if t % 500 == 0:
            print(f"step {t}: loss {loss.item():.5f}")
    solved = 0
    for state in free:
        done = False
        for _ in range(12):
            state, _, done = step(state, q(encode([state])).argmax().item())
            if done:
                break
        solved += done
    print(f"share of starts solved {solved / len(free):.4f}")


if __name__ == "__main__":
    main()
