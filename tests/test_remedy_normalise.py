"""The remedy `normalise`: where norms go, what stays as it was, what they help."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradiometer.remedies.base import CannotTreatError
from gradiometer.remedies.normalise import REMEDY, NormAfter, standard_gain
from traces import make, output, stack
from treating import WIDTH, classes, give, held, learns, paste, patient, run, symptoms

X = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
KINDS = ("batch", "layer", "group", "rms", "weight-standard")
ADDED = KINDS[:-1]


def chain(act: type[nn.Module] = nn.ReLU, depth: int = 3, width: int = 32) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), act()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return {n.removesuffix(".inserted_norm"): m for n, m in model.named_modules() if n.endswith(".inserted_norm")}


# ---- where they go -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dense", "convolution"),
    [
        ("batch", nn.BatchNorm1d, nn.BatchNorm2d),
        ("layer", nn.LayerNorm, nn.GroupNorm),
        ("group", nn.GroupNorm, nn.GroupNorm),
    ],
)
def test_the_right_kind_behind_every_hidden_layer(kind, dense, convolution):
    model = chain()
    changes = give(REMEDY, patient(model, X), kind=kind)
    assert {n: type(m) for n, m in norms(model).items()} == dict.fromkeys(("0", "2", "4"), dense)
    assert len(changes) == 3
    images = convolutions()
    give(REMEDY, patient(images, IMAGES), kind=kind)
    assert {n: type(m) for n, m in norms(images).items()} == dict.fromkeys(("0", "2"), convolution)


def test_what_they_compute():
    model = chain()
    before = copy.deepcopy(model)
    give(REMEDY, patient(model, X), kind="layer")
    h = F.layer_norm(before[0](X), (32,))
    assert torch.allclose(model[:2](X), F.relu(h), atol=1e-6)
    model = copy.deepcopy(before)
    give(REMEDY, patient(model, X), kind="rms")
    h = before[0](X)
    assert torch.allclose(model[:2](X), F.relu(h / h.square().mean(1, keepdim=True).sqrt()), atol=1e-5)
    model = convolutions()
    plain = copy.deepcopy(model)
    give(REMEDY, patient(model, IMAGES), kind="rms")
    h = plain[0](IMAGES)
    assert torch.allclose(model[0](IMAGES), h / h.square().mean(1, keepdim=True).sqrt(), atol=1e-5)


def test_groups_have_something_to_normalise_by():
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 2))
    give(REMEDY, patient(model, X), kind="group")
    assert [m.num_groups for m in norms(model).values()] == [4, 1]
    images = nn.Sequential(nn.Conv2d(1, 96, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96 * 36, 2))
    give(REMEDY, patient(images, IMAGES), kind="group")
    assert [m.num_groups for m in norms(images).values()] == [32]


@pytest.mark.parametrize("kind", ADDED)
def test_features_in_the_last_of_three_dimensions(kind):
    model = chain()
    x = torch.randn(3, 5, 32)
    give(REMEDY, patient(model, x), kind=kind)
    assert model(x).shape == (3, 5, 10)
    first = model[0](x)
    if kind == "batch":
        assert torch.allclose(first.mean((0, 1)), torch.zeros(32), atol=1e-5)
    else:
        assert torch.allclose(first.square().mean(-1), torch.ones(3, 5), atol=1e-2)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_convolutions_of_every_dimension(dimension):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimension - 1]
    back = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimension - 1]
    x = torch.randn(4, 2, *[6] * dimension)
    for kind in KINDS:
        model = nn.Sequential(conv(2, 4, 3), nn.ReLU(), back(4, 4, 3), nn.ReLU(), conv(4, 1, 1))
        give(REMEDY, patient(model, x), kind=kind)
        assert len(norms(model)) == (2 if kind != "weight-standard" else 0)
        assert model(x).isfinite().all()


class Functional(nn.Module):
    """Activations as functions, and code that reads weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.spare = [self.fc1]  # a reference that no registration knows of

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.spare[0](x))
        x = F.dropout(torch.tanh(self.fc2(x)), 0.0)
        return self.head(x) + 0 * self.fc1.weight.sum() + 0 * self.fc1.in_features


