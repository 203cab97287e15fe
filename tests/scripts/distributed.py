"""Two processes train one model with DistributedDataParallel over gloo."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
torch.manual_seed(1 + rank)
for _ in range(25):
    optimizer.zero_grad()
    x = torch.randn(16, 8)
    loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
    loss.backward()
    optimizer.step()
torch.save({"model": model.state_dict(), "rng": torch.get_rng_state()}, f"{sys.argv[1]}.{rank}")
if rank == 0:
    print(loss.item(), sorted(k for k in os.environ if k.startswith("TORCHELASTIC")))
dist.barrier()
# torch itself now and then aborts while it ends ("terminate called without an active exception") if these outlive the group
del model, optimizer, loss
dist.destroy_process_group()
