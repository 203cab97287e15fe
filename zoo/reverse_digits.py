"""An encoder-decoder pair of recurrent networks that writes a string of symbols backwards."""

import argparse

import torch
from torch import nn

SYMBOLS = 10


class Translator(nn.Module):
    """The encoder's last state starts the decoder, which is fed the previous symbol."""

    def __init__(self, width: int, share: bool) -> None:
        super().__init__()
        self.source = nn.Embedding(SYMBOLS, 16)
        self.encoder = nn.GRU(16, width, batch_first=True)
        self.target = nn.Embedding(SYMBOLS + 1, 16)
        self.decoder = nn.GRU(16, width, batch_first=True)
        self.write = nn.Linear(width, SYMBOLS)
        self.share = share

    def encode(self, source: torch.Tensor) -> torch.Tensor:
        _, state = self.encoder(self.source(source))
        return state if self.share else state.detach()

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        state = self.encode(source)
        start = torch.full_like(target[:, :1], SYMBOLS)
        previous = torch.cat([start, target[:, :-1]], dim=1)
        states, _ = self.decoder(self.target(previous), state)
        return self.write(states)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", choices=["shared", "copied"], default="shared")
    parser.add_argument("--length", type=int, default=8)
    parser.add_argument("--growing", action="store_true", help="start with short strings and let them grow")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    torch.manual_seed(71)
    model = Translator(64, args.state == "shared")
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        length = min(args.length, 2 + step * args.length // args.steps) if args.growing else args.length
        source = torch.randint(SYMBOLS, (64, length))
        target = source.flip(1)
        loss = nn.functional.cross_entropy(model(source, target).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 80 == 0:
            print(f"step {step}: length {length}, loss {loss.item():.4f}")
    with torch.no_grad():
        source = torch.randint(SYMBOLS, (1000, args.length))
        correct = model(source, source.flip(1)).argmax(-1) == source.flip(1)
    print(f"symbols right {correct.float().mean().item():.4f}")


if __name__ == "__main__":
    main()