@pytest.mark.parametrize("kind", KINDS)
def test_functional_activations_and_attribute_access(kind):
    model = Functional()
    subject = patient(model, X)
    weight, known = model.fc1.weight, id(model.fc1)
    names = {n for n, _ in model.named_parameters()}
    give(REMEDY, subject, kind=kind)
    assert id(model.fc1) == known
    assert isinstance(model.fc1, nn.Linear)
    assert type(model.fc1).__name__.endswith("Linear")
    if kind != "weight-standard":
        assert model.fc1.weight is weight
        assert names < {n for n, _ in model.named_parameters()}
    run(subject, X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert {id(p) for p in model.parameters()} == held(subject.optimizers[0])
    assert id(weight) in held(subject.optimizers[0])


def test_new_parameters_join_the_group_of_their_layer():
    model = chain(depth=2)
    subject = patient(model, X, optimizer=False)
    subject.optimizers = [
        torch.optim.SGD([{"params": model[:2].parameters()}, {"params": model[2:].parameters(), "lr": 0.5}], 0.1)
    ]
    give(REMEDY, subject)
    first, second = subject.optimizers[0].param_groups
    assert any(p is model[0].inserted_norm.weight for p in first["params"])
    assert any(p is model[2].inserted_norm.weight for p in second["params"])


@pytest.mark.parametrize("kind", ADDED)
def test_copies_and_pickles(kind):
    model = chain()
    give(REMEDY, patient(model, X), kind=kind)
    model.eval()
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copied, loaded):
        assert torch.equal(other(X), model(X))
        assert other[0].inserted_norm is not model[0].inserted_norm
        assert isinstance(other[0], NormAfter)
    copied.load_state_dict(model.state_dict())


def test_hooks_see_the_layer_and_its_norm():
    model = chain(depth=1)
    seen: list[str] = []
    give(REMEDY, patient(model, X))
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, _o, name=name: seen.append(name))
    model(X)
    assert seen == ["0", "0.inserted_norm", "1", "2", ""]


@pytest.mark.parametrize("place", ["before-activation", "after-activation"])
def test_a_compiled_model(place):
    model = chain()
    give(REMEDY, patient(model, X), kind="layer", place=place)
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(X), model(X), atol=1e-6)


def test_after_the_activation():
    model = chain()
    plain = copy.deepcopy(model)
    changes = give(REMEDY, patient(model, X), kind="layer", place="after-activation")
    assert list(norms(model)) == ["2", "4"]  # not of the data, not before the head
    assert len(changes) == 2
    h = F.layer_norm(F.relu(plain[0](X)), (32,))
    assert torch.allclose(model[:3](X), plain[2](h), atol=1e-6)


def test_residual_branches():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.b(F.relu(self.a(x))))

    model = nn.Sequential(Block(), Block(), nn.Linear(32, 2))
    give(REMEDY, patient(model, X))
    assert list(norms(model)) == ["0.a", "0.b", "1.a", "1.b"]


def test_only_what_has_none():
    model = nn.Sequential(
        *(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU()),
        *(nn.Linear(32, 32), nn.ReLU()),
        *(nn.Linear(32, 32), nn.ReLU(), nn.LayerNorm(32)),
        *(nn.Linear(32, 32), nn.Dropout(0.1), nn.ReLU()),
        nn.Linear(32, 2),
    )
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    give(REMEDY, patient(one, X), kind="layer")
    assert list(norms(one)) == ["3"]
    give(REMEDY, patient(other, X), kind="batch")  # takes out what a norm over units keeps
    assert list(norms(other)) == ["3", "5", "8"]
    with pytest.raises(CannotTreatError, match="not normalised already"):
        give(REMEDY, patient(other, X), kind="batch")


def test_gates_and_attention_are_left():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.gate, self.body, self.head = (nn.Linear(32, 32) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)
            x = self.body(x).relu() * torch.sigmoid(self.gate(x))
            return self.head(x)

    with pytest.raises(CannotTreatError):
        give(REMEDY, patient(Net(), torch.randn(2, 4, 32)), kind="layer")


