"""The remedy `residual`: which parts get a skip, what it computes, what it helps."""

from __future__ import annotations

import copy
import inspect
import io
import math
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradiometer.remedies.activation import REMEDY as ACTIVATION
from gradiometer.remedies.base import Anchor, CannotTreatError
from gradiometer.remedies.bedside import Around
from gradiometer.remedies.normalise import REMEDY as NORMALISE
from gradiometer.remedies.residual import REMEDY
from gradiometer.types import Role
from traces import make, output, stack
from treating import WIDTH, classes, give, learns, paste, patient, run, symptoms

X = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))


def chain(act: type[nn.Module] = nn.Tanh, depth: int = 4, width: int = 32) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), act()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Functional(nn.Module):
    """The same with functions."""

    def __init__(self, depth: int = 3, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


class Layer(nn.Module):
    """A layer with its normalisation and activation."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.fc(x)))


class Bottle(nn.Module):
    """A block that keeps the shape, of layers that do not."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


# ---- what it computes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.25, "depth"])
def test_layers_in_a_sequential(scale):
    model = chain()
    names = [n for n, _ in model.named_parameters()]
    subject = patient(model, X)
    changes = give(REMEDY, subject, scale=scale)
    s = round(3**-0.5, 4) if scale == "depth" else scale
    h = torch.tanh(model[0](X))  # the layer that gets the data
    for k in (2, 4, 6):
        h = h + s * torch.tanh(model[k](h))
    assert torch.allclose(model(X), model[8](h), atol=1e-6)
    assert len(changes) == 3
    assert [n for n, _ in model.named_parameters()] == names
    assert not subject.on_forward
    assert torch.allclose(model[2:4](h), h + s * torch.tanh(model[2](h)))
    assert torch.allclose(model[3:5](h), model[4](torch.tanh(h)))


def test_layers_in_the_code():
    model = Functional()
    subject = patient(model, X)
    changes = give(REMEDY, subject, scale=0.5)
    for x in (X, X[:3]):  # every pass, of any size
        h = torch.tanh(model.stem(x))
        for layer in model.layers:
            h = h + 0.5 * torch.tanh(layer(h))
        assert torch.equal(run(subject, x), model.head(h))
    run(subject, X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len(changes) == 1
    assert "(3 calls)" in changes[0]


def test_modules_in_the_code():
    class Net(Functional):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.norm = nn.Sigmoid(), nn.LayerNorm(32)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.stem(x))
            for layer in self.layers:
                h = self.norm(layer(x))
                x = self.act(F.dropout(h, 0.0))
            return self.head(x)

    model = Net()
    subject = patient(model, X)
    give(REMEDY, subject)
    h = torch.sigmoid(model.stem(X))
    for layer in model.layers:
        h = h + torch.sigmoid(model.norm(layer(h)))
    assert torch.equal(run(subject, X), model.head(h))


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_activations_that_work_in_place(act):
    model = nn.Sequential(nn.Linear(32, 32), act, nn.Linear(32, 32), act, nn.Linear(32, 2))
    give(REMEDY, patient(model, X))
    function = copy.deepcopy(act)
    h = function(model[0](X))
    h = h + function(model[2](h))
    assert torch.equal(model(X), model[4](h))
    model(X).sum().backward()


@pytest.mark.parametrize("make_list", [lambda m: nn.Sequential(*m), nn.ModuleList])
@pytest.mark.parametrize("block", [Layer, Bottle])
def test_blocks(block, make_list):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(32, 32), nn.Linear(32, 2)
            self.blocks = make_list([block() for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            if isinstance(self.blocks, nn.Sequential):
                return self.head(self.blocks(x))
            for inner in self.blocks:
                x = inner(x)
            return self.head(x)

    model = Net()
    plain = copy.deepcopy(model)
    subject = patient(model, X)
    changes = give(REMEDY, subject)
    h = plain.stem(X)
    for inner in plain.blocks:
        h = h + inner(h)
    assert torch.equal(run(subject, X), plain.head(h))
    assert changes == [f"`blocks.{k}`: x + 1.0 * f(x) around it" for k in range(3)]
    assert not subject.on_forward
    assert all(isinstance(inner, block) for inner in model.blocks)


def test_convolutions():
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(4 * 36, 10)),
    )
    changes = give(REMEDY, patient(model, torch.randn(2, 1, 8, 8)))
    assert changes == ["`2` to `4`: x + 1.0 * f(x) around them"]  # the next one makes the image smaller


def test_several_layers_in_one_skip():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), *(m for _ in range(2) for m in _wide()), nn.Linear(32, 2))
    give(REMEDY, patient(model, X), blocks=2)
    h = F.relu(model[0](X))
    for k in (2, 6):
        h = h + F.relu(model[k + 2](F.relu(model[k](h))))
    assert torch.allclose(model(X), model[10](h), atol=1e-6)
    loose = Functional(depth=4)
    subject = patient(loose, X)
    give(REMEDY, subject, blocks=2)
    h = torch.tanh(loose.stem(X))
    a, b, c, d = loose.layers
    h = h + torch.tanh(b(torch.tanh(a(h))))
    h = h + torch.tanh(d(torch.tanh(c(h))))
    assert torch.equal(run(subject, X), loose.head(h))


