"""The docs say what the code and the benchmarks say, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from gradiometer.remedies import NAMES, REMEDIES
from gradiometer.remedies.base import Remedy
from gradiometer.rules import RULES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HEADINGS = ["What it finds", "Why it hurts", "How we tell", "When it is wrong", "What helps", "References"]

REMEDY_HEADINGS = ["What it does", "When it helps", "When it does not", "Cost", "References"]


def script(name: str) -> ModuleType:
    """One of the scripts in docs, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date() -> None:
    for path, text in script("generate").pages().items():
        assert path.read_text(encoding="utf-8") == text, "run python docs/generate.py"


def test_picture_of_trainable_depth_shows_the_results() -> None:
    drawing = script("trainable_depth")
    figure = drawing.figure(json.loads(drawing.RESULTS.read_text(encoding="utf-8")))
    drawn = (ROOT / "docs" / "images" / "trainable-depth.svg").read_text(encoding="utf-8")
    numbers = next(trace.text for trace in figure.data if trace.type == "scatter" and trace.mode == "text")
    shown = Counter(re.findall(r">(\d\.\d\d)</text>", drawn))
    assert Counter(numbers) <= shown, "run python docs/trainable_depth.py"  # shown are ticks as well
    assert figure.layout.title.text.split("<", 1)[0] in drawn


def test_picture_of_the_forecast_shows_the_results() -> None:
    drawing = script("forecast_study")
    figure = drawing.figure(json.loads(drawing.RESULTS.read_text(encoding="utf-8")))
    drawn = (ROOT / "docs" / "images" / "forecast.svg").read_text(encoding="utf-8")
    points = sum(len(trace.x) for trace in figure.data if trace.mode == "markers")
    assert figure.layout.title.text in drawn, "run python docs/forecast_study.py"
    assert len(re.findall(r'<path class="point"', drawn)) == points
    for panel in figure.layout.annotations:
        assert panel.text in drawn


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_every_rule_explains_itself_under_the_same_headings(rule: object) -> None:
    found = re.findall(r"^(\w[\w ]*):$", rule.doc, flags=re.M)  # type: ignore[attr-defined]
    assert found == HEADINGS


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda r: r.name)
def test_every_remedy_explains_itself_under_the_same_headings(remedy: Remedy) -> None:
    assert re.findall(r"^(\w[\w ]*):$", remedy.text, flags=re.M) == REMEDY_HEADINGS
    page = (ROOT / "docs" / "remedies" / f"{remedy.name}.md").read_text(encoding="utf-8")
    assert re.findall(r"^\*\*(.+)\.\*\*$", page, flags=re.M) == [*REMEDY_HEADINGS, "Settings"]
    for option in remedy.options:
        assert f"| `{option.name}` |" in page


def test_no_page_is_left_of_a_remedy_that_is_gone() -> None:
    assert {p.stem for p in (ROOT / "docs" / "remedies").glob("*.md")} == set(NAMES)


@pytest.mark.parametrize("document", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        where = (document.parent / path).resolve() if path else document
        assert where.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", where.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", t).strip().lower().replace(" ", "-") for t in titles}, target


def test_decision_records_are_short() -> None:
    for path in (ROOT / "docs" / "decisions").glob("*.md"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 30, path.name


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_every_rule_has_a_picture_of_its_own_sick_and_well_training(rule: object) -> None:
    folder = ROOT / "docs" / "images" / "rules"
    name = rule.name  # type: ignore[attr-defined]
    drawn = (folder / f"{name}.svg").read_text(encoding="utf-8")
    assert drawn.count('class="trace scatter') == 2, "run python docs/rule_pictures.py"
    alt, sick, well = (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert "sick: " in alt
    assert "well: " in alt
    assert "zoo/" in sick
    assert "zoo/" in well
    page = (ROOT / "docs" / "rules" / f"{name}.md").read_text(encoding="utf-8")
    assert f"../images/rules/{name}.svg" in page


def test_every_mistake_that_is_published_is_explained() -> None:
    page = (ROOT / "docs" / "error-rates.md").read_text(encoding="utf-8")
    assert "Not explained" not in page
