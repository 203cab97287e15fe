"""The lab in a real browser: what every page can do, with pages that cost nothing; and every real page once."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import standins
from gradiometer.app import export as exporting
from gradiometer.app.pages import NAMES
from gradiometer.app.pages import page as page_named
from gradiometer.app.scene import Choice, LabPage, Slider, State
from serving import served

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Open = Callable[..., "Page"]
SLOW = 30_000


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose pages are stand-ins; gives its link."""
    pages = {name: standins.page(name, i) for i, name in enumerate(NAMES, 1)}
    monkeypatch.setattr("gradiometer.app.server.page_named", pages.__getitem__)
    monkeypatch.setattr("gradiometer.app.server.all_pages", lambda: tuple(pages.values()))
    with served() as link:
        yield link


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    with served() as link:
        yield link


def at(link: str, path: str) -> str:
    """The link to another page of the server, in a state."""
    page, mark, state = path.partition("#")
    return link.replace("/?", f"{page}?") + mark + state


def shown(page: Page, state: str) -> None:
    """Wait until the scene of a state is there."""
    from playwright.sync_api import expect

    expect(page.locator("#main")).to_have_attribute("data-link", state, timeout=SLOW)
    expect(page.locator("#main")).to_have_attribute("data-busy", "false", timeout=SLOW)


def reveal(page: Page) -> None:
    page.get_by_role("button", name="Show it without a guess").click()


def tables(page: Page) -> list[list[list[str]]]:
    """Every data table on the page, opened, cell by cell."""
    from playwright.sync_api import expect

    held = page.locator(".tools:not([hidden]) details.data")
    held.evaluate_all("all => all.forEach(details => { details.open = true; })")
    expect(held.locator("table")).to_have_count(held.count())
    return held.locator("table").evaluate_all("all => all.map(t => [...t.rows].map(r => [...r.cells].map(c => c.textContent)))")


def wanted(page: LabPage, state: State) -> list[list[list[str]]]:
    """The same tables as the engine has them."""
    scene = page.show(state)
    drawn = [e.table for e in scene.exhibits if not e.figure.layout.meta["empty"]]
    return [[list(t.columns), *(list(line) for line in t.lines)] for t in drawn]


def violations(page: Page) -> list[str]:
    """What axe-core finds against WCAG 2, levels A and AA."""
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})")
    return [f"{v['id']}: {n['html'][:160]}: {n['failureSummary']}" for v in found["violations"] for n in v["nodes"]]


# ---- every page, by a stand-in -----------------------------------------------------------------------------------------


def test_a_guess_comes_first_and_is_answered(stand_in: str, open_page: Open) -> None:
    from playwright.sync_api import expect

    page = open_page(at(stand_in, "/lab/depth"))
    expect(page.locator("#bench")).to_be_hidden()
    expect(page.get_by_role("button", name="Show me")).to_be_disabled()
    page.get_by_label("At 0").check()
    page.get_by_role("button", name="Show me").click()
    expect(page.locator("#answered")).to_have_text("Not so. The sine of 1 is 0.84.")
    shown(page, "")
    expect(page.locator("#plot-wave svg.main-svg").first).to_be_visible()
    page.get_by_label("Above 0.5").check()
    page.get_by_role("button", name="Show me").click()
    expect(page.locator("#answered")).to_contain_text("Right.")


def test_controls_make_the_address_and_the_address_makes_the_page(stand_in: str, open_page: Open) -> None:
    from playwright.sync_api import expect

    page = open_page(at(stand_in, "/lab/depth"))
    assert "token" not in page.url
    reveal(page)
    shown(page, "")
    page.get_by_label("Rate").focus()
    page.keyboard.press("ArrowRight")
    shown(page, "rate=1.5")
    expect(page.locator("#o-rate")).to_have_text("1.5 1/s")
    expect(page.get_by_label("Rate")).to_have_attribute("aria-valuetext", "1.5 1/s")
    page.get_by_label("Twice as big").check()
    shown(page, "rate=1.5&big=on")
    page.get_by_label("Kind").select_option("cosine")
    shown(page, "rate=1.5&kind=cosine&big=on")
    state = {"rate": 1.5, "kind": "cosine", "big": True}
    assert tables(page) == wanted(standins.page("depth"), state)
    expect(page.locator("#figure-again")).to_contain_text("There is nothing to see with a cosine.")

    again = open_page(at(stand_in, "/lab/depth") + "#" + page.url.split("#")[1])
    shown(again, "rate=1.5&kind=cosine&big=on")
    assert tables(again) == tables(page)
    assert again.locator("#readings").inner_text() == page.locator("#readings").inner_text()
    again.get_by_role("button", name="As it opened").click()
    shown(again, "")
    assert "#" not in again.url
    again.get_by_role("button", name="Fast").click()
    shown(again, "rate=5")
    expect(again.get_by_role("button", name="Fast")).to_have_attribute("aria-pressed", "true")
    expect(again.locator("#lesson")).to_have_text("It ends below 0.")


