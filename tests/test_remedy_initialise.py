"""The remedy `initialise`: what each scheme draws, what it helps, what it leaves, and that the edit does the same."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradiometer.record.frames import Group
from gradiometer.remedies.base import Anchor, CannotTreatError
from gradiometer.remedies.initialise import REMEDY, SCHEMES
from gradiometer.remedies.orders import follow, lines, understood
from gradiometer.remedies.recipes import KINDS, Recipe
from gradiometer.types import Finding, Role, Severity, Treatment
from test_remedy_layers import Basic, Block, Elman, Lstm
from traces import make, output, stack
from treating import WIDTH, classes, give, learns, paste, patient, symptoms

torch.set_num_threads(1)

DEFAULT = 3**-0.5
X = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))


def chain(act: type[nn.Module] = nn.ReLU, depth: int = 4, width: int = WIDTH, sigma: float | None = None) -> nn.Sequential:
    modules: list[nn.Module] = []
    for _ in range(depth):
        modules += [nn.Linear(width, width), act()]
    model = nn.Sequential(*modules, nn.Linear(width, 10))
    for module in model if sigma is not None else ():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=sigma / width**0.5)
            nn.init.zeros_(module.bias)
    return model


def treated(model: nn.Module, scheme: str, *inputs: Tensor, sites: tuple[str, ...] = (), **settings) -> list[str]:
    torch.manual_seed(5)
    return give(REMEDY, patient(model, *inputs), sites, scheme=scheme, **settings)


def sigma(module: nn.Module) -> float:
    """Root mean square of the weights times the square root of the inputs per unit."""
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    return float(module.weight.detach().square().mean().sqrt() * module.weight[0].numel() ** 0.5)


def dense(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def signals(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each dense layer of a sequential gives."""
    found = []
    with torch.no_grad():
        for module in model:
            x = module(x)
            if isinstance(module, nn.Linear):
                found.append(x)
    return found


def decades(model: nn.Sequential) -> float:
    """Decades by which the gradient of the first dense layer's output is below that of the last hidden one's."""
    x, y = classes()
    outputs: list[Tensor] = []
    for module in model:
        x = module(x)
        if isinstance(module, nn.Linear):
            x.retain_grad()
            outputs.append(x)
    F.cross_entropy(x, y).backward()
    return float(torch.log10(outputs[-2].grad.norm() / outputs[0].grad.norm()))


# ---- what is drawn -----------------------------------------------------------------------------------------------------


def test_xavier():
    model = nn.Sequential(nn.Linear(100, 300), nn.Tanh(), nn.Linear(300, 100), nn.Tanh(), nn.Linear(100, 10))
    treated(model, "xavier", torch.randn(8, 100))
    for layer in dense(model)[:2]:
        assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / 400), rel=0.02)
        assert not layer.bias.any()


@pytest.mark.parametrize(("act", "gain"), [(nn.ReLU(), math.sqrt(2)), (nn.LeakyReLU(0.5), math.sqrt(2 / 1.25))])
def test_he_knows_the_slope(act, gain):
    model = nn.Sequential(nn.Linear(256, 256), act, nn.Linear(256, 256), act, nn.Linear(256, 10))
    changes = treated(model, "he", torch.randn(8, 256))
    assert [sigma(layer) for layer in dense(model)[:2]] == pytest.approx([gain] * 2, rel=0.02)
    assert "He initialisation" in changes[0]


def test_he_for_convolutions_and_transposed_ones():
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.ConvTranspose2d(64, 32, 4, 2), nn.ReLU(), nn.Conv2d(32, 1, 1))
    treated(model, "he", torch.randn(2, 16, 8, 8))
    assert sigma(model[0]) == pytest.approx(math.sqrt(2), rel=0.02)
    # every output element of a transposed convolution with stride 2 meets 2 x 2 taps of the 4 x 4
    assert float(model[2].weight.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 4)), rel=0.02)


def test_orthogonal():
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 2)
    )
    treated(model, "orthogonal", X)
    w = [layer.weight.detach() for layer in dense(model)]
    assert torch.allclose(w[0].T @ w[0], 2 * torch.eye(64), atol=1e-5)
    assert torch.allclose(w[1].T @ w[1], 4 * torch.eye(64), atol=1e-5)  # twice as many units: their size is kept
    assert torch.allclose(w[2] @ w[2].T, 2 * torch.eye(32), atol=1e-5)


