"""Discs against squares: a small U-shaped network that marks the discs."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F


def block(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU())


class UNet(nn.Module):
    def __init__(self, freeze):
        super().__init__()
        self.freeze = freeze
        self.down1, self.down2, self.bottom = block(1, 8), block(8, 16), block(16, 32)
        self.up2, self.up1 = block(48, 16), block(24, 8)
        self.mask = nn.Conv2d(8, 1, 1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                nn.init.zeros_(m.bias)

    def encode(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        return a, b, self.bottom(F.max_pool2d(b, 2))

    def forward(self, x):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            a, b, c = self.encode(x)
        c = self.up2(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        return self.mask(self.up1(torch.cat([F.interpolate(c, scale_factor=2), a], 1)))


def shapes(n, size=24):
    at = torch.arange(size, dtype=torch.float32)
    cx, cy, sx, sy = (4 + torch.rand(4, n, 1, 1) * (size - 8)).unbind(0)
    radius = 3 + 2 * torch.rand(n, 1, 1)
    disc = (at[None, None, :] - cx) ** 2 + (at[None, :, None] - cy) ** 2 < radius**2
    square = torch.maximum((at[None, None, :] - sx).abs(), (at[None, :, None] - sy).abs()) < radius * 0.9
    image = (disc | square).float() + 0.1 * torch.randn(n, size, size)
    return image.unsqueeze(1), (disc & ~square).float().unsqueeze(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--freeze-encoder", action="store_true", help="for fine-tuning from a trained encoder")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--optimizer", default="Adam")
    parser.add_argument("--clip-value", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.manual_seed(8)
    images, masks = shapes(800)
    model = UNet(args.freeze_encoder)
    options = {"lr": args.lr, "momentum": 0.9} if args.optimizer == "SGD" else {"lr": args.lr}
    optimizer = getattr(torch.optim, args.optimizer)(model.parameters(), **options)
    for step in range(args.steps):
        rows = torch.randint(600, (12,))
        loss = F.binary_cross_entropy_with_logits(model(images[rows]), masks[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), args.clip_value)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        guess, truth = model(images[600:]) > 0, masks[600:] > 0.5
        print(f"test IoU {((guess & truth).sum() / (guess | truth).sum().clamp(min=1)).item():.4f}")


if __name__ == "__main__":
    main()
