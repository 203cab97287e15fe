"""How long a reader waits: from moving a slider in the lab to the redrawn page, and for the first page, in a real browser.

    python benchmarks/lab.py [--moves N] [--only PAGE]

Every slider of the pages that answer at once is moved over its stops, one after the other, each move once the one before
has been drawn; the page itself takes the time from the event to the last figure drawn, with the request in it. States are new
to the server at their first move. Printed and written to benchmarks/results/lab.json: median with minimum and maximum, and how
many of the moves took longer than 150 ms. The first page is opened in a fresh browser context beside a fresh server.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, Page, expect, sync_playwright

from gradiometer.app.pages import page as page_named
from gradiometer.app.scene import Slider

RESULTS = Path(__file__).parent / "results" / "lab.json"
PAGES: Final = ("descent", "mountains", "depth")
AIM: Final = 150.0
"""Milliseconds that the median move may take."""
FLAGS: Final = ("--no-sandbox", "--disable-gpu")


@contextmanager
def server() -> Iterator[str]:
    """`gradiometer lab` in a process of its own; gives the link that it prints."""
    command = [sys.executable, "-m", "gradiometer", "lab", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("Open "))
        yield line.split()[1]
    finally:
        process.terminate()
        process.wait()


def first_page(browser: Browser, link: str) -> float:
    """Seconds until the home page is there."""
    page = browser.new_context().new_page()
    begun = time.perf_counter()
    page.goto(link)
    expect(page.locator(".path a").first).to_be_visible()
    seconds = time.perf_counter() - begun
    page.context.close()
    return seconds


def drawn(page: Page, count: int) -> float:
    """Milliseconds of a redraw, once it is over."""
    expect(page.locator("#main")).to_have_attribute("data-drawn", str(count), timeout=60_000)
    return float(page.locator("#main").get_attribute("data-milliseconds") or "nan")


def moves(page: Page, name: str, limit: int) -> list[float]:
    """Milliseconds of every move on a page."""
    times: list[float] = []
    count = int(page.locator("#main").get_attribute("data-drawn") or "0")
    for control in page_named(name).controls:
        if not isinstance(control, Slider):
            continue
        slider = page.locator(f"#c-{control.name}")
        for key, presses in (("ArrowRight", limit), ("ArrowLeft", 2 * limit)):
            for _ in range(presses):
                before = slider.input_value()
                slider.press(key)
                if slider.input_value() == before:
                    break
                count += 1
                times.append(drawn(page, count))
    return times


def measure(browser: Browser, link: str, name: str, limit: int) -> dict[str, Any]:
    """One page."""
    page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.goto(link)
    page.goto(f"{link.split('/?')[0]}/lab/{name}")
    page.get_by_role("button", name="Show it without a guess").click()
    first = drawn(page, 1)
    times = moves(page, name, limit)
    page.context.close()
    return {
        "page": name,
        "moves": len(times),
        "median": round(statistics.median(times)),
        "min": round(min(times)),
        "max": round(max(times)),
        "over the aim": sum(t > AIM for t in times),
        "first": round(first),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--moves", type=int, default=8, help="moves of each slider to each side")
    parser.add_argument("--only", choices=PAGES, nargs="*", default=list(PAGES))
    options = parser.parse_args()
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with server() as link, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        opened = [first_page(browser, link) for _ in range(5)]
        rows = [measure(browser, link, name, options.moves) for name in options.only]
        browser.close()
    print(f"first page: {opened[0]:.2f} s, then {min(opened[1:]):.2f} to {max(opened[1:]):.2f} s")
    print(f"{'page':12}{'moves':>7}{'median ms':>11}{'min':>7}{'max':>7}{'> 150 ms':>10}{'first':>8}")
    for row in rows:
        numbers = f"{row['median']:11}{row['min']:7}{row['max']:7}{row['over the aim']:10}{row['first']:8}"
        print(f"{row['page']:12}{row['moves']:7}{numbers}")
    if list(options.only) == list(PAGES):
        facts = {"python": platform.python_version(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
        document = {"facts": facts, "seconds to the first page": [round(s, 3) for s in opened], "pages": rows}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
