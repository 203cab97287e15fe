"""Sentiment of made-up reviews with an embedding and a two-layer LSTM; most words say nothing."""

import argparse

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

GOOD, BAD, NEUTRAL = range(1, 11), range(11, 21), range(21, 201)


def reviews(count: int, longest: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    label = torch.randint(0, 2, (count,))
    length = torch.randint(8, longest + 1, (count,))
    words = torch.randint(NEUTRAL.start, NEUTRAL.stop, (count, longest))
    mood = torch.rand(count, longest) < 0.25
    agrees = torch.rand(count, longest) < 0.9
    positive = agrees == label.bool()[:, None]
    offset = torch.randint(0, 10, (count, longest))
    words = torch.where(mood, torch.where(positive, GOOD.start, BAD.start) + offset, words)
    words[torch.arange(longest) >= length[:, None]] = 0
    return words, length, label


class Sentiment(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NEUTRAL.stop, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, 32, num_layers=2, dropout=0.2, batch_first=True)
        self.score = nn.Linear(32, 1)

    def forward(self, words: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(self.embedding(words), length, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.score(hidden[-1])[:, 0]


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()
torch.manual_seed(1234)
words, length, label = reviews(2000)
model = Sentiment()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for epoch in range(args.epochs):
    for rows in torch.randperm(1600).split(40):
        loss = nn.functional.binary_cross_entropy_with_logits(model(words[rows], length[rows]), label[rows].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.4f}")
model.eval()
with torch.no_grad():
    accuracy = ((model(words[1600:], length[1600:]) > 0) == label[1600:].bool()).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
