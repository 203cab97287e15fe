"""The state machine between the taps and the record: what a step is, when to look, what to write.

A step ends with the first optimizer step after a backward pass. Optimizers that step together after one backward share
a step; optimizers that take turns (a GAN) get a step each. Without any optimizer object the backward pass is the clock.

Vocabulary: a *look* measures one step. The look of the step just closed stays as the *trailing* look until the next
backward pass, for a second optimizer that steps after the same backward, or for weights the script updates by hand.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from gradiometer.probe import graph, signals
from gradiometer.probe.look import Look, Memory
from gradiometer.probe.parameters import Trail
from gradiometer.probe.recorder import Recorder
from gradiometer.probe.rehearsal import Rehearsal
from gradiometer.probe.safety import EventLog
from gradiometer.probe.sampler import Sampler
from gradiometer.probe.signals import NAN, Scalar
from gradiometer.probe.sites import Names
from gradiometer.record.frames import LEDGER_SITE, Flag, Group

HOOK_SECONDS: Final = 2.5e-6
"""What one call of a module hook costs outside our own clock (torch's slower call path; measured with a no-op hook)."""
UNSTEPPED_BACKWARDS: Final = 256
"""Backward passes without any optimizer step after which the backward pass becomes the clock."""
EVAL_PATIENCE: Final = 2000
"""Forward calls in evaluation mode after which hooks that wait for a training forward come off until the next step."""
MAX_AUTOPSIES: Final = 3
"""Times the graph of a non-finite loss is searched for where it was born."""
MAX_TROUBLES: Final = 2000
"""Non-finite or skipped steps that are recorded whatever the thinning says."""
LOSS_JUMP: Final = 4.0
"""A loss this many times its running mean asks for a look."""


class Observer:
    """Receives what the taps see. Every method may raise; the taps guard them and account their time.

    Args:
        folder: run folder, must exist.
        sampler: decides which steps are looked at.
        set_hooks: switches the module hooks on or off.
        optimizers: optimizer objects that exist already.
        rehearsal: gathers what a check wants of the first step, which is then not taken; None in a training.
        limit: steps after which the training has gone on for long enough; None in a training that nobody stops.
        enough: called when the next step after those begins: what the script does in between (evaluate, most likely) is
            still wanted.
    """

    def __init__(
        self,
        folder: Path,
        sampler: Sampler,
        set_hooks: Callable[[bool], None],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        rehearsal: Rehearsal | None = None,
        limit: int | None = None,
        enough: Callable[[], None] | None = None,
    ) -> None:
        self.events = EventLog(folder)
        self.recorder = Recorder(folder)
        self.names = Names()
        self.own_seconds = 0.0
        self.steps_taken = 0
        self._memory = Memory(self.names, self.recorder)
        self._sampler = sampler
        self._set_hooks = set_hooks
        self._rehearsal = rehearsal
        self._limit = math.inf if limit is None else limit
        self._enough = enough
        self._live = [weakref.ref(o) for o in optimizers]
        self._optimizers_known = False
        self._compiled = False
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._began = time.perf_counter()
        self.own_seconds = 0.0
        self._step = 0
        self._hooks_on = False
        self._optimizers: dict[int, int] = {}
        self._in_backward = False
        self._in_step = False
        self._stepping: torch.optim.Optimizer | None = None
        self._last_optimizer = -1
        self._rate = NAN
        self._scale = 1.0
        self._backwards_total = 0
        self._unstepped = 0
        self._autopsies = 0
        self._troubles = 0
        self._loss_level = NAN
        self._norm_cost = 0.0
        self._look: Look | None = None
        self._trailing: Look | None = None
        self._trail: Trail | None = None
        self._burst = 0
        self._new_step()

    # ---- steps and looks -------------------------------------------------------------------------------------------

    def _new_step(self) -> None:
        self._backwards = 0
        self._stepped_inside = False
        self._losses: list[Scalar] = []
        self._grad_norm: Scalar = NAN
        self._clip = NAN
        self._overshoot: Scalar = NAN
        self._closure = False
        self._flags = 0
        self._own_before = self.own_seconds
        elapsed = time.perf_counter() - self._began
        if self._step >= self._limit:
            self._look = None  # it will not be taken
        elif self._burst > 0 or self._sampler.look_at(self._step, elapsed, self.own_seconds, self.recorder.stride):
            # optimizers that take turns are looked at one after the other: one half of a GAN says little
            self._burst = min(len(self._optimizers), 3) - 1 if self._burst <= 0 else self._burst - 1
            self._look = Look(self._step, self._memory)
        else:
            self._look = None
        self._memory.new_look(self._look)
        self._hooks(self._look is not None)

    def _close_step(self, flags: int, optimizer: int = -1) -> None:
        """Write the current step and begin the next."""
        look = self._look
        loss = self._loss()
        flags |= self._flags
        if look is not None:
            flags |= int(Flag.SAMPLED)
            if isinstance(self._grad_norm, float) and math.isnan(self._grad_norm):
                self._grad_norm = look.parameters.gradient_norm()
            self.own_seconds += look.hook_seconds + look.hook_calls * HOOK_SECONDS
        if isinstance(loss, float) and self._losses and not math.isfinite(loss):
            flags |= int(Flag.NONFINITE)
        trouble = bool(flags & int(Flag.NONFINITE | Flag.SKIPPED)) and self._troubles < MAX_TROUBLES
        self._troubles += trouble
        important = look is not None or trouble or self._step < 20
        if important or self._step % self.recorder.stride == 0:
            elapsed = time.perf_counter() - self._began
            row: list[Scalar] = [loss, self._rate, self._grad_norm, self._clip, self._scale, float(optimizer)]
            row += [elapsed, self.own_seconds, float(self._backwards), self._overshoot]
            self.recorder.row(self._step, LEDGER_SITE, Group.LEDGER, flags, row)
        if look is not None:
            look.write_outputs()
            self._note_unowned(look)
            look.parameters.write(look.step)
            self._report_failures()
        if important:
            self.recorder.flush_look()
        else:
            self.recorder.flush_if_due()
        if look is not None:
            self._sampler.looked(self._step, self.own_seconds - self._own_before, self.recorder.stride)
        self._trailing = look
        self._step += 1
        self._new_step()

    def _loss(self) -> Scalar:
        if not self._losses:
            return NAN
        total = self._losses[0]
        for value in self._losses[1:]:
            total = total + value
        return total

    @property
    def step(self) -> int:
        """How many steps are over."""
        return self._step

    @property
    def wants_module_hooks(self) -> bool:
        """Whether module hooks should be in place now."""
        return self._hooks_on

    def _hooks(self, on: bool) -> None:
        on = on and not self._compiled
        if on != self._hooks_on:
            self._set_hooks(on)
            self._hooks_on = on

    def optimizer_made(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer object exists."""
        self._live.append(weakref.ref(optimizer))

    def _find_clock(self, leaves: Sequence[Tensor]) -> None:
        """The optimizer step is the clock when a live optimizer holds a leaf of the graph; else the backward pass is."""
        self._optimizers_known = self._owner(leaves) is not None

    def _owner(self, leaves: Sequence[Tensor]) -> torch.optim.Optimizer | None:
        """A live optimizer that holds one of these leaves."""
        wanted = {id(leaf) for leaf in leaves}
        for reference in self._live:
            optimizer = reference()
            if optimizer is not None and any(id(p) in wanted for g in optimizer.param_groups for p in g["params"]):
                return optimizer
        return None

    def compiling(self) -> None:
        """torch.compile is in use. Module hooks would make it compile again, so they stay off; a check never compiles."""
        if not self._compiled and self._rehearsal is None:
            self._compiled = True
            self._hooks(False)
            self.events.note(
                "The model is compiled (torch.compile): module outputs inside are not measured, parameters are. "
                "Run once without compiling to see every layer."
            )

    def check_process(self) -> None:
        """After a fork this is another training: it gets a record of its own."""
        if os.getpid() != self._pid:
            self.recorder.check_process()
            self._memory = Memory(self.names, self.recorder)  # what it remembers has the numbers of the parent's sites
            self._sampler.restart()
            self._set_hooks(False)
            self._start()

    # ---- forward ---------------------------------------------------------------------------------------------------

    def forward_enter(self, module: nn.Module) -> None:
        """A module's forward begins (only while hooks are on)."""
        if self._look is not None:
            self._look.hook_calls += 1
            self._look.enter(module)

    def forward_leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """A module's forward has ended (only while hooks are on)."""
        look = self._look
        if look is None:
            return
        look.hook_calls += 1
        look.leave(module, output, args)
        if self._rehearsal is not None:
            self._rehearsal.leave(module, args, output, look.channels_first)
        if look.evaluations > EVAL_PATIENCE:
            look.evaluations = 0
            self._hooks(False)
            self._sampler.again()

    # ---- backward --------------------------------------------------------------------------------------------------

    def backward_begin(self, roots: Sequence[Tensor]) -> list[Tensor]:
        """A backward pass from these tensors is about to run; returns the leaves of its graph if they are wanted."""
        self.check_process()
        if self._trailing is not None:
            if not self._optimizers_known:
                self._finish_by_hand(self._trailing)
            self._trailing = None
        if self._step >= self._limit and self._enough is not None:
            self._enough()
        if self._backwards_total == 0:
            self.events.add("backward")
        self._backwards_total += 1
        self._backwards += 1
        self._in_backward = True
        self._note_loss(roots)
        look = self._look
        if look is None or look.has_gradient:
            return []  # a later micro-batch of the same step: the first one was measured
        look.loss_scale = self._scale
        leaves = look.leaves = look.read_graph(roots)
        if not self._optimizers_known:
            self._find_clock(leaves)
        if self._rehearsal is not None:
            look.muted = True  # its own backward passes are no gradients of the training
            self._rehearsal.before_backward(roots, leaves, look.names_of_nodes(), self._owner(leaves), self._scale)
            look.muted = False
        return leaves

    def backward_end(self, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None] | None = None) -> None:
        """A backward pass has ended.

        Args:
            leaves: leaves of its graph (from `backward_begin`), or the inputs of ``torch.autograd.grad``.
            gradients: their gradients where they are not in ``.grad``.
        """
        self._in_backward = False
        look = self._look
        if look is not None:
            look.end_of_pass()
            if look.has_gradient:
                self._hooks(False)
        if self._in_step:  # a closure (LBFGS): its first backward sees the weights before the step
            self._closure = True
            if look is not None:
                look.parameters.measure(self._parameters(), 1.0)
            if self._rehearsal is not None:  # the closure's first gradient: the weights have not moved yet
                self._close_step(Flag.NONE)
                self._rehearsed(self._stepping)
            return
        if self._stepped_inside:
            self._close_step(Flag.NONE, self._last_optimizer)
            return
        self._unstepped += 1
        if self._optimizers_known and self._unstepped <= UNSTEPPED_BACKWARDS:
            return
        if self._optimizers_known:
            self.events.note(
                f"backward() was called {UNSTEPPED_BACKWARDS} times in a row without an optimizer step: "
                "the gradients are computed but not used. Is optimizer.step() called?"
            )
        if look is not None:
            wanted = [p for p in leaves if gradients is not None or p.grad is not None]
            look.parameters.measure(wanted, 1.0, gradients)
        self._close_step(Flag.NO_OPTIMIZER)
        self._rehearsed(None)

    def other_gradient(self, running: bool) -> None:
        """``torch.autograd.grad`` runs for something that is no training step (a gradient penalty, say)."""
        if self._look is not None:
            self._look.muted = running

    @property
    def needs_leaf_gradients(self) -> bool:
        """Whether ``torch.autograd.grad`` with respect to leaves is the clock."""
        return not self._optimizers_known

    def _note_loss(self, roots: Sequence[Tensor]) -> None:
        root = roots[0]
        if root.numel() != 1 or torch._C._functorch.is_functorch_wrapped_tensor(root):
            return
        plain = type(root) is Tensor and root.layout is torch.strided  # the usual case, at every step: a read and no more
        value: Scalar = root.detach() if plain else signals.plain(root).reshape(())
        if root.device.type == "cpu":
            value = float(root.item() if plain else value) / self._scale
            if not math.isfinite(value):
                self._autopsy(roots)
            elif value > LOSS_JUMP * abs(self._loss_level) and self._backwards_total > 5:
                self._sampler.trouble()
            known = not math.isnan(self._loss_level) and math.isfinite(value)
            self._loss_level = 0.9 * self._loss_level + 0.1 * value if known else value
        else:
            value = value.reshape(()) / self._scale
        self._losses.append(value)

    def _autopsy(self, roots: Sequence[Tensor]) -> None:
        """The loss is not finite: find, at this very step, where that was born."""
        self._sampler.trouble()
        if self._autopsies >= MAX_AUTOPSIES:
            return
        self._autopsies += 1
        with torch.no_grad(), torch._C.DisableTorchFunction():
            nodes, leaves = graph.walk(roots)
            bad = [p for p in leaves if not bool(torch.isfinite(signals.plain(p)).all())]
            if bad:
                self.events.add(
                    "nonfinite", step=self._step, what="parameter", sites=self._names_of(bad)[:50], share=len(bad) / len(leaves)
                )
                return
            operation, parameter = graph.first_nonfinite(nodes) or ("the loss", None)
            sites = self._names_of([parameter]) if parameter is not None else []
            self.events.add("nonfinite", step=self._step, what="forward", sites=sites, operation=operation)

    def _names_of(self, parameters: Sequence[Tensor]) -> list[str]:
        self.names.name_all(parameters)
        known = [self.names.parameter(p) for p in parameters]
        return [k[2] for k in known if k is not None]

    # ---- optimizer -------------------------------------------------------------------------------------------------

    def scale(self, value: float) -> None:
        """A gradient scaler multiplies the loss by this factor."""
        self._scale = value if value > 0.0 and math.isfinite(value) else 1.0

    def scaler_stepped(self, taken_before: int) -> None:
        """A gradient scaler's step has ended; without an optimizer step inside it was skipped (an overflow)."""
        if self.steps_taken == taken_before and self._backwards:
            self._unstepped = 0
            self._close_step(Flag.SKIPPED)
            self._rehearsed(None)

    def clip_begin(self, parameters: Sequence[Tensor]) -> None:
        """The user is about to clip: the last chance to see the true gradient."""
        if self._look is not None and not self._in_backward and self._backwards:
            self._look.parameters.measure([p for p in parameters if p.grad is not None], 1.0)

    def clip_end(self, norm: Any, threshold: float) -> None:
        """The user has clipped: the norm before clipping is free."""
        if not isinstance(norm, Tensor):
            return
        norm = signals.plain(norm).reshape(())
        self._grad_norm = float(norm) if norm.device.type == "cpu" else norm
        self._clip = threshold
        self._flags |= int(Flag.PRE_CLIP)
        self._watch_norm()

    def _watch_norm(self) -> None:
        if isinstance(self._grad_norm, float) and not math.isfinite(self._grad_norm):
            self._sampler.trouble()

    def step_begin(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step."""
        self._optimizers_known = True
        self._in_step = True
        self._stepping = optimizer
        if id(optimizer) not in self._optimizers:
            self._describe(optimizer)
        partner = self._is_partner(optimizer)
        look = self._trailing if partner else self._look
        self._follow(optimizer, partner)
        # torch.amp.GradScaler hands a fused optimizer its scale for the duration of the step
        scale = getattr(optimizer, "grad_scale", None)
        factor = float(scale) if isinstance(scale, Tensor) else 1.0
        if look is not None and (self._backwards or any(p.grad is not None for p in self._parameters())):
            look.parameters.measure(self._parameters(), factor)  # else a closure (LBFGS) will run the first backward pass
            look.parameters.measure_moments(optimizer)
        elif look is None and not partner and isinstance(self._grad_norm, float) and math.isnan(self._grad_norm):
            self._take_norm(factor)
        if self._rehearsal is not None and self._backwards:
            self._rate = float(optimizer.param_groups[0].get("lr", NAN))
            if self._in_backward:
                self._rehearsal.note(
                    "The optimizer steps inside the backward pass: what lies behind its first step was not measured."
                )
            self._close_step(Flag.NONE)
            self._rehearsed(optimizer)

    def _rehearsed(self, optimizer: torch.optim.Optimizer | None) -> None:
        """In a check this is as far as it goes."""
        if self._rehearsal is not None:
            self.recorder.flush()
            self._rehearsal.at_step(optimizer, self.recorder.stem)

    def _parameters(self) -> list[Tensor]:
        """Those of the optimizer that steps; listed only when they are measured, for there may be thousands."""
        groups = self._stepping.param_groups if self._stepping is not None else []
        return [p for group in groups for p in group["params"]]

    def _is_partner(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it steps after the same backward pass as the optimizer before it, and so shares its step.

        The same optimizer stepping again without a backward pass is a step of its own: its gradients were set by hand.
        """
        index = self._optimizers.setdefault(id(optimizer), len(self._optimizers))
        return not self._backwards and self._last_optimizer >= 0 and index != self._last_optimizer

    def _describe(self, optimizer: torch.optim.Optimizer) -> None:
        """Log what an optimizer is, at its first step."""
        options: dict[str, Any] = {k: v for k, v in optimizer.param_groups[0].items() if isinstance(v, (bool, int, float))}
        if isinstance(betas := optimizer.param_groups[0].get("betas"), tuple):
            options["betas"] = [float(b) for b in betas]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        facts = {"kind": type(optimizer).__name__, "groups": len(optimizer.param_groups), "options": options}
        self.events.add("optimizer", step=self._step, index=len(self._optimizers), **facts)

    def _clipped(self) -> Scalar:
        """Factor by which the gradients of this step were clipped; 1 for none or unknown."""
        if math.isnan(self._clip):
            return 1.0
        if isinstance(self._grad_norm, float):
            usable = math.isfinite(self._grad_norm) and self._grad_norm > 0.0 and self._clip > 0.0
            return min(1.0, self._clip / self._grad_norm) if usable else 1.0
        return (self._clip / self._grad_norm).clamp(max=1.0)

    def _follow(self, optimizer: torch.optim.Optimizer, partner: bool) -> None:
        """Hold the last step that was looked at against the gradient which the very next one of its optimizer finds."""
        trail, self._trail = self._trail, self._trail if partner else None
        if trail is None or partner or not self._backwards:
            return
        if trail.step == self._step - 1 and self._last_optimizer == self._optimizers.get(id(optimizer), -1):
            with torch.no_grad(), torch._C.DisableTorchFunction():
                self._overshoot = trail.overshoot(self._clipped())

    def _note_unowned(self, look: Look) -> None:
        """Parameters whose gradient was computed and that no optimizer holds: they never move."""
        if not self._optimizers_known:
            return
        optimizers = [o for reference in self._live if (o := reference()) is not None]
        held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        unowned = [p for p in look.leaves if isinstance(p, nn.Parameter) and id(p) not in held]
        if unowned and held:
            look.parameters.measure(unowned, self._scale, flag=Flag.UNOWNED)

    def _take_norm(self, factor: float) -> None:
        now = time.perf_counter()
        if not self._sampler.norm_fits(self._norm_cost, now - self._began):
            return
        with torch.no_grad(), torch._C.DisableTorchFunction():
            gradients = [signals.plain(p.grad) for p in self._parameters() if p.grad is not None]
            if gradients and len({g.device for g in gradients}) == 1:
                norms = torch._foreach_norm(gradients)
                norm = torch.linalg.vector_norm(torch.stack([n.float() for n in norms])) / factor
                self._grad_norm = float(norm) if norm.device.type == "cpu" else norm
                self._watch_norm()
        self._norm_cost = time.perf_counter() - now
        self._sampler.took_norm(self._norm_cost)

    def step_end(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped."""
        self._in_step = False
        self.steps_taken += 1
        self._unstepped = 0
        rate = optimizer.param_groups[0].get("lr", NAN)
        self._rate = float(rate)
        partner = self._is_partner(optimizer)
        look = self._trailing if partner else self._look
        trail = look.parameters.measure_updates(self._parameters(), look.step, self._clipped()) if look is not None else None
        if partner:
            if look is not None:
                look.parameters.write(look.step, self._parameters())
                self.recorder.flush_look()
            return
        self._last_optimizer = index = self._optimizers[id(optimizer)]
        if not self._closure and not self._in_backward:
            self._trail = trail
        if self._in_backward:  # an optimizer for each parameter, stepping while backward runs
            self._stepped_inside = True
            return
        found = getattr(optimizer, "found_inf", None)  # set by GradScaler on fused optimizers, which skip by themselves
        skipped = isinstance(found, Tensor) and found.device.type == "cpu" and bool(found)
        self._close_step(Flag.SKIPPED if skipped else Flag.NONE, index)

    def _finish_by_hand(self, look: Look) -> None:
        """The script updates its weights itself: the update is what changed since the last backward pass."""
        look.parameters.measure_updates(look.parameters.tensors, look.step, 1.0)
        look.parameters.write(look.step)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _report_failures(self) -> None:
        failures = self._memory.failures
        for site, why in failures.items():
            self.events.note(f"{site} could not be measured: {why}")
        if len(failures) > 200:
            raise RuntimeError("more than 200 sites could not be measured")

    def end(self) -> None:
        """The process ends or the user detaches: write what waits."""
        if os.getpid() != self._pid:
            return
        self._hooks(False)
        look = self._look
        if look is not None and (self._backwards or (look.rows and multiprocessing.parent_process() is None)):
            # measured, but the step never came: a crash, or no backward at all (in a data worker that is as it should be)
            look.write_outputs()
            look.parameters.write(look.step)
        if self._trailing is not None and not self._optimizers_known:
            self._finish_by_hand(self._trailing)
        self.recorder.close()
