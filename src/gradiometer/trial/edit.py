"""The edit: what a prescription changes, written into the user's own code as a unified diff.

A remedy says what it does as lines of plain PyTorch and where they belong (`gradiometer.remedies.base.Snippet`); the trial
has noted where in the code the optimizer is made, the step taken, the model called. What cannot be placed with certainty,
or would not be Python any more, is not put into the diff but said in words, with the lines.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gradiometer.trial.result import Edit, Place, Trial

if TYPE_CHECKING:
    from gradiometer.remedies.base import Snippet  # needs torch

_WHERE: Final = {
    1: "after the model is made and before the optimizer is",
    2: "after the optimizer is made",
    3: "between backward() and the step of the optimizer",
    4: "after the step of the optimizer",
    5: "at these places",
}
"""By the number of a `gradiometer.remedies.base.Anchor`, in words."""
_POSITION: Final = {"lr": 1}
"""Arguments of an optimizer's constructor that people give without a name, and their position."""
_BLOCK: Final = re.compile(r"^for name in (\(.*\)):$")
_PUT: Final = re.compile(r"^ {4}\{model\}\.set_submodule\(name, (.+)\)$")


@dataclass
class _File:
    """A file that is being changed.

    Attributes:
        path: as it is shown.
        lines: as they are, without line ends.
        ended: whether the last one has a line end.
        before, after: line number to lines that are put there.
        spans: replacements within lines: (line, column, end line, end column) and the new text.
        imports: lines that it needs.
    """

    path: str
    lines: list[str]
    ended: bool = True
    before: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    after: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    spans: dict[tuple[int, int, int, int], str] = field(default_factory=dict[tuple[int, int, int, int], str])
    imports: list[str] = field(default_factory=list[str])

    def text(self, place: Place) -> str:
        """Source of a call; empty if it is not known where it ends."""
        if place.column < 0 or place.end_column < 0 or place.end_line > len(self.lines):
            return ""
        part = self.lines[place.line - 1 : place.end_line]
        if place.line == place.end_line:
            return part[0][place.column : place.end_column]
        return "\n".join([part[0][place.column :], *part[1:-1], part[-1][: place.end_column]])

    def indent(self, line: int) -> str:
        """Indentation of a line."""
        return self.lines[line - 1][: len(self.lines[line - 1]) - len(self.lines[line - 1].lstrip())]

    def changed(self) -> list[str]:
        """The lines with everything done."""
        lines: list[str | None] = list(self.lines)
        for (line, column, end_line, end_column), new in sorted(self.spans.items(), reverse=True):
            head, tail = (lines[line - 1] or "")[:column], (lines[end_line - 1] or "")[end_column:]
            lines[line - 1 : end_line] = [head + new + tail, *([None] * (end_line - line))]
        out: list[str] = []
        for number, line in enumerate(lines, 1):
            out += self.before.get(number, [])
            if line is not None:
                out += line.split("\n")
            out += self.after.get(number, [])
        return _with_imports(out, self.imports)


