"""Two noisy views of an image, a predictor and a slow copy as teacher; then a nearest neighbour on the features."""

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F


def view(x: torch.Tensor) -> torch.Tensor:
    keep = (torch.rand_like(x) > 0.2).float()
    return (x * (0.8 + 0.4 * torch.rand(len(x), 1)) + 0.1 * torch.randn_like(x)) * keep


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--decay", type=float, default=0.98)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.manual_seed(83)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(digits.target)[order]
    online = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 48))
    predictor = nn.Sequential(nn.Linear(48, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 48))
    teacher = copy.deepcopy(online).requires_grad_(False)
    optimizer = torch.optim.AdamW([*online.parameters(), *predictor.parameters()], lr=args.lr, weight_decay=1e-3)
    for step in range(args.steps):
        batch = x[torch.randint(0, 1400, (128,))]
        a, b = view(batch), view(batch)
        with torch.no_grad():
            target_a, target_b = teacher(a), teacher(b)
        near = F.cosine_similarity(predictor(online(a)), target_b) + F.cosine_similarity(predictor(online(b)), target_a)
        loss = -near.mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), online.parameters()):
                slow.lerp_(fast, 1 - args.decay)
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    online.eval()
    with torch.no_grad():
        z = F.normalize(online(x), dim=1)
        nearest = (z[1400:] @ z[:1400].T).argmax(1)
        print(f"test accuracy {(y[nearest] == y[1400:]).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
