"""At the bedside: prescriptions, treating in code, and treating a command whose code nobody changes."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

import gradiometer
from gradiometer import cli, remedies
from gradiometer.errors import GradiometerError
from gradiometer.launch import BOOT
from gradiometer.probe import attach
from gradiometer.record.frames import SCHEMA
from gradiometer.remedies import bedside, clip, prescription, ward
from gradiometer.remedies.base import CannotTreatError, Option, Patient, Remedy, Settings, Stage
from gradiometer.remedies.bedside import Around
from gradiometer.types import Prescription, Safety, Treatment

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
PATIENCE = 120.0
"""Seconds that a forked process has."""
BOUND = 0.05
CLIPPED = {"treatments": [{"remedy": "clip", "settings": {"threshold": BOUND}}]}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- prescriptions as files ------------------------------------------------------------------------------------------------


def test_a_prescription_survives_its_file(tmp_path: Path) -> None:
    made = Prescription(
        (Treatment("clip", {"kind": "agc", "threshold": 0.02}, ("body.*",)), Treatment("optimizer", {"change": "lr"})),
        "too long",
    )
    prescription.write(made, tmp_path / "p.json")
    assert prescription.read(tmp_path / "p.json") == made
    assert prescription.load(str(tmp_path / "p.json")) == prescription.load(prescription.to_dict(made)) == made


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object but list"),
        ("{}", "has no list of treatments"),
        ('{"treatments": []}', "has no list of treatments"),
        ('{"treatments": ["clip"]}', "treatment 1, is no JSON object but str"),
        ('{"treatments": [{"settings": {}}]}', "treatment 1, names no remedy"),
        ('{"treatments": [{"remedy": "leeches"}]}', "There is no remedy 'leeches'"),
        ('{"treatments": [{"remedy": "clip", "setings": {}}]}', "a field 'setings' that means nothing. Known are: remedy"),
        ('{"treatments": [{"remedy": "clip", "settings": {"limit": 1}}]}', "clip has no setting limit; it has kind, threshold"),
        ('{"treatments": [{"remedy": "clip", "settings": {"kind": "hard"}}]}', "kind may be norm, value"),
        ('{"treatments": [{"remedy": "clip", "settings": {"threshold": "1"}}]}', "threshold must be like 0.0, not '1'"),
        ('{"treatments": [{"remedy": "clip", "settings": {"threshold": true}}]}', "threshold must be like 0.0, not True"),
        ('{"treatments": [{"remedy": "clip", "settings": {"threshold": [1]}}]}', "sets threshold to [1]"),
        ('{"treatments": [{"remedy": "clip", "settings": 3}]}', "settings, is no JSON object but int"),
        ('{"treatments": [{"remedy": "clip", "sites": "a"}]}', "sites that are no list of names"),
        ('{"treatments": [{"remedy": "clip"}], "reason": 3}', "a reason that is no text"),
        ('{"treatments": [{"remedy": "clip"}], "prescription": 9}', "has format 9"),
    ],
)
def test_what_is_wrong_with_a_prescription_is_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(GradiometerError) as caught:
        prescription.read(tmp_path / "p.json")
    assert sentence in str(caught.value)


def test_a_missing_prescription(tmp_path: Path) -> None:
    with pytest.raises(GradiometerError, match="cannot be read"):
        prescription.read(tmp_path / "p.json")
    with pytest.raises(GradiometerError, match="cannot be written"):
        prescription.write(Prescription((Treatment("clip"),)), tmp_path)


def test_the_table_of_remedies() -> None:
    assert [r.name for r in remedies.REMEDIES] == list(remedies.NAMES)
    assert [r.stage for r in remedies.REMEDIES] == sorted(r.stage for r in remedies.REMEDIES)
    headings = ("What it does:", "When it helps:", "When it does not:", "Cost:", "References:")
    for known in remedies.REMEDIES:
        assert all(f"\n{heading}\n" in known.text for heading in headings), known.name
        known.filled({})
    code = "import sys, gradiometer.remedies; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, "torch is imported only with a remedy"


# ---- in code ---------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Normalisation, dropout, a frozen layer, a function as activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.2)
        self.second = nn.Linear(16, 16)
        self.act = nn.Tanh()
        self.head = nn.Linear(16, 3)
        self.second.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.sigmoid(self.norm(self.first(x))))
        return self.head(self.act(self.second(x)))


X = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(2))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> nn.Module:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()
    return net


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def a_remedy(
    apply: Callable[[Patient, Settings, tuple[str, ...]], list[str]], stage: Stage = Stage.NORMALISE, name: str = "normalise"
) -> Remedy:
    """A remedy that does what a test wants."""
    return replace(
        clip.REMEDY, name=name, safety=Safety.CHANGES_MODEL, stage=stage, options=(Option("x", 0.0, ""),), apply=apply
    )


def prescribe(monkeypatch: pytest.MonkeyPatch, *known: Remedy) -> Prescription:
    """A prescription of remedies that are not in the table."""
    by_name = {r.name: r for r in known}
    for room in (remedies, bedside, ward):
        monkeypatch.setattr(room, "remedy", by_name.__getitem__)
    return Prescription(tuple(Treatment(r.name) for r in known))


def test_treat_gives_the_treatments_by_stage_and_says_what_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def named(name: str, stage: Stage) -> Remedy:
        return a_remedy(lambda *_: [given.append(name) or name], stage, name)

    order = [named("c", Stage.CLIP), named("a", Stage.ACTIVATION), named("b", Stage.INITIALISE)]
    net = Net()
    assert gradiometer.treat(net, torch.optim.SGD(net.parameters(), 0.1), prescribe(monkeypatch, *order)) == ["a", "b", "c"]
    assert given == ["a", "b", "c"]


def test_what_is_no_part_of_a_treatment_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remedy that draws, trains, freezes and switches modes leaves nothing of it behind."""

    def wild(patient: Patient, _settings: Settings, _sites: tuple[str, ...]) -> list[str]:
        random.random(), np.random.random(), torch.randn(3)
        patient.model.train()
        optimizer = torch.optim.SGD(patient.model.parameters(), 0.0)
        patient.model(X).sum().backward()  # moves running statistics, leaves gradients
        optimizer.step()
        patient.model.requires_grad_(True)
        patient.model.head.requires_grad_(False)  # pyright: ignore[reportAttributeAccessIssue]
        patient.model.add_module("new", nn.Dropout())
        return ["wild"]

    net = Net().eval()
    net.act.train()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    before, streams = weights(net), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with torch.inference_mode():
        gradiometer.treat(net, optimizer, prescribe(monkeypatch, a_remedy(wild)))
    assert same(before, weights(net)), "running statistics too"
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1] == random.getstate()
    assert (streams[2] == np.random.get_state()[1]).all()
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [n != "second.bias" for n, _ in net.named_parameters()]
    assert [n for n, m in net.named_modules() if m.training] == ["act"], "what is new is in the mode of the model"


