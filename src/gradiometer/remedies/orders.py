"""Recipes for many layers: done, said in sentences, and understood again from these as code. No remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from torch import nn
from torch.nn.utils import parametrize

from gradiometer.remedies.anatomy import ByHand
from gradiometer.remedies.base import WEIGHTED
from gradiometer.remedies.recipes import KINDS, Recipe

NAMED_AT_MOST: Final = 8
"""Longer lists of layers are said as all of a class but some, if that is shorter."""

Order: TypeAlias = tuple[str, Recipe]
"""Qualified name of a module, and what to do to it."""


def follow(model: nn.Module, orders: Iterable[Order], by_hand: Sequence[ByHand] = ()) -> list[str]:
    """Do all of it, the modules of each recipe in order of registration; one sentence for each recipe.

    Args:
        model: the root module.
        orders: names may be those of matrices in ``by_hand``, too.
        by_hand: dense layers that are written by hand.
    """
    modules = dict(model.named_modules())
    matrices = {one.layer.name: one for one in by_hand}
    place = {name: i for i, name in enumerate([*modules, *matrices])}
    groups: dict[tuple[Recipe, str], list[str]] = {}
    for name, what in orders:
        how = ""
        if name in matrices:
            how = _TURNED if matrices[name].turned else _MATRIX
        elif parametrize.is_parametrized(modules[name], "weight"):
            how = _THROUGH
        groups.setdefault((what, how), []).append(name)
    said: list[str] = []
    for (what, how), names in groups.items():
        names = sorted(dict.fromkeys(names), key=place.__getitem__)
        for name in names:
            what.run(matrices[name].layer.module if name in matrices else modules[name])
        who = _who(modules, names) if how in ("", _THROUGH) else ", ".join(f"`{name}`" for name in names)
        said.append(f"{who}: {what.words}{how}.")
    return said


_THROUGH: Final = ", through the parametrization"
_MATRIX: Final = ", but of weight @ x only the weights"
_TURNED: Final = ", but of x @ weight only the weights"


def _who(modules: dict[str, nn.Module], names: Sequence[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    if len(names) <= NAMED_AT_MOST:
        return listed
    kinds = [kind for kind in WEIGHTED if any(type(modules[name]) is kind for name in names)]
    if not all(type(modules[name]) in kinds for name in names):
        return listed
    chosen = set(names)
    others = [name for name, m in modules.items() if isinstance(m, tuple(kinds)) and name not in chosen]
    if len(others) > NAMED_AT_MOST:
        return listed
    classes = ", ".join(kind.__name__ for kind in kinds)
    return f"All {len(names)} layers that are {classes}" + (
        f", but not {', '.join(f'`{name}`' for name in others)}" if others else ""
    )


def understood(sentence: str) -> tuple[str, Recipe] | None:
    """Which layers a sentence of `follow` speaks of (as it says it), and what was done; None for any other sentence."""
    who, _, words = sentence.rstrip(".").partition(": ")
    for how in (_THROUGH, _MATRIX, _TURNED):
        words = words.removesuffix(how)
    for row in KINDS:
        pattern = re.sub(r"\\\{(\d)\\\}", r"(?P<n\1>[-+.\\de]+)", re.escape(row.words))
        match = re.fullmatch(pattern, words)
        if match:
            numbers = match.groupdict()
            return who, Recipe(row.name, tuple(float(numbers[key]) for key in sorted(numbers)))
    return None


def lines(changes: Sequence[str]) -> tuple[str, ...]:
    """Plain PyTorch that does what these sentences of `follow` say."""
    made: list[str] = []
    for sentence in changes:
        known = understood(sentence)
        if known is None:
            continue
        who, what = known
        names = re.findall(r"`([^`]*)`", who)
        code = [line.replace("{", "{{").replace("}", "}}") for line in what.code]
        if sentence.rstrip(".").endswith(_THROUGH):
            code = ["weight = layer.weight.clone()", *(line.replace("layer.weight", "weight") for line in code)]
            code.append("layer.weight = weight")
        if who.startswith("All "):
            classes = re.match(r"All \d+ layers that are ([\w, ]+?)(, but not |$)", who)
            kinds = [f"nn.{word}" for word in classes[1].split(", ")] if classes else []
            test = f"isinstance(layer, {kinds[0] if len(kinds) == 1 else '(' + ', '.join(kinds) + ')'})"
            test += f" and name not in {_literal(names)}" if names else ""
            made += ["for name, layer in {model}.named_modules():", f"    if {test}:", *(f"        {line}" for line in code)]
        elif sentence.rstrip(".").endswith((_MATRIX, _TURNED)):
            turned = ".T" if sentence.rstrip(".").endswith(_TURNED) else ""
            made += [f"for name in {_literal(names)}:", f"    weight = {{model}}.get_parameter(name){turned}"]
            made += ['    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")']
            made += ["    layer.weight = nn.Parameter(weight)  # in the same memory", *(f"    {line}" for line in code)]
        else:
            made += [f"for name in {_literal(names)}:", "    layer = {model}.get_submodule(name)"]
            made += [f"    {line}" for line in code]
    return ("with torch.no_grad():", *(f"    {line}" for line in made)) if made else ()


def _literal(names: Sequence[str]) -> str:
    return "(" + ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "") + ")"
