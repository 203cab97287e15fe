"""The lab's engine by what is known: calculus for a descent, mean-field theory for depth; and what its pages promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradiometer.app.pages import NAMES
from gradiometer.app.pages import page as page_named
from gradiometer.app.scene import Control, Slider, Toggle, Value
from gradiometer.lab.depth import DeepNetwork, expect, sample
from gradiometer.lab.phases import plane
from gradiometer.theory import MeanField

FAST = [name for name in NAMES if name not in ("strategies", "doctor")]


def others(control: Control) -> list[Value]:
    """Values at the ends of a control, without its default."""
    match control:
        case Slider():
            ends: list[Value] = [control.stops[0], control.stops[-1]]
        case Toggle():
            ends = [True, False]
        case _:
            ends = [value for value, _ in control.options]
    return [value for value in ends if value != control.default]


@pytest.mark.parametrize("name", FAST)
def test_every_control_changes_a_figure(name: str) -> None:
    page = page_named(name)
    opened = [e.figure.to_json() for e in page.show(page.default).exhibits]
    for control in page.controls:
        shown = ([e.figure.to_json() for e in page.show({**page.default, control.name: v}).exhibits] for v in others(control))
        assert any(figures != opened for figures in shown), control.name


@pytest.mark.parametrize("name", FAST)
def test_a_scene_is_a_function_of_the_state_and_needs_no_global_random_numbers(name: str) -> None:
    page = page_named(name)
    for preset in page.presets:
        state = {**page.default, **preset.state}
        before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
        first, again = page.show(state), page.show(dict(reversed(state.items())))
        assert torch.equal(before[0], torch.random.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])
        assert first.readings == again.readings
        for one, other in zip(first.exhibits, again.exhibits, strict=True):
            assert one.figure.to_json() == other.figure.to_json()
            assert one.table == other.table
            assert one.figure.layout.meta["title"]
            assert one.figure.layout.meta["alt"]


@pytest.mark.parametrize("name", FAST)
def test_links_of_presets_round_trip_and_exports_can_be_made(name: str) -> None:
    from gradiometer.app.export import reduced, states

    page = page_named(name)
    for preset in page.presets:
        state = {**page.default, **preset.state}
        texts = {control.name: control.text(state[control.name]) for control in page.controls}
        assert page.state(texts) == state
    assert 1 < len(list(states(reduced(page)))) <= 400


@pytest.mark.parametrize(("activation", "sigma_w", "sigma_b"), [("tanh", 1.0, 0.0), ("tanh", 2.0, 0.3), ("relu", 1.4142, 0.0)])
def test_wide_networks_do_what_theory_says(activation: str, sigma_w: float, sigma_b: float) -> None:
    network = DeepNetwork(activation, sigma_w, sigma_b, depth=12, width=256)
    measured, theory = sample(network, 12), expect(network)
    assert np.abs(np.median(measured.signal, axis=0) - np.asarray(theory.signal)).max() < 0.12
    assert np.abs(np.median(measured.gradient, axis=0) - np.asarray(theory.gradient)).max() < 0.25


def test_thirty_sigmoid_layers_leave_what_the_page_says() -> None:
    """The right answer of the question on depth: less than a millionth of a billionth of the norm."""
    gradient = sample(DeepNetwork("sigmoid", 1.0, 0.0, depth=30, width=64), 20).gradient[:, 0]
    assert np.median(0.5 * gradient) < -15.0
    assert np.median(0.5 * gradient) == pytest.approx(-19.0, abs=1.0)


def test_a_plateau_holds_the_ball_as_the_page_says() -> None:
    """The right answer of the question on one dimension: less than a tenth of the way."""
    page = page_named("descent")
    assert page.question.answers[page.question.right] == "Less than a tenth of the way"
    course = next(e for e in page.show(page.default).exhibits if e.name == "course")
    places = [float(line[1].replace("\N{MINUS SIGN}", "-")) for line in course.table.lines]
    assert 0.0 < (places[0] - places[-1]) / places[0] < 0.1


def test_the_plane_is_that_of_theory() -> None:
    for name in ("tanh", "relu", "sigmoid"):
        found = plane(name)
        for row in range(0, found.sigma_b.size, max(1, found.sigma_b.size // 4)):
            for column in range(0, found.sigma_w.size, max(1, found.sigma_w.size // 5)):
                if not 1e-5 < found.q[row, column] < 1e5:
                    continue
                field = MeanField(name, float(found.sigma_w[column]), float(found.sigma_b[row]))
                chi = field.chi(float(found.q[row, column]))
                assert found.log10_chi[row, column] == pytest.approx(np.log10(chi), abs=0.02)
