"""Recognises the topic of short messages whose words follow Zipf's law; embeddings with sparse gradients."""

import argparse

import torch
from sklearn.naive_bayes import MultinomialNB
from torch import nn

VOCAB, TOPICS, LENGTH = 3000, 5, 25


def messages(count: int, tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Words drawn from the distribution of the topic."""
    topic = torch.randint(TOPICS, (count,))
    return torch.multinomial(tables[topic], LENGTH, replacement=True), topic


class TopicNet(nn.Module):
    """Word vectors in order, a narrow convolution over three words, the mean over the message."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, width, sparse=True)
        self.conv = nn.Conv1d(width, 32, 3)
        self.head = nn.Linear(32, TOPICS)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.conv(self.words(ids).transpose(1, 2)).relu()
        return self.head(h.mean(2))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(43)
    zipf = 1 / (torch.arange(VOCAB) + 3.0)
    tables = zipf * torch.exp(0.8 * torch.randn(TOPICS, VOCAB))
    x, y = messages(3000, tables)
    x_test, y_test = messages(1500, tables)
    model = TopicNet(24)
    sparse = torch.optim.SparseAdam([model.words.weight], lr=args.lr)
    dense = torch.optim.Adam([*model.conv.parameters(), *model.head.parameters()], lr=args.lr)
    for epoch in range(args.epochs):
        for rows in torch.randperm(len(x)).split(25):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            sparse.zero_grad()
            dense.zero_grad()
            loss.backward()
            sparse.step()
            dense.step()
        print(f"epoch {epoch}: loss {loss.item():.4f}")
    counts = [torch.zeros(len(part), VOCAB).scatter_add_(1, part, torch.ones(part.shape)).numpy() for part in (x, x_test)]
    bayes = MultinomialNB().fit(counts[0], y.numpy()).score(counts[1], y_test.numpy())
    with torch.no_grad():
        correct = model(x_test).argmax(1) == y_test
    print(f"naive Bayes {bayes:.4f}")
    print(f"held-out accuracy {correct.float().mean().item():.4f}")


if __name__ == "__main__":
    main()
