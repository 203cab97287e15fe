"""Runs a script unchanged while peers look on, and writes what they say of it.

    PEERS=rules PEERS_OUT=said.json python watch.py SEED script.py [args ...]

``PEERS`` is one of `GROUPS`: peers that hook into the same modules are not run in one process. The file is written when the
script ends, however it ends::

    {"peers": {name: {"flagged": bool, "findings": [...], "first_step": int | null, "warnings": [...], "notes": [...]}
               or {"error": why}},
     "ended": "" or what the script raised}
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

# Only the folder above: this one holds modules that are called like the packages they attach.
HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if not p or Path(p).resolve() != HERE]
sys.path.append(str(HERE.parent))

import torch  # noqa: E402

from peers import autotrainer, deepdiagnosis, taps, thedeepchecker  # noqa: E402
from peers.collect import Collector  # noqa: E402
from peers.record import Training, Verdict  # noqa: E402

RULES: dict[str, Callable[[Training], Verdict]] = {
    "autotrainer": autotrainer.judge,
    "deepdiagnosis": deepdiagnosis.judge,
    "thedeepchecker": thedeepchecker.judge,
}
GROUPS = ("rules", "neuraldbg", "torchmortem", "torchlens")


def together(verdicts: list[Verdict]) -> Verdict:
    """One verdict for a script of several optimizers or networks: what is said of any is said of the script."""
    if verdicts and all(v.error for v in verdicts):
        return verdicts[0]
    firsts = [v.first_step for v in verdicts if v.first_step is not None]
    return Verdict(
        flagged=any(v.flagged for v in verdicts),
        findings=tuple(f for v in verdicts for f in v.findings),
        first_step=min(firsts, default=None),
        warnings=tuple(w for v in verdicts for w in v.warnings),
        notes=tuple(dict.fromkeys(n for v in verdicts for n in (*v.notes, v.error) if n)),
    )


def listen(group: str) -> tuple[taps.Listener, Callable[[], dict[str, Verdict]]]:
    """The listener of a group, and how to ask what its peers say once the script has ended."""
    if group == "rules":
        collector = Collector()

        def judged() -> dict[str, Verdict]:
            trainings = collector.trainings()
            return {name: together([judge(t) for t in trainings]) for name, judge in RULES.items()}

        return collector, judged
    if group == "neuraldbg":
        from peers.neuraldbg import Adapter
    elif group == "torchmortem":
        from peers.torchmortem import Adapter
    elif group == "torchlens":
        from peers.torchlens import Adapter
    else:
        raise ValueError(f"PEERS is {group!r}, not one of {', '.join(GROUPS)}")
    adapter = Adapter()
    return adapter, lambda: {group: together(adapter.verdicts())}


def main() -> int:
    seed, script = int(sys.argv[1]), sys.argv[2]
    listener, ask = listen(os.environ.get("PEERS", "rules"))
    taps.install(listener)
    if seed:
        # as in the benchmark of detection: a script fixes its own seed, others are made by shifting it
        fix = torch.manual_seed
        torch.manual_seed = lambda value: fix(value + seed)
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path(script).resolve().parent))
    ended, status = "", 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:  # noqa: BLE001 - whatever ends a script, the peers are asked
        traceback.print_exc()
        ended, status = f"{type(error).__name__}: {error}", 1
    with torch.no_grad():
        said = {name: v.as_dict() for name, v in ask().items()}
    Path(os.environ["PEERS_OUT"]).write_text(json.dumps({"peers": said, "ended": ended}), encoding="utf-8")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
