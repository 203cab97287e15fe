"""Cure: every sick training of the zoo's evaluation half, cured by theory and trials, at random, and by AUTOTRAINER's lists.

    python benchmarks/cure.py [--half H] [--only NAME …] [--arms ARM …] [--budget TRIALS] [--workers N] [--fresh]

All arms may take the same number of optimizer steps for a training, use the same remedies, the same trials and the same
verdict; they differ in which treatments they propose, and in which order. `random` draws them, `autotrainer` takes the fixed
list that AUTOTRAINER has for the problem (Zhang et al., ICSE 2021). What an arm prescribes is then given to the whole training
(`gradiometer run --with`), and its outcome decides as it decides labels: it is cured if it is no longer clearly worse than the
reference configuration, and harmed if it ends clearly worse than untreated.

A cure is known to exist where one of the arms has found one, or where the reference differs from the sick training in
something that a remedy changes; the second is written down here by rule, before any arm was run. Finished cures are kept
in benchmarks/.work and not run again. Prints a table and writes benchmarks/results/cure.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from detection import rate
from gradiometer.errors import GradiometerError
from gradiometer.trial.command import Wishes, cure_command
from gradiometer.trial.prescribe import Choice, autotrainer_candidates, proposer, random_candidates
from gradiometer.trial.race import Plan
from gradiometer.trial.result import PRESCRIPTION_FILE, Outcome
from zoo import ROOT, TIMEOUT, ZooRun, clearly_worse, last_number, read_labels

RESULTS = ROOT / "benchmarks" / "results" / "cure.json"
WORK = ROOT / "benchmarks" / ".work" / "cure"
SEEDS: Final = 3
LONGEST: Final = 300
"""Steps of a trial; a training that is shorter is run whole."""
RANDOM_SEED: Final = 1
ARMS: Final = ("theory", "random", "autotrainer")

CURABLE: Final = frozenset(
    {
        "vanishing-gradient",
        "exploding-gradient",
        "input-blindness",
        "signal-collapse",
        "signal-explosion",
        "shattered-gradient",
        "dead-units",
        "saturated-units",
        "symmetric-initialization",
        "poor-initialization",
        "learning-rate-too-high",
        "learning-rate-too-low",
        "oscillation",
        "vanishing-through-time",
        "exploding-through-time",
        "stale-second-moment",
        "loss-spike",
    }
)
"""Rules whose cause a remedy changes: weights, activations, architecture, learning rate. Not: a wrong sign of the loss, data
that are not finite, layers outside the optimizer, a clipping or a loss scale that the script itself sets too low."""


@dataclass(frozen=True)
class Cured:
    """What an arm made of a training.

    Attributes:
        outcome: of the race: ``cured``, ``no cure``, ``already well``, or ``failed``.
        prescription: label of what it prescribes; empty without one.
        spent: optimizer steps of all trials, as a multiple of one untreated trial.
        treated, untreated, reference: the training's own metric at its end.
        cured: whether the treated training is no longer clearly worse than the reference.
        harmed: whether it is clearly worse than untreated.
    """

    name: str
    rule: str
    arm: str
    outcome: str
    sentence: str
    prescription: str
    spent: float
    treated: float
    untreated: float
    reference: float
    cured: bool
    harmed: bool


def propose_of(arm: str) -> Callable[[Any], Any]:
    """The candidates of an arm, in its order."""
    if arm == "random":
        return lambda _: (random_candidates(RANDOM_SEED), ())
    if arm == "autotrainer":
        return lambda symptoms: (autotrainer_candidates(symptoms), ())
    return proposer(Choice())


def cure(run: ZooRun, reference: float, arm: str, budget: int) -> Cured:
    """Cure one training with one arm, and give what it prescribes to the whole of it."""
    folder = WORK / arm / run.name.replace(" ", "-")
    kept = folder / "benchmark.json"
    if kept.exists():
        return Cured(**json.loads(kept.read_text(encoding="utf-8")))
    shutil.rmtree(folder, ignore_errors=True)
    os.environ.update(run.env)
    os.environ["OMP_NUM_THREADS"] = "1"
    plan = Plan(
        steps=LONGEST, budget=budget * LONGEST, seeds=SEEDS, jobs=1, wave=4 if arm == "theory" else 1, any_cure=arm != "theory"
    )
    untreated = run.outcomes[0]
    treated, word, sentence, label, spent = math.nan, "failed", "", "", math.nan
    try:
        found = cure_command(run.command(0), Wishes(plan, out=folder), propose=propose_of(arm))
        word, sentence, spent = str(found.outcome), found.sentence, found.spent / max(found.steps, 1)
        if found.outcome is Outcome.CURED and found.prescription is not None:
            label = found.prescription.label
            treated = treat(run, folder)
    except GradiometerError as error:
        sentence = str(error)
    result = Cured(
        run.name,
        run.rule,
        arm,
        word,
        sentence,
        label,
        spent,
        treated,
        untreated,
        reference,
        bool(label) and not clearly_worse(treated, reference, run.better),
        bool(label) and clearly_worse(treated, untreated, run.better) and math.isfinite(untreated),
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(asdict(result)), encoding="utf-8")
    for trial in folder.iterdir():  # the records are large, and the race is over
        if trial.is_dir():
            shutil.rmtree(trial, ignore_errors=True)
    return result


def treat(run: ZooRun, folder: Path) -> float:
    """The outcome of the whole training with the prescription in ``folder``; NaN where it failed."""
    command = [sys.executable, "-m", "gradiometer", "run", "--no-report", "--out", str(folder / "whole")]
    command += ["--with", str(folder / PRESCRIPTION_FILE), "--", *run.command(0)]
    done = subprocess.run(command, env=run.environment(), capture_output=True, text=True, timeout=2 * TIMEOUT, check=False)
    lines = done.stdout.strip().splitlines()
    return last_number(lines[-1]) if done.returncode == 0 and lines else math.nan


def totals(results: Sequence[Cured], curable: set[str]) -> dict[str, Any]:
    """Rates of an arm."""
    known = [r for r in results if r.name in curable]
    spent = [r.spent for r in results if math.isfinite(r.spent)]
    cured = [r.spent for r in results if r.cured]
    return {
        "trainings": len(results),
        "cure rate where a cure is known": rate(sum(r.cured for r in known), len(known)),
        "cure rate of all": rate(sum(r.cured for r in results), len(results)),
        "harmful cures": rate(sum(r.harmed for r in results), len(results)),
        "called cured and still clearly worse than the reference": sum(bool(r.prescription) and not r.cured for r in results),
        "median cost in untreated trials": round(float(np.median(spent)), 2) if spent else None,
        "median cost of a cure": round(float(np.median(cured)), 2) if cured else None,
        "cures per hundred trials": round(100.0 * sum(r.cured for r in results) / max(sum(spent), 1e-9), 2),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--half", choices=("calibration", "evaluation"), default="evaluation")
    parser.add_argument("--only", nargs="*", default=[], help="names of trainings; the result file is then left alone")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--budget", type=int, default=20, help="optimizer steps of an arm, in trials")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="trainings at a time")
    parser.add_argument("--fresh", action="store_true", help="forget finished cures")
    options = parser.parse_args(arguments)
    if options.fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    runs = read_labels()
    reference = {r.reference: r.outcomes[0] for r in runs if r.reference}
    wanted = set(options.only)
    sick = [r for r in runs if r.sick and r.half == options.half and (not wanted or r.name in wanted)]
    jobs = [(run, reference[run.name], arm, options.budget) for run in sick for arm in options.arms]
    with ProcessPoolExecutor(options.workers) as pool:
        results = list(pool.map(_cure, jobs))
    curable = {r.name for r in results if r.rule in CURABLE or r.cured}
    for r in results:
        mark = "CURED" if r.cured else "harmed" if r.harmed else "-"
        numbers = f"{r.spent:6.1f} {r.untreated:10.4g} {r.treated:10.4g} {r.reference:10.4g}"
        print(f"{r.name:28} {r.arm:12} {mark:7} {numbers}  {r.prescription or r.outcome}")
    arms = {arm: totals([r for r in results if r.arm == arm], curable) for arm in options.arms}
    for arm, numbers in arms.items():
        print(f"\n{arm}")
        for name, value in numbers.items():
            print(f"  {name:60} {_words(value)}")
    if not wanted:
        facts = {"budget in trials": options.budget, "python": platform.python_version(), "half": options.half}
        document = {"facts": facts, "arms": arms, "curable": sorted(curable), "runs": [asdict(r) for r in results]}
        RESULTS.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    return 0


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['hits']} of {value['of']}, {value['share']} ({value['low']} to {value['high']})"
    return str(value)


def _cure(job: tuple[ZooRun, float, str, int]) -> Cured:
    return cure(*job)


if __name__ == "__main__":
    raise SystemExit(main())