class _Editor:
    def __init__(self, places: Sequence[Place], cwd: Path) -> None:
        self.places = places
        self.cwd = cwd
        self.files: dict[str, _File] = {}
        self.notes: list[str] = []

    def place(self, what: str) -> Place | None:
        return next((p for p in self.places if p.what == what and self.file(p) is not None), None)

    def file(self, place: Place) -> _File | None:
        """The file of a place; None where it cannot be read, or has changed since."""
        if place.file not in self.files:
            try:
                text = (self.cwd / place.file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                return None
            lines = text.split("\n")
            ended = lines[-1] == ""
            self.files[place.file] = _File(place.file, lines[:-1] if ended else lines, ended)
        found = self.files[place.file]
        return found if place.last <= len(found.lines) else None

    # ---- one snippet -----------------------------------------------------------------------------------------------

    def add(self, remedy: str, snippet: Snippet) -> None:
        lines = self.made_elsewhere(list(snippet.lines))
        if lines:
            self.put(remedy, snippet, lines)
        for old, new in snippet.replace:
            self.swap(remedy, snippet, old, new)
        if snippet.arguments:
            self.arguments(remedy, snippet)

    def put(self, remedy: str, snippet: Snippet, lines: list[str]) -> None:
        """Lines at their anchor."""
        from gradiometer.remedies.base import Anchor

        names = self.names(snippet.anchor)
        text = [line.format(**names) for line in lines]
        at_step = snippet.anchor in (Anchor.BEFORE_STEP, Anchor.AFTER_STEP)
        place = self.place("step" if at_step else "optimizer")
        known = all("{" + name + "}" not in "".join(lines) or self.certain(name, snippet.anchor) for name in names)
        file = self.file(place) if place is not None else None
        if place is None or file is None or not known:
            self.say(remedy, snippet, text)
            return
        indent = file.indent(place.first)
        if snippet.anchor is Anchor.BEFORE_STEP:
            text = [*_unscaling(file, place), *text]
        block = [indent + line if line else line for line in text]
        if snippet.anchor in (Anchor.BEFORE_OPTIMIZER, Anchor.BEFORE_STEP):
            file.before.setdefault(place.first, []).extend(block)
        else:
            file.after.setdefault(place.last, []).extend(block)
        file.imports += snippet.imports

    def made_elsewhere(self, lines: list[str]) -> list[str]:
        """Take out of the lines what is better written where modules are made: ``nn.Sigmoid()`` becomes ``nn.ReLU()`` there.

        That is so where the lines put one new module in the place of each of several, and what was made at some line of the
        user's code are these and no others.
        """
        for number in range(len(lines) - 1):
            names, put = _BLOCK.match(lines[number]), _PUT.match(lines[number + 1])
            if names is None or put is None or (number + 2 < len(lines) and lines[number + 2].startswith(" ")):
                continue
            wanted = set(ast.literal_eval(names[1]))
            made = [p for p in self.places if p.what == "module" and wanted.intersection(p.modules)]
            if set[str]().union(*(p.modules for p in made)) != wanted or not all(self.call(p) for p in made):
                continue
            for place in made:
                file = self.file(place)
                assert file is not None
                file.spans[(place.line, place.column, place.end_line, place.end_column)] = put[1]
                if put[1].startswith("nn."):
                    file.imports.append("from torch import nn")
            return [*lines[:number], *self.made_elsewhere(lines[number + 2 :])]
        return lines

    def call(self, place: Place) -> bool:
        """Whether what stands at a place is a call of a single expression."""
        file = self.file(place)
        return file is not None and isinstance(_expression(file.text(place)), ast.Call)

    def swap(self, remedy: str, snippet: Snippet, old: str, new: str) -> None:
        """One piece of source for another, wherever it stands among the calls that were seen."""
        done = False
        for place in self.places:
            if place.what not in ("activation", "module", "optimizer"):
                continue
            file = self.file(place)
            text = file.text(place) if file is not None else ""
            span, rest = (place.line, place.column, place.end_line, place.end_column), text[len(old) :]
            if place.what == "activation" and "\n" not in old:  # its arguments may hold another call that is changed
                span, rest = (place.line, place.column, place.line, place.column + len(old)), ""
            if file is None or not text or span in file.spans:
                done = done or (file is not None and span in file.spans and new in file.spans[span])
                continue
            if text == old or re.match(rf"{re.escape(old)}\b(?!\w)", text):
                file.spans[span] = new + rest
                file.imports += snippet.imports
                done = True
        if not done:
            self.notes.append(f"{remedy}: write `{new}` instead of `{old}`.")

    def arguments(self, remedy: str, snippet: Snippet) -> None:
        """Keywords of the optimizer's constructor."""
        done = False
        for place in self.places:
            file = self.file(place) if place.what == "optimizer" else None
            if file is None:
                continue
            span = (place.line, place.column, place.end_line, place.end_column)
            text = _with_arguments(file.spans.get(span, file.text(place)), snippet.arguments)
            if text:
                file.spans[span] = text
                file.imports += snippet.imports
                done = True
        if not done:
            wanted = ", ".join(f"{name}={value}" for name, value in snippet.arguments)
            self.notes.append(f"{remedy}: make the optimizer with `{wanted}`.")

    # ---- names -----------------------------------------------------------------------------------------------------

    def names(self, anchor: int) -> dict[str, str]:
        """What the user calls model, optimizer and loader where an anchor is; the plain words where that is not known."""
        optimizer, step, forward = self.place("optimizer"), self.place("step"), self.place("forward")
        at_step = anchor in (3, 4)
        of_model = [p for p in ((forward, optimizer) if at_step else (optimizer, forward)) if p is not None and p.names]
        assigned = self.assigned(optimizer)
        of_step = step.names[0] if step is not None and step.names else ""
        return {
            "model": of_model[0].names[0] if of_model else "model",
            "optimizer": (of_step or assigned if at_step else assigned or of_step) or "optimizer",
            "loader": "loader",
        }

    def certain(self, name: str, anchor: int) -> bool:
        """Whether the user's name for something is known at an anchor."""
        optimizer, step, forward = self.place("optimizer"), self.place("step"), self.place("forward")
        if name == "model":
            place = forward if anchor in (3, 4) else optimizer
            return place is not None and bool(place.names)
        if name == "optimizer":
            return bool(step is not None and step.names) if anchor in (3, 4) else bool(self.assigned(optimizer))
        return False

    def assigned(self, place: Place | None) -> str:
        """What the result of a call is assigned to: ``optimizer``, ``self.optimizer``; empty if to nothing simple."""
        file = self.file(place) if place is not None else None
        if place is None or file is None:
            return ""
        source = "\n".join(line.strip() if n == 0 else line for n, line in enumerate(file.lines[place.first - 1 : place.last]))
        try:
            statement = ast.parse(source).body[0]
        except (SyntaxError, IndexError):
            return ""
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        target = statement.target if isinstance(statement, ast.AnnAssign) else target
        return ast.unparse(target) if isinstance(target, ast.Name | ast.Attribute) else ""

    # ---- in words --------------------------------------------------------------------------------------------------

    def say(self, remedy: str, snippet: Snippet, text: Sequence[str]) -> None:
        where = _WHERE[int(snippet.anchor)]
        at_step = int(snippet.anchor) in (3, 4)
        place = next((p for p in self.places if p.what == ("step" if at_step else "optimizer")), None)
        near = f" ({place.file}:{place.line})" if place is not None else ""
        near += "; `loader` is what yields your batches" if any("{loader}" in line for line in snippet.lines) else ""
        self.notes.append("\n".join([f"{remedy}: write, {where}{near}:", *snippet.imports, *text]))

    def result(self) -> Edit:
        parts: list[str] = []
        for file in self.files.values():
            new = file.changed()
            if new == file.lines:
                continue
            try:
                ast.parse("\n".join(new))
            except SyntaxError:
                self.notes.append(f"The change of {file.path} could not be written as a diff.")
                self.notes += ["\n".join(block) for block in (*file.before.values(), *file.after.values())]
                self.notes += [f"Write `{text}`." for text in file.spans.values()]
                continue
            path = file.path.lstrip("/")
            old, new = _with_ends(file.lines, file.ended), _with_ends(new, file.ended)
            told = difflib.unified_diff(old, new, f"a/{path}", f"b/{path}")
            parts += [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in told]
        return Edit("".join(parts), tuple(self.notes))


def edit_for(trial: Trial, cwd: str) -> Edit:
    """The change of the user's code that the treatment of a trial stands for.

    Args:
        trial: one that ran, treated.
        cwd: folder that the command is run in.
    """
    from gradiometer.remedies import remedy

    editor = _Editor(trial.places, Path(cwd))
    for given in trial.given:
        editor.add(given.remedy, remedy(given.remedy).edit(given.settings, given.changes))
    return editor.result()


# ---- source ------------------------------------------------------------------------------------------------------------


def _with_ends(lines: Sequence[str], ended: bool) -> list[str]:
    return [f"{line}\n" if ended or k < len(lines) - 1 else line for k, line in enumerate(lines)]


def _expression(source: str) -> ast.expr | None:
    try:
        return ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError):
        return None


