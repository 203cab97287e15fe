"""Runs the peers on scripts of the zoo.

    python benchmarks/peers/run.py --python ../peers-venv/bin/python [--seed N] [--only NAME ...] [--out FILE]

prints what each peer says of every run of the zoo, and how often it is right (run it with the project's own Python).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

BENCHMARKS = Path(__file__).resolve().parent.parent
ZOO = BENCHMARKS.parent / "zoo"
TIMEOUT = 180
"""Seconds for one group of peers on one script."""

GROUPS: dict[str, tuple[str, ...]] = {
    "rules": ("autotrainer", "deepdiagnosis", "thedeepchecker"),
    "neuraldbg": ("neuraldbg",),
    "torchmortem": ("torchmortem",),
    "torchlens": ("torchlens",),
}
"""Peers that share a process. Packages have one of their own: they hook into the same modules, and one's failure would be
another's."""


class ZooRun(Protocol):
    """What is needed of a run of the zoo; `detection.ZooRun` has it."""

    @property
    def script(self) -> str: ...

    @property
    def args(self) -> Sequence[str]: ...

    @property
    def env(self) -> Mapping[str, str]: ...


def run_peer(run: ZooRun, seed: int, python: str, groups: Sequence[str] = tuple(GROUPS)) -> dict[str, Any]:
    """What each peer says of a run: ``{peer: verdict}``, and of one that failed ``{peer: {"error": why}}``.

    A package has failed too where a script raises under it that does not raise without it. A verdict has the keys of
    `record.Verdict`, what the script ended with where it raised ("ended"), the last line it printed ("last_line", by which
    can be seen that its numbers are its own) and "seconds". Never raises.
    """
    said: dict[str, Any] = {}
    try:
        for group in groups:
            said.update(_run_group(run, seed, python, group))
    except Exception as error:  # noqa: BLE001 - a benchmark of many runs goes on
        return {"error": f"{type(error).__name__}: {error}"}
    alone = said.get("autotrainer", {}).get("ended")
    for peer, verdict in said.items():
        if alone == "" and verdict.get("ended"):
            said[peer] = {"error": f"broke the script: {verdict['ended']}"}
    return said


def _run_group(run: ZooRun, seed: int, python: str, group: str) -> dict[str, Any]:
    def failed(why: str) -> dict[str, Any]:
        return {peer: {"error": why} for peer in GROUPS[group]}

    watch, script = str(BENCHMARKS / "peers" / "watch.py"), str(ZOO / f"{run.script}.py")
    # some peers write files where they run
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "said.json"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **run.env, "PEERS": group, "PEERS_OUT": str(out)}
        began = time.perf_counter()
        try:
            done = subprocess.run(
                [python, watch, str(seed), script, *run.args],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return failed(f"not done after {TIMEOUT} s")
        except OSError as error:
            return failed(f"{python}: {error}")
        seconds = round(time.perf_counter() - began, 1)
        if not out.exists():
            return failed((done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1])
        document = json.loads(out.read_text(encoding="utf-8"))
    lines = done.stdout.strip().splitlines()
    facts = {"ended": document["ended"], "last_line": lines[-1] if lines else "", "seconds": seconds}
    return {peer: verdict if "error" in verdict else {**verdict, **facts} for peer, verdict in document["peers"].items()}


def _mark(verdict: Mapping[str, Any]) -> str:
    if "error" in verdict:
        return "-"
    return "SICK" if verdict["flagged"] else "warns" if verdict["warnings"] else "well"


def _share(marks: Sequence[str]) -> str:
    return f"{marks.count('SICK')} of {len(marks) - marks.count('-')}"


def main(arguments: Sequence[str] | None = None) -> int:
    sys.path[:] = [str(BENCHMARKS), *(p for p in sys.path if Path(p).resolve() != BENCHMARKS / "peers")]
    import detection  # needs the project's own environment

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="of the environment the packages are in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="names of runs or scripts")
    parser.add_argument("--no-references", action="store_true", help="leave out the reference configurations")
    parser.add_argument("--out", type=Path, help="a file for everything that was said")
    options = parser.parse_args(arguments)
    runs = [r for r in detection.read_labels() if not options.only or r.name in options.only or r.script in options.only]
    if options.no_references:
        runs = [r for r in runs if "(reference)" not in r.name]
    peers = [peer for group in GROUPS.values() for peer in group]
    everything: dict[str, Any] = {}
    print(f"{'run':36}{'label':7}" + "".join(f"{peer:16}" for peer in peers))
    for run in runs:
        said = run_peer(run, options.seed, options.python)
        everything[run.name] = {"label": run.label, "half": run.half, "said": said}
        cells = "".join(f"{_mark(said.get(peer, said)):16}" for peer in peers)
        print(f"{run.name:36}{run.label:7}{cells}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    for label in ("sick", "well"):
        of_label = [e["said"] for e in everything.values() if e["label"] == label]
        counts = [[_mark(said.get(peer, said)) for said in of_label] for peer in peers]
        flagged = "".join(f"{_share(marks):16}" for marks in counts)
        print(f"{'flagged of ' + label:43}{flagged}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