def test_casts_of_an_open_autocast_do_not_outlive_a_treatment(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(patient: Patient, _settings: Settings, _sites: tuple[str, ...]) -> list[str]:
        patient.run()
        with torch.no_grad():
            patient.model.weight.mul_(2.0)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        return ["doubled"]

    net = nn.Linear(8, 3, bias=False)
    order = prescribe(monkeypatch, a_remedy(double))
    with torch.autocast("cpu", torch.bfloat16):
        before = net(X)
        gradiometer.treat(net, None, order, inputs=X)
        assert torch.allclose(net(X), 2.0 * before, rtol=0.02)


def test_a_treatment_that_does_not_fit_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> list[str]:
        raise CannotTreatError("it has no layers.")

    with pytest.raises(GradiometerError, match=r"^normalise cannot be given: it has no layers\.$"):
        gradiometer.treat(Net(), None, prescribe(monkeypatch, a_remedy(refuse)))
    monkeypatch.undo()
    with pytest.raises(GradiometerError, match="no remedy 'x'"):
        gradiometer.treat(Net(), None, {"treatments": [{"remedy": "x"}]})


def test_functions_of_a_remedy_run_around_steps_with_and_without_a_closure(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def hooked(patient: Patient, _settings: Settings, _sites: tuple[str, ...]) -> list[str]:
        patient.on_step += [lambda o: seen.append(f"{sum(p.grad is not None for p in o.param_groups[0]['params'])} gradients")]
        patient.after_step += [lambda _: seen.append("after")]
        return []

    net = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    gradiometer.treat(net, optimizer, prescribe(monkeypatch, a_remedy(hooked)))
    train(net, optimizer, 1)
    optimizer.zero_grad()

    def closure() -> Tensor:
        loss = F.cross_entropy(net(X), Y)
        loss.backward()
        seen.append("closure")
        return loss

    assert optimizer.step(closure).item() > 0.0
    optimizer.zero_grad()
    optimizer.step(closure=closure)
    assert seen == ["2 gradients", "after", *["closure", "2 gradients", "after"] * 2]


@contextmanager
def counted(seen: list[int]) -> Iterator[None]:
    seen.append(1)
    yield


def test_what_stands_around_a_forward_pass() -> None:
    seen: list[int] = []
    net = Net()
    Around.put(net, [lambda: counted(seen)])
    net(X), net.forward(X)
    assert len(seen) == 2
    average = copy.deepcopy(net)
    with torch.no_grad():
        average.head.bias.add_(1.0)
    net.eval(), average.eval()
    assert torch.allclose(average(X), net(X) + 1.0), "the copy runs its own weights"
    assert len(seen) == 4
    loaded = pickle.loads(pickle.dumps(net))
    assert torch.equal(loaded(X), net(X))
    assert len(seen) == 5, "what is loaded again is the script's own"
    assert list(inspect.signature(net.forward).parameters) == ["x"]
    Around.take_off(net)
    net(X)
    assert len(seen) == 5


def test_a_second_treatment_is_around_the_same_forward_passes() -> None:
    seen: list[int] = []
    net = Net()
    one, two = [lambda: counted(seen)], [lambda: counted(seen)]
    for makers in (one, two, one):
        Around.put(net, makers)
    net(X)
    assert len(seen) == 2
    Around.take_off(net)
    net(X)
    assert len(seen) == 2


# ---- a command whose code nobody changes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a process ended, what it returned and said, and the events of its run."""

    status: int
    result: Any
    said: str
    events: list[dict[str, Any]]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == kind]

    def one(self, kind: str) -> dict[str, Any]:
        (found,) = self.all(kind)
        return found


def in_ward(script: Callable[[], Any], order: Any, folder: Path, ranks: int = 1, **variables: str) -> Ended:
    """Run a function as if it were a command under ``gradiometer run --with``, in processes of its own.

    Its result is that of the first rank, or a list where there are several.
    """
    run = folder / "run"
    run.mkdir()
    if order is not None:
        if not isinstance(order, str):
            (folder / "p.json").write_text(json.dumps(order if isinstance(order, dict) else prescription.to_dict(order)))
        variables["GRADIOMETER_PRESCRIPTION"] = str(folder / "p.json")
    children = [os.fork() or _child(script, folder, {**variables, "RANK": str(rank)}) for rank in range(ranks)]
    statuses = [_status(child, time.monotonic() + PATIENCE) for child in children]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()] if any(run.iterdir()) else []
    files = [folder / f"result-{rank}" for rank in range(ranks)]
    results = [torch.load(file, weights_only=False) if file.exists() else None for file in files]
    said = "".join((folder / f"said-{rank}").read_text() for rank in range(ranks))
    return Ended(max(statuses), results[0] if ranks == 1 else results, said, events)


