"""What training many small networks at once gains: networks per second against a plain loop, and the share of the matmul peak.

For each size, a stretch of the ensemble, a stretch of the plain loop (one ``torch.nn.Linear`` network after the other,
autograd, ``torch.optim.SGD``) and large square products (the peak) take turns, so that a machine that drifts drifts for all;
what is printed are medians over the rounds of ratios within a round, with the lowest and the highest. One network is
one network trained for ``--steps`` steps of batch 128. Operations are those of the products alone, forward and backward,
2 m n k each: what activations, bias, loss and the step itself cost counts against the share.

    python benchmarks/ensembles.py [--rounds N] [--save]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gradiometer.lab.elementwise import elementwise
from gradiometer.lab.ensembles import Architecture, Examples, Member, Training, block_size, draw, train

RESULTS = Path(__file__).parent / "results" / "ensembles.json"
BATCH = 128
PEAK_SIZE = 2048
CASES = (  # activation, depth, width
    ("relu", 20, 16),
    ("tanh", 20, 16),
    ("relu", 20, 32),
    ("relu", 20, 64),
    ("tanh", 20, 64),
    ("relu", 20, 128),
)
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def digits_like(inputs: int) -> Examples:
    """Random examples: what they say does not change what they cost."""
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(1024, inputs, generator=generator), torch.randint(0, 10, (1024,), generator=generator))


def plain(architecture: Architecture, member: Member, data: Examples, training: Training) -> list[float]:
    """The plain loop's losses of one network."""
    layers: list[nn.Module] = []
    for w, b in draw(architecture, member):
        linear = nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            linear.weight.copy_(w)
            linear.bias.copy_(b)
        layers += [linear, ACTIVATIONS[architecture.activation]()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=member.learning_rate)
    losses = []
    for rows in data.order(training):
        loss = F.cross_entropy(model(data.x[rows]), data.y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak() -> float:
    """Operations per second of a large square product, the best of a few."""
    a, b = torch.randn(2, PEAK_SIZE, PEAK_SIZE).unbind()
    out = torch.empty(PEAK_SIZE, PEAK_SIZE)
    return 2.0 * PEAK_SIZE**3 / min(seconds_of(lambda: torch.mm(a, b, out=out)) for _ in range(8))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def told(name: str, numbers: dict[str, float], digits: int = 2) -> str:
    return f"{name} {numbers['median']:.{digits}f} ({numbers['min']:.{digits}f}-{numbers['max']:.{digits}f})"


def measure(activation: str, depth: int, width: int, rounds: int, steps: int) -> dict[str, object]:
    """One size: see the module's text."""
    architecture = Architecture(width, width, depth, 10, activation)
    training = Training(steps, BATCH)
    count = 2 * block_size(architecture, training)
    sigma = 2.0**0.5 if activation == "relu" else 1.1
    members = [Member(sigma, 0.0, 0.01, seed) for seed in range(count)]
    few = members[: max(2, count // 8)]
    data = digits_like(width)
    found = train(architecture, members, data, training)
    wanted = np.array([plain(architecture, m, data, training) for m in few])
    given = np.array([t.losses for t in found[: len(few)]])
    per_second: list[float] = []
    loop_per_second: list[float] = []
    peaks: list[float] = []
    operations = float(architecture.products(BATCH) * steps)
    for _ in range(rounds):
        per_second.append(count / seconds_of(lambda: train(architecture, members, data, training)))
        loop_per_second.append(len(few) / seconds_of(lambda: [plain(architecture, m, data, training) for m in few]))
        peaks.append(peak())
    return {
        "activation": activation,
        "depth": depth,
        "width": width,
        "networks": count,
        "block": block_size(architecture, training),
        "networks_per_second": spread(per_second),
        "loop_networks_per_second": spread(loop_per_second),
        "times_the_loop": spread([a / b for a, b in zip(per_second, loop_per_second, strict=True)]),
        "peak_gflops": spread([p / 1e9 for p in peaks]),
        "share_of_peak": spread([a * operations / p for a, p in zip(per_second, peaks, strict=True)]),
        "loop_share_of_peak": spread([a * operations / p for a, p in zip(loop_per_second, peaks, strict=True)]),
        "largest_relative_difference_of_losses": float(np.abs(given / wanted - 1.0).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", help="part of activation-depth-width")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    for row in ACTIVATIONS:
        elementwise(row)
    found: list[dict[str, object]] = []
    for activation, depth, width in CASES:
        name = f"{activation}-{depth}-{width}"
        if args.only and args.only not in name:
            continue
        r = measure(activation, depth, width, args.rounds, args.steps)
        found.append(r)
        print(
            f"{name:12} {told('networks/s', r['networks_per_second'], 1)}"  # type: ignore[arg-type]
            f"  {told('x loop', r['times_the_loop'])}  {told('of peak', r['share_of_peak'])}"  # type: ignore[arg-type]
            f"  {told('loop of peak', r['loop_share_of_peak'])}"  # type: ignore[arg-type]
            f"  losses differ by {r['largest_relative_difference_of_losses']:.1e}",
            flush=True,
        )
    if args.save:
        facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        RESULTS.write_text(json.dumps({"batch": BATCH, "steps": args.steps, **facts, "sizes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
