"""The lab as static pages: opens from disk or from any web server, without Python, with the states that were written.

Every page keeps its controls, with the values that its `LabPage.exported` names, and every combination of them is one small
script file: browsers do not let a page from disk fetch data, but they do let it load a script.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from gradiometer.app import pages_html
from gradiometer.app.drawing import scene_json
from gradiometer.app.pages import NAMES
from gradiometer.app.scene import Choice, Control, LabPage, Preset, Slider, State, Toggle, Value
from gradiometer.errors import GradiometerError
from gradiometer.report.html import json_for_script

POLICY: Final = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file: 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
"""``file:`` because a page from disk has no origin that ``'self'`` could name."""

FILES: Final = ("report.css", "app.css", "drawing.js", "home.js", "exhibits.js", "lab.js", pages_html.PLOTLY)

_STATIC: Final = "static"


def reduced(page: LabPage) -> LabPage:
    """A page with only the controls and values that are exported, and the presets that these can show."""
    controls = tuple(
        _reduced(control, page.exported[control.name]) for control in page.controls if control.name in page.exported
    )
    small = replace(page, controls=controls, presets=())
    return replace(small, presets=tuple(p for p in page.presets if _shows(page, small, p)))


def _reduced(control: Control, values: Sequence[Value]) -> Control:
    wanted = [v for v in _values(control) if v in values]
    if len(wanted) != len(values) or control.default not in wanted:
        raise ValueError(f"{control.name}: exported values must be values of the control, its default among them")
    match control:
        case Slider():
            return replace(control, stops=tuple(float(v) for v in wanted))
        case Choice():
            return replace(control, options=tuple(option for option in control.options if option[0] in wanted))
        case Toggle():
            return control


def _values(control: Control) -> tuple[Value, ...]:
    match control:
        case Slider():
            return control.stops
        case Choice():
            return tuple(value for value, _ in control.options)
        case Toggle():
            return (False, True)


def _shows(page: LabPage, small: LabPage, preset: Preset) -> bool:
    kept = {control.name: control for control in small.controls}
    return all(
        value in _values(kept[name]) if name in kept else value == page.default[name] for name, value in preset.state.items()
    )


def states(page: LabPage) -> Iterator[State]:
    """Every state of a reduced page, by the links that reach it."""
    names = [control.name for control in page.controls]
    for values in itertools.product(*(_values(control) for control in page.controls)):
        yield dict(zip(names, values, strict=True))


def export(folder: Path, *, tell: Callable[[str], Any] = lambda _: None) -> Path:
    """Write the lab to disk.

    Args:
        folder: where; made if it is not there. It must be empty or hold an earlier export.
        tell: called with a line for every page that is done.

    Returns:
        The home page.

    Raises:
        GradiometerError: the folder holds something else, or cannot be written.
    """
    from gradiometer.app.pages import page as page_named

    mark = folder / _STATIC / "lab.js"
    try:
        if folder.exists() and any(folder.iterdir()) and not mark.exists():
            raise GradiometerError(f"{folder} is not empty.", "Name a new folder for the lab.")
        (folder / _STATIC).mkdir(parents=True, exist_ok=True)
        pages = [page_named(name) for name in NAMES]
        links = {"home": "index.html", **{page.name: f"{page.name}.html" for page in pages}}
        for name in FILES:
            (folder / _STATIC / name).write_text(pages_html.static_text(name) or "", encoding="utf-8")
        for page in pages:
            files = _write_states(folder, page)
            where = {"kind": "files", "base": f"states/{page.name}/", "files": files}
            text = pages_html.lab(reduced(page), where, pages, links, f"{_STATIC}/", policy=POLICY)
            (folder / links[page.name]).write_text(text, encoding="utf-8")
            tell(f"{page.title}: {len(files)} states")
        home = folder / links["home"]
        home.write_text(pages_html.home(pages, links, f"{_STATIC}/", policy=POLICY), encoding="utf-8")
    except OSError as error:
        raise GradiometerError(
            f"{folder} cannot be written ({error.strerror or error}).", "Name a folder that you may write."
        ) from error
    return home


def _write_states(folder: Path, page: LabPage) -> dict[str, str]:
    """One script for every state; the names by link."""
    small = reduced(page)
    place = folder / "states" / page.name
    place.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    for number, state in enumerate(states(small)):
        name = f"{number}.js"
        scene = scene_json(page.show({**page.default, **state}))
        (place / name).write_text(f"gradiometerScene({json_for_script(name)}, {scene});\n", encoding="utf-8")
        files[small.link(state)] = name
    return files
