"""NeuralDBG, as its README attaches it: ``with NeuralDbg(model) as dbg``, ``dbg.step``, ``dbg.record_loss(loss.item())``.

Default thresholds, and the core edition, the only one that can be had: the causal engine is not published, and without it
``explain_failure()`` finds nothing for gradients and activations, because it looks for the kind of failure in the name of the
kind of event. What is read instead is what the core records of every failure: its first step and its layer
(``first_failure_step``, ``first_failure_layer``).

NeuralDBG has no severities. Of its kinds of failure these are errors here: vanishing and exploding gradients (norm below
1e-6, above 1e3), dead and anomalous activations, NaN and Inf, divergence. The milder ones are warnings: gradients it calls
saturated (norm below 1e-4), activations it calls saturated (half of the outputs of *any* layer beyond 0.95, so also of a
linear one), plateaus and spikes of the loss, shifts of a distribution. With all of them as errors, hardly a training would
be without one.
"""

from __future__ import annotations

import neuraldbg
from torch import nn
from torch.optim import Optimizer

from peers.attach import Attaching
from peers.record import Found, Verdict, verdict

ERRORS = {
    "gradient_vanishing",
    "gradient_exploding",
    "activation_dead",
    "activation_anomalous",
    "data_nan_detected",
    "data_inf_detected",
    "optimizer_diverging",
}


class Adapter(Attaching[neuraldbg.NeuralDbg]):
    """One ``NeuralDbg`` per network."""

    def attach(self, root: nn.Module, optimizer: Optimizer) -> neuraldbg.NeuralDbg:
        return neuraldbg.NeuralDbg(root).__enter__()

    def steps(self, optimizer: Optimizer) -> None:
        for dbg in self.of(optimizer):
            dbg.record_loss(self.loss)

    def stepped(self, optimizer: Optimizer) -> None:
        for dbg in self.of(optimizer):
            dbg.step += 1

    def verdicts(self) -> list[Verdict]:
        """What each says, once the script has ended."""
        for attached in self.attached:
            attached.tool.__exit__(None, None, None)
        return [_read(a.tool) for a in self.attached] or [Verdict(False, error="no network with an optimizer was called")]


def _read(dbg: neuraldbg.NeuralDbg) -> Verdict:
    failures = [Found(kind, dbg.first_failure_layer[kind], step) for kind, step in dbg.first_failure_step.items()]
    return verdict([f for f in failures if f.rule in ERRORS], [f for f in failures if f.rule not in ERRORS])
