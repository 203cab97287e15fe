"""The remedy `fewer-layers`: what is taken out, how many, and what it helps."""

from __future__ import annotations

import copy
import inspect
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradiometer.remedies.activation import REMEDY as ACTIVATION
from gradiometer.remedies.base import CannotTreatError
from gradiometer.remedies.bedside import Around
from gradiometer.remedies.fewer_layers import REMEDY, trainable_depth
from gradiometer.remedies.layers import layers
from gradiometer.remedies.residual import REMEDY as RESIDUAL
from gradiometer.theory import MeanField
from gradiometer.types import Role
from traces import make, output, stack
from treating import WIDTH, classes, give, held, learns, paste, patient, run, symptoms

X = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))


def chain(act: type[nn.Module] = nn.Sigmoid, depth: int = 8, width: int = 32) -> nn.Sequential:
    made: list[nn.Module] = []
    for _ in range(depth):
        made += [nn.Linear(width, width), act()]
    return nn.Sequential(*made, nn.Linear(width, 10))


class Functional(nn.Module):
    def __init__(self, depth: int = 7, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)


class Residual(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(x)))


# ---- what is taken out -------------------------------------------------------------------------------------------------


def test_layers_of_a_sequential():
    model = chain()
    subject = patient(model, X)
    kept = dict(model.named_parameters())
    changes = give(REMEDY, subject, keep=4)
    gone = [k for k in range(0, 16, 2) if isinstance(model[k], nn.Identity)]
    assert len(gone) == 4
    assert 0 not in gone  # the layer that gets the data
    assert all(isinstance(model[k + 1], nn.Identity) for k in gone)
    assert max(b - a for a, b in zip([0, *gone], [*gone, 16], strict=True)) <= 6  # spread evenly
    h = X
    for k in (k for k in range(0, 16, 2) if k not in gone):
        h = torch.sigmoid(model[k](h))
    assert torch.equal(model(X), model[16](h))
    assert all(kept[n] is p for n, p in model.named_parameters())
    assert held(subject.optimizers[0]) == {id(p) for p in model.parameters()}
    assert len(changes) == 5
    assert changes[-1] == "4 of 8 hidden layers are left"


def test_layers_that_are_called_in_the_code():
    model = Functional()
    subject = patient(model, X)
    give(REMEDY, subject, keep=4)
    left = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    assert len(left) == 3
    for x in (X, X[:2]):
        h = torch.sigmoid(model.stem(x))
        for layer in left:
            h = torch.sigmoid(layer(h))
        assert torch.equal(run(subject, x), model.head(h))
    run(subject, X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert held(subject.optimizers[0]) == {id(p) for p in model.parameters()}
    Around.put(model, subject.on_forward)
    assert torch.equal(copy.deepcopy(model)(X), model(X))


def test_norms_dropout_and_activations_go_with_their_layer():
    model = nn.Sequential(
        *(m for _ in range(5) for m in (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Dropout(0.1), nn.ReLU())), nn.Linear(32, 2)
    )
    give(REMEDY, patient(model, X), keep=2)
    kinds = [[type(m) for m in model[k : k + 4]] for k in range(0, 20, 4)]
    assert sum(kind == [nn.Identity] * 4 for kind in kinds) == 3
    assert kinds[0] == [nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.ReLU]

    class Net(Functional):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(32) for _ in self.layers])
            self.act = nn.ELU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.stem(x))
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = self.act(F.dropout(norm(layer(x)), 0.0))
            return self.head(x)

    named = Net()
    subject = patient(named, X)
    give(REMEDY, subject, keep=3)
    left = [(a, b) for a, b in zip(named.layers, named.norms, strict=True) if isinstance(a, nn.Linear)]
    assert len(left) == 2
    assert sum(isinstance(norm, nn.LayerNorm) for norm in named.norms) == 2
    h = F.elu(named.stem(X))
    for layer, norm in left:
        h = F.elu(norm(layer(h)))
    assert torch.equal(run(subject, X), named.head(h))


def test_one_activation_for_all():
    act = nn.Tanh()
    model = nn.Sequential(*(m for _ in range(5) for m in (nn.Linear(32, 32), act)), nn.Linear(32, 2))
    give(REMEDY, patient(model, X), keep=2)
    left = [m for m in model[:-1] if isinstance(m, nn.Linear)]
    assert len(left) == 2
    assert sum(m is act for m in model) == 2
    assert torch.equal(model(X), model[10](act(left[1](act(left[0](X))))))


