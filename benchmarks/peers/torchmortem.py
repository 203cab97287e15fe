"""torchmortem, as its README attaches it: ``with Autopsy(model, optimizer=optimizer)``, ``autopsy.step(loss=loss.item())``.

Default detectors, thresholds and sampling. A finding of severity critical is an error, one of severity warning a warning.
It judges when the training has ended; the step of a finding is where the finding's range begins.
"""

from __future__ import annotations

import logging

from torch import nn
from torch.optim import Optimizer
from torchmortem import Autopsy
from torchmortem.types import Finding, Severity

from peers.attach import Attaching
from peers.record import Found, Verdict, verdict


class Adapter(Attaching[Autopsy]):
    """One ``Autopsy`` per network."""

    def attach(self, root: nn.Module, optimizer: Optimizer) -> Autopsy:
        autopsy = Autopsy(root, optimizer=optimizer)
        autopsy.attach()
        return autopsy

    def stepped(self, optimizer: Optimizer) -> None:
        for autopsy in self.of(optimizer):
            autopsy.step(loss=self.loss)

    def verdicts(self) -> list[Verdict]:
        """What each says, once the script has ended."""
        failed = _Failures()
        logging.getLogger("torchmortem").addHandler(failed)
        for attached in self.attached:
            attached.tool.detach()
        said = [_read(a.tool, failed.messages) for a in self.attached]
        return said or [Verdict(False, error="no network with an optimizer was called")]


class _Failures(logging.Handler):
    """Keeps what goes wrong within detectors, which the package logs and goes on after."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.messages.append(f"{record.getMessage()}: {error!r}" if error else record.getMessage())


def _read(autopsy: Autopsy, notes: list[str]) -> Verdict:
    report = autopsy.get_report()
    found = report.findings if report else []
    critical = [_found(f) for f in found if f.severity is Severity.CRITICAL]
    return verdict(critical, [_found(f) for f in found if f.severity is Severity.WARNING], notes)


def _found(finding: Finding) -> Found:
    # the title names the layer as well: "Dead units in layers.3"
    return Found(
        finding.title.split(" in ")[0], ", ".join(finding.affected_layers[:3]) or finding.category, finding.step_range[0]
    )