def test_orthogonal_in_the_middle_of_a_kernel():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3),
        nn.Tanh(),
        nn.Conv2d(8, 8, 2, groups=2),
        nn.Tanh(),
        nn.Conv2d(8, 1, 1),
    )
    treated(model, "orthogonal", torch.randn(2, 3, 9, 9))
    kernel = model[2].weight.detach()
    middle = kernel[:, :, 1, 1]
    assert torch.allclose(middle.T @ middle, middle[0].square().sum() * torch.eye(8), atol=1e-5)
    assert float(kernel.square().sum()) == pytest.approx(float(middle.square().sum()))
    assert model[4].weight.detach().abs().min() > 0.0  # an even kernel has no middle


def test_orthogonal_stands_as_far_above_the_edge_as_depth_allows():
    gains = []
    for depth in (4, 40, 400):
        model = chain(nn.Tanh, depth, width=8)
        treated(model, "orthogonal", X[:, :8])
        gains.append(float(torch.linalg.svdvals(model[2].weight.detach())[0]))
    assert gains[0] > gains[1] > gains[2] > 1.0
    assert gains[0] < 1.4
    assert gains[2] < 1.03


def test_depthwise_kernels_keep_each_channel():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 1, 1))
    treated(model, "orthogonal", torch.randn(2, 4, 9, 9))
    assert torch.allclose(model[2].weight.detach()[:, 0, 1, 1].abs(), torch.full((4,), math.sqrt(2)), atol=1e-6)


@pytest.mark.parametrize(
    ("act", "sigma_w", "sigma_b"),
    [
        (nn.Tanh, 1.30415, 0.2),  # the theory's table of the edge of chaos
        (nn.ELU, 1.22925, 0.2),
        (nn.SELU, 0.93748, 0.2),
        (nn.ReLU, math.sqrt(2.0), 0.0),
        (nn.GELU, 1.39987, 0.5),  # below sigma_b = 0.42 signals run away from the edge
        (nn.SiLU, 1.40657, 0.8),
    ],
)
def test_critical(act, sigma_w, sigma_b):
    model = chain(act, 3, 512)
    treated(model, "critical", torch.randn(8, 512))
    layer = dense(model)[1]
    assert sigma(layer) == pytest.approx(sigma_w, rel=0.01)
    assert float(layer.bias.detach().std()) == pytest.approx(sigma_b, rel=0.1)


@pytest.mark.parametrize(("act", "sigma_w", "sigma_b"), [(nn.GELU, 1.39987, 0.5), (nn.ELU, 1.22343, 0.0)])
def test_orthogonal_where_signals_stay(act, sigma_w, sigma_b):
    model = chain(act, 3, 256)
    treated(model, "orthogonal", torch.randn(8, 256))
    layer = dense(model)[1]
    assert float(torch.linalg.svdvals(layer.weight.detach())[0]) == pytest.approx(sigma_w, rel=1e-4)
    assert float(layer.bias.detach().std()) == pytest.approx(sigma_b, rel=0.1)


def test_critical_centres_a_sigmoid():
    model = chain(nn.Sigmoid, 3, 512)
    treated(model, "critical", torch.randn(8, 512))
    layer = dense(model)[1]
    # tanh(x/2)/2 is a tanh with four times the weights and twice the biases: (1.1934, 0.1) of its table
    assert sigma(layer) == pytest.approx(4 * 1.19340, rel=0.01)
    left = (layer.bias + 0.5 * layer.weight.sum(1)).detach()
    assert float(left.std()) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("size", [0.01, 300.0])
def test_critical_and_orthogonal_make_up_for_the_data(size):
    for scheme in ("critical", "orthogonal"):
        model = chain(nn.Tanh)
        treated(model, scheme, size * X)
        assert 0.1 < float(signals(model, size * X)[0].std()) < 2.0


def test_critical_scales_branches_by_depth():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *[Block(WIDTH) for _ in range(16)], nn.Linear(WIDTH, 10))
    treated(model, "critical", X)
    assert sigma(model[3].up) == pytest.approx(1.0, rel=0.05)  # behind a sum
    assert sigma(model[3].down) == pytest.approx(math.sqrt(2) / 4, rel=0.05)
    normed = nn.Sequential(nn.Linear(WIDTH, WIDTH), *[Block(WIDTH, norm=True) for _ in range(16)], nn.Linear(WIDTH, 10))
    treated(normed, "critical", X)
    assert sigma(normed[3].down) == pytest.approx(math.sqrt(2), rel=0.05)


@pytest.mark.parametrize(
    ("act", "sigma_w", "value"), [(nn.Sigmoid, 4.0, 0.5), (nn.Softplus, 2.0, math.log(2.0)), (nn.Hardsigmoid, 6.0, 0.5)]
)
def test_centred(act, sigma_w, value):
    model = chain(act, 3, 128)
    treated(model, "centred-sigmoid", torch.randn(8, 128))
    for layer in dense(model)[1:-1]:
        assert sigma(layer) == pytest.approx(sigma_w, rel=0.03)
        assert torch.allclose(layer.bias, -value * layer.weight.sum(1), atol=1e-4)


