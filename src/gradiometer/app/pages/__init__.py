"""The pages of the lab, one file each, listed in `NAMES` in the order of the home page.

Importing this room costs nothing: a page (and with it torch and plotly) is loaded when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from gradiometer.errors import GradiometerError

if TYPE_CHECKING:
    from gradiometer.app.scene import LabPage

NAMES: Final = ("descent", "mountains", "depth", "strategies", "doctor")
"""Addresses of the pages; the file of a page is named like it and holds its `LabPage` as ``PAGE``."""


def page(name: str) -> LabPage:
    """A page by its name.

    Raises:
        GradiometerError: there is none of that name.
    """
    if name not in NAMES:
        raise GradiometerError(f"The lab has no page {name!r}.", "Its pages: " + ", ".join(NAMES) + ".")
    return import_module(f"{__name__}.{name}").PAGE