def test_a_link_that_is_wrong_is_told_and_the_rest_is_shown(stand_in: str, open_page: Open) -> None:
    from playwright.sync_api import expect

    page = open_page(at(stand_in, "/lab/depth") + f"#rate=2&{standins.EVIL}=1&kind=tangent")
    shown(page, "rate=2")
    expect(page.locator("#status")).to_contain_text("kind=tangent; the rest of the link is shown.")
    assert page.locator("img").count() == 0


def test_text_from_python_is_text(stand_in: str, open_page: Open) -> None:
    page = open_page(at(stand_in, "/lab/depth#big=on"))
    shown(page, "big=on")
    assert page.locator("#readings li").all_inner_texts()[1] == standins.EVIL
    assert page.locator("#title-again").inner_text() == standins.EVIL
    assert page.locator("#figure-wave .note").inner_text() == standins.EVIL
    assert page.locator("img").count() == 0


def test_moments_are_stepped_played_and_scrubbed(stand_in: str, open_page: Open) -> None:
    from playwright.sync_api import expect

    page = open_page(at(stand_in, "/lab/depth#rate=2"))
    shown(page, "rate=2")
    label = page.locator("#moment-label")
    ball = "document.getElementById('plot-wave').data[1]"
    expect(label).to_have_text("moment 20: 0.909")
    page.get_by_role("button", name="To the start").click()
    expect(label).to_have_text("moment 0: 0.000")
    page.get_by_role("button", name="One step on").click()
    expect(label).to_have_text("moment 1: 0.100")
    assert page.evaluate(f"[{ball}.x[0], {ball}.marker.size, {ball}.marker.color]") == [0.05, 6, "#D55E00"]
    page.get_by_role("button", name="One step back").click()
    expect(label).to_have_text("moment 0: 0.000")
    page.get_by_label("Moment", exact=True).focus()
    page.keyboard.press("End")
    expect(label).to_have_text("moment 20: 0.909")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.get_by_role("button", name="Play")).to_be_visible(timeout=10_000)
    expect(label).to_have_text("moment 20: 0.909")


def test_the_keyboard_alone_suffices(stand_in: str, open_page: Open) -> None:
    from playwright.sync_api import expect

    page = open_page(at(stand_in, "/lab/depth"))
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Show me")).to_be_focused()
    page.keyboard.press("Enter")
    shown(page, "")
    reached: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    everything = [
        "Fast",
        "Between",
        "defaults",
        "c-rate",
        "c-kind",
        "c-big",
        "Play",
        "moment",
        "plot-wave",
        "Data table",
        "CSV",
        "SVG",
    ]
    assert [name for name in everything if name not in reached] == []


def test_numbers_and_pictures_are_taken_away(stand_in: str, open_page: Open) -> None:
    page = open_page(at(stand_in, "/lab/depth#rate=2"))
    shown(page, "rate=2")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save Wave as CSV").click()
    assert saved.value.suggested_filename == "gradiometer-wave.csv"
    rows = list(csv.reader(io.StringIO(Path(saved.value.path()).read_text())))
    assert rows == wanted(standins.page("depth"), {**standins.page("depth").default, "rate": 2.0})[0]
    for kind, begins in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with page.expect_download() as saved:
            page.get_by_role("button", name=f"Save Wave as {kind}").click()
        assert saved.value.suggested_filename == f"gradiometer-wave.{kind.lower()}"
        assert Path(saved.value.path()).read_bytes().startswith(begins)


