"""The remedy `optimizer`: other steps from the same model, and schedules, scalers and checkpoints that go on working."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR

import gradiometer
from gradiometer.errors import GradiometerError
from gradiometer.remedies import optimizer as optimizing
from gradiometer.remedies.base import Anchor, CannotTreatError, Patient
from gradiometer.remedies.optimizer import REMEDY, USUAL
from traces import make
from treating import WIDTH, classes, give, paste, patient, symptoms

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def backward() -> Iterator[None]:
    """A loss scale is one for the whole process."""
    torch.set_num_threads(1)
    original = torch.autograd.backward
    yield
    torch.autograd.backward = original
    optimizing._loss_scale.cache_clear()  # pyright: ignore[reportPrivateUsage]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def treat(model: nn.Module, optimizer: torch.optim.Optimizer, change: str, value: float = -1.0) -> list[str]:
    order = {"treatments": [{"remedy": "optimizer", "settings": {"change": change, "value": value}}]}
    return gradiometer.treat(model, optimizer, order)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 6, after: Callable[[int], object] = lambda _: None
) -> list[Tensor]:
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        after(step)
    return [p.detach().clone() for p in model.parameters()]


def alike(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


# ---- the length of the steps -------------------------------------------------------------------------------------------


def by_hand(optimizer: torch.optim.Optimizer) -> Callable[[int], object]:
    def set_rate(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 2)

    return set_rate


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, float], Callable[[int], object]]] = {
    "none": lambda _o, _f: lambda _: None,
    "steps": lambda o, _: _each(StepLR(o, 2)),
    "lambda": lambda o, _: _each(LambdaLR(o, lambda k: 1.0 / (k + 1))),
    "cosine": lambda o, _: _each(CosineAnnealingLR(o, 6)),
    "one cycle": lambda o, f: _each(OneCycleLR(o, max_lr=0.1 * f, total_steps=8, cycle_momentum=False)),
}


def _each(schedule: Any) -> Callable[[int], object]:
    return lambda _: schedule.step()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_factor_on_the_learning_rate_whatever_the_schedule(schedule: str) -> None:
    treated, plain = net(), net()
    optimizer, other = sgd(treated), sgd(plain, lr=0.03)
    follow, other_follow = SCHEDULES[schedule](optimizer, 1.0), SCHEDULES[schedule](other, 0.3)
    (sentence,) = treat(treated, optimizer, "lr", 0.3)
    if schedule != "one cycle":
        assert sentence == "The learning rate is 0.03 instead of 0.1."
    rates: list[float] = []
    alike(
        train(treated, optimizer, after=lambda k: [rates.append(optimizer.param_groups[0]["lr"]), follow(k)]),
        train(plain, other, after=other_follow),
    )
    assert rates[0] == pytest.approx(0.1 if schedule != "one cycle" else 0.1 / 25), "the script sees its own"


def test_a_rate_that_the_script_sets_itself_is_multiplied_too() -> None:
    treated, plain = net(), net()
    optimizer, other = sgd(treated), sgd(plain)
    treat(treated, optimizer, "lr", 0.5)
    for group in other.param_groups:
        group["lr"] = 0.05

    def half(step: int) -> None:
        by_hand(other)(step)
        for group in other.param_groups:
            group["lr"] *= 0.5

    alike(train(treated, optimizer, after=by_hand(optimizer)), train(plain, other, after=half))


def test_the_record_has_the_rate_that_was_taken(tmp_path: Path) -> None:
    model = net()
    with gradiometer.watch(out=tmp_path / "run", every=1):
        optimizer = sgd(model)
        treat(model, optimizer, "lr", 0.5)
        treat(model, optimizer, "warmup", 4.0)
        train(model, optimizer)
    rates = gradiometer.load(tmp_path / "run").trace.ledger["learning_rate"]
    np.testing.assert_allclose(rates, 0.05 * np.array([0.25, 0.5, 0.75, 1.0, 1.0, 1.0]))


def test_a_step_that_fails_does_not_leave_its_rate_behind() -> None:
    model = net()
    optimizer = sgd(model)
    treat(model, optimizer, "lr", 0.5)

    def closure() -> Tensor:
        raise ArithmeticError

    for _ in range(3):
        with pytest.raises(ArithmeticError):
            optimizer.step(closure)
    train(model, optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_lower_rate_helps_where_steps_overshoot_and_no_rate_where_nothing_arrives() -> None:
    def ends(act: type[nn.Module], depth: int, change: str, value: float, lr: float, rounds: int = 100) -> float:
        torch.manual_seed(0)
        layers = [layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), act())]
        model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
        x, y = classes()
        optimizer = sgd(model, lr=lr)
        treat(model, optimizer, change, value)
        losses: list[float] = []
        for _ in range(rounds):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.median(losses[-10:]))

    assert not ends(nn.ReLU, 3, "lr", 1.0, 10.0) < 2.0
    assert ends(nn.ReLU, 3, "lr", 0.01, 10.0) < 0.3
    assert ends(nn.ReLU, 3, "adam", -1.0, 10.0) < 0.3
    for change, value in (("lr", 10.0), ("lr", 0.1), ("adam", -1.0)):
        assert ends(nn.Sigmoid, 10, change, value, 0.1) > 2.2, "a deep sigmoid network stays at chance"


# ---- Adam in the place of another ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, {"fused": True}])
@pytest.mark.parametrize("schedule", ["none", "lambda", "steps"])
def test_sgd_becomes_adam(kind: str, options: dict[str, Any], schedule: str) -> None:
    treated, plain = net(), net()
    optimizer = sgd(treated, **options)
    follow = SCHEDULES[schedule](optimizer, 1.0)
    decay = options.get("weight_decay", 0.0)
    word = "Adam" if kind == "adam" else "AdamW"
    assert treat(treated, optimizer, kind, 0.01) == [
        f"{word} with learning rate 0.01 and weight decay {decay:g} instead of SGD."
    ]
    other = getattr(torch.optim, word)(plain.parameters(), lr=0.01, weight_decay=decay)
    alike(train(treated, optimizer, after=follow), train(plain, other, after=SCHEDULES[schedule](other, 1.0)))
    assert type(optimizer).__name__ == word
    assert "momentum" not in optimizer.param_groups[0]


def test_the_object_goes_on_working() -> None:
    """Checkpoints, new groups, a schedule that is made later, a scaler."""
    model = net()
    optimizer = sgd(model, momentum=0.9)
    train(model, optimizer, 2)  # has a state of its own kind
    treat(model, optimizer, "adam")
    late = StepLR(optimizer, 1)
    train(model, optimizer, 2, after=lambda _: late.step())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001), "the script's own rate, after two decays"
    state = optimizer.state_dict()
    assert set(next(iter(state["state"].values()))) == {"step", "exp_avg", "exp_avg_sq"}
    optimizer.load_state_dict(state)
    extra = nn.Parameter(torch.zeros(3))
    optimizer.add_param_group({"params": [extra]})
    extra.grad = torch.ones(3)
    optimizer.step()
    assert float(extra.detach().abs().max()) > 0.0
    scaler = torch.amp.GradScaler("cpu")
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(X), Y)).backward()
    scaler.step(optimizer)
    scaler.update()


def test_what_cannot_become_adam() -> None:
    class Own(torch.optim.SGD):
        pass

    model = net()
    for optimizer, why in (
        (torch.optim.AdamW(model.parameters()), "AdamW divides by the size of its gradients already"),
        (torch.optim.LBFGS(model.parameters()), "LBFGS cannot be turned into Adam"),
        (Own(model.parameters(), lr=0.1), "Own cannot be turned into Adam"),
    ):
        with pytest.raises(GradiometerError, match=why):
            treat(model, optimizer, "adam")
    optimizer = sgd(model)
    optimizer.step = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(GradiometerError, match="has replaced the step"):
        treat(model, optimizer, "adam")


# ---- entries of the groups -------------------------------------------------------------------------------------------------


def test_values_are_set_in_all_groups() -> None:
    model = net()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "weight_decay": 0.5}]
    adam = torch.optim.AdamW(groups, betas=(0.8, 0.999))
    (said,) = treat(model, adam, "beta2")
    assert said == "The beta2 of AdamW is 0.95 instead of 0.999 (betas 0.8, 0.95)."
    (said,) = treat(model, adam, "weight-decay")
    assert said == "The weight decay of AdamW is 0 instead of 0.01 and 0.5."
    treat(model, adam, "epsilon"), treat(model, adam, "momentum")
    for group in adam.param_groups:
        assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.9, 0.95), 0.0, USUAL["epsilon"])
    heavy = sgd(model, momentum=0.99)
    treat(model, heavy, "momentum")
    assert heavy.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("change", "value", "why"),
    [
        ("beta2", -1.0, "SGD has no beta2 other than 0.95"),
        ("epsilon", -1.0, "SGD has no epsilon"),
        ("weight-decay", -1.0, "SGD has no weight decay other than 0"),
        ("momentum", 1.0, "momentum lies between 0 and 1, not at 1"),
        ("lr", 0.0, "a learning rate of zero trains nothing"),
        ("adam", 0.0, "a learning rate of zero trains nothing"),
        ("warmup", 1.0, "a warm-up takes two steps at least, not 1"),
        ("loss-scale", 0.5, "0.5 is no loss scale"),
        ("float32-copy", -1.0, "no weights are kept in a format shorter than float32"),
    ],
)
def test_what_it_refuses(change: str, value: float, why: str) -> None:
    with pytest.raises(CannotTreatError, match=why):
        give(REMEDY, patient(net()), change=change, value=value)


def test_it_needs_an_optimizer_and_no_places() -> None:
    with pytest.raises(CannotTreatError, match="no optimizer yet"):
        give(REMEDY, patient(net(), optimizer=False))
    with pytest.raises(CannotTreatError, match="acts on whole optimizers"):
        give(REMEDY, patient(net()), ("0",))


# ---- precision -------------------------------------------------------------------------------------------------------


def tiny(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    """Half precision, and a loss whose gradients float16 cannot hold."""
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            out = model(X)
        (1e-6 * F.cross_entropy(out.float(), Y)).backward()
        optimizer.step()


def test_a_loss_scale_saves_what_float16_rounds_to_zero() -> None:
    exact, lost, saved = net(), net(), net()
    (1e-6 * F.cross_entropy(exact(X), Y)).backward()
    tiny(lost, sgd(lost))
    optimizer = sgd(saved)
    treat(saved, optimizer, "loss-scale")
    tiny(saved, optimizer)
    for a, b, c in zip(exact.parameters(), lost.parameters(), saved.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert c.grad is not None
        assert float((b.grad - a.grad).norm() / a.grad.norm()) > 0.5
        assert float((c.grad - a.grad).norm() / a.grad.norm()) < 0.02


def test_a_loss_scale_is_nobody_elses_business() -> None:
    """Accumulated gradients, other models and torch.autograd.grad see gradients of their true size."""
    model, other, plain = net(), net(1), net()
    treat(model, optimizer := sgd(model), "loss-scale", 1024.0)
    treat(other, sgd(other), "loss-scale", 1024.0)
    for subject in (model, plain):
        for _ in range(2):
            (F.cross_entropy(subject(X), Y) + other(X).square().sum()).backward()
    alike([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])  # pyright: ignore[reportArgumentType]
    loss = F.cross_entropy(model(X), Y)
    alike(list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)),
          list(torch.autograd.grad(F.cross_entropy(plain(X), Y), list(plain.parameters()))))  # fmt: skip
    loss.backward(torch.tensor(2.0))
    optimizer.step()


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    model = net()
    optimizer = sgd(model, weight_decay=0.1)
    treat(model, optimizer, "loss-scale", 2.0**40)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            out = model(X)
        F.cross_entropy(out.float(), Y).backward()
        optimizer.step()
    alike([p.detach() for p in model.parameters()], before)
    assert optimizing._loss_scale().scale == 2.0**37  # pyright: ignore[reportPrivateUsage]


def test_a_loss_scale_is_refused_where_it_would_be_the_second_or_of_no_use() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = net().to(dtype)
        with pytest.raises(GradiometerError, match=f"kept in {str(dtype).removeprefix('torch.')}"):
            treat(model, sgd(model), "loss-scale")
    scaler = torch.amp.GradScaler("cpu")
    model = net()
    with pytest.raises(GradiometerError, match="scales its loss itself"):
        treat(model, sgd(model), "loss-scale")
    del scaler


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_float32_copy_keeps_what_bfloat16_rounds_away(kind: str) -> None:
    def make_one(model: nn.Module) -> torch.optim.Optimizer:
        return sgd(model, lr=1e-4, momentum=0.9) if kind == "sgd" else torch.optim.Adam(model.parameters(), lr=1e-4)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
        for _ in range(40):
            model.zero_grad()
            F.cross_entropy(model(X.to(dtype)).float(), Y).backward()
            optimizer.step()

    start = [p.detach().clone() for p in net().bfloat16().parameters()]
    exact = net().bfloat16().float()
    steps(exact, make_one(exact), torch.float32)
    moved: dict[bool, float] = {}
    for treated in (False, True):
        model = net().bfloat16()
        optimizer = make_one(model)
        if treated:
            treat(model, optimizer, "float32-copy")
        steps(model, optimizer, torch.bfloat16)
        way = [(p.detach() - s).float() for p, s in zip(model.parameters(), start, strict=True)]
        goal = [p.detach() - s.float() for p, s in zip(exact.parameters(), start, strict=True)]
        along = sum(float((a * b).sum()) for a, b in zip(way, goal, strict=True))
        moved[treated] = along / sum(float(b.square().sum()) for b in goal)
        if treated:
            assert optimizer.param_groups[0]["params"][0] is next(model.parameters())
            state = optimizer.state_dict()
            assert {v.dtype for v in state["state"][0].values() if isinstance(v, Tensor)} == {torch.float32}
            optimizer.load_state_dict(state)
    assert moved[False] < 0.7
    assert moved[True] == pytest.approx(1.0, abs=0.1)


def test_a_float32_copy_follows_when_the_script_sets_the_weights() -> None:
    model = net().bfloat16()
    optimizer = sgd(model)
    treat(model, optimizer, "float32-copy")
    for value in (0.25, 2.0):
        with torch.no_grad():
            model[0].bias.fill_(value)
        model[0].bias.grad = torch.zeros(16, dtype=torch.bfloat16)
        optimizer.step()
        assert (model[0].bias == value).all()


def test_clipping_and_a_float32_copy_get_on() -> None:
    model = net().bfloat16()
    optimizer = sgd(model, lr=1.0)
    settings = {"kind": "agc", "threshold": 0.01}
    order = [{"remedy": "optimizer", "settings": {"change": "float32-copy"}}, {"remedy": "clip", "settings": settings}]
    gradiometer.treat(model, optimizer, {"treatments": order})
    before = model[0].weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = (model[0].weight.detach() - before).float().norm(dim=1)
    torch.testing.assert_close(moved, 0.01 * before.float().norm(dim=1), rtol=0.2, atol=0.0)


# ---- what to try -----------------------------------------------------------------------------------------------------


def plans(*rules: str, steps: int = 200, **trace: Any) -> list[tuple[str, float]]:
    found = REMEDY.plan(symptoms(*rules, trace=make(**trace), steps=steps))
    return [(str(t.settings["change"]), float(t.settings["value"])) for t in found]


def of(kind: str, **options: float) -> list[dict[str, Any]]:
    return [{"event": "optimizer", "kind": kind, "options": options}]


def test_a_rate_that_is_too_high_is_lowered_by_what_the_curvature_says() -> None:
    assert plans("learning-rate-too-high") == [("lr", 0.1), ("lr", 0.3), ("warmup", 50.0)]
    far = plans("divergence", each_step={"overshoot": -19.0})
    assert far[0] == ("lr", 0.05), "rate times curvature is 20: half of what is stable is a twentieth"
    assert plans("divergence", each_step={"overshoot": 0.9})[0] == ("lr", 0.1), "it is not the curvature"
    assert plans("divergence", each_step={"overshoot": -1e9})[0] == ("lr", 0.01)


def test_what_is_tried_for_which_finding() -> None:
    assert plans("learning-rate-too-low") == [("lr", 10.0), ("adam", 1e-3), ("lr", 100.0)]
    assert plans("plateau", events=of("Adam", betas=(0.9, 0.999))) == [("lr", 10.0), ("lr", 100.0)]  # pyright: ignore[reportArgumentType]
    assert plans("oscillation", events=of("SGD", momentum=0.99))[0] == ("momentum", 0.9)
    assert plans("oscillation", events=of("SGD", momentum=0.9))[0] == ("lr", 0.3)
    assert plans("stale-second-moment")[0] == ("beta2", 0.95)
    assert plans("vanishing-gradient") == [("adam", 1e-3)]
    assert plans("precision-underflow") == [("loss-scale", 65536.0)]
    assert plans("precision-underflow", parameter={"dtype": "bfloat16"})[0] == ("float32-copy", 0.0)
    assert plans("dead-units") == [], "they were born so"
    assert plans("dead-units", update=-1.0) == [("lr", 0.1)]
    assert plans("attention-collapse", steps=2000)[0] == ("warmup", 100.0)


def test_no_step_repairs_a_network_that_is_blind() -> None:
    assert plans("input-blindness", "vanishing-gradient", "plateau") == []
    assert plans("symmetric-initialization", "plateau") == []
    assert plans("shattered-gradient") == []


# ---- as code ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "value", "options"),
    [
        ("lr", 0.3, {}),
        ("warmup", 4.0, {}),
        ("adam", -1.0, {"weight_decay": 0.01}),
        ("adamw", 0.01, {}),
        ("momentum", 0.5, {"momentum": 0.99}),
        ("weight-decay", 0.1, {}),
    ],
)
def test_the_edit_does_the_same(change: str, value: float, options: dict[str, Any]) -> None:
    treated, edited = net(), net()
    optimizer = sgd(treated, **options)
    changes = treat(treated, optimizer, change, value)
    snippet = REMEDY.edit(REMEDY.filled({"change": change, "value": value}), tuple(changes))
    assert snippet.anchor is Anchor.AFTER_OPTIMIZER
    assert bool(snippet.lines) != bool(snippet.arguments)
    other = sgd(edited, **{**options, **{name: eval(code) for name, code in snippet.arguments}})
    scope = {"model": edited, "optimizer": other}
    exec("\n".join([*snippet.imports, *snippet.lines]).format(model="model", optimizer="optimizer"), scope)
    alike(train(treated, optimizer), train(edited, scope["optimizer"]))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("change", "value"), [("epsilon", 0.1), ("beta2", 0.5), ("momentum", 0.5)])
def test_the_edit_of_adams_settings(change: str, value: float) -> None:
    treated, edited = net(), net()
    adam = torch.optim.Adam(treated.parameters(), betas=(0.8, 0.99))
    changes = treat(treated, adam, change, value)
    snippet = REMEDY.edit(REMEDY.filled({"change": change, "value": value}), tuple(changes))
    arguments: dict[str, Any] = {"betas": (0.8, 0.99), **{name: eval(code) for name, code in snippet.arguments}}
    alike(train(treated, adam), train(edited, torch.optim.Adam(edited.parameters(), **arguments)))


@pytest.mark.parametrize(("change", "value"), [("lr", 0.3), ("warmup", 4.0)])
@pytest.mark.parametrize("schedule", ["lambda", "one cycle"])
def test_the_edit_works_beside_a_schedule(change: str, value: float, schedule: str) -> None:
    treated, edited = net(), net()
    optimizer, other = sgd(treated), sgd(edited)
    follow = SCHEDULES[schedule](optimizer, 1.0)
    changes = treat(treated, optimizer, change, value)
    snippet = REMEDY.edit(REMEDY.filled({"change": change, "value": value}), tuple(changes))
    for name, code in snippet.arguments:
        other.param_groups[0][name] = eval(code)
    paste(snippet, edited, optimizer=other)
    alike(train(treated, optimizer, after=follow), train(edited, other, after=SCHEDULES[schedule](other, 1.0)))


def test_the_edit_of_a_loss_scale() -> None:
    treated, edited = net(), net()
    optimizer, other = sgd(treated), sgd(edited)
    changes = treat(treated, optimizer, "loss-scale", 4096.0)
    tiny(treated, optimizer, 3)
    snippet = REMEDY.edit(REMEDY.filled({"change": "loss-scale", "value": 4096.0}), tuple(changes))
    loop = """
