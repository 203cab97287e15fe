"""Tells four wave forms apart with a GRU that reads the noisy signal."""

import argparse
import math

import torch
from torch import nn


def waves(count: int, length: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    kind = torch.randint(0, 4, (count,))
    period = 8 + 12 * torch.rand(count, 1)
    phase = (torch.arange(length) / period + torch.rand(count, 1)) % 1
    forms = torch.stack(
        [torch.sin(2 * math.pi * phase), torch.sign(phase - 0.5), 2 * phase - 1, 1 - 4 * (phase - 0.5).abs()], dim=1
    )
    signal = forms[torch.arange(count), kind]
    return (signal + 0.05 * torch.randn(count, length)).unsqueeze(-1), kind


class Classifier(nn.Module):
    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(x)
        return self.head(states.mean(1))


parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam")
parser.add_argument("--clip-value", type=float, default=1.0)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()

torch.manual_seed(2024)
x_train, y_train = waves(1500)
x_test, y_test = waves(500)
model = Classifier()
if args.optimizer == "adam":
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
else:
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
for step in range(1, args.steps + 1):
    batch = torch.randint(0, len(x_train), (50,))
    loss = nn.functional.cross_entropy(model(x_train[batch]), y_train[batch])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_value_(model.parameters(), args.clip_value)
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.4f}")
model.eval()
with torch.no_grad():
    accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
print(f"test accuracy {accuracy:.4f}")
