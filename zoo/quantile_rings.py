"""Which of four nested shells a point of eight dimensions lies in: a fully connected network with a choice of activations."""

import argparse

import torch
from sklearn.datasets import make_gaussian_quantiles
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "silu": nn.SiLU, "elu": nn.ELU}


def build(depth: int, width: int, activation: str) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(8, width), ACTIVATIONS[activation]()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), ACTIVATIONS[activation]()]
    layers.append(nn.Linear(width, 4))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def corrupt(labels: torch.Tensor, share: float) -> torch.Tensor:
    wrong = torch.rand(len(labels)) < share
    return torch.where(wrong, torch.randint(0, 4, (len(labels),)), labels)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--activation", choices=sorted(ACTIVATIONS), default="elu")
    parser.add_argument("--depth", type=int, default=9)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--wrong-labels", type=float, default=0.0, help="share of training labels drawn at random")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    torch.manual_seed(31)
    x, y = make_gaussian_quantiles(n_samples=6000, n_features=8, n_classes=4, random_state=5)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(x))
    train_x, test_x = x[order[:5000]], x[order[5000:]]
    train_y, test_y = corrupt(y[order[:5000]], args.wrong_labels), y[order[5000:]]

    model = build(args.depth, args.width, args.activation)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    for step in range(args.steps):
        rows = torch.randint(len(train_x), (args.batch,))
        loss = F.cross_entropy(model(train_x[rows]), train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
