"""Disconnected parameters: weights that no step will ever move.

What it finds:
    Parameters that get a gradient but are in no optimizer; parameters in an optimizer that never get a gradient; and
    weights whose gradient is exactly zero because nothing that depends on the loss leads back to them.

Why it hurts:
    They stay what they were at the start, random numbers, and the rest of the network has to work around them. The loss
    still falls a little, so that nothing looks broken. The usual ways to get there: layers in a plain Python list, an
    optimizer that was made before the layer or from another copy of the model, `.detach()`, `.data` or a detour through
    NumPy in the forward pass, a rounding or an argmax in the middle, a layer that is built and never called.

How we tell:
    Facts of the bookkeeping, seen in every look at those parameters (or from one on) and in at least two: the gradient was
    computed and no optimizer holds the parameter; or an optimizer holds it and `.grad` is None; or a weight matrix has an
    exactly zero gradient, and so has every output before one place of the network, while just behind that place the gradient
    is as large as anywhere and no layer there is dead. A parameter that does not require a gradient was frozen on purpose
    and never counts. It is an error where these are a large share of the parameters and the training fails, or, if the
    optimizer holds them, gets less than half of the loss away; layers that are never used are a note in a training that
    goes well.

When it is wrong:
    Someone trains a new head on an old body and gives the optimizer the head only: that works, and costs a useless
    backward pass. A part of the model that another training will use. An expert that no example was ever routed to.

What helps:
    - put layers into nn.ModuleList, nn.Sequential or an attribute of the module, so that `model.parameters()` has them
    - make the optimizer after the model is complete, and add what joins later with `add_param_group`
    - look for `.detach()`, `.item()`, `.data`, `torch.no_grad()` and NumPy between these weights and the loss
    - replace a rounding or an argmax by something that has a slope (straight-through, softmax)
    - say `requires_grad_(False)` where it is meant to be frozen

References:
    Bengio, Leonard & Courville 2013 (gradients through steps); PyTorch documentation, Autograd mechanics.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gradiometer.record.frames import Flag, Group
from gradiometer.record.trace import SETTLE, BoolArray, IntArray, Trace
from gradiometer.rules.judging import Case, plural, worst_case
from gradiometer.types import Evidence, Finding, Role, Severity

NAME: Final = "disconnected-parameters"

LARGE_SHARE: Final = 0.2
"""Ours: less than a fifth of the weights left at random is no reason for a training to fail."""
FAR_FALL: Final = 0.5
"""Ours: a loss that has not halved, where an optimizer holds these weights and so somebody meant them to move."""
DRAWN_SIGMA: Final = 4.0
"""Standard errors within which the mean square of a matrix must be that of PyTorch's default, 1 / (3 fan_in)."""
DRAWN_ELEMENTS: Final = 2000
"""Elements of such matrices, together, that it takes to say so."""
MIN_LOOKS: Final = 2
"""One look is never enough: an optimizer may be made later, an expert may have no example in one batch."""
MIN_ZERO_LOOKS: Final = 3
"""For gradients that are exactly zero, which branches that start at zero have in the first step."""
STILL_LARGE: Final = -3.0
"""Decades against the largest gradient: just behind a cut the gradient is of the usual size; what fades does so bit by bit."""
COPIES: Final = 1e-6
"""Share of the second moment in which units differ, of units that are copies of each other."""
DEAD: Final = 0.99
"""Share of dead or saturated units at which the layer itself explains the zero."""

HELPS: Final = (
    "register layers with the module (nn.ModuleList, nn.Sequential), so that model.parameters() has them",
    "make the optimizer after the model is complete, or add them with add_param_group",
    "look for detach(), item(), .data, torch.no_grad() and NumPy between them and the loss",
    "call requires_grad_(False) if they are meant to stay as they are",
)

_UNOWNED: Final = ("gets a gradient but is in no optimizer", "get a gradient but are in no optimizer")
_WITHOUT: Final = ("is in the optimizer but never gets a gradient", "are in the optimizer but never get a gradient")
_SEVERED: Final = (
    "is in the optimizer, and the way from the loss back to it is cut",
    "are in the optimizer, and the way from the loss back to them is cut",
)
_UNUSED: Final = ("is in the optimizer but its layer is never used", "are in the optimizer but their layers are never used")
"""What is said of one parameter, and of several."""


