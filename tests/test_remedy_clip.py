"""The remedy `clip`: what each kind bounds, what it tames, and that it cures no vanishing gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradiometer
from gradiometer.remedies.base import Anchor, CannotTreatError, Patient
from gradiometer.remedies.bedside import Bed
from gradiometer.remedies.clip import REMEDY, USUAL, ZCLIP_STEPS
from gradiometer.types import Finding, Severity
from traces import STEPS, make
from treating import WIDTH, classes, give, paste, patient, symptoms

KINDS = tuple(USUAL)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def gradients(model: nn.Module, norm: float, seed: int = 1) -> list[Tensor]:
    """Set the gradients to random ones of this norm; copies of them."""
    g = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(p.shape, generator=g) for p in model.parameters()]
    whole = math.sqrt(sum(float(d.square().sum()) for d in drawn))
    for p, d in zip(model.parameters(), drawn, strict=True):
        p.grad = d * (norm / whole)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def act(subject: Patient) -> list[Tensor]:
    """What is left of the gradients before a step."""
    with torch.no_grad():
        for function in subject.on_step:
            function(subject.optimizers[0])
    return [p.grad.clone() for p in subject.model.parameters() if p.grad is not None]


def total(gradients: list[Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in gradients]).norm())


# ---- what each kind bounds ---------------------------------------------------------------------------------------------------


def test_norm_keeps_the_direction_and_leaves_small_ones_alone() -> None:
    subject = patient(net())
    assert give(REMEDY, subject, threshold=2.0) == ["The norm of the gradient is clipped at 2 before every step."]
    before = gradients(subject.model, 8.0)
    for a, b in zip(act(subject), before, strict=True):
        torch.testing.assert_close(a, b / 4.0, rtol=1e-5, atol=1e-7)
    before = gradients(subject.model, 1.9)
    assert all(torch.equal(a, b) for a, b in zip(act(subject), before, strict=True))


def test_value_cuts_every_element() -> None:
    subject = patient(net())
    give(REMEDY, subject, kind="value", threshold=0.1)
    before = gradients(subject.model, 8.0)
    assert all(torch.equal(a, b.clamp(-0.1, 0.1)) for a, b in zip(act(subject), before, strict=True))


def test_agc_bounds_each_unit_by_its_weights_and_leaves_the_head_alone() -> None:
    subject = patient(net(), torch.randn(4, 8))
    with torch.no_grad():
        subject.model[0].weight[3] = 0.0  # pyright: ignore[reportIndexIssue]
    (sentence,) = give(REMEDY, subject, kind="agc", threshold=0.02)
    assert sentence.endswith("at 0.02 of the norm of its weights, except in the output layer `4`.")
    before = gradients(subject.model, 8.0)
    after = act(subject)
    assert all(torch.equal(a, b) for a, b in zip(after[-2:], before[-2:], strict=True))
    weight = next(subject.model.parameters()).detach()
    bound = 0.02 * weight.norm(dim=1).clamp(min=1e-3)
    torch.testing.assert_close(after[0].norm(dim=1), bound)
    assert float(bound[3]) == pytest.approx(2e-5), "a unit of zeros may move"
    torch.testing.assert_close(after[0] / after[0].norm(dim=1, keepdim=True), before[0] / before[0].norm(dim=1, keepdim=True))
    small = gradients(subject.model, 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(act(subject)[2:], small[2:], strict=True))


def test_autoclip_takes_a_percentile_of_all_norms_so_far() -> None:
    subject = patient(net())
    give(REMEDY, subject, kind="autoclip", threshold=25.0)
    norms = [4.0, 2.0, 8.0, 1.0, 3.0]
    for n, norm in enumerate(norms, 1):
        gradients(subject.model, norm)
        assert total(act(subject)) == pytest.approx(min(norm, np.percentile(norms[:n], 25.0)), rel=1e-4)


def test_zclip_only_touches_a_norm_that_stands_out() -> None:
    subject = patient(net())
    give(REMEDY, subject, kind="zclip")
    usual = [1.0 + 0.1 * (-1) ** k for k in range(ZCLIP_STEPS + 10)]
    for norm in usual:
        gradients(subject.model, norm)
        assert total(act(subject)) == pytest.approx(norm, rel=1e-4)
    gradients(subject.model, 50.0)
    spike = total(act(subject))
    assert 1.0 < spike < 1.1, "the mean and a little"
    gradients(subject.model, 1.1)
    assert total(act(subject)) == pytest.approx(1.1, rel=1e-4), "one spike moves its memory little"


@pytest.mark.parametrize("kind", KINDS)
def test_only_in_some_places(kind: str) -> None:
    subject = patient(net())
    (sentence,) = give(REMEDY, subject, ("2",), kind=kind)
    assert " in `2` only" in sentence
    before = gradients(subject.model, 1e3)
    after = act(subject)
    assert all(torch.equal(a, b) for k, (a, b) in enumerate(zip(after, before, strict=True)) if k not in (2, 3))
    if kind in ("norm", "value", "agc"):
        assert float(after[2].norm()) < 0.5 * float(before[2].norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_scale_that_is_still_in_the_gradients_is_seen(kind: str) -> None:
    """A fused optimizer takes the scale of torch.amp.GradScaler out itself."""
    results: list[list[Tensor]] = []
    for scale in (1.0, 1024.0):
        subject = patient(net())
        give(REMEDY, subject, kind=kind, threshold=1.0 if kind != "autoclip" else 10.0)
        for norm in (1.0, 20.0):
            gradients(subject.model, norm * scale)
            if scale > 1.0:
                subject.optimizers[0].grad_scale = torch.tensor(scale)  # pyright: ignore[reportAttributeAccessIssue]
            left = act(subject)
        results.append([g / scale for g in left])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_that_are_no_numbers_stay_so_and_are_not_remembered() -> None:
    for kind in ("autoclip", "zclip"):
        subject = patient(net())
        give(REMEDY, subject, kind=kind)
        for norm in (1.0, math.inf, *[1.0] * ZCLIP_STEPS):
            gradients(subject.model, norm)
            act(subject)
        gradients(subject.model, 1.0)
        assert total(act(subject)) == pytest.approx(1.0, rel=1e-4), kind


# ---- where it helps, and where it does not ---------------------------------------------------------------------------


def trained(
    build: Callable[[], nn.Module], lr: float, treatment: dict[str, float | str] | None, steps: int = 60
) -> list[float]:
    """Losses of a training with and without clipping."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build()
    x, y = classes()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    if treatment is not None:
        gradiometer.treat(model, optimizer, {"treatments": [{"remedy": "clip", "settings": treatment}]}, inputs=x)
    losses: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def too_large() -> nn.Module:
    """Signal and gradient grow with every layer: a step of usual length throws the weights."""
    layers: list[nn.Module] = []
    for _ in range(10):
        linear = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(linear.weight, std=2.0 / math.sqrt(WIDTH))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