def test_a_row_that_is_too_short_gets_none():
    model = nn.Sequential(nn.Linear(32, 32), *(Layer() for _ in range(3)), nn.Linear(32, 2))
    assert give(REMEDY, patient(model, X), blocks=2) == ["`1` to `2`: x + 1.0 * f(x) around them"]


def _wide() -> list[nn.Module]:
    return [nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()]


def test_after_other_remedies():
    model = Functional()
    subject = patient(model, X)
    give(ACTIVATION, subject, to="gelu")
    give(NORMALISE, subject, kind="layer")
    give(REMEDY, subject)
    h = F.gelu(model.stem(X))
    for layer in model.layers:
        h = h + F.gelu(layer(h))
    assert torch.equal(run(subject, X), model.head(h))
    other = chain()
    subject = patient(other, X)
    give(NORMALISE, subject, kind="layer")
    give(REMEDY, subject)
    h = torch.tanh(other[0](X))
    for k in (2, 4, 6):
        h = h + torch.tanh(other[k](h))
    assert torch.allclose(other(X), other[8](h), atol=1e-6)
    assert not subject.on_forward


def test_copies_pickles_and_compiled_models():
    normed = chain()
    give(NORMALISE, patient(normed, X), kind="layer")
    for model in (normed, nn.Sequential(nn.Linear(32, 32), *(Layer() for _ in range(3)), nn.Linear(32, 2))):
        give(REMEDY, patient(model, X))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        assert torch.equal(copy.deepcopy(model)(X), model(X))
        assert torch.equal(torch.load(file, weights_only=False)(X), model(X))
        torch._dynamo.reset()
        assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(X), model(X), atol=1e-6)
    loose = Functional()
    subject = patient(loose, X)
    give(REMEDY, subject)
    Around.put(loose, subject.on_forward)
    assert torch.equal(copy.deepcopy(loose)(X), loose(X))
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(loose, backend="eager")(X), loose(X), atol=1e-6)


# ---- what stays --------------------------------------------------------------------------------------------------------


def test_what_has_a_shortcut_already():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.b(F.relu(self.a(x))))

    with pytest.raises(CannotTreatError, match="no shortcut yet"):
        give(REMEDY, patient(nn.Sequential(nn.Linear(32, 32), Block(), Block(), nn.Linear(32, 2)), X))
    with pytest.raises(CannotTreatError, match="no shortcut yet"):
        give(REMEDY, patient(nn.Sequential(nn.TransformerEncoderLayer(32, 4, 32, batch_first=True)), X[None]))
    model = chain()
    give(REMEDY, patient(model, X))
    with pytest.raises(CannotTreatError, match="no shortcut yet"):
        give(REMEDY, patient(model, X))


def test_shapes_that_change():
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2))
    with pytest.raises(CannotTreatError):
        give(REMEDY, patient(model, X))


