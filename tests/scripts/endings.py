"""Trains a little, saves what it has, and ends in the way its second argument says."""

import os
import signal
import sys
import time

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
optimizer = torch.optim.Adam(model.parameters())
loss_fn = nn.CrossEntropyLoss()
path, ending = sys.argv[1:]


def train(steps):
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(model(torch.randn(16, 8)), torch.randint(0, 2, (16,)))
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(step, loss.item(), flush=True)


def wait_for(number):
    os.kill(os.getpid(), number)
    time.sleep(10)


def use_up(graph):
    loss = graph.sum()
    loss.backward()
    loss.backward()


try:
    train(30)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, path)
    if ending == "raise":
        raise ValueError("the data ran out")
    if ending == "backward":
        use_up(model(torch.randn(16, 8)))
    if ending == "exit":
        sys.exit(3)
    if ending == "_exit":
        os._exit(7)
    if ending == "terminate":
        wait_for(signal.SIGTERM)
    if ending == "interrupt":
        wait_for(signal.SIGINT)
    if ending == "kill":
        wait_for(signal.SIGKILL)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
finally:
    train(2)
    print("left in order", flush=True)
