"""A compiled model, a compiled function that clips, and one that takes a gradient."""

import sys

import torch
from torch import nn
from torch._dynamo.utils import counters

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
fast = torch.compile(model, backend="eager")
optimizer = torch.optim.SGD(model.parameters(), 0.1)


@torch.compile(backend="eager")
def clip(parameters):
    return nn.utils.clip_grad_norm_(parameters, 0.5)


@torch.compile(backend="eager")
def slope(x):
    return torch.autograd.grad((x * x).sum(), x)[0]


for _ in range(20):
    optimizer.zero_grad()
    x = torch.randn(16, 8)
    loss = nn.functional.cross_entropy(fast(x), (x[:, 0] > 0).long())
    loss.backward()
    norm = clip(list(model.parameters()))
    optimizer.step()
print(loss.item(), norm.item(), slope(torch.ones(2, requires_grad=True)))
print(counters["stats"]["unique_graphs"])
torch.save({"model": model.state_dict(), "rng": torch.get_rng_state()}, sys.argv[1])
