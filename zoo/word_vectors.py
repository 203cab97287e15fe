"""Word vectors with negative sampling and sparse gradients, from the texts that come with the data sets."""

import re
from collections import Counter

import torch
from sklearn.datasets import load_diabetes, load_digits, load_iris, load_wine
from torch import nn
from torch.nn import functional as F


def pairs(ids, reach=2):
    left, right = [], []
    for shift in range(1, reach + 1):
        left += [ids[:-shift], ids[shift:]]
        right += [ids[shift:], ids[:-shift]]
    return torch.cat(left), torch.cat(right)


class SkipGram(nn.Module):
    def __init__(self, words, width):
        super().__init__()
        self.inside = nn.Embedding(words, width, sparse=True)
        self.outside = nn.Embedding(words, width, sparse=True)
        nn.init.uniform_(self.inside.weight, -0.5 / width, 0.5 / width)
        nn.init.zeros_(self.outside.weight)

    def forward(self, centre, context, noise):
        v = self.inside(centre)
        true = (v * self.outside(context)).sum(1)
        false = (self.outside(noise) @ v.unsqueeze(2)).squeeze(2)
        return -(F.logsigmoid(true) + F.logsigmoid(-false).sum(1)).mean()


def main():
    torch.manual_seed(1)
    text = " ".join(load().DESCR for load in (load_iris, load_wine, load_digits, load_diabetes))
    words = re.findall(r"[a-z]+", text.lower())
    index = {word: i for i, (word, _) in enumerate(Counter(words).most_common())}
    ids = torch.tensor([index[w] for w in words])
    frequency = torch.bincount(ids).float() ** 0.75
    centre, context = pairs(ids)
    model = SkipGram(len(index), 24)
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.01)
    for step in range(600):
        rows = torch.randint(len(centre), (128,))
        noise = torch.multinomial(frequency, 128 * 4, replacement=True).view(128, 4)
        loss = model(centre[rows], context[rows], noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        noise = torch.multinomial(frequency, len(centre) * 4, replacement=True).view(-1, 4)
        print(f"train loss {model(centre, context, noise).item():.4f}")


if __name__ == "__main__":
    main()