def test_no_batch():
    with pytest.raises(CannotTreatError, match="first batch is not known"):
        give(REMEDY, patient(chain()))


def test_an_autoencoder_is_no_block():
    model = nn.Sequential(nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 32)))
    with pytest.raises(CannotTreatError):
        give(REMEDY, patient(model, X))


def test_recurrent_nets_and_gates():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.h, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.x(x))
            for _ in range(3):
                h = torch.tanh(self.h(h))
            return self.head(h)

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x * torch.sigmoid(self.gate(x)))

    for net in (Net, Gated):
        with pytest.raises(CannotTreatError):
            give(REMEDY, patient(net(), X))


def test_a_checkpointed_part():
    class Net(Functional):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.stem(x))
            for layer in self.layers:
                x = checkpoint(lambda x, layer=layer: torch.tanh(layer(x)), x, use_reentrant=False)
            return self.head(x)

    with pytest.raises(CannotTreatError, match="cannot be caught"):
        give(REMEDY, patient(Net(), X))


def test_sites():
    model = chain()
    assert len(give(REMEDY, patient(model, X), ("4", "6"))) == 2
    blocks = nn.Sequential(nn.Linear(32, 32), Layer(), Layer(), nn.Linear(32, 2))
    assert give(REMEDY, patient(blocks, X), ("2",)) == ["`2`: x + 1.0 * f(x) around it"]


# ---- the edit ----------------------------------------------------------------------------------------------------------


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(32, 32), chain(depth=2)[:-1], nn.Linear(32, 2)
        self.block = Bottle()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.body(self.stem(x))))


@pytest.mark.parametrize("scale", [1.0, "depth"])
@pytest.mark.parametrize("build", [chain, Nested])
def test_the_edit_of_modules(build, scale):
    model = build()
    other = copy.deepcopy(model)
    settings = REMEDY.filled({"scale": scale})
    changes = REMEDY.apply(patient(model, X), settings, ())
    snippet = REMEDY.edit(settings, tuple(changes))
    assert snippet.anchor is Anchor.BEFORE_OPTIMIZER
    paste(snippet, other)
    assert torch.equal(other(X), model(X))


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Linear(32, 32) for _ in range(4))
        self.norm = nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x))
        h = F.relu(self.norm(self.fc2(x)))
        return self.fc4(self.fc3(h).sigmoid())


def test_the_edit_of_functions():
    model = Written()
    subject = patient(model, X)
    settings = REMEDY.filled({"scale": "depth"})
    snippet = REMEDY.edit(settings, tuple(REMEDY.apply(subject, settings, ())))
    assert snippet.anchor is Anchor.IN_PLACE
    source = textwrap.dedent(inspect.getsource(Written))
    for old, new in snippet.replace:
        assert source.count(old) == 1
        source = source.replace(old, new)
    space: dict = {"nn": nn, "torch": torch, "Tensor": Tensor, "F": F}
    exec("from __future__ import annotations\n" + source, space)
    other = space["Written"]()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), run(subject, X))


def test_where_no_expression_can_be_given_it_says_where():
    class Net(Functional):
        def forward(self, x: Tensor) -> Tensor:
            for layer in [self.stem, *self.layers]:  # the first of them gets no skip
                x = layer(x)
                x = torch.tanh(x)
            return self.head(x)

    settings = REMEDY.filled({})
    changes = REMEDY.apply(patient(Net(), X), settings, ())
    assert len(changes) == 3
    snippet = REMEDY.edit(settings, tuple(changes))
    assert not snippet.replace
    assert all(line.startswith("# test_remedy_residual.py, line") for line in snippet.lines)


class InOneLine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc4(F.relu(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))))


def test_what_goes_in_is_not_computed_twice():
    settings = REMEDY.filled({})
    subject = patient(InOneLine(), X)
    snippet = REMEDY.edit(settings, tuple(REMEDY.apply(subject, settings, ())))
    assert not snippet.replace
    assert [line.partition("goes into ")[2].split()[0] for line in snippet.lines] == ["`fc2`", "`fc3`"]