def test_blocks():
    model = nn.Sequential(nn.Linear(32, 32), *(Residual() for _ in range(6)), nn.Linear(32, 2))
    changes = give(REMEDY, patient(model, X), keep=7)
    assert [type(m) for m in model].count(Residual) == 3
    assert "7 of 13 hidden layers are left" in changes


def test_convolutions():
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU()),
        *(m for _ in range(4) for m in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())),
        *(nn.Flatten(), nn.Linear(4 * 36, 3)),
    )
    give(REMEDY, patient(model, torch.randn(2, 1, 8, 8)), keep=3)
    assert sum(isinstance(m, nn.Conv2d) for m in model) == 3


def test_a_block_that_is_the_only_one_stays():
    model = nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 4, 32, batch_first=True), nn.Linear(32, 2))
    with pytest.raises(CannotTreatError, match="keeps the shape"):
        give(REMEDY, patient(model, X[None]), keep=1)


def test_sites():
    model = chain()
    give(REMEDY, patient(model, X), ("2", "4"), keep=1)
    assert [k for k in range(0, 16, 2) if isinstance(model[k], nn.Identity)] == [2, 4]


def test_later_remedies():
    model = Functional()
    subject = patient(model, X)
    give(REMEDY, subject, keep=3)
    give(ACTIVATION, subject, to="silu")
    give(RESIDUAL, subject)
    left = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    h = F.silu(model.stem(X))
    for layer in left:
        h = h + F.silu(layer(h))
    assert torch.equal(run(subject, X), model.head(h))


# ---- how many ----------------------------------------------------------------------------------------------------------


def test_theory_says_how_many():
    torch.manual_seed(0)
    model = chain(nn.Tanh, depth=30, width=256)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.normal_(0, 0.9 / 16)
            layer.bias.normal_(0, 0.05**0.5)
    x = torch.randn(8, 256)
    limit, why = trainable_depth([layer for layer in layers(patient(model, x)) if not layer.head])
    assert limit == pytest.approx(MeanField("tanh", 0.9, 0.05**0.5).trainable_depth(1.0), rel=0.03)
    assert "trainable depth of tanh with sigma_w = 0.90" in why
    changes = give(REMEDY, patient(model, x))
    assert sum(isinstance(m, nn.Linear) for m in model) == -(-limit // 1) + 1
    assert changes[-1].startswith(f"{-(-limit // 1):.0f} of 30")


def test_a_default_sigmoid_network_may_have_two():
    model = chain(depth=20)
    changes = give(REMEDY, patient(model, X))
    assert changes[-1].startswith("2 of 20 hidden layers are left: 1.5 is the trainable depth of sigmoid")


# ---- what it refuses ---------------------------------------------------------------------------------------------------


def test_refusals():
    model = chain(nn.ReLU, depth=4)
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    with pytest.raises(CannotTreatError, match="4 hidden layers, no more than there may be"):
        give(REMEDY, patient(model, X))
    with pytest.raises(CannotTreatError, match="4 hidden layers, no more"):
        give(REMEDY, patient(model, X), keep=6)
    with pytest.raises(CannotTreatError, match="keeps the shape"):
        give(REMEDY, patient(nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)), X))
    with pytest.raises(CannotTreatError, match="first batch is not known"):
        give(REMEDY, patient(model))
    with pytest.raises(CannotTreatError, match="normalised or have shortcuts"):
        give(REMEDY, patient(nn.Sequential(nn.Linear(32, 32), *(Residual() for _ in range(6)), nn.Linear(32, 2)), X))


def test_a_model_that_needs_its_layers_is_left_as_it_was():
    class Net(Functional):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x + 0 * sum(layer.weight.sum() for layer in self.layers)

    model = Net()
    subject = patient(model, X)
    before = model(X)
    with pytest.raises(CannotTreatError, match="does not run without these layers"):
        give(REMEDY, subject, keep=2)
    assert torch.equal(run(subject, X), before)
    assert not subject.on_forward
    assert held(subject.optimizers[0]) == {id(p) for p in model.parameters()}