def find(trace: Trace) -> list[Finding]:
    """At most one finding, of the kind that holds most parameters; see the module's text."""
    trainable = np.array([i for i in trace.parameters if trace.sites[int(i)].trainable], dtype=np.int64)
    if not trainable.size:
        return []
    looked = trace.recorded[Group.PARAMETER][:, trainable]
    moving = trace.log10_weight_gradient[:, trainable]
    unowned, without = trace.flagged(Flag.UNOWNED)[:, trainable], trace.flagged(Flag.NO_GRADIENT)[:, trainable]
    # a network whose optimizer is not stepping (the other one's turn) has no look; a parameter that got its gradient once is
    # connected, however seldom
    apart = np.count_nonzero(_to_the_end(unowned, looked) & np.isfinite(moving), axis=0) >= MIN_LOOKS
    never = _always(without & ~unowned, looked)
    ran = {(trace.sites[int(i)].model, trace.sites[int(i)].module) for i in trace.outputs}
    called = np.array([(trace.sites[int(i)].model, trace.sites[int(i)].module) in ran for i in trainable], dtype=np.bool_)
    lost = {(trace.sites[int(i)].model, trace.sites[int(i)].module) for i in _lost(trace)}
    severed = np.array([(trace.sites[int(i)].model, trace.sites[int(i)].module) in lost for i in trainable], dtype=np.bool_)
    if never.all():  # gradients that are kept somewhere else: nothing was seen of any
        never[:] = False
    cases = [
        _case(trace, trainable, apart, _to_the_end(unowned, looked), _UNOWNED),
        _case(trace, trainable, never & severed, looked, _SEVERED, certain=True),
        _case(trace, trainable, never & called & ~severed, looked, _WITHOUT),
        _case(trace, trainable, never & ~called, looked, _UNUSED, unused=True),
        _cut(trace, trainable, looked),
    ]
    return worst_case(cases)


def _lost(trace: Trace) -> IntArray:
    """Outputs that were made with a graph in every look, and no gradient ever came back along it: the way is cut behind them.

    Without a graph (under ``no_grad``) nobody meant a gradient to come.
    """
    looked = trace.recorded[Group.OUTPUT]
    graph = trace.flagged(Flag.HAS_GRAPH)
    always = (np.count_nonzero(looked, axis=0) >= MIN_LOOKS) & np.all(graph | ~looked, axis=0)
    return np.flatnonzero(always & ~trace.recorded[Group.GRADIENT].any(axis=0))


def _to_the_end(held: BoolArray, looked: BoolArray) -> BoolArray:
    """Looks from which on it held in every look at the parameter: a layer may be replaced after the optimizer was made."""
    fails = looked & ~held
    later = np.flip(np.cumsum(np.flip(fails, axis=0), axis=0), axis=0)
    return np.asarray(held & looked & (later == 0))


def _always(held: BoolArray, looked: BoolArray, least: int = MIN_LOOKS) -> BoolArray:
    """Parameters for which it held in every look at them, and in enough looks."""
    often = np.count_nonzero(looked, axis=0) >= least
    return np.asarray(often & np.all(held | ~looked, axis=0))


def _case(
    trace: Trace,
    trainable: IntArray,
    guilty: BoolArray,
    looked: BoolArray,
    what: tuple[str, str],
    *,
    unused: bool = False,
    certain: bool = False,
) -> Case | None:
    """A finding about these parameters.

    Args:
        trace: the run.
        trainable: indices of trainable parameters.
        guilty: which of them.
        looked: shape (S, trainable), the looks at them.
        what: what is said of one and of several.
        unused: their layers are never called, which may be as it should be (experts that no example is sent to).
        certain: nobody can have meant it, whatever the loss does.
    """
    if not guilty.any():
        return None
    index = trainable[guilty]
    models = {trace.sites[int(i)].model for i in index}
    beside = [int(i) for i in trainable if trace.sites[int(i)].model in models]
    # layers that no module of the model holds are models of their own: they count against everything
    beside = beside if len(beside) > len(index) else [int(i) for i in trainable]
    elements = sum(trace.sites[int(i)].units for i in index)
    share = elements / max(sum(trace.sites[i].units for i in beside), 1)
    steps = trace.steps[np.any(looked[:, guilty], axis=1)]
    first, last = int(steps[0]), int(steps[-1])
    if trace.ledger.step.size:
        last = max(last, int(trace.ledger.step[-1]))
    names = trace.names(index)
    who = f"`{names[0]}` {what[0]}" if len(names) == 1 else f"{len(names)} parameters (`{names[0]}` first) {what[1]}"
    # an optimizer that holds only a new head may be on purpose; one that holds what can never move is not
    meant = not trace.flagged(Flag.UNOWNED)[:, index].any()
    poor = bool(trace.learning.fall < FAR_FALL) and not trace.too_early
    severity = Severity.INFO if unused and trace.learned and not poor else Severity.WARNING
    fresh = not unused and _fresh(trace, index)
    if share >= LARGE_SHARE and (certain or trace.stalled or fresh or (meant and poor)):
        severity = Severity.ERROR
    percent = f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"
    stay = "the random numbers they were drawn as" if fresh else "what they are"
    sentence = f"{who}, from step {first} on: {percent} of the weights stay {stay}."
    finding = Finding(
        rule=NAME,
        severity=severity,
        confidence=0.95,
        sites=names,
        steps=(first, last),
        sentence=sentence,
        evidence=(
            Evidence(
                f"share of the trainable weights that no step moves ({plural(elements, 'element', 'elements')})",
                share,
                LARGE_SHARE,
                "our level; the bookkeeping itself is a fact",
                "a step after which they have moved",
            ),
        ),
        helps=HELPS,
        starts=names[0],
        shows=names,
        peak=first,
    )
    return Case(finding, share)


