"""Sum of a series with a ReLU recurrence whose weights were drawn too large."""

import os

import torch
from torch import nn

GAIN = float(os.environ.get("GAIN", "2.5"))
LENGTH, HIDDEN = 40, 64

torch.manual_seed(3)


class Recurrence(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(1, HIDDEN, nonlinearity="relu")
        self.out = nn.Linear(HIDDEN, 1)
        nn.init.orthogonal_(self.cell.weight_hh, gain=GAIN)
        nn.init.zeros_(self.cell.bias_hh)
        nn.init.zeros_(self.cell.bias_ih)
        if GAIN == 1.0:
            nn.init.eye_(self.cell.weight_hh)

    def forward(self, series):
        h = series.new_zeros(series.shape[0], HIDDEN)
        for value in series.unbind(1):
            h = self.cell(value.unsqueeze(1), h)
        return self.out(h).squeeze(1)


model = Recurrence()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
for step in range(250):
    series = torch.rand(64, LENGTH)
    target = series.sum(1) / LENGTH**0.5
    loss = nn.functional.mse_loss(model(series), target)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} mse {loss.item():.4g}")

with torch.no_grad():
    series = torch.rand(500, LENGTH)
    print(f"test mse {nn.functional.mse_loss(model(series), series.sum(1) / LENGTH**0.5).item():.4g}")
