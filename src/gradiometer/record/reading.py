"""Reading the record files of a run folder and merging its ranks into one `Trace`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gradiometer.errors import GradiometerError
from gradiometer.record import frames
from gradiometer.record.frames import SIGNALS, Flag, Group
from gradiometer.record.ledger import FloatArray, IntArray, Ledger
from gradiometer.record.trace import Trace
from gradiometer.types import Place, Role, Site

_ROW_DTYPE: Final = np.dtype(
    [("step", "<i8"), ("site", "<u4"), ("group", "<u2"), ("flags", "<u2"), ("v", "<f8", (frames.WIDTH,))]
)
assert _ROW_DTYPE.itemsize == frames.ROW.size

_MARKS: Final = {Group.PARAMETER: (Flag.NO_GRADIENT, Flag.UNOWNED), Group.OUTPUT: (Flag.HAS_GRAPH,)}
_PLACES: Final = (Place.OUTPUT, Place.PARAMETER, Place.ATTENTION)

SiteKey = tuple[str, str, str]
"""(model, place, name): what tells one site from another, across ranks."""

SITE_GROUPS: Final = (Group.OUTPUT, Group.GRADIENT, Group.PARAMETER, Group.TIME, Group.ATTENTION)


@dataclass(frozen=True)
class _RankFile:
    path: Path
    header: Mapping[str, Any]
    sites: list[dict[str, Any]]
    links: list[list[int]]
    rows: NDArray[np.void]

    @property
    def ledger_rows(self) -> int:
        return int(np.count_nonzero(self.rows["group"] == Group.LEDGER))


def read_trace(folder: Path) -> Trace:
    """Read the record files of a run folder and merge the ranks.

    Where several processes of one rank left records (a launcher and its child, say), the one with the most steps is
    the training; the others are mentioned in ``notes``.

    Raises:
        GradiometerError: a record was made by another version or is damaged.
    """
    files = [_read_rank(path) for path in frames.rank_files(folder)]
    events = _read_events(folder / "events.jsonl")
    notes = [str(e["sentence"]) for e in events if e.get("event") == "note"]
    chosen: dict[int, _RankFile] = {}
    for file in files:
        rank = int(file.header.get("rank", 0))
        if rank not in chosen or file.ledger_rows > chosen[rank].ledger_rows:
            chosen[rank] = file
    spare = [f for f in files if f not in chosen.values() and f.ledger_rows > 0]
    if spare:
        notes.append(f"{len(spare)} other process(es) of this command trained too; the one with the most steps is shown.")
    return _merge([chosen[r] for r in sorted(chosen)], tuple(dict.fromkeys(notes)), events)


def _read_rank(path: Path) -> _RankFile:
    header, offset = frames.read_header(path)
    data = path.read_bytes()[offset:]
    whole = len(data) // _ROW_DTYPE.itemsize  # a torn last row is ignored
    rows = np.frombuffer(data, dtype=_ROW_DTYPE, count=whole)
    sites: list[dict[str, Any]] = []
    links: list[list[int]] = []
    for line in frames.sites_path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            described: dict[str, Any] = json.loads(line)
        except ValueError:
            break  # torn last line
        if "linked" in described:
            links.append(described["linked"])
        else:
            sites.append(described)
    known = (rows["site"] < len(sites)) | (rows["group"] == Group.LEDGER)
    return _RankFile(path, header, sites, links, rows[known])


def _read_events(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.exists():
        return ()
    events: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # two processes may tear a line; an event is never worth failing a report for
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return tuple(events)


def _merge(files: list[_RankFile], notes: tuple[str, ...], events: tuple[dict[str, Any], ...]) -> Trace:
    # one site table over all ranks, keyed by what the site is
    described: dict[SiteKey, dict[str, Any]] = {}
    for file in files:
        for site in file.sites:
            described.setdefault(_site_key(site), site)
    order = _execution_order(files)
    placed = _make_sites(described, order, _chains(files, order))
    sites, keys = tuple(placed.values()), {key: i for i, key in enumerate(placed)}

    sampled = [f.rows["step"][f.rows["group"] != Group.LEDGER] for f in files]
    steps = np.unique(np.concatenate(sampled)) if sampled else np.empty(0, np.int64)
    shape = (steps.size, len(sites))
    site_signals = [s for s in SIGNALS if s.group is not Group.LEDGER]
    values = {s.name: np.full(shape, np.nan) for s in site_signals}
    nonfinite = {g: np.zeros(shape, np.bool_) for g in SITE_GROUPS}
    recorded = {g: np.zeros(shape, np.bool_) for g in SITE_GROUPS}
    marks = {flag: np.zeros(shape, np.bool_) for flags in _MARKS.values() for flag in flags}
    for file in files:
        to_global = np.array([keys[_site_key(s)] for s in file.sites], dtype=np.int64)
        for group in SITE_GROUPS:
            rows = file.rows[file.rows["group"] == group]
            if not rows.size:
                continue
            at = (np.searchsorted(steps, rows["step"]), to_global[rows["site"]])
            bad = (rows["flags"] & int(Flag.NONFINITE)) != 0
            nonfinite[group][at] |= bad
            for signal in (s for s in site_signals if s.group is group):
                _merge_into(values[signal.name], at, rows["v"][:, signal.column], signal.merge)
            recorded[group][at] = True
            for flag in _MARKS.get(group, ()):
                marks[flag][at] |= (rows["flags"] & int(flag)) != 0
    ranks = max(len(files), 1)
    return Trace(sites, steps, values, nonfinite, recorded, _merge_ledgers(files), ranks, notes, events, marks)


def _site_key(site: Mapping[str, Any]) -> SiteKey:
    return (str(site.get("model", "")), str(site["place"]), str(site["name"]))


def _merge_into(target: FloatArray, at: tuple[IntArray, IntArray], new: FloatArray, how: str) -> None:
    old = target[at]
    both = ~np.isnan(old) & ~np.isnan(new)
    merged = {"sum": np.add, "max": np.maximum, "min": np.minimum}.get(how)
    out = np.where(np.isnan(old), new, old)
    if merged is not None:
        out = np.where(both, merged(old, new), out)
    target[at] = out


def _merge_ledgers(files: list[_RankFile]) -> Ledger:
    signals = [s for s in SIGNALS if s.group is Group.LEDGER]
    rows = [f.rows[f.rows["group"] == Group.LEDGER] for f in files]
    steps = np.unique(np.concatenate([r["step"] for r in rows])) if rows else np.empty(0, np.int64)
    flags = np.zeros(steps.size, np.int64)
    values: dict[str, FloatArray] = {}
    for signal in signals:
        merged = np.full(steps.size, np.nan)
        total, count = np.zeros(steps.size), np.zeros(steps.size)
        for table in rows:
            at = np.searchsorted(steps, table["step"])
            new = table["v"][:, signal.column]
            if signal.merge == "mean":
                known = ~np.isnan(new) | ((table["flags"] & int(Flag.NONFINITE)) != 0)
                total[at[known]] += new[known]
                count[at[known]] += 1
            elif signal.merge == "max":
                merged[at] = np.fmax(merged[at], new)
            else:
                merged[at] = np.where(np.isnan(merged[at]), new, merged[at])
        if signal.merge == "mean":
            merged[count > 0] = total[count > 0] / count[count > 0]
        values[signal.name] = merged
    for table in rows:
        flags[np.searchsorted(steps, table["step"])] |= table["flags"].astype(np.int64)
    return Ledger(steps, flags, values)


def _execution_order(files: list[_RankFile]) -> dict[SiteKey, int]:
    """Position of every output site: the sampled step with the most sites gives the order, others fill in."""
    sequences: list[list[SiteKey]] = []
    for file in files:
        rows = file.rows[np.isin(file.rows["group"], (Group.OUTPUT, Group.GRADIENT))]
        rows = rows[np.append(True, (np.diff(rows["site"].astype(np.int64)) != 0) | (np.diff(rows["step"]) != 0))[: rows.size]]
        if not rows.size:
            continue
        keys = [_site_key(s) for s in file.sites]
        cuts = np.flatnonzero(np.diff(rows["step"])) + 1
        seen: set[bytes] = set()
        for part in np.split(rows["site"], cuts):
            if part.tobytes() not in seen:  # most steps repeat one order
                seen.add(part.tobytes())
                sequences.append([keys[i] for i in part])
    sequences.sort(key=len, reverse=True)
    order: list[SiteKey] = []
    placed: set[SiteKey] = set()
    for sequence in sequences:
        previous = -1
        for key in sequence:
            if key in placed:
                previous = order.index(key)
            else:
                previous += 1
                order.insert(previous, key)
                placed.add(key)
    return {key: i for i, key in enumerate(order)}


def _chains(files: list[_RankFile], order: Mapping[SiteKey, int]) -> dict[SiteKey, int]:
    """Number of the connected network of every output site that has an order.

    Sites that autograd never linked (a frozen front, activation checkpointing) belong to the chain of the nearest site
    before them in the same model, else after them; a model without any linked site is a chain of its own.
    """
    parent = {key: key for key in order}

    def root(key: SiteKey) -> SiteKey:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    linked: set[SiteKey] = set()
    for file in files:
        keys = [_site_key(s) for s in file.sites]
        for link in file.links:
            group = [keys[i] for i in link if i < len(keys) and keys[i] in parent]
            linked.update(group)
            for key in group[1:]:
                parent[root(key)] = root(group[0])
    in_order = sorted(order, key=order.__getitem__)
    nearest: dict[str, SiteKey] = {}
    for key in (*in_order, *reversed(in_order)):  # from the left, then from the right for what had nothing before it
        if key in linked:
            nearest[key[0]] = key
        elif parent[key] == key and (other := nearest.get(key[0])) is not None:
            parent[key] = root(other)
        elif parent[key] == key:
            nearest.setdefault(key[0], key)
    numbers: dict[SiteKey, int] = {}
    return {key: numbers.setdefault(root(key), len(numbers)) for key in in_order}


def _make_sites(
    described: Mapping[SiteKey, Mapping[str, Any]], order: Mapping[SiteKey, int], chains: Mapping[SiteKey, int]
) -> dict[SiteKey, Site]:
    """Sites as rules see them: outputs in order of execution, then parameters by depth."""
    depth_of_module: dict[tuple[str, str], int] = {}
    for key, position in sorted(order.items(), key=lambda item: item[1]):
        site = described[key]
        depth_of_module.setdefault((key[0], str(site.get("module", ""))), position)
    # two networks may both have a layer "0": with several models a name carries its model's
    several = len({key[0] for key in described if key[0]}) > 1
    placed: list[tuple[int, int, int, SiteKey, Site]] = []
    for index, (key, site) in enumerate(described.items()):
        place = Place(key[1])
        if place is Place.OUTPUT:
            depth = order.get(key, len(order))
        else:
            depth = depth_of_module.get((key[0], str(site.get("module", ""))), -1)
            depth = index if depth < 0 and not order else depth
        made = Site(
            name=f"{key[0]}.{key[2]}" if several and key[0] else key[2],
            place=place,
            kind=str(site.get("kind", "")),
            role=Role(site.get("role", "other")),
            depth=depth,
            model=key[0],
            units=int(site.get("units", 0)),
            trainable=bool(site.get("trainable", True)),
            chain=chains.get(key, -1),
            module=str(site.get("module", "")),
            call=int(site.get("call", 0)),
            dtype=str(site.get("dtype", "")),
            shape=tuple(int(n) for n in site.get("shape", ())),
        )
        placed.append((_PLACES.index(place), depth, index, key, made))
    placed.sort(key=lambda item: item[:3])
    return {key: site for *_, key, site in placed}


def last_step(folder: Path) -> int:
    """The last step recorded so far in a run that may still be going on; -1 before the first. Cheap: reads one row."""
    last = -1
    for path in frames.rank_files(folder):
        try:
            _, offset = frames.read_header(path)
            whole = (path.stat().st_size - offset) // frames.ROW.size
            if whole > 0:
                with path.open("rb") as file:
                    file.seek(offset + (whole - 1) * frames.ROW.size)
                    last = max(last, int(frames.ROW.unpack(file.read(frames.ROW.size))[0]))
        except GradiometerError:
            continue  # its header is being written at this moment
    return last
