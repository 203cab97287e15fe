"""A seasonal series with a trend, a GRU cell unrolled by hand, and the one-cycle schedule."""

import torch
from torch import nn


class Forecaster(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.cell = nn.GRUCell(1, hidden)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, x):
        h = torch.zeros(len(x), self.cell.hidden_size)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t : t + 1], h)
        return x[:, -1] + self.readout(h).squeeze(1)


def main():
    torch.manual_seed(41)
    t = torch.arange(1200, dtype=torch.float32)
    series = torch.sin(t * 2 * torch.pi / 12) + 0.5 * torch.sin(t * 2 * torch.pi / 30) + 0.001 * t
    series = series + 0.1 * torch.randn(1200)
    w = series.unfold(0, 25, 1)
    x, y = w[:, :24], w[:, 24]
    steps = 250
    model = Forecaster()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(900, (32,))
        loss = nn.functional.huber_loss(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        error = (model(x[950:]) - y[950:]).square().mean().item()
    print(f"test mse {error:.4f}")


if __name__ == "__main__":
    main()
