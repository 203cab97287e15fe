"""What there is in a model to treat: its weighted layers in order of execution, and its residual branches. No remedy.

`read` makes one forward pass on the first batch and looks at every call of torch (see `tape`), so that functional
activations and skip connections are found too. Before the first batch is known it goes by the order of registration: then
only activations that are modules are seen, and no branches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from torch import nn

from gradiometer.remedies.anatomy import Branch as Branch
from gradiometer.remedies.anatomy import ByHand as ByHand
from gradiometer.remedies.anatomy import Layer as Layer
from gradiometer.remedies.anatomy import Reading as Reading
from gradiometer.remedies.anatomy import Weighted as Weighted
from gradiometer.remedies.anatomy import fan_in as fan_in
from gradiometer.remedies.base import WEIGHTED, Patient
from gradiometer.remedies.tape import ADDS, NORMS, POOLS, SCALES, Node, Tape, record

_MODULES: Final[tuple[tuple[type[nn.Module], str], ...]] = (
    (nn.ReLU6, "relu6"),
    (nn.ReLU, "relu"),
    (nn.Threshold, "relu"),
    (nn.LeakyReLU, "leaky_relu"),
    (nn.PReLU, "leaky_relu"),
    (nn.RReLU, "leaky_relu"),
    (nn.Sigmoid, "sigmoid"),
    (nn.Hardsigmoid, "hardsigmoid"),
    (nn.LogSigmoid, "logsigmoid"),
    (nn.Tanh, "tanh"),
    (nn.Hardtanh, "hardtanh"),
    (nn.Tanhshrink, "tanhshrink"),
    (nn.Softsign, "softsign"),
    (nn.Softplus, "softplus"),
    (nn.GELU, "gelu"),
    (nn.SiLU, "silu"),
    (nn.Mish, "mish"),
    (nn.SELU, "selu"),
    (nn.CELU, "celu"),
    (nn.ELU, "elu"),
    (nn.Hardswish, "hardswish"),
)
_NORM_MODULES: Final = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def layers(patient: Patient, sites: tuple[str, ...] = ()) -> list[Layer]:
    """Weighted layers in order of execution on the first batch (of registration before there is one).

    Args:
        patient: the model, and its first batch if it is known.
        sites: patterns of qualified names; all layers if there are none.

    Raises:
        CannotTreatError: the model fails on its first batch.
    """
    return read(patient).within(sites)


def read(patient: Patient) -> Reading:
    """Layers and residual branches of a model; see the module's text.

    Raises:
        CannotTreatError: the model fails on its first batch.
    """
    tape = record(patient)
    if tape is None:
        return Reading(tuple(_registered(patient.model)), (), executed=False)
    branches = _branches(tape)
    found, by_hand = _executed(patient.model, tape, branches)
    return Reading(tuple(found), tuple(branches), executed=True, by_hand=tuple(by_hand))


def _layer(name: str, module: Weighted) -> Layer:
    width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return Layer(name, module, width=width, fan_in=fan_in(module))


# ---- from a forward pass -----------------------------------------------------------------------------------------------


def _executed(model: nn.Module, tape: Tape, branches: list[Branch]) -> tuple[list[Layer], list[ByHand]]:
    modules = {name: m for name, m in model.named_modules() if name and isinstance(m, WEIGHTED)}
    parameters = dict(model.named_parameters())
    calls: dict[str, list[int]] = {}
    matrices: dict[tuple[str, bool], list[int]] = {}
    fed = 0  # nodes that weights further on depend on
    weighted = 0
    for i, node in enumerate(tape.nodes):
        if node.weighted:
            fed |= node.above
            weighted |= 1 << i
        if node.weighted and node.owner in modules:
            calls.setdefault(node.owner, []).append(i)
        elif node.matrix in parameters:
            matrices.setdefault((node.matrix, node.turned), []).append(i)
    inside = {name: b for b, branch in enumerate(branches) for name in branch.layers}
    lasts = {branch.last for branch in branches}

    def described(layer: Layer, numbers: list[int]) -> Layer:
        follows = _following(tape, numbers[0])
        before = _before(tape, numbers[-1])  # what a loop starts from tells nothing
        return replace(
            layer,
            activation=follows.activation if follows is not None else "linear",
            slope=follows.slope if follows is not None else 0.0,
            follower=follows.owner if follows is not None else "",
            before=before.activation if before is not None else "linear",
            before_slope=before.slope if before is not None else 0.0,
            head=layer.name not in inside and not any(fed >> n & 1 for n in numbers),
            first=not any(tape.nodes[n].above & weighted for n in numbers),
            branch=inside.get(layer.name, -1),
            branch_last=layer.name in lasts,
            normed=_normed(tape, numbers[0]),
            recurrent=any(tape.nodes[n].above & sum(1 << m for m in numbers[:k]) for k, n in enumerate(numbers) if k),
            calls=len(numbers),
        )

    found = [described(_layer(name, modules[name]), numbers) for name, numbers in calls.items()]
    # what the first batch does not reach is read as it is registered
    found += [replace(layer, head=False) for layer in _registered(model) if layer.name not in calls]
    by_hand = [
        ByHand(described(_dense(name, parameters[name], turned=turned), numbers), turned)
        for (name, turned), numbers in matrices.items()
    ]
    return found, by_hand


def _dense(name: str, matrix: nn.Parameter, *, turned: bool) -> Layer:
    """A matrix as a dense layer that shares its memory."""
    weight = matrix.detach().T if turned else matrix.detach()
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=matrix.requires_grad)
    return _layer(name, module)


def _following(tape: Tape, start: int) -> Node | None:
    """The first activation that what comes of a node goes through; None if it is a gate or there is none."""
    queue, seen = list(tape.nodes[start].users), {start}
    while queue:
        i = min(queue)
        queue.remove(i)
        if i in seen:
            continue
        seen.add(i)
        node = tape.nodes[i]
        if node.activation:
            return _ungated(tape, i)
        if node.passes or node.op in NORMS or node.op in ADDS or node.op in POOLS:
            queue.extend(node.users)
    return None


def _ungated(tape: Tape, i: int) -> Node | None:
    """The activation, unless it is multiplied by another signal (a gate); x sigmoid(x) is SiLU."""
    node = tape.nodes[i]
    for user in (tape.nodes[u] for u in node.users):
        if user.op in SCALES and len(user.inputs) > 1:
            itself = node.op == "sigmoid" and set(user.inputs) == {i, *node.inputs}
            return replace(node, activation="silu", owner="") if itself else None
    return node


def _before(tape: Tape, start: int) -> Node | None:
    """The activation that the input of a node comes from."""
    inputs = tape.nodes[start].inputs
    if not inputs:
        return None
    i = tape.back(inputs[0], lambda n: n.passes or n.op in POOLS)
    node = tape.nodes[i]
    if node.op in ("cat", "concat", "stack") and node.inputs:  # of equals
        i = tape.back(node.inputs[0], lambda n: n.passes or n.op in POOLS)
        node = tape.nodes[i]
    if node.op in SCALES and len(node.inputs) == 2:  # by hand: x sigmoid(x)
        for a, b in (node.inputs, reversed(node.inputs)):
            if tape.nodes[a].op == "sigmoid" and tape.nodes[a].inputs == [b]:
                return replace(tape.nodes[a], activation="silu", owner="")
    return node if node.activation else None


def _normed(tape: Tape, start: int) -> bool:
    """Whether a normalisation takes in what comes of a node, before anything else does something to it."""
    users = list(tape.nodes[start].users)
    while users:
        node = tape.nodes[users.pop()]
        if node.op in NORMS:
            return True
        if node.passes:
            users.extend(node.users)
    return False


# ---- residual branches -------------------------------------------------------------------------------------------------


def _branches(tape: Tape) -> list[Branch]:
    found: dict[Branch, int] = {}
    taken: set[str] = set()
    for i, node in enumerate(tape.nodes):  # inner branches are summed before outer ones
        if node.op not in ADDS or len(node.inputs) != 2:
            continue
        ends = _ends(tape, i)
        if ends is None:
            continue
        base, end = ends
        inner = [n for n in range(base + 1, end + 1) if (n == end or tape.nodes[end].above >> n & 1) and _under(tape, n, base)]
        names = dict.fromkeys(tape.nodes[n].owner for n in inner if tape.nodes[n].weighted and tape.nodes[n].owner)
        last = tape.back(end, lambda n: n.passes)
        branch = Branch(
            tuple(names),
            tape.nodes[last].owner if tape.nodes[last].weighted else "",
            tape.nodes[last].owner if tape.nodes[last].op in NORMS else "",
            any(tape.nodes[n].op in NORMS for n in inner),
        )
        found[branch] = found.get(branch, 0) + 1
    branches: list[Branch] = []
    for branch, calls in found.items():
        own = tuple(name for name in branch.layers if name not in taken)
        taken.update(own)
        branches.append(replace(branch, layers=own, calls=calls))
    return branches


def _under(tape: Tape, n: int, base: int) -> bool:
    return bool(tape.nodes[n].above >> base & 1)


def _ends(tape: Tape, add: int) -> tuple[int, int] | None:
    """(where a residual branch starts, what it adds) of a sum; None if no side is a shortcut around the other.

    The shortcut is the identity, or one layer (a projection) beside a branch of several.
    """
    a, b = tape.nodes[add].inputs
    for shortcut, end in ((a, b), (b, a)):
        base = tape.back(shortcut, lambda n: n.passes)
        if _under(tape, end, base) and _weighted_between(tape, base, end):
            return base, end
    for shortcut, end in ((a, b), (b, a)):
        through = tape.back(shortcut, lambda n: n.passes or n.op in NORMS)
        projection = tape.nodes[through]
        if not projection.weighted or not projection.inputs:
            continue
        base = tape.back(projection.inputs[0], lambda n: n.passes or n.op in POOLS)
        if not _under(tape, end, base) or _under(tape, end, through) or _weighted_between(tape, base, end) < 2:
            continue
        # in a loop over time the sum of two layers is no shortcut: the same layers stand on both sides
        if not any(n.owner == projection.owner for n in tape.nodes[base + 1 : end + 1] if n is not projection):
            return base, end
    return None


def _weighted_between(tape: Tape, base: int, end: int) -> int:
    above = tape.nodes[end].above | 1 << end
    return sum(1 for n in range(base + 1, end + 1) if above >> n & 1 and tape.nodes[n].weighted and _under(tape, n, base))


# ---- from the registration ---------------------------------------------------------------------------------------------


def _registered(model: nn.Module) -> list[Layer]:
    found: list[Layer] = []
    before, slope = "linear", 0.0
    for name, module in model.named_modules():
        if not name:
            continue
        if isinstance(module, WEIGHTED):
            made = _layer(name, module)
            found.append(replace(made, before=before if found else "linear", before_slope=slope, first=not found))
            before, slope = "", 0.0
            continue
        activation = next((word for kind, word in _MODULES if isinstance(module, kind)), "")
        if activation and found and not before:
            before, slope = activation, _module_slope(module)
            found[-1] = replace(found[-1], activation=activation, slope=slope, follower=name)
        elif isinstance(module, _NORM_MODULES) and found:
            found[-1] = replace(found[-1], normed=found[-1].normed or not found[-1].activation)
    if found:
        found[-1] = replace(found[-1], head=True)
    return found


def _module_slope(module: nn.Module) -> float:
    if isinstance(module, nn.LeakyReLU):
        return module.negative_slope
    if isinstance(module, nn.PReLU):
        return float(module.weight.detach().double().mean())
    return (module.lower + module.upper) / 2 if isinstance(module, nn.RReLU) else 0.0
