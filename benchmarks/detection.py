"""Detection: every training of the zoo under the probe, what the rules say of it, and what other tools say of the same.

    python benchmarks/detection.py [--half H] [--seeds N] [--only NAME …] [--peers PYTHON] [--fresh]

Records are kept in benchmarks/.work and made again only when the probe or the script has changed, so that the benchmark may
be stopped and goes on where it was, and rules are judged anew in a minute. Prints tables and writes
benchmarks/results/detection.json, of which docs/generate.py makes docs/error-rates.md.

A finding of severity error makes a run sick. A sick run that is called well is a miss; a well run with an error is a false
alarm, and one with a warning is counted apart. Thresholds were set on the calibration half; the evaluation half is judged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

import gradiometer
from gradiometer.record.trace import Trace
from gradiometer.rules import RULES
from gradiometer.types import Finding, Severity
from zoo import ROOT, SEEDS, TIMEOUT, ZOO, ZooRun, last_number, read_labels

RESULTS = ROOT / "benchmarks" / "results" / "detection.json"
FIRST_READING = RESULTS.with_name("detection_first_reading.json")
"""What the rules said when they saw the evaluation half for the first time (2026-11-24); it is never written again."""
PEER_KEYS = ("peers", "same trainings", "same trainings, first reading")
WORK = ROOT / "benchmarks" / ".work" / "detection"
NOT_MEASURING = ("attach.py", "rehearsal.py", "checking.py")
"""Files of the probe that decide when it is there, not what a record holds."""
PREFIXES = 40
"""Steps, evenly among the looks, at which it is asked what the rules could have said by then."""
NEAR = 2
"""Places between a named site and a guilty one that still count as adjacent: a layer and its activation are two."""
CONFIRMED = 2
"""Prefixes in a row that must show an error, as for the announcements of `gradiometer run`."""


@dataclass(frozen=True)
class Result:
    """What the rules said of a run.

    Attributes:
        verdict: ``sick`` with a finding of severity error, else ``well``.
        root: rule of the first finding, the root cause; empty without any.
        right_cause: whether that is the cause of the label; None for a well run.
        right_site: whether the first site it names is guilty or adjacent; None where the label names none.
        first_step: first step at which a finding of the right cause or one of its symptoms was there to be seen.
        first_error: first step at which an error was there twice in a row; -1 for never.
        first_root: the root cause then.
        steps: of the training.
    """

    name: str
    half: str
    family: str
    label: str
    rule: str
    onset: str
    seed: int
    verdict: str
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    root: str
    right_cause: bool | None
    right_site: bool | None
    first_step: int
    first_error: int
    first_root: str
    steps: int
    looks: int
    overhead_percent: float
    seconds: float
    outcome: float
    sentences: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether the verdict is that of the label."""
        return (self.verdict == "sick") == (self.label == "sick")


# ---- running -----------------------------------------------------------------------------------------------------------


@cache
def _probe_hash() -> str:
    """Of everything that decides what a record holds."""
    source = ROOT / "src" / "gradiometer"
    measuring = [f for f in (source / "probe").glob("*.py") if f.name not in NOT_MEASURING]
    files = sorted([*measuring, source / "record" / "frames.py"])
    return _hash(*(f.read_bytes() for f in files))


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _key(run: ZooRun, seed: int) -> str:
    settings = json.dumps([run.args, dict(run.env), seed]).encode()
    return _hash((ZOO / f"{run.script}.py").read_bytes(), settings)


def execute(run: ZooRun, folder: Path, seed: int = 0) -> tuple[str, float]:
    """Run a script under the probe, recording to ``folder``; returns the last line it printed and the seconds it took."""
    probe = [sys.executable, "-m", "gradiometer", "run", "--no-report", "--out", str(folder), "--"]
    began = time.perf_counter()
    done = subprocess.run(
        [*probe, *run.command(seed)], env=run.environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{run.name} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1], time.perf_counter() - began


def recorded(run: ZooRun, seed: int) -> tuple[Path, str, float]:
    """The record of a run, made unless there is one: its folder, the last line printed, and seconds."""
    folder = WORK / f"{_key(run, seed)}-{_probe_hash()}"
    said = folder / "said.json"
    if not said.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        line, seconds = execute(run, folder, seed)
        said.write_text(json.dumps([line, seconds]), encoding="utf-8")
    line, seconds = json.loads(said.read_text(encoding="utf-8"))
    return folder, line, seconds


