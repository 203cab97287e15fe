"""The record file: a JSON header, then fixed-width binary rows, appended and never rewritten.

Layout of ``rank<R>-<pid>.frames``::

    8 bytes   magic "GRADIOM1"
    4 bytes   length H of the header, little endian
    H bytes   header, JSON (UTF-8)
    96 bytes  row, repeated: step i64, site u32, group u16, flags u16, ten f64

A reader may open the file at any time: a torn last row is ignored. Sites are described in the sibling
``.sites.jsonl``, one JSON object a line, always written before the first row that refers to them; a line with
``linked`` lists sites that lie on one way through the network.

This module runs inside the user's training: standard library only.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, Final

from gradiometer.errors import GradiometerError

MAGIC: Final = b"GRADIOM1"
SCHEMA: Final = 2
WIDTH: Final = 10
ROW: Final = struct.Struct(f"<qIHH{WIDTH}d")
LEDGER_SITE: Final = 0xFFFFFFFF
NAN: Final = math.nan

DEFAULT_CAP: Final = 64 * 2**20
"""Bytes of rows one rank may write."""

_FULL_DENSITY: Final = 0.25
"""Share of the cap that is written without thinning: 170,000 steps of nothing but ledger rows."""

_DOUBLINGS: Final = 40
"""Times the stride doubles over the rest of the cap: from there on what is kept is spaced like a logarithm, and the cap
is reached after more than 10^15 rows' worth of steps."""


class Group(IntEnum):
    """What a row describes; decides how its ten numbers are read."""

    LEDGER = 0
    OUTPUT = 1
    GRADIENT = 2
    PARAMETER = 3
    TIME = 4
    ATTENTION = 5


class Flag(IntFlag):
    """Yes/no facts of a row."""

    NONE = 0
    NONFINITE = 1  # some number behind this row was NaN or infinite
    SKIPPED = 2  # ledger: the optimizer did not take this step (loss scaling overflow)
    SAMPLED = 4  # ledger: module outputs were measured at this step
    NO_GRADIENT = 8  # parameter: .grad was None
    ESTIMATED = 16  # numbers come from a regular subsample of a large tensor
    PRE_CLIP = 32  # ledger: grad_norm is the norm before clipping
    NO_OPTIMIZER = 64  # ledger: the clock was the backward pass
    UNOWNED = 128  # parameter: of a model that trains, but no optimizer holds it
    HAS_GRAPH = 256  # output: made with a graph along which a gradient could come back


@dataclass(frozen=True, slots=True)
class Signal:
    """A column of the record.

    Attributes:
        name: as used in ``Trace.values``.
        group: rows that carry it.
        column: 0..9 within the row.
        unit: unit of the number.
        merge: how ranks are merged: sum | max | min | first.
        doc: what it is.
    """

    name: str
    group: Group
    column: int
    unit: str
    merge: str
    doc: str


