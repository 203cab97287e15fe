"""The circles data set and a deep, five units wide classifier; depth, activation and initialisation can be chosen."""

import argparse

import torch
from sklearn.datasets import make_circles
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Exp(nn.Module):
    def forward(self, x):
        return torch.exp(x)


ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "leaky": nn.LeakyReLU, "tanh": nn.Tanh, "exp": Exp}


def make_model(activation, depth, init, width=5):
    layers = []
    for i in range(depth):
        layers += [nn.Linear(width if i else 2, width), ACTIVATIONS[activation]()]
    model = nn.Sequential(*layers, nn.Linear(width, 1))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
            if init == "he":
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            elif init == "glorot":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.uniform_(layer.weight, -0.05, 0.05)
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--activation", choices=list(ACTIVATIONS), default="tanh")
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--init", choices=["he", "glorot", "uniform"], default="glorot")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    x, y = make_circles(1000, noise=0.1, random_state=1)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32).unsqueeze(1)
    loader = DataLoader(TensorDataset(x[:700], y[:700]), batch_size=128, shuffle=True)
    model = make_model(args.activation, args.depth, args.init)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.BCEWithLogitsLoss()
    for epoch in range(args.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
        if epoch % 60 == 59:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}")
    with torch.no_grad():
        accuracy = ((model(x[700:]) > 0) == (y[700:] > 0.5)).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