def test_cells_that_a_spreadsheet_would_run_are_text(stand_in: str, open_page: Open) -> None:
    page = open_page(at(stand_in, "/lab/depth"))
    lines = '{columns: ["a,b", "c"], lines: [["=1+1", "-0.5"], ["@x", \'say "hi"\'], ["-x", "1\\n2"]]}'
    assert page.evaluate(f"csv({lines})") == '"a,b",c\r\n\'=1+1,-0.5\r\n\'@x,"say ""hi"""\r\n\'-x,"1\n2"\r\n'


def test_a_server_that_is_gone_is_said_and_what_is_shown_stays(monkeypatch: pytest.MonkeyPatch, chromium: Any) -> None:
    from playwright.sync_api import expect

    monkeypatch.setattr("gradiometer.app.server.page_named", standins.page)
    context = chromium.new_context()
    try:
        with served() as link:
            monkeypatch.setattr("gradiometer.app.server.all_pages", lambda: (standins.page("depth"),))
            page = context.new_page()
            page.goto(at(link, "/lab/depth#rate=2"))
            shown(page, "rate=2")
        page.get_by_label("Rate").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#status")).to_have_text("The server does not answer. Start it again with: gradiometer lab")
        expect(page.locator("#readings")).to_contain_text("0.909")
    finally:
        context.close()


def test_the_lab_from_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_page: Open) -> None:
    from playwright.sync_api import expect

    monkeypatch.setattr("gradiometer.app.pages.page", standins.page)
    home = exporting.export(tmp_path / "lab").as_uri()
    page = open_page(home)
    page.locator(".path a").nth(2).click()
    expect(page).to_have_title("Page 1 · Gradiometer")
    reveal(page)
    shown(page, "")
    page.get_by_label("Rate").focus()
    page.keyboard.press("ArrowRight")
    shown(page, "rate=5")
    assert tables(page) == wanted(standins.page("depth"), {**standins.page("depth").default, "rate": 5.0})
    again = open_page(page.url)
    shown(again, "rate=5")
    assert tables(again) == tables(page)


# ---- the real pages ----------------------------------------------------------------------------------------------------


def test_home_leads_to_every_page(real: str, open_page: Open) -> None:
    page = open_page(real)
    titles = page.locator(".path b").all_inner_texts()
    assert titles == [page_named(name).title for name in NAMES]
    assert [a.get_attribute("href") for a in page.locator(".path a").all()] == [f"/lab/{name}" for name in NAMES]
    assert violations(page) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_page_draws_what_the_engine_says(name: str, real: str, open_page: Open) -> None:
    known = page_named(name)
    page = open_page(at(real, f"/lab/{name}"))
    reveal(page)
    shown(page, "")
    assert tables(page) == wanted(known, known.default)
    for plot in page.locator(".plot:visible").all():
        assert plot.get_attribute("data-drawn") == "light"
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert violations(page) == []
    page.get_by_role("button", name="Dark theme").click()
    page.wait_for_timeout(300)
    assert violations(page) == []
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0

    control = known.controls[-1]
    state = {**known.default, control.name: _other(control)}
    again = open_page(at(real, f"/lab/{name}#{known.link(state)}"))
    shown(again, known.link(state))
    assert tables(again) == wanted(known, state)


def _other(control: Any) -> Any:
    match control:
        case Slider():
            return next(s for s in control.stops if s != control.default)
        case Choice():
            return next(v for v, _ in control.options if v != control.default)
        case _:
            return not control.default


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("strategies", "doctor")])
def test_every_control_is_worked_by_the_keyboard_and_changes_a_figure(name: str, real: str, open_page: Open) -> None:
    known = page_named(name)
    page = open_page(at(real, f"/lab/{name}"))
    reveal(page)
    shown(page, "")
    drawn = "JSON.stringify([...document.querySelectorAll('.plot')].map(p => p.data))"
    for control in known.controls:
        page.get_by_role("button", name="As it opened").click()
        shown(page, "")
        before = page.evaluate(drawn)
        page.locator(f"#c-{control.name}").focus()
        for key in ("Space",) if not isinstance(control, Slider | Choice) else ("ArrowRight", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
            if re.search(rf"\b{control.name}=", page.evaluate("location.hash")):
                break
        link = page.evaluate("location.hash").removeprefix("#")
        assert link.startswith(f"{control.name}="), control.name
        shown(page, link)
        assert page.evaluate(drawn) != before, control.name
