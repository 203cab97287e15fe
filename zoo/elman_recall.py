"""A plain RNN hears one of four tones, then noise, and has to name the tone at the end."""

import argparse

import torch
from torch import nn


class Listener(nn.Module):
    def __init__(self, hidden: int, gain: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 4)
        nn.init.normal_(self.rnn.weight_hh_l0, std=gain / hidden**0.5)
        nn.init.normal_(self.rnn.weight_ih_l0, std=0.5)
        nn.init.zeros_(self.rnn.bias_ih_l0)
        nn.init.zeros_(self.rnn.bias_hh_l0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self.rnn(x)
        return self.fc(out[:, -1])


def batch(size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    tone = torch.randint(0, 4, (size,))
    x = 0.1 * torch.randn(size, length, 4)
    x[:, 0] += 2 * nn.functional.one_hot(tone, 4)
    return x, tone


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gain", type=float, default=1.0, help="of the recurrent weights")
    parser.add_argument("--length", type=int, default=25)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    args = parser.parse_args()
    torch.manual_seed(8)
    model = Listener(args.hidden, args.gain)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    for step in range(args.steps):
        x, tone = batch(64, args.length)
        loss = nn.functional.cross_entropy(model(x), tone)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 80 == 0:
            print(f"step {step}: loss {loss.item():.4f} gradient {norm.item():.3g}")
    with torch.no_grad():
        x, tone = batch(1000, args.length)
        accuracy = (model(x).argmax(1) == tone).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
