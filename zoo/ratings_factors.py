"""Ratings of items by users from a factor model with biases; the metric is the error on ratings left out."""

import argparse

import torch
from torch import nn

USERS, ITEMS, RANK, NOISE = 200, 120, 3, 0.3


class Factors(nn.Module):
    def __init__(self, width: int, start: float, spread: float, sparse: bool) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, width, sparse=sparse), nn.Embedding(ITEMS, width, sparse=sparse)
        self.user_bias, self.item_bias = nn.Embedding(USERS, 1, sparse=sparse), nn.Embedding(ITEMS, 1, sparse=sparse)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, start, spread)
        nn.init.zeros_(self.user_bias.weight)
        nn.init.zeros_(self.item_bias.weight)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        match = (self.user(user) * self.item(item)).sum(1)
        return match + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--optimizer", choices=["adam", "sparse-adam", "sgd"], default="adam")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--start", type=float, default=0.0, help="mean of the first factors")
    parser.add_argument("--spread", type=float, default=0.1, help="their standard deviation")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    torch.manual_seed(76)
    truth = torch.randn(USERS, RANK) @ torch.randn(RANK, ITEMS) / RANK**0.5
    truth = truth + 0.5 * torch.randn(USERS, 1) + 0.5 * torch.randn(ITEMS)
    pairs = torch.randperm(USERS * ITEMS)
    user, item = pairs // ITEMS, pairs % ITEMS
    rating = truth[user, item] + NOISE * torch.randn(len(pairs))
    known, rest = slice(0, 9600), slice(9600, None)
    model = Factors(args.width, args.start, args.spread, args.optimizer == "sparse-adam")
    make = {"adam": torch.optim.Adam, "sparse-adam": torch.optim.SparseAdam, "sgd": torch.optim.SGD}[args.optimizer]
    optimizer = make(list(model.parameters()), lr=args.lr)
    for step in range(args.steps):
        rows = torch.randint(9600, (args.batch,))
        loss = nn.functional.mse_loss(model(user[known][rows], item[known][rows]), rating[known][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        print(f"test mse {nn.functional.mse_loss(model(user[rest], item[rest]), rating[rest]).item():.4f}")


if __name__ == "__main__":
    main()
