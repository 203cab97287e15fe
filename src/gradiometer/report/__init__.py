"""Reports of a run for people and programs: one `Summary`, and a renderer for each format."""

from __future__ import annotations

from pathlib import Path

from gradiometer.errors import GradiometerError


def write(path: Path, text: str) -> Path:
    """Write a rendered report; returns its path.

    Raises:
        GradiometerError: the file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GradiometerError(
            f"{path} cannot be written ({error.strerror or error}).", "Name another file with -o, or make room."
        ) from error
    return path