@pytest.mark.parametrize("kind", ["norm", "agc", "value"])
def test_it_tames_an_exploding_gradient(kind: str) -> None:
    untreated = trained(too_large, 0.1, None)
    assert math.isnan(untreated[-1])
    thresholds = {"norm": 2.0, "agc": 0.05, "value": 0.05}
    treated = trained(too_large, 0.1, {"kind": kind, "threshold": thresholds[kind]})
    assert max(treated[-10:]) < 0.1


def faint() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(10):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


@pytest.mark.parametrize("kind", KINDS)
def test_it_cures_no_vanishing_gradient(kind: str) -> None:
    untreated, treated = trained(faint, 0.5, None), trained(faint, 0.5, {"kind": kind})
    assert treated[-1] > 0.97 * untreated[-1] > 2.2, "both sit at chance"


# ---- refusals, plans, edits ------------------------------------------------------------------------------------------


def test_what_it_refuses() -> None:
    with pytest.raises(CannotTreatError, match="no optimizer yet"):
        give(REMEDY, patient(net(), optimizer=False))
    with pytest.raises(CannotTreatError, match="-1 is no threshold"):
        give(REMEDY, patient(net()), threshold=-1.0)
    with pytest.raises(CannotTreatError, match="101 is no threshold"):
        give(REMEDY, patient(net()), kind="autoclip", threshold=101.0)
    with pytest.raises(CannotTreatError, match="no module with parameters is called x or 1"):
        give(REMEDY, patient(net()), ("x", "1"))
    model = net()
    with pytest.raises(CannotTreatError, match="LBFGS"):
        give(REMEDY, Patient(model, [torch.optim.LBFGS(model.parameters())]))


