"""Trainings on a page: the runs of a folder, and one of them while it goes on. Only ever reads the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from starlette.routing import Route

from gradiometer.errors import GradiometerError


class NoSuchRun(GradiometerError):  # noqa: N818  like GradiometerError, it is what the user reads
    """A run that is not in the folder."""


def routes(base: Path, links: Mapping[str, str], static: str) -> list[Route]:
    """Routes of everything about trainings."""
    return []