# ---- what it helps, and what it does not -------------------------------------------------------------------------------


@pytest.mark.parametrize("functional", [False, True])
def test_it_rescues_a_deep_sigmoid_network(functional):
    class Net(Functional):
        def forward(self, x: Tensor) -> Tensor:
            for layer in [self.stem, *self.layers]:
                x = torch.sigmoid(layer(x))
            return self.head(x)

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return Net(depth=9, width=WIDTH) if functional else chain(nn.Sigmoid, depth=10, width=WIDTH)

    x, _ = classes()
    assert learns(patient(fresh(), x), lr=0.1) < 0.2
    treated = patient(fresh(), x)
    give(REMEDY, treated, scale=1.0)
    assert learns(treated, lr=0.1, steps=120) > 0.9


def he(depth: int) -> nn.Sequential:
    torch.manual_seed(0)
    model = chain(nn.ReLU, depth=depth, width=WIDTH)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def likeness(model: nn.Module) -> float:
    """How much of the likeness of inputs' gradients at the last layer is left at the first (1 all of it)."""
    x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(5)).requires_grad_()
    readout = torch.randn(10, generator=torch.Generator().manual_seed(6))
    (grad,) = torch.autograd.grad((model(x) @ readout).sum(), x)
    cosines = F.normalize(grad) @ F.normalize(grad).T
    return float((cosines.sum() - 32) / (32 * 31))


def test_small_branches_keep_gradients_from_shattering():
    x, _ = classes()
    plain, treated, whole = (patient(he(50), x) for _ in range(3))
    give(REMEDY, treated, scale="depth")
    give(REMEDY, whole, scale=1.0)
    assert abs(likeness(plain.model)) < 0.1
    assert likeness(treated.model) > 0.2
    assert max(learns(patient(he(50), x), lr=lr, steps=120) for lr in (0.001, 0.01, 0.1)) < 0.4
    assert learns(treated, lr=0.001, steps=120) > 0.7


def test_whole_branches_explode_where_the_layers_already_keep_the_signal():
    x, _ = classes()
    treated = patient(he(50), x)
    give(REMEDY, treated, scale=1.0)
    with torch.no_grad():
        assert float(treated.model[:-1](x).norm() / x.norm()) > 1e6


def test_small_branches_tame_weights_that_are_too_large():
    def growth(model: nn.Sequential) -> float:
        x, y = classes()
        F.cross_entropy(model(x), y).backward()
        return float(model[2].weight.grad.norm() / model[-3].weight.grad.norm())

    def fresh() -> nn.Sequential:
        model = he(20)
        with torch.no_grad():
            for layer in model[2:-1:2]:
                layer.weight.mul_(2.0)
        return model

    x, _ = classes()
    treated = patient(fresh(), x)
    give(REMEDY, treated, scale="depth")
    treated_growth = growth(treated.model)
    with torch.no_grad():
        assert float(fresh()[:-1](x).norm() / x.norm()) > 1e5
        assert float(treated.model[:-1](x).norm() / x.norm()) < 1000
    assert 0.01 < treated_growth < 100


# ---- the plan ----------------------------------------------------------------------------------------------------------


def planned(*rules: str, layers: int = 8) -> list[str]:
    return [t.label for t in REMEDY.plan(symptoms(*rules, trace=make(stack(layers))))]


def test_plan():
    both = ["residual scale=depth", "residual scale=1"]
    assert planned("shattered-gradient") == planned("vanishing-gradient") == both
    assert planned("exploding-gradient") == both[:1]
    assert planned("learning-rate-too-high") == planned("dead-units") == []
    assert planned("vanishing-gradient", layers=1) == []
    series = make([output("rnn", Role.RECURRENT), *stack(3)])
    assert REMEDY.plan(symptoms("vanishing-gradient", trace=series)) == ()


def test_settings():
    assert REMEDY.filled({"scale": "depth"})["scale"] == "depth"
    with pytest.raises(CannotTreatError, match="must be like"):
        REMEDY.filled({"scale": "width"})
    assert math.isclose(float(REMEDY.filled({})["scale"]), 1.0)
