"""Run a command with the probe attached, and say afterwards how it ended and why too little was seen.

The command is started unchanged, never executed inside this process: a folder with a ``sitecustomize`` stands first on its
``PYTHONPATH``, and three variables tell the probe where to record. This process only forwards signals, waits, and reads
the record, however the command died.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tokenize
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from gradiometer.errors import GradiometerError
from gradiometer.record.folder import RUN_FILE, write_info

if TYPE_CHECKING:
    from gradiometer.record.run import Run  # reading records needs numpy; launching does not

BOOT: Final = Path(__file__).resolve().parent / "probe" / "boot"
FORWARDED: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
FROM_KEYBOARD: Final = ("SIGINT", "SIGQUIT")
TICK: Final = 0.2
"""Seconds."""
HEAD: Final = 1 << 20
"""Bytes of a script that are read to see whether it is text."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the command ended.

    Attributes:
        status: as a shell reports it: the command's own, or 128 + N if signal N killed it.
        signal: the signal that killed it, if one did.
        seconds: how long it ran.
        interrupted: whether somebody interrupted it (Ctrl-C, SIGINT).
    """

    status: int
    signal: int | None
    seconds: float
    interrupted: bool


# ---- what to run -------------------------------------------------------------------------------------------------------


def resolve(words: Sequence[str]) -> list[str]:
    """Turn what was typed into a command that can be started.

    ``train.py args…`` becomes ``python train.py args…`` with this interpreter; anything else stays as it is.

    Raises:
        GradiometerError: there is no command, it does not exist, may not be executed, or the script is not Python.
    """
    if not words:
        raise GradiometerError(
            "There is no command to run.", "Put it last: gradiometer run train.py, or gradiometer run -- torchrun train.py."
        )
    first = words[0]
    on_path = os.sep not in first and shutil.which(first) is not None
    if first.endswith(".py") or (not on_path and _is_data(Path(first))):
        _check_script(first)
        return [sys.executable, *words]
    command = list(words)
    if first == "python" and not on_path:
        command[0] = sys.executable
    else:
        _check_program(first, on_path)
    if _is_python(first):
        _, script = _read_options(words)
        if script is not None:
            _check_script(script)
    return command


def _is_data(path: Path) -> bool:
    """Whether it exists and is no program: a script without the execute bit, or a folder with a ``__main__.py``."""
    return path.is_dir() or (path.is_file() and not os.access(path, os.X_OK))


def _is_python(word: str) -> bool:
    name = Path(word).name
    return name.startswith("python") and not name.removeprefix("python").strip("0123456789.")


def _read_options(words: Sequence[str]) -> tuple[str, str | None]:
    """Of a ``python …`` command: the letters of the interpreter's own options, and the script (None with -c, -m, -)."""
    letters = ""
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-"):
            return letters, word
        if word == "-":
            break
        if word.startswith("--"):
            if word == "--check-hash-based-pycs":
                next(rest, None)
            continue
        for place, letter in enumerate(word[1:], 2):
            if letter in "cm":
                return letters, None
            if letter in "WX":  # takes a value: what is left of the word, or the next one
                if place == len(word):
                    next(rest, None)
                break
            letters += letter
    return letters, None


def option_that_keeps_out(command: Sequence[str]) -> str:
    """The option of a ``python …`` command that makes Python start without the probe; empty if there is none."""
    letters = _read_options(command)[0] if command and _is_python(command[0]) else ""
    return next((letter for letter in letters if letter in "IES"), "")


def _check_program(word: str, on_path: bool) -> None:
    if on_path:
        return
    if os.sep not in word:
        if "=" in word:
            raise GradiometerError(f"{word} is not a command.", f"Set variables before gradiometer: {word} gradiometer run …")
        raise GradiometerError(f"There is no command {word}.", "Check its spelling, and that its environment is active.")
    path = Path(word)
    if not path.exists():
        raise GradiometerError(f"There is no command {word}.", "Check the path.")
    if not os.access(path, os.X_OK):
        raise GradiometerError(f"{word} may not be executed.", f"Run `chmod +x {word}`, or put its interpreter in front.")


