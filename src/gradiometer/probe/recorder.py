"""Rows on their way to disk: site numbers, one device copy per look, a file per process."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from gradiometer.probe.signals import Scalar
from gradiometer.record.frames import Flag, FrameWriter, Group, pack

FLUSH_SECONDS: Final = 0.5
"""Ledger rows may wait this long in memory; rows of a look are written at once."""


@dataclass(slots=True)
class _Pending:
    step: int
    site: int
    group: Group
    flags: int
    values: list[Scalar]


class Recorder:
    """Writes the record file of this process; made anew after a fork.

    The file is created with the first row: a process that never trains leaves none.

    Args:
        folder: the run folder.

    Attributes:
        stem: of this process's file names; empty as long as there are none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.stem = ""
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._writer: FrameWriter | None = None
        self._sites: dict[tuple[str, str, str], int] = {}
        self._chain_of: dict[int, int] = {}
        self._news: list[dict[str, Any] | list[int]] = []
        self._waiting: list[_Pending] = []
        self._flushed = time.monotonic()

    @property
    def stride(self) -> int:
        """Thinning the record's size asks for."""
        return self._writer.stride if self._writer is not None else 1

    def check_process(self) -> None:
        """After a fork, forget the parent's file."""
        if os.getpid() != self._pid:
            self._start()

    def _open(self) -> FrameWriter:
        if self._writer is None:
            rank = _number("RANK", 0)
            header = {
                "rank": rank,
                "world_size": _number("WORLD_SIZE", 1),
                "pid": self._pid,
                "argv": sys.argv,
                "executable": sys.executable,
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "platform": platform.platform(),
                "threads": torch.get_num_threads(),
            }
            path = self._new_file(f"rank{rank}-{self._pid}")
            self.stem = path.stem
            self._writer = FrameWriter(path, header)
        return self._writer

    def _new_file(self, stem: str) -> Path:
        path, number = self._folder / f"{stem}.frames", 1
        while path.exists():  # watched before in this process, or another machine's process with the same number
            number += 1
            path = self._folder / f"{stem}-{number}.frames"
        return path

    def site(self, model: str, place: str, name: str, **facts: Any) -> int:
        """Number of a site, described on first use. ``facts``: kind, role, module, units, trainable."""
        key = (model, place, name)
        index = self._sites.get(key)
        if index is None:
            index = self._sites[key] = len(self._sites)
            self._news.append({"model": model, "place": place, "name": name, **facts})
        return index

    def link(self, sites: Sequence[int]) -> None:
        """Say that these sites lie on one way through the network; written only where it is news."""
        known = {self._chain_of.get(s) for s in sites}
        if len(known) == 1 and None not in known:
            return
        self._news.append(list(sites))
        chain = self._chain_of.setdefault(sites[0], sites[0])
        merged = known - {None, chain}
        if merged:
            self._chain_of = {s: chain if c in merged else c for s, c in self._chain_of.items()}
        self._chain_of.update(dict.fromkeys(sites, chain))

    def network_of(self, site: int) -> int | None:
        """Number of what a site is linked with; None as long as it is linked with nothing."""
        return self._chain_of.get(site)

    @property
    def site_count(self) -> int:
        """Sites described so far."""
        return len(self._sites)

    def row(self, step: int, site: int, group: Group, flags: int, values: list[Scalar]) -> None:
        """Add a row; numbers on a device are read at the next `flush`."""
        self._waiting.append(_Pending(step, site, group, flags, values))

    def flush_if_due(self) -> None:
        """Write what waits if it has waited long enough."""
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush_look(self) -> None:
        """Write a look's rows now, unless numbers are still being computed on a device: those wait for the next step."""
        if not any(isinstance(v, Tensor) for p in self._waiting for v in p.values):
            self.flush()

    def flush(self) -> None:
        """Read device numbers in one copy per device and write everything."""
        self._flushed = time.monotonic()
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        _read_devices(waiting)
        rows: list[bytes] = []
        for pending in waiting:
            numbers = [float(v) for v in pending.values]
            flags = pending.flags | _nonfinite_flag(pending.group, pending.flags, numbers)
            rows.append(pack(pending.step, pending.site, pending.group, flags, numbers))
        writer = self._open()
        for news in self._news:
            if isinstance(news, dict):
                writer.add_site(news)
            else:
                writer.add_link(news)
        self._news.clear()
        writer.write_rows(rows)

    def close(self) -> None:
        """Write what waits and close the file."""
        try:
            self.flush()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None


def _number(variable: str, otherwise: int) -> int:
    """A launcher's variable; some schedulers set it to nothing."""
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdigit() else otherwise


# columns whose being NaN or infinite says that the tensor behind the row was
_TELLING: Final = {Group.OUTPUT: (1,), Group.GRADIENT: (1,), Group.PARAMETER: (1, 2)}


def _nonfinite_flag(group: Group, flags: int, numbers: Sequence[float]) -> int:
    # a parameter without a gradient has NaN in that column, and nothing wrong with it
    told = (numbers[c] for c in _TELLING.get(group, ()) if not flags & Flag.NO_GRADIENT or c == 1)
    return int(Flag.NONFINITE) if any(not math.isfinite(n) for n in told) else 0


def _read_devices(waiting: list[_Pending]) -> None:
    """Replace every 0-d tensor by its number, with one transfer for each device."""
    places: dict[torch.device, list[tuple[list[Scalar], int, Tensor]]] = {}
    for pending in waiting:
        for column, value in enumerate(pending.values):
            if isinstance(value, Tensor):
                places.setdefault(value.device, []).append((pending.values, column, value))
    for entries in places.values():
        numbers: list[float] = torch.stack([v.double() for _, _, v in entries]).tolist()
        for (values, column, _), number in zip(entries, numbers, strict=True):
            values[column] = number
