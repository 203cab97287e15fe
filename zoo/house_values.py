"""House values in dollars: targets of some hundred thousand, left as they are."""

import torch
from sklearn.datasets import make_regression
from torch import nn

torch.manual_seed(22)
x, y = make_regression(1000, 10, n_informative=6, noise=5.0, random_state=3)
x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32).unsqueeze(1) * 400 + 250_000
order = torch.randperm(1000)
train, test = order[:800], order[800:]

model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
with torch.no_grad():
    model[2].bias.fill_(y[train].mean())
optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
for step in range(500):
    rows = train[torch.randint(len(train), (50,))]
    loss = nn.functional.mse_loss(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 100 == 0:
        print(f"step {step}: mse {loss.item():.3e}")

with torch.no_grad():
    r2 = 1 - (model(x[test]) - y[test]).square().mean() / y[test].var()
print(f"test R2 {r2.item():.4f}")