def test_sites():
    model = chain()
    give(REMEDY, patient(model, X), ("[24]",))
    assert list(norms(model)) == ["2", "4"]


def test_torch_own_encoder_layer_in_training_and_evaluation():
    model = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=False), nn.Linear(8, 2)
    )
    x = torch.randn(4, 5, 8)
    give(REMEDY, patient(model, x))
    assert list(norms(model)) == ["0.linear1"]
    model(x)
    model.eval()
    with torch.no_grad():
        fast = model(x)
    with torch.enable_grad():
        assert torch.allclose(fast, model(x), atol=1e-6)


# ---- weights -----------------------------------------------------------------------------------------------------------


def test_weight_standardisation():
    model = chain(nn.Sigmoid)
    subject = patient(model, X)
    weight = model[0].weight
    give(REMEDY, subject, kind="weight-standard")
    assert [parametrize.is_parametrized(model[i]) for i in (0, 2, 4, 6)] == [True, True, True, False]
    assert model[0].parametrizations.weight.original is weight
    assert torch.allclose(model[0].weight.square().sum(1), torch.ones(32), atol=1e-4)
    assert torch.allclose(model[2].weight.sum(1), torch.zeros(32), atol=1e-4)
    assert torch.allclose(model[2].weight.square().sum(1).sqrt(), torch.full((32,), standard_gain("sigmoid")), atol=1e-3)


def test_its_gain_keeps_the_variance_at_one():
    assert standard_gain("relu") == pytest.approx((2 / (1 - 1 / torch.pi)) ** 0.5, abs=1e-4)  # Brock et al. 2021
    torch.manual_seed(0)
    for name, act in (("relu", F.relu), ("sigmoid", torch.sigmoid), ("tanh", torch.tanh), ("gelu", F.gelu)):
        spread = act(torch.randn(1_000_000)).std().item()
        assert spread * standard_gain(name) == pytest.approx(1.0, rel=0.01)
    assert standard_gain("") == standard_gain("unheard of") == 1.0


# ---- what it refuses ---------------------------------------------------------------------------------------------------


def test_refusals():
    with pytest.raises(CannotTreatError, match="more than one example"):
        give(REMEDY, patient(chain(), X[:1]))
    give(REMEDY, patient(chain(), X[:1]), kind="layer")
    with pytest.raises(CannotTreatError, match="no hidden layer"):
        give(REMEDY, patient(nn.Sequential(nn.Linear(32, 10), nn.Sigmoid()), X))
    with pytest.raises(CannotTreatError, match="first batch is not known"):
        give(REMEDY, patient(chain()))
    narrow = nn.Sequential(nn.Linear(32, 2), nn.ReLU(), nn.Linear(2, 1))
    with pytest.raises(CannotTreatError, match="too few units"):
        give(REMEDY, patient(narrow, X), kind="layer")
    with pytest.raises(CannotTreatError, match="kind may be"):
        REMEDY.filled({"kind": "instance"})


def test_recurrent_nets():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc, self.head = nn.GRU(32, 32, batch_first=True), nn.Linear(32, 32), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.fc(self.rnn(x)[0][:, -1])))

    class Elman(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.h, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 32)
            for t in range(x.shape[1]):
                h = torch.tanh(self.x(x[:, t]) + self.h(h))
            return self.head(h)

    series = torch.randn(4, 3, 32)
    for net in (Net, Elman):
        with pytest.raises(CannotTreatError, match="recurrent net"):
            give(REMEDY, patient(net(), series))
    model = Net()
    give(REMEDY, patient(model, series), kind="layer")
    assert list(norms(model)) == ["fc"]


def test_a_layer_that_is_called_twice():
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(32, 32), nn.Linear(64, 1)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(torch.cat([F.relu(self.fc(a)), F.relu(self.fc(b))], 1))

    with pytest.raises(CannotTreatError, match="called several times"):
        give(REMEDY, patient(Siamese(), X, X))
    give(REMEDY, patient(Siamese(), X, X), kind="layer")


