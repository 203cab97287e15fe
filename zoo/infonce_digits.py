"""Two noisy views of every digit and the InfoNCE loss; judged by a nearest neighbour in the embedding."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

TEMPERATURE = 0.2

torch.manual_seed(9)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(images))
images, labels = images[order], labels[order]

encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 32))
optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, weight_decay=0.01)


def view(x):
    keep = (torch.rand_like(x) > 0.25).float()
    return (x + 0.1 * torch.randn_like(x)) * keep


for step in range(500):
    x = images[torch.randint(1400, (96,))]
    a, b = F.normalize(encoder(view(x)), dim=1), F.normalize(encoder(view(x)), dim=1)
    logits = a @ b.T / TEMPERATURE
    target = torch.arange(len(x))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

with torch.no_grad():
    z = F.normalize(encoder(images), dim=1)
    nearest = (z[1400:] @ z[:1400].T).argmax(1)
    print(f"test accuracy {(labels[nearest] == labels[1400:]).float().mean().item():.4f}")