def _fresh(trace: Trace, index: IntArray) -> bool:
    """Whether parameters look as if they had been drawn and never trained: zero biases, or matrices of PyTorch's own size."""
    # the last look at each: what was trained once and then left does not look drawn any more
    seen = trace.recorded[Group.PARAMETER][:, index]
    looks = seen.shape[0] - 1 - np.argmax(seen[::-1], axis=0)
    square, count = trace.values["weight_sumsq"][looks, index], trace.values["weight_count"][looks, index]
    biases = np.array([trace.sites[int(i)].name.endswith("bias") for i in index], dtype=np.bool_)
    if np.count_nonzero(biases) >= MIN_LOOKS and bool(np.all(square[biases] == 0.0)):
        return True
    fan_in = np.array([trace.sites[int(i)].fan_in for i in index], dtype=np.float64)
    drawn = (fan_in > 0) & (count > 0)
    if np.count_nonzero(drawn) < MIN_LOOKS or float(count[drawn].sum()) < DRAWN_ELEMENTS:
        return False
    ratio = 3.0 * fan_in[drawn] * square[drawn] / count[drawn]
    return bool(np.all(np.abs(ratio - 1.0) <= DRAWN_SIGMA * np.sqrt(0.8 / count[drawn])))  # 0.8: kurtosis of the uniform law


def _cut(trace: Trace, trainable: IntArray, looked: BoolArray) -> Case | None:
    """Weight matrices whose gradient is exactly zero in every look because the way back to them is cut."""
    y = trace.log10_weight_gradient[:, trainable]
    settled = trace.steps >= SETTLE
    if np.count_nonzero(settled) < MIN_ZERO_LOOKS:
        return None
    zero = _always(np.isneginf(y), looked & settled[:, None], MIN_ZERO_LOOKS)
    if not zero.any() or zero.all():
        return None
    place = next((p for chain in trace.chains if (p := _cut_at(trace, chain, settled)) is not None), None)
    if place is None or _cancels(trace, place[1]):
        return None
    before = {(trace.sites[i].model, trace.sites[i].module) for i in place[0]}
    guilty = zero & np.array([(trace.sites[int(i)].model, trace.sites[int(i)].module) in before for i in trainable], np.bool_)
    because = f"because none passes back through `{trace.sites[place[1]].name}`"
    what = (f"has a gradient of exactly zero, {because}", f"have a gradient of exactly zero, {because}")
    return _case(trace, trainable, guilty, looked, what)


def _cancels(trace: Trace, site: int) -> bool:
    """Whether the layer behind the cut has units that are copies: errors that sum to zero over classes then cancel exactly."""
    where = (trace.sites[site].model, trace.sites[site].module)
    weights = [int(i) for i in trace.parameters if (trace.sites[int(i)].model, trace.sites[int(i)].module) == where]
    return bool((trace.unit_difference[:, weights] < COPIES).any())


def _cut_at(trace: Trace, chain: IntArray, settled: BoolArray) -> tuple[list[int], int] | None:
    """Sites before the place where the gradient ends, and the first site behind it; None if it does not end abruptly."""
    rows = trace.log10_gradient[settled][:, chain]
    known = ~np.isnan(rows)
    rows = rows[known.any(axis=1)]
    if rows.shape[0] < MIN_ZERO_LOOKS:
        return None
    known = ~np.isnan(rows)
    silent = known.any(axis=0) & np.all(np.isneginf(rows) | ~known, axis=0)
    alive = np.flatnonzero(known.any(axis=0) & ~silent)
    if not alive.size or not silent[: alive[0]].any() or silent[alive[0] :].any():
        return None
    first = int(alive[0])
    with np.errstate(invalid="ignore"):
        size = rows[:, first] - np.max(np.where(known, rows, -np.inf), axis=1)
    if not np.all(size[~np.isnan(size)] >= STILL_LARGE):
        return None
    sites = [int(i) for i in chain[: first + 1]]
    near = [i for i in sites if trace.sites[i].role is Role.ACTIVATION][-2:]
    shut = np.fmax(trace.dead_share[:, near], trace.saturated_share[:, near])
    # what gives nothing but zeros is dead, not cut off
    silent_outputs = np.isneginf(trace.log10_signal[settled][:, [*near, sites[-1]]])
    if (shut[np.isfinite(shut)] >= DEAD).any() or silent_outputs.any():
        return None
    return sites[:-1], sites[-1]
