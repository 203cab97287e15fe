"""Digit images embedded by their distances to class centres, trained under autocast with a gradient scaler."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


class Distances(nn.Module):
    """Minus the distance of an embedded image to every class centre."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.centres = nn.Parameter(0.5 * torch.randn(10, 32))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.embed(x).float()
        logits = -torch.sqrt(((z[:, None] - self.centres) ** 2).sum(-1) + self.eps)
        between = torch.sqrt(((self.centres[:, None] - self.centres) ** 2).sum(-1) + self.eps)
        return logits, between


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--eps", type=float, default=1e-6, help="added under the square root")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--log2-scale", type=int, default=12, help="of the first loss scale")
    parser.add_argument("--backoff", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.manual_seed(21)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(digits.target)[order]
    model = Distances(args.eps)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**args.log2_scale, backoff_factor=args.backoff)
    for step in range(args.steps):
        rows = torch.randint(0, 1400, (64,))
        with torch.autocast("cpu", dtype=getattr(torch, args.dtype)):
            logits, between = model(x[rows])
        loss = nn.functional.cross_entropy(logits, y[rows]) - 0.01 * between.clamp(max=5).mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if step % 60 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        accuracy = (model(x[1400:])[0].argmax(1) == y[1400:]).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
