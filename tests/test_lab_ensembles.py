"""Ensembles: the same results as a plain loop over networks, gradients as autograd has them, whatever blocks and backends."""

from __future__ import annotations

import math

import joblib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradiometer.errors import GradiometerError
from gradiometer.lab import ensembles
from gradiometer.lab.elementwise import ELEMENTWISE, elementwise
from gradiometer.lab.ensembles import Architecture, Block, Examples, Member, Training, draw, rates, sweep, train
from gradiometer.theory.activations import activation


def examples(inputs: int = 6, classes: int = 3, count: int = 50) -> Examples:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, inputs, generator=generator)
    return Examples(x, (x @ torch.randn(inputs, classes, generator=generator)).argmax(dim=1))


def plain_loop(architecture: Architecture, member: Member, data: Examples, training: Training) -> tuple[np.ndarray, float]:
    """What everyone writes: nn.Linear layers, autograd, torch.optim."""
    layers: list[nn.Module] = []
    act = elementwise(architecture.activation).function

    class Act(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return act(x)

    for w, b in draw(architecture, member):
        linear = nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            linear.weight.copy_(w)
            linear.bias.copy_(b)
        layers += [linear, Act()]
    model = nn.Sequential(*layers[:-1])
    if training.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=member.learning_rate)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=member.learning_rate, momentum=training.momentum)
    losses: list[float] = []
    for rows in data.order(training):
        loss = F.cross_entropy(model(data.x[rows]), data.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        return np.array(losses), float((model(data.x).argmax(1) == data.y).float().mean())


MEMBERS = (Member(1.2, 0.1, 0.05, 0), Member(0.8, 0.0, 0.02, 1), Member(1.4, 0.3, 0.03, 2))


@pytest.mark.parametrize("name", [row.name for row in ELEMENTWISE])
def test_sgd_gives_what_a_plain_loop_gives(name: str) -> None:
    architecture, training, data = Architecture(6, 8, 4, 3, name), Training(12, 10), examples()
    found = train(architecture, MEMBERS, data, training)
    for member, trained in zip(MEMBERS, found, strict=True):
        losses, accuracy = plain_loop(architecture, member, data, training)
        assert trained.losses == pytest.approx(losses, rel=2e-4, abs=1e-5)
        assert trained.accuracy == pytest.approx(accuracy, abs=0.021)  # one example on the border may fall either way
        assert trained.finite


@pytest.mark.parametrize(
    "training", [Training(12, 10, "adam"), Training(12, 10, "sgd", 0.9), Training(12, 7, "sgd", 0.5, seed=3)], ids=repr
)
def test_other_optimizers_too(training: Training) -> None:
    architecture, data = Architecture(6, 8, 3, 3, "tanh"), examples()
    for member, trained in zip(MEMBERS, train(architecture, MEMBERS, data, training), strict=True):
        losses, _ = plain_loop(architecture, member, data, training)
        assert trained.losses == pytest.approx(losses, rel=2e-4, abs=1e-5)


@pytest.mark.parametrize("row", ELEMENTWISE, ids=lambda row: row.name)
def test_backward_by_hand_is_autograd_and_the_function_is_the_theorys(row) -> None:
    x = torch.linspace(-4.0, 4.0, 101, dtype=torch.float64) + 0.013
    leaf = x.clone().requires_grad_()
    value = row.function(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf) if row.name != "linear" else (torch.ones_like(x),)
    pre, post = x.clone(), torch.empty_like(x)
    if row.from_output:
        post = pre
    row.into(pre, post)
    passed = torch.full_like(x, 2.0)
    row.backward(passed, pre, passed)
    assert torch.allclose(post, value.detach())
    assert torch.allclose(passed, 2.0 * slope)
    theory = activation(row.name)
    assert np.allclose(theory.f(x.numpy()), value.detach().numpy(), atol=1e-8)
    assert np.allclose(theory.slope(x.numpy()), slope.numpy(), atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_by_hand_is_as_exact_as_torchs(dtype: torch.dtype) -> None:
    size = torch.logspace(-30, 4, 5001, dtype=torch.float64)
    x = torch.cat([-size, torch.tensor([-math.inf, -0.0, 0.0, math.inf]), size]).to(dtype)
    out = torch.empty_like(x)
    elementwise("tanh").into(x, out)
    assert torch.allclose(out, torch.tanh(x), rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    elementwise("tanh").into(torch.full_like(x, math.nan), out)
    assert torch.isnan(out).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 12), st.sampled_from(["tanh", "relu", "gelu"]))
def test_one_step_is_minus_the_learning_rate_times_the_gradient(depth: int, width: int, batch: int, name: str) -> None:
    architecture, data = Architecture(6, width, depth, 3, name), examples()
    member = Member(1.3, 0.2, 0.5, 11)
    parameters = [p.clone().requires_grad_() for pair in draw(architecture, member) for p in pair]
    signal = data.x[:batch]
    for k in range(0, len(parameters), 2):
        signal = F.linear(signal, parameters[k], parameters[k + 1])
        if k < len(parameters) - 2:
            signal = elementwise(name).function(signal)
    gradients = torch.autograd.grad(F.cross_entropy(signal, data.y[:batch]), parameters)
    block = Block(architecture, [member], Training(1, batch))
    with torch.no_grad():
        block.step(data.x[:batch], data.y[:batch])
    for k, (w, b) in enumerate(draw(architecture, member)):
        assert torch.allclose(block.weights[k][0].T, w - 0.5 * gradients[2 * k], atol=2e-6)
        assert torch.allclose(block.biases[k][0, 0], b - 0.5 * gradients[2 * k + 1], atol=2e-6)


def test_blocks_and_backends_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    members = rates([Member(1.0 + 0.1 * k, 0.1, 0.0, k) for k in range(5)], 0.05, 0.2)
    assert [m.learning_rate for m in members[:2]] == [0.05, 0.2]
    training, data = Training(5, 10), examples()
    architectures = [Architecture(6, 8, depth, 3) for depth in (2, 3)]
    whole = [train(a, members, data, training) for a in architectures]
    monkeypatch.setattr(ensembles, "LARGEST_BLOCK", 3)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        parts = sweep(architectures, members, data, training)
    for one, other in zip(whole, parts, strict=True):
        assert len(one) == len(other) == len(members)
        for a, b in zip(one, other, strict=True):
            assert np.allclose(a.losses, b.losses, rtol=1e-5)
            assert a.accuracy == b.accuracy


def test_a_network_that_diverges_harms_no_other() -> None:
    architecture, data, training = Architecture(6, 8, 2, 3, "relu"), examples(), Training(30, 10)
    wild, calm = Member(1.4, 0.0, 1e6, 0), Member(1.4, 0.0, 0.1, 1)
    together, alone = train(architecture, [wild, calm], data, training), train(architecture, [calm], data, training)
    assert not together[0].finite
    assert math.isnan(together[0].accuracy)
    assert together[1].losses == pytest.approx(alone[0].losses, rel=1e-5)
    assert together[1].losses[-1] < together[1].losses[0]


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    train(Architecture(6, 4, 2, 3), MEMBERS, examples(), Training(2, 5))
    assert torch.equal(state, torch.get_rng_state())


def test_what_does_not_fit_is_said() -> None:
    data = examples()
    with pytest.raises(GradiometerError, match="do not fit"):
        train(Architecture(5, 4, 2, 3), MEMBERS, data, Training(1, 5))
    with pytest.raises(GradiometerError, match="Classes"):
        train(Architecture(6, 4, 2, 2), MEMBERS, data, Training(1, 5))
    with pytest.raises(GradiometerError, match="no activation"):
        Architecture(6, 4, 2, 3, "cosine")
    with pytest.raises(GradiometerError, match="at least one"):
        Architecture(6, 4, 0, 3)
    with pytest.raises(GradiometerError, match="momentum"):
        Training(1, 5, "adam", 0.5)
    with pytest.raises(GradiometerError, match="steps"):
        Training(0, 5)
    assert train(Architecture(6, 4, 2, 3), (), data, Training(1, 5)) == ()


def test_flops_count_forward_and_both_backward_products() -> None:
    assert Architecture(5, 7, 1, 3).products(2) == 2 * 2 * (2 * 5 * 7 + 3 * 7 * 3)
