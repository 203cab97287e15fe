"""Our failure never becomes the user's failure: one log of events, one warning, then silence."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

EVENTS_CAP: Final = 1 << 20
"""Bytes after which no more events are appended."""


class EventLog:
    """Appends one JSON object a line to ``events.jsonl``; every line is one ``write(2)``, so processes may share it.

    An event that cannot be written is dropped: the disk may be full, and the training must go on. The first time this
    happens one line says so on standard error.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"
        self._warned = False
        self._notes: set[str] = set()

    def add(self, event: str, **facts: Any) -> None:
        """Append an event with its facts (JSON-able)."""
        self._append(event, facts, EVENTS_CAP)

    def add_minor(self, event: str, **facts: Any) -> None:
        """Append one of many: together they leave half of the room to the others."""
        self._append(event, facts, EVENTS_CAP // 2)

    def _append(self, event: str, facts: dict[str, Any], room: int) -> None:
        line = json.dumps({"event": event, "pid": os.getpid(), **facts}, default=str) + "\n"
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
            try:
                if os.fstat(descriptor).st_size < room:
                    os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            self.warn(
                f"the run folder cannot be written ({error.strerror}); your training goes on, the record may lack its end"
            )

    def note(self, sentence: str) -> None:
        """A sentence for the report about what could not be measured; each is written once."""
        if sentence not in self._notes and len(self._notes) < 50:
            self._notes.add(sentence)
            self.add("note", sentence=sentence)

    def warn(self, sentence: str) -> None:
        """One line on standard error, the first time only."""
        if self._warned:
            return
        self._warned = True
        try:
            sys.stderr.write(f"gradiometer: {sentence}\n")
        except Exception:  # noqa: BLE001  closed, or the script's own: nobody is there to be told
            return


def comes_from_a_signal(error: BaseException) -> bool:
    """Whether an exception was raised by a signal handler of the user's.

    A handler may run at any moment, also in the middle of our own code: a timeout it raises is for the training, not a
    failure of ours.
    """
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(handler, "__code__", None) for handler in handlers if callable(handler)}
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code in codes:
            return True
        frame = frame.tb_next
    return False