def _with_arguments(call: str, arguments: Sequence[tuple[str, str]]) -> str:
    """A call with keywords set; empty if it is no call that can be read."""
    for name, value in arguments:
        tree = _expression(call)
        if not isinstance(tree, ast.Call):
            return ""
        old = next((k.value for k in tree.keywords if k.arg == name), None)
        position = _POSITION.get(name)
        if old is None and position is not None and position < len(tree.args):
            old = tree.args[position]
        if old is not None:
            call = _replaced(call, old, value)
            continue
        inside = call.rstrip()[:-1].rstrip()
        separator = "" if inside.endswith("(") else " " if inside.endswith(",") else ", "
        call = f"{inside}{separator}{name}={value})"
    return call


def _replaced(source: str, node: ast.expr, new: str) -> str:
    lines = source.split("\n")
    head = lines[: node.lineno - 1]
    first, last = lines[node.lineno - 1].encode(), lines[(node.end_lineno or node.lineno) - 1].encode()
    joined = first[: node.col_offset].decode() + new + last[node.end_col_offset or 0 :].decode()
    return "\n".join([*head, joined, *lines[node.end_lineno or node.lineno :]])


def _unscaling(file: _File, step: Place) -> list[str]:
    """What must come before gradients are changed under a gradient scaler, unless the code does it."""
    found = re.match(r"(\w[\w.]*)\.step\((\w[\w.]*)\)", file.text(step)) or re.search(
        r"(\w[\w.]*)\.step\((\w[\w.]*)\)", "\n".join(file.lines[step.first - 1 : step.last])
    )
    if found is None or any("unscale_(" in line for line in file.lines):
        return []
    return [f"{found[1]}.unscale_({found[2]})"]


