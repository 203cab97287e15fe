"""A small autoencoder of the digits."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


class AutoEncoder(nn.Module):
    def __init__(self, code: int, std: float | None, numpy_codes: bool) -> None:
        super().__init__()
        self.numpy_codes = numpy_codes
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, code), nn.Tanh())
        self.decoder = nn.Sequential(nn.Linear(code, 48), nn.Tanh(), nn.Linear(48, 64))
        if std is not None:
            for name, parameter in self.named_parameters():
                if name.endswith("weight"):
                    nn.init.normal_(parameter, std=std)
                else:
                    nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = self.encoder(x)
        if self.numpy_codes:
            code = torch.tensor(code.detach().numpy())
        return self.decoder(code)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    if args.boost and step >= args.boost_at:
        return args.lr * args.boost
    return args.lr


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--code", type=int, default=10)
    parser.add_argument("--codes", choices=["torch", "numpy"], default="torch")
    parser.add_argument("--std", type=float, help="of the initial weights")
    parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--boost", type=float, default=0.0, help="factor of the learning rate in the second phase")
    parser.add_argument("--boost-at", type=int, default=400)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.manual_seed(12)
    data = torch.tensor(load_digits().data, dtype=torch.float32)
    data = (data - data.mean(0)) / 6
    data = data[torch.randperm(len(data))]
    train, test = data[:1500], data[1500:]
    model = AutoEncoder(args.code, args.std, args.codes == "numpy")
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    criterion = nn.MSELoss()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        x = train[torch.randint(0, len(train), (100,))]
        loss = criterion(model(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.5f}")
    with torch.no_grad():
        print(f"test mse {criterion(model(test), test).item():.5f}")


if __name__ == "__main__":
    main()
