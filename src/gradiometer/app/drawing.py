"""From figures to what a browser is given: JSON and the parts of a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from plotly.utils import PlotlyJSONEncoder

from gradiometer.app.scene import Control, Exhibit, Frame, LabPage, Scene, Slider, State, Toggle, Value
from gradiometer.figures.scale import template
from gradiometer.figures.tables import Table
from gradiometer.report.html import Panel, json_for_script, panel

THEMES: Final = ("light", "dark")


def templates() -> dict[str, Any]:
    """Plotly's template for each theme."""
    return {theme: json.loads(json.dumps(template(theme).to_plotly_json())) for theme in THEMES}


def scene_json(scene: Scene) -> str:
    """A scene as the client draws it."""
    return json_for_script(
        {
            "exhibits": [exhibit_data(e) for e in scene.exhibits],
            "readings": list(scene.readings),
            "frames": [_frame(f) for f in scene.frames],
        }
    )


def exhibit_data(exhibit: Exhibit) -> dict[str, Any]:
    """A figure with its words and numbers."""
    shown = panel(exhibit.name, exhibit.kind, exhibit.reading, exhibit.figure, lambda: exhibit.table)
    return {**panel_data(shown), "half": exhibit.half}


def panel_data(shown: Panel) -> dict[str, Any]:
    """A panel of the report as plain values."""
    return {
        "name": shown.name,
        "kind": shown.kind,
        "reading": shown.reading,
        "title": shown.title,
        "alt": shown.alt,
        "note": shown.note,
        "empty": shown.empty,
        "height": shown.height,
        "data": shown.figure["data"],
        "layout": shown.figure["layout"],
        "table": None if shown.table is None else table_data(shown.table),
    }


def table_data(table: Table) -> dict[str, Any]:
    """A table as plain values."""
    return {"caption": table.caption, "columns": list(table.columns), "lines": [list(line) for line in table.lines]}


def _frame(frame: Frame) -> dict[str, Any]:
    return {
        "label": frame.label,
        "patches": {
            name: {str(index): {key: _plain(value) for key, value in patch.items()} for index, patch in traces.items()}
            for name, traces in frame.patches.items()
        },
    }


def _plain(value: Any) -> Any:
    """Values as plotly's own JSON has them: arrays as lists, what is not finite as null."""
    if isinstance(value, float | int | str | bool) or value is None:
        return value if not isinstance(value, float) or np.isfinite(value) else None
    return json.loads(json.dumps(value, cls=PlotlyJSONEncoder))


# ---- pages of the lab ----------------------------------------------------------------------------------------------------


def page_data(page: LabPage, where: Mapping[str, Any]) -> str:
    """What the client must know of a page, for its script element.

    Args:
        page: the page.
        where: how a state is fetched (``kind`` is ``server`` or ``files``) and where from.
    """
    return json_for_script(
        {
            "name": page.name,
            "slow": page.slow,
            "controls": [_control(c) for c in page.controls],
            "presets": [
                {"name": p.name, "lesson": p.lesson, "state": texts(page, {**page.default, **p.state})} for p in page.presets
            ],
            "question": {"right": page.question.right, "because": page.question.because},
            "templates": templates(),
            "where": dict(where),
        }
    )


def texts(page: LabPage, state: State) -> dict[str, str]:
    """A whole state as a link holds it."""
    return {control.name: control.text(state[control.name]) for control in page.controls}


def _control(control: Control) -> dict[str, Any]:
    values: tuple[Value, ...]
    match control:
        case Slider():
            kind, values = "slider", control.stops
        case Toggle():
            kind, values = "toggle", (False, True)
        case _:
            kind, values = "choice", tuple(value for value, _ in control.options)
    return {
        "name": control.name,
        "kind": kind,
        "values": [control.text(v) for v in values],
        "shown": [control.shown(v) for v in values],
        "default": control.text(control.default),
    }