def _with_imports(lines: list[str], wanted: Sequence[str]) -> list[str]:
    """Lines with imports that are missing, behind the last import at the top."""
    present = {line.strip() for line in lines}
    known = _bound(lines)
    missing = [line for line in dict.fromkeys(wanted) if line not in present and not _binds(line) <= known]
    if not missing:
        return lines
    try:
        body = ast.parse("\n".join(lines)).body
    except SyntaxError:
        return [*missing, *lines]
    ends = [node.end_lineno or node.lineno for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    documented = bool(body) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    at = ends[-1] if ends else (body[0].end_lineno or 0) if documented else 0
    return [*lines[:at], *missing, *lines[at:]]


def _bound(lines: Sequence[str]) -> set[tuple[str, str]]:
    """What is imported under which name at the top of a module: ``("torch.nn", "nn")``."""
    try:
        body = ast.parse("\n".join(lines)).body
    except SyntaxError:
        return set()
    return set[tuple[str, str]]().union(*(_of(node) for node in body))


def _binds(line: str) -> set[tuple[str, str]]:
    try:
        return set[tuple[str, str]]().union(*(_of(node) for node in ast.parse(line).body))
    except SyntaxError:
        return {("", line)}


def _of(node: ast.stmt) -> set[tuple[str, str]]:
    if isinstance(node, ast.Import):
        heads = [name.name.split(".")[0] for name in node.names]
        return {(n.name, n.asname) if n.asname else (head, head) for n, head in zip(node.names, heads, strict=True)}
    if isinstance(node, ast.ImportFrom) and not node.level:
        return {(f"{node.module}.{name.name}", name.asname or name.name) for name in node.names}
    return set()