def test_centred_without_biases():
    model = nn.Sequential(
        nn.Linear(8, 8),
        nn.Sigmoid(),
        nn.Conv1d(1, 4, 3, bias=False),
        nn.Sigmoid(),
        nn.Conv1d(4, 4, 3, bias=False),
        nn.Sigmoid(),
        nn.Flatten(0),
        nn.Linear(16, 1),
    )
    treated(model, "centred-sigmoid", torch.randn(1, 8))
    assert torch.allclose(model[4].weight.flatten(1).sum(1), torch.zeros(4), atol=1e-5)


def test_mirrored_is_linear_at_first():
    model = chain(nn.ReLU, 30)
    treated(model, "mirrored", X)
    plus, minus = signals(model, X), signals(model, -X)
    assert torch.allclose(plus[-2], -minus[-2], atol=1e-4)
    assert float(plus[-2].std()) == pytest.approx(float(plus[0].std()), rel=1e-3)
    treated(model, "he", X)
    assert not torch.allclose(signals(model, X)[-2], -signals(model, -X)[-2], atol=1e-2)


def test_mirrored_convolutions_and_odd_widths():
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(8 * 16, 7), nn.LeakyReLU(0.2), nn.Linear(7, 2)),
    )
    x = torch.randn(4, 1, 4, 4)
    changes = treated(model, "mirrored", x)
    part = nn.Sequential(*list(model)[:4])
    with torch.no_grad():
        y, z = part(x), part(-x)
        plus, minus = y[:, :4] - y[:, 4:], z[:, :4] - z[:, 4:]
    assert torch.allclose(plus, -minus, atol=1e-5)
    assert any("He initialisation" in change and "`5`" in change for change in changes)


# ---- what data say -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.Softplus])
def test_lsuv(act):
    model = chain(act, 6)
    data = 20.0 * X + 3.0
    treated(model, "lsuv", data)
    for y in signals(model, data)[:-1]:
        assert float(y.std()) == pytest.approx(1.0, abs=0.02)
        if act in (nn.Sigmoid, nn.Softplus):
            assert float(y.mean(0).abs().max()) < 0.02


def test_lsuv_in_convolutions_and_branches():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(128, 2),
    )
    x = torch.randn(8, 3, 4, 4)
    treated(model, "lsuv", x)
    with torch.no_grad():
        y = model[2](model[1](model[0](x)))
    assert float(y.std()) == pytest.approx(1.0, abs=0.02)
    assert float(y.mean((0, 2, 3)).abs().max()) < 0.02
    blocks = nn.Sequential(nn.Linear(WIDTH, WIDTH), *[Block(WIDTH) for _ in range(9)], nn.Linear(WIDTH, 2))
    treated(blocks, "lsuv", X)
    with torch.no_grad():
        h = blocks[0](X)
        for block in list(blocks)[1:-1]:
            assert float((block(h) - h).std()) == pytest.approx(1 / 3, rel=0.02)
            h = block(h)


def test_lsuv_leaves_what_is_constant():
    model = chain(nn.ReLU, 3)
    give(REMEDY, patient(model, torch.zeros(4, WIDTH)), scheme="lsuv")
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


# ---- residual ----------------------------------------------------------------------------------------------------------


def blocks(count: int = 6, **more) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *[Block(WIDTH, **more) for _ in range(count)], nn.Linear(WIDTH, 10))


def test_skipinit_makes_every_block_the_identity():
    model = blocks()
    before = copy.deepcopy(model)
    changes = treated(model, "skipinit", X)
    with torch.no_grad():
        assert torch.equal(model(X), model[-1](model[0](X)))
    assert torch.equal(model[1].up.weight, before[1].up.weight)
    assert changes == ["`1.down`, `2.down`, `3.down`, `4.down`, `5.down`, `6.down`: weights and biases zero."]
    F.cross_entropy(model(X), torch.zeros(64, dtype=torch.long)).backward()
    assert model[1].down.weight.grad.any()  # it can grow


def test_skipinit_of_a_resnet_sets_its_last_gains():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Basic(8, 8, 1), Basic(8, 16, 2), nn.Flatten(), nn.Linear(256, 2)
    )
    treated(model, "skipinit", torch.randn(4, 3, 8, 8))
    assert not model[2].bn2.weight.any()
    assert model[2].bn1.weight.all()
    assert model[2].conv2.weight.any()


def test_skipinit_does_not_shut_an_activation_for_good():
    with pytest.raises(CannotTreatError, match="no gradient would come back"):
        treated(blocks(last="activation"), "skipinit", X)


