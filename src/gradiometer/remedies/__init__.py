"""The remedies, one file each, listed in `REMEDIES`.

Importing this room costs nothing: a remedy (and with it torch) is loaded when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from gradiometer.errors import GradiometerError

if TYPE_CHECKING:
    from gradiometer.remedies.base import Remedy
    from gradiometer.types import Prescription, Treatment

    REMEDIES: tuple[Remedy, ...]

# In the order of their stages; a remedy's file is its name with underscores.
NAMES: Final = (
    "fewer-layers",
    "activation",
    "normalise",
    "residual",
    "regularise",
    "initialise",
    "pretrain",
    "optimizer",
    "clip",
)
"""Names of the remedies, in the order in which they are applied."""


def __getattr__(name: str) -> Any:
    if name != "REMEDIES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()["REMEDIES"] = tuple(remedy(known) for known in NAMES)
    return value


def remedy(name: str) -> Remedy:
    """A remedy by its name.

    Raises:
        GradiometerError: there is none of that name; the message lists them.
    """
    if name not in NAMES:
        raise GradiometerError(f"There is no remedy {name!r}.", "The remedies are: " + ", ".join(NAMES) + ".")
    return import_module(f"{__name__}.{name.replace('-', '_')}").REMEDY


def check(prescription: Prescription) -> None:
    """Whether a prescription can be given at all: its remedies and their settings exist.

    Raises:
        GradiometerError: it cannot; the message names the remedy.
    """
    if not prescription.treatments:
        raise GradiometerError("The prescription has no treatments.", "Name at least one remedy.")
    for treatment in prescription.treatments:
        _settings(treatment)


def _settings(treatment: Treatment) -> None:
    known = remedy(treatment.remedy)
    refused: type[Exception] = import_module(
        f"{__name__}.base"
    ).CannotTreatError  # by name, as the remedies: torch comes with it
    try:
        filled = known.filled(treatment.settings)
    except refused as error:
        raise GradiometerError(f"The prescription cannot be given: {error}.") from None
    for option in known.options:
        value = filled[option.name]
        if isinstance(value, bool) != isinstance(option.default, bool) and value not in option.words:
            what = f"{known.name}: {option.name} must be like {option.default!r}, not {value!r}"
            raise GradiometerError(f"The prescription cannot be given: {what}.")
