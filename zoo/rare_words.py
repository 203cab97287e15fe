"""Which data set does a passage describe: averaged word embeddings, a table of 20,000 rows of which few are used."""

import argparse
import re
import zlib

import torch
from sklearn import datasets
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--buckets", type=int, default=20_000)
args = parser.parse_args()

torch.manual_seed(0)
sources = [datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer, datasets.load_diabetes, datasets.load_digits]
texts = [re.findall(r"[a-z]+", load().DESCR.lower()) for load in sources]
texts = [torch.tensor([zlib.crc32(w.encode()) % args.buckets for w in words]) for words in texts]
WINDOW = 12


def batch(size, part):
    labels = torch.randint(len(texts), (size,))
    rows = []
    for label in labels.tolist():
        words = texts[label]
        cut = int(0.75 * len(words))
        words = words[:cut] if part == "train" else words[cut:]
        start = int(torch.randint(len(words) - WINDOW + 1, ()))
        rows.append(words[start : start + WINDOW])
    return torch.stack(rows), labels


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(args.buckets, 32)
        self.hidden = nn.Linear(32, 64)
        self.relu = nn.ReLU()
        self.out = nn.Linear(64, len(texts))

    def forward(self, words):
        return self.out(self.relu(self.hidden(self.embedding(words).mean(1))))


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(200):
    words, labels = batch(64, "train")
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(words), labels)
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")

with torch.no_grad():
    words, labels = batch(500, "train")
    print(f"train accuracy {(model(words).argmax(1) == labels).float().mean().item():.4f}")