def test_depth_scaled():
    model = blocks(16)
    before = copy.deepcopy(model)
    changes = treated(model, "depth-scaled", X)
    assert len(changes) == 1
    assert "times 0.25" in changes[0]
    for block, old in zip(list(model)[1:-1], list(before)[1:-1], strict=True):
        assert torch.equal(block.down.weight, 0.25 * old.down.weight)
        assert torch.equal(block.down.bias, 0.25 * old.down.bias)
        assert torch.equal(block.up.weight, old.up.weight)


def test_fixup():
    model = blocks(16)
    treated(model, "fixup", X)
    assert not model[1].down.weight.any()
    assert not model[-1].weight.any()
    # L ** (-1 / (2 m - 2)) for L = 16 branches of m = 2 layers, and He behind a sum of slope one
    assert sigma(model[1].up) == pytest.approx(math.sqrt(2.0) / 4, rel=0.05)
    assert sigma(model[0]) == pytest.approx(math.sqrt(2.0), rel=0.05)
    with pytest.raises(CannotTreatError, match="without normalisation"):
        treated(blocks(norm=True), "fixup", X)


def test_gpt():
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(50, 64), body, nn.Linear(64, 50))
    head = model[2].weight.detach().clone()
    treated(model, "gpt", torch.randint(0, 50, (2, 9)))
    inner = body.layers[3]
    assert float(model[0].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(inner.self_attn.in_proj_weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(inner.linear1.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    for last in (inner.linear2, inner.self_attn.out_proj):
        assert float(last.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)  # sixteen branches
    assert torch.equal(model[2].weight, head)


@pytest.mark.parametrize("scheme", ["fixup", "skipinit", "depth-scaled"])
def test_no_branches(scheme):
    with pytest.raises(CannotTreatError, match="no residual branch"):
        treated(chain(), scheme, X)
    with pytest.raises(CannotTreatError, match="not known before the first batch"):
        treated(blocks(), scheme)


# ---- recurrent ---------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **more) -> None:
        super().__init__()
        self.rnn, self.out = kind(6, 16, batch_first=True, **more), nn.Linear(16 * (1 + bool(more.get("bidirectional"))), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


def test_lstm_keeps_over_the_length_of_its_sequences():
    model = Reader(nn.LSTM, num_layers=2, bidirectional=True)
    treated(model, "recurrent", torch.randn(4, 40, 6))
    for name, p in model.rnn.named_parameters():
        if name.startswith("weight_hh"):
            for gate in p.detach().split(16):
                assert torch.allclose(gate @ gate.T, torch.eye(16), atol=1e-5)
        elif name.startswith("bias_ih"):
            assert torch.allclose(p[16:32], torch.full((16,), math.log(39)), atol=0.01)
            assert not p[:16].any()
            assert not p[32:].any()
        elif name.startswith("bias_hh"):
            assert not p.any()
    short = Reader(nn.GRU)
    treated(short, "recurrent", torch.randn(4, 3, 6))
    assert torch.equal(short.rnn.bias_ih_l0[16:32], torch.ones(16))


def test_plain_cells_get_quiet_inputs():
    model = Reader(nn.RNN)
    treated(model, "recurrent", torch.randn(4, 50, 6))
    assert torch.allclose(model.rnn.weight_hh_l0 @ model.rnn.weight_hh_l0.T, torch.eye(16), atol=1e-5)
    bound = math.sqrt(6.0 / 22) * 2 / 50
    assert 0.8 * bound < float(model.rnn.weight_ih_l0.detach().abs().max()) <= bound
    rectified = Reader(nn.RNN, nonlinearity="relu")
    treated(rectified, "recurrent", torch.randn(4, 5, 6))
    assert torch.equal(rectified.rnn.weight_hh_l0, torch.eye(16))


@pytest.mark.parametrize("gain", [0.3, 4.0])
def test_recurrent_keeps_a_gradient_through_time(gain):
    def first_over_last() -> float:
        x = torch.randn(4, 60, 6, requires_grad=True)
        model(x).square().sum().backward()
        return float(x.grad[:, 0].norm() / x.grad[:, -1].norm())

    torch.manual_seed(0)
    model = Reader(nn.RNN)
    nn.init.normal_(model.rnn.weight_hh_l0, std=gain / 4)
    assert not 1e-3 < first_over_last() < 1e3
    treated(model, "recurrent", torch.randn(4, 60, 6))
    assert 0.1 < first_over_last() < 10


@pytest.mark.parametrize("squash", [torch.tanh, torch.sigmoid])
def test_a_cell_by_hand(squash):
    model = Elman(squash)
    before = copy.deepcopy(model.inwards.weight)
    changes = treated(model, "recurrent", torch.randn(4, 20, 3))
    s = torch.linalg.svdvals(model.again.weight.detach())
    assert float(s[0]) == pytest.approx(float(s[-1]), rel=1e-4)
    assert torch.equal(before, model.inwards.weight)
    assert len(changes) == 1
    if squash is torch.sigmoid:
        assert 4.0 < float(s[0]) < 6.0
        assert torch.allclose(model.again.bias, -0.5 * model.again.weight.sum(1), atol=1e-5)
    treated(Lstm(), "recurrent", torch.randn(4, 20, 3))


def test_no_recurrence():
    with pytest.raises(CannotTreatError, match="no recurrent layer"):
        treated(chain(), "recurrent", X)


# ---- default, heads, and what is left ----------------------------------------------------------------------------------


def test_default_undoes_a_scale():
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.GRU(256, 8))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(100)
    treated(model, "default", torch.randn(4, 256))
    assert sigma(model[0]) == pytest.approx(DEFAULT, rel=0.02)
    assert float(model[2].weight_hh_l0.detach().abs().max()) <= 8**-0.5


@pytest.mark.parametrize(
    ("scale", "kept"), [(1.0, True), (0.2, True), (0.0, True), (0.02, False), (20.0, False), (math.nan, False)]
)
def test_heads_stay_unless_out_of_order(scale, kept):
    model = chain()
    with torch.no_grad():
        model[-1].weight.mul_(scale)
    before = model[-1].weight.detach().clone()
    changes = treated(model, "he", X)
    assert torch.equal(before, model[-1].weight) == kept
    assert any("`8`" in change and "Xavier" in change for change in changes) != kept
    assert bool(torch.isfinite(model[-1].weight).all())


def test_a_head_by_its_name():
    model = chain(width=256)
    treated(model, "he", torch.randn(4, 256), sites=("8",))
    assert sigma(model[-1]) == pytest.approx(math.sqrt(2.0), rel=0.05)
    assert sigma(model[0]) == pytest.approx(DEFAULT, rel=0.05)


def test_what_is_frozen_or_not_named_stays():
    model = chain()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    treated(model, "he", X, sites=("0", "2", "6"))
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[2].weight, before[2].weight)
    assert torch.equal(model[4].weight, before[4].weight)


def test_parameters_and_optimizer_stay_the_same_objects():
    model = chain()
    subject = patient(model, X)
    held = [id(p) for p in subject.optimizers[0].param_groups[0]["params"]]
    for scheme in ("he", "critical", "orthogonal", "lsuv", "default"):
        give(REMEDY, subject, scheme=scheme)
    assert [id(p) for p in model.parameters()] == held
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_tied_weights_are_drawn_once():
    model = chain(depth=3)
    model[2].weight = model[0].weight
    changes = treated(model, "he", X)
    assert changes == ["`0`, `4`: He initialisation (biases zero)."]
    assert model[2].weight is model[0].weight


def test_weights_behind_a_parametrization():
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(256, 256)), nn.ReLU(), norm(nn.Linear(256, 256)), nn.ReLU(), nn.Linear(256, 2))
    treated(model, "he", torch.randn(4, 256))
    assert float(model[2].weight.detach().std()) * 16 == pytest.approx(math.sqrt(2.0), rel=0.02)