# ---- judging -----------------------------------------------------------------------------------------------------------


def judge(run: ZooRun, folder: Path, line: str = "", seconds: float = math.nan, seed: int = 0) -> Result:
    """Read the record of a run and hold the findings against its label."""
    trace = gradiometer.load(folder).trace
    findings = gradiometer.diagnose(trace)
    errors = [f for f in findings if f.severity is Severity.ERROR]
    named = (run.rule, *run.accept)
    first = _first_steps(trace, {*named, *run.also})
    root = findings[0] if findings else None
    right_cause = root is not None and root.severity is not Severity.INFO and root.rule in named
    return Result(
        name=run.name,
        half=run.half,
        family=run.family,
        label=run.label,
        rule=run.rule,
        onset=run.onset,
        seed=seed,
        verdict="sick" if errors else "well",
        errors=tuple(f.rule for f in errors),
        warnings=tuple(f.rule for f in findings if f.severity is Severity.WARNING),
        root=root.rule if root else "",
        right_cause=right_cause if run.sick else None,
        right_site=_right_site(trace, findings, run) if run.sick and run.sites else None,
        first_step=first[0],
        first_error=first[1],
        first_root=first[2],
        steps=trace.steps_seen,
        looks=int(trace.steps.size),
        overhead_percent=round(trace.overhead_percent, 2),
        seconds=round(seconds, 2),
        outcome=last_number(line),
        sentences=tuple(f"{f.severity}: {f.rule}: {f.sentence}" for f in findings),
    )


def _first_steps(trace: Trace, rules: set[str]) -> tuple[int, int, str]:
    """(first step with a finding of one of these rules, first step with a confirmed error, its root cause); -1 for never."""
    first = error = -1
    root = ""
    in_a_row = 0
    for step in prefixes(trace):
        findings = gradiometer.diagnose(trace.until(step))
        if first < 0 and any(f.rule in rules and f.severity is not Severity.INFO for f in findings):
            first = step
        errors = [f for f in findings if f.severity is Severity.ERROR]
        in_a_row = in_a_row + 1 if errors else 0
        if error < 0 and in_a_row >= CONFIRMED:
            error, root = step, errors[0].rule
        if first >= 0 and error >= 0:
            break
    return first, error, root


def prefixes(trace: Trace) -> list[int]:
    """Steps at which what had been seen by then is read: looks, at most `PREFIXES` of them, and the last step."""
    steps = trace.steps.tolist()
    if len(steps) > PREFIXES:
        steps = [steps[round(i * (len(steps) - 1) / (PREFIXES - 1))] for i in range(PREFIXES)]
    return sorted({*steps, trace.steps_seen - 1})


def _right_site(trace: Trace, findings: Sequence[Finding], run: ZooRun) -> bool:
    """Whether the first site of the first finding about the right disease is guilty, or adjacent to a guilty place."""
    about = [f for f in findings if f.rule in (run.rule, *run.accept)] or [f for f in findings if f.rule in run.also]
    named = [name for f in about[:1] for name in (f.starts, *f.sites[:1]) if name]
    guilty = [s for s in trace.sites if any(fnmatchcase(s.name, p) for p in run.sites)]
    depths = {(s.model, s.depth) for s in guilty}
    for name in named:
        for site in (s for s in trace.sites if s.name == name):
            if site in guilty or any(site.model == model and abs(site.depth - depth) <= NEAR for model, depth in depths):
                return True
    return False


def observe(run: ZooRun, seed: int = 0) -> Result:
    """Record, unless that has been done, and judge."""
    return judge(run, *recorded(run, seed), seed)


# ---- peers -------------------------------------------------------------------------------------------------------------


def peer_says(run: ZooRun, seed: int, python: str) -> dict[str, Any]:
    """What every peer says of a run, kept like the records: peer -> flagged, warnings, ..."""
    from peers.run import run_peer

    sources = sorted((ROOT / "benchmarks" / "peers").glob("*.py"))
    path = WORK / f"{_key(run, seed)}-{_hash(*(f.read_bytes() for f in sources))}.peers.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run_peer(run, seed=seed, python=python)), encoding="utf-8")
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return said


