"""A transformer encoder that sorts out which digit a row of pixels shows; written without normalisation layers."""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, t, w = x.shape
        q, k, v = (f(x).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-1, -2) / (w // self.heads) ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, w))


class EncoderLayer(nn.Module):
    def __init__(self, width, heads, norm):
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.feed1 = nn.Linear(width, 2 * width)
        self.feed2 = nn.Linear(2 * width, width)
        self.norm1 = nn.LayerNorm(width) if norm else nn.Identity()
        self.norm2 = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed2(F.gelu(self.feed1(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, layers, width=32, norm=False, std=0.3):
        super().__init__()
        self.patch = nn.Linear(8, width)
        self.position = nn.Parameter(0.02 * torch.randn(8, width))
        self.layers = nn.ModuleList(EncoderLayer(width, 4, norm) for _ in range(layers))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, 10)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, rows):
        x = self.patch(rows) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--norm", action="store_true")
    parser.add_argument("--std", type=float, default=0.3)
    args = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)
    model = Encoder(args.layers, norm=args.norm, std=args.std)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(200):
        rows = torch.randint(0, 1400, (64,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4g}")
    model.eval()
    with torch.no_grad():
        print(f"test accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
