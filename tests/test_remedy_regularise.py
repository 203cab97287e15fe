"""The remedy `regularise`: it drops and decays, and cures neither disease."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradiometer.remedies.base import Anchor, CannotTreatError
from gradiometer.remedies.regularise import REMEDY
from gradiometer.rules import RULES
from treating import WIDTH, classes, give, learns, paste, patient, symptoms

X = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.relu(self.a(x)))))


def chain(act: type[nn.Module] = nn.ReLU, depth: int = 2, width: int = 32) -> nn.Sequential:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), act())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def test_dropout_stands_behind_hidden_activations() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*chain(nn.Sigmoid), nn.Sigmoid())
    before = model(X)
    subject = patient(model, X)
    assert give(REMEDY, subject, value=0.4) == ["Dropout of 0.4 behind `1`, `3`."]
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.detach()}))
        for name, module in model.named_modules()
    ]
    model(X)
    for hook in hooks:
        hook.remove()
    for name in ("1", "3"):
        assert float((seen[name] == 0.0).float().mean()) == pytest.approx(0.4, abs=0.05)
    assert not (seen["5"] == 0.0).any(), "an activation of the output is none to drop"
    model.eval()
    torch.testing.assert_close(model(X), before)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(nn.Sequential(model[0], model[1])))):
        other.train()
        assert (other[:2](X) == 0.0).any(), "it goes along with a copy"


def test_functions_are_dropped_before_the_layers_that_take_them_in() -> None:
    model = Functional()
    assert give(REMEDY, patient(model, X)) == ["Dropout of 0.1 before `b`, `head`."]
    assert not torch.equal(model(X), model(X))
    model.eval()
    assert torch.equal(model(X), model(X))


def test_only_in_some_places() -> None:
    assert give(REMEDY, patient(chain(), X), ("3",)) == ["Dropout of 0.1 behind `3`."]
    assert give(REMEDY, patient(Functional(), X), ("h*",)) == ["Dropout of 0.1 before `head`."]


def test_weight_decay_is_set_in_the_optimizer_and_shrinks_weights() -> None:
    subject = patient(chain(), X)
    assert give(REMEDY, subject, kind="weight-decay", value=0.5) == ["The weight decay of SGD is 0.5 instead of 0."]
    before = [p.detach().clone() for p in subject.model.parameters()]
    for p in subject.model.parameters():
        p.grad = torch.zeros_like(p)
    subject.optimizers[0].step()
    for p, b in zip(subject.model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), 0.95 * b)


def test_what_it_refuses() -> None:
    for value in (0.0, 1.0, 2.0):
        with pytest.raises(CannotTreatError, match="leaves all or nothing"):
            give(REMEDY, patient(chain(), X), value=value)
    with pytest.raises(CannotTreatError, match="no hidden activation to drop"):
        give(REMEDY, patient(nn.Linear(32, 3), X))
    with pytest.raises(CannotTreatError, match="no hidden activation to drop"):
        give(REMEDY, patient(chain(), X), ("nowhere",))
    with pytest.raises(CannotTreatError, match="no optimizer yet"):
        give(REMEDY, patient(chain(), X, optimizer=False), kind="weight-decay")
    with pytest.raises(CannotTreatError, match="acts on whole optimizers"):
        give(REMEDY, patient(chain(), X), ("0",), kind="weight-decay")
    model = chain()
    subject = patient(model, X)
    subject.optimizers[:] = [torch.optim.LBFGS(model.parameters())]
    with pytest.raises(CannotTreatError, match="LBFGS has no weight decay"):
        give(REMEDY, subject, kind="weight-decay")


def test_it_is_never_planned() -> None:
    assert all(REMEDY.plan(symptoms(rule.name)) == () for rule in RULES)


def test_it_narrows_the_gap_to_held_out_data() -> None:
    """Few noisy examples: without it the network learns them by heart."""
    x, y = classes(400)
    y = torch.where(torch.rand(400, generator=torch.Generator().manual_seed(3)) < 0.3, (y + 1) % 10, y)
    gaps: dict[bool, float] = {}
    for treated in (False, True):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model = chain(width=WIDTH)
        subject = patient(model, x[:100])
        if treated:
            give(REMEDY, subject, value=0.5)
        for _ in range(300):
            subject.optimizers[0].zero_grad()
            F.cross_entropy(model(x[:100]), y[:100]).backward()
            subject.optimizers[0].step()
        model.eval()
        with torch.no_grad():
            gaps[treated] = float(F.cross_entropy(model(x[100:]), y[100:]) - F.cross_entropy(model(x[:100]), y[:100]))
    assert gaps[True] < 0.6 * gaps[False]


@pytest.mark.parametrize("settings", [{"kind": "dropout", "value": 0.2}, {"kind": "weight-decay", "value": 0.01}])
def test_it_cures_no_vanishing_gradient(settings: dict[str, float | str]) -> None:
    torch.manual_seed(0)
    subject = patient(chain(nn.Sigmoid, 10, WIDTH))
    give(REMEDY, subject, **settings)
    assert learns(subject) < 0.2, "chance"


def test_it_makes_a_chaotic_network_no_less_so() -> None:
    torch.manual_seed(0)
    model = chain(nn.ReLU, 10, WIDTH)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=2.0 * WIDTH**-0.5)
    subject = patient(model)
    give(REMEDY, subject, value=0.2)
    assert not learns(subject) > 0.2, "it explodes as before"


@pytest.mark.parametrize("model", [chain(), Functional()], ids=["modules", "functions"])
def test_the_edit_does_the_same(model: nn.Module) -> None:
    edited, subject = copy.deepcopy(model), patient(copy.deepcopy(model), X)
    changes = give(REMEDY, subject, value=0.3)
    snippet = REMEDY.edit(REMEDY.filled({"value": 0.3}), tuple(changes))
    assert snippet.anchor is Anchor.BEFORE_OPTIMIZER
    paste(snippet, edited)
    torch.manual_seed(4)
    expected = subject.model(X)
    torch.manual_seed(4)
    assert torch.equal(edited(X), expected)


def test_the_edit_of_weight_decay_is_an_argument() -> None:
    settings = REMEDY.filled({"kind": "weight-decay"})
    snippet = REMEDY.edit(settings, ("The weight decay of SGD is 0.01 instead of 0.",))
    assert (snippet.arguments, snippet.lines) == ((("weight_decay", "0.01"),), ())
