"""What `layers` reads of a model: order, activations, heads, branches, loops."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradiometer.remedies.base import CannotTreatError, Patient
from gradiometer.remedies.layers import Reading, fan_in, layers, read
from treating import patient

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


class Lambda(nn.Module):
    """Two layers, a function between them."""

    def __init__(self, function, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(width, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


class Block(nn.Module):
    def __init__(self, width: int = 8, norm: bool = False, last: str = "weights") -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.relu(self.up(self.norm(x))))
        if self.last == "activation":
            y = F.relu(y)
        if self.last == "scaled":
            y = 0.5 * F.dropout(y, 0.1, training=self.training)
        return x + y


class Basic(nn.Module):
    """A block of a ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if stride > 1 else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class Elman(nn.Module):
    def __init__(self, squash=torch.tanh) -> None:
        super().__init__()
        self.inwards, self.again, self.out = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.squash = squash

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 5)
        for t in range(x.shape[1]):
            h = self.squash(self.inwards(x[:, t]) + self.again(h))
        return self.out(h)


class Lstm(nn.Module):
    """Written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.inwards, self.again, self.out = nn.Linear(3, 20), nn.Linear(5, 20), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 5)
        for t in range(x.shape[1]):
            i, f, g, o = (self.inwards(x[:, t]) + self.again(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


def reading(model: nn.Module, *inputs: Tensor) -> Reading:
    return read(patient(model, *inputs))


# ---- layers ------------------------------------------------------------------------------------------------------------


def test_a_sequential():
    model = nn.Sequential(
        *(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.LeakyReLU(0.2), nn.Dropout(0.5)),
        *(nn.Linear(5, 6), nn.Sigmoid()),
        nn.Linear(6, 2),
    )
    first, second, head = layers(patient(model, X))
    assert (first.name, second.name, head.name) == ("0", "4", "6")
    assert (first.activation, first.slope, first.follower) == ("leaky_relu", 0.2, "2")
    assert (second.before, second.before_slope, second.activation) == ("leaky_relu", 0.2, "sigmoid")
    assert (head.before, head.activation, head.follower) == ("sigmoid", "linear", "")
    assert [layer.first for layer in (first, second, head)] == [True, False, False]
    assert [layer.head for layer in (first, second, head)] == [False, False, True]
    assert [layer.normed for layer in (first, second, head)] == [True, False, False]
    assert [(layer.width, layer.fan_in) for layer in (first, second, head)] == [(5, 8), (6, 5), (2, 6)]
    assert layers(patient(model, X), ("4",))[0].module is model[4]


@pytest.mark.parametrize(
    ("function", "name", "slope"),
    [
        (F.relu, "relu", 0.0),
        (torch.relu_, "relu", 0.0),
        (lambda x: x.clamp(min=0), "relu", 0.0),
        (lambda x: x.clamp(0.0, 1.0), "linear", 0.0),
        (lambda x: F.leaky_relu(x, 0.3), "leaky_relu", 0.3),
        (torch.sigmoid, "sigmoid", 0.0),
        (lambda x: x.sigmoid(), "sigmoid", 0.0),
        (F.tanh, "tanh", 0.0),
        (F.gelu, "gelu", 0.0),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh", 0.0),
        (F.silu, "silu", 0.0),
        (lambda x: x * torch.sigmoid(x), "silu", 0.0),
        (lambda x: torch.sigmoid(x) * x, "silu", 0.0),
        (F.softplus, "softplus", 0.0),
        (F.logsigmoid, "logsigmoid", 0.0),
        (F.hardtanh, "hardtanh", 0.0),
        (F.elu, "elu", 0.0),
        (F.softsign, "softsign", 0.0),
        (torch.erf, "erf", 0.0),
        (lambda x: F.dropout(F.relu(2 * x.view(6, 2, 4)).flatten(1), 0.1), "relu", 0.0),
        (lambda x: x, "linear", 0.0),
        (lambda x: torch.fft.fft(x).real, "linear", 0.0),
    ],
)
def test_functional_activations(function, name, slope):
    first, second = layers(patient(Lambda(function), X))
    assert (first.activation, first.slope, second.before, second.before_slope) == (name, slope, name, slope)
    assert first.follower == ""


def test_a_gate_is_no_activation():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) * torch.sigmoid(self.b(x)))

    a, b, c = layers(patient(Gated(), X))
    assert (a.activation, b.activation, c.before) == ("linear", "linear", "linear")


def test_prelu_and_rrelu_have_their_mean_slope():
    assert layers(patient(Lambda(nn.PReLU(init=0.4)), X))[0].slope == pytest.approx(0.4)
    assert layers(patient(Lambda(nn.RReLU(0.1, 0.3)), X))[0].slope == pytest.approx(0.2)


def test_order_is_that_of_execution():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.unused = nn.Linear(8, 2), nn.Linear(8, 8)
            self.middle = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in reversed(self.middle):
                x = torch.tanh(layer(x))
            return self.last(x)

    found = layers(patient(Backwards(), X))
    assert [layer.name for layer in found] == ["middle.1", "middle.0", "last", "unused"]
    assert [layer.calls for layer in found] == [1, 1, 1, 0]
    assert [layer.head for layer in found] == [False, False, True, False]


def test_without_a_batch_it_is_that_of_registration():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.Linear(8, 2))
    found = read(patient(model))
    assert not found.executed
    assert [(layer.name, layer.activation, layer.before) for layer in found.layers] == [
        ("0", "leaky_relu", "linear"),
        ("3", "", "leaky_relu"),
        ("4", "", ""),
    ]
    assert found.layers[0].normed
    assert found.layers[-1].head
    assert found.layers[0].first


def test_a_shared_layer_is_one():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(8, 8), nn.Linear(8, 2)
            self.alias = self.one

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.alias(torch.relu(self.one(x)))))

    one, out = layers(patient(Shared(), X))
    assert (one.calls, one.recurrent, one.first, one.before) == (2, True, False, "relu")
    assert out.head


def test_weights_that_are_computed():
    wn, sn = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(wn(nn.Linear(8, 8)), nn.ReLU(), sn(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 1))
    assert [layer.activation for layer in layers(patient(model, X))] == ["relu", "tanh", "linear"]


def test_reading_leaves_no_trace():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    read(patient(model, X))
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not any(m._forward_hooks for m in model.modules())
    assert model.training


def test_a_model_that_fails():
    with pytest.raises(CannotTreatError, match="could not be read on its first batch"):
        read(patient(Lambda(F.relu), torch.zeros(3, 7)))


def test_what_goes_on_around_a_forward_pass_is_seen():
    subject = patient(Lambda(torch.sigmoid), X)

    class Instead(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return torch.relu(*args) if func is torch.sigmoid else func(*args, **(kwargs or {}))

    subject.on_forward.append(Instead)
    assert layers(subject)[0].activation == "relu"


@pytest.mark.parametrize("stride", [1, 2])
def test_inputs_per_unit_of_a_transposed_convolution(stride):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(32, 16, 4, stride, 1, bias=False)
    nn.init.normal_(layer.weight, std=fan_in(layer) ** -0.5)
    y = layer(torch.randn(8, 32, 16, 16))[:, :, 4:-4, 4:-4]
    assert float(y.detach().var()) == pytest.approx(1.0, rel=0.1)


# ---- matrices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "shape", "turned"),
    [
        (lambda x, w, b: x @ w + b, (8, 5), True),
        (lambda x, w, b: torch.matmul(x, w) + b, (8, 5), True),
        (lambda x, w, b: torch.addmm(b, x, w), (8, 5), True),
        (lambda x, w, b: x.mm(w.t()) + b, (5, 8), False),
        (lambda x, w, b: x @ w.T + b, (5, 8), False),
        (lambda x, w, b: F.linear(x, w, b), (5, 8), False),
        (lambda x, w, b: (w @ x.T).T + b, (5, 8), False),
    ],
)
def test_layers_by_hand(product, shape, turned):
    class Hand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b, self.out = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(5)), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(product(x, self.w, self.b)))

    model = Hand()
    found = reading(model, X)
    assert [layer.name for layer in found.layers] == ["out"]
    assert found.layers[0].before == "tanh"
    assert not found.layers[0].first
    (one,) = found.by_hand
    assert (one.layer.name, one.turned, one.layer.first, one.layer.head) == ("w", turned, True, False)
    assert (one.layer.width, one.layer.fan_in, one.layer.activation) == (5, 8, "tanh")
    with torch.no_grad():
        one.layer.module.weight.zero_()
    assert not model.w.any()  # one memory


def test_an_embedding_is_no_matrix_by_hand():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc = nn.Embedding(10, 8), nn.Linear(8, 8)

        def forward(self, words: Tensor) -> Tensor:
            return torch.tanh(self.fc(self.embed(words))) @ self.embed.weight.T

    found = reading(Tied(), torch.randint(0, 10, (4, 3)))
    assert not found.by_hand
    assert [layer.name for layer in found.layers] == ["fc"]


# ---- residual branches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("last", "name"), [("weights", "down"), ("scaled", "down"), ("activation", "")])
def test_identity_shortcuts(last, name):
    model = nn.Sequential(nn.Linear(8, 8), *[Block(last=last) for _ in range(3)], nn.Linear(8, 2))
    found = reading(model, X)
    assert [branch.layers for branch in found.branches] == [(f"{i}.up", f"{i}.down") for i in (1, 2, 3)]
    assert [branch.last for branch in found.branches] == [name and f"{i}.{name}" for i in (1, 2, 3)]
    assert found.depth == 3
    assert [layer.branch for layer in found.layers] == [-1, 0, 0, 1, 1, 2, 2, -1]
    assert sum(layer.branch_last for layer in found.layers) == (3 if name else 0)
    assert [layer.before for layer in found.layers if layer.name.endswith("down")] == ["relu"] * 3
    assert not any(branch.normed for branch in found.branches)


def test_a_resnet_with_a_projection():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Basic(8, 8, 1), Basic(8, 16, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )
    found = reading(model, torch.randn(2, 3, 8, 8))
    assert [branch.layers for branch in found.branches] == [("2.conv1", "2.conv2"), ("3.conv1", "3.conv2")]
    assert [(branch.last, branch.norm, branch.normed) for branch in found.branches] == [
        ("", "2.bn2", True),
        ("", "3.bn2", True),
    ]
    assert {layer.name: layer.branch for layer in found.layers}["3.down.0"] == -1
    assert all(layer.activation == "relu" for layer in found.layers if not layer.head)
    assert [layer.name for layer in found.layers if layer.head] == ["6"]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_transformer_of_torch(norm_first, training):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    found = reading(model, torch.randn(2, 5, 16))
    assert [branch.last for branch in found.branches] == [
        *("layers.0.self_attn.out_proj", "layers.0.linear2", "layers.1.self_attn.out_proj", "layers.1.linear2")
    ]
    assert [branch.normed for branch in found.branches] == [norm_first] * 4
    assert {x.name: x.activation for x in found.layers}["layers.0.linear1"] == "relu"


@pytest.mark.parametrize("model", [Elman(), Lstm()])
def test_a_loop_is_no_shortcut(model):
    found = reading(model, torch.randn(2, 7, 3))
    assert not found.branches
    inwards, again, out = found.layers
    assert [layer.recurrent for layer in (inwards, again, out)] == [False, True, False]
    assert [layer.calls for layer in (inwards, again, out)] == [7, 7, 1]
    assert [layer.first for layer in (inwards, again, out)] == [True, False, False]
    assert out.head
    assert again.activation == ("tanh" if isinstance(model, Elman) else "linear")


def test_sums_that_are_no_shortcut():
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.position = nn.Parameter(torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x) + self.b(x) + self.position))

    found = reading(Sums(), X)
    assert not found.branches
    assert [layer.activation for layer in found.layers] == ["relu", "relu", "linear"]


def test_patterns():
    model = nn.Sequential(nn.Linear(8, 8), Block(), nn.Linear(8, 2))
    assert [layer.name for layer in layers(patient(model, X), ("1.*",))] == ["1.up", "1.down"]
    assert [layer.name for layer in layers(patient(model, X), ("0", "*.down"))] == ["0", "1.down"]
    assert layers(Patient(model)) != []