def _status(child: int, until: float) -> int:
    """How a forked process ended; one that does not end is killed."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("a process does not end")
        time.sleep(0.005)


def _child(script: Callable[[], Any], folder: Path, variables: dict[str, str]) -> int:
    """The rest of a forked process."""
    status, rank = 1, variables["RANK"]
    try:
        os.dup2(os.open(folder / f"said-{rank}", os.O_CREAT | os.O_WRONLY), 2)
        sys.stderr = os.fdopen(2, "w")
        torch.set_num_threads(1)
        os.environ.update(GRADIOMETER_RUN=str(folder / "run"), GRADIOMETER_EVERY="1", **variables)
        attach._current = None  # pyright: ignore[reportPrivateUsage]
        attach.attach_from_environment()
        ward.wait_from_environment()
        torch.save(script(), folder / f"result-{rank}")
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    attach.end_process(status)


def plain(seed: int = 3) -> list[Tensor]:
    torch.manual_seed(seed)
    net = Net()
    return weights(train(net, torch.optim.SGD(net.parameters(), 0.1)))


@LINUX
def test_a_command_is_treated_as_treat_would_do_it_in_code(tmp_path: Path) -> None:
    def script() -> list[Tensor]:
        torch.manual_seed(3)
        net, teacher = Net(), nn.Linear(8, 3)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with torch.no_grad():
            teacher(X)
        return weights(train(net, optimizer))

    def in_code() -> list[Tensor]:
        torch.manual_seed(3)
        net = Net()
        nn.Linear(8, 3)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        gradiometer.treat(net, optimizer, CLIPPED)
        return weights(train(net, optimizer))

    ended = in_ward(script, CLIPPED, tmp_path)
    assert ended.status == 0, ended.said
    assert same(ended.result, in_code())
    assert not same(ended.result, plain())
    treated = ended.one("treated")
    assert treated["given"] == [
        {
            "remedy": "clip",
            "settings": {"kind": "norm", "threshold": BOUND},
            "sites": [],
            "changes": [f"The norm of the gradient is clipped at {BOUND:g} before every step."],
        }
    ]
    assert (treated["model"], treated["refused"], treated["rank"]) == ("Net", [], 0)


@LINUX
def test_a_treatment_that_changes_nothing_leaves_the_training_bit_for_bit(tmp_path: Path) -> None:
    """Neither waiting, nor reading the first batch, nor noting places disturbs what is trained."""
    reading = {"treatments": [{"remedy": "clip", "settings": {"kind": "agc", "threshold": 1e9}}]}
    ended = in_ward(plain, reading, tmp_path)
    assert ended.status == 0, ended.said
    assert ended.one("treated")["given"][0]["changes"][0].endswith("except in the output layer `head`.")
    assert same(ended.result, plain())


@LINUX
def test_where_the_script_does_what(tmp_path: Path) -> None:
    def script() -> None:
        class Trainer:
            def __init__(self) -> None:
                self.net = Net()
                self.sgd = torch.optim.SGD(self.net.parameters(), lr=0.1)

            def fit(self) -> None:
                self.sgd.zero_grad()
                F.cross_entropy(
                    self.net(X), Y
                ).backward()  # fmt: skip
                self.sgd.step()

        Trainer().fit()

    ended = in_ward(script, CLIPPED, tmp_path)
    assert ended.status == 0, ended.said
    treated, places = ended.one("treated"), ended.one("places")
    (optimizer,) = treated["optimizers"]
    assert optimizer["models"] == ["self.net"]
    assert optimizer["place"]["statement"].strip() == "self.sgd = torch.optim.SGD(self.net.parameters(), lr=0.1)"
    assert (optimizer["place"]["file"], optimizer["place"]["within"]) == (__file__, "__init__")
    assert treated["names"] == ["self.net"]
    call = treated["call"]
    assert (call["statement_end"] - call["statement_line"], call["end_line"] - call["line"]) == (2, 0)
    line = Path(__file__).read_text().splitlines()[call["line"] - 1]
    assert line[call["column"] : call["end_column"]] == "self.net(X)"
    assert places["names"] == ["self.sgd"]
    assert places["stepped"]["statement"].strip() == "self.sgd.step()"
    assert [(a["function"], a["times"], a["statement"].strip()) for a in places["activations"]] == [
        ("sigmoid", 1, "x = self.drop(torch.sigmoid(self.norm(self.first(x))))")
    ]
    made = {tuple(m["modules"]): m["statement"].strip() for m in treated["modules"]}
    assert made["act",] == "self.act = nn.Tanh()"
    assert made["first",] == "self.first = nn.Linear(8, 16)"


@LINUX
def test_two_models_that_are_trained_in_turn(tmp_path: Path) -> None:
    """Dropout fits only one of them; each optimizer is clipped."""

    def script() -> tuple[bool, list[float]]:
        maker, judge = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        for_maker, for_judge = torch.optim.SGD(maker.parameters(), 1.0), torch.optim.SGD(judge.parameters(), 1.0)
        lengths: list[float] = []
        for _ in range(2):
            fake = maker(torch.randn(16, 4))
            for optimizer, sign in ((for_judge, 1.0), (for_maker, -1.0)):
                optimizer.zero_grad()
                (sign * 100.0 * judge(fake if optimizer is for_maker else fake.detach()).mean()).backward()
                before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
                optimizer.step()
                moved = [p.detach() - b for p, b in zip(optimizer.param_groups[0]["params"], before, strict=True)]
                lengths.append(float(torch.cat([m.flatten() for m in moved]).norm()))
        return bool(judge[1]._forward_hooks), lengths

    order = {"treatments": [*CLIPPED["treatments"], {"remedy": "regularise", "settings": {"value": 0.3}}]}
    ended = in_ward(script, order, tmp_path)
    assert ended.status == 0, ended.said
    dropped, lengths = ended.result
    assert dropped
    assert max(lengths) == pytest.approx(BOUND, rel=1e-3)
    by_model = {e["model"]: e for e in ended.all("treated")}
    assert [g["remedy"] for g in by_model["Sequential"]["given"]] == ["regularise", "clip"]
    assert [g["remedy"] for g in by_model["Linear"]["given"]] == ["clip"]
    assert "there is no hidden activation to drop" in by_model["Linear"]["refused"][0]
    assert len(ended.all("places")) == 2


@LINUX
def test_an_optimizer_of_two_models_is_changed_once(tmp_path: Path) -> None:
    def script() -> list[Tensor]:
        torch.manual_seed(3)
        coder, head = nn.Linear(8, 16), nn.Linear(16, 3)
        optimizer = torch.optim.SGD([*coder.parameters(), *head.parameters()], 0.1)
        before = head.bias.detach().clone()
        F.cross_entropy(head(coder(X)), Y).backward()
        optimizer.step()
        return [before - head.bias.detach(), 0.1 * head.bias.grad]  # pyright: ignore[reportOptionalOperand]

    order = {"treatments": [{"remedy": "optimizer", "settings": {"change": "lr", "value": 0.5}}]}
    ended = in_ward(script, order, tmp_path)
    assert ended.status == 0, ended.said
    moved, full = ended.result
    torch.testing.assert_close(moved, 0.5 * full)


@LINUX
@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        (
            {"treatments": [{"remedy": "regularise", "settings": {"value": 2.0}}]},
            "regularise value=2 cannot be given: a dropout of 2",
        ),
        ({"treatments": [{"remedy": "clip", "sites": ["nowhere"]}]}, "no module with parameters is called nowhere"),
        ("broken", "is no JSON"),
    ],
)
def test_a_command_never_goes_on_untreated(order: Any, sentence: str, tmp_path: Path) -> None:
    if order == "broken":
        (tmp_path / "p.json").write_text("{")
    ended = in_ward(plain, order, tmp_path)
    assert ended.status == 2
    assert ended.result is None
    (line,) = ended.said.splitlines()
    assert line.startswith("gradiometer: ")
    assert sentence in line
    assert sentence in ended.one("treatment-failed")["sentence"]
    assert not ended.all("places")


@LINUX
def test_a_remedy_that_breaks_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> list[str]:
        raise RuntimeError("shapes")

    ended = in_ward(plain, prescribe(monkeypatch, a_remedy(breaks)), tmp_path)
    assert ended.status == 2
    assert "normalise failed on Net (RuntimeError: shapes)." in ended.said


@LINUX
def test_parameters_without_a_module_cannot_be_treated(tmp_path: Path) -> None:
    def script() -> None:
        w = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.SGD([w], 0.1)
        (w - 1.0).square().sum().backward()
        optimizer.step()

    ended = in_ward(script, CLIPPED, tmp_path)
    assert ended.status == 2
    assert "no forward pass of a module that this optimizer trains was seen" in ended.said


def widens(patient: Patient, _settings: Settings, _sites: tuple[str, ...]) -> list[str]:
    """Puts a layer behind the first one."""
    first: Any = patient.model.get_submodule("first")
    new = nn.Linear(16, 16)
    patient.put("first", nn.Sequential(first, new))
    patient.join(new, first.weight)
    return [f"widened, {'without' if patient.inputs is None else 'with'} a batch"]


@LINUX
def test_new_parameters_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def script() -> bool:
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        train(net, optimizer, 1)
        before = weights(net.first)
        train(net, optimizer)
        return same(before[-2:], weights(net.first)[-2:])

    ended = in_ward(script, prescribe(monkeypatch, a_remedy(widens)), tmp_path)
    assert ended.status == 0, ended.said
    assert ended.result is False
    assert ended.one("treated")["given"][0]["changes"] == ["widened, with a batch"]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)))


@LINUX
@pytest.mark.processes
@pytest.mark.parametrize("early", [False, True])
def test_a_model_that_is_trained_by_several_processes(early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New layers get the same weights on all ranks, their gradients are averaged, and whichever optimizer steps is clipped."""

    def script() -> tuple[int, list[Tensor], int]:
        rank = int(os.environ["RANK"])
        dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 2), rank=rank, world_size=2)
        torch.manual_seed(rank)
        net = Plain()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        shell = DistributedDataParallel(net)
        seen: list[int] = []
        shell.register_forward_hook(lambda *_: seen.append(1))
        if not early:
            optimizer = torch.optim.SGD(shell.parameters(), 0.1)
        if rank == 0:  # looks alone
            with torch.no_grad():
                shell(X)
        torch.manual_seed(10 + rank)
        rows = slice(16 * rank, 16 * rank + 16)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(shell(X[rows]), Y[rows]).backward()
            optimizer.step()
        # how torch takes its process group down is not what is tested: it stays until both ranks have got here
        held.append(shell)
        (tmp_path / f"done-{rank}").touch()
        while not all((tmp_path / f"done-{other}").exists() for other in (0, 1)):
            time.sleep(0.01)
        return len(shell._module_parameters), weights(net), len(seen)  # pyright: ignore[reportPrivateUsage]

    def in_code() -> list[Tensor]:
        torch.manual_seed(0)
        net = Plain()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        torch.manual_seed(10)
        gradiometer.treat(net, optimizer, order, inputs=X[:16])
        return weights(train(net, optimizer, 4))

    held: list[nn.Module] = []
    order = prescribe(monkeypatch, a_remedy(widens), clip.REMEDY)
    order = replace(order, treatments=(order.treatments[0], Treatment("clip", {"threshold": BOUND})))
    ended = in_ward(script, order, tmp_path, 2)
    assert ended.status == 0, ended.said
    for known, trained, calls in ended.result:
        assert (known, len(trained)) == (6, 6), "the wrapper knows the new layer"
        assert calls in (4, 5), "its own hooks are still there"
        for a, b in zip(trained, in_code(), strict=True):
            torch.testing.assert_close(a, b)
    assert [e["rank"] for e in sorted(ended.all("treated"), key=lambda e: e["rank"])] == [0, 1]
    treated = ended.all("treated")[0]
    assert [g["changes"][0][:24] for g in treated["given"]] == ["widened, with a batch", "The norm of the gradient"]
    assert treated["wrapped"]["statement"].strip() == "shell = DistributedDataParallel(net)"


