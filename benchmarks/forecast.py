"""How good is the forecast? Random networks: what theory says at step 0, what one pass measures, what training then does.

    python benchmarks/forecast.py                          # every network: forecast, check, stored label (4 minutes)
    python benchmarks/forecast.py --half building --save   # one half, and write it into benchmarks/results/forecast.json
    python benchmarks/forecast.py --train                  # train every network that has no label yet (an hour of one core)

A network is drawn from its number. Those below 400 were looked at while the forecast was built; the others are judged blind.
"Trains" means: with the best of three learning rates the loss of the digits falls clearly below what the class frequencies
alone give (80 % of ln 10) within 150 steps; a network that does not is called sick.

Two verdicts are held against that: the check's, which has the measured pass, and that of the forecast alone.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gradiometer
from gradiometer import preflight
from gradiometer.preflight import judge
from gradiometer.probe.checking import measure
from gradiometer.record.blueprint import SUFFIX, Blueprint, Op
from gradiometer.theory.forecast import Band, forecast
from gradiometer.types import Severity

HERE = Path(__file__).parent / "results"
LABELS = HERE / "forecast_labels.json"
RESULTS = HERE / "forecast.json"
NETWORKS = 800
BUILDING = 400
STEPS = 150
BATCH = 64
RATES = (0.1, 0.02, 0.004)
LEFT = 0.8 * math.log(10.0)
UNDERFLOW = -37.0
"""log10 of a gain below which float32 may show an exact zero: a forecast that reaches there is not wrong about it."""
SLOW = 0.02
"""Seconds of a plain pass from which its cost is no longer that of the start."""
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


# ---- forecast ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """A quantity that was forecast and measured, log10; None where it is no finite number (an exact zero: underflow)."""

    measured: float | None
    predicted: float | None
    low: float | None
    high: float | None
    inside: bool

    @property
    def error(self) -> float:
        """Decades between the two; infinity where one of them is not finite."""
        return abs(self.measured - self.predicted) if self.measured is not None and self.predicted is not None else math.inf


@dataclass(frozen=True)
class Row:
    """One network: what was forecast, what one pass measured, what the check said of it and what training did.

    Attributes:
        config: what its number decides.
        half: building or blind.
        loss, rate: at the end of the best training; -1 for one that diverged.
        sick: whether it did not train.
        gain: gradient at the output of the first layer with weights over that at the output of the head.
        signal: root mean square of what the head takes in.
        layers, layers_inside: layers whose gradient was forecast and measured, and those inside their interval.
        errors: rules that the check calls errors.
        errors_told: those it would from the forecast alone.
        decades: by which the measured gradient falls and rises on its way to the input.
        plain_seconds: median of plain forward and backward passes.
        check_seconds: median of measuring.
        read_seconds: reading the record, forecast and judgement.
    """

    config: dict[str, Any]
    half: str
    loss: float
    rate: float
    sick: bool
    gain: Told
    signal: Told
    layers: int
    layers_inside: int
    errors: tuple[str, ...]
    errors_told: tuple[str, ...]
    decades: tuple[float | None, ...]
    plain_seconds: float
    check_seconds: float
    read_seconds: float

    @property
    def ratio(self) -> float:
        """Cost of measuring in plain passes."""
        return self.check_seconds / self.plain_seconds


def batch_of(config: Config) -> tuple[Tensor, Tensor]:
    """The first batch of its training."""
    x, y = data(config)
    index = torch.randint(0, len(x), (BATCH,), generator=torch.Generator().manual_seed(config.seed))
    return x[index], y[index]


def observe(seed: int, label: dict[str, float]) -> Row:
    """Check one network as a user would, and time it."""
    config = Config.draw(seed)
    batch = batch_of(config)
    model = build(config)
    with tempfile.TemporaryDirectory() as folder:
        seconds = [checked(model, batch, Path(folder))]
        began = time.perf_counter()
        found = preflight.read(Path(folder))
        reading = time.perf_counter() - began
        blueprint = Blueprint.read(next(Path(folder).glob(f"*{SUFFIX}")))
    plain = [passed(model, batch) for _ in range(3)][1:]  # the first one allocates
    while len(plain) < 15 and sum(plain) < 0.3:
        plain.append(passed(model, batch))
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(checked(model, batch, Path(folder)))
    plain += [passed(model, batch) for _ in range(2)]
    gain, signal = compare(blueprint)
    pairs = [(x.gradient, x.measured_gradient) for x in found.layers if x.gradient.known and math.isfinite(x.measured_gradient)]
    return Row(
        config=asdict(config),
        half="building" if seed < BUILDING else "blind",
        loss=round(label["loss"], 4),
        rate=label["rate"],
        sick=not 0.0 <= label["loss"] < LEFT,
        gain=gain,
        signal=signal,
        layers=len(pairs),
        layers_inside=sum(band.holds(value) for band, value in pairs),
        errors=tuple(f.rule for f in found.findings if f.severity is Severity.ERROR),
        errors_told=told(found),
        decades=tuple(_known(d) for d in judge.decades(judge.measured(found.layers))),
        plain_seconds=round(statistics.median(plain), 6),
        check_seconds=round(statistics.median(seconds), 6),
        read_seconds=round(reading, 6),
    )


def checked(model: nn.Module, batch: tuple[Tensor, Tensor], folder: Path) -> float:
    """Seconds of the check's part in front of the reading."""
    began = time.perf_counter()
    measure(model, batch, nn.functional.cross_entropy, None, folder, with_curvature=False)
    return time.perf_counter() - began


