"""Which schemes of `initialise` to try for which symptoms: a reading of the record, no change to anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from gradiometer.record.frames import Group
from gradiometer.record.trace import Trace
from gradiometer.remedies.base import Symptoms
from gradiometer.types import Finding, Place, Role, Treatment

ALONG_DEPTH: Final = (
    *("vanishing-gradient", "exploding-gradient", "input-blindness", "signal-collapse", "signal-explosion"),
    *("poor-initialization", "saturated-units", "dead-units", "plateau"),
)
THROUGH_TIME: Final = ("vanishing-through-time", "exploding-through-time")
OTHERS: Final = ("symmetric-initialization", "shattered-gradient", "attention-collapse", "nonfinite")
ANSWERED: Final = (*ALONG_DEPTH, *THROUGH_TIME, *OTHERS)
"""Rules that other numbers to start from can answer."""
GROWS: Final = ("exploding-gradient", "signal-explosion", "nonfinite")

SHIFTED: Final = ("sigmoid", "hardsigmoid", "softplus", "logsigmoid")
"""Activations that have something in common for all inputs."""
BOUNDED: Final = ("tanh", "hardtanh", "softsign", "erf", "sin")
HELD: Final = ("elu", "selu", "celu")
"""Unbounded and smooth, and signals stay where the gradient does."""
RECTIFIERS: Final = ("relu", "leakyrelu", "prelu", "rrelu", "threshold")
PLAIN_CONTAINERS: Final = ("Sequential", "ModuleList", "ModuleDict")

DEEP_BOUNDED: Final = 30
"""Ours: layers from which the unevenness of Gaussian weights costs more than their stronger signal gains."""
DEEP_RECTIFIED: Final = 25
"""Ours: layers from which the gradients of a plain ReLU network are noise (Balduzzi et al. 2017: a half-life of a few)."""
DEEP_SMOOTH: Final = 20
"""Ours: layers from which the size at which GELU and SiLU keep a gradient is not that at which they keep a signal."""
MOST: Final = 3


@dataclass(frozen=True, slots=True)
class _Look:
    """What kind of network it is.

    Attributes:
        activation: its most frequent one, without underscores; empty if it has none.
        depth: hidden layers of its longest chain.
        normed: whether at least half of its layers have a normalisation.
        recurrent: whether something in it is run over time.
        blocks: whether it is built of several blocks of a kind of their own, which may have shortcuts.
    """

    activation: str
    depth: int
    normed: bool
    recurrent: bool
    blocks: bool


def plan(symptoms: Symptoms) -> tuple[Treatment, ...]:
    """Schemes for the first finding that weights can be the cause of, the most promising first."""
    cause = _cause(symptoms)
    if cause is None:
        return ()
    schemes = dict.fromkeys(_schemes(cause, _look(symptoms.trace), symptoms.trace))
    return tuple(Treatment("initialise", {"scheme": scheme}) for scheme in list(schemes)[:MOST])


def _cause(symptoms: Symptoms) -> Finding | None:
    """The first finding that is answered and not a consequence of one that is not."""
    return next((f for f in symptoms.findings if f.rule in ANSWERED and (not f.because or f.because in ANSWERED)), None)


def _look(trace: Trace) -> _Look:
    sites = [s for s in trace.sites if s.place is Place.OUTPUT]
    kinds = Counter(s.kind.lower().removesuffix("()").replace("_", "") for s in sites if s.role is Role.ACTIVATION)
    layers = len({(s.model, s.module) for s in sites if s.role is Role.LINEAR})
    norms = len({(s.model, s.module) for s in sites if s.role is Role.NORM})
    containers = Counter(s.kind for s in sites if s.role is Role.CONTAINER and s.kind not in PLAIN_CONTAINERS)
    longest = trace.chains[0] if trace.chains else ()
    return _Look(
        activation=kinds.most_common(1)[0][0] if kinds else "",
        depth=sum(trace.sites[int(i)].role is Role.LINEAR for i in longest) - 1,
        normed=norms > 0 and 2 * norms >= layers,
        recurrent=any(s.role is Role.RECURRENT for s in sites) or bool(trace.unrolled),
        blocks=any(count > 1 for count in containers.values()),
    )


def _schemes(cause: Finding, look: _Look, trace: Trace) -> tuple[str, ...]:
    own = _for_activation(look)
    if cause.rule in THROUGH_TIME:
        return ("recurrent", "default") if look.recurrent else ()
    if cause.rule == "symmetric-initialization":
        return (*(("he",) if look.activation in RECTIFIERS else ()), "xavier", "default", *own)
    if cause.rule == "attention-collapse":
        return ("default", "xavier", *(("gpt",) if look.blocks else ()))
    if cause.rule == "shattered-gradient":
        rectified = look.activation in RECTIFIERS and not look.blocks
        return ("mirrored",) if rectified else ("depth-scaled", "skipinit") if look.blocks else own
    if cause.rule == "nonfinite" and not _from_the_start(trace):
        return ()
    if look.recurrent:
        return ("recurrent", *own, "default")
    if look.blocks and not look.normed and cause.rule in GROWS:
        return ("critical", "skipinit", "depth-scaled")
    if look.normed and look.activation not in SHIFTED:
        # a normalisation undoes the size of the weights before it
        return ("depth-scaled", "gpt", "default") if look.blocks else ("default",) if cause.rule == "plateau" else ()
    if cause.rule == "dead-units":
        return (*own[:2], "default")
    if cause.rule == "saturated-units":
        return ("lsuv", *own)  # it sees data that are out of scale
    return (*own[:2], "default") if cause.rule in ("plateau", "nonfinite") else own


def _for_activation(look: _Look) -> tuple[str, ...]:
    if look.activation in SHIFTED:
        return ("lsuv", "critical", "centred-sigmoid")
    if look.activation in BOUNDED:
        return ("orthogonal", "critical", "xavier") if look.depth >= DEEP_BOUNDED else ("critical", "xavier", "orthogonal")
    if look.activation in RECTIFIERS:
        return ("mirrored", "he", "lsuv") if look.depth >= DEEP_RECTIFIED and not look.blocks else ("he", "lsuv", "mirrored")
    if look.activation in HELD:
        return ("orthogonal", "lsuv", "critical")
    if look.activation:
        return ("orthogonal", "critical", "lsuv") if look.depth >= DEEP_SMOOTH else ("lsuv", "critical", "he")
    return ("xavier", "orthogonal", "lsuv")


def _from_the_start(trace: Trace) -> bool:
    """Whether weights or signals were not finite at the first step already."""
    first = [trace.nonfinite[group][0].any() for group in (Group.PARAMETER, Group.OUTPUT) if trace.steps.size]
    return bool(trace.steps.size and trace.steps[0] == 0 and any(first))
