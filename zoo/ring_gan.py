"""A generative adversarial network that learns eight points on a ring."""

import argparse
import math

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=1500)
args = parser.parse_args()

torch.manual_seed(1)
LATENT, BATCH = 8, 128


def real(count):
    angle = torch.randint(0, 8, (count,)) * (2 * math.pi / 8)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(count, 2)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(LATENT, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 2))

    def forward(self, z):
        return self.net(z)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 96), nn.LeakyReLU(0.2), nn.Linear(96, 96), nn.LeakyReLU(0.2), nn.Linear(96, 1)
        )

    def forward(self, x):
        return self.net(x).squeeze(1)


generator, discriminator = Generator(), Discriminator()
opt_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
opt_d = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
bce = nn.BCEWithLogitsLoss()
ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)

for step in range(args.steps):
    fake = generator(torch.randn(BATCH, LATENT))
    opt_d.zero_grad()
    loss_d = bce(discriminator(real(BATCH)), ones) + bce(discriminator(fake.detach()), zeros)
    loss_d.backward()
    opt_d.step()

    opt_g.zero_grad()
    loss_g = bce(discriminator(fake), ones)
    loss_g.backward()
    opt_g.step()
    if step % 100 == 0:
        print(f"step {step}: d {loss_d.item():.3f} g {loss_g.item():.3f}")

with torch.no_grad():
    points = generator(torch.randn(2000, LATENT))
    radius = points.norm(dim=1)
    sectors = ((torch.atan2(points[:, 1], points[:, 0]) / (2 * math.pi / 8)).round() % 8).unique().numel()
print(f"sectors covered {sectors}, mean distance from the ring {(radius - 1).abs().mean().item():.4f}")