def _check_script(word: str) -> None:
    path = Path(word)
    if path.is_dir():
        if not (path / "__main__.py").is_file():
            raise GradiometerError(f"{word} is a folder.", "Name the script in it that trains.")
        return
    if not path.exists():
        raise GradiometerError(f"There is no script {word}.", f"Check the path; this folder is {Path.cwd()}.")
    if path.suffix == ".pyc" or not path.is_file():
        return
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if zipfile.is_zipfile(path):
            return
    except OSError as error:
        raise GradiometerError(f"The script {word} cannot be read ({error.strerror}).", "Check its permissions.") from error
    if not _is_source(head):
        raise GradiometerError(
            f"{word} is not Python: it is no text.", "Name a Python script, or put its interpreter in front."
        )


def _is_source(head: bytes) -> bool:
    """Whether Python could read it as text. A syntax error is Python's to report: it does that better."""
    if b"\0" in head:
        return False
    try:
        encoding, _ = tokenize.detect_encoding(iter(head.splitlines(keepends=True)).__next__)
        codecs.getincrementaldecoder(encoding)().decode(head)  # the last character may be cut
    except (SyntaxError, UnicodeDecodeError):
        return False
    return True


# ---- running it --------------------------------------------------------------------------------------------------------


def launch(
    command: Sequence[str],
    folder: Path,
    *,
    overhead: float,
    every: int | None,
    prescription: Path | None = None,
    stdout: int | None = None,
    tick: Callable[[], object] | None = None,
) -> Outcome:
    """Run a command with the probe attached and wait for it.

    Standard input, output and error are the command's own unless ``stdout`` says otherwise. Signals sent to this process
    are forwarded; it never dies before the command. How the command ended is added to the run's ``run.json``.

    Args:
        command: from `resolve`.
        folder: run folder, made by `gradiometer.record.folder.create_folder`.
        overhead: share of the training's time the probe may take, in (0, 1].
        every: look at every n-th step whatever it costs; None lets the budget decide.
        prescription: file of what the models of the command are treated with; None for nothing.
        stdout: file descriptor for the command's standard output; None leaves it alone.
        tick: called every `TICK` seconds while the command runs.

    Raises:
        GradiometerError: the command cannot be started.
    """
    folder = folder.absolute()
    began = time.monotonic()
    forward = _Forward()
    with catching(forward):
        child = start(command, _environment(folder, overhead, every, prescription), stdout=stdout)
        forward.to(child)
        code = _wait(child, tick)
    killer = -code if code < 0 else None
    interrupted = forward.interrupted or killer == signal.SIGINT
    outcome = Outcome(code if code >= 0 else 128 - code, killer, time.monotonic() - began, interrupted)
    note_outcome(folder, outcome)
    return outcome


def start(
    command: Sequence[str], environment: Mapping[str, str], *, stdout: int | None = None, own_session: bool = False
) -> subprocess.Popen[bytes]:
    """Start a command that the probe attaches to.

    Args:
        command: from `resolve`.
        environment: of the command, from `probe_environment`.
        stdout: file descriptor for the command's standard output; None leaves it alone.
        own_session: whether the terminal's Ctrl-C must not reach it.

    Raises:
        GradiometerError: the command cannot be started.
    """
    try:
        # what the shell opened for the command, such as <(...), is for the command
        return subprocess.Popen(command, env=environment, stdout=stdout, close_fds=False, start_new_session=own_session)
    except OSError as error:
        hint = "Put its interpreter in front." if error.errno == errno.ENOEXEC else "Check the command."
        raise GradiometerError(f"{command[0]} cannot be started ({error.strerror}).", hint) from error