def test_recurrent_nets_and_checkpointed_parts():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.h, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.x(x))
            for _ in range(3):
                h = torch.tanh(self.h(h))
            return self.head(h)

    class Again(Functional):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.stem(x))
            for layer in self.layers:
                x = checkpoint(lambda x, layer=layer: torch.sigmoid(layer(x)), x, use_reentrant=False)
            return self.head(x)

    for net in (Net, Again):
        with pytest.raises(CannotTreatError, match="keeps the shape"):
            give(REMEDY, patient(net(), X), keep=2)


# ---- the edit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [chain, lambda: nn.Sequential(nn.Linear(32, 32), *(Residual() for _ in range(6)), nn.Linear(32, 2)), Functional],
)
def test_the_edit_of_modules_and_lists(build):
    model = build()
    other = copy.deepcopy(model)
    subject = patient(model, X)
    settings = REMEDY.filled({"keep": 5.0})
    changes = REMEDY.apply(subject, settings, ())
    paste(REMEDY.edit(settings, tuple(changes)), other)
    assert torch.equal(other(X), run(subject, X))
    assert sum(p.numel() for p in other.parameters()) == sum(p.numel() for p in model.parameters())


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x))
        h = F.relu(self.fc2(x))
        return self.fc4(self.fc3(h).sigmoid())


def test_the_edit_of_functions():
    model = Written()
    subject = patient(model, X)
    settings = REMEDY.filled({"keep": 1.0})
    snippet = REMEDY.edit(settings, tuple(REMEDY.apply(subject, settings, ())))
    assert dict(snippet.replace) == {"F.relu(self.fc2(x))": "x", "self.fc3(h).sigmoid()": "h"}
    source = textwrap.dedent(inspect.getsource(Written))
    for old, new in snippet.replace:
        source = source.replace(old, new)
    space: dict = {"nn": nn, "torch": torch, "Tensor": Tensor, "F": F}
    exec("from __future__ import annotations\n" + source, space)
    other = space["Written"]()
    paste(snippet, other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), run(subject, X))


class InOneLine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc4(F.relu(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))))


def test_the_edit_of_calls_inside_of_calls():
    settings = REMEDY.filled({"keep": 2.0})
    snippet = REMEDY.edit(settings, tuple(REMEDY.apply(patient(InOneLine(), X), settings, ("fc3",))))
    ((old, new),) = snippet.replace
    assert old == "F.relu(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x))))))"
    assert new == "F.relu(self.fc2(F.relu(self.fc1(x))))"


# ---- what it helps, and what it does not -------------------------------------------------------------------------------


@pytest.mark.parametrize("functional", [False, True])
def test_it_helps_a_deep_sigmoid_network(functional):
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return Functional(depth=9, width=WIDTH) if functional else chain(depth=10, width=WIDTH)

    x, _ = classes()
    assert max(learns(patient(fresh(), x), lr=lr, steps=200) for lr in (0.1, 1.0)) < 0.2
    treated = patient(fresh(), x)
    give(REMEDY, treated)
    assert learns(treated, lr=0.3, steps=200) > 0.9


def test_it_does_not_help_where_two_layers_are_too_many():
    def fresh() -> nn.Sequential:
        torch.manual_seed(0)
        model = chain(depth=6, width=WIDTH)
        with torch.no_grad():
            for layer in model[::2]:
                layer.weight.mul_(1e-4)
        return model

    x, _ = classes()
    treated = patient(fresh(), x)
    give(REMEDY, treated)
    assert learns(treated, lr=0.3, steps=100) < 0.2


# ---- the plan ----------------------------------------------------------------------------------------------------------


def planned(*rules: str, layers: int = 12) -> list[str]:
    return [t.label for t in REMEDY.plan(symptoms(*rules, trace=make(stack(layers))))]


def test_plan():
    assert planned("vanishing-gradient") == planned("exploding-gradient") == ["fewer-layers", "fewer-layers keep=6"]
    assert planned("shattered-gradient") == ["fewer-layers keep=6"]
    assert planned("vanishing-gradient", layers=3) == []
    assert planned("learning-rate-too-high") == planned("saturated-units") == []
    series = make([output("rnn", Role.RECURRENT), *stack(8)])
    assert REMEDY.plan(symptoms("vanishing-gradient", trace=series)) == ()
