"""Nobody but the owner's own browser is answered."""

from __future__ import annotations

from typing import Any

import pytest

from asking import Answer, ask
from gradiometer.app.security import Guard, Hosts, new_token
from gradiometer.app.server import bound, create_app, guarded, link_of
from gradiometer.errors import GradiometerError

TOKEN = "right-token"
PORT = 8000
HOST = {"host": f"127.0.0.1:{PORT}"}


@pytest.fixture
def app() -> Any:
    return guarded(TOKEN, "127.0.0.1", PORT)


def cookie(app: Any) -> dict[str, str]:
    """The cookie that the link gives."""
    welcome = ask(app, f"/view?token={TOKEN}", HOST)
    assert welcome.status == 303
    return {"cookie": welcome.headers["set-cookie"].split(";")[0]}


def test_the_link_gives_a_cookie_that_scripts_and_other_sites_cannot_use(app: Any) -> None:
    welcome = ask(app, f"/view?a=1&token={TOKEN}", HOST)
    assert welcome.headers["location"] == "/view?a=1"
    assert {"HttpOnly", "SameSite=Strict"} <= set(welcome.headers["set-cookie"].split("; "))
    assert TOKEN not in welcome.headers["set-cookie"]
    assert ask(app, "/static/app.css", {**HOST, **cookie(app)}).status == 200


@pytest.mark.parametrize("target", ["/", "/view", "/static/app.css", "/api/lab/descent", "/lab/descent", "/nothing"])
@pytest.mark.parametrize("tokens", ["", "?token=", "?token=wrong", f"?token={TOKEN}x", f"?Token={TOKEN}"])
def test_without_the_token_nothing_is_answered(app: Any, target: str, tokens: str) -> None:
    refused = ask(app, target + tokens, HOST)
    assert refused.status == 403
    assert "Open the link that the command printed." in refused.text
    assert "set-cookie" not in refused.headers


@pytest.mark.parametrize("value", ["", "x", "gradiometer=1", "a=b; gradiometer-00000000=none", '"', "gradiometer-=;;=", "é"])
def test_a_made_up_cookie_is_none(app: Any, value: str) -> None:
    assert ask(app, "/", {**HOST, "cookie": value}).status == 403


def test_the_cookie_of_another_server_is_none(app: Any) -> None:
    other = guarded(TOKEN, "127.0.0.1", PORT)
    assert ask(other, "/static/app.css", {**HOST, **cookie(app)}).status == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80", f"127.0.0.1.evil.example:{PORT}", "", f":{PORT}"],
)
def test_a_foreign_host_is_refused_even_with_the_cookie(app: Any, host: str) -> None:
    assert ask(app, "/static/app.css", {"host": host, **cookie(app)}).status == 403
    assert ask(app, f"/?token={TOKEN}", {"host": host}).status == 403


@pytest.mark.parametrize("host", [f"localhost:{PORT}", f"[::1]:{PORT}"])
def test_the_server_has_several_names(app: Any, host: str) -> None:
    assert ask(app, "/static/app.css", {"host": host, **cookie(app)}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
    ],
)
def test_another_sites_page_is_refused_even_with_the_cookie(app: Any, headers: dict[str, str]) -> None:
    assert ask(app, "/static/app.css", {**HOST, **cookie(app), **headers}).status == 403
    assert ask(app, f"/?token={TOKEN}", {**HOST, **headers}).status == 403


@pytest.mark.parametrize(
    "headers", [{"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": "http://127.0.0.1:8000"}]
)
def test_its_own_pages_are_answered(app: Any, headers: dict[str, str]) -> None:
    assert ask(app, "/static/app.css", {**HOST, **cookie(app), **headers}).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_takes_nothing(app: Any, method: str) -> None:
    refused = ask(app, "/static/app.css", {**HOST, **cookie(app)}, method)
    assert refused.status == 405
    assert refused.headers["allow"] == "GET, HEAD"


def answers(app: Any) -> list[Answer]:
    held = {**HOST, **cookie(app)}
    return [
        ask(app, "/", HOST),
        ask(app, f"/?token={TOKEN}", HOST),
        ask(app, "/static/app.css", held),
        ask(app, "/nothing", held),
        ask(app, "/", HOST, "POST"),
    ]


def test_every_answer_carries_the_policy(app: Any) -> None:
    for answer in answers(app):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "cache-control" in answer.headers


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "///evil.example//x"])
def test_the_way_on_stays_on_this_server(app: Any, path: str) -> None:
    location = ask(app, f"{path}?token={TOKEN}", HOST).headers["location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))


@pytest.mark.parametrize(
    "target",
    ["/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/pyproject.toml", "/static//etc/passwd", "/static/x.js"],
)
def test_static_files_are_a_list_not_a_folder(app: Any, target: str) -> None:
    assert ask(app, target, {**HOST, **cookie(app)}).status == 404


def test_a_server_on_all_addresses_is_called_by_numbers_only() -> None:
    hosts = Hosts("0.0.0.0", PORT)
    assert f"192.168.1.7:{PORT}" in hosts
    assert f"[fe80::1]:{PORT}" in hosts
    assert f"rebound.example:{PORT}" not in hosts
    assert "192.168.1.7:1" not in hosts
    assert f"192.168.1.7:{PORT}" not in Hosts("127.0.0.1", PORT)


def test_tokens_differ_and_are_long() -> None:
    assert len({new_token() for _ in range(100)}) == 100
    assert min(len(new_token()) for _ in range(100)) >= 43


def test_it_listens_where_it_is_told_and_says_so_when_it_cannot() -> None:
    first = bound("127.0.0.1", 0)
    try:
        address, port = first.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(GradiometerError, match="--port another number"):
            bound("127.0.0.1", port)
    finally:
        first.close()
    with pytest.raises(GradiometerError, match="cannot be listened on"):
        bound("no.such.address.invalid", 0)
    with pytest.raises(GradiometerError, match="cannot be listened on"):
        bound("127.0.0.1", 70000)


def test_links() -> None:
    assert link_of("127.0.0.1", 80, "/lab", "t") == "http://127.0.0.1:80/lab?token=t"
    assert link_of("0.0.0.0", 80, "/view?run=a", "t") == "http://127.0.0.1:80/view?run=a&token=t"
    assert link_of("::1", 80, "/", "t") == "http://[::1]:80/?token=t"


def test_a_websocket_is_refused(app: Any) -> None:
    async def none(*_: Any) -> Any:
        raise AssertionError("nothing may be said")

    import asyncio

    with pytest.raises(RuntimeError, match="no websocket"):
        asyncio.run(Guard(create_app(), TOKEN, Hosts("127.0.0.1", 1))({"type": "websocket"}, none, none))