SIGNALS: Final[tuple[Signal, ...]] = (
    Signal("loss", Group.LEDGER, 0, "loss", "mean", "sum of the scalars backward() was called on in this step"),
    Signal("learning_rate", Group.LEDGER, 1, "1", "first", "learning rate of the first parameter group"),
    Signal("grad_norm", Group.LEDGER, 2, "loss/weight", "first", "global L2 norm of the gradient, where it was free or fitted the budget"),
    Signal("clip_threshold", Group.LEDGER, 3, "loss/weight", "first", "threshold the user clipped at"),
    Signal("loss_scale", Group.LEDGER, 4, "1", "first", "factor of a gradient scaler; 1 without one"),
    Signal("optimizer", Group.LEDGER, 5, "index", "first", "which optimizer stepped, in order of first step"),
    Signal("seconds", Group.LEDGER, 6, "s", "max", "time since the probe attached"),
    Signal("own_seconds", Group.LEDGER, 7, "s", "max", "time the probe itself has taken so far"),
    Signal("backwards", Group.LEDGER, 8, "count", "max", "backward passes in this step"),
    Signal("overshoot", Group.LEDGER, 9, "1", "first", "slope of the loss along the step before, after that step against before it: 1 on a straight slope, 0 at the bottom, below 0 beyond it, below -1 on a step that climbs"),
    Signal("output_count", Group.OUTPUT, 0, "count", "sum", "elements measured"),
    Signal("output_sumsq", Group.OUTPUT, 1, "h^2", "sum", "sum of squares"),
    Signal("output_varying", Group.OUTPUT, 2, "h^2", "sum", "sum of squares about the mean over the batch; NaN for a batch of one"),
    Signal("output_zeros", Group.OUTPUT, 3, "count", "sum", "elements exactly zero; NaN where not counted (only of activations)"),
    Signal("output_saturated", Group.OUTPUT, 4, "count", "sum", "elements in the flat part of a bounded activation; else NaN"),
    Signal("output_slope2", Group.OUTPUT, 5, "1", "sum", "sum over elements of (slope / steepest slope)^2 of the activation; NaN if untold"),
    Signal("output_dead", Group.OUTPUT, 6, "count", "min", "units that were zero on all of the last `output_examples` examples"),
    Signal("output_examples", Group.OUTPUT, 7, "count", "sum", "examples behind output_dead"),
    Signal("gradient_count", Group.GRADIENT, 0, "count", "sum", "elements of the gradient of an output"),
    Signal("gradient_sumsq", Group.GRADIENT, 1, "(loss/h)^2", "sum", "sum of squares of the gradient of the loss with respect to an output"),
    Signal("gradient_batch", Group.GRADIENT, 2, "count", "sum", "examples in the batch (length of the first dimension)"),
    Signal("gradient_zeros", Group.GRADIENT, 3, "count", "sum", "elements exactly zero"),
    Signal("gradient_tiny", Group.GRADIENT, 4, "count", "sum", "elements that are not zero but below the smallest normal number of their own type (float16: 6.1e-5), as they flowed, loss scale included"),
    Signal("gradient_kernel_cross", Group.GRADIENT, 5, "1", "sum", "sum over pairs of examples of the cosine of their gradients here times that at the last layer"),
    Signal("gradient_kernel_head", Group.GRADIENT, 6, "1", "sum", "sum over the same pairs of the squared cosine at the last layer"),
    Signal("weight_count", Group.PARAMETER, 0, "count", "first", "elements"),
    Signal("weight_sumsq", Group.PARAMETER, 1, "w^2", "first", "sum of squares of the parameter before the step"),
    Signal("weight_gradient_sumsq", Group.PARAMETER, 2, "(loss/w)^2", "first", "sum of squares of .grad, accumulated and unscaled, before this step's clipping where that could be seen"),
    Signal("update_sumsq", Group.PARAMETER, 3, "w^2", "first", "sum of squares of the change this step made"),
    Signal("weight_gradient_zeros", Group.PARAMETER, 4, "count", "first", "elements of .grad exactly zero"),
    Signal("weight_gradient_tiny", Group.PARAMETER, 5, "count", "first", "elements of .grad that are not zero but below the smallest normal number of their own type"),
    Signal("update_zeros", Group.PARAMETER, 6, "count", "first", "elements whose gradient is not zero and that the step did not move"),
    Signal("weight_between", Group.PARAMETER, 7, "w^2", "first", "sum of squares of the rows of a matrix (one per unit) about their mean: 0 when all units are the same; NaN for a vector"),
    Signal("moment_ratio", Group.PARAMETER, 8, "count", "first", "sum over elements of gradient^2 / second moment of an Adam-like optimizer, bias-corrected, before the step; NaN without one"),
    *(Signal(f"time_lag_{k}", Group.TIME, k, "1", "sum", f"sum of squares of d(random projection of the last state)/d(state {k}/8 of the sequence earlier)") for k in range(9)),
    Signal("time_steps", Group.TIME, 9, "count", "first", "length of the sequence"),
    Signal("attention_rows", Group.ATTENTION, 0, "count", "sum", "rows of attention weights looked at (those with one choice only left out)"),
    Signal("attention_entropy", Group.ATTENTION, 1, "1", "sum", "sum over rows of entropy / log(choices)"),
    Signal("attention_peaked", Group.ATTENTION, 2, "count", "sum", "rows whose largest weight is above 0.99"),
    Signal("attention_logit", Group.ATTENTION, 3, "1", "max", "largest absolute logit; NaN where only the weights were seen"),
)  # fmt: skip


