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
    Facts of the bookkeeping, seen in every look at those parameters and in at least two: the gradient was computed and no
    optimizer holds the parameter; or an optimizer holds it and `.grad` is None; or a weight matrix has an exactly zero
    gradient, and so has every output before one place of the network, while just behind that place the gradient is as
    large as anywhere and no layer there is dead. A parameter that does not require a gradient was frozen on purpose and
    never counts. It is an error where the training fails and these are a large share of the parameters.

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
MIN_LOOKS: Final = 2
"""One look is never enough: an optimizer may be made later, an expert may have no example in one batch."""
MIN_ZERO_LOOKS: Final = 3
"""For gradients that are exactly zero, which branches that start at zero have in the first step."""
STILL_LARGE: Final = -3.0
"""Decades against the largest gradient: just behind a cut the gradient is of the usual size; what fades does so bit by bit."""
DEAD: Final = 0.99
"""Share of dead or saturated units at which the layer itself explains the zero."""

HELPS: Final = (
    "register layers with the module (nn.ModuleList, nn.Sequential), so that model.parameters() has them",
    "make the optimizer after the model is complete, or add them with add_param_group",
    "look for detach(), item(), .data, torch.no_grad() and NumPy between them and the loss",
    "call requires_grad_(False) if they are meant to stay as they are",
)


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
    apart = _always(unowned, looked) & np.any(np.isfinite(moving), axis=0)
    never = _always(without & ~unowned, looked)
    if never.all():  # gradients that are kept somewhere else: nothing was seen of any
        never[:] = False
    cases = [
        _case(trace, trainable, apart, looked, "no optimizer holds them, though they get a gradient"),
        _case(trace, trainable, never, looked, "the optimizer holds them, but they never get a gradient"),
        _cut(trace, trainable, looked),
    ]
    return worst_case(cases)


def _always(held: BoolArray, looked: BoolArray, least: int = MIN_LOOKS) -> BoolArray:
    """Parameters for which it held in every look at them, and in enough looks."""
    often = np.count_nonzero(looked, axis=0) >= least
    return np.asarray(often & np.all(held | ~looked, axis=0))


def _case(trace: Trace, trainable: IntArray, guilty: BoolArray, looked: BoolArray, what: str) -> Case | None:
    if not guilty.any():
        return None
    index = trainable[guilty]
    models = {trace.sites[int(i)].model for i in index}
    beside = [int(i) for i in trainable if trace.sites[int(i)].model in models]
    # layers that no module of the model holds are models of their own: they count against everything
    several = beside if len(beside) > len(index) else [int(i) for i in trainable]
    elements = sum(trace.sites[int(i)].units for i in index)
    share = elements / max(sum(trace.sites[i].units for i in several), 1)
    steps = trace.steps[np.any(looked[:, guilty], axis=1)]
    first, last = int(steps[0]), int(trace.ledger.step[-1]) if trace.ledger.step.size else int(steps[-1])
    last = max(last, int(steps[-1]))
    names = trace.names(index)
    who = f"The parameter `{names[0]}`" if len(names) == 1 else f"{len(names)} parameters, `{names[0]}` first,"
    subject = what.replace("hold them", "hold it").replace("holds them", "holds it").replace("they never get", "it never gets")
    subject = subject.replace("they get", "it gets") if len(names) == 1 else what
    be = "is" if len(names) == 1 else "are"
    sentence = f"{who} {be} disconnected: {subject if len(names) == 1 else what}, from step {first} on"
    sentence += f" ({100 * share:.2g} % of the weights); no step moves {'it' if len(names) == 1 else 'them'}."
    finding = Finding(
        rule=NAME,
        severity=Severity.ERROR if trace.stalled and share >= LARGE_SHARE else Severity.WARNING,
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


def _cut(trace: Trace, trainable: IntArray, looked: BoolArray) -> Case | None:
    """Weight matrices whose gradient is exactly zero in every look because the way back to them is cut."""
    y = trace.log10_weight_gradient[:, trainable]
    settled = trace.steps >= SETTLE
    if np.count_nonzero(settled) < MIN_ZERO_LOOKS:
        return None
    zero = _always(np.isneginf(y) | ~settled[:, None], looked) & _always(np.isneginf(y), looked & settled[:, None], MIN_ZERO_LOOKS)
    if not zero.any() or zero.all():
        return None
    place = next((p for chain in trace.chains if (p := _cut_at(trace, chain, settled)) is not None), None)
    if place is None:
        return None
    before = {(trace.sites[i].model, trace.sites[i].module) for i in place[0]}
    guilty = zero & np.array([(trace.sites[int(i)].model, trace.sites[int(i)].module) in before for i in trainable], np.bool_)
    name = trace.sites[place[1]].name
    what = f"their gradient is exactly zero, because none passes back through `{name}`"
    if np.count_nonzero(guilty) == 1:
        what = what.replace("their", "its")
    return _case(trace, trainable, guilty, looked, what)


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
    if (shut[np.isfinite(shut)] >= DEAD).any():
        return None
    return sites[:-1], sites[-1]
