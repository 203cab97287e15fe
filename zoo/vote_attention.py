"""Which of six tokens has the majority? One query token reads the sequence through two layers of attention."""

import argparse
import math

import torch
from torch import nn

VOCAB, LENGTH, WIDTH = 6, 15, 32


class Attention(nn.Module):
    def __init__(self, scale, std):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.scale = scale
        if std:
            nn.init.normal_(self.q.weight, std=std)
            nn.init.normal_(self.k.weight, std=std)

    def forward(self, x):
        h = self.norm(x)
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2) * self.scale, dim=-1)
        return weights @ self.v(h)


class Layer(nn.Module):
    def __init__(self, scale, std):
        super().__init__()
        self.attention = Attention(scale, std)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.mlp(x)


class Reader(nn.Module):
    def __init__(self, scale, std):
        super().__init__()
        self.embed = nn.Embedding(VOCAB + 1, WIDTH)
        self.layers = nn.ModuleList([Layer(scale, std) for _ in range(2)])
        self.out = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB))

    def forward(self, tokens):
        query = torch.full((len(tokens), 1), VOCAB)
        x = self.embed(torch.cat([query, tokens], 1))
        for layer in self.layers:
            x = layer(x)
        return self.out(x[:, 0])


def batch(n):
    favourite = torch.randint(VOCAB, (n, 1))
    tokens = torch.where(torch.rand(n, LENGTH) < 0.3, favourite, torch.randint(VOCAB, (n, LENGTH)))
    return tokens, nn.functional.one_hot(tokens, VOCAB).sum(1).argmax(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-scale", action="store_true", help="plain dot products")
    parser.add_argument("--std", type=float, default=0.0, help="spread of the query and key weights")
    args = parser.parse_args()
    torch.manual_seed(19)
    model = Reader(1.0 if args.no_scale else 1 / math.sqrt(WIDTH), args.std)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(300):
        tokens, target = batch(64)
        loss = nn.functional.cross_entropy(model(tokens), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 60 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        tokens, target = batch(1000)
        print(f"test accuracy {(model(tokens).argmax(1) == target).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
