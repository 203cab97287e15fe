"""TorchLens, by its one-call health report: ``trace.audit()`` of a trace with a backward pass in it.

TorchLens captures single passes, not trainings, so somebody has to choose the steps: here the first, and then those at powers
of two. Its documentation has the user call ``tl.trace(model, x)`` and ``trace.log_backward(loss)``, which would put its trace
in the place of the script's own pass. To leave the script alone, the pass is repeated on a copy of the network, with the
weights, inputs and random numbers it had; what the loss sent back into the network's outputs is sent back into the copy's,
so that every gradient in the trace is the training's own.

A finding of severity critical is an error, one of severity warning a warning: a vanishing gradient (norm below 1e-7) or a
gradient of zero is a warning of TorchLens, an exploding one (above 1e4) and NaN are critical. Of dead neurons its audit says
nothing, on purpose: one pass is too small a sample.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torchlens as tl
from torch import Tensor, nn
from torch.optim import Optimizer

from peers.attach import Attaching
from peers.record import Found, Verdict, verdict

CAPTURE = tl.options.CaptureOptions(save_grads=True, backward_ready=True, unwrap_when_done=True)


@dataclass
class _Pass:
    """A pass of the script that is to be repeated."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: Tensor
    sent_back: dict[int, Tensor] = field(default_factory=dict)
    outputs: int = 0


@dataclass
class _Watch:
    """What is known of a network: how many steps it has taken, the pass to repeat, and what the audits said."""

    step: int = 0
    next: int = 0
    audits: int = 0
    kept: _Pass | None = None
    errors: list[Found] = field(default_factory=list)
    warnings: list[Found] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Adapter(Attaching[_Watch]):
    """Audits of some of the steps of every network."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = False

    def attach(self, root: nn.Module, optimizer: Optimizer) -> _Watch:
        return _Watch()

    def enters(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.busy:
            return
        super().enters(root, args, kwargs)
        for watch in self._of_root(root):
            if watch.step == watch.next and watch.kept is None:
                with torch.no_grad():
                    watch.kept = _Pass(copy.deepcopy(root), _kept(args), _kept(kwargs), torch.get_rng_state())

    def leaves(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.busy:
            return
        for watch in self._of_root(root):
            if watch.kept is not None and not watch.kept.outputs:
                tensors = _tensors(output)
                watch.kept.outputs = len(tensors)
                for i, tensor in enumerate(tensors):
                    if tensor.requires_grad:
                        tensor.register_hook(lambda g, i=i, kept=watch.kept: kept.sent_back.setdefault(i, g.detach().clone()))

    def steps(self, optimizer: Optimizer) -> None:
        for watch in self.of(optimizer):
            if watch.kept is not None and watch.step == watch.next:
                self.busy = True
                try:
                    _audit(watch, watch.kept)
                except Exception as error:  # noqa: BLE001 - a script goes on whatever becomes of the tool
                    watch.notes.append(f"audit failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
                finally:
                    self.busy = False
                watch.next = max(1, 2 * watch.next)
            watch.kept = None

    def stepped(self, optimizer: Optimizer) -> None:
        for watch in self.of(optimizer):
            watch.step += 1

    def verdicts(self) -> list[Verdict]:
        """What the audits of each network said."""
        said = [_read(a.tool) for a in self.attached]
        return said or [Verdict(False, error="no network with an optimizer was called")]

    def _of_root(self, root: nn.Module) -> list[_Watch]:
        return [a.tool for a in self.attached if a.root is root]


def _read(watch: _Watch) -> Verdict:
    if watch.audits:
        return verdict(watch.errors, watch.warnings, watch.notes)
    return Verdict(False, error=(watch.notes or ["no step was seen"])[0])


def _audit(watch: _Watch, kept: _Pass) -> None:
    random = torch.get_rng_state()
    torch.set_rng_state(kept.random)
    try:
        with torch.enable_grad():
            trace = tl.trace(kept.model, list(kept.args), kept.kwargs or None, capture=CAPTURE)
            outputs = [trace[label].out for label in trace.output_layers]
            if len(outputs) != kept.outputs:
                watch.notes.append(f"the trace has {len(outputs)} outputs, the network {kept.outputs}")
            elif kept.sent_back:
                # its gradient in every output is what the loss of the script sent back into it
                trace.log_backward(sum((outputs[i] * g).sum() for i, g in kept.sent_back.items()))
        for severity, check, site in _findings(trace, watch.notes):
            (watch.errors if severity == "critical" else watch.warnings).append(Found(check, site, watch.step))
        watch.audits += 1
    finally:
        torch.set_rng_state(random)


def _findings(trace: Any, notes: list[str]) -> list[tuple[str, str, str]]:
    """Severity, check and place of what an audit finds."""
    try:
        return [(f.severity, f.check, ", ".join(f.ops[:1])) for f in trace.audit().findings]
    except tl.errors.TorchLensError as error:
        notes.append(f"audit() failed, its checks one by one: {str(error).split('.')[0]}")
    # 2.36.1 trips in the audit's search for NaN in the backward pass over a layer that ran more than once. These are its
    # other checks, with the severities it gives them.
    found = [(f.severity, f.check, ", ".join(f.ops[:1])) for f in tl.debug.dtype_range_audit(trace).findings]
    nan = trace.find_nan()
    if nan.found:
        found.append(("critical", "find_nan", str(nan.label)))
    flow = tl.debug.gradient_flow_audit(trace)
    for _, row in flow[flow["severity"] > 0].iterrows():
        found.append(("critical" if row["exploding"] else "warning", "gradient_flow_audit", str(row["op"])))
    return found


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


def _kept(value: Any) -> Any:
    """Inputs as they are now: detached, so that nothing flows back into the script."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _kept(v) for k, v in value.items()}
    return type(value)(_kept(v) for v in value) if type(value) in (list, tuple) else copy.deepcopy(value)
