"""Writes what the docs take from the code and from the benchmarks: a page for each rule and remedy, and tables of other pages.

python docs/generate.py           write
python docs/generate.py --check   say what is out of date; exit status 1 if anything is
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

from gradiometer.app.pages import NAMES as LAB_PAGES
from gradiometer.app.pages import page as lab_page
from gradiometer.errors import GradiometerError
from gradiometer.preflight import PAGES
from gradiometer.remedies import REMEDIES
from gradiometer.remedies.base import Option, Remedy
from gradiometer.rules import RULES
from gradiometer.theory import ACTIVATIONS, MeanField, critical_initialisation, edge_at
from gradiometer.theory.criticality import unit_variance_gain
from gradiometer.theory.finite_width import jacobian_variance
from gradiometer.types import Safety

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RULE_TEXTS = {rule.name: rule.doc for rule in RULES} | PAGES
CUTS = {
    Safety.SAME_FUNCTION: "other numbers to start from; model and training stay what they are",
    Safety.CHANGES_TRAINING: "changes the training, not the model",
    Safety.CHANGES_MODEL: "changes the model",
}
"""How deep a remedy cuts, in words."""


def rules_page() -> str:
    """docs/rules.md: the list of rules, each with a page of its own."""
    return f"""# Rules

Every rule has a page: what it finds, why it hurts, how we tell, when it is wrong, what helps, and a picture of its own sick
training beside the same training without the fault. `gradiometer explain RULE` prints the same text. How often they are
right is in [error-rates.md](error-rates.md).

{_rules_table("rules/")}

In a report a root cause comes first, and what follows from it is listed under it: of two findings the one that began earlier
is the cause, if it can be one (`rules/causes.py`), and of two that began together the one that stands earlier in this table.
"""


def rule_page(name: str, doc: str) -> str:
    """docs/rules/NAME.md: the text of a rule and its picture."""
    title, _, body = doc.strip().partition("\n")
    said = title.split(": ", 1)[-1]
    caption = ROOT / "docs" / "images" / "rules" / f"{name}.txt"
    picture = ""
    if caption.exists():
        alt, sick, well = caption.read_text(encoding="utf-8").splitlines()
        picture = (
            f"![{alt}](../images/rules/{name}.svg)\n\nOrange: {sick}. Blue: the same training without that ({well}). "
            "Dotted: the rule's levels.\n\n"
        )
    head = f"# {name}\n\n{said[0].upper()}{said[1:]}\n\n"
    foot = "\n\n[All rules](../rules.md) · written from the rule's own text by `python docs/generate.py`\n"
    return f"{head}{picture}{_markdown(body)}{foot}"


def remedies_page() -> str:
    """docs/remedies.md: the list of remedies, each with a page of its own."""
    return f"""# Remedies

What `gradiometer cure` tries, and what a prescription may hold ([cure.md](cure.md)). Every remedy has a page: what it does,
when it helps, when it does not, what it costs, and its settings. `gradiometer explain REMEDY` prints the same text.

{_remedies_table("remedies/")}

