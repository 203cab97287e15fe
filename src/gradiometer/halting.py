"""Run a command until its first optimizer step would happen, then stop all of it, and put back what it changed on disk.

The part that measures is inside the training (`gradiometer.probe.rehearsal`): each rank says in the run's event log when it
is ready, and waits for ever. All processes of the command are then frozen and killed in a way that no program can notice,
so that no handler, ``finally`` or ``atexit`` of its own saves anything over what is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

from gradiometer.journal import undo
from gradiometer.launch import Outcome, catching, note_outcome, option_that_keeps_out, probe_environment, start

TICK: Final = 0.05
"""Seconds between two looks at the event log."""
PATIENCE: Final = 20.0
"""Seconds that other ranks have after the first one is ready."""
FREEZING: Final = 5.0
"""Seconds after which a process that does not stop (it waits for a disk, or a driver) is killed as it is."""
DYING: Final = 15.0
"""Seconds that the killed have to give back what they hold."""
LIMIT: Final = "largest"
"""File of the run folder with the size of the largest file that the journal copies, where it is not the usual one."""
SHARED: Final = Path("/dev/shm")
SHARED_NAMES: Final = ("torch_", "psm_", "sem.mp-", "nccl-")
"""What torch, multiprocessing and NCCL call their shared memory there."""
SET_SUBREAPER: Final = 36
GET_SUBREAPER: Final = 37
LINUX: Final = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Halted:
    """How a check of a command ended.

    Attributes:
        ready: ranks that were measured.
        world: how many ranks there are; 0 if none was ready.
        refused: why it cannot be checked; empty if it can.
        status: the command's own, as a shell reports it, if it ended by itself.
        signal: the signal that killed it if it ended by itself, or that interrupted the check.
        seconds: how long it ran.
        timed_out: whether its time was up.
        interrupted: whether somebody interrupted the check (Ctrl-C, or a signal to end).
        restored: files that it had changed, removed or moved, and that are as they were.
        created: files that it has made, and that are still there.
        not_restored: files that it has changed and that are not as they were, each with the reason.
        alive: its processes that could not be ended: somebody else's by now, or waiting for a disk or a driver.
    """

    ready: tuple[int, ...]
    world: int
    refused: str
    status: int | None
    signal: int | None
    seconds: float
    timed_out: bool
    interrupted: bool
    restored: tuple[Path, ...] = ()
    created: tuple[Path, ...] = ()
    not_restored: tuple[tuple[Path, str], ...] = ()
    alive: tuple[int, ...] = ()


def halt_at_first_step(
    command: Sequence[str],
    folder: Path,
    *,
    curvature: bool = False,
    seconds: float | None = None,
    stdout: int | None = None,
    largest: int | None = None,
) -> Halted:
    """Run a command until its first optimizer step would happen, and stop it there.

    None of its processes is left, nor has it changed a file that was there before, except as `Halted` says. Signals that
    would end this process end the command instead.

    Args:
        command: from `gradiometer.launch.resolve`.
        folder: run folder, made by `gradiometer.record.folder.create_folder`.
        curvature: whether the largest curvature is measured too.
        seconds: time that the command has; None waits for as long as it takes.
        stdout: file descriptor for the command's standard output; None leaves it alone.
        largest: bytes of the largest file that may be copied before the command overwrites it; None is 512 MB.

    Raises:
        GradiometerError: the command cannot be started.
    """
    folder = folder.absolute()
    if letter := option_that_keeps_out(command):
        refused = f"Python would run with -{letter}, which keeps Gradiometer out."
        return Halted((), 0, refused, None, None, 0.0, timed_out=False, interrupted=False)
    environment = probe_environment(folder, 1.0, 1)
    environment["GRADIOMETER_CHECK"] = "curvature" if curvature else "1"
    environment["GRADIOMETER_CHECK_BY"] = str(os.getpid())
    environment["TORCHDYNAMO_DISABLE"] = "1"
    if largest is not None:
        (folder / LIMIT).write_text(str(largest), encoding="ascii")
    began = time.monotonic()
    watched = _Watched(folder)
    stop = _Stop()
    here = Path.cwd()
    with catching(stop), _adopting_orphans():
        before = frozenset(_identities(_processes()))
        shared = _shared()
        child = start(command, environment, stdout=stdout, own_session=True)
        tree = _Tree(child, before)
        try:
            timed_out = _wait(child, tree, watched, stop, began + seconds if seconds is not None else None)
        finally:
            took = time.monotonic() - began
            code = child.poll() if not stop.number else None
            alive = tree.kill()
            _free(_shared() - shared, tree)
            undone = undo(folder, here=here)
    watched.read()
    killer = -code if code is not None and code < 0 else None
    status = code if code is None or code >= 0 else 128 - code
    if status is not None:
        note_outcome(folder, Outcome(status, killer, took, interrupted=False))
    return Halted(
        ready=tuple(sorted(watched.ready)),
        world=watched.world,
        refused=watched.refused,
        status=status,
        signal=killer if not stop.number else stop.number,
        seconds=took,
        timed_out=timed_out,
        interrupted=bool(stop.number),
        restored=tuple(undone.restored),
        created=tuple(undone.created),
        not_restored=tuple(undone.not_restored),
        alive=tuple(alive),
    )


class _Stop:
    """Signal handler: the check is to end. Nothing is forwarded, for the command could act on it."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or number