def rank_files(folder: Path) -> list[Path]:
    """Record files of a run, the main process of each rank first (sorted by name)."""
    return sorted(folder.glob("rank*.frames"))


def sites_path(frames: Path) -> Path:
    """The file that describes the sites of a record file."""
    return frames.with_suffix(".sites.jsonl")


class FrameWriter:
    """Appends rows to one record file. Not thread-safe; one per process.

    Every ``write_rows`` is one ``write(2)`` on an unbuffered descriptor: what was written survives any death of the
    process. ``OSError`` (disk full, folder gone) is the caller's to handle.

    Args:
        path: file to create; must not exist.
        header: JSON-able facts about the process; ``schema`` and the signals table are added.
        cap: bytes of rows after which nothing more is written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], cap: int = DEFAULT_CAP) -> None:
        full = {
            **header,
            "schema": SCHEMA,
            "row": ROW.format,
            "signals": [[s.name, int(s.group), s.column, s.merge] for s in SIGNALS],
        }
        text = json.dumps(full).encode()
        # The site table comes first: a record file that exists always has one.
        self._sites = os.open(sites_path(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        self._rows = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        try:
            _write(self._rows, MAGIC + struct.pack("<I", len(text)) + text)
        except OSError:
            self.close()  # a record that is cut off inside its header could not be read
            path.unlink()
            sites_path(path).unlink()
            raise
        self._cap = cap
        self._size = 0
        self._count = 0

    @property
    def stride(self) -> int:
        """Rows should be kept for one step in this many; a power of two, 1 at first."""
        beyond = max(0.0, self._size / self._cap - _FULL_DENSITY) / (1.0 - _FULL_DENSITY)
        return 2 ** int(_DOUBLINGS * beyond)

    def add_site(self, description: Mapping[str, Any]) -> int:
        """Describe a new site; returns its index."""
        line = json.dumps({"index": self._count, **description}) + "\n"
        _write(self._sites, line.encode())
        self._count += 1
        return self._count - 1

    def add_link(self, sites: Sequence[int]) -> None:
        """Say that these sites (indices) lie on one way through the network."""
        _write(self._sites, (json.dumps({"linked": list(sites)}) + "\n").encode())

    def write_rows(self, rows: Sequence[bytes]) -> None:
        """Append packed rows in one write; drops them once the cap is reached."""
        data = b"".join(rows)
        if self._size + len(data) > self._cap:
            return
        _write(self._rows, data)
        self._size += len(data)

    def close(self) -> None:
        """Close the descriptors; the file needs no trailer."""
        os.close(self._rows)
        os.close(self._sites)


def _write(descriptor: int, data: bytes) -> None:
    """One ``write(2)``; a short one is an error, as a disk that is full cuts the last write before it refuses the next."""
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def pack(step: int, site: int, group: Group, flags: int, values: Sequence[float]) -> bytes:
    """One row. ``values`` may be shorter than ten; the rest is NaN."""
    return ROW.pack(step, site, group, flags, *values, *([NAN] * (WIDTH - len(values))))


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a record file and the offset of its first row.

    Raises:
        GradiometerError: the file is not a record, is cut inside its header, or was made by another version.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if len(head) < 12 or head[:8] != MAGIC:
            raise GradiometerError(f"{path} is not a Gradiometer record.", "Give a folder made by `gradiometer run`.")
        length = struct.unpack("<I", head[8:])[0]
        text = file.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise GradiometerError(
            f"{path} is cut off inside its header.", "The training died while it began; run it again."
        ) from error
    if header.get("schema") != SCHEMA:
        raise GradiometerError(
            f"{path} was recorded with record format {header.get('schema')}; this version reads format {SCHEMA}.",
            "Read it with the gradiometer version that made it, or record the training again.",
        )
    return header, 12 + length
