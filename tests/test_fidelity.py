"""The probe does not change a training: weights, random state and hooks are the same bit for bit with and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.modules.module as torch_module
import torch.optim.optimizer as torch_optimizer
from torch import nn

import gradiometer
import trainings
from gradiometer.record.frames import Flag, Group
from gradiometer.record.trace import Trace


def run(training: Callable[[], nn.Module], folder: Path | None) -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    watch = gradiometer.watch(out=folder, every=1) if folder is not None else None
    model = training()
    if watch is not None:
        assert watch.attached, "the probe failed on the way"
        watch.detach()
    return [p.detach().clone() for p in model.parameters()], torch.get_rng_state()


@pytest.mark.parametrize("training", trainings.TRAININGS, ids=lambda f: f.__name__)
def test_same_bits_with_and_without(training: Callable[[], nn.Module], tmp_path: Path) -> None:
    plain, plain_random = run(training, None)
    watched, watched_random = run(training, tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(plain_random, watched_random)
    trace = gradiometer.load(tmp_path / "run").trace
    assert trace.steps_seen >= trainings.STEPS
    assert not any(e["event"] == "probe-failed" for e in trace.events)


def test_200_steps_same_bits_at_the_default_budget(tmp_path: Path) -> None:
    def training() -> nn.Module:
        model = trainings.mlp(nn.Sigmoid, 8)
        return trainings.fit(model, torch.optim.Adam(model.parameters()), steps=200)

    plain, plain_random = run(training, None)
    torch.manual_seed(0)
    with gradiometer.watch(out=tmp_path / "run"):
        model = training()
    assert all(torch.equal(a, b) for a, b in zip(plain, [p.detach() for p in model.parameters()], strict=True))
    assert torch.equal(plain_random, torch.get_rng_state())


def test_detach_leaves_torch_as_it_was(tmp_path: Path) -> None:
    places = [
        (torch.autograd, "backward"),
        (torch.autograd, "grad"),
        (torch.optim.Optimizer, "__init__"),
        (torch.nn.utils, "clip_grad_norm_"),
        (torch.nn.utils.clip_grad, "clip_grad_norm_"),
        (torch.amp.GradScaler, "step"),
        (torch.amp.GradScaler, "scale"),
        (torch, "compile"),
        (torch.nn.Module, "compile"),
    ]
    # a treatment of another test may have hooks on the optimizers of its own: what must not be there is more of them
    hooks = [
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    ]
    before = [getattr(home, name) for home, name in places], [dict(held) for held in hooks]
    run(trainings.sgd, tmp_path / "run")
    assert ([getattr(home, name) for home, name in places], [dict(held) for held in hooks]) == before


def test_no_module_hook_stays_between_looks(tmp_path: Path) -> None:
    model = trainings.mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradiometer.watch(out=tmp_path / "run", every=3):
        for step in range(6):
            assert bool(torch_module._global_forward_hooks) == (step % 3 == 0)
            trainings.fit(model, optimizer, steps=1)


# ---- what was recorded -------------------------------------------------------------------------------------------------


def trace_of(training: Callable[[], nn.Module], folder: Path) -> Trace:
    run(training, folder)
    return gradiometer.load(folder).trace


def outputs_with_gradient(trace: Trace) -> list[str]:
    return [trace.sites[i].name for i in trace.outputs if np.isfinite(trace.log10_gradient[-1, i])]


def test_gradient_and_signal_are_what_torch_says(tmp_path: Path) -> None:
    """The recorded numbers against ones taken by retain_grad in a plain forward and backward pass."""
    trace = trace_of(trainings.sgd, tmp_path / "run")
    torch.manual_seed(0)
    h = trainings.X
    kept: list[torch.Tensor] = []
    model = trainings.mlp()
    for layer in model:
        h = layer(h)
        h.retain_grad()
        kept.append(h)
    loss = nn.functional.cross_entropy(h, trainings.Y)
    loss.backward()
    assert [trace.sites[i].name for i in trace.outputs] == [str(k) for k in range(len(kept))]
    for i, h in zip(trace.outputs, kept, strict=True):
        assert h.grad is not None
        h, grad = h.detach(), h.grad
        assert trace.log10_gradient[0, i] == pytest.approx(float(grad.double().norm().log10()), abs=1e-6)
        assert trace.log10_signal[0, i] == pytest.approx(float(h.double().square().mean().sqrt().log10()), abs=1e-6)
        varying = (h - h.mean(0)).double().square().sum() / h.double().square().sum()
        assert trace.varying_share[0, i] == pytest.approx(float(varying), rel=1e-4)
    named = dict(model.named_parameters())
    for i in trace.parameters:
        p = named[trace.sites[i].name]
        assert p.grad is not None
        rms = p.grad.double().square().mean().sqrt().log10()
        assert trace.log10_weight_gradient[0, i] == pytest.approx(float(rms), abs=1e-6)
        # plain SGD with rate 0.1: update = 0.1 gradient
        ratio = (0.1 * p.grad.double().norm() / p.detach().double().norm()).log10()
        assert trace.log10_update_ratio[0, i] == pytest.approx(float(ratio), abs=1e-3)
    assert trace.ledger["loss"][0] == pytest.approx(loss.item(), rel=1e-6)
    assert trace.ledger["learning_rate"][0] == 0.1
    total = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert trace.ledger["grad_norm"][0] == pytest.approx(float(total), rel=1e-5)


def test_functional_activations_are_found_in_the_graph(tmp_path: Path) -> None:
    trace = trace_of(trainings.by_hand, tmp_path / "run")
    assert outputs_with_gradient(trace) == ["sigmoid"] + [f"sigmoid #{k}" for k in range(2, 7)]
    assert len(trace.parameters) == 6
    assert trace.ledger.has(Flag.NO_OPTIMIZER).all()
    assert np.isfinite(trace.log10_update_ratio[0, trace.parameters]).all()


def test_tensors_made_anew_every_step_keep_their_sites(tmp_path: Path) -> None:
    trace = trace_of(trainings.by_hand_with_grad, tmp_path / "run")
    assert len(trace.parameters) == 6
    assert np.isfinite(trace.log10_weight_gradient[:, trace.parameters]).all()


def test_a_module_hidden_in_a_function_is_found(tmp_path: Path) -> None:
    trace = trace_of(trainings.hidden_in_function, tmp_path / "run")
    assert len(trace.parameters) == 10
    assert np.isfinite(trace.log10_weight_gradient[0, trace.parameters]).all()


def test_clipping_shows_the_norm_before_it(tmp_path: Path) -> None:
    trace = trace_of(trainings.accumulate_and_clip, tmp_path / "run")
    assert trace.ledger.has(Flag.PRE_CLIP).all()
    assert (trace.ledger["grad_norm"] > trace.ledger["clip_threshold"]).all()
    assert (trace.ledger["backwards"] == 4).all()
    squares = trace.values["weight_gradient_sumsq"][:, trace.parameters].sum(axis=1)
    assert np.sqrt(squares) == pytest.approx(trace.ledger["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("training", [trainings.scaler, trainings.scaler_fused], ids=lambda f: f.__name__)
def test_an_overflow_step_is_a_skipped_step(training: Callable[[], nn.Module], tmp_path: Path) -> None:
    trace = trace_of(training, tmp_path / "run")
    assert trace.ledger.has(Flag.SKIPPED).tolist() == [False, False, False, True, False, False]
    # the loss and the gradients are recorded without their scale
    assert trace.ledger["loss"][0] == pytest.approx(np.log(3), rel=0.2)
    plain = trace_of(trainings.sgd, tmp_path / "plain")
    if training is trainings.scaler:
        assert trace.log10_gradient[0] == pytest.approx(plain.log10_gradient[0], abs=1e-3, nan_ok=True)
        assert trace.log10_weight_gradient[0] == pytest.approx(plain.log10_weight_gradient[0], abs=1e-3, nan_ok=True)


def test_optimizers_that_take_turns_get_a_step_each(tmp_path: Path) -> None:
    trace = trace_of(trainings.gan, tmp_path / "run")
    assert trace.steps_seen == 2 * trainings.STEPS
    assert trace.ledger["optimizer"].tolist() == [0.0, 1.0] * trainings.STEPS
    generator = [i for i in trace.outputs if trace.sites[i].model == "Sequential" and trace.sites[i].role == "linear"]
    # the generator ran forward in the critic's step and gets its gradient in its own
    assert np.isnan(trace.log10_gradient[0, generator]).all()
    assert np.isfinite(trace.log10_gradient[1, generator]).all()


def test_optimizers_that_step_together_share_a_step(tmp_path: Path) -> None:
    trace = trace_of(trainings.two_optimizers, tmp_path / "run")
    assert trace.steps_seen == trainings.STEPS
    assert np.isfinite(trace.log10_update_ratio[:, trace.parameters]).all()


def test_frozen_tied_and_unused_parameters(tmp_path: Path) -> None:
    trace = trace_of(trainings.frozen_tied_unused, tmp_path / "run")
    named = {trace.sites[i].name: i for i in trace.parameters}
    assert not trace.sites[named["net.0.weight"]].trainable
    assert np.isnan(trace.log10_weight_gradient[0, named["net.unused.weight"]])
    assert not trace.nonfinite[Group.PARAMETER].any(), "no gradient is not a NaN"
    assert "net.6.weight" not in named, "a tied weight is one site"
    before = [i for i in trace.outputs if trace.sites[i].depth < 4]
    assert np.isnan(trace.log10_gradient[0, before]).all(), "what is frozen has no gradient; that is not zero"


def test_recurrent_cells_get_a_site_for_each_call(tmp_path: Path) -> None:
    trace = trace_of(trainings.recurrent, tmp_path / "run")
    names = [trace.sites[i].name for i in trace.outputs]
    assert [n for n in names if n.startswith("cell")][:5] == ["cell", "cell #2", "cell #3", "cell #4", "cell #5"]


def test_compiled_models_are_measured_at_their_parameters_and_it_is_said(tmp_path: Path) -> None:
    trace = trace_of(trainings.compiled, tmp_path / "run")
    assert len(trace.parameters) == 10
    assert any("torch.compile" in note for note in trace.notes)


def test_gradients_too_small_to_square_are_not_zero(tmp_path: Path) -> None:
    """The float32 trap: ||g|| underflows where no element is zero."""
    torch.manual_seed(0)
    model = trainings.mlp(nn.Sigmoid, 34)
    with gradiometer.watch(model, out=tmp_path / "run", every=1):
        trainings.fit(model, torch.optim.SGD(model.parameters(), 0.1), steps=2)
    first = model[0].weight.grad
    assert first is not None
    trace = gradiometer.load(tmp_path / "run").trace
    assert float(first.norm()) == 0.0, "this test needs a norm that underflows"
    assert float(first.abs().max()) > 0.0
    assert -30 < trace.log10_gradient[0, trace.outputs[0]] < -15
