"""The remedy `pretrain`: what it learns, where it helps, where it does not fit, and that the edit does the same."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradiometer.remedies.base import Anchor, CannotTreatError, Patient, Stage
from gradiometer.remedies.pretrain import REMEDY
from gradiometer.types import Role, Safety, Treatment
from test_remedy_layers import Basic, Block, Elman
from traces import make, output, stack
from treating import WIDTH, classes, give, learns, paste, patient, symptoms

torch.set_num_threads(1)

X, Y = classes()


def chain(act: type[nn.Module] = nn.Sigmoid, depth: int = 8, width: int = WIDTH) -> nn.Sequential:
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for _ in range(depth):
        modules += [nn.Linear(width, width), act()]
    return nn.Sequential(*modules, nn.Linear(width, 10))


def several(model: nn.Module, count: int = 4) -> Patient:
    """A patient with more than its first batch."""
    batches: list[tuple[tuple[Tensor, ...], dict[str, object]]] = [((part,), {}) for part in X.chunk(count)]
    return Patient(model, [torch.optim.SGD(model.parameters(), lr=0.1)], batches[0], batches[1:])


def treated(model: nn.Module, *, sites: tuple[str, ...] = (), **settings: float) -> list[str]:
    torch.manual_seed(5)
    return give(REMEDY, several(model), sites, **settings)


def reproduced(layer: nn.Module) -> float:
    """Share of the variance of its inputs that the best line from what a tanh layer gives explains."""
    with torch.no_grad():
        code = layer(X).tanh()
        code = torch.cat([code - code.mean(0), torch.ones(len(X), 1)], 1).double()
        target = ((X - X.mean(0)) / X.std(0)).double()
        left = target - code @ torch.linalg.lstsq(code, target).solution
    return 1.0 - float(left.square().mean() / target.square().mean())


# ---- what it does ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corruption", [0.0, 0.2])
def test_deep_sigmoids_learn_afterwards(corruption):
    model = chain()
    assert learns(patient(copy.deepcopy(model)), steps=100) < 0.3
    changes = treated(model, corruption=corruption)
    assert len(changes) == 8
    assert learns(patient(model), steps=100) > 0.7


def test_units_answer_to_what_differs():
    model = chain(depth=3)
    before = copy.deepcopy(model)
    changes = treated(model)
    assert "it reproduces 8" in changes[0]
    for i in (2, 4, 6):
        with torch.no_grad():
            ours, theirs = model[:i](X), before[:i](X)
        assert float(ours.std(0).mean()) > 2 * float(theirs.std(0).mean())
    assert torch.equal(model[-1].weight, before[-1].weight)
    assert torch.equal(model[-1].bias, before[-1].bias)


def test_a_narrow_layer_keeps_the_best_directions():
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 10))
    untrained = reproduced(narrow[0])
    treated(narrow, steps=300.0)
    assert reproduced(narrow[0]) > untrained + 0.1


def test_denoising_learns_something_else():
    plain, denoising = chain(depth=2), chain(depth=2)
    treated(plain)
    changes = treated(denoising, corruption=0.3)
    assert not torch.equal(plain[0].weight, denoising[0].weight)
    assert "denoising autoencoder (30 % of its inputs taken away)" in changes[0]
    # asked for the whole from a part, it is less hurt by what is missing
    hidden = X * (torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) >= 0.3)

    def moved(model: nn.Sequential) -> float:
        with torch.no_grad():
            one, other = model[:2](X), model[:2](hidden)
        return float((one - other).square().mean() / (one - one.mean(0)).square().mean())

    assert moved(denoising) < moved(plain)


def test_what_is_common_and_constant_is_no_matter():
    model = chain(depth=2)
    data = X.clone()
    data[:, :5] = 1e4  # features that say nothing
    give(REMEDY, patient(model, data), steps=20.0)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    give(REMEDY, patient(chain(depth=2), torch.ones(4, WIDTH)), steps=5.0)


def test_same_seed_same_start():
    one, other = chain(depth=3), chain(depth=3)
    treated(one)
    treated(other)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_parameters_stay_the_same_objects_and_modes_are_put_back():
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    held = [id(p) for p in model.parameters()]
    subject = several(model)
    first = subject.inputs
    with torch.no_grad():  # wherever the caller stands
        give(REMEDY, subject, steps=3.0)
    assert [id(p) for p in model.parameters()] == held
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert subject.inputs is first
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_functional_activations_and_sequences():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)]), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = F.leaky_relu(layer(x), 0.2)
            return self.head(x)

    changes = give(REMEDY, patient(Own(), torch.randn(4, 7, 8)), steps=3.0)
    assert len(changes) == 3
    assert "leaky_relu(0.2) units" in changes[0]


def test_only_some_layers():
    model = chain(depth=4)
    before = copy.deepcopy(model)
    assert len(treated(model, sites=("2",), steps=3.0)) == 1
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[2].weight, before[2].weight)
    with pytest.raises(CannotTreatError, match="has that name"):
        treated(model, sites=("x",))


# ---- where it does not help, or fit ------------------------------------------------------------------------------------


def test_it_is_no_cure_for_a_step_that_is_too_long():
    model = chain(depth=3)
    treated(model)
    assert learns(patient(model), lr=1000.0) < 0.5


def _convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 2))


def _normed() -> nn.Module:
    first = (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Sigmoid())
    return nn.Sequential(*first, nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (_convolution(), (4, 1, 4, 4)),
        (nn.Sequential(nn.Linear(8, 8), Block(), Block(), nn.Linear(8, 2)), (4, 8)),
        (_normed(), (4, 8)),
        (Basic(3, 8, 2), (4, 3, 8, 8)),
        (Elman(), (4, 6, 3)),
    ],
)
def test_plain_stacks_only(model, inputs):
    with pytest.raises(CannotTreatError, match="plain stacks of dense layers"):
        give(REMEDY, patient(model, torch.randn(inputs)))


def test_what_cannot_be_pre_trained():
    with pytest.raises(CannotTreatError, match="at least 2 hidden layers"):
        give(REMEDY, patient(chain(depth=1), X))
    with pytest.raises(CannotTreatError, match="first batch is not known"):
        give(REMEDY, patient(chain()))
    with pytest.raises(CannotTreatError, match="at least one step"):
        give(REMEDY, patient(chain(), X), steps=0.0)
    with pytest.raises(CannotTreatError, match=r"in \[0, 1\)"):
        give(REMEDY, patient(chain(), X), corruption=1.0)
    with pytest.raises(CannotTreatError, match="not finite"):
        give(REMEDY, patient(chain(), X * torch.inf))
    frozen = chain()
    frozen[2].weight.requires_grad_(False)
    with pytest.raises(CannotTreatError, match="frozen"):
        give(REMEDY, patient(frozen, X))


def test_two_towers_are_no_stack():
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.sigmoid(self.a(x)) + torch.sigmoid(self.b(x)))

    with pytest.raises(CannotTreatError, match="plain stacks"):
        give(REMEDY, patient(Towers(), torch.randn(4, 8)))


# ---- as code -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corruption", [0.0, 0.25])
@pytest.mark.parametrize("act", [nn.Sigmoid, nn.Tanh, nn.ReLU, lambda: nn.LeakyReLU(0.3), nn.GELU])
def test_edit(act, corruption):
    model, same = chain(act, 3), chain(act, 3)
    settings = REMEDY.filled({"corruption": corruption, "steps": 20.0})
    changes = treated(model, corruption=corruption, steps=20.0)
    snippet = REMEDY.edit(settings, tuple(changes))
    assert snippet.anchor is Anchor.BEFORE_OPTIMIZER
    assert "gradiometer" not in "\n".join(snippet.lines)
    torch.manual_seed(5)
    paste(snippet, same, loader=[(part, None) for part in (*X.chunk(4), torch.full((1, WIDTH), torch.nan))])
    for a, b in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert all(p.grad is None for p in same.parameters())


# ---- what is tried -----------------------------------------------------------------------------------------------------


def test_plan():
    seen = symptoms("vanishing-gradient", trace=make(stack(8, kind="Sigmoid")))
    plain, denoising = REMEDY.plan(seen)
    assert plain == Treatment("pretrain")
    assert denoising.settings == {"corruption": 0.2}
    assert REMEDY.plan(symptoms("input-blindness", trace=make(stack(8, kind="tanh()")))) == (plain, denoising)
    REMEDY.filled(denoising.settings)
    assert (REMEDY.safety, REMEDY.stage, REMEDY.needs_batch) == (Safety.SAME_FUNCTION, Stage.PRETRAIN, True)


def test_plan_is_empty_where_it_cannot_help():
    sigmoid = make(stack(8, kind="Sigmoid"))
    assert REMEDY.plan(symptoms(trace=sigmoid)) == ()
    assert REMEDY.plan(symptoms("learning-rate-too-high", "vanishing-gradient", trace=sigmoid)) == ()
    assert REMEDY.plan(symptoms("vanishing-gradient", trace=make(stack(8, kind="ReLU")))) == ()
    assert REMEDY.plan(symptoms("vanishing-gradient", trace=make(stack(1, kind="Sigmoid")))) == ()
    for other in (output("n", Role.NORM), output("rnn", Role.RECURRENT), output("c", Role.LINEAR, kind="Conv2d")):
        trace = make([*stack(4, kind="Sigmoid"), other])
        assert REMEDY.plan(symptoms("vanishing-gradient", trace=trace)) == ()
