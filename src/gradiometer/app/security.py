"""Who may ask the server for what: a page of someone else's in the same browser must not read a training.

An ASGI middleware around the whole app, so that no route can be forgotten. A request passes if it names the server by its
own address (a foreign name that was made to point here does not: DNS rebinding), does not come from another site's page, only
reads, and holds the session's cookie. The cookie is given for the token in the link that the command prints.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, urlencode

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN: Final = "token"
"""Name of the token in a link."""

READING: Final = frozenset({"GET", "HEAD"})

FRIENDLY: Final = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site of our own pages and of links that a person typed or opened from outside the browser. Another
port of this machine is another site's page too (``same-site``): anything may listen there."""

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""plotly.js sets styles from script, which only ``unsafe-inline`` allows; no script but our own files can run."""

HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
ANY: Final = ("0.0.0.0", "::")


def new_token() -> str:
    """A token that cannot be guessed: 256 bits."""
    return secrets.token_urlsafe(32)


class Hosts:
    """What the Host header may say.

    A server that was bound to all addresses on request (``0.0.0.0``, ``::``) is also called by numeric addresses: DNS
    rebinding needs a name.

    Args:
        address: the address it is bound to.
        port: the port.
    """

    def __init__(self, address: str, port: int) -> None:
        self._names = {*LOOPBACK, f"[{address}]" if ":" in address else address}
        self._any = address in ANY
        self._port = port

    def __contains__(self, host: object) -> bool:
        """Whether a Host header names this server."""
        name, _, port = str(host).rpartition(":")
        return port == str(self._port) and (name in self._names or (self._any and _is_numeric(name)))


def _is_numeric(name: str) -> bool:
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class Guard:
    """Refuses what is not the owner's own browser.

    Args:
        app: the app behind it.
        token: what the link holds.
        hosts: permitted values of the Host header.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Hosts) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        # cookies are shared by all ports of a machine: the name tells two servers apart
        self._cookie = f"gradiometer-{secrets.token_hex(4)}"
        self._session = new_token()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            raise RuntimeError(f"Gradiometer serves no {scope['type']}.")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if host not in self._hosts:
            await _refuse(send, 403, "This address is not the server's own. Open the link that the command printed.")
        elif scope["method"] not in READING:
            await _refuse(send, 405, "This server only shows; it takes nothing.", {"allow": "GET, HEAD"})
        elif (
            headers.get("sec-fetch-site", "none") not in FRIENDLY or headers.get("origin", f"http://{host}") != f"http://{host}"
        ):
            await _refuse(send, 403, "Another site's page asked for this. Open the link that the command printed.")
        elif self._knows(headers.get("cookie", "")):
            await self._app(scope, receive, _with_headers(send))
        elif _same(_token_in(scope), self._token):
            await self._welcome(scope, send)
        else:
            await _refuse(send, 403, "The token is missing or old. Open the link that the command printed.")

    def _knows(self, cookie: str) -> bool:
        try:
            held = SimpleCookie(cookie).get(self._cookie)
        except CookieError:  # a broken cookie of another server on this machine: no cookie of ours
            return False
        return held is not None and _same(held.value, self._session)

    async def _welcome(self, scope: Scope, send: Send) -> None:
        """Give the cookie and lead on to the same address without the token, so that it does not stay in the history."""
        rest = urlencode([(k, v) for k, v in _query(scope) if k != TOKEN])
        # a path that begins with two slashes would be another host
        path = "/" + quote(scope["path"].lstrip("/\\"))
        cookie = f"{self._cookie}={self._session}; HttpOnly; SameSite=Strict; Path=/"
        await _answer(send, 303, "", {"location": path + (f"?{rest}" if rest else ""), "set-cookie": cookie})


def _same(given: str, wanted: str) -> bool:
    return secrets.compare_digest(given.encode(), wanted.encode())


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _token_in(scope: Scope) -> str:
    return dict(_query(scope)).get(TOKEN, "")


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name.decode("latin-1").lower() for name, _ in message["headers"]}
            extra = [(n.encode(), v.encode()) for n, v in {"cache-control": "no-store", **HEADERS}.items() if n not in own]
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return sending


async def _refuse(send: Send, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
    await _answer(send, status, f"gradiometer: {sentence}\n", headers or {})


async def _answer(send: Send, status: int, text: str, headers: Mapping[str, str]) -> None:
    body = text.encode()
    said = {
        "content-type": "text/plain; charset=utf-8",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        **HEADERS,
        **headers,
    }
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in said.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
