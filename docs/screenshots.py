"""Take the pictures of the README: a report in light and in dark.

    python docs/screenshots.py [path/to/report.html]

Without a path it runs the demo first. Needs the ``dev`` extra and Debian's chromium.
"""

from __future__ import annotations

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
from playwright.sync_api import Browser, expect, sync_playwright

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
    """Photograph the report that was named, or that of the demo."""
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        take(demo_report(Path(folder)))


if __name__ == "__main__":
    main()
