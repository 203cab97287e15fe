"""Take pictures: of a report and of the lab for the README, or of every page in every theme and width to look at.

    python docs/screenshots.py [path/to/report.html]
    python docs/screenshots.py --every DIR

Without a path it runs the demo first. Needs the ``dev`` extra and Debian's chromium.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import plotly.graph_objects as go
from playwright.sync_api import Browser, Page, expect, sync_playwright

from gradiometer.app.pages import NAMES
from gradiometer.app.pages import page as page_named
from gradiometer.record.folder import RUNS_FOLDER

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1280, "height": 1600}


def demo_report(folder: Path) -> Path:
    """The report of the demo's first training, the one that vanishes."""
    subprocess.run([sys.executable, "-m", "gradiometer", "demo", "--out", str(folder)], check=True)
    return folder / RUNS_FOLDER / "vanishing" / "report.html"


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser that takes the pictures."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def take(report: Path) -> None:
    """Photograph the top of a report in both themes."""
    IMAGES.mkdir(exist_ok=True)
    with chromium() as browser:
        for theme, name in (("light", "report.png"), ("dark", "report-dark.png")):
            page = browser.new_page(viewport=SIZE, color_scheme=theme)
            page.goto(report.resolve().as_uri())
            for plot in page.locator(".plot").all():
                expect(plot).to_have_attribute("data-drawn", theme)
            page.screenshot(path=IMAGES / name)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The web app over the runs in a folder; gives its link."""
    command = [sys.executable, "-m", "gradiometer", "lab", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert process.stdout is not None
        yield next(line for line in process.stdout if line.startswith("Open ")).split()[1]
    finally:
        process.terminate()
        process.wait()


def open_lab(browser: Browser, link: str, address: str, theme: str, width: int, height: int = 1100) -> Page:
    """A page of the app with its figures drawn; a page of the lab without a guess."""
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme).new_page()
    page.goto(link)
    page.goto(link.split("/?")[0] + address)
    unasked = page.get_by_role("button", name="Show it without a guess")
    if unasked.is_visible():
        unasked.click()
    if address.startswith("/lab/"):
        expect(page.locator("#main")).to_have_attribute("data-drawn", "1", timeout=120_000)
    for plot in page.locator(".plot:visible").all():
        expect(plot).to_have_attribute("data-drawn", theme, timeout=60_000)
    return page


def every(folder: Path) -> None:
    """Photograph every page of the app, and every preset of the lab, to be looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        addresses = ["/", *(f"/lab/{name}" for name in NAMES)]
        for known in map(page_named, NAMES):
            addresses += [f"/lab/{known.name}#{known.link({**known.default, **preset.state})}" for preset in known.presets]
        with served(Path(place)) as link, chromium() as browser:
            for address in addresses:
                for theme, width in (("light", 1440), ("dark", 1440), ("light", 400)):
                    page = open_lab(browser, link, address, theme, width)
                    name = address.strip("/").replace("/", "-").replace("#", "-") or "home"
                    page.screenshot(path=folder / f"{name[:80]}-{theme}-{width}.png", full_page=True)
                    page.context.close()


def take_lab() -> None:
    """Photograph a page of the lab."""
    with tempfile.TemporaryDirectory() as place, served(Path(place)) as link, chromium() as browser:
        page = open_lab(browser, link, "/lab/depth", "light", 1440, 1300)
        page.screenshot(path=IMAGES / "lab.png")


def draw(fig: go.Figure, name: str, size: tuple[int, int], drawn: str) -> None:
    """Write docs/images/NAME.png, at twice the size, and .svg.

    Args:
        fig: the figure.
        name: of the files.
        size: width and height in pixels.
        drawn: selector, within the figure, of what is there once it is drawn.
    """
    width, height = size

    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        page_path = Path(folder) / "figure.html"
        fig.write_html(page_path, include_plotlyjs=True, div_id="figure", config={"staticPlot": True})
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(page_path.as_uri())
        page.wait_for_selector(f"#figure {drawn}")
        for form, scale in (("png", 2), ("svg", 1)):
            options = {"format": form, "width": width, "height": height, "scale": scale}
            address = page.evaluate("options => Plotly.toImage('figure', options)", options)
            head, _, data = address.partition(",")
            content = base64.b64decode(data) if head.endswith("base64") else unquote(data).encode()
            (IMAGES / f"{name}.{form}").write_bytes(content)


def main() -> None:
    """Photograph what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", nargs="?", type=Path, help="a report.html; that of the demo by default")
    parser.add_argument("--every", metavar="DIR", type=Path, help="every page of the app, into this folder")
    options = parser.parse_args()
    if options.every is not None:
        every(options.every)
        return
    take_lab()
    if options.report is not None:
        take(options.report)
        return
    with tempfile.TemporaryDirectory() as folder:
        take(demo_report(Path(folder)))


if __name__ == "__main__":
    main()
