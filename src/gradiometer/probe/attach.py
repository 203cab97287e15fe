"""Two doors to one probe: the environment (no change to the training's code) and ``gradiometer.watch``."""

from __future__ import annotations

import atexit
import gc
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import torch

from gradiometer.errors import GradiometerError
from gradiometer.probe.observer import Observer
from gradiometer.probe.safety import EventLog
from gradiometer.probe.sampler import Sampler
from gradiometer.probe.taps import Taps
from gradiometer.record.folder import create_folder

DEFAULT_OVERHEAD: Final = 0.01


class Watch:
    """A probe in this process. Use as a context manager, or call `detach` when done.

    Attributes:
        folder: the run folder it records to.
    """

    def __init__(
        self, folder: Path, overhead: float, every: int | None, optimizers: Sequence[torch.optim.Optimizer] = ()
    ) -> None:
        self.folder = folder
        self._events = EventLog(folder)
        self._taps = Taps(self._failed)
        self._observer = Observer(folder, Sampler(overhead, every), self._taps.set_module_hooks, optimizers)
        self._attached = True

    def _install(self) -> None:
        self._taps.install(self._observer)
        self._taps.set_module_hooks(True)
        atexit.register(self.detach)

    def adopt(self, model: torch.nn.Module) -> None:
        """Name the parameters and modules of a model before its first forward pass."""
        self._observer.names.adopt(model)

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
        self._taps.remove()
        try:
            self._observer.end()
        except Exception as error:  # noqa: BLE001  the training may be in the middle of anything
            self._log(error)

    def _failed(self, error: Exception) -> None:
        """The probe failed: say so once, leave the training alone."""
        self._log(error)
        self._attached = False
        try:
            self._observer.recorder.close()
        except Exception as second:  # noqa: BLE001
            self._log(second)

    def _log(self, error: Exception) -> None:
        where = traceback.format_exception(error)
        self._events.add("probe-failed", error=f"{type(error).__name__}: {error}", trace="".join(where)[-4000:])
        reason = error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        self._events.warn(f"stopped watching ({reason}); your training goes on")

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.detach()


_current: Watch | None = None


def attach_from_environment() -> None:
    """Attach because ``GRADIOMETER_RUN`` is set; called once torch has been imported."""
    global _current
    folder = os.environ.get("GRADIOMETER_RUN")
    if not folder or _current is not None:
        return
    every = os.environ.get("GRADIOMETER_EVERY")
    overhead = float(os.environ.get("GRADIOMETER_OVERHEAD", DEFAULT_OVERHEAD))
    watch = Watch(Path(folder), overhead, int(every) if every else None)
    watch._events.add("torch", version=str(torch.__version__))  # pyright: ignore[reportPrivateUsage]
    watch._install()  # pyright: ignore[reportPrivateUsage]
    _current = watch


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
    ``gradiometer run`` the probe is attached already and that one is returned.

    Args:
        model: the model that is trained; None waits for the first forward pass.
        optimizer: its optimizer; None looks for one. Where there is none, a backward pass counts as a step.
        out: run folder; None makes a new one under ``.gradiometer/runs``.
        overhead: share of the training's time the probe may take, in (0, 1].
        every: look at every n-th step whatever it costs; None lets the budget decide.

    Returns:
        A `Watch`: a context manager with ``detach()``; ``gradiometer.load(watch.folder)`` reads what it recorded.

    Raises:
        GradiometerError: another watch is active, an argument is out of range, or the folder cannot be written.
    """
    global _current
    if not 0.0 < overhead <= 1.0:
        raise GradiometerError(f"overhead is {overhead}.", "Give a share of the training's time, such as 0.01.")
    if every is not None and every < 1:
        raise GradiometerError(f"every is {every}.", "Give a number of steps, at least 1.")
    if _current is not None and _current.attached:
        if os.environ.get("GRADIOMETER_RUN") and out is None:
            if model is not None:
                _current.adopt(model)
            return _current
        raise GradiometerError("This process is being watched already.", "Call detach() on the watch you have first.")
    from gradiometer import __version__

    folder = create_folder(Path(out) if out is not None else None, ["gradiometer.watch()"], __version__)
    made = Watch(folder, overhead, every, [optimizer] if optimizer is not None else _live_optimizers())
    if model is not None:
        made.adopt(model)
    made._install()  # pyright: ignore[reportPrivateUsage]
    _current = made
    return made


def _live_optimizers() -> list[torch.optim.Optimizer]:
    # type(o), never isinstance: a proxy's __class__ may run the user's code
    return [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
