"""Reads a handwritten digit as a stream of 64 pixels with a plain recurrent network and names it at the end."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


class StreamReader(nn.Module):
    """A tanh recurrence over pixels; the last state is classified."""

    def __init__(self, hidden: int, recurrent: str) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, hidden, batch_first=True)
        self.classify = nn.Linear(hidden, 10)
        if recurrent == "orthogonal":
            nn.init.orthogonal_(self.rnn.weight_hh_l0)
        elif recurrent == "normal":
            nn.init.normal_(self.rnn.weight_hh_l0, std=0.02)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(pixels)
        return self.classify(states[:, -1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recurrent", choices=["orthogonal", "normal", "default"], default="orthogonal")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.manual_seed(61)
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32).view(-1, 64, 1)
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, test = order[:1400], order[1400:]
    model = StreamReader(args.hidden, args.recurrent)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = train[torch.randint(len(train), (64,))]
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 30.0)
        optimizer.step()
        if step % 80 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    model.eval()
    with torch.no_grad():
        correct = model(x[test]).argmax(1) == y[test]
    print(f"held-out accuracy {correct.float().mean().item():.4f}")


if __name__ == "__main__":
    main()