@LINUX
def test_a_compiled_model_is_treated_before_it_is_compiled(tmp_path: Path) -> None:
    def script(compiled: bool) -> list[Tensor]:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        shell: Any = torch.compile(net, backend="eager") if compiled else net
        train(shell, torch.optim.SGD(net.parameters(), 0.1), 3)
        return weights(net)

    def in_code() -> list[Tensor]:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        gradiometer.treat(net, optimizer, order)
        return weights(train(net, optimizer, 3))

    order = {"treatments": [{"remedy": "regularise", "settings": {"value": 0.5}}, *CLIPPED["treatments"]]}
    ended = in_ward(lambda: script(True), order, tmp_path)
    assert ended.status == 0, ended.said
    for a, b in zip(ended.result, in_code(), strict=True):
        torch.testing.assert_close(a, b)
    assert ended.one("treated")["model"] == "Sequential"


@LINUX
def test_keywords_an_optimizer_that_comes_late_and_a_model_that_goes(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, *, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            out = self.net(values)
            return {"loss": F.cross_entropy(out, labels), "out": out}

    def script() -> list[bool]:
        gone: list[weakref.ref[nn.Module]] = []
        for _ in range(2):
            model = Named()
            with torch.no_grad():
                model(values=X, labels=Y)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            model(values=X, labels=Y)["loss"].backward()
            optimizer.step()
            gone.append(weakref.ref(model))
            del model, optimizer
        gc.collect()
        return [reference() is None for reference in gone]

    order = {"treatments": [{"remedy": "clip", "settings": {"kind": "agc"}}]}
    ended = in_ward(script, order, tmp_path)
    assert ended.status == 0, ended.said
    assert ended.result == [True, True], "nothing keeps a treated model alive"
    assert len(ended.all("treated")) == 2
    assert "`net.head`" in ended.all("treated")[0]["given"][0]["changes"][0], "the first batch was known"


# ---- trials ------------------------------------------------------------------------------------------------------------------


@LINUX
def test_a_trial_ends_after_its_steps_and_what_follows_the_last_of_them(tmp_path: Path) -> None:
    def script() -> None:
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for epoch in range(3):
            for _ in range(4):
                train(net, optimizer, 1)
            with torch.no_grad():
                for rows in (slice(0, 30), slice(30, 32)):
                    F.cross_entropy(torch.full((len(X[rows]), 3), float(epoch)), Y[rows], reduction="sum")
                F.mse_loss(torch.zeros(4), torch.ones(4))
                nn.L1Loss()(torch.zeros(4), torch.ones(4))
            gradiometer.log("epoch", epoch)
            gradiometer.log(share=torch.tensor(0.5), wrong="x")

    ended = in_ward(script, None, tmp_path, GRADIOMETER_STEPS="8")
    assert (ended.status, ended.result, ended.said) == (0, None, "")
    assert ended.one("enough")["step"] == 8
    trace = trace_of(tmp_path / "run")
    assert trace.steps_seen == 8
    assert trace.steps.tolist() == list(range(8)), "the step that was not taken left nothing"
    evaluated = {(e["step"], e["name"]): (e["value"], e["examples"]) for e in ended.all("evaluated")}
    assert {k: v[1] for k, v in evaluated.items()} == {
        (4, "cross_entropy"): 32, (4, "mse_loss"): 4, (4, "l1_loss"): 4,
        (8, "cross_entropy"): 32, (8, "mse_loss"): 4, (8, "l1_loss"): 4,
    }  # fmt: skip
    assert evaluated[4, "cross_entropy"][0] == pytest.approx(np.log(3.0))
    assert evaluated[8, "mse_loss"][0] == 1.0
    assert all("test_bedside.py:" in e["where"] for e in ended.all("evaluated"))
    assert [(e["step"], e["name"], e["value"]) for e in ended.all("metric")] == [
        (4, "epoch", 0.0), (4, "share", 0.5), (8, "epoch", 1.0), (8, "share", 0.5)
    ]  # fmt: skip
    assert any("wrong is no number but str" in note for note in trace.notes)


def trace_of(run: Path) -> Any:
    (run / "run.json").write_text(json.dumps({"schema": SCHEMA, "command": ["x"]}))
    return gradiometer.load(run).trace


@LINUX
def test_steps_of_a_trial_are_those_of_the_record(tmp_path: Path) -> None:
    """Two optimizers after one backward pass share a step; losses of a treatment's own passes are no evaluation."""

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x), y)

    def script() -> None:
        model = WithLoss()
        body = torch.optim.SGD([p for n, p in model.named_parameters() if "head" not in n], 0.1)
        head = torch.optim.Adam(model.net.head.parameters())
        for _ in range(9):
            model.zero_grad()
            model(X, Y).backward()
            body.step()
            head.step()

    order = {"treatments": [{"remedy": "clip", "settings": {"kind": "agc"}}]}
    ended = in_ward(script, order, tmp_path, GRADIOMETER_STEPS="3")
    assert ended.status == 0, ended.said
    assert ended.one("enough")["step"] == 3
    assert trace_of(tmp_path / "run").steps_seen == 3
    assert not ended.all("evaluated")


