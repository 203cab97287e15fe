"""Prescriptions as files: what ``gradiometer cure`` hands over and ``gradiometer run --with`` takes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from gradiometer.errors import GradiometerError
from gradiometer.remedies import check
from gradiometer.types import Prescription, Treatment

FORMAT: Final = 1
"""Version of the file format, under ``prescription`` in the file."""

Given: TypeAlias = Prescription | Mapping[str, Any] | str | os.PathLike[str]
"""A prescription, or what one can be made from: its JSON object, or a file that holds it."""

_SHAPE: Final = '{"treatments": [{"remedy": "clip", "settings": {"kind": "norm"}}]}'
_HINT: Final = f"It should look like {_SHAPE}."


def to_dict(prescription: Prescription) -> dict[str, Any]:
    """A prescription as a JSON object."""
    treatments = [
        {"remedy": t.remedy, "settings": dict(t.settings), **({"sites": list(t.sites)} if t.sites else {})}
        for t in prescription.treatments
    ]
    return {"prescription": FORMAT, "reason": prescription.reason, "treatments": treatments}


def write(prescription: Prescription, path: str | os.PathLike[str]) -> None:
    """Write a prescription to a file.

    Raises:
        GradiometerError: the file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(to_dict(prescription), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise GradiometerError(f"{path} cannot be written ({error.strerror}).", "Name a file that you may write.") from error


def read(path: str | os.PathLike[str]) -> Prescription:
    """Read a prescription from a file and see that it can be given.

    Raises:
        GradiometerError: the file cannot be read, holds no prescription, or names a remedy or setting that does not exist.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise GradiometerError(f"The prescription {path} cannot be read ({reason}).", "Check the path.") from error
    except ValueError as error:
        raise GradiometerError(f"The prescription {path} is no JSON ({error}).", _HINT) from error
    return from_dict(data, str(path))


def load(given: Given) -> Prescription:
    """A prescription from whatever stands for one; see `Given`.

    Raises:
        GradiometerError: as of `read`.
    """
    if isinstance(given, Prescription):
        check(given)
        return given
    return from_dict(given) if isinstance(given, Mapping) else read(given)


def from_dict(data: Any, where: str = "") -> Prescription:
    """Make a prescription of a JSON object and see that it can be given.

    Args:
        data: the object.
        where: file that it comes from, for the message.

    Raises:
        GradiometerError: it is none, or names a remedy or setting that does not exist.
    """
    front = f"The prescription {where}" if where else "The prescription"
    fields = _object(data, front)
    _no_others(fields, ("prescription", "reason", "treatments"), front)
    if (version := fields.get("prescription", FORMAT)) != FORMAT:
        raise GradiometerError(f"{front} has format {version}; this version reads {FORMAT}.", "Use the version that made it.")
    reason, listed = fields.get("reason", ""), fields.get("treatments")
    if not isinstance(reason, str):
        raise GradiometerError(f"{front} has a reason that is no text: {reason!r}.", _HINT)
    if not isinstance(listed, list) or not listed:
        raise GradiometerError(f"{front} has no list of treatments.", _HINT)
    treatments = cast("list[Any]", listed)
    made = Prescription(tuple(_treatment(t, f"{front}, treatment {n},") for n, t in enumerate(treatments, 1)), reason)
    check(made)
    return made


def _treatment(data: Any, front: str) -> Treatment:
    fields = _object(data, front)
    _no_others(fields, ("remedy", "settings", "sites"), front)
    remedy, settings, sites = fields.get("remedy"), fields.get("settings", {}), fields.get("sites", [])
    if not isinstance(remedy, str):
        raise GradiometerError(f"{front} names no remedy.", _HINT)
    settings = _object(settings, f"{front} settings,")
    for name, value in settings.items():
        if not isinstance(value, (str, int, float, bool)):
            raise GradiometerError(f"{front} sets {name} to {value!r}.", "A setting is a text, a number, true or false.")
    if not isinstance(sites, (list, tuple)) or not all(isinstance(s, str) for s in cast("list[Any]", sites)):
        raise GradiometerError(f"{front} has sites that are no list of names.", 'Such as ["encoder.*"].')
    return Treatment(remedy, settings, tuple(cast("list[str]", sites)))


def _object(data: Any, front: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise GradiometerError(f"{front} is no JSON object but {type(data).__name__}.", _HINT)
    return {str(key): value for key, value in cast("Mapping[Any, Any]", data).items()}


def _no_others(fields: Mapping[str, Any], known: tuple[str, ...], front: str) -> None:
    for name in fields:
        if name not in known:
            raise GradiometerError(f"{front} has a field {name!r} that means nothing.", f"Known are: {', '.join(known)}.")