@pytest.mark.parametrize("scheme", ["he", "orthogonal", "critical", "lsuv", "mirrored"])
def test_half_precision(scheme):
    model = chain(nn.ReLU, 3).to(torch.bfloat16)
    treated(model, scheme, X.to(torch.bfloat16))
    assert model[0].weight.dtype is torch.bfloat16
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert 0.5 < float(signals(model, X.to(torch.bfloat16))[-2].float().std()) < 3.0


def test_dropout_does_not_change_what_is_drawn():
    one, other = chain(), nn.Sequential(*chain(), nn.Dropout(0.5))
    treated(one, "he", X)
    treated(other, "he", X)
    assert torch.equal(one[4].weight, other[4].weight)


def test_matrices_by_hand():
    class Hand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(64, 128)), nn.Parameter(torch.randn(128, 128))
            self.c, self.gate = nn.Parameter(torch.randn(10, 128)), nn.Parameter(torch.zeros(128, 10))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(torch.relu(x @ self.a) @ self.b)
            return x @ self.c.T + x @ self.gate

    model, same = Hand(), Hand()
    changes = treated(model, "he", X)
    assert float(model.a.detach().std()) == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert float(model.b.detach().std()) == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert float(model.c.detach().std()) == pytest.approx(math.sqrt(2 / 138), rel=0.1)  # was out of order
    assert not model.gate.any()
    torch.manual_seed(5)
    paste(REMEDY.edit(REMEDY.filled({"scheme": "he"}), tuple(changes)), same)
    assert float(same.b.detach().std()) == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert float(same.c.detach().std()) == pytest.approx(math.sqrt(2 / 138), rel=0.1)
    assert not same.gate.any()