def _wait(child: subprocess.Popen[bytes], tick: Callable[[], object] | None) -> int:
    while tick is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(TICK)
        try:
            tick()
        except BaseException:
            child.wait()  # a mistake of the caller's never leaves the command alone
            raise
    return child.wait()


def probe_environment(folder: Path, overhead: float, every: int | None, prescription: Path | None = None) -> dict[str, str]:
    """Environment of a command under which every Python of it attaches the probe.

    Args:
        folder: run folder, absolute.
        overhead: share of the training's time the probe may take, in (0, 1].
        every: look at every n-th step whatever it costs; None lets the budget decide.
        prescription: file of what the models of the command are treated with; None for nothing.

    Raises:
        GradiometerError: Python cannot search the path that Gradiometer is installed in.
    """
    boot = str(BOOT)
    if os.pathsep in boot:
        raise GradiometerError(
            f"Gradiometer is installed in {boot}, and Python cannot search a path with a {os.pathsep!r} in it.",
            "Install it elsewhere, or use gradiometer.watch() in the training.",
        )
    environment = dict(os.environ)
    inherited = environment.get("PYTHONPATH", "")
    # under another `gradiometer run` the folder is there already
    theirs = [entry for entry in inherited.split(os.pathsep) if entry != boot] if inherited else []
    environment["PYTHONPATH"] = os.pathsep.join([boot, *theirs])
    if not (environment.get("GRADIOMETER_CHECK") and environment.get("GRADIOMETER_RUN")):  # else we are being checked ourselves
        environment["GRADIOMETER_RUN"] = str(folder)
    environment["GRADIOMETER_OVERHEAD"] = repr(float(overhead))
    environment.pop("GRADIOMETER_EVERY", None)
    if every is not None:
        environment["GRADIOMETER_EVERY"] = str(every)
    if prescription is not None:
        environment["GRADIOMETER_PRESCRIPTION"] = str(prescription.absolute())
    return environment


_environment = probe_environment


class _Forward:
    """Signal handler that hands signals on to the command."""

    def __init__(self) -> None:
        self.interrupted = False
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.interrupted |= number == signal.SIGINT
        if signal.Signals(number).name in FROM_KEYBOARD and _in_foreground():
            return  # typed at the terminal: the command, in the same process group, has it already
        if self._child is None:
            self._early.append(number)
        elif self._child.returncode is None:  # not waited for yet: its process id is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._child.pid, number)

    def to(self, child: subprocess.Popen[bytes]) -> None:
        """The command has started: deliver what came before."""
        self._child = child
        while self._early:
            self(self._early.pop(0), None)


def _in_foreground() -> bool:
    """Whether a terminal sends its Ctrl-C to our process group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


@contextlib.contextmanager
def catching(handler: Callable[[int, FrameType | None], object]) -> Generator[None]:
    """Signals that would end this process go to a handler while the block runs, where Python lets us: in the main thread."""
    before: dict[int, Any] = {}
    try:
        for name in FORWARDED:
            number = getattr(signal, name, None)
            # what is ignored (nohup, a job in the background) must stay ignored in the command too
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                with contextlib.suppress(ValueError):
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def note_outcome(folder: Path, outcome: Outcome) -> None:
    """Add to a run's ``run.json`` how its command ended."""
    facts = {"status": outcome.status, "signal": outcome.signal, "seconds": round(outcome.seconds, 3)}
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    note(folder, {**facts, "interrupted": outcome.interrupted, "ended": ended})


