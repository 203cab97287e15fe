"""Summary, text and JSON of real runs: what they say is what the trace holds."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import gradiometer
import trainings
from gradiometer.record.folder import create_folder, write_info
from gradiometer.report import json as json_report
from gradiometer.report.summary import Summary, summarise
from gradiometer.report.text import plain, print_summary
from gradiometer.types import Severity, VerdictWord


def train(model: nn.Module, folder: Path, steps: int, lr: float = 0.1) -> None:
    torch.manual_seed(0)
    with gradiometer.watch(model, out=folder, every=1):
        trainings.fit(model, torch.optim.SGD(model.parameters(), lr), steps=steps)


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    folder = tmp_path_factory.mktemp("sick") / "run"
    torch.manual_seed(1)
    train(trainings.mlp(nn.Sigmoid, 14), folder, 20)
    return summarise(gradiometer.load(folder))


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    folder = tmp_path_factory.mktemp("well") / "run"
    torch.manual_seed(1)
    train(trainings.mlp(nn.Tanh, 2), folder, 60, 0.5)
    return summarise(gradiometer.load(folder))


def text_of(summary: Summary, width: int = 100) -> str:
    file = io.StringIO()
    print_summary(summary, Console(file=file, width=width))
    return file.getvalue()


# ---- summary -----------------------------------------------------------------------------------------------------------


def test_a_sick_run_is_called_sick_with_its_cause(sick: Summary) -> None:
    assert sick.diagnosis.verdict is VerdictWord.SICK
    first = sick.diagnosis.findings[0]
    assert first.rule == "vanishing-gradient"
    assert sick.sentence == first.sentence
    assert sick.errors == sum(f.severity is Severity.ERROR for f in sick.diagnosis.findings)


def test_the_profile_is_the_trace_at_the_pinned_step(sick: Summary) -> None:
    trace = sick.trace
    look = int(np.searchsorted(trace.steps, sick.step))
    assert trace.steps[look] == sick.step
    assert [row.site.name for row in sick.profile] == list(trace.names(trace.outputs))
    assert [row.log10_gradient for row in sick.profile] == trace.log10_gradient[look, trace.outputs].tolist()
    gains = [row.log10_backward_gain for row in sick.profile if math.isfinite(row.log10_backward_gain)]
    assert sum(gains) == pytest.approx(sick.profile[0].log10_gradient - sick.profile[-1].log10_gradient)


def test_a_well_run_is_called_well(well: Summary) -> None:
    assert well.diagnosis.verdict is VerdictWord.WELL
    assert not well.diagnosis.findings
    assert "Nothing vanishes and nothing explodes" in well.sentence


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_too_few_steps_are_never_called_well(steps: int, tmp_path: Path) -> None:
    train(trainings.mlp(nn.Tanh, 2), tmp_path / "run", steps)
    summary = summarise(gradiometer.load(tmp_path / "run"))
    assert summary.diagnosis.verdict is VerdictWord.UNKNOWN
    assert f"Only {steps} step" in summary.sentence


def test_nothing_seen_is_unknown_and_says_what_the_launcher_knows(tmp_path: Path) -> None:
    run = gradiometer.load(create_folder(tmp_path / "run", ["python", "x.py"], "0"))
    assert summarise(run).diagnosis.verdict is VerdictWord.UNKNOWN
    assert summarise(run).sentence == "No training step was seen."
    assert summarise(run, "It never imported torch.").sentence == "It never imported torch."


def test_a_loss_that_does_not_fall_is_mentioned_though_nothing_was_found(tmp_path: Path) -> None:
    train(trainings.mlp(nn.Tanh, 2), tmp_path / "run", 40, lr=0.0)
    summary = summarise(gradiometer.load(tmp_path / "run"))
    assert summary.diagnosis.verdict is VerdictWord.WELL
    assert "The loss did not fall" in summary.sentence


def test_a_model_that_shows_only_parameters_and_does_not_learn_is_unknown_not_well(tmp_path: Path) -> None:
    model = trainings.mlp(nn.Tanh, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with gradiometer.watch(out=tmp_path / "run", every=1):
        for _ in range(12):  # gradients that somebody computed elsewhere: no forward or backward pass to be seen
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
    summary = summarise(gradiometer.load(tmp_path / "run"))
    assert summary.diagnosis.verdict is VerdictWord.UNKNOWN
    assert "Only parameters could be measured" in summary.sentence


def test_a_model_compiled_before_the_watch_is_not_hooked(tmp_path: Path) -> None:
    """Torch would warn of hooks on a compiled module, and compile it again."""
    torch._dynamo.reset()
    model = trainings.mlp(nn.Tanh, 2)
    compiled = torch.compile(model, backend="eager")
    with gradiometer.watch(out=tmp_path / "run", every=1):
        trainings.fit(compiled, torch.optim.SGD(model.parameters(), 0.1))  # type: ignore[arg-type]
    assert any("torch.compile" in note for note in gradiometer.load(tmp_path / "run").trace.notes)
    del compiled
    train(trainings.mlp(nn.Tanh, 2), tmp_path / "next", 6)
    trace = gradiometer.load(tmp_path / "next").trace
    assert len(trace.outputs) == 5, "what is gone does not matter to the next training"


# ---- JSON --------------------------------------------------------------------------------------------------------------


def test_json_is_strict_and_complete(sick: Summary, well: Summary) -> None:
    for summary in (sick, well):
        text = json_report.render(summary)
        data = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
        assert data["schema"] == 1
        assert data["verdict"] == summary.diagnosis.verdict.value
        assert [f["rule"] for f in data["findings"]] == [f.rule for f in summary.diagnosis.findings]
        assert {"site", "kind", "depth", "log10_signal", "log10_gradient", "backward_gain", "forward_gain"} <= set(
            data["profile"][0]
        )
        assert data["cost"]["overhead_percent"] == pytest.approx(summary.cost.overhead_percent)
        assert data["profile_step"] == summary.step


def test_json_of_findings(sick: Summary) -> None:
    finding = json_report.as_dict(sick)["findings"][0]
    assert finding["severity"] == "error"
    assert finding["steps"] == list(sick.diagnosis.findings[0].steps)
    assert 0 <= finding["confidence"] <= 1
    assert finding["evidence"]
    for evidence in finding["evidence"]:
        assert {"claim", "value", "threshold", "source"} <= set(evidence)
        assert isinstance(evidence["value"], float)
    assert all(isinstance(h, str) for h in finding["helps"])


def test_json_tells_an_exact_zero_from_unknown(tmp_path: Path) -> None:
    model = trainings.mlp(nn.ReLU, 3)
    nn.init.zeros_(model[-1].weight)  # the gradient of everything before is exactly zero at step 0
    train(model, tmp_path / "run", 1)
    profile = json_report.as_dict(summarise(gradiometer.load(tmp_path / "run")))["profile"]
    assert [row["zero_gradient"] for row in profile] == [True] * 6 + [False]
    assert [row["log10_gradient"] for row in profile][:6] == [None] * 6


# ---- text --------------------------------------------------------------------------------------------------------------


def test_text_shows_verdict_bars_evidence_and_what_helps(sick: Summary) -> None:
    text = text_of(sick)
    flat = " ".join(text.split())
    assert "SICK" in text
    assert " ".join(sick.sentence.split()) in flat
    for finding in sick.diagnosis.findings:
        assert finding.rule in text
        assert f"gradiometer explain {finding.rule}" in text
    assert "what helps" in text
    bars = [line for line in text.splitlines() if "█" in line]
    assert len(bars) == 15, "one bar a layer with weights"
    assert [line.count("█") for line in bars] == sorted((line.count("█") for line in bars), reverse=True)


def test_a_flat_profile_looks_flat(well: Summary) -> None:
    bars = [line.count("█") for line in text_of(well).splitlines() if "█" in line]
    assert min(bars) > 0.7 * max(bars)


def test_deep_networks_are_thinned_with_first_and_last(tmp_path: Path) -> None:
    train(trainings.mlp(nn.Tanh, 60), tmp_path / "run", 7)
    text = text_of(summarise(gradiometer.load(tmp_path / "run")), width=140)
    assert "26 of 61 layers shown" in text
    names = [line.split()[0] for line in text.splitlines() if " Linear " in line]
    assert (names[0], names[-1]) == ("120", "0")


def test_ascii_terminals_get_ascii(sick: Summary) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    print_summary(sick, Console(file=file, width=100))
    file.flush()
    raw.getvalue().decode("ascii")


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    assert plain("a\x1b[31mb\x07") == "a\N{REPLACEMENT CHARACTER}[31mb\N{REPLACEMENT CHARACTER}"
    model = nn.Sequential()
    for i in range(3):
        model.add_module(f"[red]x\x1b[2J{i}", nn.Linear(16, 16))
    model.add_module("out", nn.Linear(16, 3))
    train(model, tmp_path / "run", 8)
    text = text_of(summarise(gradiometer.load(tmp_path / "run")))
    assert "\x1b" not in text
    assert "[red]x" in text


def test_how_the_command_ended_is_said(well: Summary) -> None:
    write_info(well.run.folder, {**well.run.info, "status": 3})
    try:
        assert "The command ended with status 3." in text_of(summarise(gradiometer.load(well.run.folder)))
    finally:
        write_info(well.run.folder, well.run.info)
