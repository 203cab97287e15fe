"""Digits with seven convolutions; weights drawn as in a famous paper of 2012 (normal, standard deviation 0.01)."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


def build(std):
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU()]
    for i in range(6):
        layers += [nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()]
        if i == 2:
            layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 16, 10))
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if std > 0:
                nn.init.normal_(module.weight, 0.0, std)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--std", type=float, default=0.01, help="0 for the initialisation of He et al.")
    args = parser.parse_args()
    torch.manual_seed(12)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(digits.target)
    model = build(args.std)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for step in range(250):
        rows = torch.randint(0, 1400, (64,))
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    with torch.no_grad():
        print(f"test accuracy {(model(images[1400:]).argmax(1) == labels[1400:]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
