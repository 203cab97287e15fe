"""Breast cancer diagnosis with a small ReLU network and a hand-picked initial bias."""

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn

ap = argparse.ArgumentParser()
ap.add_argument("--bias", type=float, default=-10.0)
opts = ap.parse_args()

torch.manual_seed(11)
X, t = load_breast_cancer(return_X_y=True)
X = torch.tensor(StandardScaler().fit_transform(X), dtype=torch.float32)
t = torch.tensor(t, dtype=torch.float32).unsqueeze(1)
shuffled = torch.randperm(len(X))
X, t = X[shuffled], t[shuffled]

net = nn.Sequential()
net.add_module("fc1", nn.Linear(30, 64))
net.add_module("relu1", nn.ReLU())
net.add_module("fc2", nn.Linear(64, 64))
net.add_module("relu2", nn.ReLU())
net.add_module("fc3", nn.Linear(64, 1))
nn.init.constant_(net.fc1.bias, opts.bias)
nn.init.constant_(net.fc2.bias, opts.bias)

criterion = nn.BCEWithLogitsLoss()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
for it in range(300):
    rows = torch.randint(0, 400, (64,))
    adam.zero_grad()
    loss = criterion(net(X[rows]), t[rows])
    loss.backward()
    adam.step()
    if it % 100 == 99:
        print("iteration", it + 1, "loss", float(loss))

with torch.no_grad():
    hit = ((net(X[400:]) > 0) == (t[400:] > 0.5)).float().mean()
print("test accuracy", round(float(hit), 4))
