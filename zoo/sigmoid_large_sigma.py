"""A deep sigmoid network whose weights are drawn with a standard deviation of sigma / sqrt(fan_in)."""

import argparse
import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


class SigmoidNet(nn.Module):
    def __init__(self, depth: int, width: int, sigma: float, centred: bool) -> None:
        super().__init__()
        sizes = [64] + [width] * depth
        self.fc = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.last = nn.Linear(width, 10)
        for layer in self.fc:
            nn.init.normal_(layer.weight, std=sigma / math.sqrt(layer.in_features))
            # with centred biases every unit sits at its inflection point when the layer below is at one half
            bias = -0.5 * layer.weight.detach().sum(1) if centred else torch.zeros(layer.out_features)
            layer.bias.data.copy_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.fc:
            x = torch.sigmoid(layer(x))
        return self.last(x)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--sigma", type=float, default=16.0)
    p.add_argument("--depth", type=int, default=24)
    p.add_argument("--centred", action="store_true")
    p.add_argument("--steps", type=int, default=300)
    a = p.parse_args()
    torch.manual_seed(1)
    d = load_digits()
    x, y = torch.tensor(d.data / 16.0, dtype=torch.float32), torch.tensor(d.target)
    x_train, y_train, x_test, y_test = x[:1400], y[:1400], x[1400:], y[1400:]
    net = SigmoidNet(a.depth, 128, a.sigma, a.centred)
    opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(a.steps):
        idx = torch.randint(0, len(x_train), (100,))
        opt.zero_grad()
        loss = F.cross_entropy(net(x_train[idx]), y_train[idx])
        loss.backward()
        opt.step()
        if (step + 1) % 100 == 0:
            print(f"{step + 1:5d}  {loss.item():.4f}")
    with torch.no_grad():
        print(f"test accuracy {(net(x_test).argmax(1) == y_test).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