def _wait(child: subprocess.Popen[bytes], tree: _Tree, watched: _Watched, stop: _Stop, end: float | None) -> bool:
    """Wait until there is nothing to wait for any more; whether that is because the time is up."""
    others: float | None = None
    while True:
        ended = child.poll() is not None
        watched.read()
        if watched.refused or watched.complete or ended or stop.number:
            return False
        now = time.monotonic()
        if watched.ready and others is None:
            others = now + PATIENCE
        if others is not None and now > others:
            return False
        if end is not None and now > end:
            return True
        tree.note(now)
        time.sleep(TICK)


class _Watched:
    """What the processes of the command say in the run's event log."""

    def __init__(self, folder: Path) -> None:
        self.ready: set[int] = set()
        self.world = 0
        self.refused = ""
        self._path = folder / "events.jsonl"
        self._place = 0

    @property
    def complete(self) -> bool:
        """Whether every rank is ready."""
        return self.world > 0 and len(self.ready) >= self.world

    def read(self) -> None:
        """Read what has been added."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                text = file.read()
        except OSError:  # not there yet
            return
        text = text[: text.rfind(b"\n") + 1]
        self._place += len(text)
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                self._take(json.loads(line))

    def _take(self, event: Mapping[str, Any]) -> None:
        match event.get("event"):
            case "check-ready":
                self.ready.add(int(event["rank"]))
                self.world = self.world or int(event["world"])
            case "check-refused":
                self.refused = self.refused or str(event["reason"])
            case "probe-failed" if not self.refused:  # it would train on, unwatched
                self.refused = f"Gradiometer itself failed ({event.get('error', 'no reason known')})."
            case _:
                pass


# ---- processes ---------------------------------------------------------------------------------------------------------


class _Process(NamedTuple):
    pid: int
    parent: int
    session: int
    state: str
    began: str


def _identities(processes: Iterable[_Process]) -> Iterable[tuple[int, str]]:
    return ((p.pid, p.began) for p in processes)


def _processes() -> list[_Process]:
    """All processes of the machine."""
    return _from_proc() if LINUX else _from_ps()


def _from_proc() -> list[_Process]:
    found: list[_Process] = []
    for name in os.listdir("/proc"):  # noqa: PTH208  every few milliseconds
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    words = file.read().rpartition(b")")[2].decode().split()
            except OSError:  # it has just ended
                continue
            found.append(_Process(int(name), int(words[1]), int(words[3]), words[0], words[19]))
    return found


def _from_ps() -> list[_Process]:
    done = subprocess.run(["ps", "-axo", "pid=,ppid=,stat=,lstart="], capture_output=True, text=True, check=False)
    found: list[_Process] = []
    for line in done.stdout.splitlines():
        pid, parent, state, began = line.split(None, 3)
        found.append(_Process(int(pid), int(parent), -1, state[0], began))
    return found


@dataclass(slots=True)
class _Tree:
    """All processes of the command, wherever they have gone.

    A process that has lost its parent is adopted by this one (Linux), and is told from children of our own by its session,
    which cannot be ours; elsewhere it is known by having been seen before.
    """

    child: subprocess.Popen[bytes]
    before: frozenset[tuple[int, str]]
    known: set[tuple[int, str]] = field(default_factory=set[tuple[int, str]])
    held: set[int] = field(default_factory=set[int])
    noted: float = 0.0

    def note(self, now: float) -> None:
        """Remember who is there, where orphans would be lost otherwise."""
        if not LINUX and now > self.noted + 10 * TICK:
            self.noted = now
            self.members()

    def members(self) -> list[_Process]:
        """The processes of the command that there are now, zombies included."""
        us, session = os.getpid(), os.getsid(0)
        children: dict[int, list[_Process]] = {}
        roots: list[_Process] = []
        for process in _processes():
            children.setdefault(process.parent, []).append(process)
            identity = (process.pid, process.began)
            if process.pid == us or identity in self.before:
                continue
            orphan = process.parent == us and process.session not in (-1, session) and LINUX
            if orphan or identity in self.known or (process.pid == self.child.pid and self.child.returncode is None):
                roots.append(process)
        found: dict[int, _Process] = {}
        while roots:
            process = roots.pop()
            if process.pid not in found:
                found[process.pid] = process
                roots += children.get(process.pid, [])
        self.known.update(_identities(found.values()))
        return _parents_first(found)

    def kill(self) -> list[int]:
        """End all of them at once: first nobody moves, then nobody is left; returns who is left nevertheless."""
        self._freeze()
        if LINUX:
            self.held.update(*(_held(p.pid) for p in self.members()))
        end = time.monotonic() + DYING
        while members := self.members():
            # children first: whoever is stopped when the last parent of its process group dies is woken, by a signal that a
            # handler may be waiting for
            for process in reversed(members):
                _send(process, signal.SIGKILL)
                self._reap(process)
            if time.monotonic() > end:
                return sorted(p.pid for p in members if p.state not in "ZX")
            time.sleep(0.002)
        return []

    def _freeze(self) -> None:
        end = time.monotonic() + FREEZING
        frozen: set[int] = set()
        while True:
            moving = [p for p in self.members() if p.state not in "ZX" and (p.pid not in frozen or p.state not in "Tt")]
            for process in moving:
                frozen.add(process.pid)
                _send(process, signal.SIGSTOP)
            if not moving or time.monotonic() > end:
                return
            time.sleep(0.001)

    def _reap(self, process: _Process) -> None:
        if process.pid == self.child.pid:
            self.child.poll()
        elif process.parent == os.getpid():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def _parents_first(processes: Mapping[int, _Process]) -> list[_Process]:
    ordered: dict[int, _Process] = {}
    for process in processes.values():
        line: list[_Process] = []
        ancestor: _Process | None = process
        while ancestor is not None and ancestor.pid not in ordered and ancestor not in line:
            line.append(ancestor)
            ancestor = processes.get(ancestor.parent)
        ordered.update((p.pid, p) for p in reversed(line))
    return list(ordered.values())


def _send(process: _Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process.pid, number)


@contextlib.contextmanager
def _adopting_orphans() -> Generator[None]:
    """While the block runs, a descendant that loses its parent becomes a child of this process (Linux)."""
    if not LINUX:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    was = ctypes.c_int(0)
    libc.prctl(GET_SUBREAPER, ctypes.byref(was), 0, 0, 0)
    libc.prctl(SET_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(SET_SUBREAPER, was.value, 0, 0, 0)


# ---- shared memory -----------------------------------------------------------------------------------------------------


def _shared() -> set[str]:
    """Segments of shared memory of the kinds that outlive a killed process."""
    if not LINUX:
        return set()
    try:
        return {name for name in os.listdir(SHARED) if name.startswith(SHARED_NAMES)}  # noqa: PTH208
    except OSError:
        return set()


def _held(pid: int) -> set[int]:
    """Segments of shared memory that a process has mapped: their inodes, for a semaphore is mapped under another name."""
    found: set[int] = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="surrogateescape") as file:  # it may have ended
        for line in file:
            if f" {SHARED}/" in line:
                found.add(int(line.split(None, 5)[4]))
    return found


def _free(new: set[str], tree: _Tree) -> None:
    """Give shared memory back that belonged to the killed and to nobody else.

    Args:
        new: segments that appeared while the command ran, some of which other programs may have made.
        tree: the command's processes.
    """
    pids = {str(pid) for pid, _ in tree.known}
    theirs: dict[str, int] = {}
    for name in new:
        with contextlib.suppress(OSError):
            inode = (SHARED / name).stat().st_ino
            if inode in tree.held or (name.startswith("torch_") and name.split("_")[1] in pids):
                theirs[name] = inode
    held = set[int]().union(*(_held(p.pid) for p in _processes())) if theirs else set[int]()
    for name, inode in theirs.items():
        if inode not in held:
            with contextlib.suppress(OSError):
                (SHARED / name).unlink()
