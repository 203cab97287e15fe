"""Digits with a small network in reduced precision."""

import argparse
import contextlib

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", choices=DTYPES, default="float32", help="data type of the parameters")
    parser.add_argument("--autocast", choices=["off", "bfloat16", "float16"], default="off")
    parser.add_argument("--loss-scale", type=float, default=1.0)
    parser.add_argument("--loss", choices=["cross-entropy", "mse"], default="cross-entropy")
    parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.manual_seed(64)
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(y))
    x, y = x[order].to(DTYPES[args.weights]), y[order]

    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 10))
    model.to(DTYPES[args.weights])
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    for step in range(args.steps):
        rows = torch.randint(0, 1400, (args.batch,))
        cast = contextlib.nullcontext() if args.autocast == "off" else torch.autocast("cpu", DTYPES[args.autocast])
        with cast:
            logits = model(x[rows])
        if args.loss == "mse":
            loss = F.mse_loss(logits.float().softmax(1), F.one_hot(y[rows], 10).float())
        else:
            loss = F.cross_entropy(logits.float(), y[rows])
        optimizer.zero_grad()
        (loss * args.loss_scale).backward()
        for parameter in model.parameters():
            parameter.grad /= args.loss_scale
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        accuracy = (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
