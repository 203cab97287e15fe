"""The web app: a few routes, all of which only read. Every request has passed `security.Guard` before it comes here."""

from __future__ import annotations

import asyncio
import socket
import sys
import traceback
import webbrowser
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gradiometer.app import pages_html
from gradiometer.app.drawing import scene_json
from gradiometer.app.pages import NAMES
from gradiometer.app.pages import page as page_named
from gradiometer.app.scene import LabPage, State
from gradiometer.app.security import TOKEN, Guard, Hosts, new_token
from gradiometer.errors import GradiometerError
from gradiometer.report.html import json_for_script

STATIC: Final = "/static/"
LINKS: Final = {"home": "/", **{name: f"/lab/{name}" for name in NAMES}}
KEPT: Final = 64 * 1024 * 1024
"""Characters of scenes that are kept, so that a reader who goes back and forth waits for nothing."""
LAST_PORT: Final = 65535

_TYPES: Final = {".css": "text/css", ".js": "text/javascript"}
_A_DAY: Final = {"cache-control": "private, max-age=86400"}


@cache
def all_pages() -> tuple[LabPage, ...]:
    """The pages of the lab, in order."""
    return tuple(page_named(name) for name in NAMES)


class Scenes:
    """Scenes as JSON, computed once at a time and kept while there is room."""

    def __init__(self, room: int = KEPT) -> None:
        self._room = room
        self._kept: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._under_way: dict[tuple[str, str], asyncio.Task[str]] = {}

    async def get(self, page: LabPage, state: State) -> str:
        """The scene of a state."""
        key = page.name, page.link(state)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._under_way:
            self._under_way[key] = asyncio.create_task(run_in_threadpool(lambda: scene_json(page.show(state))))
            self._under_way[key].add_done_callback(lambda _: self._under_way.pop(key, None))
        # a reader who leaves does not end what another one waits for
        text = await asyncio.shield(self._under_way[key])
        self._kept[key] = text
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > self._room:
            self._kept.popitem(last=False)
        return text


def create_app() -> Starlette:
    """The app without its guard."""
    scenes = Scenes()

    async def home(_: Request) -> Response:
        return HTMLResponse(pages_html.home(await run_in_threadpool(all_pages), LINKS, STATIC))

    async def lab(request: Request) -> Response:
        shown = await run_in_threadpool(page_named, request.path_params["name"])
        where = {"kind": "server", "base": f"/api/lab/{shown.name}"}
        return HTMLResponse(pages_html.lab(shown, where, await run_in_threadpool(all_pages), LINKS, STATIC))

    async def scene(request: Request) -> Response:
        shown = await run_in_threadpool(page_named, request.path_params["name"])
        return _json(await scenes.get(shown, shown.state(dict(request.query_params))))

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        text = pages_html.static_text(name)
        if text is None:
            raise HTTPException(404)
        kind = _TYPES[Path(name).suffix]
        return Response(text, media_type=kind, headers=_A_DAY if name == pages_html.PLOTLY else None)

    routes = [
        Route("/", home),
        Route("/lab", home),
        Route("/lab/{name}", lab),
        Route("/api/lab/{name}", scene),
        Route("/static/{name}", static),
    ]
    handlers = {GradiometerError: _usage, HTTPException: _http, Exception: _failure}
    return Starlette(routes=routes, exception_handlers=handlers)  # pyright: ignore[reportArgumentType]


def guarded(token: str, address: str, port: int) -> ASGIApp:
    """The app as it is served.

    Args:
        token: what the link must hold.
        address: what the server is bound to.
        port: the same.
    """
    return Guard(create_app(), token, Hosts(address, port))


# ---- answers -----------------------------------------------------------------------------------------------------------


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")


def _said(request: Request, sentence: str, status: int) -> Response:
    """A sentence, as JSON where a script asked."""
    if request.url.path.startswith("/api/"):
        return _json(json_for_script({"error": sentence}), status)
    return PlainTextResponse(f"gradiometer: {sentence}\n", status)


def _usage(request: Request, error: Exception) -> Response:
    return _said(request, str(error), 400)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _said(request, "There is no such page." if error.status_code == 404 else error.detail, error.status_code)


def _failure(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return _said(request, f"This could not be made ({type(error).__name__}: {error}). Please report it.", 500)


# ---- serving -----------------------------------------------------------------------------------------------------------


def bound(address: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        address: numeric address or name to bind to.
        port: 0 for any free one.

    Raises:
        GradiometerError: the address cannot be bound.
    """
    if not 0 <= port <= LAST_PORT:
        raise GradiometerError(f"{address}:{port} cannot be listened on.", f"A port is a number from 0 to {LAST_PORT}.")
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address, port), family=family)
    except OSError as error:
        raise GradiometerError(
            f"{address}:{port} cannot be listened on ({error.strerror or error}).",
            "Give --port another number, or leave it out for any free one.",
        ) from error


def link_of(address: str, port: int, path: str, token: str) -> str:
    """The link that opens a page, with its token."""
    host = "127.0.0.1" if address in ("0.0.0.0", "::", "") else f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}{path}{'&' if '?' in path else '?'}{TOKEN}={token}"


def serve(path: str, *, address: str, port: int, browser: bool) -> None:
    """Serve until Ctrl-C.

    Args:
        path: page to open.
        address: what to bind to.
        port: 0 for any free one.
        browser: whether to open a browser.
    """
    listening = bound(address, port)
    port = listening.getsockname()[1]
    token = new_token()
    link = link_of(address, port, path, token)
    config = uvicorn.Config(
        guarded(token, address, port), log_level="warning", access_log=False, lifespan="off", server_header=False
    )
    server = uvicorn.Server(config)
    print(f"Open {link}", "Ctrl-C ends it.", sep="\n", flush=True)  # noqa: T201
    if browser:
        webbrowser.open(link)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn hands it on when it has shut down
        return
    finally:
        listening.close()
