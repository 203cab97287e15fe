"""What plans read off a trace: which activations there are between hidden layers, and how many layers. No remedy, no torch."""

from __future__ import annotations

import re
from typing import Final

from gradiometer.record.trace import Trace
from gradiometer.theory import ACTIVATIONS
from gradiometer.types import Role

SATURATING: Final = frozenset(("sigmoid", "tanh", "hardtanh", "softsign", "logsigmoid", "softplus", "hardsigmoid"))
"""Flat on one side or both, with nothing like a unit slope to make up for it."""

ONE_SIDED: Final = frozenset(("sigmoid", "hardsigmoid", "softplus", "logsigmoid"))
"""Of one sign everywhere: their outputs have a mean that is larger than what varies, and deep down is all that is left."""

RECTIFIERS: Final = frozenset(("relu", "relu6"))

_WEIGHTED: Final = (Role.LINEAR, Role.RECURRENT)
_NAMES: Final = {re.sub(r"[^a-z0-9]", "", row.name): row.name for row in ACTIVATIONS if row.name != "linear"}


def theory_name(kind: str) -> str:
    """What theory calls a module or function (``Sigmoid``, ``leaky_relu()``); empty if it is no activation that it knows."""
    return _NAMES.get(re.sub(r"[^a-z0-9]", "", kind.lower()), "")


def hidden_activations(trace: Trace) -> frozenset[str]:
    """Names of the activations that are followed by a layer with weights, as theory calls them."""
    found: set[str] = set()
    for chain in trace.chains:
        sites = [trace.sites[int(i)] for i in chain]
        last = max((k for k, site in enumerate(sites) if site.role in _WEIGHTED), default=len(sites))
        found |= {theory_name(site.kind) for site in sites[:last] if site.role is Role.ACTIVATION}
    return frozenset(found - {""})


def hidden_layers(trace: Trace) -> int:
    """Layers with weights before the head, in the network that has most."""
    counts = (sum(trace.sites[int(i)].role in _WEIGHTED for i in chain) for chain in trace.chains)
    return max(max(counts, default=0) - 1, 0)


def recurrent(trace: Trace) -> bool:
    """Whether anything is run over time."""
    return bool(trace.unrolled) or any(trace.sites[int(i)].role is Role.RECURRENT for i in trace.outputs)
