"""The report page: well-formed, self-contained, escaped, and true to the summary."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import traces
from gradiometer.record.run import Run
from gradiometer.record.trace import Trace
from gradiometer.report.html import json_for_script, render, with_code
from gradiometer.report.summary import Summary, summarise
from gradiometer.types import Role

EVIL = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(2)</script>"


def summary_of(trace: Trace, folder: Path = Path("runs/a"), command: tuple[str, ...] = ("python", "train.py")) -> Summary:
    run = Run(folder, {"schema": 1, "gradiometer": "0.1.0", "command": list(command), "started": "2026-01-01T00:00:00"})
    run.__dict__["trace"] = trace  # a cached property: nothing is read from disk
    return summarise(run)


SICK = traces.make(8, gradient=traces.ramp(17, -16.0, 0.0), loss=traces.FLAT, saturated=0.1)
HOSTILE = traces.make(
    [traces.output(f"{(EVIL, SCRIPT)[k % 2]}{k}", Role.ACTIVATION if k % 2 else Role.LINEAR) for k in range(12)],
    gradient=traces.ramp(12, -16.0, 0.0),
    loss=traces.FLAT,
    saturated=0.99,
)


class Page(HTMLParser):
    """Elements of a page as (tag, attributes), and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.words: list[str] = []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag == "script":
            self.scripts.append((self.elements[-1][1], ""))

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._in != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(summary_of(SICK)))


@pytest.fixture(scope="module")
def hostile() -> str:
    return render(summary_of(HOSTILE, Path(f"runs/{EVIL}"), ("python", EVIL, SCRIPT)))


def test_one_heading_and_an_outline_without_gaps(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_ids_are_unique_and_every_link_has_a_goal(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in page.all("a")]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    references = [word for _, a in page.elements for word in a.get("aria-labelledby", "").split()]
    assert set(references) <= set(ids)


def test_everything_the_page_needs_is_in_it(page: Page) -> None:
    assert not [a for tag, a in page.elements if "src" in a]
    assert all(a["href"].startswith("data:") for a in page.all("link"))
    own = [text for attributes, text in page.scripts if not text.lstrip().startswith("/**")]
    assert not [text for text in own if re.search(r"https?://", text)]
    assert not re.search(r"url\(|@import", "".join(a.get("style", "") for _, a in page.elements))


def test_only_our_scripts_may_run(page: Page) -> None:
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    executed = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert len(executed) == 3
    for text in executed:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_every_figure_has_a_text_alternative_and_a_table(page: Page) -> None:
    plots = [a for _, a in page.elements if a.get("class") == "plot"]
    assert [p["data-figure"] for p in plots] == ["heatmap", "depth-profile", "layer-gain", "loss", "activations"]
    assert all(p["role"] == "img" and p["aria-label"] and p["tabindex"] == "0" for p in plots)
    assert len([a for a in page.all("details") if a.get("class") == "data"]) == len(plots)
    assert len(page.all("caption")) >= len(plots)


def test_the_page_says_what_the_summary_says(page: Page) -> None:
    summary = summary_of(SICK)
    text = page.text
    assert summary.sentence.replace("`", "").split("(")[0].strip()[:30] in text
    for finding in summary.diagnosis.findings:
        assert f"gradiometer explain {finding.rule}" in text
        for evidence in finding.evidence:
            assert evidence.source in text.replace("`", "")
    assert "What would change my mind:" in text
    assert "gradiometer run -- python train.py" in text


def test_figures_in_the_page_are_those_of_the_run(page: Page) -> None:
    (data,) = [text for attributes, text in page.scripts if attributes.get("id") == "report-data"]
    figures = json.loads(data)["figures"]
    assert set(json.loads(data)["templates"]) == {"light", "dark"}
    assert all("template" not in f["layout"] and "title" not in f["layout"] for f in figures.values())
    assert figures["heatmap"]["data"][0]["zmin"] == -6.0


def test_names_commands_and_folders_are_text(hostile: str) -> None:
    page = Page(hostile)
    assert EVIL in page.text
    assert not page.all("img")
    assert len(page.scripts) == 4
    assert "onerror" not in {key for _, attributes in page.elements for key in attributes}
    assert EVIL not in hostile
    assert SCRIPT not in hostile


def test_json_in_a_script_cannot_end_it() -> None:
    value = {"name": "</script><!-- & \u2028\u2029"}
    text = json_for_script(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_backticks_become_code_and_nothing_else_does() -> None:
    assert with_code("from `a<b` to <b>") == "from <code>a&lt;b</code> to &lt;b&gt;"
    assert with_code("an odd ` one") == "an odd ` one"


def test_a_run_without_a_record_is_a_short_page_that_says_what_to_do() -> None:
    text = render(summary_of(traces.empty()))
    assert len(text) < 60_000
    page = Page(text)
    assert "No training step was seen." in page.text
    assert "What to do now" in page.text
    assert not [a for _, a in page.elements if a.get("class") == "plot"]


def test_steps_without_a_look_still_show_the_loss() -> None:
    page = Page(render(summary_of(traces.make(3, looks=()))))
    assert [a["data-figure"] for _, a in page.elements if a.get("class") == "plot"] == ["loss"]
    assert "--every" in page.text


@pytest.mark.parametrize("verdict", ["well", "sick", "unknown"])
def test_the_verdict_is_a_word_not_only_a_colour(verdict: str) -> None:
    trace = {"well": traces.make(8), "sick": SICK, "unknown": traces.make(8, looks=(0, 1), loss=np.ones(3))}[verdict]
    summary = summary_of(trace)
    assert summary.diagnosis.verdict.value == verdict
    page = Page(render(summary))
    assert f"{verdict.capitalize()} " in page.text
    assert any(a.get("class") == f"verdict {verdict}" for a in page.all("section"))


def test_a_long_deep_run_stays_under_seven_megabytes() -> None:
    looks = 5_000  # past the bound on columns: more looks make no larger page
    gradient = np.random.default_rng(0).normal(size=(looks, 199))
    text = render(summary_of(traces.make(99, looks=range(looks), gradient=gradient, loss=np.linspace(3, 1, 10_000))))
    assert len(text.encode()) < 7_000_000
