"""A real browser for the tests that need one: Debian's chromium, offline, and nothing may go wrong in the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


SLOW_GRAPHICS = ("[.WebGL", "Canvas2D: Multiple readback")
"""What chromium says where it draws without a graphics card: that this is slow."""


def _missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}: on CI the browser tests must run")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed")
        raise
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        _missing("no chromium on this machine (apt-get install chromium)")
    # module scope: the event loop of playwright must not run on under the tests of other files
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


def complaint(kind: str, text: str) -> bool:
    return kind == "error" or (kind == "warning" and not text.startswith(SLOW_GRAPHICS))


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Open an address in a fresh page; the test fails on any foreign request, console error or page error."""
    wrong: list[str] = []
    contexts = []

    def open_(address: str, width: int = 1280, height: int = 900, theme: str = "light", scripts: bool = True) -> Page:
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            java_script_enabled=scripts,
        )
        contexts.append(context)
        page = context.new_page()
        local = ("file:", "data:", "blob:", "about:", "http://127.0.0.1")
        page.on("request", lambda r: None if r.url.startswith(local) else wrong.append(f"request: {r.url}"))
        page.on("console", lambda m: wrong.append(f"console: {m.text}") if complaint(m.type, m.text) else None)
        page.on("pageerror", lambda e: wrong.append(f"page error: {e}"))
        page.on("dialog", lambda d: (wrong.append(f"dialog: {d.message}"), d.dismiss()))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not wrong, wrong