class Slow(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> Tensor:
        return X[index % 32]


@LINUX
@pytest.mark.processes
def test_no_data_worker_outlives_a_trial(tmp_path: Path) -> None:
    def script() -> None:
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loader = torch.utils.data.DataLoader(Slow(), batch_size=32, num_workers=2)
        iterator: Any = iter(loader)
        (tmp_path / "workers").write_text(json.dumps([w.pid for w in iterator._workers]))
        for batch in iterator:
            optimizer.zero_grad()
            F.cross_entropy(net(batch), Y).backward()
            optimizer.step()

    ended = in_ward(script, None, tmp_path, GRADIOMETER_STEPS="2")
    assert (ended.status, ended.one("enough")["step"]) == (0, 2), ended.said
    for pid in json.loads((tmp_path / "workers").read_text()):
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@LINUX
def test_a_trial_without_a_record_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradiometer.probe.observer.Observer.step_end", full)
    ended = in_ward(plain, None, tmp_path, GRADIOMETER_STEPS="2")
    assert ended.status == attach.TRIAL_FAILED
    assert ended.one("probe-failed")


def test_logging_where_nothing_is_recorded_does_nothing() -> None:
    gradiometer.log("x", object())
    gradiometer.log(x=1)


def test_many_logged_numbers_are_thinned(tmp_path: Path) -> None:
    with gradiometer.watch(out=tmp_path / "run"):
        for k in range(5000):
            gradiometer.log("k", k)
    written = [
        e for e in map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines()) if e["event"] == "metric"
    ]
    assert attach.METRICS <= len(written) < 2.5 * attach.METRICS
    assert written[-1]["value"] > 4980


