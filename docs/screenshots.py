"""Take the pictures of the README: a report in light and in dark.

    python docs/screenshots.py [path/to/report.html]

Without a path it runs the demo first. Needs the ``dev`` extra and Debian's chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1280, "height": 1600}


def demo_report(folder: Path) -> Path:
    """The report of the demo's first training, the one that vanishes."""
    subprocess.run([sys.executable, "-m", "gradiometer", "demo", "--out", str(folder)], check=True)
    return folder / "vanishing" / "report.html"


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


def main() -> None:
    """Photograph the report that was named, or that of the demo."""
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        take(demo_report(Path(folder)))


if __name__ == "__main__":
    main()
