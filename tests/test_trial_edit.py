"""The edit: what is written where in the user's code, as a diff that applies, or in words where that is not certain."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from gradiometer.remedies.base import Anchor, Snippet
from gradiometer.trial.edit import _Editor  # pyright: ignore[reportPrivateUsage]
from gradiometer.trial.result import Edit, Place

SCRIPT = '''"""A training."""

import torch
from torch import nn


def main():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
    head = nn.Sigmoid()
    opt = torch.optim.SGD(
        model.parameters(), 0.1,
        momentum=0.9,
    )
    for x, y in loader:
        loss = ((head(torch.tanh(model(x))) - y) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
'''


def place(
    what: str, call: str, names: Sequence[str] = (), modules: Sequence[str] = (), source: str = SCRIPT, nth: int = 0
) -> Place:
    """Where a call stands in the source."""
    at = -1
    for _ in range(nth + 1):
        at = source.index(call, at + 1)
    end = at + len(call)
    line, end_line = source[:at].count("\n") + 1, source[:end].count("\n") + 1
    column, end_column = at - source.rfind("\n", 0, at) - 1, end - source.rfind("\n", 0, end) - 1
    first, last = line, end_line
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign | ast.Expr) and node.lineno <= line and (node.end_lineno or 0) >= end_line:
            first, last = node.lineno, node.end_lineno or node.lineno
    return Place(what, "train.py", line, end_line, column, end_column, first, last, tuple(names), "", tuple(modules))


OPTIMIZER = "torch.optim.SGD(\n        model.parameters(), 0.1,\n        momentum=0.9,\n    )"
PLACES = (
    place("forward", "model(x)", ["model"]),
    place("optimizer", OPTIMIZER, ["model"]),
    place("step", "opt.step()", ["opt"]),
    place("activation", "torch.tanh(model(x))"),
    place("module", "nn.Sigmoid()", modules=["1"]),
    place("module", "nn.Linear(4, 4)", modules=["0"]),
    place("module", "nn.Linear(4, 2)", modules=["2"]),
)


def edited(tmp_path: Path, *snippets: Snippet, places: Sequence[Place] = PLACES, source: str = SCRIPT) -> tuple[Edit, str]:
    """The edit, and the source after git has applied its diff."""
    (tmp_path / "train.py").write_text(source)
    editor = _Editor(places, tmp_path)
    for snippet in snippets:
        editor.add("remedy", snippet)
    edit = editor.result()
    if edit.diff:
        (tmp_path / "x.diff").write_text(edit.diff)
        subprocess.run(["git", "apply", "x.diff"], cwd=tmp_path, check=True)
    new = (tmp_path / "train.py").read_text()
    ast.parse(new)
    return edit, new


def lines(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines()]


def test_lines_before_the_optimizer_are_indented_and_use_the_users_names(tmp_path: Path) -> None:
    snippet = Snippet(
        Anchor.BEFORE_OPTIMIZER,
        ("for layer in {model}.modules():", "    if isinstance(layer, nn.Linear):", "        init.zeros_(layer.bias)"),
        ("from torch.nn import init", "import torch.nn as nn"),
    )
    edit, new = edited(tmp_path, snippet)
    assert not edit.notes
    assert (
        "    for layer in model.modules():\n        if isinstance(layer, nn.Linear):\n            init.zeros_(layer.bias)\n"
        "    opt = torch.optim.SGD(\n"
    ) in new
    assert new.count("from torch.nn import init") == 1
    assert "import torch.nn as nn" not in new, "nn is there already"
    assert new.index("from torch import nn") < new.index("from torch.nn import init") < new.index("def main")


def test_lines_after_the_optimizer(tmp_path: Path) -> None:
    snippet = Snippet(Anchor.AFTER_OPTIMIZER, ("for group in {optimizer}.param_groups:", '    group["lr"] = {{1: 0.1}}[1]'))
    _, new = edited(tmp_path, snippet)
    assert '    )\n    for group in opt.param_groups:\n        group["lr"] = {1: 0.1}[1]\n    for x, y' in new


def test_lines_around_the_step(tmp_path: Path) -> None:
    before = Snippet(Anchor.BEFORE_STEP, ("torch.nn.utils.clip_grad_norm_({model}.parameters(), 1.0)",))
    after = Snippet(Anchor.AFTER_STEP, ("{optimizer}.warm()",))
    _, new = edited(tmp_path, before, after)
    found = lines(new)
    at = found.index("opt.step()")
    assert found[at - 1] == "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"
    assert found[at + 1] == "opt.warm()"


def test_under_a_gradient_scaler_gradients_are_unscaled_first(tmp_path: Path) -> None:
    source = SCRIPT.replace("opt.step()", "scaler.step(opt)")
    step = place("step", "scaler.step(opt)", ["opt"], source=source)
    snippet = Snippet(Anchor.BEFORE_STEP, ("clip({model})",))
    _, new = edited(tmp_path, snippet, places=[PLACES[0], step], source=source)
    at = lines(new).index("scaler.step(opt)")
    assert lines(new)[at - 2 : at] == ["scaler.unscale_(opt)", "clip(model)"]
    done = source.replace("scaler.step", "scaler.unscale_(opt)\n        scaler.step")
    step = place("step", "scaler.step(opt)", ["opt"], source=done)
    _, new = edited(tmp_path, snippet, places=[PLACES[0], step], source=done)
    assert new.count("unscale_") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((("lr", "0.01"),), "model.parameters(), 0.01,"),
        ((("momentum", "0.5"),), "momentum=0.5,"),
        ((("weight_decay", "0.1"),), "momentum=0.9, weight_decay=0.1)"),
    ],
)
def test_arguments_of_the_optimizer(tmp_path: Path, arguments: tuple[tuple[str, str], ...], expected: str) -> None:
    edit, new = edited(tmp_path, Snippet(Anchor.IN_PLACE, arguments=arguments))
    assert expected in new
    assert not edit.notes


def test_another_optimizer_with_other_arguments(tmp_path: Path) -> None:
    snippet = Snippet(Anchor.IN_PLACE, replace=(("torch.optim.SGD", "torch.optim.Adam"),), arguments=(("lr", "0.001"),))
    _, new = edited(tmp_path, snippet)
    assert "opt = torch.optim.Adam(" in new
    assert "model.parameters(), 0.001," in new


def test_a_function_is_replaced_where_it_is_called(tmp_path: Path) -> None:
    edit, new = edited(tmp_path, Snippet(Anchor.IN_PLACE, replace=(("torch.tanh(model(x))", "F.relu(model(x))"),)))
    assert "head(F.relu(model(x)))" in new
    assert not edit.notes
    edit, new = edited(tmp_path, Snippet(Anchor.IN_PLACE, replace=(("torch.tanh", "torch.relu"),)))
    assert "head(torch.relu(model(x)))" in new
    edit, new = edited(tmp_path, Snippet(Anchor.IN_PLACE, replace=(("F.gelu(x)", "F.relu(x)"),)))
    assert not edit.diff
    assert edit.notes == ("remedy: write `F.relu(x)` instead of `F.gelu(x)`.",)


PUT = Snippet(Anchor.BEFORE_OPTIMIZER, ('for name in ("1",):', "    {model}.set_submodule(name, nn.ReLU())", "{model}.more()"))


def test_a_module_is_replaced_where_it_is_made(tmp_path: Path) -> None:
    _, new = edited(tmp_path, PUT)
    assert "nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))" in new
    assert "head = nn.Sigmoid()" in new
    assert "set_submodule" not in new
    assert "    model.more()\n    opt = " in new


def test_a_line_that_makes_others_too_is_left_alone(tmp_path: Path) -> None:
    shared = place("module", "nn.Sigmoid()", modules=["1", "3"])
    _, new = edited(tmp_path, PUT, places=[*PLACES[:4], shared])
    assert "nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()" in new
    assert "model.set_submodule(name, nn.ReLU())" in new
    elsewhere = place("module", "nn.Sigmoid()", modules=["5"])
    _, new = edited(tmp_path, PUT, places=[*PLACES[:4], elsewhere])
    assert "set_submodule" in new, "where 1 is made is not known"


def test_names_that_are_not_known_are_said_in_words(tmp_path: Path) -> None:
    nameless = place("optimizer", OPTIMIZER)
    edit, new = edited(tmp_path, Snippet(Anchor.BEFORE_OPTIMIZER, ("init({model})",), ("import init",)), places=[nameless])
    assert not edit.diff
    assert new == SCRIPT
    assert edit.notes == (
        "remedy: write, after the model is made and before the optimizer is (train.py:10):\nimport init\ninit(model)",
    )
    edit, _ = edited(tmp_path, Snippet(Anchor.BEFORE_OPTIMIZER, ("pretrain({model}, {loader})",)))
    assert not edit.diff
    assert "pretrain(model, loader)" in edit.notes[0]


def test_without_any_place_everything_is_said_in_words(tmp_path: Path) -> None:
    snippets = (
        Snippet(Anchor.BEFORE_STEP, ("clip({model})",)),
        Snippet(Anchor.IN_PLACE, arguments=(("lr", "0.01"),)),
    )
    edit, _ = edited(tmp_path, *snippets, places=[])
    assert not edit.diff
    assert edit.notes == (
        "remedy: write, between backward() and the step of the optimizer:\nclip(model)",
        "remedy: make the optimizer with `lr=0.01`.",
    )


def test_an_edit_that_would_be_no_python_is_said_in_words(tmp_path: Path) -> None:
    edit, new = edited(tmp_path, Snippet(Anchor.BEFORE_OPTIMIZER, ("for x in {model}:",)))
    assert new == SCRIPT
    assert not edit.diff
    assert "could not be written as a diff" in edit.notes[0]
    assert "for x in model:" in edit.notes[1]


def test_a_file_that_is_gone_or_shorter_is_left_alone(tmp_path: Path) -> None:
    far = Place("optimizer", "train.py", 999, 999, 0, 1, 999, 999, ("model",))
    gone = Place("optimizer", "gone.py", 1, 1, 0, 1, 1, 1, ("model",))
    edit, new = edited(tmp_path, Snippet(Anchor.AFTER_OPTIMIZER, ("x({optimizer})",)), places=[far, gone])
    assert new == SCRIPT
    assert len(edit.notes) == 1


def test_a_file_without_a_last_line_end(tmp_path: Path) -> None:
    source = SCRIPT.rstrip()
    _, new = edited(tmp_path, Snippet(Anchor.BEFORE_STEP, ("clip({model})",)), source=source)
    assert lines(new)[-2:] == ["clip(model)", "opt.step()"]
    assert not new.endswith("\n")


def test_an_optimizer_that_is_an_attribute(tmp_path: Path) -> None:
    source = "class T:\n    def __init__(self):\n        self.opt = SGD(self.net.parameters(), lr=0.1)\n"
    made = place("optimizer", "SGD(self.net.parameters(), lr=0.1)", ["self.net"], source=source)
    snippets = (Snippet(Anchor.BEFORE_OPTIMIZER, ("init({model})",)), Snippet(Anchor.AFTER_OPTIMIZER, ("tune({optimizer})",)))
    _, new = edited(tmp_path, *snippets, places=[made], source=source)
    assert lines(new)[2:] == ["init(self.net)", "self.opt = SGD(self.net.parameters(), lr=0.1)", "tune(self.opt)"]


def test_calls_within_calls_are_changed_each_at_its_own_place(tmp_path: Path) -> None:
    source = "from torch import tanh\n\ny = tanh(fc2(tanh(fc1(x)))) + tanh(z)\n"
    (tmp_path / "train.py").write_text(source)
    inner, outer, other = "tanh(fc1(x))", "tanh(fc2(tanh(fc1(x))))", "tanh(z)"
    places = [place("activation", call, source=source) for call in (inner, outer, other)]
    editor = _Editor(places, tmp_path)
    editor.add("activation", Snippet(Anchor.IN_PLACE, replace=(("tanh", "F.leaky_relu"),)))
    assert "+y = F.leaky_relu(fc2(F.leaky_relu(fc1(x)))) + F.leaky_relu(z)\n" in editor.result().diff