# ---- the edit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before-activation", "after-activation"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("build", "x"), [(chain, X), (chain, torch.randn(3, 5, 32)), (convolutions, IMAGES)])
def test_the_edit(kind, place, build, x):
    model = build()
    other = copy.deepcopy(model)
    settings = REMEDY.filled({"kind": kind, "place": place})
    changes = REMEDY.apply(patient(model, x), settings, ())
    paste(REMEDY.edit(settings, tuple(changes)), other)
    assert torch.equal(other(x), model(x))
    model.eval()
    other.eval()
    assert torch.equal(other(x), model(x))
    if kind != "weight-standard":
        assert [n for n, _ in model.named_parameters()] == [n for n, _ in other.named_parameters()]


# ---- what it helps, and what it does not -------------------------------------------------------------------------------


def deep_sigmoid() -> nn.Sequential:
    torch.manual_seed(0)
    return chain(nn.Sigmoid, depth=10, width=WIDTH)


def what_varies(model: nn.Module, x: Tensor) -> float:
    """Share of the last pre-activation that varies with the input."""
    with torch.no_grad():
        h = model[:-2](x).double()
    return float((h - h.mean(0)).square().sum() / h.square().sum())


@pytest.mark.parametrize("kind", ["batch", "weight-standard"])
def test_it_rescues_a_deep_sigmoid_network(kind):
    x, _ = classes()
    assert learns(patient(deep_sigmoid(), x), lr=0.3) < 0.2
    treated = patient(deep_sigmoid(), x)
    give(REMEDY, treated, kind=kind)
    assert what_varies(treated.model, x) > 0.1
    assert learns(treated, lr=0.3) > 0.9


def test_a_layer_norm_does_not():
    x, _ = classes()
    treated = patient(deep_sigmoid(), x)
    give(REMEDY, treated, kind="layer")
    assert what_varies(treated.model, x) < 1e-4  # of size one, and the same for every input
    assert max(learns(treated, lr=lr) for lr in (0.03, 0.3)) < 0.3


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_norms_over_units_keep_the_signal_of_a_rectifier_network(kind):
    def fresh() -> nn.Sequential:
        torch.manual_seed(0)
        return chain(nn.ReLU, depth=12, width=WIDTH)

    x, _ = classes()
    assert max(learns(patient(fresh(), x), lr=lr, steps=150) for lr in (0.01, 0.1)) < 0.3
    treated = patient(fresh(), x)
    give(REMEDY, treated, kind=kind)
    assert learns(treated, lr=0.01, steps=150) > 0.9


def test_batch_normalisation_makes_a_deep_rectifier_network_explode():
    torch.manual_seed(0)
    x, y = classes(width=WIDTH)
    treated = patient(chain(nn.ReLU, depth=50, width=WIDTH), x)
    give(REMEDY, treated)
    F.cross_entropy(treated.model(x), y).backward()
    grown = float(treated.model[0].weight.grad.norm() / treated.model[-3].weight.grad.norm())
    assert grown > 1e3


# ---- the plan ----------------------------------------------------------------------------------------------------------


def planned(*rules: str, kind: str = "ReLU", layers: int = 8, trace=None) -> list[str]:
    found = REMEDY.plan(symptoms(*rules, trace=trace if trace is not None else make(stack(layers, kind=kind))))
    return [str(t.settings["kind"]) for t in found]


def test_plan():
    assert planned("vanishing-gradient") == ["batch", "layer", "rms"]
    assert planned("exploding-gradient", layers=60) == ["layer", "rms"]  # batch would explode
    for kind in ("Sigmoid", "softplus()"):
        assert planned("vanishing-gradient", kind=kind) == ["batch", "weight-standard"]  # the common mean would stay
        assert planned("input-blindness", kind=kind, layers=30) == ["batch", "weight-standard"]
    assert planned("learning-rate-too-low") == planned("vanishing-through-time") == planned("precision-underflow") == []
    images = make([output(f"c{k}", kind="Conv2d") for k in range(4)])
    assert planned("vanishing-gradient", trace=images)[-1] == "group"
