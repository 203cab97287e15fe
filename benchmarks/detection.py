"""Detection: every script of the zoo under the probe, and what the rules say of it against its label.

    python benchmarks/detection.py [--seeds N] [--only NAME …]

Prints one table per half of the zoo (see zoo/labels.toml) and writes benchmarks/results/detection.json. A finding of
severity error makes a run sick. A sick run that is called well is a miss; a well run with an error is a false alarm, and
one with a warning is counted apart.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

import gradiometer
from gradiometer.record.depth import falls_towards_input, falls_towards_output
from gradiometer.record.trace import SETTLE, Trace
from gradiometer.rules.judging import hidden_sites, without_embeddings
from gradiometer.types import Finding, Severity

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "zoo"
RESULTS = ROOT / "benchmarks" / "results" / "detection.json"
TIMEOUT = 120
SITES_SHARE = 0.8
"""Share of a finding's sites that must match a pattern of the label."""

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
    """An entry of zoo/labels.toml, or its reference configuration."""

    name: str
    half: str
    family: str
    label: str
    script: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    metric: str = ""
    outcome: float = math.nan
    cause: str = ""
    rule: str = ""
    also: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()


def read_labels(path: Path = ZOO / "labels.toml") -> list[ZooRun]:
    """Every entry, and after a sick one its reference configuration."""
    runs: list[ZooRun] = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["run"]:
        reference = {k.removeprefix("reference_"): entry.pop(k) for k in list(entry) if k.startswith("reference_")}
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        run = ZooRun(**{"script": entry["name"], **fields})
        runs.append(run)
        if reference:
            well = replace(run, name=f"{run.name} (reference)", label="well", cause="", rule="", also=(), sites=())
            args, env = tuple(reference.get("args", ())), reference.get("env", {})
            runs.append(replace(well, args=args, env=env, outcome=float(reference["outcome"])))
    return runs


@dataclass(frozen=True)
class Result:
    """What the rules said of a run. ``right_rule`` and ``right_sites`` are None for a well run."""

    name: str
    half: str
    family: str
    label: str
    seed: int
    verdict: str
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    first: str
    right_rule: bool | None
    right_sites: bool | None
    last_line: str
    seconds: float
    looks: int
    overhead_percent: float
    levels: Mapping[str, float]
    sentences: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether the verdict is that of the label."""
        return (self.verdict == "sick") == (self.label == "sick")


def execute(run: ZooRun, folder: Path, seed: int = 0) -> tuple[str, float]:
    """Run a script under the probe, recording to ``folder``; returns the last line it printed and the seconds it took."""
    script = str(ZOO / f"{run.script}.py")
    command = [sys.executable, "-c", SHIFTED, str(seed), script] if seed else [sys.executable, script]
    probe = [sys.executable, "-m", "gradiometer", "run", "--no-report", "--out", str(folder), "--"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **run.env}
    began = time.perf_counter()
    done = subprocess.run(
        [*probe, *command, *run.args], env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{run.name} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1], time.perf_counter() - began


def judge(run: ZooRun, folder: Path, last_line: str = "", seconds: float = math.nan, seed: int = 0) -> Result:
    """Read the record of a run and hold the findings against its label."""
    trace = gradiometer.load(folder).trace
    findings = gradiometer.diagnose(trace)
    errors = [f for f in findings if f.severity is Severity.ERROR]
    right = [f for f in errors if f.rule == run.rule]
    sick = run.label == "sick"
    return Result(
        name=run.name,
        half=run.half,
        family=run.family,
        label=run.label,
        seed=seed,
        verdict="sick" if errors else "well",
        errors=tuple(f.rule for f in errors),
        warnings=tuple(f.rule for f in findings if f.severity is Severity.WARNING),
        first=findings[0].rule if findings else "",
        right_rule=bool(right) if sick else None,
        right_sites=any(sites_match(f, run.sites) for f in right) if sick else None,
        last_line=last_line,
        seconds=round(seconds, 2),
        looks=int(trace.steps.size),
        overhead_percent=round(trace.overhead_percent, 2),
        levels=levels(trace),
        sentences=tuple(f.sentence for f in findings),
    )


def sites_match(finding: Finding, patterns: Sequence[str]) -> bool:
    """Whether every pattern matches a site of the finding, and most of its sites match one."""
    hits = [any(fnmatchcase(site, p) for p in patterns) for site in finding.sites]
    every = all(any(fnmatchcase(site, p) for site in finding.sites) for p in patterns)
    return every and bool(hits) and sum(hits) >= SITES_SHARE * len(hits)


def levels(trace: Trace) -> dict[str, float]:
    """The strongest value each rule's measure reached after the first steps: what thresholds are held against."""
    settled = trace.steps >= SETTLE
    settled = settled if settled.any() else np.ones(trace.steps.shape, np.bool_)
    gradients = [trace.log10_gradient[settled][:, chain] for chain in trace.chains]
    finite = [np.where(np.isfinite(y), y, np.nan) for y in gradients]
    signals = [trace.log10_signal[settled][:, hidden_sites(trace, chain)] for chain in trace.chains]
    signals_known = [np.where(np.isfinite(y), y, np.nan) for y in signals]
    seeing = [trace.varying_share[settled][:, without_embeddings(trace, chain)] for chain in trace.chains]
    ends = [row[~np.isnan(row)][-2:].max(initial=0.0) for share in seeing for row in share if (~np.isnan(row)).sum() >= 4]
    return {
        "gradient falls (decades)": _largest(falls_towards_input(y) for y in gradients),
        "gradient grows (decades)": _largest(falls_towards_output(y) for y in finite),
        "signal falls (decades)": _largest(falls_towards_output(y) for y in signals),
        "signal grows (decades)": _largest(falls_towards_input(y) for y in signals_known),
        "varying share at the output end, least": round(float(min(ends)), 6) if ends else math.nan,
        "dead share": _largest([trace.dead_share[settled]]),
        "saturated share": _largest([trace.saturated_share[settled]]),
    }


