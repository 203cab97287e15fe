"""Read a record while the training that makes it is still running, and say at once when a disease shows.

The monitor lives in the process that waits for the command, never in the training: it reads files. Its readings are
spaced so that they take at most a hundredth of one processor.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from gradiometer.errors import GradiometerError

FIRST_READING: Final = 2.0
"""Seconds before the first reading: a command that is over by then is read when it has ended."""
SHARE: Final = 0.01
"""Share of one processor's time that readings may take."""
CONFIRMED: Final = 2
"""Readings in a row that must show an error before it is announced: a single early one may be the start of a healthy run."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A disease that was announced while the training ran.

    Attributes:
        step: the last step that had been recorded by then.
        rule: name of the rule.
        sentence: what it said then.
    """

    step: int
    rule: str
    sentence: str


class Monitor:
    """Follows a run folder; `tick` is called every now and then and mostly returns at once.

    Args:
        folder: the run folder.
        announce: called with each announcement, once for a rule.
    """

    def __init__(self, folder: Path, announce: Callable[[Announcement], object]) -> None:
        self.announcements: list[Announcement] = []
        self._folder = folder
        self._announce = announce
        self._due = time.monotonic() + FIRST_READING
        self._step = -1
        self._seen: dict[str, int] = {}

    def tick(self) -> None:
        """Read the record if a reading is due. Never raises: a record that cannot be read now may be read later."""
        began = time.monotonic()
        if began < self._due:
            return
        used = time.process_time()
        with contextlib.suppress(OSError, ValueError, GradiometerError):
            self._read()  # a file that is being written may not be whole; what is wrong with it for good is said after the run
        self._due = began + max(1.0, (time.process_time() - used) / SHARE)

    def _read(self) -> None:
        # numpy and the rules load here, at the first reading, not when the command starts
        from gradiometer.record.reading import last_step, read_trace
        from gradiometer.rules import diagnose
        from gradiometer.types import Severity

        step = last_step(self._folder)
        if step <= self._step:
            return
        self._step = step
        findings = diagnose(replace(read_trace(self._folder), running=True))
        errors = [f for f in findings if f.severity is Severity.ERROR and not f.because]
        self._seen = {f.rule: self._seen.get(f.rule, 0) + 1 for f in errors}
        announced = {a.rule for a in self.announcements}
        for finding in errors:
            if self._seen[finding.rule] >= CONFIRMED and finding.rule not in announced:
                self.announcements.append(Announcement(step, finding.rule, finding.sentence))
                self._announce(self.announcements[-1])

    def facts(self) -> dict[str, Any]:
        """What is kept of it in the run's ``run.json``."""
        return {"announced": [asdict(a) for a in self.announcements]} if self.announcements else {}
