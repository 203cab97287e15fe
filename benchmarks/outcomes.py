"""Outcomes: run every training of the zoo on its own and see whether its outcome bears out its label.

    python benchmarks/outcomes.py [--only NAME …] [--workers N]

A sick training must end clearly worse than its reference configuration in every seed, a well one must reach its bar (see
`zoo.clearly_worse`). Numbers that differ from those written in zoo/labels.toml are shown: other machines differ in the last
digits. Gradiometer takes no part in it.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from zoo import last_number, read_labels, right_by_outcome, run_plain

TOLERANCE = 0.02
"""Relative difference from the written number that is shown."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="names of runs or scripts")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="scripts at a time")
    options = parser.parse_args(arguments)
    wanted = set(options.only)
    runs = [r for r in read_labels() if not wanted or wanted & {r.name, r.script, r.reference}]
    jobs = [(run, seed) for run in runs for seed in run.seeds]
    with ThreadPoolExecutor(options.workers) as pool:
        found = list(pool.map(lambda job: last_number(run_plain(*job)), jobs))
    outcomes: dict[str, list[float]] = {}
    for (run, _), number in zip(jobs, found, strict=True):
        outcomes.setdefault(run.name, []).append(number)
    verdicts = right_by_outcome(runs, outcomes)
    for run in runs:
        written, now = run.outcomes, outcomes[run.name]
        moved = any(not _close(a, b) for a, b in zip(written, now, strict=True)) if written else True
        remark = "" if verdicts.get(run.name, True) else "  THE OUTCOME DOES NOT BEAR THE LABEL OUT"
        remark += f"  written: {', '.join(f'{v:.4g}' for v in written)}" if moved else ""
        print(f"{run.name:44} {run.label:5} {run.metric:20} {', '.join(f'{v:.4g}' for v in now)}{remark}")
    wrong = [name for name, right in verdicts.items() if not right]
    print(
        f"\n{len(verdicts) - len(wrong)} of {len(verdicts)} labels borne out" + (f"; not: {', '.join(wrong)}" if wrong else "")
    )
    return int(bool(wrong))


def _close(written: float, now: float) -> bool:
    if math.isnan(written) or math.isnan(now):
        return math.isnan(written) and math.isnan(now)
    return written == now or abs(written - now) <= TOLERANCE * max(abs(written), abs(now))


if __name__ == "__main__":
    raise SystemExit(main())