def plans(*rules: str, **each_step: object) -> list[dict[str, object]]:
    trace = make(update=-3.0, each_step={"grad_norm": np.linspace(2.0, 4.0, STEPS), **each_step})  # pyright: ignore[reportArgumentType]
    return [dict(t.settings) for t in REMEDY.plan(symptoms(*rules, trace=trace))]


def test_it_is_planned_where_gradients_burst() -> None:
    assert plans("exploding-through-time") == [{"kind": "norm", "threshold": 3.0}, {"kind": "zclip"}]
    assert [p["kind"] for p in plans("exploding-gradient")] == ["agc", "norm"]
    assert [p["kind"] for p in plans("loss-spike", "divergence")] == ["norm", "zclip", "agc"]
    for rules in (["vanishing-gradient"], ["dead-units", "plateau"], ["loss-spike", "clipping-always-on"], []):
        assert plans(*rules) == []


def test_the_threshold_is_measured_before_the_trouble_and_makes_no_step_too_long() -> None:
    norms = np.where(np.arange(STEPS) < 60, 2.0, 1e6)
    late = Finding("divergence", Severity.ERROR, 0.9, (), (60, 100), "", (), ())
    seen = symptoms(trace=make(update=-3.0, each_step={"grad_norm": norms}))
    by_norm = REMEDY.plan(type(seen)((late,), seen.trace, 200))[0]
    assert by_norm.settings["threshold"] == 2.0
    seen = symptoms("divergence", trace=make(update=-1.0, each_step={"grad_norm": norms}))
    assert REMEDY.plan(type(seen)((late,), seen.trace, 200))[0].settings["threshold"] == 0.2, "steps of a tenth of the weights"
    unknown = symptoms("divergence", trace=make(each_step={"grad_norm": np.nan}))
    assert REMEDY.plan(unknown)[0].settings["threshold"] == 0.0, "the usual one"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", [(), ("0", "2")])
def test_the_edit_does_the_same(kind: str, sites: tuple[str, ...]) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, before: Callable[[], None]) -> list[Tensor]:
        for k in range(ZCLIP_STEPS + 5):
            gradients(model, 50.0 if k == ZCLIP_STEPS + 2 else 1.0 + 0.1 * math.sin(k), seed=k)
            before()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    treated, edited = net(), net()
    subject = patient(treated, torch.randn(4, 8))
    settings = {"kind": kind, "threshold": {"norm": 0.5, "value": 0.02}.get(kind, 0.0)}
    changes = give(REMEDY, subject, sites, **settings)
    Bed(subject).take_in(subject.optimizers[0])
    snippet = REMEDY.edit(REMEDY.filled(settings), tuple(changes))
    optimizer = torch.optim.SGD(edited.parameters(), lr=0.1)
    each = snippet.anchor is Anchor.BEFORE_STEP
    if not each:
        assert snippet.anchor is Anchor.AFTER_OPTIMIZER
        paste(snippet, edited, optimizer=optimizer)
    by_hand = steps(edited, optimizer, lambda: paste(snippet, edited) if each else None)
    untouched = steps(plain := net(), torch.optim.SGD(plain.parameters(), lr=0.1), lambda: None)
    for a, b in zip(steps(treated, subject.optimizers[0], lambda: None), by_hand, strict=True):
        torch.testing.assert_close(a, b)
    assert not all(torch.allclose(a, b) for a, b in zip(by_hand, untouched, strict=True))
