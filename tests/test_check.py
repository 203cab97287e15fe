"""``gradiometer.check``: the verdict before training, and that nothing of the model is changed."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradiometer
import networks
from gradiometer.errors import GradiometerError
from gradiometer.preflight.result import SickNetworkError
from gradiometer.report import check as formats
from gradiometer.types import Severity, VerdictWord

pytest_plugins = ["pytester"]

CE = nn.CrossEntropyLoss()


def data(count: int = 64, width: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    return networks.batch(width, count, seed)


def mlp(act: type[nn.Module], depth: int, std: float | None = None, width: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    return networks.mlp(act, depth, width, std)


# ---- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        (lambda: mlp(nn.Sigmoid, 12), "vanishing-gradient"),
        (lambda: mlp(nn.ReLU, 30), "vanishing-gradient"),
        (lambda: mlp(nn.ReLU, 15, 3.0), "exploding-gradient"),
        (lambda: mlp(nn.Tanh, 30, 3.0), "exploding-gradient"),
    ],
)
def test_sick_networks(model, rule: str) -> None:
    found = gradiometer.check(model(), data(), CE)
    assert found.verdict is VerdictWord.SICK
    assert found.findings[0].rule == rule
    with pytest.raises(SickNetworkError) as error:
        found.raise_if_sick()
    assert rule in str(error.value)
    assert isinstance(error.value, AssertionError)


@pytest.mark.parametrize(
    "model", [lambda: mlp(nn.ReLU, 10, math.sqrt(2)), lambda: mlp(nn.Tanh, 20, 1.1), lambda: mlp(nn.GELU, 4)]
)
def test_well_networks(model) -> None:
    found = gradiometer.check(model(), data(), CE)
    assert found.verdict is VerdictWord.WELL
    assert not found.findings
    found.raise_if_sick(Severity.WARNING)


def test_it_says_why_in_words() -> None:
    found = gradiometer.check(mlp(nn.Sigmoid, 20), data(), CE)
    said = r"Each sigmoid layer multiplies the gradient by 0\.14: slope 0\.24 × weight gain 0\.5\d; after 20 layers 10\^-17\."
    assert re.match(said, found.why)
    assert found.trainable_depth == pytest.approx(3 / 0.85, rel=0.05)


class Branches(nn.Module):
    """Residual branches that start at zero, in one of several ways."""

    def __init__(self, way: str, depth: int = 24, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gate = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(depth))
        self.head = nn.Linear(width, 10)
        for layer in self.inner:
            nn.init.kaiming_normal_(layer.weight)
        if way in ("zero last layer", "fixup"):
            for layer in self.outer:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        if way == "fixup":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        for inner, outer, gate in zip(self.inner, self.outer, self.gate, strict=True):
            branch = outer(torch.relu(inner(x)))
            x = x + (branch if self.way in ("zero last layer", "fixup") else gate * branch)
        return self.head(x)


class Lora(nn.Module):
    """Frozen layers with a low-rank addition that starts at zero."""

    def __init__(self, depth: int = 12, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.a = nn.ParameterList(nn.Parameter(0.1 * torch.randn(4, width)) for _ in range(depth))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(width, 4)) for _ in range(depth))
        self.head = nn.Linear(width, 10)
        for layer in self.base:
            nn.init.kaiming_normal_(layer.weight)
            layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for base, a, b in zip(self.base, self.a, self.b, strict=True):
            x = torch.relu(base(x) + x @ a.T @ b.T)
        return self.head(x)


def _frozen_front() -> nn.Module:
    model = mlp(nn.ReLU, 8, math.sqrt(2))
    model[:8].requires_grad_(False)
    return model


def _zero_head() -> nn.Module:
    model = mlp(nn.ReLU, 8, math.sqrt(2))
    nn.init.zeros_(model[-1].weight)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: Branches("rezero"),
        lambda: Branches("zero last layer"),
        lambda: Branches("fixup"),
        Lora,
        _frozen_front,
        _zero_head,
    ],
    ids=["rezero", "skipinit", "fixup", "lora", "frozen", "zero head"],
)
def test_what_starts_at_zero_or_is_frozen_raises_no_alarm(make) -> None:
    found = gradiometer.check(make(), data(), CE)
    assert found.verdict is VerdictWord.WELL, found.sentence
    assert not found.findings


def test_a_tied_weight_raises_no_alarm() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.body = nn.Embedding(50, 64), nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
            self.head = nn.Linear(64, 50, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            return self.head(x + self.body(x))

    tokens = torch.randint(0, 50, (16, 12), generator=torch.Generator().manual_seed(0))
    found = gradiometer.check(Tied(), (tokens, tokens.roll(1, 1)), lambda out, t: CE(out.flatten(0, 1), t.flatten()))
    assert found.verdict is VerdictWord.WELL
    assert not found.findings


def test_a_head_that_starts_at_zero_does_not_hide_a_sick_network() -> None:
    model = mlp(nn.Sigmoid, 15)
    nn.init.zeros_(model[-1].weight)
    found = gradiometer.check(model, data(), CE)
    assert found.verdict is VerdictWord.SICK
    assert found.findings[0].rule == "vanishing-gradient"
    assert "is expected to shrink" in found.sentence


def test_dead_and_saturated_units_are_told_from_zeros_by_design() -> None:
    dead = mlp(nn.ReLU, 4, math.sqrt(2))
    nn.init.constant_(dead[2].bias, -100.0)
    found = gradiometer.check(dead, data(), CE)
    assert {"dead-units", "vanishing-gradient"} <= {f.rule for f in found.findings}
    flat = mlp(nn.Tanh, 3, 40.0)
    assert "saturated-units" in {f.rule for f in gradiometer.check(flat, data(), CE).findings}


# ---- nothing is changed ------------------------------------------------------------------------------------------------


def test_model_gradients_and_random_numbers_are_as_before() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    x, y = data()
    CE(model(x), y).backward()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    seeds = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    gradiometer.check(model, (x, y), CE, curvature=True)
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True))
    assert versions == [p._version for p in model.parameters()]
    assert torch.equal(seeds[0], torch.get_rng_state())
    assert seeds[1] == random.getstate()
    assert (seeds[2] == np.random.get_state()[1]).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_attributes_and_replaced_buffers_are_as_before_also_after_an_error() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(64, 10), 0
            self.register_buffer("mean", torch.zeros(10))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out = self.layer(x)
            self.mean = 0.9 * self.mean + 0.1 * out.detach().mean(0)
            if self.calls > 1:
                raise ValueError("twice")
            return out

    model = Counting()
    buffer = model.mean
    gradiometer.check(model, data(), CE)
    assert model.calls == 0
    assert model.mean is buffer
    assert not model.mean.any()
    model.calls = 1
    with pytest.raises(ValueError, match="twice"):
        gradiometer.check(model, data(), CE)
    assert model.calls == 1
    assert not model.layer._forward_hooks


def test_a_watch_sees_nothing_of_a_check(tmp_path: Path) -> None:
    model = mlp(nn.ReLU, 3)
    x, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradiometer.watch(model, optimizer, out=tmp_path / "run") as watch:
        for step in range(4):
            if step == 2:
                gradiometer.check(model, (x, y), CE)
            optimizer.zero_grad()
            CE(model(x), y).backward()
            optimizer.step()
    trace = gradiometer.load(watch.folder).trace
    assert trace.steps_seen == 4


# ---- the learning rate -------------------------------------------------------------------------------------------------


def test_curvature_is_the_largest_eigenvalue_of_the_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    parameters = list(model.parameters())
    shapes = [p.numel() for p in parameters]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(flat.split(shapes), parameters, strict=True)]
        return CE(torch.tanh(x @ parts[0].T + parts[1]) @ parts[2].T + parts[3], y)

    flat = torch.cat([p.detach().flatten() for p in parameters])
    exact = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat)).max())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    step = gradiometer.check(model, (x, y), CE, optimizer=optimizer, curvature=True).step_size
    assert step is not None
    assert step.curvature.largest == pytest.approx(exact, rel=0.02)
    assert step.ceiling == pytest.approx(3.8 / exact, rel=0.02)
    adam = gradiometer.check(model, (x, y), CE, optimizer=torch.optim.Adam(parameters), curvature=True).step_size
    gradient = torch.autograd.functional.jacobian(loss, flat)
    root = (gradient.abs() + 1e-8).rsqrt()
    metric = root[:, None] * torch.autograd.functional.hessian(loss, flat) * root
    assert adam is not None
    assert adam.curvature.preconditioned == pytest.approx(float(torch.linalg.eigvalsh(metric).max()), rel=0.05)
    assert adam.ceiling == pytest.approx(38.0 / adam.curvature.preconditioned, rel=1e-6)


def test_a_learning_rate_beyond_the_ceiling_is_a_finding() -> None:
    model = mlp(nn.ReLU, 3, math.sqrt(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    found = gradiometer.check(model, data(), CE, optimizer=optimizer, curvature=True)
    assert [f.rule for f in found.findings] == ["learning-rate-ceiling"]
    assert found.verdict is VerdictWord.SICK
    assert gradiometer.check(model, data(), CE, optimizer=optimizer).step_size is None


def test_adams_ceiling_is_a_note_that_fails_no_gate() -> None:
    model = mlp(nn.ReLU, 3, math.sqrt(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=10.0)
    found = gradiometer.check(model, data(), CE, optimizer=optimizer, curvature=True)
    assert [(f.rule, f.severity) for f in found.findings] == [("learning-rate-ceiling", Severity.INFO)]
    assert found.verdict is VerdictWord.WELL
    found.raise_if_sick(Severity.WARNING)


# ---- bad input ---------------------------------------------------------------------------------------------------------


class Frozen(nn.Linear):
    def __init__(self) -> None:
        super().__init__(64, 10)
        self.requires_grad_(False)


class LogOfZero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.log(x * 0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: gradiometer.check(lambda x: x, data(), CE), "The model is a function, not a torch.nn.Module."),
        (lambda: gradiometer.check(Frozen(), data(), CE), "No parameter of the model is trainable"),
        (lambda: gradiometer.check(nn.Linear(64, 10, device="meta"), data(), CE), "The model is on the meta device"),
        (lambda: gradiometer.check(nn.Linear(64, 10), data()), "The loss is a tensor of shape (64, 10), not a single number."),
        (lambda: gradiometer.check(nn.Linear(64, 10), data(), lambda o, t: 3.0), "The loss is a float, not a single number."),
        (
            lambda: gradiometer.check(nn.Linear(64, 10), data(), lambda o, t: CE(o.detach(), t)),
            "The loss does not depend on any trainable parameter",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence(call, sentence: str) -> None:
    with pytest.raises(GradiometerError) as error:
        call()
    assert error.value.message.startswith(sentence)
    assert "\n" not in str(error.value)


def test_a_batch_of_one_is_judged_as_far_as_it_goes() -> None:
    found = gradiometer.check(mlp(nn.ReLU, 6, math.sqrt(2)), data(1), CE)
    assert found.verdict is VerdictWord.WELL
    assert any("single example" in note for note in found.notes)


def test_an_activation_that_is_no_number_at_zero_is_named() -> None:
    found = gradiometer.check(mlp(LogOfZero, 3), data(), CE)
    assert found.verdict is VerdictWord.SICK
    assert found.findings[0].rule == "nonfinite"
    assert found.findings[0].starts == "1"
    assert "`1` is not finite" in found.sentence


def test_other_shapes_of_batch_and_loss() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.layer(a + b)

    x, y = data()
    assert gradiometer.check(Pair(), ((x, x), y), CE).loss == pytest.approx(2.3, abs=1.0)
    assert gradiometer.check(Pair(), {"a": x, "b": x}, lambda out: CE(out, y)).loss == pytest.approx(2.3, abs=1.0)


# ---- what is shown -----------------------------------------------------------------------------------------------------


def test_text_json_and_page() -> None:
    model = mlp(nn.Sigmoid, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = gradiometer.check(model, data(), CE, optimizer=optimizer, curvature=True)
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    formats.print_check(found, console, ["A remark."])
    console.file.close()
    text = " ".join(console.export_text().split())
    assert "SICK" in text
    assert "A remark." in text
    assert "learning rates up to" in text
    told = json.loads(formats.render_json(found, ["python", "train.py"]))
    assert told["verdict"] == "sick"
    assert len(told["layers"]) == 25
    low, middle, high = told["layers"][0]["expected_log10_gradient"]
    assert low < middle < high
    html = formats.render_html(found, "python train.py", "0")
    assert "Each sigmoid layer multiplies" in html
    assert "gradient-forecast" in html


def test_names_are_never_code() -> None:
    model = nn.Sequential()
    name = "<script>alert(1)</script>\x1b[2J"
    model.add_module(name, mlp(nn.Sigmoid, 8))
    found = gradiometer.check(model, data(), CE)
    assert "<script>alert" not in formats.render_html(found, "<b>x</b>", "0")
    assert json.loads(formats.render_json(found, []))["layers"][0]["name"].startswith(name)


def test_the_fixture_makes_it_a_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import torch
        from torch import nn

        def network(act):
            torch.manual_seed(0)
            return nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(32, 32), act())], nn.Linear(32, 4))

        BATCH = torch.randn(32, 32), torch.randint(0, 4, (32,))

        def test_well(gradiometer_check):
            model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
            assert gradiometer_check(model, BATCH, nn.CrossEntropyLoss()).verdict == "well"

        def test_sick(gradiometer_check):
            gradiometer_check(network(nn.Sigmoid), BATCH, nn.CrossEntropyLoss())
    """)
    result = pytester.runpytest_inprocess("-p", "no:playwright", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*vanishing-gradient*"])