def test_nothing_to_treat():
    with pytest.raises(CannotTreatError, match="only an output layer"):
        treated(nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 10)), "he", X)
    with pytest.raises(CannotTreatError, match="no dense layer or convolution"):
        treated(nn.Sequential(nn.LayerNorm(WIDTH)), "he", X)
    with pytest.raises(CannotTreatError, match=r"no dense layer or convolution that head\.\* names"):
        treated(chain(), "he", X, sites=("head.*",))
    with pytest.raises(CannotTreatError, match="looks at the first batch"):
        treated(chain(), "lsuv")
    with pytest.raises(CannotTreatError, match="positive number"):
        treated(chain(), "he", X, gain=-1.0)


@pytest.mark.parametrize("scheme", ["xavier", "he", "orthogonal", "critical", "default"])
def test_without_a_batch(scheme):
    model = chain()
    before = copy.deepcopy(model)
    treated(model, scheme)
    assert not torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[-1].weight, before[-1].weight) != (scheme == "default")


# ---- what it helps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["lsuv", "critical", "orthogonal", "centred-sigmoid"])
def test_centring_rescues_deep_sigmoids(scheme):
    torch.manual_seed(0)
    model = chain(nn.Sigmoid, 12)
    assert decades(model) > 6.0
    assert learns(patient(copy.deepcopy(model))) < 0.3
    treated(model, scheme, classes()[0])
    assert abs(decades(model)) < 2.0
    assert learns(patient(model)) > 0.8


@pytest.mark.parametrize("scheme", ["xavier", "he", "default"])
def test_size_alone_does_not(scheme):
    model = chain(nn.Sigmoid, 12)
    treated(model, scheme, classes()[0])
    assert decades(model) > 4.0
    assert learns(patient(model)) < 0.3


@pytest.mark.parametrize("start", [None, 0.5, 5.0])
@pytest.mark.parametrize("scheme", ["he", "lsuv", "mirrored", "critical"])
def test_rectifiers_get_their_gradient_back(start, scheme):
    torch.manual_seed(0)
    model = chain(nn.ReLU, 12, sigma=start)
    assert abs(decades(model)) > 3.0
    model.zero_grad()
    treated(model, scheme, classes()[0])
    assert abs(decades(model)) < 1.0
    assert learns(patient(model), lr=0.003) > 0.8


def test_xavier_is_not_for_rectifiers():
    model = chain(nn.ReLU, 24)
    treated(model, "xavier", classes()[0])
    assert decades(model) > 2.5  # a factor of 0.7 for every layer


@pytest.mark.parametrize("scheme", ["critical", "orthogonal", "xavier", "lsuv"])
def test_large_tanh(scheme):
    torch.manual_seed(0)
    model = chain(nn.Tanh, 10, sigma=6.0)
    saturated = float((signals(model, classes()[0])[4].tanh().abs() > 0.97).float().mean())
    assert saturated > 0.5
    treated(model, scheme, classes()[0])
    assert float((signals(model, classes()[0])[4].tanh().abs() > 0.97).float().mean()) < 0.1
    assert abs(decades(model)) < 1.0
    assert learns(patient(model)) > 0.8


def test_mirrored_trains_where_gradients_shatter():
    accuracy = {}
    for scheme in ("he", "mirrored"):
        model = chain(nn.ReLU, 100)
        treated(model, scheme, classes()[0])
        accuracy[scheme] = learns(patient(model), lr=0.003, steps=30)
    assert accuracy["mirrored"] > 0.9
    assert accuracy["he"] < 0.5


def test_orthogonal_tanh_of_a_thousand_layers_keeps_its_gradient():
    model = chain(nn.Tanh, 1000, width=32)
    treated(model, "orthogonal", X[:, :32])
    x = X[:, :32].clone().requires_grad_(True)
    y = model[:-1](x)
    y.sum().backward()
    assert -2.0 < math.log10(float(x.grad.norm() / y.numel() ** 0.5)) < 1.0


