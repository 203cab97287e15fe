"""Which of eight tokens comes most often? A post-norm transformer encoder with warm-up."""

import argparse

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

VOCAB, LENGTH = 8, 20


class Classifier(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)).mean(1))


def batch(n):
    favourite = torch.randint(VOCAB, (n, 1))
    tokens = torch.where(torch.rand(n, LENGTH) < 0.35, favourite, torch.randint(VOCAB, (n, LENGTH)))
    return tokens, nn.functional.one_hot(tokens, VOCAB).sum(1).argmax(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--steps-per-epoch", type=int, default=0, help="step the schedule once in so many steps")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.manual_seed(5)
    model = Classifier(48, args.layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / args.warmup))
    criterion = nn.CrossEntropyLoss()
    for step in range(1, args.steps + 1):
        tokens, target = batch(32)
        loss = criterion(model(tokens), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not args.steps_per_epoch or step % args.steps_per_epoch == 0:
            schedule.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f} lr {schedule.get_last_lr()[0]:.2e}")
    model.eval()
    with torch.no_grad():
        tokens, target = batch(1000)
        print(f"test accuracy {(model(tokens).argmax(1) == target).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
