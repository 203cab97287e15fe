"""Finds the communities of a random graph with a two-layer graph convolution network, a third of the nodes labelled."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

NODES, GROUPS, FEATURES = 300, 4, 16


def random_graph() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    group = torch.randint(0, GROUPS, (NODES,))
    same = group[:, None] == group[None, :]
    upper = torch.triu(torch.rand(NODES, NODES) < torch.where(same, 0.10, 0.015), diagonal=1)
    adjacency = (upper | upper.T).float() + torch.eye(NODES)
    degree = adjacency.sum(1).rsqrt()
    features = 0.6 * torch.randn(GROUPS, FEATURES)[group] + torch.randn(NODES, FEATURES)
    return degree[:, None] * adjacency * degree[None, :], features, group


class GraphConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, adjacency: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return adjacency @ self.linear(x)


class GCN(nn.Module):
    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.conv1, self.conv2 = GraphConv(FEATURES, hidden), GraphConv(hidden, GROUPS)

    def forward(self, adjacency: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(F.relu(self.conv1(adjacency, x)), 0.3, self.training)
        return self.conv2(adjacency, x)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--max-norm", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=300)
    args = parser.parse_args()
    torch.manual_seed(31)
    adjacency, features, group = random_graph()
    nodes = torch.randperm(NODES)
    known, hidden = nodes[:100], nodes[100:]
    model = GCN()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, weight_decay=5e-4)
    for epoch in range(args.epochs):
        model.train()
        loss = F.cross_entropy(model(adjacency, features)[known], group[known])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.max_norm)
        optimizer.step()
        if epoch % 60 == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    model.eval()
    with torch.no_grad():
        accuracy = (model(adjacency, features).argmax(1) == group)[hidden].float().mean().item()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
