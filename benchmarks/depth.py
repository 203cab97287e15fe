"""Depth: plain tanh and ReLU networks of a thousand layers on handwritten digits, diagnosed, cured and trained.

    python benchmarks/depth.py [--layers N] [--width N] [--steps N] [--whole N] [--only Tanh|ReLU] [--jobs J] [--fresh]

benchmarks/depth_train.py is the training: no normalisation, no shortcuts, PyTorch's default weights, Adam at 1e-4. It is run
as it is; then `gradiometer cure` looks for what makes it train, and is told nothing; then the whole training is run with the
prescription (`gradiometer run --with`), and its accuracy on the 1,500 training images counts. The level is 90 %. Where what
cures changes the model (shortcuts, say), a second race may only set other weights (`--only initialise`), so that the network
stays plain. A cure is proven over the steps of a trial; what comes after them is what the whole training shows.

Every training and every trial is kept in benchmarks/.work and not run again; ``--fresh`` forgets them. Prints a table and,
for a thousand layers and both activations, writes benchmarks/results/depth.json; other numbers of layers go to
depth-N.json. A thousand layers of 32 units take 0.08 s a step on one core, ten thousand (``--layers 10000``) ten times that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch

from gradiometer.errors import GradiometerError
from gradiometer.record.run import load
from gradiometer.report.cure import line
from gradiometer.rules import diagnose
from gradiometer.trial.command import Wishes, cure_command
from gradiometer.trial.prescribe import Choice
from gradiometer.trial.race import BUDGET, SEEDS, Board, Plan
from gradiometer.trial.result import PRESCRIPTION_FILE, Cure
from gradiometer.types import Safety

ROOT: Final = Path(__file__).resolve().parent
RESULTS: Final = ROOT / "results"
WORK: Final = ROOT / ".work" / "depth"
SCRIPT: Final = ROOT / "depth_train.py"
ACTIVATIONS: Final = ("Tanh", "ReLU")
LAYERS: Final = 1000
LEVEL: Final = 0.9
_SAID: Final = re.compile(r"training accuracy ([0-9.]+), test accuracy ([0-9.]+)")


@dataclass(frozen=True)
class Trained:
    """One whole training.

    Attributes:
        training, test: accuracies at its end.
        errors: rules that find an error in its record, the root cause first.
        sentence: of the first of them; empty without one.
        seconds: how long it took, the probe included.
    """

    training: float
    test: float
    errors: tuple[str, ...]
    sentence: str
    seconds: float


@dataclass(frozen=True)
class Row:
    """What came of one network.

    Attributes:
        activation, layers, width: of the network.
        plain: whether the cure was confined to `initialise`.
        before: the training as it is.
        outcome, sentence: of the race.
        prescription: label of what it prescribes; empty without a cure.
        tried: label, verdict and loss of each treatment, the best first.
        spent: optimizer steps of all trials, as a multiple of one untreated trial.
        after: the training with the prescription; None without one.
    """

    activation: str
    layers: int
    width: int
    plain: bool
    before: Trained
    outcome: str
    sentence: str
    prescription: str
    tried: list[tuple[str, str, float]]
    spent: float
    after: Trained | None

    @property
    def reached(self) -> bool:
        return self.after is not None and self.after.training > LEVEL


def study(activation: str, layers: int, width: int, steps: int, whole: int, plan: Plan) -> list[Row]:
    """Diagnose, cure and train one network, in a folder of its own; a second time if the first cure changes the model."""
    folder = WORK / f"{activation}-{layers}-{width}-{steps}-{whole}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SCRIPT, folder / "train.py")
    words = ["train.py", "--activation", activation, "--layers", str(layers), "--width", str(width), "--steps", str(whole)]

    def row(choice: Choice, name: str) -> tuple[Row, Cure]:
        board = Board(back=lambda trial: print(f"  {line(trial)}", flush=True))
        out = Path(".gradiometer") / name
        found = cure_command(words, Wishes(plan, choice, out), board=board)
        cured = found.prescription is not None
        made = Row(
            activation=activation,
            layers=layers,
            width=width,
            plain=bool(choice.only),
            before=before,
            outcome=str(found.outcome),
            sentence=found.sentence,
            prescription=found.prescription.label if found.prescription is not None else "",
            tried=[(a.label, str(a.verdict.word), round(a.verdict.loss_end, 4)) for a in found.arms],
            spent=round(found.spent / max(found.steps, 1), 2),
            after=train(words, Path(".gradiometer") / f"after-{name}", out / PRESCRIPTION_FILE) if cured else None,
        )
        return made, found

    with contextlib.chdir(folder):
        before = train(words, Path(".gradiometer") / "before")
        told = f"ill: {before.errors[0]}" if before.errors else "nothing is found"
        print(f"{activation}: training accuracy {before.training:.3f}, {told}", flush=True)
        first, found = row(Choice(), "cure")
        if found.cure is None or found.cure.candidate.safety is not Safety.CHANGES_MODEL:
            return [first]
        print(f"{activation}, which is to stay plain:", flush=True)
        return [first, row(Choice(only=("initialise",)), "plain")[0]]


def train(words: Sequence[str], run: Path, prescription: Path | None = None) -> Trained:
    """Run a whole training, unless it was run already.

    Raises:
        GradiometerError: it failed.
    """
    kept = run.with_suffix(".json")
    if kept.exists():
        return Trained(**json.loads(kept.read_text(encoding="utf-8")))
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "gradiometer", "run", "--no-report", "--out", str(run)]
    command += ["--with", str(prescription)] if prescription is not None else []
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # matrices this small gain nothing from more
    began = time.monotonic()
    done = subprocess.run([*command, "--", *words], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    said = _SAID.search(done.stdout)
    if said is None:
        raise GradiometerError(f"The training failed with status {done.returncode}.", f"It said: {done.stdout[-500:]}")
    findings = [f for f in diagnose(load(run).trace) if f.severity.value == "error"]
    errors = tuple(f.rule for f in findings)
    sentence = findings[0].sentence if findings else ""
    trained = Trained(float(said[1]), float(said[2]), errors, sentence, round(time.monotonic() - began, 1))
    kept.write_text(json.dumps(asdict(trained)), encoding="utf-8")
    return trained


def show(rows: Sequence[Row]) -> None:
    print(f"\n{'network':28} {'before':>7} {'found':24} {'prescription':40} {'trials':>6} {'after':>7} {'test':>6}")
    for row in rows:
        after, test = (f"{row.after.training:.3f}", f"{row.after.test:.3f}") if row.after else ("-", "-")
        name = f"{row.layers:,} {row.activation} of {row.width}{', plain' if row.plain else ''}"
        found = row.before.errors[0] if row.before.errors else "nothing"
        told = row.prescription or row.outcome
        print(f"{name:28} {row.before.training:7.3f} {found:24} {told:40} {row.spent:6.1f} {after:>7} {test:>6}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300, help="of a trial")
    parser.add_argument("--whole", type=int, default=600, help="steps of the whole training")
    parser.add_argument("--budget", type=int, default=BUDGET, help="steps of all trials of a network, in trials")
    parser.add_argument("--only", choices=ACTIVATIONS, help="one network; the result file is then left alone")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)), help="trials at a time")
    parser.add_argument("--fresh", action="store_true", help="forget what was run before")
    options = parser.parse_args(arguments)
    if options.fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    plan = Plan(options.steps, options.budget * options.steps, SEEDS, options.jobs)
    chosen = (options.only,) if options.only else ACTIVATIONS
    rows = [row for a in chosen for row in study(a, options.layers, options.width, options.steps, options.whole, plan)]
    show(rows)
    if not options.only:
        facts = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
        facts |= {"steps of a trial": options.steps, "steps of a training": options.whole, "level": LEVEL}
        document = {"facts": facts, "rows": [{**asdict(row), "reached": row.reached} for row in rows]}
        path = RESULTS / ("depth.json" if options.layers == LAYERS else f"depth-{options.layers}.json")
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(not all(row.reached for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