RANDOM = """
import random
import numpy as np
import torch

def draw(generator):
    print(random.random(), np.random.rand(), generator.random(), float(torch.rand(())), torch.initial_seed())

draw(np.random.default_rng())
random.seed(1); np.random.seed(2); torch.manual_seed(3); torch.cuda.manual_seed_all(3)
draw(np.random.default_rng(4))
"""


def test_seeds_are_shifted(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(RANDOM)

    def start(**shift: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(BOOT), "GRADIOMETER_RUN": str(tmp_path), **shift}
        return subprocess.Popen([sys.executable, "r.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    started = [start(), start(GRADIOMETER_SEED_SHIFT="0"), start(GRADIOMETER_SEED_SHIFT="2")]
    own, zero, two = (process.communicate()[0].splitlines() for process in started)
    assert own[1] == zero[1], "without a shift the script's seeds are its own"
    for line, (a, b, c, d) in {zero[0]: (0, 0, [0, 1], 0), two[0]: (2, 2, [2, 1], 2), two[1]: (3, 4, 6, 5)}.items():
        torch.manual_seed(d)
        legacy = np.random.RandomState(b).rand()
        expected = [random.Random(a).random(), legacy, np.random.default_rng(c).random(), float(torch.rand(())), d]
        assert [float(word) for word in line.split()] == expected


SCRIPT = """
import torch, torch.nn.functional as F
from torch import nn

net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
x, y = torch.randn(32, 8), torch.randint(0, 3, (32,))
for step in range(12):
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
print("end", flush=True)
"""


def test_running_with_a_prescription(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SCRIPT)
    Path("p.json").write_text(json.dumps(CLIPPED))
    command = [sys.executable, "-m", "gradiometer", "run", "--no-report", "--with", "p.json", "--out", "run", "train.py"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "end\n"), ended.stderr
    trace = gradiometer.load("run").trace
    (treated,) = [e for e in trace.events if e["event"] == "treated"]
    assert treated["names"] == ["net"]
    assert np.nanmax(trace.ledger["clip_threshold"]) == BOUND, "the probe sees it as it would see the script's own clipping"


def test_a_prescription_that_makes_no_sense_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"treatments": [{"remedy": "leeches"}]}')
    (tmp_path / "train.py").write_text("")
    words = ["run", "--with", str(tmp_path / "p.json"), "--out", str(tmp_path / "run"), str(tmp_path / "train.py")]
    result = CliRunner().invoke(cli.app, words)
    assert isinstance(result.exception, GradiometerError)
    assert "There is no remedy 'leeches'" in str(result.exception)
    assert not (tmp_path / "run").exists()
