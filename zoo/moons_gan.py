"""A GAN for the two moons. The metric is the mean distance of a fake from its nearest real point and back."""

import os

import torch
from sklearn.datasets import make_moons
from torch import nn

FAKES = os.environ.get("FAKES", "fresh")
STEPS = 600

torch.manual_seed(13)
real = torch.tensor(make_moons(1500, noise=0.05, random_state=0)[0], dtype=torch.float32)
real = (real - real.mean(0)) / real.std(0)


def mlp(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
    )


generator, critic = mlp(4, 2), mlp(2, 1)
g_opt = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
d_opt = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
bce = nn.BCEWithLogitsLoss()
ones, zeros = torch.ones(128, 1), torch.zeros(128, 1)

for step in range(STEPS):
    batch = real[torch.randint(len(real), (128,))]
    fake = generator(torch.randn(128, 4))
    d_opt.zero_grad()
    d_loss = bce(critic(batch), ones) + bce(critic(fake.detach()), zeros)
    d_loss.backward()
    d_opt.step()

    g_opt.zero_grad()
    if FAKES == "buffer":
        fake = fake.detach().clone().requires_grad_()
    g_loss = bce(critic(fake), ones)
    g_loss.backward()
    g_opt.step()
    if step % 100 == 0:
        print(f"step {step}: critic {d_loss.item():.4f} generator {g_loss.item():.4f}")

with torch.no_grad():
    distance = torch.cdist(generator(torch.randn(1000, 4)), real)
    print(f"chamfer distance {(distance.min(0).values.mean() + distance.min(1).values.mean()).item() / 2:.4f}")
