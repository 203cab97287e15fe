"""Controls, states and links of a page of the lab; and the lab on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import standins
from gradiometer.app import export as exporting
from gradiometer.app.drawing import scene_json, texts
from gradiometer.app.pages import NAMES
from gradiometer.app.scene import Choice, Frame, LabPage, Scene, Slider, ladder, log_ladder
from gradiometer.errors import GradiometerError

PAGE = standins.page("descent")


def test_a_link_holds_what_differs_and_gives_the_state_back() -> None:
    state = {**PAGE.default, "rate": 2.5, "big": True}
    assert PAGE.link(PAGE.default) == ""
    assert PAGE.link(state) == "rate=2.5&big=on"
    assert PAGE.state({"rate": "2.5", "big": "on"}) == state
    assert PAGE.state({"rate": "2.500"}) == {**PAGE.default, "rate": 2.5}
    assert texts(PAGE, state) == {"rate": "2.5", "kind": "sine", "big": "on"}


@given(st.sampled_from(PAGE.controls[0].stops), st.sampled_from(["sine", "cosine"]), st.booleans())  # type: ignore[union-attr]
def test_links_round_trip(rate: float, kind: str, big: bool) -> None:
    state = {"rate": rate, "kind": kind, "big": big}
    link = PAGE.link(state)
    assert PAGE.state(dict(part.split("=") for part in link.split("&")) if link else {}) == state


@given(st.floats(1e-9, 1e9), st.integers(1, 6), st.integers(1, 8))
def test_stops_of_ladders_survive_a_link(low: float, decades: int, per_decade: int) -> None:
    low = float(f"{low:.3g}")
    stops = log_ladder(low, low * 10**decades, per_decade)
    assert math.isclose(stops[0], low, rel_tol=1e-2)
    assert math.isclose(stops[-1], low * 10**decades, rel_tol=1e-2)
    slider = Slider("x", "X", stops, stops[0])
    assert [slider.parse(slider.text(s)) for s in stops] == list(stops)


@given(st.integers(-100, 100), st.integers(1, 200), st.integers(2, 50))
def test_even_ladders(low: int, length: int, count: int) -> None:
    stops = ladder(low, low + length, count)
    slider = Slider("x", "X", stops, stops[-1])
    assert [slider.parse(slider.text(s)) for s in stops] == list(stops)
    assert len(stops) == count


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"speed": "1"}, "no control 'speed'"),
        ({"rate": "fast"}, "Rate cannot be 'fast'"),
        ({"rate": "nan"}, "It goes from 1 to 5"),
        ({"rate": "1.1"}, "Rate cannot be '1.1'"),
        ({"rate": "1e400"}, "Rate cannot be"),
        ({"kind": "tangent"}, "Options: sine, cosine"),
        ({"big": "yes"}, "It is on or off"),
    ],
)
def test_what_a_link_gets_wrong_is_said(given: dict[str, str], says: str) -> None:
    with pytest.raises(GradiometerError, match=says):
        PAGE.state(given)


def test_controls_are_checked_when_a_page_is_written() -> None:
    with pytest.raises(ValueError, match="increase"):
        Slider("x", "X", (2.0, 1.0), 1.0)
    with pytest.raises(ValueError, match="hold the default"):
        Slider("x", "X", (1.0, 2.0), 1.5)
    with pytest.raises(ValueError, match="no option"):
        Choice("x", "X", (("a", "A"),), "b")


def test_a_scene_as_json_is_safe_and_holds_no_nan() -> None:
    scene = standins.show(PAGE.default)
    frame = Frame("here", {"wave": {1: {"x": [math.nan, 1.0], "y": math.inf}}})
    text = scene_json(Scene(scene.exhibits, scene.readings, (frame,)))
    assert "<" not in text
    assert "NaN" not in text
    data = json.loads(text)
    assert data["frames"][0]["patches"]["wave"]["1"] == {"x": [None, 1.0], "y": None}
    assert [e["name"] for e in data["exhibits"]] == ["wave", "again"]
    assert data["exhibits"][0]["table"]["lines"] == [list(line) for line in scene.exhibits[0].table.lines]
    assert data["readings"][1] == standins.EVIL


# ---- on disk -----------------------------------------------------------------------------------------------------------


def test_a_reduced_page_shows_what_its_controls_can() -> None:
    small = exporting.reduced(PAGE)
    assert [c.name for c in small.controls] == ["rate", "kind"]
    assert small.controls[0].stops == (1.0, 5.0)  # type: ignore[union-attr]
    assert [p.name for p in small.presets] == ["fast"]
    assert [small.link(s) for s in exporting.states(small)] == ["", "kind=cosine", "rate=5", "rate=5&kind=cosine"]


def test_exported_values_must_be_values_of_the_control() -> None:
    for wrong in ((1.0, 1.1), (5.0,)):
        with pytest.raises(ValueError, match="exported values"):
            exporting.reduced(LabPage(**{**fields(PAGE), "exported": {"rate": wrong}}))


def fields(page: LabPage) -> dict[str, object]:
    return {name: getattr(page, name) for name in page.__slots__}


@pytest.fixture
def stand_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {name: standins.page(name, i) for i, name in enumerate(NAMES, 1)}
    monkeypatch.setattr("gradiometer.app.pages.page", pages.__getitem__)


@pytest.mark.usefixtures("stand_in_pages")
def test_the_lab_is_written_and_written_again(tmp_path: Path) -> None:
    told: list[str] = []
    home = exporting.export(tmp_path / "lab", tell=told.append)
    assert home == tmp_path / "lab" / "index.html"
    assert told == [f"Page {i}: 4 states" for i in range(1, len(NAMES) + 1)]
    state = (tmp_path / "lab" / "states" / "depth" / "2.js").read_text()
    scene = json.loads(state.removeprefix('gradiometerScene("2.js", ').removesuffix(");\n"))
    assert scene["readings"][0] == f"`y(1)` = {math.sin(5.0):.6g}"
    assert exporting.export(tmp_path / "lab") == home


@pytest.mark.usefixtures("stand_in_pages")
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(GradiometerError, match="is not empty"):
        exporting.export(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(GradiometerError, match="cannot be written"):
        exporting.export(tmp_path / "thesis.tex" / "lab")
