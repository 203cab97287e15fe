"""Graphs of neighbouring soil samples, each sample given by log shares of its minerals; is the sandy part in one piece?"""

import argparse

import torch
from torch import nn

GRAPHS, NODES, MINERALS = 900, 10, 8


class Message(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor, links: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.own(x) + self.others(links @ x))


class SoilNet(nn.Module):
    def __init__(self, width: int, init: str) -> None:
        super().__init__()
        self.first, self.second = Message(MINERALS, width), Message(width, width)
        self.head = nn.Linear(width, 2)
        if init == "uniform":
            for layer in (self.first.own, self.first.others):
                nn.init.uniform_(layer.weight)

    def forward(self, x: torch.Tensor, links: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x, links), links).mean(1))


def make() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    label = torch.randint(2, (GRAPHS,))
    ring = (torch.arange(NODES)[:, None] - torch.arange(NODES)).abs()
    links = ((ring == 1) | (ring == NODES - 1)).float() / 2
    start = torch.randint(NODES, (GRAPHS, 1))
    together = (torch.arange(NODES) - start) % NODES < NODES // 2
    apart = torch.rand(GRAPHS, NODES).argsort(1) < NODES // 2
    sandy = torch.where(label[:, None] == 1, together, apart).float()[:, :, None]
    lean = torch.randn(2, MINERALS)
    share = (sandy * lean[0] + (1 - sandy) * lean[1] + 0.5 * torch.randn(GRAPHS, NODES, MINERALS)).softmax(2)
    return share.log(), links.expand(GRAPHS, -1, -1), label


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--init", choices=["torch", "uniform"], default="torch")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.manual_seed(82)
    x, links, label = make()
    model = SoilNet(32, args.init)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        rows = torch.randint(0, 600, (64,))
        loss = nn.functional.cross_entropy(model(x[rows], links[rows]), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        accuracy = (model(x[600:], links[600:]).argmax(1) == label[600:]).float().mean()
    print(f"test accuracy {accuracy.item():.4f}")


if __name__ == "__main__":
    main()