The table is in the order in which remedies are applied, whatever order a prescription lists them in: what changes the
architecture comes before what sets the numbers in it, and both before what acts on gradients.
"""


def remedy_page(remedy: Remedy) -> str:
    """docs/remedies/NAME.md: the text of a remedy and its settings."""
    title, _, body = remedy.text.strip().partition("\n")
    said = title.split(": ", 1)[-1]
    rows = ["| setting | if nobody says | what it is |", "|---|---|---|"]
    rows += [f"| `{o.name}` | {_value(o.default)} | {_meaning(o)} |" for o in remedy.options]
    return "\n".join(
        (
            f"# {remedy.name}\n\n{said[0].upper()}{said[1:]}\n",
            f"It {_cut(remedy)}.{' It must see the first batch.' if remedy.needs_batch else ''}\n",
            f"{_markdown(body)}\n",
            "**Settings.**\n",
            *rows,
            "\n[All remedies](../remedies.md) · written from the remedy's own text by `python docs/generate.py`\n",
        )
    )


def _cut(remedy: Remedy) -> str:
    said = CUTS[remedy.safety]
    return f"sets {said}" if remedy.safety is Safety.SAME_FUNCTION else said


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else ""


def _meaning(option: Option) -> str:
    choices = [_value(choice) for choice in option.choices]
    listed = f" One of {', '.join(choices)}." if choices else ""
    words = f" Or {', '.join(_value(word) for word in option.words)}." if option.words else ""
    return f"{option.meaning[0].upper()}{option.meaning[1:].rstrip('.')}.{listed}{words}".replace("|", "\\|")


def remedies_table() -> str:
    """One line a remedy."""
    return _remedies_table("docs/remedies/")


def _remedies_table(folder: str) -> str:
    rows = ["| remedy | what it does | how deep it cuts |", "|---|---|---|"]
    for remedy in REMEDIES:
        said = remedy.text.strip().splitlines()[0].split(": ", 1)[-1]
        rows.append(f"| [`{remedy.name}`]({folder}{remedy.name}.md) | {said} | {remedy.safety.value} |")
    return "\n".join(rows)


def _markdown(body: str) -> str:
    """Sections of a docstring (a heading, then an indented text) as Markdown."""
    sections = re.split(r"^(\w[\w ]*):\n", body.strip() + "\n", flags=re.M)[1:]
    pairs = zip(sections[::2], sections[1::2], strict=True)
    return "\n\n".join(f"**{heading}.**\n\n{textwrap.dedent(text).strip()}" for heading, text in pairs)


def rules_table() -> str:
    """One line a rule."""
    return _rules_table("docs/rules/")


def _rules_table(folder: str) -> str:
    rows = ["| rule | what it finds |", "|---|---|"]
    for name, doc in RULE_TEXTS.items():
        said = doc.strip().splitlines()[0].split(": ", 1)[-1]
        rows.append(f"| [`{name}`]({folder}{name}.md) | {said} |")
    return "\n".join(rows)


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
    """Benchmark results of benchmarks/detection.py, in short."""
    rows = ["| | trainings (sick, well) | recall | false alarms | right cause | right place |", "|---|---|---|---|---|---|"]
    for half, numbers in data["halves"].items():
        t = numbers["totals"]
        count = f"{t['trainings']['sick']}, {t['trainings']['well']}"
        cells = (t["recall"], t["false alarms"], t["right cause"], t["right site"])
        rows.append(f"| {half} half | {count} | {' | '.join(_rate(c) for c in cells)} |")
    return "\n".join(rows)


def _rate(rate: dict[str, Any], *, interval: bool = True) -> str:
    if rate["share"] is None:
        return ""
    share = f"{100 * rate['share']:.1f} %"
    return f"{share} ({100 * rate['low']:.1f}–{100 * rate['high']:.1f})" if interval else share


def detection_totals_table(data: dict[str, Any]) -> str:
    """Every total of the evaluation half."""
    totals = data["halves"]["evaluation"]["totals"]
    rows = ["| | runs | share | 95 % interval |", "|---|---|---|---|"]
    for name, value in totals.items():
        if isinstance(value, dict) and value.get("share") is not None:
            span = f"{100 * value['low']:.1f} to {100 * value['high']:.1f} %"
            rows.append(f"| {name} | {value['hits']} of {value['of']} | {100 * value['share']:.1f} % | {span} |")
    share = totals["median share of steps until a finding"]
    rows.append(
        f"| steps until a finding, median share of the training (faults present from the start) | | {100 * share:.1f} % | |"
    )
    return "\n".join(rows)


def detection_first_table(data: dict[str, Any]) -> str:
    """The first reading of the evaluation half beside the present one."""
    now = json.loads((RESULTS / "detection.json").read_text(encoding="utf-8"))["halves"]["evaluation"]["totals"]
    rows = ["| | blind | after the repairs, no longer blind |", "|---|---|---|"]
    for name in (
        "recall",
        "false alarms",
        "right cause",
        "right cause of those found",
        "right site",
        "early errors on well runs",
    ):
        rows.append(f"| {name} | {_rate(data['evaluation'][name])} | {_rate(now[name])} |")
    return "\n".join(rows)


def detection_sentence(data: dict[str, Any]) -> str:
    """What the README says of the first reading."""
    recall, alarms = (_rate(data["evaluation"][name]) for name in ("recall", "false alarms"))
    return (
        f"The first, blind reading of the evaluation half had a recall of {recall} and false alarms in {alarms}; the table is "
        "from after\nthe repairs that it led to, and no longer blind."
    )


def detection_rules_table(data: dict[str, Any]) -> str:
    """Per rule, on the evaluation half."""
    rows = [
        "| rule | sick runs | found | right cause | first step, median | errors on well runs |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in data["halves"]["evaluation"]["rules"].items():
        found, cause, alarms = (r[k] for k in ("recall", "right cause", "errors on well runs"))
        first = f"{r['median first step']:.0f}" if r["median first step"] is not None else ""
        own = f"{found['of']} | {_rate(found)} | {_rate(cause)}" if found["of"] else "0 | | "
        rows.append(f"| [`{name}`](rules/{name}.md) | {own} | {first} | {alarms['hits']} of {alarms['of']} |")
    return "\n".join(rows)


def detection_peers_table(data: dict[str, Any]) -> str:
    """Peers on the trainings of the evaluation half."""
    rows = [
        "| | recall | false alarms | with its warnings: recall | false alarms | could not be run on |",
        "|---|---|---|---|---|---|",
    ]
    own = data["same trainings"]
    rows.append(f"| **gradiometer** | {_rate(own['recall'])} | {_rate(own['false alarms'])} | | | 0 |")
    first = data["same trainings, first reading"]
    rows.append(f"| gradiometer, blind | {_rate(first['recall'])} | {_rate(first['false alarms'])} | | | 0 |")
    for peer, p in data.get("peers", {}).items():
        cells = (p["recall"], p["false alarms"], p["recall with warnings"], p["false alarms with warnings"])
        rows.append(f"| {peer} | {' | '.join(_rate(c) for c in cells)} | {p['could not be run on']} |")
    return "\n".join(rows)


def detection_mistakes_list(data: dict[str, Any]) -> str:
    """Every mistake on the evaluation half with what docs/mistakes.toml says of it."""
    said = tomllib.loads((ROOT / "docs" / "mistakes.toml").read_text(encoding="utf-8"))
    totals = data["halves"]["evaluation"]["totals"]
    lines: list[str] = []
    for kind in ("misses", "false alarms on", "wrong cause on", "wrong site on"):
        for entry in totals[kind]:
            name = entry.split(": ")[0]
            lines.append(f"- {kind.removesuffix(' on')}: `{entry}`. {said.get(kind, {}).get(name, 'Not explained.')}")
    return "\n".join(lines) or "None."


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


def depth_table(data: dict[str, Any]) -> str:
    """Benchmark results of benchmarks/depth.py."""
    rows = [
        "| network | untreated: root cause | training accuracy | prescription | cost in trials "
        "| training accuracy | test accuracy |",
        f"|{'---|' * 7}",
    ]
    for r in data["rows"]:
        name = f"{r['layers']:,} layers of {r['width']} units, {r['activation']}{', plain' if r['plain'] else ''}"
        before, after = r["before"], r["after"]
        ill = f"`{before['errors'][0]}`" if before["errors"] else "nothing"
        end = f"{after['training']:.3f} | {after['test']:.3f}" if after else "– | –"
        told = f"`{r['prescription']}`" if r["prescription"] else r["outcome"]
        rows.append(f"| {name} | {ill} | {before['training']:.3f} | {told} | {r['spent']:.1f} | {end} |")
    return "\n".join(rows)


HALVES = ("building", "blind")
"""Of benchmarks/forecast.py: the one that was looked at, and the other."""


def cure_table(data: dict[str, Any]) -> str:
    """Cure rates of theory, chance and a published tool at equal cost."""
    told = ("proposals", "cured, where a cure is known", "cured, of all", "harmful", "called cured, far from the reference")
    head = "| " + " | ".join([*told, "cost of a cure, trials", "cures per 100 trials"]) + " |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for arm, numbers in data["arms"].items():
        known, every, harmful = (numbers[k] for k in ("cure rate where a cure is known", "cure rate of all", "harmful cures"))
        of_all = f"{every['hits']} of {every['of']}"
        unlike = numbers["called cured and still clearly worse than the reference"]
        cost, per = numbers["median cost of a cure"], numbers["cures per hundred trials"]
        lines.append(
            f"| {arm} | {_rate(known)} | {of_all} | {harmful['hits']} of {harmful['of']} | {unlike} | {cost} | {per} |"
        )
    return "\n".join(lines)


def lab_pages_table() -> str:
    """The pages of the lab."""
    rows = [f"| {p.title} | {p.summary} |" for p in map(lab_page, LAB_PAGES)]
    return "\n".join(["| page | what it shows |", "|---|---|", *rows])


def redraw_table(data: dict[str, Any]) -> str:
    """How long a reader of the lab waits."""
    facts, opened = data["facts"], data["seconds to the first page"]
    lines = ["| page | moves | median, ms | lowest | highest | above 150 ms |", "|---|---|---|---|---|---|"]
    for row in data["pages"]:
        numbers = (row[key] for key in ("page", "moves", "median", "min", "max", "over the aim"))
        lines.append("| " + " | ".join(str(n) for n in numbers) + " |")
    where = f"{facts['cores']} cores at a load of {facts['load']}"
    return "\n".join([*lines, "", f"On {where}. The first page of a fresh server is there after {opened[0]:.2f} s."])


def forecast_readme_table(data: dict[str, Any]) -> str:
    """Benchmark results of benchmarks/forecast.py in one line a half."""
    rows = [
        "| half | networks | error of log10 gain, median | inside the 90 % interval | sick: precision | recall |",
        f"|{'---|' * 6}",
    ]
    for half, found in _forecast_halves(data):
        group = found["groups"]["all"]
        gain, verdict = group["gain"], group["check"]
        rows.append(
            f"| {half} | {group['n']} | {gain['median error']:.3f} decades | {100 * gain['inside']:.0f} % "
            f"| {verdict['precision']:.2f} | {verdict['recall']:.2f} |"
        )
    return "\n".join(rows)


def theory_edge_table() -> str:
    """Critical points of every activation, from the code."""
    biases = (0.05, 0.1, 0.2, 0.5, 1.0)
    rows = [f"| activation | {' | '.join(f'sigma_b = {b:g}' for b in biases)} |", f"|{'---|' * (len(biases) + 1)}"]
    for row in ACTIVATIONS:
        cells: list[str] = []
        for bias in biases:
            points = edge_at(row.name, bias)
            said = [f"{p.sigma_w:.5f}; {p.q:.5g}; {p.chi_parallel:.3f}" for p in points]
            cells.append(", ".join(t if p.stable else f"*{t}*" for t, p in zip(said, points, strict=True)) or "none")
        rows.append(f"| `{row.name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def theory_gain_table() -> str:
    """Gain per layer of every activation by initialisation, from the code."""
    scales = (("PyTorch's default", 3**-0.5), ("LeCun, Xavier", 1.0), ("He", 2**0.5))
    rows = [f"| activation | {' | '.join(name for name, _ in scales)} |", f"|{'---|' * (len(scales) + 1)}"]
    for row in ACTIVATIONS:
        rows.append(f"| `{row.name}` | {' | '.join(_gain_cell(row.name, scale) for _, scale in scales)} |")
    return "\n".join(rows)


def _gain_cell(name: str, sigma_w: float) -> str:
    field = MeanField(name, sigma_w)
    try:
        gain = field.gain
    except GradiometerError:
        return "the length has no limit"
    shrinks, grows = field.layers_until(1e-6), field.layers_until(1e6)
    if min(shrinks, grows) > 1e6:
        return f"{gain:.4f}; keeps its size"
    return f"{gain:.4f}; {min(shrinks, grows):.1f} layers to 10^{'-6' if shrinks < grows else '6'}"


def theory_points_table() -> str:
    """What a critical initialisation is for every activation, from the code."""
    rows = [
        "| activation | critical initialisation | Var J per layer, orthogonal / Gaussian | unit-variance gain; chi there |",
        "|---|---|---|---|",
    ]
    for row in ACTIVATIONS:
        gain = unit_variance_gain(row.name)
        last = f"{gain:.5f}; {MeanField(row.name, gain).chi(1.0):.4f}"
        try:
            point = critical_initialisation(row.name)
        except GradiometerError as error:
            rows.append(f"| `{row.name}` | {error.message} | | {last} |")
            continue
        q = point.q or 1e-8
        spread = " / ".join(f"{abs(jacobian_variance(row.name, q, 1, orthogonal=o)):.3f}" for o in (True, False))
        rows.append(
            f"| `{row.name}` | sigma_w {point.sigma_w:.5f}, sigma_b {point.sigma_b:g}, q {point.q:.5g} | {spread} | {last} |"
        )
    return "\n".join(rows)


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
    tables = {"rules": rules_table(), "remedies": remedies_table()}
    if "<!-- pages" in text:
        tables["pages"] = lab_pages_table()
    if "<!-- theory" in text:
        tables |= {
            "theory edge": theory_edge_table(),
            "theory gains": theory_gain_table(),
            "theory points": theory_points_table(),
        }
    makers = (
        ("overhead", overhead_table, "overhead"),
        ("detection", detection_table, "detection"),
        ("detection sentence", detection_sentence, "detection_first_reading"),
        ("detection first", detection_first_table, "detection_first_reading"),
        ("detection totals", detection_totals_table, "detection"),
        ("detection rules", detection_rules_table, "detection"),
        ("detection peers", detection_peers_table, "detection"),
        ("detection mistakes", detection_mistakes_list, "detection"),
        ("trainable_depth", trainable_depth_table, "trainable_depth"),
        ("trainable_depth reading", trainable_depth_reading, "trainable_depth"),
        ("depth", depth_table, "depth"),
        ("cure rates", cure_table, "cure"),
        ("redraw", redraw_table, "lab"),
        ("forecast readme", forecast_readme_table, "forecast"),
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
    with_tables = (
        ROOT / "README.md",
        ROOT / "docs" / "trainable-depth.md",
        ROOT / "docs" / "forecast.md",
        ROOT / "docs" / "theory.md",
        ROOT / "docs" / "error-rates.md",
        ROOT / "docs" / "cure.md",
        ROOT / "docs" / "lab.md",
    )
    rules = {ROOT / "docs" / "rules" / f"{name}.md": rule_page(name, doc) for name, doc in RULE_TEXTS.items()}
    remedies = {ROOT / "docs" / "remedies" / f"{remedy.name}.md": remedy_page(remedy) for remedy in REMEDIES}
    return {
        ROOT / "docs" / "rules.md": rules_page(),
        **rules,
        ROOT / "docs" / "remedies.md": remedies_page(),
        **remedies,
        **{p: filled(p.read_text(encoding="utf-8")) for p in with_tables},
    }


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
