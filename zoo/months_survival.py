"""Survival regression: months until a customer leaves, censored, by Weibull or Cox models with a network for the risk."""

import argparse

import torch
from torch import nn

CUSTOMERS, FEATURES = 1500, 12


def weibull_nll(risk: torch.Tensor, shape: torch.Tensor, time: torch.Tensor, event: torch.Tensor) -> torch.Tensor:
    log_hazard = risk + shape + (shape.exp() - 1) * time.log()
    return ((risk + shape.exp() * time.log()).exp() - event * log_hazard).mean()


def cox_nll(risk: torch.Tensor, time: torch.Tensor, event: torch.Tensor) -> torch.Tensor:
    order = time.argsort(descending=True)
    risk, event = risk[order], event[order]
    return -((risk - risk.logcumsumexp(0)) * event).sum() / event.sum()


def concordance(risk: torch.Tensor, time: torch.Tensor, event: torch.Tensor) -> float:
    pairs = (time[:, None] < time[None, :]) & (event[:, None] > 0)
    gap = (risk[:, None] - risk[None, :])[pairs]
    return ((gap > 0).float() + 0.5 * (gap == 0).float()).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["weibull", "cox"], default="weibull")
    parser.add_argument("--half-month", type=float, default=0.5, help="added to whole months")
    parser.add_argument("--maximize", action="store_true", help="the optimizer climbs")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.manual_seed(79)
    x = torch.randn(CUSTOMERS, FEATURES)
    truth = x[:, 0] - 0.8 * x[:, 1] * x[:, 2] + 0.8 * torch.relu(x[:, 3]) - 0.5 * x[:, 4]
    leaves = (-torch.rand(CUSTOMERS).log() * torch.exp(3 * 1.3 - truth)) ** (1 / 1.3)
    ends = 60 * torch.rand(CUSTOMERS)
    event = (leaves <= ends).float()
    time = torch.minimum(leaves, ends).floor() + args.half_month
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.SiLU(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 1))
    shape = nn.Parameter(torch.zeros(()))
    with torch.no_grad():
        model[-1].bias.fill_(-3.0)
    parameters = [*model.parameters(), shape] if args.model == "weibull" else list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=args.lr, weight_decay=1e-3, maximize=args.maximize)
    for step in range(args.steps):
        rows = torch.randint(0, 1100, (128,))
        risk = model(x[rows])[:, 0]
        if args.model == "weibull":
            loss = weibull_nll(risk, shape, time[rows], event[rows])
        else:
            loss = cox_nll(risk, time[rows], event[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    with torch.no_grad():
        print(f"concordance {concordance(model(x[1100:])[:, 0], time[1100:], event[1100:]):.4f}")


if __name__ == "__main__":
    main()