@pytest.mark.parametrize("scheme", ["skipinit", "depth-scaled", "critical", "fixup"])
def test_branches_no_longer_explode(scheme):
    torch.manual_seed(0)
    model = blocks(40)
    for block in list(model)[1:-1]:
        nn.init.kaiming_normal_(block.up.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(block.down.weight, nonlinearity="relu")
    x = classes()[0]
    with torch.no_grad():
        assert float(model[:-1](x).std()) > 1e4
    treated(model, scheme, x)
    with torch.no_grad():
        assert 0.1 < float(model[:-1](x).std()) < 10
    assert learns(patient(model), lr=0.01, steps=30) > 0.8


def test_copies_are_told_apart():
    torch.manual_seed(0)
    model = chain(nn.Tanh, 2)
    for layer in dense(model):
        nn.init.constant_(layer.weight, 0.05)
        nn.init.zeros_(layer.bias)
    assert learns(patient(copy.deepcopy(model))) < 0.5
    treated(model, "xavier", classes()[0])
    assert learns(patient(model)) > 0.8


def test_size_does_not_matter_between_normalisations():
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    with torch.no_grad():
        before = model(X)
        for layer in dense(model)[:-1]:
            layer.weight.mul_(30.0)
        assert torch.allclose(before, model(X), atol=1e-3)


# ---- the same as code --------------------------------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 8, padding_idx=0), nn.Linear(8, 6)
        self.rnn, self.out = nn.LSTM(6, 7, batch_first=True, num_layers=2), nn.Linear(7, 2)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.rnn(F.relu(self.fc(self.embed(words))))[0][:, -1])


def _computed() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Linear(8, 8)), nn.ReLU(), norm(nn.Linear(8, 8)), nn.Sigmoid(), norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 1)
    )


def _mixed() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Sigmoid()),
        *(nn.Conv2d(8, 4, 1), nn.ReLU6(), nn.ConvTranspose2d(4, 4, 2, 2), nn.Softplus(), nn.Conv2d(4, 2, 2, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32, 2)),
    )


def _resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), Basic(8, 8, 1), Basic(8, 16, 2), nn.Flatten(), nn.Linear(64, 10)
    )


MODELS = {
    "sigmoid": (lambda: chain(nn.Sigmoid, 3, 8), (32, 8)),
    "many": (lambda: chain(nn.LeakyReLU, 20, 8), (32, 8)),
    "tanh out of scale": (lambda: chain(nn.Tanh, 3, 8, sigma=40.0), (32, 8)),
    "gelu": (lambda: chain(nn.GELU, 3, 8), (32, 8)),
    "mixed": (_mixed, (6, 4, 4, 4)),
    "blocks": (lambda: nn.Sequential(nn.Linear(8, 8), *[Block(8) for _ in range(3)], nn.Linear(8, 2)), (32, 8)),
    "resnet": (_resnet, (5, 4, 4, 4)),
    "transformer": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), (3, 4, 8)),
    "computed": (_computed, (32, 8)),
    "by hand": (Elman, (4, 6, 3)),
}


FITS = {
    "fixup": ("blocks", "transformer"),
    "skipinit": ("blocks", "resnet", "transformer"),
    "depth-scaled": ("blocks", "resnet", "transformer"),
    "recurrent": ("by hand", "words"),
    "lsuv": tuple(name for name in (*MODELS, "words") if name != "computed"),
}
"""Schemes that fit some models only."""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("which", [*MODELS, "words"])
def test_edit(which, scheme):
    if which == "words":
        make_model, batch = Words, torch.randint(0, 9, (4, 6))
    else:
        make_model, shape = MODELS[which]
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    model = make_model()
    same = copy.deepcopy(model)
    settings = REMEDY.filled({"scheme": scheme})
    torch.manual_seed(3)
    if which in FITS.get(scheme, which):
        changes = REMEDY.apply(patient(model, batch), settings, ())
    else:
        with pytest.raises(CannotTreatError):
            REMEDY.apply(patient(model, batch), settings, ())
        return
    snippet = REMEDY.edit(settings, tuple(changes))
    assert snippet.anchor is Anchor.BEFORE_OPTIMIZER
    assert "gradiometer" not in "\n".join((*snippet.lines, *snippet.imports))
    torch.manual_seed(3)
    paste(snippet, same, loader=[(batch, None)])
    for (name, a), b in zip(model.named_parameters(), same.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), name


def test_a_long_list_is_said_as_all_but_some():
    model = chain(nn.ReLU, 20, 8)
    (change,) = treated(model, "he", X[:, :8])
    assert change == "All 20 layers that are Linear, but not `40`: He initialisation (biases zero)."
    code = "\n".join(lines((change,)))
    assert 'isinstance(layer, nn.Linear) and name not in ("40",)' in code


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_sentences_are_understood(kind):
    numbers = tuple(0.125 * (i + 1) for i in range(sum(f"{{{i}}}" in kind.words for i in range(4))))
    what = Recipe(kind.name, numbers)
    for how in ("", ", through the parametrization", ", but of x @ weight only the weights"):
        assert understood(f"`a.0`, `b`: {what.words}{how}.") == ("`a.0`, `b`", what)
    assert understood("`a` has been replaced.") is None


