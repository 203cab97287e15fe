"""How good is the forecast? Random networks: what theory says at step 0, what one pass measures, what training then does.

    python benchmarks/forecast.py                # forecast of every network, against the labels that are stored
    python benchmarks/forecast.py --save         # … and write benchmarks/results/forecast.json
    python benchmarks/forecast.py --train        # train every network that has no label yet (about an hour of one core)

A network is drawn from its number. Even numbers were looked at while the forecast was built; odd ones are judged blind.
"Trains" means: with the best of three learning rates the loss of the digits falls clearly below what the class frequencies
alone give (80 % of ln 10) within 150 steps.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent / "results"
LABELS = HERE / "forecast_labels.json"
RESULTS = HERE / "forecast.json"
NETWORKS = 400
STEPS = 150
BATCH = 64
RATES = (0.1, 0.02, 0.004)
LEFT = 0.8 * math.log(10.0)
ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "hardtanh": nn.Hardtanh,
    "mish": nn.Mish,
}
INITS = ("default", "xavier", "he", "lecun", "orthogonal", "scaled", "biased")


@dataclass(frozen=True)
class Config:
    """A network: everything that its number decides."""

    seed: int
    kind: str
    activation: str
    init: str
    scale: float
    depth: int
    width: int
    norm: str
    skip: str
    dropout: float

    @classmethod
    def draw(cls, seed: int) -> Config:
        """The network with this number."""
        rng = np.random.default_rng(1000 + seed)
        kind = "cnn" if rng.random() < 0.3 else "mlp"
        most = 40 if kind == "cnn" else 100
        while True:
            depth = round(math.exp(rng.uniform(math.log(2), math.log(most))))
            width = round(math.exp(rng.uniform(math.log(32), math.log(128 if kind == "cnn" else 512))))
            if depth * width**2 <= (200_000 if kind == "cnn" else 3_000_000):
                break
        return cls(
            seed=seed,
            kind=kind,
            activation=str(rng.choice(list(ACTIVATIONS))),
            init=str(rng.choice(INITS)),
            scale=float(math.exp(rng.uniform(math.log(0.6), math.log(2.5)))),
            depth=depth,
            width=width,
            norm=str(rng.choice(["", "batch", "layer"], p=[0.6, 0.2, 0.2])),
            skip=str(rng.choice(["", "plain", "scaled"], p=[0.7, 0.15, 0.15])),
            dropout=float(rng.choice([0.0, 0.1, 0.3], p=[0.8, 0.1, 0.1])),
        )


class Block(nn.Module):
    """weights, normalisation, activation, dropout; with a skip connection around them if asked."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w = config.width
        cnn = config.kind == "cnn"
        self.weights = nn.Conv2d(w, w, 3, padding=1) if cnn else nn.Linear(w, w)
        norms = {
            "batch": nn.BatchNorm2d if cnn else nn.BatchNorm1d,
            "layer": (lambda n: nn.GroupNorm(1, n)) if cnn else nn.LayerNorm,
        }
        self.norm = norms[config.norm](w) if config.norm else None
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None
        self.skip = config.skip
        self.share = config.depth**-0.5

    def forward(self, x: Tensor) -> Tensor:
        h = self.weights(x)
        if self.norm is not None:
            h = self.norm(h)
        h = self.activation(h)
        if self.dropout is not None:
            h = self.dropout(h)
        if self.skip == "plain":
            return x + h
        return x + self.share * h if self.skip else h


def build(config: Config) -> nn.Sequential:
    """The network of a config, its weights drawn with torch's generator."""
    torch.manual_seed(config.seed)
    w = config.width
    if config.kind == "cnn":
        first: nn.Module = nn.Conv2d(1, w, 3, stride=2, padding=1)
        ending: list[nn.Module] = [nn.Flatten(), nn.Linear(w * 16, 10)]
    else:
        first, ending = nn.Linear(64, w), [nn.Linear(w, 10)]
    model = nn.Sequential(first, *(Block(config) for _ in range(config.depth)), *ending)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and config.init != "default":
            _initialise(module, config)
    return model


def _initialise(module: nn.Linear | nn.Conv2d, config: Config) -> None:
    fan_in = module.weight[0].numel()
    match config.init:
        case "xavier":
            nn.init.xavier_normal_(module.weight)
        case "he":
            nn.init.kaiming_normal_(module.weight)
        case "lecun":
            nn.init.normal_(module.weight, std=fan_in**-0.5)
        case "orthogonal":
            nn.init.orthogonal_(module.weight, gain=config.scale)
        case _:
            nn.init.normal_(module.weight, std=config.scale * fan_in**-0.5)
    nn.init.normal_(module.bias, std=0.3 if config.init == "biased" else 0.0)


def data(config: Config) -> tuple[Tensor, Tensor]:
    """The digits, inputs of mean 0 and variance 1."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    return (x.view(-1, 1, 8, 8) if config.kind == "cnn" else x), torch.tensor(digits.target)


def trains(config: Config) -> dict[str, float]:
    """Lowest smoothed loss after a short training, over three learning rates (stops at the first that leaves the plateau)."""
    x, y = data(config)
    best, rate_of_best = math.inf, 0.0
    for rate in RATES:
        model = build(config)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        generator = torch.Generator().manual_seed(config.seed)
        losses: list[float] = []
        for _ in range(STEPS):
            index = torch.randint(0, len(x), (BATCH,), generator=generator)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            loss.backward()
            optimizer.step()
        end = float(np.mean(losses[-20:])) if len(losses) == STEPS and math.isfinite(losses[-1]) else math.inf
        if end < best:
            best, rate_of_best = end, rate
        if best < LEFT:
            break
    return {"loss": best if math.isfinite(best) else -1.0, "rate": rate_of_best}


def train_all() -> None:
    """Label every network that has no label yet; what is done is kept at once."""
    labels: dict[str, dict[str, float]] = json.loads(LABELS.read_text()) if LABELS.exists() else {}
    for seed in range(NETWORKS):
        if str(seed) in labels:
            continue
        began = time.time()
        labels[str(seed)] = trains(Config.draw(seed))
        LABELS.write_text(json.dumps(labels, indent=0) + "\n")
        print(seed, labels[str(seed)], f"{time.time() - began:.1f} s", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train:
        train_all()


if __name__ == "__main__":
    main()
