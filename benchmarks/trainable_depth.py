"""Trainable depth: how deep a tanh network can be and still learn digits, against 6 ξ_c of mean-field theory.

    python benchmarks/trainable_depth.py [--quick] [--seeds N] [--save]

A small version of figure 5 of Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, "Deep Information Propagation", ICLR 2017:
networks of many depths and weight variances are trained for 300 steps of plain SGD, and their accuracy on the training
images is set against the depth 6 ξ_c. ξ_c is the number of layers over which the correlation of two inputs comes closer to
its fixed point by a factor e; after a few of them every pair of inputs looks alike (ordered side), or every pair looks
unlike (chaotic side), and there is nothing left to learn from.

Weights are drawn from N(0, σ_w²/fan_in), biases from N(0, σ_b²) with σ_b² = 0.05. Every cell of the grid gets the same
learning rates and the best of them counts; the list goes down to 0.001, as gradients grow with depth on the chaotic side.
A training ends early when every training image is read right, and a cell when one rate got there. Cells that are neither
learned nor lost with the first seed are repeated with the others.

Takes 20 minutes on one core, 2 with ``--quick``. ``--save`` writes benchmarks/results/trainable_depth.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradiometer
from gradiometer.theory import MeanField

RESULTS = Path(__file__).resolve().parent / "results" / "trainable_depth.json"
DIGITS = Path(gradiometer.__file__).parent / "data" / "digits.npz"

SIGMA_B2 = 0.05
SIGMA_W2 = (1.0, 1.3, 1.5, 1.76, 2.0, 2.5, 3.0, 3.5, 4.0)
DEPTHS = (5, 10, 20, 30, 40, 60, 90, 130)
QUICK = ((1.0, 1.76, 4.0), (10, 40, 60))
RATES = (0.05, 0.01, 0.003, 0.001)
WIDTH, BATCH, STEPS, LOOK = 128, 128, 300, 50
TRAIN = 1500
EXIT = 0.9999
OPEN = (0.2, 0.95)
"""Accuracies between which a cell is repeated with further seeds."""
CURVE = np.round(np.arange(0.84, 4.26, 0.02), 2)
CRITICAL = 1000.0
"""A row with more layers of ξ_c than this is called critical."""


@dataclass(frozen=True)
class Training:
    """One training: its rate, and the accuracy on all training images where it ended."""

    rate: float
    accuracy: float
    steps: int


@dataclass(frozen=True)
class Cell:
    """A depth and a weight variance: the best of the rates that were tried. Accuracies have one value a seed."""

    sigma_w2: float
    depth: int
    accuracies: tuple[float, ...]
    trainings: tuple[tuple[Training, ...], ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return sum(self.accuracies) / len(self.accuracies)


def digits() -> tuple[Tensor, Tensor]:
    """Training images, with the mean image taken away and a mean square of 1, and their labels."""
    data = np.load(DIGITS)
    order = np.random.default_rng(0).permutation(len(data["y"]))[:TRAIN]
    x = torch.tensor(data["x"][order], dtype=torch.float32)
    x = x - x.mean(0)
    return x / x.square().mean().sqrt(), torch.tensor(data["y"][order], dtype=torch.long)


def network(depth: int, sigma_w2: float, width: int = WIDTH) -> nn.Sequential:
    """``depth`` hidden tanh layers and a readout, all drawn alike."""
    layers: list[nn.Module] = []
    size = 64
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.Tanh()]
        size = width
    model = nn.Sequential(*layers, nn.Linear(size, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=math.sqrt(sigma_w2 / layer.in_features))
            nn.init.normal_(layer.bias, std=math.sqrt(SIGMA_B2))
    return model


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return round(float((model(x).argmax(1) == y).double().mean()), 4)


def train(model: nn.Module, x: Tensor, y: Tensor, rate: float, steps: int, seed: int) -> Training:
    """Plain SGD; ends early when all images are read right or the loss is no number any more."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for step in range(1, steps + 1):
        batch = torch.randint(len(x), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % LOOK == 0:
            if not math.isfinite(loss.item()):
                break
            if (right := accuracy(model, x, y)) >= EXIT:
                return Training(rate, right, step)
    return Training(rate, accuracy(model, x, y), step)


def measure(sigma_w2: float, depth: int, seeds: int, x: Tensor, y: Tensor) -> Cell:
    """The best rate of a cell, for every seed it gets."""
    began = time.perf_counter()
    tried: list[tuple[Training, ...]] = []
    best: list[float] = []
    for seed in range(seeds):
        trainings: list[Training] = []
        for rate in RATES:
            torch.manual_seed(seed)
            trainings.append(train(network(depth, sigma_w2), x, y, rate, STEPS, seed))
            if trainings[-1].accuracy >= EXIT:
                break
        tried.append(tuple(trainings))
        best.append(max(t.accuracy for t in trainings))
        if not OPEN[0] < best[0] < OPEN[1]:
            break
    return Cell(sigma_w2, depth, tuple(best), tuple(tried), round(time.perf_counter() - began, 1))


# ---- theory --------------------------------------------------------------------------------------------------------------


def correlation_length(sigma_w2: float) -> float:
    """ξ_c of a wide tanh network, in layers; infinite at the edge of chaos."""
    return MeanField("tanh", math.sqrt(sigma_w2), math.sqrt(SIGMA_B2)).xi_correlation


# ---- the table -----------------------------------------------------------------------------------------------------------


def half_depth(cells: Sequence[Cell]) -> float | None:
    """Depth at which accuracy falls through one half, between grid depths on a logarithmic scale; None if it never does."""
    for shallow, deep in itertools.pairwise(cells):
        if shallow.accuracy >= 0.5 > deep.accuracy:
            share = (shallow.accuracy - 0.5) / (shallow.accuracy - deep.accuracy)
            return round(float(shallow.depth * (deep.depth / shallow.depth) ** share), 1)
    return None


def rows(cells: Sequence[Cell]) -> list[dict[str, float | str | None]]:
    """What every weight variance comes to."""
    found: list[dict[str, float | str | None]] = []
    for sigma_w2 in sorted({c.sigma_w2 for c in cells}):
        mine = [c for c in cells if c.sigma_w2 == sigma_w2]
        xi = correlation_length(sigma_w2)
        side = "critical" if xi > CRITICAL else ("ordered" if sigma_w2 < 1.76 else "chaotic")
        found.append({"sigma_w2": sigma_w2, "side": side, "xi_c": round(xi, 2), "half_depth": half_depth(mine)})
    return found


def table(cells: Sequence[Cell]) -> str:
    """A plain text table: accuracy by depth, and the theory."""
    depths = sorted({c.depth for c in cells})
    lines = ["σ_w²  side      " + "".join(f"L={d:<6}" for d in depths) + "6 ξ_c    half at"]
    for row in rows(cells):
        accuracies = "".join(f"{c.accuracy:<8.2f}" for c in cells if c.sigma_w2 == row["sigma_w2"])
        half = row["half_depth"] or "deeper"
        lines.append(f"{row['sigma_w2']:<4}  {row['side']:<8}  {accuracies}{6 * float(row['xi_c'] or 0):<8.0f} {half}")
    return "\n".join(lines)


def document(cells: Sequence[Cell], seeds: int) -> dict[str, object]:
    """What is saved: settings, the rows, the curve of ξ_c and every training."""
    return {
        "gradiometer": gradiometer.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "width": WIDTH,
        "batch": BATCH,
        "steps": STEPS,
        "rates": RATES,
        "sigma_b2": SIGMA_B2,
        "training images": TRAIN,
        "seeds": seeds,
        "seconds": round(sum(c.seconds for c in cells)),
        "rows": rows(cells),
        "xi_c": [(float(s), round(correlation_length(float(s)), 3)) for s in CURVE],
        "cells": [asdict(c) for c in cells],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a grid of nine cells")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of a cell that is neither learned nor lost")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args(arguments)
    if options.quick and options.save:
        parser.error("--save keeps the whole grid: leave --quick out")
    torch.set_num_threads(1)
    variances, depths = QUICK if options.quick else (SIGMA_W2, DEPTHS)
    x, y = digits()
    cells: list[Cell] = []
    for sigma_w2 in variances:
        for depth in depths:
            cells.append(measure(sigma_w2, depth, options.seeds, x, y))
            print(f"σ_w² {sigma_w2:<4} depth {depth:<4} accuracy {cells[-1].accuracy:.3f}  {cells[-1].seconds} s", flush=True)
    print(f"\n{table(cells)}")
    if options.save:
        RESULTS.write_text(json.dumps(document(cells, options.seeds), indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten to {RESULTS.name}; python docs/trainable_depth.py draws it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
