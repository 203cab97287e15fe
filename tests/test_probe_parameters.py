"""What the probe measures of parameters and steps, against numbers that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradiometer
from gradiometer.record.frames import Flag
from gradiometer.record.trace import Trace


class Vector(nn.Module):
    """A parameter and nothing else."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(value)

    def forward(self) -> Tensor:
        return self.w * 1.0


def watched(folder: Path, train: Callable[[], None]) -> Trace:
    with gradiometer.watch(out=folder, every=1):
        train()
    return gradiometer.load(folder).trace


def quadratic(rate: float, curvature: float, **options: float) -> Callable[[], None]:
    def train() -> None:
        model = Vector(torch.full((7,), 3.0))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, **options)
        for _ in range(8):
            optimizer.zero_grad()
            (0.5 * curvature * model().square().sum()).backward()
            optimizer.step()

    return train


def at(trace: Trace, site: str) -> int:
    return [s.name for s in trace.sites].index(site)


@pytest.mark.parametrize("eta_lambda", [0.1, 1.0, 1.5, 2.0, 2.5])
def test_on_a_parabola_the_overshoot_is_one_less_eta_lambda(tmp_path: Path, eta_lambda: float) -> None:
    trace = watched(tmp_path / "run", quadratic(eta_lambda / 4.0, 4.0))
    assert np.isnan(trace.ledger["overshoot"][0])
    known = trace.ledger["overshoot"][1:]
    known = known[~np.isnan(known)]  # at the bottom there is no slope left
    assert known.size
    assert known == pytest.approx(1.0 - eta_lambda, abs=1e-5)


def test_clipping_does_not_change_the_overshoot(tmp_path: Path) -> None:
    def train() -> None:
        model = Vector(torch.full((4,), 100.0))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            model().square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    trace = watched(tmp_path / "run", train)
    # steps of 0.1 along a slope of 2 |w|, |w| = 200: the slope falls by 0.05 %
    assert trace.ledger["overshoot"][1] == pytest.approx(1.0 - 0.1 / 200.0, abs=1e-4)


def test_two_optimizers_in_turns_have_no_overshoot(tmp_path: Path) -> None:
    def train() -> None:
        models = [Vector(torch.ones(3)), Vector(torch.ones(3))]
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
        for step in range(8):
            optimizers[step % 2].zero_grad()
            models[step % 2]().square().sum().backward()
            optimizers[step % 2].step()

    assert np.isnan(watched(tmp_path / "run", train).ledger["overshoot"]).all()


