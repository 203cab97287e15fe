"""A generator and a critic play for a cloud of points: a Wasserstein loss, SGD, a gradient penalty or clamped weights."""

import argparse

import torch
from torch import nn


def cloud(count: int) -> torch.Tensor:
    side = 2.0 * torch.randint(2, (count, 1)) - 1
    return torch.cat([1.5 * side + 0.3 * torch.randn(count, 1), 1.0 + 0.5 * side + 0.3 * torch.randn(count, 1)], 1)


def slope_penalty(critic: nn.Module, real: torch.Tensor) -> torch.Tensor:
    real = real.clone().requires_grad_()
    slope = torch.autograd.grad(critic(real).sum(), real, create_graph=True)[0]
    return slope.square().sum(1).mean()


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--penalty", type=float, default=1.0)
    parser.add_argument("--clamp", type=float, default=0.0, help="bound of the critic's weights, 0 for none")
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    torch.manual_seed(81)
    generator = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    g_opt = torch.optim.SGD(generator.parameters(), lr=args.lr, momentum=args.momentum)
    c_opt = torch.optim.SGD(critic.parameters(), lr=args.lr, momentum=args.momentum)
    distances = []
    for step in range(args.steps):
        real, fake = cloud(128), generator(torch.randn(128, 2))
        gap = critic(fake.detach()).mean() - critic(real).mean()
        c_loss = gap + args.penalty * slope_penalty(critic, real)
        c_opt.zero_grad()
        c_loss.backward()
        c_opt.step()
        if args.clamp:
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter.clamp_(-args.clamp, args.clamp)

        g_loss = -critic(fake).mean()
        g_opt.zero_grad()
        g_loss.backward()
        g_opt.step()
        if step % 100 == 0:
            print(f"step {step}: critic {c_loss.item():.4f} generator {g_loss.item():.4f}")
        if step % 10 == 0 and step >= args.steps // 2:
            with torch.no_grad():
                distances.append(energy_distance(generator(torch.randn(300, 2)), cloud(300)))
    print(f"mean energy distance of the second half {sum(distances) / len(distances):.4f}")


if __name__ == "__main__":
    main()
