"""The remedy `activation`: what it replaces, what it leaves, what it helps."""

from __future__ import annotations

import copy
import inspect
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradiometer.remedies.activation import REMEDY, TARGETS
from gradiometer.remedies.base import Anchor, CannotTreatError
from gradiometer.remedies.bedside import Around
from traces import make, stack
from treating import WIDTH, classes, give, held, learns, paste, patient, run, symptoms

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def chain(act: nn.Module | None = None, depth: int = 3, width: int = 8) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), act or nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Functional(nn.Module):
    """Calls a function after every layer."""

    def __init__(self, function=torch.sigmoid, depth: int = 3, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.head = nn.Linear(width, 10)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.function(layer(x))
        return self.head(x)


def by_hand(model: Functional | nn.Sequential, function, x: Tensor) -> Tensor:
    """What the model gives with this function after every hidden layer."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for layer in layers[:-1]:
        x = function(layer(x))
    return layers[-1](x)


# ---- what is replaced --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", list(TARGETS))
def test_modules_in_a_sequential(to):
    model = chain(nn.Softsign())
    subject = patient(model, X)
    before = [p.detach().clone() for p in model.parameters()]
    changes = give(REMEDY, subject, to=to)
    assert [type(m) for m in model][1::2] == [type(TARGETS[to].module())] * 3
    assert torch.equal(run(subject, X), by_hand(model, TARGETS[to].function, X))
    same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert same == (to != "selu")
    assert sum("Softsign is now" in change for change in changes) == 3
    assert not subject.on_forward  # no function was called


@pytest.mark.parametrize(
    "function",
    [
        torch.sigmoid,
        F.sigmoid,
        torch.tanh,
        F.hardtanh,
        F.softsign,
        F.logsigmoid,
        F.softplus,
        F.hardsigmoid,
        torch.special.expit,
        lambda x: x.sigmoid(),
        lambda x: x.tanh(),
        lambda x: torch.sigmoid_(x),
        lambda x: F.hardtanh(x, inplace=True),
        lambda x: F.softplus(input=x, beta=2),
    ],
)
def test_functions(function):
    model = Functional(function)
    subject = patient(model, X)
    give(REMEDY, subject)
    assert torch.equal(run(subject, X), by_hand(model, F.relu, X))
    run(subject, X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_function_that_works_in_place_still_does():
    def squash(x: Tensor) -> Tensor:
        torch.tanh_(x)
        return x

    model = Functional(squash)
    subject = patient(model, X)
    give(REMEDY, subject, to="gelu")
    assert torch.equal(run(subject, X), by_hand(model, F.gelu, X))
    run(subject, X).sum().backward()


def test_attributes_lists_and_a_shared_instance():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
            self.act = self.again = nn.Tanh()
            self.acts = nn.ModuleList([nn.Sigmoid(), nn.Sigmoid()])
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.again(self.layers[1](self.act(self.layers[0](x))))
            for layer, act in zip(self.layers[2:], self.acts, strict=True):
                x = act(layer(x))
            return self.head(x)

    model = Net()
    give(REMEDY, patient(model, X))
    assert isinstance(model.act, nn.ReLU)
    assert model.again is model.act
    assert all(isinstance(act, nn.ReLU) for act in model.acts)


def test_convolutions():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 3))
    give(REMEDY, patient(model, torch.randn(2, 1, 8, 8)))
    assert isinstance(model[1], nn.ReLU)


def test_torch_own_encoder_layer_in_training_and_evaluation():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 2))
    x = torch.randn(2, 5, 8)
    subject = patient(model, x)
    settings = REMEDY.filled({"to": "silu", "replace": "relu"})
    other = copy.deepcopy(model)
    changes = REMEDY.apply(subject, settings, ())
    trained = run(subject, x)
    paste(REMEDY.edit(settings, tuple(changes)), other)
    assert torch.equal(other(x), trained)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(run(subject, x), trained, atol=1e-5)


def test_dying_rectifiers_only():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2), nn.ReLU6(), nn.Linear(2, 2))
    give(REMEDY, patient(model, X), to="leaky-relu", replace="relu")
    assert [type(m) for m in model][1::2] == [nn.LeakyReLU, nn.Tanh, nn.LeakyReLU]


def test_all_of_them_and_their_parameters():
    model = nn.Sequential(nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
    subject = patient(model, X)
    slope = model[1].weight
    give(REMEDY, subject, to="tanh", replace="all")
    assert [type(m) for m in model][1::2] == [nn.Tanh, nn.Tanh]
    assert id(slope) not in held(subject.optimizers[0])


def test_sites():
    model = chain()
    changes = give(REMEDY, patient(model, X), ("1", "5"))
    assert [type(m) for m in model][1::2] == [nn.ReLU, nn.Sigmoid, nn.ReLU]
    assert len(changes) == 2
    named = Functional()
    subject = patient(named, X)
    give(REMEDY, subject, ("layers.1 > sigmoid",))
    first, second, third = named.layers
    x = torch.sigmoid(third(F.relu(second(torch.sigmoid(first(X))))))
    assert torch.equal(run(subject, X), named.head(x))


def test_selu_brings_its_weights():
    model = chain(width=200)
    x = torch.randn(4, 200)
    changes = give(REMEDY, patient(model, x), to="selu")
    for i in (0, 2, 4):
        assert model[i].weight.std().item() == pytest.approx(200**-0.5, rel=0.05)
        assert not model[i].bias.any()
    assert model[6].bias.any()  # the head is behind no activation
    assert sum("LeCun" in change for change in changes) == 3


def test_selu_brings_the_weights_of_layers_written_by_hand():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(200, 300)), nn.Parameter(torch.ones(100, 300))
            self.head = nn.Linear(100, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(F.linear(torch.tanh(x @ self.a), self.b)))

    torch.manual_seed(0)
    model = Net()
    other = copy.deepcopy(model)
    settings = REMEDY.filled({"to": "selu"})
    torch.manual_seed(3)
    changes = REMEDY.apply(patient(model, torch.randn(4, 200)), settings, ())
    assert model.a.std().item() == pytest.approx(200**-0.5, rel=0.05)
    assert model.b.std().item() == pytest.approx(300**-0.5, rel=0.05)
    torch.manual_seed(3)
    torch.randn(4, 200)
    paste(REMEDY.edit(settings, tuple(changes)), other)
    assert torch.equal(model.a, other.a)
    assert torch.equal(model.b, other.b)


# ---- what stays --------------------------------------------------------------------------------------------------------


def test_the_output():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 1), nn.Sigmoid())
    changes = give(REMEDY, patient(model, X))
    assert [type(m) for m in model][1::2] == [nn.ReLU, nn.Sigmoid]
    assert "left as it is, being the activation of the output: 3 (sigmoid)" in changes
    with pytest.raises(CannotTreatError, match="activation of the output"):
        give(REMEDY, patient(model, X))


def test_one_instance_that_is_the_output_too():
    act = nn.Sigmoid()
    model = nn.Sequential(nn.Linear(8, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 1), act)
    give(REMEDY, patient(model, X))
    assert [type(m) for m in model][1::2] == [nn.ReLU, nn.ReLU, nn.Sigmoid]


class Mixed(nn.Module):
    """Calls one function on the same line for hidden layers and for the output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return x


def test_the_same_line_of_code_for_hidden_layers_and_output():
    model = Mixed()
    subject = patient(model, X)
    give(REMEDY, subject)
    a, b, c = model.layers
    for _ in range(2):  # every pass counts anew
        assert torch.equal(run(subject, X), torch.sigmoid(c(F.relu(b(F.relu(a(X)))))))


def test_one_attribute_for_hidden_layers_and_output():
    class Net(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            a, b, c = self.layers
            return self.act(c(self.act(b(self.act(a(x))))))

    model = Net()
    subject = patient(model, X)
    give(REMEDY, subject)
    a, b, c = model.layers
    assert torch.equal(run(subject, X), torch.sigmoid(c(F.relu(b(F.relu(a(X)))))))


class Excited(nn.Module):
    """Squeeze-and-excitation, a GLU, a swish by hand, a mask, and an embedding that is brought to length one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up, self.gate, self.last, self.head = (nn.Linear(8, 8) for _ in range(6))
        self.squash = nn.Tanh()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        mask = (x[:, :1] > 0).float()
        h = self.squash(self.stem(x)) * mask * self.scale
        h = h * torch.sigmoid(self.up(torch.tanh(self.down(h)))).view_as(h)
        h = h * (1 - torch.sigmoid(self.gate(h)))
        h = h * torch.sigmoid(h)
        e = torch.tanh(self.last(h))
        return self.head(e / e.norm(dim=1, keepdim=True))


def test_gates_stay():
    model = Excited()
    subject = patient(model, X)
    changes = give(REMEDY, subject, to="elu")
    assert isinstance(model.squash, nn.ELU)  # a mask opens and shuts nothing by itself
    assert sum(" is now `F.elu`" in change for change in changes) == 2
    (left,) = (change for change in changes if "being a gate" in change)
    assert left.count("sigmoid") == 3
    assert "tanh" not in left
    h = F.elu(model.stem(X)) * (X[:, :1] > 0).float()
    h = h * torch.sigmoid(model.up(F.elu(model.down(h))))
    h = h * (1 - torch.sigmoid(model.gate(h)))
    h = h * torch.sigmoid(h)
    e = F.elu(model.last(h))
    assert torch.allclose(run(subject, X), model.head(e / e.norm(dim=1, keepdim=True)))


def test_noise_that_is_scaled_is_a_gate():
    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread, self.decoder = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            mean = self.mean(x)
            return self.decoder(mean + torch.randn_like(mean) * F.softplus(self.spread(x)))

    with pytest.raises(CannotTreatError, match=r"a gate: softplus in test_remedy_activation\.py, line"):
        give(REMEDY, patient(Sampler(), X))


class Gru(nn.Module):
    """A cell written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.head = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            a, b = self.x(x[:, t]).chunk(3, 1), self.h(h).chunk(3, 1)
            r, z = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
            h = (1 - z) * torch.tanh(a[2] + r * b[2]) + z * h
        return self.head(h)


class Elman(nn.Module):
    """A plain recurrent net written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h = torch.tanh(self.x(x[:, t]) + self.h(h))
        return self.head(h)


SERIES = torch.randn(3, 5, 8)


def test_cells_written_by_hand():
    with pytest.raises(CannotTreatError, match="a gate"):
        give(REMEDY, patient(Gru(), SERIES))
    with pytest.raises(CannotTreatError, match="step of a recurrent net"):
        give(REMEDY, patient(Elman(), SERIES))
    model = Elman()
    subject = patient(model, SERIES)
    give(REMEDY, subject, recurrent=True)
    h = torch.zeros(3, 8)
    for _ in range(7):
        h = F.relu(model.x(torch.ones(3, 8)) + model.h(h))
    assert torch.equal(run(subject, torch.ones(3, 7, 8)), model.head(h))  # longer than the one it was read on


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_modules(kind):
    with pytest.raises(CannotTreatError, match="recurrent modules"):
        give(REMEDY, patient(kind(8, 8, batch_first=True), SERIES))


def test_a_recurrent_module_on_request():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.cell = nn.RNN(8, 8, batch_first=True), nn.RNNCell(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(self.rnn(x)[0][:, -1])

    model = Net()
    with pytest.raises(CannotTreatError):
        give(REMEDY, patient(model, SERIES), recurrent=True, to="gelu")
    settings = REMEDY.filled({"recurrent": True})
    other = copy.deepcopy(model)
    changes = REMEDY.apply(patient(model, SERIES), settings, ())
    assert len(changes) == 2
    assert not torch.equal(model(SERIES), other(SERIES))
    paste(REMEDY.edit(settings, tuple(changes)), other)
    assert torch.equal(model(SERIES), other(SERIES))
    assert (model.rnn(SERIES)[0] >= 0).all()


@pytest.mark.parametrize("reentrant", [True, False])
def test_functions_in_a_checkpointed_part(reentrant):
    class Net(Functional):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = checkpoint(lambda x, layer=layer: torch.sigmoid(layer(x)), x, use_reentrant=reentrant)
            return self.head(x)

    with pytest.raises(CannotTreatError, match="computed again in the backward pass"):
        give(REMEDY, patient(Net(), X))


def test_nothing_to_do():
    with pytest.raises(CannotTreatError, match="no saturating activation"):
        give(REMEDY, patient(chain(nn.ReLU()), X))
    with pytest.raises(CannotTreatError, match="no ReLU"):
        give(REMEDY, patient(chain(), X), replace="relu", to="elu")
    with pytest.raises(CannotTreatError, match="first batch is not known"):
        give(REMEDY, patient(chain()))
    with pytest.raises(CannotTreatError, match="may be relu"):
        REMEDY.filled({"to": "softmax"})


def test_what_is_outside_of_the_forward_pass_is_not_touched():
    subject = patient(Functional(), X)
    give(REMEDY, subject)
    run(subject, X)
    assert torch.sigmoid(torch.zeros(1)) == 0.5


def test_a_later_reading_sees_the_new_function():
    subject = patient(Functional(), X)
    give(REMEDY, subject)
    with pytest.raises(CannotTreatError, match="no saturating"):
        give(REMEDY, subject, to="elu")
    give(REMEDY, subject, to="elu", replace="relu")
    assert torch.equal(run(subject, X), by_hand(subject.model, F.elu, X))


@pytest.mark.parametrize("function", [torch.sigmoid, F.softplus, F.hardtanh])
def test_a_compiled_model(function):
    model = Functional(function)
    subject = patient(model, X)
    give(REMEDY, subject)
    Around.put(model, subject.on_forward)
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(model, backend="eager")(X), by_hand(model, F.relu, X), atol=1e-6)


# ---- the edit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", list(TARGETS))
def test_the_edit_of_modules(to):
    model = chain(nn.Softplus())
    other = copy.deepcopy(model)
    settings = REMEDY.filled({"to": to})
    torch.manual_seed(3)
    changes = REMEDY.apply(patient(model, X), settings, ())
    snippet = REMEDY.edit(settings, tuple(changes))
    assert snippet.anchor is Anchor.BEFORE_OPTIMIZER
    torch.manual_seed(3)
    paste(snippet, other)
    assert torch.equal(model(X), other(X))


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(x))
        x = self.fc2(x).sigmoid()
        x = F.softplus(self.fc3(x), beta=2)
        return self.fc4(x)


@pytest.mark.parametrize("to", ["relu", "leaky-relu", "silu"])
def test_the_edit_of_functions(to):
    model = Written()
    subject = patient(model, X)
    settings = REMEDY.filled({"to": to})
    changes = REMEDY.apply(subject, settings, ())
    snippet = REMEDY.edit(settings, tuple(changes))
    assert snippet.anchor is Anchor.IN_PLACE
    assert not snippet.lines
    source = textwrap.dedent(inspect.getsource(Written))
    for old, new in snippet.replace:
        assert source.count(old) == 1
        source = source.replace(old, new)
    space: dict = {"nn": nn, "torch": torch, "Tensor": Tensor}
    exec("\n".join(["from __future__ import annotations", *snippet.imports, source]), space)
    other = space["Written"]()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), run(subject, X))


def test_the_edit_leaves_the_same_function_where_it_stays():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.sigmoid(self.body(x))
            return torch.sigmoid(self.head(h))

    settings = REMEDY.filled({})
    changes = REMEDY.apply(patient(Net(), X), settings, ())
    assert REMEDY.edit(settings, tuple(changes)).replace == (("torch.sigmoid(self.body(x))", "F.relu(self.body(x))"),)


# ---- what it helps, and what it does not -------------------------------------------------------------------------------


def faintness(subject) -> float:
    """Gradient at the first layer over that at the last hidden one."""
    x, y = classes()
    F.cross_entropy(run(subject, x), y).backward()
    layers = [m for m in subject.model.modules() if isinstance(m, nn.Linear)]
    return float(layers[0].weight.grad.norm() / layers[-2].weight.grad.norm())


def test_it_helps_a_deep_sigmoid_network():
    def fresh() -> nn.Sequential:
        torch.manual_seed(0)
        return chain(depth=10, width=WIDTH)

    x, _ = classes()
    assert faintness(patient(fresh())) < 1e-6
    assert learns(patient(fresh(), x)) < 0.2
    treated = patient(fresh(), x)
    give(REMEDY, treated, to="selu")
    assert faintness(treated) > 0.1
    assert learns(treated, lr=0.02) > 0.9


def test_it_gives_dead_units_a_slope():
    def fresh() -> nn.Sequential:
        torch.manual_seed(0)
        model = chain(nn.ReLU(), depth=2, width=WIDTH)
        nn.init.constant_(model[2].bias, -50.0)
        return model

    x, _ = classes()
    assert learns(patient(fresh(), x), lr=0.3, steps=200) < 0.3
    treated = patient(fresh(), x)
    give(REMEDY, treated, to="leaky-relu", replace="relu")
    assert learns(treated, lr=0.3, steps=200) > 0.9


def test_it_does_not_help_where_the_weights_are_too_small():
    torch.manual_seed(0)
    x, _ = classes()
    treated = patient(chain(depth=30, width=WIDTH), x)
    give(REMEDY, treated, to="relu")
    assert faintness(treated) < 1e-6  # 0.4 a layer
    assert learns(treated) < 0.2


# ---- the plan ----------------------------------------------------------------------------------------------------------


def planned(kind: str, *rules: str) -> list[str]:
    return [t.label for t in REMEDY.plan(symptoms(*rules, trace=make(stack(8, kind=kind))))]


def test_plan():
    assert planned("Sigmoid", "vanishing-gradient")[:2] == ["activation to=selu", "activation to=relu"]
    assert planned("sigmoid()", "input-blindness") == planned("Sigmoid", "vanishing-gradient")
    assert planned("ReLU", "dead-units")[0] == "activation to=leaky-relu replace=relu"
    assert planned("Tanh", "dead-units") == []
    assert planned("ReLU", "vanishing-gradient") == []
    assert planned("ReLU", "exploding-gradient") == ["activation to=tanh replace=all"]
    assert planned("Sigmoid", "exploding-gradient") == []  # a ReLU would explode faster
    assert planned("Sigmoid", "learning-rate-too-high") == []
    assert planned("Sigmoid", "precision-underflow") == []
