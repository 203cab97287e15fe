"""What every rule needs to judge a run network by network and to say so in words. No rule itself, and knows none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from gradiometer.record.frames import Group
from gradiometer.record.trace import SETTLE, BoolArray, IntArray, Span, Trace
from gradiometer.types import Finding, Role, Severity

_LAYERS: Final = (Role.LINEAR, Role.RECURRENT, Role.ATTENTION)
_WORD_LIMIT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Case:
    """A finding in one network, and how large its effect is in the rule's own unit (larger is worse)."""

    finding: Finding
    effect: float


def worst_case(cases: Iterable[Case | None]) -> list[Finding]:
    """The worst of the cases as a list of at most one finding: by severity, then by effect, then the first."""
    found = [case for case in cases if case is not None]
    return [min(found, key=lambda c: (c.finding.severity.rank, -c.effect)).finding] if found else []


def each_network(trace: Trace, judge: Callable[[Trace, IntArray], Case | None]) -> list[Finding]:
    """Judge each connected network on its own and report the worst.

    An actor and a critic, or two encoders of one loss, may differ in scale by any factor and be well.

    Args:
        trace: the run.
        judge: from the trace and the indices of a network's output sites, in order of execution, to a case or None.
    """
    return worst_case(judge(trace, chain) for chain in trace.chains)


def without_embeddings(trace: Trace, chain: IntArray) -> IntArray:
    """The sites of a chain whose size follows from what is before them: a table of embeddings has the size it was given."""
    return np.array([i for i in chain if trace.sites[int(i)].role is not Role.EMBEDDING], dtype=np.int64)


def hidden_sites(trace: Trace, chain: IntArray) -> IntArray:
    """The sites between embeddings and head.

    The head (the last dense layer, and what is after it) has the size of the targets, whatever the layers before it do:
    its bias alone sees to that.
    """
    index = without_embeddings(trace, chain)
    dense = [k for k, i in enumerate(index) if trace.sites[int(i)].role is Role.LINEAR]
    return index[: dense[-1]] if dense else index


def seen(trace: Trace, group: Group, index: IntArray) -> BoolArray:
    """The looks that measured any of these sites, shape (S,), also where what they found was not a number."""
    return np.asarray(np.any(trace.recorded[group][:, index], axis=1))


def severity_of(trace: Trace, span: Span, *, extreme: bool) -> Severity:
    """ERROR for what lasts to the end of a run that learns nothing, or no more than a mean, or is extreme; else WARNING.

    Args:
        trace: the run.
        span: where it held.
        extreme: so strong that it is an error whatever the loss does.
    """
    failed = trace.stalled or (trace.knows_the_mean_only and not trace.too_early)
    return Severity.ERROR if span.at_end and (extreme or failed) else Severity.WARNING


def span_from_start(trace: Trace, held: BoolArray, known: BoolArray, extreme: BoolArray) -> Span | None:
    """`Trace.span`; in a run that never learned also what held at the start and was gone within the first steps.

    Diseases change their face: a network initialised too large explodes and has saturated some steps later; one whose
    signal has collapsed is given some by its biases. What was there at the start is the cause, even if it does not last.

    Args:
        trace: the run.
        held: as for `Trace.span`.
        known: as for `Trace.span`.
        extreme: shape (S,), the looks at which it was so strong that the first one is enough.
    """
    span = trace.span(held, known)
    if span is not None or not trace.stalled or held.size < 2 or trace.steps[0] != 0:
        return span
    count = int(np.argmin(held & known))  # looks from the first one on; some look does not hold it, else there were a span
    if count >= 3 or (count >= 1 and bool(extreme[0])):
        return Span(0, int(trace.steps[count - 1]), False, np.arange(count))
    return None


def broke_the_start(trace: Trace, span: Span) -> bool:
    """Whether it held from the first steps on in a run that never learned, though it may look different by now."""
    return span.first <= SETTLE and trace.stalled


def moved(trace: Trace) -> float:
    """How far a typical weight has gone, all steps together, in its own size; NaN where no step was seen.

    Of weights that never went anywhere a loss that does not fall says nothing: the steps may have been too short.
    """
    typical = trace.typical_step[np.isfinite(trace.typical_step)]
    return float(10.0 ** np.median(typical)) * trace.steps_seen if typical.size else float("nan")


def layers_between(trace: Trace, first: int, last: int) -> int:
    """How many layers with weights lie behind site ``first`` up to and including site ``last`` of one chain, at least 1."""
    chain = trace.sites[first].chain
    inside = (trace.sites[i] for i in range(first + 1, last + 1))
    return max(sum(site.role in _LAYERS and site.chain == chain for site in inside), 1)


# ---- words -----------------------------------------------------------------------------------------------------------


def when(span: Span) -> str:
    """``from step 0 on``, ``from step 0 to step 120`` or ``at step 0``."""
    if span.at_end:
        return f"from step {span.first} on"
    return f"at step {span.first}" if span.first == span.last else f"from step {span.first} to step {span.last}"


def factor(decades: float) -> str:
    """A factor given in decades, as people write it: ``0.14``, ``230``, ``10^8``."""
    if abs(decades) >= _WORD_LIMIT:
        return f"10^{decades:.0f}"
    value = 10.0**decades
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def size(log10: float) -> str:
    """A positive number given by its log10: ``0.031``, ``2,400``, ``3e-09``; ``0`` for -inf."""
    if np.isneginf(log10):
        return "0"
    if -4.0 < log10 < 6.0:
        value = 10.0**log10
        return f"{value:,.0f}" if value >= 1000 else f"{value:.2g}" if value < 100 else f"{value:.0f}"
    return f"{10.0**log10:.1e}"


def plural(number: int, one: str, many: str) -> str:
    """``1 layer``, ``3 layers``."""
    return f"{number} {one if number == 1 else many}"
