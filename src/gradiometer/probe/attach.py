"""Two doors to one probe: the environment (no change to the training's code) and ``gradiometer.watch``."""

from __future__ import annotations

import atexit
import contextlib
import gc
import math
import multiprocessing
import multiprocessing.util
import os
import sys
import traceback
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Never

import torch

from gradiometer.errors import GradiometerError
from gradiometer.probe.evaluation import Evaluations
from gradiometer.probe.observer import Observer
from gradiometer.probe.rehearsal import Rehearsal
from gradiometer.probe.safety import EventLog
from gradiometer.probe.sampler import Sampler
from gradiometer.probe.taps import Taps
from gradiometer.record.folder import create_folder

DEFAULT_OVERHEAD: Final = 0.01
TRIAL_FAILED: Final = 3
"""Exit status of a trial that could not be recorded."""
MIN_TORCH: Final = (2, 6)
METRICS: Final = 1000
"""Values that `log` writes of one name; of more than these it writes every 2nd, 4th, ..."""


class Watch:
    """A probe in this process. Use as a context manager, or call `detach` when done.

    Attributes:
        folder: the run folder it records to; absolute, for a script may change its directory.
    """

    def __init__(
        self,
        folder: Path,
        overhead: float,
        every: int | None,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        *,
        of_run: bool = False,
        rehearse: str = "",
        limit: int | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self._of_run = of_run
        self._taps = Taps(self._failed)
        self._rehearsal: Rehearsal | None = None
        if rehearse:
            curvature = rehearse == "curvature"
            self._rehearsal = Rehearsal(self.folder, EventLog(self.folder), with_curvature=curvature, blocking=True)
        sampler = Sampler(overhead, every)
        hooks = self._taps.set_module_hooks
        self._observer = Observer(self.folder, sampler, hooks, optimizers, self._rehearsal, limit, self._enough)
        self._events = self._observer.events  # one log: it warns once
        self._evaluations: Evaluations | None = None
        if limit is not None:
            self._evaluations = Evaluations(self._events, lambda: self._observer.step, lambda: self._taps.quiet)
        self._logged: dict[str, int] = {}
        self._attached = True

    def _install(self) -> None:
        try:
            self._taps.install(self._observer)
            self._taps.set_module_hooks(self._observer.wants_module_hooks)
        except BaseException:
            self._taps.remove()
            raise
        if self._evaluations is not None:
            self._evaluations.install()
        atexit.register(self.detach)
        multiprocessing.util.register_after_fork(self, Watch._in_forked_child)

    def _in_forked_child(self) -> None:
        # such a child leaves by os._exit: atexit is never called there, finalizers are
        multiprocessing.util.Finalize(self, self.detach, exitpriority=100)

    def adopt(self, model: torch.nn.Module) -> None:
        """Name the parameters and modules of a model before its first forward pass."""
        try:
            self._observer.names.adopt(model)
        except Exception:  # noqa: BLE001  a module whose own methods fail; it gets another chance at its forward pass
            return

    @property
    def attached(self) -> bool:
        """Whether the probe is still measuring: false after `detach`, or after a failure of its own."""
        return self._attached

    def detach(self) -> None:
        """Stop measuring, write what waits and take every hook off. Safe to call twice."""
        if not self._attached:
            return
        self._attached = False
        atexit.unregister(self.detach)
        try:
            self._taps.remove()
            if self._evaluations is not None:
                self._evaluations.remove()
            self._observer.end()
        except Exception as error:  # noqa: BLE001  the training may be in the middle of anything
            self._log(error)

    def _failed(self, error: Exception) -> None:
        """The probe failed: say so once, leave the training alone."""
        self._attached = False
        atexit.unregister(self.detach)
        self._log(error)
        with contextlib.suppress(Exception):  # most likely for the same reason, and that has been told
            self._observer.recorder.close()
        if self._evaluations is not None:  # a trial without a record is of no use, and nothing would stop it
            end_process(TRIAL_FAILED)

    def _enough(self) -> None:
        """A trial has come to its end."""
        if self._evaluations is not None:
            self._evaluations.flush()
        self._events.add("enough", step=self._observer.step)
        end_process(0)

    def note_metric(self, name: str, value: Any) -> None:
        """Write a value that the script reports of itself."""
        count = self._logged[name] = self._logged.get(name, 0) + 1
        stride = 1 << max(0, (count - 1) // METRICS).bit_length()
        if count % stride:
            return
        try:
            self._events.add_minor("metric", step=self._observer.step, name=name, value=float(value))
        except Exception:  # noqa: BLE001  the script's own mistake must not end its training
            self._events.note(f"gradiometer.log: {name} is no number but {type(value).__name__}.")

    def _log(self, error: Exception) -> None:
        try:
            where = "".join(traceback.format_exception(error))[-4000:]
            reason = error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            self._events.add("probe-failed", error=reason, trace=where)
            if self._rehearsal is not None:
                self._rehearsal.failed(reason)
            self._events.warn(f"stopped watching ({reason}); your training goes on")
        except Exception:  # noqa: BLE001  an exception of the user's that cannot even be printed
            return

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # `gradiometer run` watches the whole command, whatever part of it the script would have watched by itself
        if not self._of_run:
            self.detach()


_current: Watch | None = None


def attach_from_environment() -> None:
    """Attach because ``GRADIOMETER_RUN`` is set; called once torch has been imported. Does nothing if already attached.

    Raises:
        GradiometerError: one of the ``GRADIOMETER_`` variables makes no sense.
    """
    global _current
    folder = os.environ.get("GRADIOMETER_RUN")
    if not folder or _current is not None:
        return
    overhead, every = _overhead_from_environment(), _every_from_environment()
    rehearse, limit = os.environ.get("GRADIOMETER_CHECK", ""), _count_from_environment("GRADIOMETER_STEPS")
    made = Watch(Path(folder), overhead, every, of_run=True, rehearse=rehearse, limit=limit)
    made._install()  # pyright: ignore[reportPrivateUsage]
    _current = made


@contextlib.contextmanager
def muted() -> Generator[None]:
    """While the block runs, the probe of this process sees nothing: what goes on is no training."""
    with contextlib.ExitStack() as stack:
        if _current is not None and _current.attached:
            stack.enter_context(_current._taps.muted())  # pyright: ignore[reportPrivateUsage]
        yield


def log(name: str | None = None, value: Any = None, /, **values: Any) -> None:
    """Write numbers that the script knows of itself (an accuracy, say) into the run being recorded.

    ``log("accuracy", 0.9)`` or ``log(accuracy=0.9, held_out=0.8)``. Does nothing where no run is being recorded. A verdict
    on a treatment compares them.

    Args:
        name: what the number is.
        value: anything that ``float`` takes.
        **values: more of them, by name.
    """
    if _current is None or not _current.attached:
        return
    for known, number in {**({name: value} if name is not None else {}), **values}.items():
        _current.note_metric(known, number)


def event(kind: str, **facts: Any) -> None:
    """Write an event into the run being recorded, if there is one."""
    if _current is not None:
        _current._events.add(kind, **facts)  # pyright: ignore[reportPrivateUsage]


def end_process(status: int) -> Never:
    """End this process here and now: none of the script's own handlers runs, but what it has printed is kept.

    The record is complete, and no child process (a data worker) is left behind.
    """
    try:
        if _current is not None:
            _current.detach()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        for child in multiprocessing.active_children():
            child.terminate()
    finally:  # also when a handler of the script's (for children that die) raises
        os._exit(status)


def _overhead_from_environment() -> float:
    text = os.environ.get("GRADIOMETER_OVERHEAD") or str(DEFAULT_OVERHEAD)
    try:
        overhead = float(text)
    except ValueError:
        overhead = math.nan
    return _checked_overhead(overhead, f"GRADIOMETER_OVERHEAD is {text!r}.")


def _every_from_environment() -> int | None:
    return _count_from_environment("GRADIOMETER_EVERY")


def _count_from_environment(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    return _checked_every(int(text) if text.isascii() and text.isdigit() else 0, f"{name} is {text!r}.")


def _checked_overhead(overhead: float, sentence: str) -> float:
    if not 0.0 < overhead <= 1.0:
        raise GradiometerError(sentence, "Give a share of the training's time, such as 0.01.")
    return overhead


def _checked_every(every: int, sentence: str) -> int:
    if every < 1:
        raise GradiometerError(sentence, "Give a number of steps, at least 1.")
    return every


def watch(
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    overhead: float = DEFAULT_OVERHEAD,
    every: int | None = None,
) -> Watch:
    """Watch the training of this process from here on.

    Everything that trains in the process is watched; ``model`` only fixes the names of its layers beforehand. Under
    ``gradiometer run`` the probe is attached already: that one is returned, its folder and budget stay those of the
    command line, and leaving the ``with`` block does not end it (``detach()`` does).

    Args:
        model: the model that is trained; None waits for the first forward pass.
        optimizer: its optimizer; None looks for one. Where there is none, a backward pass counts as a step.
        out: run folder; None makes a new one under ``.gradiometer/runs``.
        overhead: share of the training's time the probe may take, in (0, 1].
        every: look at every n-th step whatever it costs; None lets the budget decide.

    Returns:
        A `Watch`: a context manager with ``detach()``; ``gradiometer.load(watch.folder)`` reads what it recorded.

    Raises:
        GradiometerError: another watch is active, an argument is out of range, the folder cannot be written, or torch is
            too old.
    """
    global _current
    _checked_overhead(overhead, f"overhead is {overhead}.")
    if every is not None:
        _checked_every(every, f"every is {every}.")
    of_run = os.environ.get("GRADIOMETER_RUN") if out is None else None
    if _current is not None and _current.attached:
        if not of_run:
            raise GradiometerError(
                "This process is being watched already.",
                "Leave `out` away under `gradiometer run`; else call detach() on the watch you have first.",
            )
        if model is not None:
            _current.adopt(model)
        return _current
    _check_torch()
    from gradiometer import __version__

    if of_run:  # the script detached the run's probe before, or Python was started in a way that kept it out
        folder = Path(of_run)
    else:
        folder = create_folder(Path(out) if out is not None else None, ["gradiometer.watch()"], __version__)
    optimizers = [optimizer] if optimizer is not None else _live_optimizers()
    made = Watch(folder, overhead, every, optimizers, of_run=bool(of_run))
    if _compiled_before():
        made._observer.compiling()  # pyright: ignore[reportPrivateUsage]
    if model is not None:
        made.adopt(model)
    made._install()  # pyright: ignore[reportPrivateUsage]
    _current = made
    return made


def _check_torch() -> None:
    version = str(torch.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_TORCH:
        raise GradiometerError(f"This is torch {version}.", f"Gradiometer needs torch {MIN_TORCH[0]}.{MIN_TORCH[1]} or newer.")


def _compiled_before() -> bool:
    """Whether a live module went through torch.compile before we could see it."""
    if not any(map(_is_compiled, gc.get_objects())):
        return False
    gc.collect()  # a compiled model of an earlier training is a cycle, and may be garbage
    return any(map(_is_compiled, gc.get_objects()))


def _is_compiled(candidate: object) -> bool:
    if not issubclass(type(candidate), torch.nn.Module):
        return False
    return type(candidate).__name__ == "OptimizedModule" or candidate.__dict__.get("_compiled_call_impl") is not None


def _live_optimizers() -> list[torch.optim.Optimizer]:
    # type(o), never isinstance: a proxy's __class__ may run the user's code
    return [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
