"""A denoising diffusion model for points on a swirl; judged by the energy distance of its samples from fresh points."""

import argparse
import math

import torch
from torch import nn

LEVELS = 40


def swirl(count: int) -> torch.Tensor:
    t = 3 * math.pi * torch.rand(count).sqrt()
    return torch.stack([t * t.cos(), t * t.sin()], 1) / 5 + 0.04 * torch.randn(count, 2)


class Denoiser(nn.Module):
    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.level = nn.Embedding(LEVELS, width)
        self.enter = nn.Linear(2, width)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.leave = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.leave(self.body(self.enter(x) + self.level(level)))


def sample(model: nn.Module, beta: torch.Tensor, kept: torch.Tensor, count: int) -> torch.Tensor:
    x = torch.randn(count, 2)
    for t in reversed(range(LEVELS)):
        noise = model(x, torch.full((count,), t))
        x = (x - beta[t] / (1 - kept[t]).sqrt() * noise) / (1 - beta[t]).sqrt()
        if t:
            x = x + beta[t].sqrt() * torch.randn_like(x)
    return x


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--clip", type=float, default=0.0, help="norm to clip gradients to, 0 for none")
    parser.add_argument("--skip-above", type=float, default=math.inf, help="leave out batches with a larger gradient norm")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1200)
    args = parser.parse_args()
    torch.manual_seed(73)
    beta = torch.linspace(1e-3, 0.2, LEVELS)
    kept = (1 - beta).cumprod(0)
    model = Denoiser()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for step in range(args.steps):
        x, level, noise = swirl(args.batch), torch.randint(LEVELS, (args.batch,)), torch.randn(args.batch, 2)
        mixed = kept[level, None].sqrt() * x + (1 - kept[level, None]).sqrt() * noise
        loss = (model(mixed, level) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), args.clip or math.inf)
        if norm <= args.skip_above:
            optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.4f} gradient norm {norm.item():.3f}")
    with torch.no_grad():
        print(f"energy distance {energy_distance(sample(model, beta, kept, 1500), swirl(1500)):.5f}")


if __name__ == "__main__":
    main()
