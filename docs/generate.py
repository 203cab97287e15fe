"""Writes what the docs take from the code and from the benchmarks: docs/rules.md and the tables of the README.

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

from gradiometer.rules import RULES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def rules_page() -> str:
    """docs/rules.md: the text of every rule."""
    parts = [
        "# Rules\n\nWritten from the rules' own texts by `python docs/generate.py`; `gradiometer explain RULE` prints them.\n"
    ]
    for rule in RULES:
        title, _, body = rule.doc.strip().partition("\n")
        said = title.split(": ", 1)[-1]
        parts.append(f"## {rule.name}\n\n{said[0].upper()}{said[1:]}\n\n{_markdown(body)}\n")
    return "\n".join(parts)


def _markdown(body: str) -> str:
    """Sections of a docstring (a heading, then an indented text) as Markdown."""
    sections = re.split(r"^(\w[\w ]*):\n", body.strip() + "\n", flags=re.M)[1:]
    pairs = zip(sections[::2], sections[1::2], strict=True)
    return "\n\n".join(f"**{heading}.**\n\n{textwrap.dedent(text).strip()}" for heading, text in pairs)


def rules_table() -> str:
    """One line a rule."""
    rows = [f"| [`{r.name}`](docs/rules.md#{r.name}) | {r.doc.strip().splitlines()[0].split(': ', 1)[-1]} |" for r in RULES]
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


def readme(text: str) -> str:
    """The README with its tables filled in."""
    tables = {"rules": rules_table()}
    for name, make in (("overhead", overhead_table), ("detection", detection_table)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            tables[name] = make(json.loads(path.read_text(encoding="utf-8")))
    for name, table in tables.items():
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S)
    return text


def pages() -> dict[Path, str]:
    """Every generated page with its text."""
    readme_path = ROOT / "README.md"
    return {ROOT / "docs" / "rules.md": rules_page(), readme_path: readme(readme_path.read_text(encoding="utf-8"))}


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