for _ in range(3):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        out = model(X)
    loss = 1e-6 * F.cross_entropy(out.float(), Y)
    loss.backward()
    optimizer.step()
"""
    for old, new in snippet.replace:
        assert old in loop
        loop = loop.replace(old, new)
    torch.autograd.backward = torch.autograd.backward.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    scope = {"model": edited, "optimizer": other, "X": X, "Y": Y, "F": F}
    exec("\n".join([*snippet.imports, *snippet.lines]).format(model="model", optimizer="optimizer") + loop, scope)
    alike([p.detach() for p in treated.parameters()], [p.detach() for p in edited.parameters()])


def test_the_edit_of_a_float32_copy() -> None:
    treated, edited = net().bfloat16(), net().bfloat16()
    optimizer, other = sgd(treated, lr=1e-3), sgd(edited, lr=1e-3)
    changes = treat(treated, optimizer, "float32-copy")
    paste(REMEDY.edit(REMEDY.filled({"change": "float32-copy"}), tuple(changes)), edited, optimizer=other)
    for model, one in ((treated, optimizer), (edited, other)):
        for _ in range(20):
            one.zero_grad()
            F.cross_entropy(model(X.bfloat16()).float(), Y).backward()
            one.step()
    for a, b in zip(treated.parameters(), edited.parameters(), strict=True):
        assert torch.equal(a, b)
    assert math.isfinite(float(next(treated.parameters()).detach().float().norm()))
    assert Patient(treated, [optimizer]).optimizers[0].param_groups[0]["params"][0] is next(treated.parameters())
