"""Writes what the docs take from the code and from the benchmarks: docs/rules.md and the tables of other pages.

python docs/generate.py           write
python docs/generate.py --check   say what is out of date; exit status 1 if anything is
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from gradiometer.preflight import PAGES
from gradiometer.rules import RULES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def rules_page() -> str:
    """docs/rules.md: the text of every rule."""
    parts = [
        "# Rules\n\nWritten from the rules' own texts by `python docs/generate.py`; `gradiometer explain RULE` prints them.\n"
    ]
    texts = {rule.name: rule.doc for rule in RULES} | PAGES
    for name, text in texts.items():
        title, _, body = text.strip().partition("\n")
        said = title.split(": ", 1)[-1]
        parts.append(f"## {name}\n\n{said[0].upper()}{said[1:]}\n\n{_markdown(body)}\n")
    return "\n".join(parts)


def _markdown(body: str) -> str:
    """Sections of a docstring (a heading, then an indented text) as Markdown."""
    sections = re.split(r"^(\w[\w ]*):\n", body.strip() + "\n", flags=re.M)[1:]
    pairs = zip(sections[::2], sections[1::2], strict=True)
    return "\n\n".join(f"**{heading}.**\n\n{textwrap.dedent(text).strip()}" for heading, text in pairs)


def rules_table() -> str:
    """One line a rule."""
    texts = {rule.name: rule.doc for rule in RULES} | PAGES
    rows = [
        f"| [`{name}`](docs/rules.md#{name}) | {t.strip().splitlines()[0].split(': ', 1)[-1]} |" for name, t in texts.items()
    ]
    return "\n".join(["| rule | what it finds |", "|---|---|", *rows])


def overhead_table(data: dict[str, Any]) -> str:
    """Benchmark results of benchmarks/overhead.py."""
    rows = [
        "| training | step | median of pairs (min–max) | all watched / all plain (95 %) | by its own clock | once |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in data["trainings"].items():
        low, high = r["ratio_total_95"]
        rows.append(
            f"| {name} | {r['step_ms']:.0f} ms | {r['ratio_median']:.3f} ({r['ratio_min']:.3f}–{r['ratio_max']:.3f}) "
            f"| {r['ratio_total']:.3f} ({low:.3f}–{high:.3f}) | {r['own_percent']:.2f} % | {r['one_off_seconds']:.2f} s |"
        )
    return "\n".join(rows)


def detection_table(data: dict[str, Any]) -> str:
    """Benchmark results of benchmarks/detection.py."""
    rows = [
        "| half | sick trainings | found | with the right rule | at the right place | well trainings | silent |",
        "|---|---|---|---|---|---|---|",
    ]
    for half, t in data["totals"].items():
        loud = set(t["false alarms"]) | set(t["warnings on well runs"])
        found, silent = t["sick"] - len(t["misses"]), t["well"] - len(loud)
        rows.append(f"| {half} | {t['sick']} | {found} | {t['right rule']} | {t['right sites']} | {t['well']} | {silent} |")
    return "\n".join(rows)


def trainable_depth_table(data: dict[str, Any]) -> str:
    """Benchmark results of benchmarks/trainable_depth.py."""
    depths = sorted({c["depth"] for c in data["cells"]})
    means = {(c["sigma_w2"], c["depth"]): sum(c["accuracies"]) / len(c["accuracies"]) for c in data["cells"]}
    rows = [
        f"| σ_w² | side | ξ_c | 6 ξ_c | {' | '.join(f'L={d}' for d in depths)} | half at | in ξ_c |",
        f"|{'---|' * (6 + len(depths))}",
    ]
    for r in data["rows"]:
        found = " | ".join(f"{means[r['sigma_w2'], d]:.2f}" for d in depths)
        half, xi = r["half_depth"], r["xi_c"]
        theory = f"{xi:.1f} | {6 * xi:.0f}" if xi < 1000 else "> 1000 | > 6000"
        end = f"{half:.0f} | {half / xi:.1f}" if half else f"> {max(depths)} | "
        rows.append(f"| {r['sigma_w2']:g} | {r['side']} | {theory} | {found} | {end} |")
    return "\n".join(rows)


def trainable_depth_reading(data: dict[str, Any]) -> str:
    """The same in a sentence each: what lies within 6 ξ_c, what lies beyond, and what was run."""
    xi = {r["sigma_w2"]: r["xi_c"] for r in data["rows"]}
    cells = [(c["depth"], c["depth"] / xi[c["sigma_w2"]], sum(c["accuracies"]) / len(c["accuracies"])) for c in data["cells"]]
    four = [a for depth, share, a in cells if share <= 4 and depth <= 60]
    six = [a for depth, share, a in cells if 4 < share <= 6 and depth <= 60]
    deep = [a for depth, share, a in cells if share <= 6 and depth > 60]
    far = [a for _, share, a in cells if share > 12]
    ends = [r["half_depth"] / r["xi_c"] for r in data["rows"] if r["half_depth"]]
    spread = max((max(c["accuracies"]) - min(c["accuracies"]) for c in data["cells"]), default=0.0)
    repeated = sum(len(c["accuracies"]) > 1 for c in data["cells"])
    parts = [
        f"- Up to 4 ξ_c, and no deeper than 60 layers: accuracy {min(four):.2f} or more in all {len(four)} cells.",
        f"- From 4 to 6 ξ_c, and no deeper than 60 layers: {min(six):.2f} to {max(six):.2f} in {len(six)} cells.",
        f"- Accuracy falls through one half at {min(ends):.1f} to {max(ends):.1f} ξ_c, where it does so on this grid.",
        f"- Past 12 ξ_c: {max(far):.2f} or less in all {len(far)} cells; a guess is right in 0.10 of cases.",
        f"- Within 6 ξ_c but deeper than 60 layers, which is near the edge of chaos: {min(deep):.2f} to {max(deep):.2f}.",
        f"- {repeated} of {len(cells)} cells had a second seed; the largest difference between two seeds is {spread:.2f}.",
        f"- The whole took {data['seconds'] / 60:.0f} minutes on one core.",
    ]
    return "\n".join(parts)


HALVES = ("building", "blind")
"""Of benchmarks/forecast.py: the one that was looked at, and the other."""


def forecast_calibration_table(data: dict[str, Any]) -> str:
    """Benchmark results of benchmarks/forecast.py: how far off, and how often inside the interval."""
    rows = [
        "| half | networks | forecast of | error, median | 90 % below | inside the interval | half of it |",
        f"|{'---|' * 7}",
    ]
    for half, found in _forecast_halves(data):
        group = found["groups"]["all"]
        for which, name in (("gain", "gradient gain, head to first layer"), ("signal", "signal that the head takes in")):
            c = group[which]
            numbers = f"{c['median error']:.3f} | {c['90th percentile']:.3f} | {100 * c['inside']:.0f} %"
            rows.append(f"| {half} | {group['n']} | {name} | {numbers} | ± {c['median half interval']:.3f} |")
        inside = f"{100 * group['layers inside']:.0f} %"
        rows.append(f"| {half} | {group['n']} | gradient of each layer ({group['layers']} layers) | | | {inside} | |")
    return "\n".join(rows)


def forecast_groups_table(data: dict[str, Any]) -> str:
    """The same by kind of network."""
    halves = _forecast_halves(data)
    titles = " | ".join(f"{half}: networks | gain, median | 90 % below | inside | signal inside" for half, _ in halves)
    rows = [f"| group | {titles} |", f"|{'---|' * (1 + 5 * len(halves))}"]
    for name in dict.fromkeys(name for _, found in halves for name in found["groups"]):
        cells: list[str] = []
        for _, found in halves:
            group = found["groups"].get(name)
            if group is None:
                cells += [""] * 5
                continue
            gain = group["gain"]
            errors = ["–" if gain[key] is None else f"{gain[key]:.2f}" for key in ("median error", "90th percentile")]
            shares = [f"{100 * group[which]['inside']:.0f} %" for which in ("gain", "signal")]
            cells += [str(group["n"]), *errors, *shares]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def forecast_verdicts_table(data: dict[str, Any]) -> str:
    """Verdicts at step 0 against what training then did."""
    counts = ("sick and called sick", "sick and called well", "well and called sick", "well and called well")
    rows = [f"| half | verdict of | {' | '.join(counts)} | precision | recall |", f"|{'---|' * 8}"]
    for half, found in _forecast_halves(data):
        for which, name in (("check", "the check"), ("told", "the forecast alone")):
            v = found["groups"]["all"][which]
            shares = " | ".join("–" if v[key] is None else f"{v[key]:.2f}" for key in ("precision", "recall"))
            rows.append(f"| {half} | {name} | {' | '.join(str(v[key]) for key in counts)} | {shares} |")
    return "\n".join(rows)


def forecast_errors_list(data: dict[str, Any]) -> str:
    """Every network whose verdict was wrong, and how much of it dropout explains."""
    known = {row["config"]["seed"]: row for row in data["rows"]}
    parts: list[str] = []
    for half, found in _forecast_halves(data):
        check = found["groups"]["all"]["check"]
        for kind in ("missed", "false alarms"):
            rows = [known[seed] for seed in check[kind]]
            dropout = sum(row["config"]["dropout"] > 0 for row in rows)
            parts.append(f"{half.capitalize()} half, {kind}: {len(rows)}{f', {dropout} with dropout' if dropout else ''}.\n")
            for row in rows:
                loss = "diverged" if row["loss"] < 0 else f"loss {row['loss']:.2f}"
                fall, rise = ("–" if d is None else f"{d:.1f}" for d in row["decades"])
                said = f"; {', '.join(row['errors'])}" if row["errors"] else ""
                parts.append(f"- {row['network']}: {loss}; the gradient falls by {fall} and rises by {rise}{said}")
            parts.append("")
    return "\n".join(parts).rstrip()


def forecast_cost_table(data: dict[str, Any]) -> str:
    """What a check without curvature takes, against plain passes of the same model and batch."""
    rows = [
        "| half | networks | plain pass | measuring | in passes: median | largest | more than 3 | reading: median | largest |",
        f"|{'---|' * 9}",
    ]
    for half, found in _forecast_halves(data):
        for name, c in found["cost"].items():
            times = f"{1000 * c['pass seconds']:.0f} ms | {1000 * c['measuring seconds']:.0f} ms"
            ratios = f"{c['median']:.1f} | {c['largest']:.1f} | {c['beyond 3']} of {c['n']}"
            reading = f"{1000 * c['reading seconds']:.0f} ms | {1000 * c['reading seconds, largest']:.0f} ms"
            rows.append(f"| {half} | {name} | {times} | {ratios} | {reading} |")
    return "\n".join(rows)


def _forecast_halves(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(half, data["halves"][half]) for half in HALVES if half in data["halves"]]


def filled(text: str) -> str:
    """A page with its tables filled in."""
    tables = {"rules": rules_table()}
    makers = (
        ("overhead", overhead_table, "overhead"),
        ("detection", detection_table, "detection"),
        ("trainable_depth", trainable_depth_table, "trainable_depth"),
        ("trainable_depth reading", trainable_depth_reading, "trainable_depth"),
        ("forecast calibration", forecast_calibration_table, "forecast"),
        ("forecast groups", forecast_groups_table, "forecast"),
        ("forecast verdicts", forecast_verdicts_table, "forecast"),
        ("forecast errors", forecast_errors_list, "forecast"),
        ("forecast cost", forecast_cost_table, "forecast"),
    )
    for name, make, file in makers:
        path = RESULTS / f"{file}.json"
        if path.exists():
            tables[name] = make(json.loads(path.read_text(encoding="utf-8")))
    for name, table in tables.items():
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S)
    return text


def pages() -> dict[Path, str]:
    """Every generated page with its text."""
    with_tables = (ROOT / "README.md", ROOT / "docs" / "trainable-depth.md", ROOT / "docs" / "forecast.md")
    return {ROOT / "docs" / "rules.md": rules_page(), **{p: filled(p.read_text(encoding="utf-8")) for p in with_tables}}


def main() -> int:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python docs/generate.py")
        return int(bool(stale))
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
