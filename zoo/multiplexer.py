"""The eleven-bit multiplexer: three address bits choose which of eight data bits is the answer."""

import argparse

import torch
from mlxtend.data import make_multiplexer_dataset
from torch import nn
from torch.nn import functional as F


class Network(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(11, width)
        self.middle = nn.Linear(width, width)
        self.answer = nn.Linear(width, 1)

    def forward(self, bits: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.hidden(bits))
        h = torch.sigmoid(self.middle(h))
        return self.answer(h).squeeze(1)


def initialise(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.constant_(parameter, value)
        else:
            nn.init.zeros_(parameter)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--constant", type=float, help="initial value of every weight")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    torch.manual_seed(3)
    bits, answers = make_multiplexer_dataset(
        address_bits=3, sample_size=2600, positive_class_ratio=0.5, shuffle=True, random_seed=9
    )
    x, y = torch.tensor(bits, dtype=torch.float32) * 2 - 1, torch.tensor(answers, dtype=torch.float32)
    order = torch.randperm(len(x))
    train, test = order[:2000], order[2000:]
    model = Network(args.width)
    if args.constant is not None:
        initialise(model, args.constant)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (128,))]
        loss = F.binary_cross_entropy_with_logits(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        right = ((model(x[test]) > 0) == (y[test] > 0.5)).float().mean().item()
    print(f"share of right answers {right:.4f}")


if __name__ == "__main__":
    main()