def note(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add facts to a run's ``run.json``; says so where it cannot be written, and goes on."""
    if not facts:
        return
    try:
        info: dict[str, Any] = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        write_info(folder, {**info, **facts})
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        print(f"gradiometer: the run folder {folder} cannot be written any more ({reason})", file=sys.stderr)  # noqa: T201


# ---- why nothing was seen ----------------------------------------------------------------------------------------------


def explain_silence(run: Run) -> str:
    """One sentence that says why nothing, or only so little, was measured; told from what the run left on disk.

    Args:
        run: the run, ended or not.
    """
    ending = _ending(run.info)
    try:
        trace = run.trace
    except GradiometerError as error:
        return error.message
    events = _Events(trace.events)
    steps = trace.steps_seen
    if (refused := events.last("treatment-failed")) is not None:
        return f"The command was ended, because its prescription could not be given: {refused.get('sentence')}"
    failed = events.last("probe-failed")
    if failed is not None:
        after = f" after {_count(steps)}" if steps else ""
        why = failed.get("error", "no reason known")
        return f"Gradiometer itself stopped watching{after} ({why}); the training went on without it."
    if run.info.get("command") == ["gradiometer.watch()"]:
        return f"Between gradiometer.watch() and its end {_count(steps)} {'was' if steps == 1 else 'were'} seen."
    if run.info.get("status") is None:
        return f"The command is still running, or its end could not be noted; so far it has taken {_count(steps)}."
    if steps:
        return f"The command {ending} after {_count(steps)}."
    if events.last("backward") is not None:
        if run.info.get("status") == 0:
            return "backward() was called, but no step was ever taken: optimizer.step() was not reached."
        return f"The command {ending} during its first training step."
    torch = events.last("torch")
    if torch is not None:
        return _about_torch(run, events, str(torch.get("version", "?")), ending)
    python = events.last("python")
    if python is None:
        return _about_python(run, ending)
    if (refused := events.last("torch-failed")) is not None:
        return f"The command could not import torch ({refused.get('error')})."
    if (missing := events.last("no-torch")) is not None:
        return f"The command asked for torch, and {missing.get('executable')} has none installed."
    if run.info.get("status") == 0:
        return "The command never imported torch: it ran Python, but trained nothing with PyTorch."
    return f"The command {ending} before it imported torch."


class _Events:
    """What the processes of the command said, the last of each kind."""

    def __init__(self, events: Sequence[Mapping[str, Any]]) -> None:
        self._last = {str(event.get("event")): event for event in events}

    def last(self, kind: str) -> Mapping[str, Any] | None:
        return self._last.get(kind)


def _about_torch(run: Run, events: _Events, version: str, ending: str) -> str:
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if len(numbers) == 2 and numbers < [2, 6]:
        return f"The command uses torch {version}; Gradiometer needs torch 2.6 or newer."
    python = str((events.last("python") or {}).get("version", ""))
    if python and [int(part) for part in python.split(".")[:2]] < [3, 11]:
        return f"The command runs Python {python}; Gradiometer needs Python 3.11 or newer."
    if run.info.get("status") == 0:
        return "The command imported torch but never called backward(): nothing was trained."
    return f"The command {ending} before its first backward pass."


def _about_python(run: Run, ending: str) -> str:
    if not os.access(run.folder, os.W_OK):
        return f"The run folder {run.folder} cannot be written, so nothing was recorded."
    if letter := option_that_keeps_out([str(word) for word in run.info.get("command", [])]):
        return f"Python ran with -{letter}, which keeps Gradiometer out; drop it, or use gradiometer.watch() in the code."
    if run.info.get("status") != 0:
        return f"The command {ending} before it started Python."
    return (
        "The command started no Python that Gradiometer could watch: it is no Python program, or it starts Python with "
        "-I, -E or -S or with an environment of its own; use gradiometer.watch() in the code."
    )


def _count(steps: int) -> str:
    return f"{steps or 'no'} training step{'s' if steps != 1 else ''}"


def _ending(info: Mapping[str, Any]) -> str:
    """How the command ended, as the middle of a sentence."""
    status, killer = info.get("status"), info.get("signal")
    if killer is not None:
        return f"was killed by {_signal_name(int(killer))}"
    if status is None:
        return "has not ended"
    if status == 0:
        return "ended normally"
    if status > 128 and _signal_name(status - 128).startswith("SIG"):
        return f"ended with status {status} (as after {_signal_name(status - 128)})"
    return f"failed with status {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
