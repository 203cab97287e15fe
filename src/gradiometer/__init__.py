"""Gradiometer: find, explain, predict and cure vanishing and exploding gradients in deep networks.

Names are loaded on first use, so that a training process that only needs the probe imports nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gradiometer.checking import check as check
    from gradiometer.errors import GradiometerError as GradiometerError
    from gradiometer.preflight.result import Preflight as Preflight
    from gradiometer.probe.attach import Watch as Watch
    from gradiometer.probe.attach import log as log
    from gradiometer.probe.attach import watch as watch
    from gradiometer.record.run import Run as Run
    from gradiometer.record.run import load as load
    from gradiometer.record.trace import Trace as Trace
    from gradiometer.remedies.bedside import treat as treat
    from gradiometer.rules import diagnose as diagnose
    from gradiometer.trial.notebook import cure as cure
    from gradiometer.types import Evidence as Evidence
    from gradiometer.types import Finding as Finding
    from gradiometer.types import Severity as Severity
    from gradiometer.types import Site as Site

_HOME = {
    "check": "gradiometer.checking",
    "Preflight": "gradiometer.preflight.result",
    "GradiometerError": "gradiometer.errors",
    "Watch": "gradiometer.probe.attach",
    "watch": "gradiometer.probe.attach",
    "log": "gradiometer.probe.attach",
    "treat": "gradiometer.remedies.bedside",
    "cure": "gradiometer.trial.notebook",
    "Run": "gradiometer.record.run",
    "load": "gradiometer.record.run",
    "Trace": "gradiometer.record.trace",
    "diagnose": "gradiometer.rules",
    "Evidence": "gradiometer.types",
    "Finding": "gradiometer.types",
    "Severity": "gradiometer.types",
    "Site": "gradiometer.types",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'gradiometer' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