def test_numbers_are_those_that_are_said():
    model = chain(nn.Tanh, 2, 4)
    (change,) = follow(model, [("0", Recipe("deviation", (0.0,)))])
    assert understood(change) == ("`0`", Recipe("deviation", (0.0,)))
    assert not model[0].weight.any()


# ---- what is tried -----------------------------------------------------------------------------------------------------


def planned(*rules: str, trace=8, because: str = "") -> list[str]:
    seen = symptoms(*rules, trace=trace)
    if because:
        found = tuple(Finding(f.rule, Severity.ERROR, 0.9, (), (0, 1), "", (), (), because=because) for f in seen.findings)
        seen = type(seen)(found, seen.trace, seen.steps)
    plan = REMEDY.plan(seen)
    assert all(isinstance(t, Treatment) and t.remedy == "initialise" for t in plan)
    assert len(plan) <= 3
    for treatment in plan:
        REMEDY.filled(treatment.settings)
    return [str(t.settings["scheme"]) for t in plan]


def looks(kind: str, layers: int = 8, **more):
    return make(stack(layers, kind=kind), **more)


@pytest.mark.parametrize(
    ("rule", "kind", "layers", "first"),
    [
        ("vanishing-gradient", "Sigmoid", 12, "lsuv"),
        ("input-blindness", "sigmoid()", 12, "lsuv"),
        ("input-blindness", "Softplus", 12, "lsuv"),
        ("vanishing-gradient", "ReLU", 12, "he"),
        ("poor-initialization", "LeakyReLU", 12, "he"),
        ("vanishing-gradient", "relu()", 60, "mirrored"),
        ("shattered-gradient", "relu()", 60, "mirrored"),
        ("exploding-gradient", "Tanh", 12, "critical"),
        ("vanishing-gradient", "tanh()", 100, "orthogonal"),
        ("signal-collapse", "GELU", 12, "lsuv"),
        ("signal-collapse", "GELU", 40, "orthogonal"),
        ("vanishing-gradient", "ELU", 40, "orthogonal"),
        ("symmetric-initialization", "ReLU", 3, "he"),
        ("symmetric-initialization", "Tanh", 3, "xavier"),
        ("saturated-units", "Tanh", 3, "lsuv"),
        ("dead-units", "ReLU", 3, "he"),
        ("attention-collapse", "GELU", 6, "default"),
    ],
)
def test_plan(rule, kind, layers, first):
    assert planned(rule, trace=looks(kind, layers))[0] == first


def test_plan_names_no_scheme_that_theory_speaks_against():
    schemes = planned("vanishing-gradient", trace=looks("Sigmoid", 12))
    assert not {"he", "xavier", "default", "mirrored"}.intersection(schemes)
    assert "centred-sigmoid" in schemes
    assert not {"xavier", "centred-sigmoid", "gpt"}.intersection(planned("vanishing-gradient", trace=looks("ReLU", 12)))


@pytest.mark.parametrize("rule", ["learning-rate-too-high", "clipping-always-on", "disconnected-parameters", "loss-spike"])
def test_plan_is_empty_where_weights_are_not_the_cause(rule):
    assert planned(rule) == []
    assert planned(rule, "dead-units") != []  # a cause of its own
    assert planned("dead-units", because=rule) == []


def test_plan_for_what_is_run_over_time():
    sites = [output("rnn", Role.RECURRENT), output("out")]
    assert planned("vanishing-through-time", trace=make(sites))[0] == "recurrent"
    assert planned("vanishing-gradient", trace=make(sites))[0] == "recurrent"
    assert planned("vanishing-through-time", trace=looks("Tanh")) == []


def test_plan_for_blocks_and_normalised_networks():
    blocks = [output(f"b{i}", Role.CONTAINER, kind="Block") for i in range(4)]
    plain = make([output("fc"), *blocks, output("out")])
    assert planned("signal-explosion", trace=plain)[0] == "critical"
    assert "skipinit" in planned("exploding-gradient", trace=plain)
    normed = [
        s
        for i in range(4)
        for s in (output(f"fc{i}"), output(f"n{i}", Role.NORM), output(f"a{i}", Role.ACTIVATION, kind="ReLU"))
    ]
    assert planned("exploding-gradient", trace=make([*normed, output("out")])) == []


def test_plan_for_weights_that_are_not_finite():
    trace = looks("ReLU")
    assert planned("nonfinite", trace=trace) == []
    bad = trace.nonfinite[Group.PARAMETER].copy()
    bad[0, -1] = True
    broken = looks("ReLU", nonfinite={Group.PARAMETER: bad})
    assert planned("nonfinite", trace=broken)[0] == "he"
