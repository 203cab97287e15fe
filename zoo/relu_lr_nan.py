"""Friedman's regression problem; the learning rate was copied from another project."""

import os

import torch
from sklearn.datasets import make_friedman1
from torch import nn

lr = float(os.environ.get("LR", "3.0"))

torch.manual_seed(5)
X, y = make_friedman1(n_samples=1200, n_features=10, noise=0.5, random_state=0)
X = torch.tensor(X, dtype=torch.float32) * 2 - 1
y = torch.tensor(y, dtype=torch.float32).view(-1, 1)
y = (y - y.mean()) / y.std()
X_train, y_train, X_test, y_test = X[:1000], y[:1000], X[1000:], y[1000:]

relu = nn.LeakyReLU(0.1)  # one instance, used after every layer
model = nn.Sequential(
    nn.Linear(10, 64), relu, nn.Linear(64, 64), relu, nn.Linear(64, 64), relu, nn.Linear(64, 1)
)
sgd = torch.optim.SGD(model.parameters(), lr=lr)

for step in range(400):
    i = torch.randint(0, 1000, (50,))
    loss = torch.mean((model(X_train[i]) - y_train[i]) ** 2)
    sgd.zero_grad()
    loss.backward()
    sgd.step()
    if step % 80 == 0:
        print(f"step {step} mse {loss.item():.4g}")

model.eval()
with torch.no_grad():
    mse = torch.mean((model(X_test) - y_test) ** 2).item()
print(f"test mse {mse:.4f}")
