"""The zoo as values: what zoo/labels.toml says of every training, how one is run, and how its outcome decides its label.

Nothing here knows of gradiometer: a label is decided by what a training reaches, never by a rule.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "zoo"
TIMEOUT = 180
"""Seconds."""
SEEDS = (0, 1, 2)

CLEARLY_LOWER = 0.10
"""A share (accuracy) this much below the reference's is clearly worse."""
CLEARLY_LARGER = 1.25
"""A loss or an error this many times the reference's is clearly worse."""

# A script fixes its own seed, as users do: other seeds are made by shifting it from outside, the script is not changed.
SHIFTED = (
    "import runpy, sys, torch\n"
    "shift, path, seed = int(sys.argv[1]), sys.argv[2], torch.manual_seed\n"
    "torch.manual_seed = lambda value: seed(value + shift)\n"
    "sys.argv = sys.argv[2:]\n"
    "runpy.run_path(path, run_name='__main__')\n"
)


@dataclass(frozen=True)
class ZooRun:
    """An entry of zoo/labels.toml, or its reference configuration.

    Attributes:
        name: unique.
        half: ``calibration`` or ``evaluation``.
        family: of architecture and data; a family lies in one half.
        label: ``sick`` or ``well``.
        script: stem of the file.
        args, env: of the command.
        metric: what the script prints last, and ``better``: whether ``higher`` or ``lower`` is.
        outcomes: that number for each of ``seeds``.
        bar: what a well run must reach, and ``bar_source``: where that comes from.
        cause: what is wrong, in a sentence.
        rule: the root cause; ``accept``: rules that name it equally well; ``also``: symptoms that may be named beside it.
        sites: patterns of guilty places; empty where the disease has no place.
        onset: ``start``, or ``later`` where the fault is not there from the first step.
        seeds: shifts of the script's own seed.
        reference: name of the run whose reference configuration this is; empty for any other.
    """

    name: str
    half: str
    family: str
    label: str
    script: str
    metric: str
    better: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    outcomes: tuple[float, ...] = ()
    bar: float = math.nan
    bar_source: str = ""
    cause: str = ""
    rule: str = ""
    accept: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    onset: str = "start"
    seeds: tuple[int, ...] = SEEDS
    reference: str = ""

    @property
    def sick(self) -> bool:
        """Whether it is labelled sick."""
        return self.label == "sick"

    def command(self, seed: int) -> list[str]:
        """The command that runs it, with its own seed shifted."""
        script = str(ZOO / f"{self.script}.py")
        front = [sys.executable, "-c", SHIFTED, str(seed), script] if seed else [sys.executable, script]
        return [*front, *self.args]

    def environment(self) -> dict[str, str]:
        """Its environment: one thread, so that results repeat and two run side by side."""
        return {**os.environ, "OMP_NUM_THREADS": "1", **self.env}


def read_labels(path: Path = ZOO / "labels.toml") -> list[ZooRun]:
    """Every entry, and after a sick one its reference configuration, which is a well run too."""
    runs: list[ZooRun] = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["run"]:
        entry.pop("outcome")  # the median of its outcomes, for people
        reference = {k.removeprefix("reference_"): entry.pop(k) for k in list(entry) if k.startswith("reference_")}
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        run = ZooRun(**{"script": entry["name"], **fields})
        runs.append(run)
        if reference:
            clean = replace(run, label="well", cause="", rule="", accept=(), also=(), sites=(), onset="start")
            outcomes = tuple(float(v) for v in reference["outcomes"])
            args, env = tuple(reference.get("args", ())), reference.get("env", {})
            runs.append(
                replace(clean, name=f"{run.name} (reference)", args=args, env=env, outcomes=outcomes, reference=run.name)
            )
    return runs


def last_number(line: str) -> float:
    """The number at the end of the last line a script printed; NaN where there is none."""
    found = re.findall(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan)", line)
    return float(found[-1]) if found else math.nan


def clearly_worse(outcome: float, reference: float, better: str) -> bool:
    """Whether an outcome is clearly worse than the reference's: the definition of sick."""
    if not math.isfinite(outcome):
        return True
    if better == "higher":
        return outcome <= reference - CLEARLY_LOWER
    return outcome >= (CLEARLY_LARGER * reference if reference > 0 else reference + CLEARLY_LOWER * abs(reference))


def reaches(outcome: float, bar: float, better: str) -> bool:
    """Whether a well run reaches its bar."""
    return outcome >= bar if better == "higher" else outcome <= bar


def run_plain(run: ZooRun, seed: int) -> str:
    """Run a script on its own; returns the last line that it printed.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        run.command(seed), env=run.environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{run.name} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def right_by_outcome(runs: Sequence[ZooRun], outcomes: Mapping[str, Sequence[float]]) -> dict[str, bool]:
    """For every run that is no reference: whether the outcomes bear its label out, in every seed."""
    reference = {run.reference: run.name for run in runs if run.reference}
    verdicts: dict[str, bool] = {}
    for run in (r for r in runs if not r.reference):
        found = outcomes[run.name]
        if run.sick:
            pairs = zip(found, outcomes[reference[run.name]], strict=True)
            verdicts[run.name] = all(clearly_worse(a, b, run.better) for a, b in pairs)
        else:
            verdicts[run.name] = all(reaches(a, run.bar, run.better) for a in found)
    return verdicts
