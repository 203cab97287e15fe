"""The web app in a thread of this process, on a free port of 127.0.0.1."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from gradiometer.app.security import new_token
from gradiometer.app.server import bound, guarded, link_of

PATIENCE = 20.0


@contextmanager
def served() -> Iterator[str]:
    """Serve the lab; gives the link to the home page, with its token."""
    listening = bound("127.0.0.1", 0)
    port, token = listening.getsockname()[1], new_token()
    app = guarded(token, "127.0.0.1", port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + PATIENCE
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        assert server.started
        yield link_of("127.0.0.1", port, "/", token)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()
        assert not thread.is_alive()
