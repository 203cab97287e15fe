"""Summary: everything a report says, as values. The renderers (text, json, html) only format it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradiometer.record import frames
from gradiometer.record.frames import Flag
from gradiometer.record.run import Run
from gradiometer.record.trace import Trace
from gradiometer.rules.diagnosis import Diagnosis, examine
from gradiometer.types import Role, Severity, Site, VerdictWord


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One output site at the pinned step; NaN is unknown, -inf an exact zero.

    Attributes:
        site: the place.
        log10_signal: log10 of the root mean square of the output.
        log10_gradient: log10 of the L2 norm of d loss / d output over the batch.
        log10_backward_gain: log10 of what the site multiplies the gradient by on its way to the site before it.
        log10_forward_gain: log10 of what the site multiplies the signal of the site before it by.
    """

    site: Site
    log10_signal: float
    log10_gradient: float
    log10_backward_gain: float
    log10_forward_gain: float

    @property
    def has_weights(self) -> bool:
        """Whether it is a layer people count: dense, convolution, recurrent, attention, embedding."""
        return self.site.role in (Role.LINEAR, Role.RECURRENT, Role.ATTENTION, Role.EMBEDDING)


@dataclass(frozen=True, slots=True)
class LossFacts:
    """How the loss moved. Numbers are NaN when fewer than six finite losses were seen.

    Attributes:
        steps: steps with a finite loss.
        start, end, best: loss at the start, at the end and at its lowest (medians over a window).
        fall: (start - end) / |start|.
        learned: whether it fell clearly.
        at_chance: whether it ended at the chance level ln K of a classifier.
        skipped: steps that a gradient scaler skipped.
        clipped: steps whose gradient was clipped.
    """

    steps: int
    start: float
    end: float
    best: float
    fall: float
    learned: bool
    at_chance: bool
    skipped: int
    clipped: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What watching cost.

    Attributes:
        overhead_percent: the probe's own measured time as a percentage of the rest; NaN if nothing was seen.
        own_seconds, seconds: the probe's time, and the watched time with it.
        looks: steps that were looked at closely.
        steps: steps seen.
        bytes: size of the record.
    """

    overhead_percent: float
    own_seconds: float
    seconds: float
    looks: int
    steps: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """A run, read.

    Attributes:
        run: where it came from.
        diagnosis: verdict and findings.
        sentence: the verdict in words; for an unknown one the reason.
        step: the step that profiles are pinned to; -1 without any look.
        chain: number of the connected network (`Site.chain`) that the first finding is about, else the longest.
        profile: output sites at that step, in order of execution.
        loss, cost: facts.
        notes: what could not be measured, in sentences.
    """

    run: Run
    diagnosis: Diagnosis
    sentence: str
    step: int
    chain: int
    profile: tuple[ProfileRow, ...]
    loss: LossFacts
    cost: Cost
    notes: tuple[str, ...]

    @property
    def trace(self) -> Trace:
        """The numbers of the run."""
        return self.run.trace

    @property
    def errors(self) -> int:
        """Number of findings that are errors."""
        return sum(f.severity is Severity.ERROR for f in self.diagnosis.findings)

    @property
    def history(self) -> tuple[str, ...]:
        """Sentences about what was announced while the command ran, and what became of it."""
        found = {f.rule: f for f in self.diagnosis.findings}
        said: list[str] = []
        for entry in self.run.info.get("announced", ()):
            rule, step = str(entry.get("rule", "")), int(entry.get("step", -1))
            finding = found.get(rule)
            if finding is not None and finding.severity is Severity.ERROR:
                led = f", now seen as a symptom of {finding.because}" if finding.because else ""
                said.append(f"{rule} was announced at step {step}{led}.")
            elif self.errors:
                first = self.diagnosis.findings[0].rule
                said.append(f"{rule} was announced at step {step}; with all steps seen it is {first}.")
            else:
                said.append(f"{rule} was announced at step {step}; the training got past it.")
        return tuple(said)

    @property
    def ending(self) -> str:
        """How the command ended, if not well; empty if well, still going on or unknown."""
        status = self.run.info.get("status")
        return f"The command ended with status {status}." if status else ""

    @property
    def command(self) -> str:
        """The command, quoted for a shell in the directory it was started from: paths below it are relative."""
        here = str(self.run.info.get("cwd", "")).rstrip("/") + "/"
        words = [str(word) for word in self.run.info.get("command", [])]
        return shlex.join(word.removeprefix(here) if len(here) > 1 else word for word in words)

    @property
    def environment(self) -> Mapping[str, Any]:
        """Versions and machine, for the line that reproduces the run."""
        process = self.run.process
        keys = ("python", "torch", "platform", "threads", "world_size")
        return {"gradiometer": self.run.info.get("gradiometer", "?"), **{k: process[k] for k in keys if k in process}}


def summarise(run: Run, silence: str = "") -> Summary:
    """Read a run.

    Args:
        run: from `gradiometer.load`.
        silence: how the command ended and why so little was measured, from `gradiometer.launch.explain_silence`; said
            where the verdict is unknown or the probe failed.
    """
    trace = run.trace
    diagnosis = examine(trace)
    look = _pinned_look(trace, diagnosis)
    sentence, notes = diagnosis.sentence, trace.notes
    if silence and diagnosis.verdict is VerdictWord.UNKNOWN:
        sentence = f"{silence} {diagnosis.sentence}" if trace.steps_seen else silence
    elif silence and any(e.get("event") == "probe-failed" for e in trace.events):
        notes = (silence, *notes)
    return Summary(
        run=run,
        diagnosis=diagnosis,
        sentence=sentence,
        step=int(trace.steps[look]) if look >= 0 else -1,
        chain=_main_chain(trace, diagnosis),
        profile=profile_at(trace, look) if look >= 0 else (),
        loss=_loss_facts(trace),
        cost=_cost(run),
        notes=notes,
    )


def profile_at(trace: Trace, look: int) -> tuple[ProfileRow, ...]:
    """The output sites of one look (index into ``trace.steps``), in order of execution."""
    columns = (trace.log10_signal, trace.log10_gradient, trace.backward_gain, trace.forward_gain)
    return tuple(ProfileRow(trace.sites[i], *(float(c[look, i]) for c in columns)) for i in trace.outputs)


def _pinned_look(trace: Trace, diagnosis: Diagnosis) -> int:
    """The look at which the first finding is clearest; without any, the last look that has a gradient.

    Where most of a look is not a number (after a NaN) there is no profile to show: the last look before it that has one.
    """
    if not trace.steps.size:
        return -1
    known = np.isfinite(trace.log10_gradient[:, trace.outputs]).sum(axis=1)
    if not known.any():
        known = np.isfinite(trace.log10_signal[:, trace.outputs]).sum(axis=1)
    full = np.flatnonzero(known > known.max() // 2)
    if not full.size:
        return int(trace.steps.size) - 1
    if not diagnosis.findings:
        return int(full[-1])
    finding = diagnosis.findings[0]
    step = finding.peak if finding.peak >= 0 else finding.steps[0]
    before = full[trace.steps[full] <= step]
    return int(before[-1] if before.size else full[0])


def _main_chain(trace: Trace, diagnosis: Diagnosis) -> int:
    chain_of = {trace.sites[i].name: trace.sites[i].chain for i in trace.outputs}
    for finding in diagnosis.findings:
        for name in (finding.starts, *finding.sites):
            if name in chain_of:
                return chain_of[name]
    return trace.sites[int(trace.chains[0][0])].chain if trace.chains else 0


def _loss_facts(trace: Trace) -> LossFacts:
    moved, ledger = trace.learning, trace.ledger
    skipped = clipped = 0
    if ledger.step.size:
        skipped = int(np.count_nonzero(ledger.has(Flag.SKIPPED)))
        with np.errstate(invalid="ignore"):
            clipped = int(np.count_nonzero(ledger["grad_norm"] > ledger["clip_threshold"]))
    return LossFacts(
        moved.steps, moved.start, moved.end, moved.best, moved.fall, trace.learned, trace.at_chance, skipped, clipped
    )


def _cost(run: Run) -> Cost:
    trace = run.trace
    size = sum(p.stat().st_size for f in frames.rank_files(run.folder) for p in (f, frames.sites_path(f)) if p.exists())
    seconds = own = math.nan
    if trace.ledger.step.size:
        seconds, own = float(trace.ledger["seconds"][-1]), float(trace.ledger["own_seconds"][-1])
    return Cost(trace.overhead_percent, own, seconds, int(trace.steps.size), trace.steps_seen, size)
