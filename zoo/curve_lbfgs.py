"""A curve through two hundred noisy points: a tanh network and L-BFGS on all of them at once."""

import torch
from torch import nn

torch.manual_seed(18)
x = torch.linspace(-2, 2, 200).unsqueeze(1)
y = torch.sin(3 * x) * torch.exp(-0.3 * x**2) + 0.05 * torch.randn_like(x)
inside = torch.rand(200) < 0.8

model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=10, history_size=20, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x[inside]), y[inside])
    loss.backward()
    return loss


for step in range(40):
    loss = optimizer.step(closure)
    if step % 10 == 0:
        print(f"step {step}: mse {loss.item():.5f}")

with torch.no_grad():
    print(f"test mse {nn.functional.mse_loss(model(x[~inside]), y[~inside]).item():.5f}")
