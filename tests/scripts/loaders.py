"""Trains from spawned and from forked data workers that run a module of their own."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Points(Dataset):
    def __init__(self):
        torch.manual_seed(1)
        self.features = nn.Sequential(nn.Linear(4, 8), nn.Tanh())

    def __len__(self):
        return 64

    def __getitem__(self, index):
        x = torch.full((4,), index / 64)
        return self.features(x).detach() + 0.1 * torch.rand(8), index % 2


def train(loader):
    for epoch in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        print(epoch, loss.item(), flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    points = Points()
    for context in ("fork", "spawn"):
        train(DataLoader(points, batch_size=8, shuffle=True, num_workers=2, multiprocessing_context=context))
    torch.save({"model": model.state_dict(), "rng": torch.get_rng_state()}, sys.argv[1])