def passed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """Seconds of a plain forward and backward pass."""
    began = time.perf_counter()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    taken = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return taken


def compare(blueprint: Blueprint) -> tuple[Told, Told]:
    """Total gradient gain, relative to the head's output, and the signal that the head takes in."""
    nodes, expected = blueprint.nodes, forecast(blueprint)
    linear = [i for i, node in enumerate(nodes) if node.op is Op.LINEAR]
    first, head = linear[0], linear[-1]
    flows = [node.gradient.square if node.gradient is not None else math.nan for node in (nodes[first], nodes[head])]
    start = expected[head].gradient.middle
    band = expected[first].gradient
    gain = _told(_log(flows[0]) - _log(flows[1]), Band(band.middle - start, band.low - start, band.high - start))
    last = nodes[head].inputs[0]
    output = nodes[last].output
    return gain, _told(_log(output.square) if output is not None else math.nan, expected[last].signal)


def _log(square: float) -> float:
    return 0.5 * math.log10(square) if square > 0.0 else (-math.inf if square == 0.0 else math.nan)


def _known(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _told(measured: float, band: Band) -> Told:
    inside = band.holds(measured) or (measured == -math.inf and band.low < UNDERFLOW)
    return Told(_known(measured), _known(band.middle), _known(band.low), _known(band.high), inside)


def told(found: preflight.Preflight) -> tuple[str, ...]:
    """The errors that the forecast alone, without the measured pass, leads to."""
    errors: list[str] = []
    for chain in dict.fromkeys(layer.chain for layer in found.layers):
        profile = judge.predicted([layer for layer in found.layers if layer.chain == chain])
        errors += [f.rule for f in judge.judge(profile) if f.severity is Severity.ERROR]
    return tuple(dict.fromkeys(errors))


# ---- the table -----------------------------------------------------------------------------------------------------------

Group = Callable[[dict[str, Any]], str]
GROUPS: dict[str, Group] = {
    "all": lambda c: "all",
    "kind": lambda c: str(c["kind"]),
    "norm": lambda c: str(c["norm"] or "none"),
    "skip": lambda c: str(c["skip"] or "none"),
    "dropout": lambda c: "yes" if c["dropout"] else "none",
    "depth/width": lambda c: _slimness(c["depth"] / c["width"]),
    "activation": lambda c: str(c["activation"]),
    "init": lambda c: str(c["init"]),
}


def _slimness(share: float) -> str:
    return "below 0.1" if share < 0.1 else "0.1 to 0.3" if share < 0.3 else "0.3 and up"


def calibration(rows: Sequence[Row], which: str) -> dict[str, float | int | None]:
    """How far a forecast quantity lies from the measured one, and how often inside the interval.

    A network whose first loss is no number has no gradient to forecast and is left out.
    """
    pairs = [t for t in (getattr(row, which) for row in rows) if t.predicted is not None]
    errors = sorted(t.error for t in pairs if math.isfinite(t.error))
    widths = [t.high - t.low for t in pairs if t.high is not None and t.low is not None]
    return {
        "known": len(errors),
        "median error": round(statistics.median(errors), 3) if errors else None,
        "90th percentile": round(float(np.quantile(errors, 0.9)), 3) if errors else None,
        "inside": round(sum(t.inside for t in pairs) / max(len(pairs), 1), 3),
        "median half interval": round(statistics.median(widths) / 2, 3) if widths else None,
    }


def verdicts(rows: Sequence[Row], which: str) -> dict[str, Any]:
    """The two by two table of a verdict against training, and who is missed or wrongly alarmed."""
    alarmed = [row for row in rows if getattr(row, which)]
    quiet = [row for row in rows if not getattr(row, which)]
    found, missed = sum(row.sick for row in alarmed), [row for row in quiet if row.sick]
    false = [row for row in alarmed if not row.sick]
    return {
        "sick and called sick": found,
        "sick and called well": len(missed),
        "well and called sick": len(false),
        "well and called well": len(quiet) - len(missed),
        "precision": round(found / len(alarmed), 3) if alarmed else None,
        "recall": round(found / (found + len(missed)), 3) if found or missed else None,
        "missed": [row.config["seed"] for row in missed],
        "false alarms": [row.config["seed"] for row in false],
    }


def costs(rows: Sequence[Row]) -> dict[str, dict[str, float | int]]:
    """What measuring takes, in plain passes, and the reading after it, in seconds."""
    parts = {"all": list(rows), f"a pass takes {1000 * SLOW:.0f} ms or more": [r for r in rows if r.plain_seconds >= SLOW]}
    return {
        name: {
            "n": len(part),
            "median": round(statistics.median(r.ratio for r in part), 2),
            "largest": round(max(r.ratio for r in part), 2),
            "beyond 3": sum(r.ratio > 3.0 for r in part),
            "pass seconds": round(statistics.median(r.plain_seconds for r in part), 4),
            "measuring seconds": round(statistics.median(r.check_seconds for r in part), 4),
            "reading seconds": round(statistics.median(r.read_seconds for r in part), 4),
            "reading seconds, largest": round(max(r.read_seconds for r in part), 3),
        }
        for name, part in parts.items()
        if part
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that is said of a half."""
    groups: dict[str, dict[str, Any]] = {}
    for name, group in GROUPS.items():
        for value in sorted({group(row.config) for row in rows}):
            part = [row for row in rows if group(row.config) == value]
            groups[value if name == "all" else f"{name}: {value}"] = {
                "n": len(part),
                "sick": sum(row.sick for row in part),
                "gain": calibration(part, "gain"),
                "signal": calibration(part, "signal"),
                "layers": sum(row.layers for row in part),
                "layers inside": round(sum(row.layers_inside for row in part) / max(sum(row.layers for row in part), 1), 3),
                "check": verdicts(part, "errors"),
                "told": verdicts(part, "errors_told"),
            }
    return {"groups": groups, "cost": costs(rows)}


def table(half: dict[str, Any]) -> str:
    """A plain text table: a line a group."""
    head = ("group", "n", "sick", "gain: median", "90 %", "inside", "signal: median", "90 %", "inside", "layers inside")
    rows = [(*head, "check: precision", "recall", "TP FN FP TN", "forecast alone", "recall", "TP FN FP TN")]
    for name, g in half["groups"].items():
        cells = [name, g["n"], g["sick"]]
        for which in ("gain", "signal"):
            cells += [g[which][key] for key in ("median error", "90th percentile")] + [f"{100 * g[which]['inside']:.0f} %"]
        cells.append(f"{100 * g['layers inside']:.0f} %")
        for which in ("check", "told"):
            v = g[which]
            counts = ("sick and called sick", "sick and called well", "well and called sick", "well and called well")
            cells += ["–" if v[key] is None else f"{v[key]:.2f}" for key in ("precision", "recall")]
            cells.append(" ".join(str(v[key]) for key in counts))
        rows.append(tuple(str(cell) for cell in cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def described(config: dict[str, Any]) -> str:
    """A network in one line."""
    parts = [config["kind"], config["activation"], config["init"]]
    parts[2] += f" {config['scale']:.2f}" if config["init"] in ("orthogonal", "scaled", "biased") else ""
    parts += [f"{config['depth']} × {config['width']}"]
    parts += [f"{config['norm']} norm"] if config["norm"] else []
    parts += [f"{config['skip']} skip"] if config["skip"] else []
    parts += [f"dropout {config['dropout']}"] if config["dropout"] else []
    return ", ".join(parts)


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """Print a half, and who was judged wrongly."""
    made = summary(rows)
    print(f"\n{rows[0].half} half\n{table(made)}\n")
    for which, name in (("check", "check"), ("told", "forecast alone")):
        for kind in ("missed", "false alarms"):
            seeds = made["groups"]["all"][which][kind]
            print(f"  {name}: {kind} {len(seeds)}")
            for row in (row for row in rows if row.config["seed"] in seeds):
                rules = ", ".join(row.errors if which == "check" else row.errors_told)
                fall, rise = row.decades
                end = f"loss {row.loss:.2f}, gradient falls {fall} and rises {rise} decades"
                print(f"    {row.config['seed']:3} {described(row.config)}: {end}{'; ' if rules else ''}{rules}")
    far = sorted((row for row in rows if not row.gain.inside), key=lambda row: -row.gain.error)
    print(f"  gain outside its interval: {len(far)}")
    for row in far:
        g = row.gain
        print(f"    {row.config['seed']:3} {described(row.config)}: {g.measured} against {g.predicted} ({g.low} to {g.high})")
    for name, cost in made["cost"].items():
        print(f"  cost, {name}: {cost}")
    return made


# ---- saved ---------------------------------------------------------------------------------------------------------------


def save(halves: dict[str, dict[str, Any]], rows: Sequence[Row], seconds: float) -> None:
    """Write the halves that were run; what the file holds of the other one stays."""
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    facts = {
        "gradiometer": gradiometer.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": 1,
        "seconds": round(seconds, 1),
    }
    merged = {**before.get("halves", {}), **{name: {**facts, **half} for name, half in halves.items()}}
    kept = [row for row in before.get("rows", []) if row["half"] not in halves]
    everything = sorted(
        [*kept, *({"network": described(row.config), **asdict(row)} for row in rows)], key=lambda row: row["config"]["seed"]
    )
    document = {"networks": NETWORKS, "batch": BATCH, "steps": STEPS, "rates": RATES, "halves": merged}
    head = json.dumps(document, indent=1, allow_nan=False)
    lines = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in everything)  # a network a line
    RESULTS.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    print(f"\nwritten to {RESULTS.name}; python docs/forecast_study.py draws it, python docs/generate.py tells it")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--half", choices=("building", "blind", "both"), default="both", help="numbers below 400, the others, or all"
    )
    parser.add_argument("--train", action="store_true", help="train every network that has no label")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train:
        train_all()
        return
    from threadpoolctl import threadpool_limits  # scikit-learn's, as the digits are

    with threadpool_limits(1):
        _evaluate(arguments.half, saves=arguments.save)


def _evaluate(wanted: str, *, saves: bool) -> None:
    began = time.perf_counter()
    labels: dict[str, dict[str, float]] = json.loads(LABELS.read_text(encoding="utf-8"))
    observe(0, labels["0"])  # what is loaded and compiled once is no cost of a network
    rows: list[Row] = []
    halves: dict[str, dict[str, Any]] = {}
    for half, numbers in (("building", range(BUILDING)), ("blind", range(BUILDING, NETWORKS))):
        if wanted in (half, "both"):
            mine = [observe(seed, labels[str(seed)]) for seed in numbers]
            halves[half] = report(mine)
            rows += mine
    seconds = time.perf_counter() - began
    print(f"\n{len(rows)} networks in {seconds:.0f} s")
    if saves:
        save(halves, rows, seconds)


if __name__ == "__main__":
    main()
