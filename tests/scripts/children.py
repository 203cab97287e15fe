"""The parent trains ten steps, then forks a child that trains thirty; or trains nothing and spawns one that does."""

import multiprocessing
import sys

import torch
from torch import nn


def train(steps, path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), path)
    print(steps, loss.item(), flush=True)


if __name__ == "__main__":
    path, method = sys.argv[1:]
    if method == "fork":
        train(10, path + ".parent")
    child = multiprocessing.get_context(method).Process(target=train, args=(30, path))
    child.start()
    child.join()
    sys.exit(child.exitcode)