def peer_totals(jobs: Sequence[tuple[ZooRun, int]], said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per peer: recall and false alarms over the trainings that it could be run on."""
    totals: dict[str, Any] = {}
    for peer in sorted({name for one in said for name in one}):
        judged: list[tuple[bool, bool, bool]] = []
        for (run, _), one in zip(jobs, said, strict=True):
            verdict = one.get(peer, {"error": "not run"})
            if "error" not in verdict:
                flagged = bool(verdict["flagged"])
                judged.append((run.sick, flagged, flagged or bool(verdict["warnings"])))
        sick = [j for j in judged if j[0]]
        well = [j for j in judged if not j[0]]
        totals[peer] = {
            "recall": rate(sum(j[1] for j in sick), len(sick)),
            "false alarms": rate(sum(j[1] for j in well), len(well)),
            "recall with warnings": rate(sum(j[2] for j in sick), len(sick)),
            "false alarms with warnings": rate(sum(j[2] for j in well), len(well)),
            "could not be run on": len(jobs) - len(judged),
        }
    return totals


def first_reading(wanted: set[tuple[str, int]]) -> dict[str, Any]:
    """Recall and false alarms of our own first, blind reading of the evaluation half, on these trainings and seeds."""
    runs = [r for r in json.loads(FIRST_READING.read_text(encoding="utf-8"))["runs"] if (r["name"], r["seed"]) in wanted]
    sick, well = ([r["verdict"] == "sick" for r in runs if r["label"] == label] for label in ("sick", "well"))
    return {"recall": rate(sum(sick), len(sick)), "false alarms": rate(sum(well), len(well))}


# ---- rates -------------------------------------------------------------------------------------------------------------


def rate(hits: int, of: int) -> dict[str, Any]:
    """A share with its 95 % interval (Clopper and Pearson 1934)."""
    if not of:
        return {"hits": 0, "of": 0, "share": None, "low": None, "high": None}
    interval = binomtest(hits, of).proportion_ci(0.95, "exact")
    share, low, high = (round(float(v), 4) for v in (hits / of, interval.low, interval.high))
    return {"hits": hits, "of": of, "share": share, "low": low, "high": high}


def totals(results: Sequence[Result]) -> dict[str, Any]:
    """Error rates of one half."""
    sick = [r for r in results if r.label == "sick"]
    well = [r for r in results if r.label == "well"]
    found = [r for r in sick if r.right]
    placed = [r for r in found if r.right_site is not None]
    early = [r for r in sick if r.onset == "start" and r.first_step >= 0]
    agreeing = [r for r in sick if r.first_error >= 0 and r.right]
    return {
        "trainings": {"sick": len({r.name for r in sick}), "well": len({r.name for r in well})},
        "recall": rate(len(found), len(sick)),
        "false alarms": rate(sum(not r.right for r in well), len(well)),
        "warnings on well runs": rate(sum(r.right and bool(r.warnings) for r in well), len(well)),
        "right cause": rate(sum(bool(r.right_cause) for r in sick), len(sick)),
        "right cause of those found": rate(sum(bool(r.right_cause) for r in found), len(found)),
        "right site": rate(sum(bool(r.right_site) for r in placed), len(placed)),
        "median share of steps until a finding": _median(r.first_step / max(r.steps, 1) for r in early),
        "faults present from the start": len([r for r in sick if r.onset == "start"]),
        "early errors on well runs": rate(sum(r.first_error >= 0 for r in well), len(well)),
        "early root cause kept": rate(sum(r.first_root in (r.root, *r.errors) for r in agreeing), len(agreeing)),
        "misses": sorted({r.name for r in sick if not r.right}),
        "false alarms on": sorted({r.name for r in well if not r.right}),
        "wrong cause on": sorted({f"{r.name}: {r.root}" for r in found if not r.right_cause}),
        "wrong site on": sorted({r.name for r in placed if not r.right_site}),
    }


def by_rule(results: Sequence[Result]) -> dict[str, Any]:
    """Recall and causes of the trainings whose label names a rule, and how often the rule is an error on well ones."""
    rules: dict[str, Any] = {}
    well = [r for r in results if r.label == "well"]
    for rule in (r.name for r in RULES):
        own = [r for r in results if r.label == "sick" and r.rule == rule]
        rules[rule] = {
            "recall": rate(sum(r.right for r in own), len(own)),
            "right cause": rate(sum(bool(r.right_cause) for r in own), len(own)),
            "median first step": _median(float(r.first_step) for r in own if r.first_step >= 0),
            "errors on well runs": rate(sum(rule in r.errors for r in well), len(well)),
        }
    return rules


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return round(float(np.median(known)), 4) if known else None


# ---- the table ---------------------------------------------------------------------------------------------------------


def table(results: Sequence[Result]) -> str:
    """A plain text table."""
    head = ("training", "seed", "label", "verdict", "found", "cause", "site", "first", "error", "of", "cost %", "outcome")
    mark = {None: "", True: "yes", False: "NO"}
    rows = [head]
    for r in results:
        found = [*r.errors, *(f"({w})" for w in r.warnings)]
        verdict = r.verdict if r.right else r.verdict.upper()
        cells = (f"+{r.seed}", r.label, verdict, ", ".join(found), mark[r.right_cause], mark[r.right_site])
        numbers = (str(r.first_step), str(r.first_error), str(r.steps), f"{r.overhead_percent:.1f}", f"{r.outcome:.4g}")
        rows.append((r.name, *cells, *numbers))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def show(title: str, numbers: dict[str, Any]) -> None:
    """Print totals."""
    print(f"\n{title}")
    for key, value in numbers.items():
        print(f"  {key:42} {_words(value)}")


def _words(value: Any) -> str:
    if isinstance(value, dict) and "share" in value:
        if value["share"] is None:
            return "-"
        return f"{value['share']:.3f} ({value['hits']} of {value['of']}; 95 %: {value['low']:.3f} to {value['high']:.3f})"
    return ", ".join(value) if isinstance(value, list) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--half", choices=("calibration", "evaluation"), help="one half only")
    parser.add_argument("--seeds", type=int, default=int(os.environ.get("SEEDS", len(SEEDS))), help="seeds per script")
    parser.add_argument("--only", nargs="*", default=[], help="names of runs or scripts; the result file is then left alone")
    parser.add_argument(
        "--peers", metavar="PYTHON", help="interpreter that has the packages of benchmarks/peers/requirements.txt"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the records of earlier runs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="scripts at a time")
    options = parser.parse_args(arguments)
    if options.fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    wanted = set(options.only)
    runs = [r for r in read_labels() if options.half in (None, r.half) and (not wanted or wanted & {r.name, r.script})]
    jobs = [(run, seed) for run in runs for seed in run.seeds[: options.seeds]]
    _probe_hash()
    _in_parallel(lambda job: recorded(*job), jobs, options.workers)
    with ProcessPoolExecutor(options.workers) as pool:
        results = list(pool.map(_observe, jobs, chunksize=4))
    document: dict[str, Any] = {"halves": {}}
    for half in ("calibration", "evaluation"):
        part = [r for r in results if r.half == half]
        if part:
            print(f"\n{half} half\n{table(part)}")
            document["halves"][half] = {"totals": totals(part), "rules": by_rule(part)}
            show(f"{half} half", document["halves"][half]["totals"])
    if options.peers:
        # one seed each and no references: they take several times as long, and their rules are not ours to tune
        judged = [(run, seed) for run, seed in jobs if run.half == "evaluation" and not run.reference and seed == run.seeds[0]]
        said = _in_parallel(lambda job: peer_says(*job, options.peers), judged, options.workers)
        document["peers"] = peer_totals(judged, said)
        ours = {(r.name, r.seed): r for r in results}
        same = [ours[run.name, seed] for run, seed in judged]
        document["same trainings, first reading"] = first_reading({(run.name, seed) for run, seed in judged})
        document["same trainings"] = {k: v for k, v in totals(same).items() if k in ("recall", "false alarms", "trainings")}
        for peer, numbers in document["peers"].items():
            show(peer, numbers)
    if not wanted and options.half is None:
        _write(document, results, options.seeds)
    return int(any(not r.right for r in results))


def _observe(job: tuple[ZooRun, int]) -> Result:
    return observe(*job)


def _in_parallel(call: Callable[[tuple[ZooRun, int]], Any], jobs: Sequence[tuple[ZooRun, int]], workers: int) -> list[Any]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(call, jobs))


def _write(document: dict[str, Any], results: Sequence[Result], seeds: int) -> None:
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    facts = {
        "gradiometer": gradiometer.__version__,
        "python": platform.python_version(),
        "platform": platform.system(),
        "seeds": seeds,
    }
    if "peers" not in document and "peers" in before:
        document |= {key: before[key] for key in PEER_KEYS}  # as they were when both were run
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(replace(r, sentences=r.sentences[:3])) for r in results]
    RESULTS.write_text(json.dumps({**facts, **document, "runs": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    raise SystemExit(main())
