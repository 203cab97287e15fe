"""A variational autoencoder of twelve measurements that depend on two hidden ones."""

import torch
from torch import nn

torch.manual_seed(4)
hidden = torch.randn(2000, 2)
mixing = torch.randn(2, 12)
data = torch.tanh(hidden @ mixing) + 0.1 * torch.randn(2000, 12)

encoder = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 8))
decoder = nn.Sequential(nn.Linear(4, 48), nn.Tanh(), nn.Linear(48, 12))
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)


def negative_elbo(x):
    mean, log_var = encoder(x).chunk(2, dim=1)
    z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
    reconstruction = ((decoder(z) - x) ** 2).sum(1) / (2 * 0.1**2)
    divergence = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1)
    return (reconstruction + divergence).mean()


for step in range(600):
    loss = negative_elbo(data[torch.randint(1600, (64,))])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: negative ELBO {loss.item():.2f}")
with torch.no_grad():
    print(f"test loss {negative_elbo(data[1600:]).item():.4f}")
