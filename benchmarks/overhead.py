"""What watching costs: step time with the probe over step time without, side by side in one process.

Each training first runs 15 s with the probe, which takes its one-off first looks there (reported apart as "once"). Then
blocks of steps with and without the probe take turns (ABBA), so that a machine whose speed drifts drifts for both.
Printed: the median of the ratio of neighbouring blocks with its range, the ratio of all watched to all plain time with a
bootstrap interval, and what the probe itself says it cost.

    python benchmarks/overhead.py [--pairs N] [--seconds S] [--only NAME] [--overhead PERCENT]
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradiometer
from gradiometer.probe import sampler

WARM_UP_SECONDS = 15.0
RESULTS = Path(__file__).parent / "results" / "overhead.json"
Step = Callable[[], None]


def mlp(depth: int, width: int, batch: int) -> Step:
    """A plain ReLU network."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Linear(width, width)
        nn.init.kaiming_normal_(layer.weight)
        layers += [layer, nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    x, y = torch.randn(batch, width), torch.randint(0, 10, (batch,))
    return stepper(lambda: F.cross_entropy(model(x), y), torch.optim.SGD(model.parameters(), lr=1e-4))


class Block(nn.Module):
    """A residual block with batch normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def resnet() -> Step:
    """Nine blocks of 32 channels on 16 x 16 images."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), *(Block(32) for _ in range(9)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )
    x, y = torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,))
    return stepper(lambda: F.cross_entropy(model(x), y), torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) to the same shape."""
        n, t, c = x.shape
        q, k, v = (z.view(n, t, self.heads, -1).transpose(1, 2) for z in self.qkv(self.ln1(x)).split(c, 2))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.ln2(x))


def gpt() -> Step:
    """Six layers of width 128 on 64 tokens."""
    embed = nn.Embedding(96, 128)
    model = nn.Sequential(*(Layer(128, 4) for _ in range(6)), nn.LayerNorm(128), nn.Linear(128, 96))
    tokens = torch.randint(0, 96, (16, 65))
    parameters = [*embed.parameters(), *model.parameters()]

    def loss() -> Tensor:
        return F.cross_entropy(model(embed(tokens[:, :-1])).flatten(0, 1), tokens[:, 1:].flatten())

    return stepper(loss, torch.optim.AdamW(parameters, lr=1e-4))


def stepper(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Step:
    """One training step."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


TRAININGS: dict[str, Callable[[], Step]] = {
    "30-layer MLP": lambda: mlp(30, 256, 128),
    "small ResNet": resnet,
    "small GPT": gpt,
    "1,000-layer MLP": lambda: mlp(1000, 64, 64),
}


class Switch:
    """Takes the probe off for a while; the time it is off does not count as training time for its budget."""

    def __init__(self, watch: gradiometer.Watch) -> None:
        self._observer, self._taps = watch._observer, watch._taps
        self._off_since = 0.0

    def off(self) -> None:
        self._taps.remove()
        self._off_since = time.perf_counter()

    def on(self) -> None:
        self._observer._began += time.perf_counter() - self._off_since
        self._taps.install(self._observer)
        self._taps.set_module_hooks(self._observer._hooks_on)


def seconds_of(step: Step, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - began


def measure(make: Callable[[], Step], pairs: int, seconds: float, overhead: float) -> dict[str, object]:
    torch.manual_seed(0)
    step = make()
    seconds_of(step, 5)
    plain_step = statistics.median(seconds_of(step, 1) for _ in range(10))
    block = max(2, round(seconds / plain_step))
    folder = Path(tempfile.mkdtemp())
    watch = gradiometer.watch(out=folder / "run", overhead=overhead)
    observer = watch._observer
    # the first looks are beyond the budget; after some seconds of them the running budget alone decides, without debt or
    # credit from before
    until = time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < until:
        step()
    one_off = observer.own_seconds
    budget = sampler.HEADROOM * overhead * (time.perf_counter() - observer._began)
    observer._sampler._paid, observer._sampler._taken = one_off - budget, sampler.FIRST_LOOKS
    observer._sampler._norms = sampler.NORM_SHARE * budget
    switch = Switch(watch)
    plain: list[float] = []
    watched: list[float] = []
    own_before, looks_before = observer.own_seconds, observer._look_count
    for pair in range(pairs):
        for on in (True, False) if pair % 2 else (False, True):
            if on:
                switch.on()
                watched.append(seconds_of(step, block))
                switch.off()
            else:
                plain.append(seconds_of(step, block))
    own = observer.own_seconds - own_before
    looks = observer._look_count - looks_before
    switch.on()
    watch.detach()
    shutil.rmtree(folder)
    ratios = [w / p for w, p in zip(watched, plain, strict=True)]
    a, b = np.array(watched), np.array(plain)
    generator = np.random.default_rng(0)
    picks = generator.integers(0, pairs, (2000, pairs))
    totals = a[picks].sum(1) / b[picks].sum(1)
    return {
        "step_ms": 1000 * plain_step,
        "steps_per_block": block,
        "pairs": pairs,
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_total": float(a.sum() / b.sum()),
        "ratio_total_95": [float(v) for v in np.percentile(totals, [2.5, 97.5])],
        "own_percent": 100 * own / (a.sum() - own),
        "looks": looks,
        "one_off_seconds": one_off,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a block")
    parser.add_argument("--only", help="part of the name of a training")
    parser.add_argument("--overhead", type=float, default=1.0, help="budget in percent")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    print(f"{'training':16} {'step':>8} {'median (min-max)':>24} {'total [95 %]':>26} {'own':>7} {'looks':>6} {'once':>7}")
    found: dict[str, object] = {}
    for name, make in TRAININGS.items():
        if args.only and args.only not in name:
            continue
        r = measure(make, args.pairs, args.seconds, args.overhead / 100)
        found[name] = r
        low, high = r["ratio_total_95"]  # type: ignore[misc]
        pairs = f"{r['ratio_median']:8.4f} ({r['ratio_min']:.3f}-{r['ratio_max']:.3f})"
        total = f"{r['ratio_total']:10.4f} [{low:.3f}, {high:.3f}]"
        own = f"{r['own_percent']:6.2f}% {r['looks']:6} {r['one_off_seconds']:6.2f}s"
        print(f"{name:16} {r['step_ms']:6.1f}ms {pairs} {total} {own}", flush=True)
    if args.save:
        facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        RESULTS.write_text(json.dumps({"budget_percent": args.overhead, **facts, "trainings": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