def _largest(values: Iterable[Any]) -> float:
    known = [float(np.nanmax(v)) for v in values if v.size and np.isfinite(v).any()]
    return round(max(known), 3) if known else math.nan


def observe(run: ZooRun, seed: int = 0) -> Result:
    """Execute and judge in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        line, seconds = execute(run, Path(folder) / "run", seed)
        return judge(run, Path(folder) / "run", line, seconds, seed)


# ---- the table ---------------------------------------------------------------------------------------------------------


def totals(results: Sequence[Result]) -> dict[str, Any]:
    """Misses, false alarms and right rules."""
    sick = [r for r in results if r.label == "sick"]
    well = [r for r in results if r.label == "well"]
    return {
        "sick": len(sick),
        "misses": [f"{r.name} seed +{r.seed}" for r in sick if not r.right],
        "right rule": sum(bool(r.right_rule) for r in sick),
        "right sites": sum(bool(r.right_sites) for r in sick),
        "well": len(well),
        "false alarms": [f"{r.name} seed +{r.seed}" for r in well if not r.right],
        "warnings on well runs": [f"{r.name} seed +{r.seed}" for r in well if r.right and r.warnings],
    }


def table(results: Sequence[Result]) -> str:
    """A plain text table."""
    head = ("script", "seed", "label", "verdict", "rules found", "rule", "sites", "s", "cost %", "outcome")
    mark = {None: "", True: "yes", False: "NO"}
    rows = [head]
    for r in results:
        found = [*r.errors, *(f"({w})" for w in r.warnings)]
        cost = f"{r.overhead_percent:.1f}"
        verdict = r.verdict if r.right else r.verdict.upper()
        cells = (f"+{r.seed}", r.label, verdict, ", ".join(found), mark[r.right_rule], mark[r.right_sites])
        rows.append((r.name, *cells, f"{r.seconds:.1f}", cost, r.last_line[-40:]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=int(os.environ.get("SEEDS", "1")), help="seeds per script")
    parser.add_argument("--only", nargs="*", default=[], help="names of scripts; the result file is then left alone")
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 2) // 2, 1), help="scripts at a time")
    options = parser.parse_args(arguments)
    runs = [r for r in read_labels() if not options.only or r.script in options.only or r.name in options.only]
    jobs = [(run, seed) for seed in range(options.seeds) for run in runs]
    with ThreadPoolExecutor(options.workers) as pool:
        results = list(pool.map(lambda job: observe(*job), jobs))
    summary: dict[str, Any] = {}
    for half in ("calibration", "evaluation"):
        part = [r for r in results if r.half == half]
        summary[half] = totals(part)
        print(f"\n{half} half\n{table(part)}\n")
        for key, value in summary[half].items():
            names = ": " + ", ".join(value) if isinstance(value, list) and value else ""
            print(f"  {key} {len(value) if isinstance(value, list) else value}{names}")
    if not options.only:
        facts = {
            "gradiometer": gradiometer.__version__,
            "python": platform.python_version(),
            "platform": platform.system(),
            "seeds": options.seeds,
        }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        document = {**facts, "totals": summary, "runs": [asdict(r) for r in results]}
        RESULTS.write_text(json.dumps(document, indent=1, allow_nan=True) + "\n", encoding="utf-8")
        print(f"\nwritten to {RESULTS.relative_to(ROOT)}")
    return int(any(not r.right for r in results))


if __name__ == "__main__":
    raise SystemExit(main())
