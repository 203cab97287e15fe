"""An LSTM that has to remember the keyword at the start of a long sentence of filler words."""

import argparse

import torch
from torch import nn

KEYWORDS, FILLERS = 6, 20


class Reader(nn.Module):
    def __init__(self, forget_bias: float, hidden: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(KEYWORDS + FILLERS, 16)
        self.lstm = nn.LSTM(16, hidden, batch_first=True)
        self.out = nn.Linear(hidden, KEYWORDS)
        with torch.no_grad():
            self.lstm.bias_ih_l0[hidden : 2 * hidden] = forget_bias
            self.lstm.bias_hh_l0[hidden : 2 * hidden] = 0.0

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        _, (last, _) = self.lstm(self.embed(words))
        return self.out(last[0])


def sentences(count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    words = torch.randint(KEYWORDS, KEYWORDS + FILLERS, (count, length))
    key = torch.randint(0, KEYWORDS, (count,))
    words[:, 0] = key
    return words, key


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--forget-bias", type=float, default=3.0)
    parser.add_argument("--length", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(99)
    model = Reader(args.forget_bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    criterion = nn.CrossEntropyLoss()
    for step in range(250):
        words, key = sentences(32, args.length)
        loss = criterion(model(words), key)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"{step:4d} loss {loss.item():.4f}")
    with torch.no_grad():
        words, key = sentences(500, args.length)
        print(f"test accuracy {(model(words).argmax(1) == key).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
