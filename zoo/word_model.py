"""A word-level language model with an LSTM over documentation, trained with plain SGD and truncated back-propagation."""

import argparse
import inspect
import math
import re
import statistics
import textwrap

import torch
from sklearn import datasets
from torch import nn


def words() -> list[str]:
    """Words of the documentation of some packages; rare ones are replaced."""
    text = " ".join(f().DESCR for f in (datasets.load_wine, datasets.load_breast_cancer, datasets.load_linnerud))
    text += " ".join(inspect.getsource(m) for m in (statistics, textwrap))
    return re.findall(r"[a-z]+|[.,()=]", text.lower())


class WordModel(nn.Module):
    """Embedding, LSTM, decoder."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Embedding(vocab, width)
        self.rnn = nn.LSTM(width, width)
        self.decoder = nn.Linear(width, vocab)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(
        self, ids: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        out, state = self.rnn(self.encoder(ids), state)
        return self.decoder(out), state


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=10.0)
    parser.add_argument("--clip", type=float, default=0.25)
    parser.add_argument("--bptt", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    torch.manual_seed(1111)
    text = words()
    known = {w: i for i, w in enumerate(sorted(w for w in set(text) if text.count(w) >= 8))}
    ids = torch.tensor([known.get(w, len(known)) for w in text])
    blocks = ids[: len(ids) // 200 * 200].view(-1, 200)
    keep = torch.arange(len(blocks)) % 8 != 5
    train, test = blocks[keep].flatten(), blocks[~keep]
    vocab, lanes = len(known) + 1, 20
    lane = train[: len(train) // lanes * lanes].view(lanes, -1).t()
    model = WordModel(vocab, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        state, total = None, 0.0
        for start in range(0, len(lane) - 1 - args.bptt, args.bptt):
            x, y = lane[start : start + args.bptt], lane[start + 1 : start + 1 + args.bptt]
            if state is not None:
                state = tuple(s.detach() for s in state)
            logits, state = model(x, state)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch}: mean loss {total / max(1, (len(lane) - 1) // args.bptt):.4f}")
    with torch.no_grad():
        logits, _ = model(test[:, :-1].t(), None)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), test[:, 1:].t().flatten())
    counts = torch.bincount(train, minlength=vocab).float() + 1
    unigram = -(counts / counts.sum()).log()[test[:, 1:]].mean().item()
    print(f"vocabulary {vocab}, words {len(ids)}, perplexity of word counts {math.exp(unigram):.2f}")
    print(f"held-out perplexity {loss.exp().item():.3f}")


if __name__ == "__main__":
    main()
