"""Ten convolutions with sigmoids between them, on small digits."""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn

ACT = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}[os.environ.get("ACT", "sigmoid")]


def conv(inputs, outputs):
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    if ACT is nn.ReLU:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, ACT())


torch.manual_seed(6)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
target = torch.tensor(digits.target)

net = nn.Sequential(
    conv(1, 8), *[conv(8, 8) for _ in range(4)], nn.MaxPool2d(2), *[conv(8, 8) for _ in range(5)], nn.Flatten(), nn.Linear(128, 10)
)
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
criterion = nn.CrossEntropyLoss()

for step in range(300):
    picked = torch.randint(0, 1400, (64,))
    optimizer.zero_grad()
    loss = criterion(net(images[picked]), target[picked])
    loss.backward()
    optimizer.step()
    if step % 60 == 0:
        print("step", step, "loss", round(loss.item(), 4))

net.eval()
with torch.no_grad():
    print(f"test accuracy {(net(images[1400:]).argmax(1) == target[1400:]).float().mean().item():.4f}")
