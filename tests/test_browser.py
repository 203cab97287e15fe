"""The report in a real browser: opens from disk, offline, for the keyboard, in both themes and on a narrow screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import traces
from gradiometer.record.frames import Group
from gradiometer.report.html import render
from test_html import EVIL, HOSTILE, SICK, summary_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Open = Callable[..., "Page"]
NAN = np.zeros((len(traces.LOOKS), 17 + 9), dtype=bool)
NAN[6:, 3:9] = True
PAGES = {
    "sick": SICK,
    "hostile": HOSTILE,
    "nan": traces.make(8, gradient=np.where(NAN[:, :17], np.nan, 0.0), nonfinite={Group.GRADIENT: NAN}),
    "two": traces.make([*traces.stack(3, 0, "actor."), *traces.stack(2, 1, "critic.")]),
    "empty": traces.empty(),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    for name, trace in PAGES.items():
        (folder / f"{name}.html").write_text(render(summary_of(trace, Path(f"runs/{name}"))), encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in PAGES}


def drawn(page: Page, theme: str = "light") -> None:
    """Wait until every figure is there in this theme."""
    from playwright.sync_api import expect

    for plot in page.locator(".plot").all():
        expect(plot).to_have_attribute("data-drawn", theme)
        expect(plot.locator("svg.main-svg").first).to_be_visible()


def hover_text(page: Page) -> str:
    """What the heatmap says of its lower left cell."""
    plot = page.locator("#plot-heatmap")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 30, box["y"] + box["height"] - 12)
    page.mouse.move(box["x"] + 32, box["y"] + box["height"] - 6)
    label = plot.locator(".hovertext text").first
    label.wait_for(timeout=5_000)
    return (label.text_content() or "").replace("\u200b", "")


def overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("name", PAGES)
def test_opens_from_disk_draws_everything_and_fits_any_width(name: str, pages: dict[str, str], open_page: Open) -> None:
    from playwright.sync_api import expect

    page = open_page(pages[name])
    drawn(page)
    assert page.locator(".plot").count() == (0 if name == "empty" else page.locator("details.data").count())
    for details in page.locator("details.data > summary").all():
        details.click()
    for width in (1600, 768, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert overflow(page) <= 0, width
    for plot in page.locator(".plot").all():
        expect(plot).to_have_attribute("data-width", "narrow")


def test_the_keyboard_alone_reaches_findings_evidence_and_tables(pages: dict[str, str], open_page: Open) -> None:
    from playwright.sync_api import expect

    page = open_page(pages["sick"])
    drawn(page)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator(".findings a").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#finding-1")).to_be_focused()
    expect(page.locator("#finding-1")).to_be_in_viewport()
    page.locator(".findings a").last.focus()
    page.keyboard.press("Tab")
    expect(page.locator("#plot-heatmap")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#figure-heatmap summary")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#figure-heatmap table")).to_be_visible()


def test_the_theme_follows_the_system_and_the_button(pages: dict[str, str], open_page: Open) -> None:
    page = open_page(pages["sick"], theme="dark")
    drawn(page, "dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    tick = "getComputedStyle(document.querySelector('#plot-heatmap .xtick text')).fill"
    dark = page.evaluate(colour), page.evaluate(tick)
    page.get_by_role("button", name="Light theme").click()
    drawn(page, "light")
    light = page.evaluate(colour), page.evaluate(tick)
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Dark theme").click()
    drawn(page, "dark")
    page.emulate_media(media="print")
    assert page.evaluate(colour) == "rgb(255, 255, 255)"


def luminance(colour: str) -> float:
    channels = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(theme: str, pages: dict[str, str], open_page: Open) -> None:
    page = open_page(pages["sick"], theme=theme)
    drawn(page, theme)
    pairs = page.evaluate("""() => {
      const ground = (node) => {
        for (let n = node; n; n = n.parentElement) {
          const c = getComputedStyle(n).backgroundColor;
          if (c !== "rgba(0, 0, 0, 0)" && c !== "transparent") return c;
        }
        return "rgb(255, 255, 255)";
      };
      const out = [];
      for (const node of document.querySelectorAll("main *, header *, footer *")) {
        if (node.closest("svg") || node.closest("noscript") || !node.checkVisibility()) continue;
        if (![...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim())) continue;
        out.push([getComputedStyle(node).color, ground(node), node.textContent.trim().slice(0, 40)]);
      }
      for (const text of document.querySelectorAll(".plot .xtick text, .plot .ytick text, .plot .g-xtitle text")) {
        out.push([getComputedStyle(text).fill, ground(text.closest(".plot")), text.textContent]);
      }
      return out;
    }""")
    assert len(pairs) > 100
    for fore, back, text in pairs:
        high, low = sorted((luminance(fore), luminance(back)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (fore, back, text)


def test_a_hostile_name_is_shown_as_text(pages: dict[str, str], open_page: Open) -> None:
    page = open_page(pages["hostile"])
    drawn(page)
    assert page.locator("main img").count() == 0
    page.locator("#figure-heatmap summary").click()
    assert EVIL in page.locator("#figure-heatmap tbody th").first.inner_text()
    ticks = page.locator("#plot-heatmap .ytick text").all_text_contents()
    assert any(tick.startswith("<img src") for tick in ticks)
    assert EVIL in hover_text(page)


def test_the_table_holds_the_numbers_of_the_summary(pages: dict[str, str], open_page: Open) -> None:
    page = open_page(pages["sick"])
    page.locator("#figure-depth-profile summary").click()
    lines = page.locator("#figure-depth-profile tbody tr").all_inner_texts()
    for line, row in zip(lines, summary_of(SICK).profile, strict=True):
        name, _, gradient, signal = line.split("\t")
        assert name == row.site.name
        assert float(gradient) == pytest.approx(row.log10_gradient, abs=0.006)
        assert float(signal) == pytest.approx(row.log10_signal, abs=0.006)


def test_hover_names_the_layer_and_the_step(pages: dict[str, str], open_page: Open) -> None:
    page = open_page(pages["sick"])
    drawn(page)
    text = hover_text(page)
    assert "fc0" in text
    assert "step 0" in text


def test_a_picture_can_be_saved_by_keyboard(pages: dict[str, str], open_page: Open) -> None:
    page = open_page(pages["sick"], theme="dark")
    drawn(page, "dark")
    for kind in ("SVG", "PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save Loss as {kind}").press("Enter")
        assert download.value.suggested_filename == f"gradiometer-loss.{kind.lower()}"
        assert Path(download.value.path()).stat().st_size > 1_000


def test_without_scripts_the_words_and_numbers_remain(pages: dict[str, str], open_page: Open) -> None:
    page = open_page(pages["sick"], scripts=False)
    assert page.locator("h1").is_visible()
    page.locator("#figure-heatmap summary").click()
    assert page.locator("#figure-heatmap table").is_visible()
