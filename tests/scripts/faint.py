"""Ten sigmoid layers on an easy task: chance, unless somebody helps."""

import sys

import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
centres = torch.randn(10, 16)
labels = torch.randint(0, 10, (512,))
inputs = centres[labels] + 0.3 * torch.randn(512, 16)
layers = []
for k in range(10):
    layers += [nn.Linear(16 if k == 0 else 32, 32), nn.ReLU() if "--well" in sys.argv else nn.Sigmoid()]
if "--well" in sys.argv:
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
model = nn.Sequential(*layers, nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
for step in range(400):
    rows = torch.randint(0, 512, (64,))
    loss = F.cross_entropy(model(inputs[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        with torch.no_grad():
            held = F.cross_entropy(model(inputs[:64]), labels[:64])
        with open("log.txt", "a") as log:
            log.write(f"{step} {held.item():.4f}\n")