def test_units_that_are_the_same_do_not_differ(tmp_path: Path) -> None:
    def train() -> None:
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
        nn.init.constant_(model[0].weight, 0.3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(3):
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()

    trace = watched(tmp_path / "run", train)
    same = at(trace, "0.weight")
    assert trace.unit_difference[0, same] < 1e-12
    assert trace.unit_difference[0, at(trace, "1.weight")] > 0.3
    assert np.isnan(trace.unit_difference[0, at(trace, "0.bias")])
    assert trace.sites[same].shape == (5, 6)
    assert trace.sites[same].fan_in == 6
    assert trace.unmoved_share[0, same] == 1.0  # a rate of zero


def test_bfloat16_rounds_small_updates_away(tmp_path: Path) -> None:
    def train() -> None:
        model = Vector(torch.linspace(1.0, 2.0, 64).bfloat16())
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        for _ in range(3):
            optimizer.zero_grad()
            model().sum().backward()
            optimizer.step()

    trace = watched(tmp_path / "run", train)
    assert trace.unmoved_share[0, at(trace, "w")] == 1.0
    assert trace.sites[at(trace, "w")].dtype == "bfloat16"


@pytest.mark.parametrize("jump", [1.0, 10.0])
def test_the_moment_ratio_is_that_of_wortsman(tmp_path: Path, jump: float) -> None:
    def train() -> None:
        model = Vector(torch.zeros(10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
        for step in range(6):
            optimizer.zero_grad()
            (model().sum() * (jump if step == 5 else 1.0)).backward()
            optimizer.step()

    trace = watched(tmp_path / "run", train)
    moment = 0.0
    for g in (1.0, 1.0, 1.0, 1.0, 1.0, jump):
        moment = 0.99 * moment + 0.01 * g * g
    corrected = moment / (1.0 - 0.99**6)
    assert trace.moment_rms[5, at(trace, "w")] == pytest.approx(jump / corrected**0.5, rel=1e-5)
    assert np.isnan(trace.moment_rms[0, at(trace, "w")])  # no moment yet
    assert trace.optimizers[0]["kind"] == "AdamW"
    assert trace.optimizers[0]["options"]["betas"] == [0.9, 0.99]


def test_what_no_optimizer_holds_is_flagged_and_what_is_frozen_is_not(tmp_path: Path) -> None:
    def train() -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    trace = watched(tmp_path / "run", train)
    flagged = trace.flagged(Flag.UNOWNED).any(axis=0)
    assert {s.name for s, f in zip(trace.sites, flagged, strict=True) if f} == {"1.weight", "1.bias"}


def test_two_optimizers_hold_their_own(tmp_path: Path) -> None:
    def train() -> None:
        a, b = nn.Linear(4, 4), nn.Linear(4, 1)
        first, second = torch.optim.SGD(a.parameters(), lr=0.1), torch.optim.Adam(b.parameters())
        for _ in range(3):
            for optimizer in (first, second):
                optimizer.zero_grad()
                b(a(torch.randn(8, 4))).square().mean().backward()
                optimizer.step()

    assert not watched(tmp_path / "run", train).flagged(Flag.UNOWNED).any()


def test_a_prefix_of_the_trace_is_what_was_known_then(tmp_path: Path) -> None:
    trace = watched(tmp_path / "run", quadratic(0.01, 1.0))
    early = trace.until(3)
    assert early.steps.tolist() == [0, 1, 2, 3]
    assert early.ledger.step.tolist() == [0, 1, 2, 3]
    assert early.values["weight_sumsq"].shape[0] == 4
    assert trace.until(10**6).steps.tolist() == trace.steps.tolist()


def test_layers_in_a_plain_list_are_named_by_their_place(tmp_path: Path) -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.rest = [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())]
            self.heads = {"a": nn.Linear(4, 1)}

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.rest:
                x = layer(x)
            return self.heads["a"](x)

    def train() -> None:
        model = Listed()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    trace = watched(tmp_path / "run", train)
    names = {s.name for s in trace.sites}
    assert {"rest.0", "rest.1.0", "rest.1.1", "heads['a']", "rest.0.weight", "rest.1.0.bias", "heads['a'].weight"} <= names
    unowned = trace.flagged(Flag.UNOWNED).any(axis=0)
    assert {s.name for s, f in zip(trace.sites, unowned, strict=True) if f} == names & {
        f"{layer}.{own}" for layer in ("rest.0", "rest.1.0", "heads['a']") for own in ("weight", "bias")
    }


def test_a_layer_that_was_replaced_is_told_from_the_one_before(tmp_path: Path) -> None:
    def train() -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(6):
            if step == 3:
                model[1] = nn.Linear(4, 2)
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    trace = watched(tmp_path / "run", train)
    unowned = trace.flagged(Flag.UNOWNED)
    assert unowned[:3].sum() == 0
    assert {trace.sites[i].name for i in np.flatnonzero(unowned.any(axis=0))} == {"1.weight #2", "1.bias #2"}
    assert trace.flagged(Flag.NO_GRADIENT)[4:, at(trace, "1.weight")].all()


@pytest.mark.parametrize(("threshold", "size"), [(1.0, float("inf")), (1.0, float("nan")), (0.0, 1.0), (1.0, 0.0)])
def test_a_gradient_that_cannot_be_clipped_is_survived(tmp_path: Path, threshold: float, size: float) -> None:
    def train() -> None:
        model = Vector(torch.ones(4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(6):
            optimizer.zero_grad()
            (model().sum() * (size if step > 2 else 1.0)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), threshold)
            optimizer.step()

    trace = watched(tmp_path / "run", train)
    assert trace.steps_seen == 6
    assert not [e for e in trace.events if e["event"] == "probe-failed"]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_graph_that_no_gradient_comes_back_along_is_told_from_none(tmp_path: Path, frozen: bool) -> None:
    def train() -> None:
        torch.manual_seed(0)
        front, back = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 1)
        optimizer = torch.optim.SGD([*front.parameters(), *back.parameters()], lr=0.05)
        x = torch.randn(64, 6)
        y = x.sum(1, keepdim=True)
        for _ in range(40):
            optimizer.zero_grad()
            with torch.set_grad_enabled(not frozen):
                features = front(x)
            (back(features.detach()) - y).square().mean().backward()
            optimizer.step()

    trace = watched(tmp_path / "run", train)
    assert trace.flagged(Flag.HAS_GRAPH)[:, at(trace, "Sequential.0")].all() != frozen
    found = {f.rule: f for f in gradiometer.diagnose(trace)}
    assert found["disconnected-parameters"].severity == ("warning" if frozen else "error")
    assert ("is cut" in found["disconnected-parameters"].sentence) != frozen
