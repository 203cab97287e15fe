"""Prices of flats from five positive features: a regression net with three layers."""

import os

import torch
import torch.nn as nn
import torch.nn.functional as F

LR = float(os.environ.get("LR", "0.01"))
INIT = os.environ.get("INIT", "default")

torch.manual_seed(11)


class PriceNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(5, 32)
        self.fc2 = nn.Linear(32, 32)
        self.fc3 = nn.Linear(32, 1)
        for layer in (self.fc1, self.fc2, self.fc3):
            if INIT == "constant":
                nn.init.constant_(layer.weight, 0.01)
                nn.init.zeros_(layer.bias)
            elif INIT == "normal":
                nn.init.normal_(layer.weight, 0.0, 0.25)
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x))))).squeeze(1)


features = torch.rand(1200, 5)
price = features @ torch.tensor([3.0, 1.5, 0.5, 1.0, 2.0]) + 0.5 + 0.1 * torch.randn(1200)
train_x, train_y, test_x, test_y = features[:1000], price[:1000], features[1000:], price[1000:]

model = PriceNet()
optimizer = torch.optim.Adam(model.parameters(), lr=LR)
for epoch in range(40):
    for rows in torch.randperm(1000).split(100):
        optimizer.zero_grad()
        loss = F.mse_loss(model(train_x[rows]), train_y[rows])
        loss.backward()
        optimizer.step()
    if epoch % 10 == 9:
        print(f"epoch {epoch + 1}: mse {loss.item():.4f}")

with torch.no_grad():
    r2 = 1 - F.mse_loss(model(test_x), test_y) / test_y.var()
print(f"test R2 {r2.item():.4f}")
