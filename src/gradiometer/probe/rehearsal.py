"""A check: the first step of a training is measured and never taken.

The observer tells a rehearsal what happens; it draws the blueprint, measures the curvature if asked, writes both beside
the record, and then either blocks for ever (`gradiometer check` stops the process from outside, so that no ``finally`` and
no handler of the user's runs) or lets go (`gradiometer.check` in code).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from gradiometer.probe import curvature
from gradiometer.probe.blueprint import KNOWN_ACTIVATIONS, Draft, Shortcut
from gradiometer.probe.safety import EventLog
from gradiometer.probe.sites import first_tensor, unit_dimension
from gradiometer.probe.spread import spread_of
from gradiometer.record.blueprint import SUFFIX, Blueprint, CurvatureFacts, Op, Spread, sample_grid

LAST: Final = 3
"""Outputs that are kept themselves, not only their statistics: those that the loss takes in."""
SENTENCE_META: Final = "The model is on the meta device: it has shapes but no weights yet."
SENTENCE_NO_GRAPH: Final = "The loss does not depend on any trainable parameter, so there is no gradient to check."


class Rehearsal:
    """What a check gathers on the way to the first optimizer step.

    Args:
        folder: run folder.
        events: log of the run.
        with_curvature: whether to measure the largest curvature.
        blocking: whether the process ends here, from outside.

    Attributes:
        refused: why the check cannot be made; empty if it can.
        done: whether everything is on disk.
        optimizer: taken where none steps by itself.
    """

    def __init__(self, folder: Path, events: EventLog, *, with_curvature: bool, blocking: bool) -> None:
        self.folder = folder
        self.refused = ""
        self.done = False
        self.optimizer: torch.optim.Optimizer | None = None
        self._events = events
        self._with_curvature = with_curvature
        self._blocking = blocking
        self._outputs: dict[int, Spread] = {}
        self._shortcuts: dict[int, Shortcut] = {}
        self._last: dict[int, Tensor] = {}
        self._sampled: Samples = {}
        self._notes: list[str] = []
        self._draft: Draft | None = None
        self._curvature: CurvatureFacts | None = None
        self._loss = float("nan")

    # ---- forward ---------------------------------------------------------------------------------------------------

    def leave(self, module: nn.Module, args: Any, output: Any, channels_first: bool) -> None:
        """A module's forward has ended."""
        if self._draft is not None or not torch.is_grad_enabled():
            return
        tensor = first_tensor(output)
        if tensor is None or tensor.grad_fn is None or tensor.is_meta or tensor.layout is not torch.strided:
            return
        order = tensor.grad_fn._sequence_nr()
        with torch.no_grad(), torch._C.DisableTorchFunction():
            if order not in self._outputs:
                self._outputs[order] = spread_of(tensor, unit_dimension(tensor.shape, channels_first))
            shortcut = _shortcut(module, args, tensor, self._sampled)
        self._last[order] = tensor.detach()
        while len(self._last) > LAST:
            self._last.pop(next(iter(self._last)))
        if shortcut is not None:
            self._shortcuts.setdefault(order, shortcut)

    def note(self, sentence: str) -> None:
        """Something that could not be measured."""
        self._notes.append(sentence)

    # ---- backward --------------------------------------------------------------------------------------------------

    def before_backward(
        self,
        roots: Sequence[Tensor],
        leaves: Sequence[Tensor],
        names: Mapping[int, tuple[str, str]],
        optimizer: torch.optim.Optimizer | None,
        scale: float,
    ) -> None:
        """The first backward pass is about to run."""
        if self._draft is not None or self.refused:
            return
        if any(r.is_meta for r in roots):
            self._refuse(SENTENCE_META)
            return
        if not leaves:
            self._refuse(SENTENCE_NO_GRAPH)
            return
        if roots[0].numel() == 1:
            self._loss = float(roots[0].detach()) / scale
        if self._with_curvature:
            facts = curvature.optimizer_facts(optimizer or self.optimizer)
            self._curvature = curvature.measure(roots, leaves, facts)
        self._draft = Draft(names, self._shortcuts, self._outputs, scale, self._last)
        self._draft.draw(roots)

    def at_step(self, optimizer: torch.optim.Optimizer | None, stem: str) -> None:
        """The optimizer is about to step, and everything else of this process is on disk.

        Args:
            optimizer: the one that would step; None where the script updates its weights itself.
            stem: of the file names of this process's record.
        """
        if self.done or self._draft is None:
            return
        self.done = True
        nodes = self._draft.finish()
        drawn = Blueprint(
            nodes=nodes,
            loss=self._loss,
            optimizer=curvature.optimizer_facts(optimizer or self.optimizer),
            curvature=self._curvature,
            notes=tuple(dict.fromkeys([*self._notes, *self._draft.notes])),
        )
        drawn.write(self.folder / f"{stem}{SUFFIX}")
        rank, world = _place()
        self._events.add("check-ready", rank=rank, world=world)
        self._block()

    def failed(self, reason: str) -> None:
        """The probe itself has failed: there is nothing to wait for."""
        self._refuse(f"Gradiometer itself failed ({reason}).")

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        self._events.add("check-refused", reason=reason)
        self._block()

    def _block(self) -> None:
        """Stand still until the process is stopped from outside, also if that never comes because the parent has died."""
        if not self._blocking:
            return
        if hasattr(signal, "pthread_sigmask"):  # a launcher that gives up must not wake the training's own handlers
            signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.valid_signals()))
        parent = os.environ.get("GRADIOMETER_CHECK_BY", "")
        while not parent.isdigit() or _is_alive(int(parent)):
            time.sleep(1.0)
        os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _place() -> tuple[int, int]:
    """Rank and number of ranks of this process."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return (int(rank), int(world)) if rank.isdigit() and world.isdigit() else (0, 1)


# ---- modules that are one operation ----------------------------------------------------------------------------------


_COMPOSED: Final[dict[type[nn.Module], str]] = {nn.Softsign: "softsign", nn.Tanhshrink: "tanhshrink"}
"""Activations that theory has a name for and that torch computes in several operations."""

Samples = dict[str, tuple[float, ...] | None]


def _shortcut(module: nn.Module, args: Any, output: Tensor, sampled: Samples) -> Shortcut | None:
    """A module that theory knows as one operation although torch computes it in several.

    Args:
        module: called with ``args``.
        args: of the call.
        output: of the call.
        sampled: functions sampled so far, by what the module says of itself (its class and its settings).
    """
    source = args[0] if isinstance(args, tuple) and args and isinstance(args[0], Tensor) else None
    if source is None or source is output or source.shape != output.shape or source.grad_fn is output.grad_fn:
        return None
    if isinstance(module, nn.RMSNorm):
        numbers = {"eps": float(module.eps) if module.eps is not None else float(torch.finfo(output.dtype).eps)}
        size = 1
        for extent in module.normalized_shape:
            size *= int(extent)
        numbers["size"] = float(size)
        if module.elementwise_affine:
            numbers["gamma_square"] = float(module.weight.detach().double().square().mean())
        return Shortcut(source.grad_fn, Op.RMS_NORM, "RMSNorm", numbers=numbers)
    if module._modules or module._parameters or module._buffers or source.grad_fn is None:
        return None
    assert output.grad_fn is not None
    if (
        output.grad_fn.name().split("Backward")[0] in KNOWN_ACTIVATIONS
        and output.grad_fn.next_functions[0][0] is source.grad_fn
    ):
        return None
    name = _COMPOSED.get(type(module))
    if name is not None:
        return Shortcut(source.grad_fn, Op.ACTIVATION, type(module).__name__, name)
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):  # a mask: the graph has it
        return None
    key = repr(module)
    if key not in sampled:
        sampled[key] = _sample(module)
    samples = sampled[key]
    if samples is None:
        return None
    return Shortcut(source.grad_fn, Op.ACTIVATION, type(module).__name__, type(module).__name__, samples)


def _sample(module: nn.Module) -> tuple[float, ...] | None:
    """Values of a function of every element on a grid; None if the module is no such function."""
    grid = torch.tensor(sample_grid(), dtype=torch.float32)
    turned = grid.flip(0).reshape(1, -1)
    try:
        with torch.random.fork_rng(devices=[]):
            values, again = module.forward(grid), module.forward(turned)
    except Exception:  # noqa: BLE001  a module that needs its own shapes, or more arguments: not a function of every element
        return None
    if not isinstance(values, Tensor) or not isinstance(again, Tensor) or values.shape != grid.shape:
        return None
    if again.shape != turned.shape or not torch.equal(again.flatten().flip(0).nan_to_num(), values.nan_to_num()):
        return None
    return tuple(values.tolist())
