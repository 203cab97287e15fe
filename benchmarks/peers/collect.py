"""Collects, of every optimizer of a script, the numbers of `record.Training`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from peers import taps
from peers.record import Training

FAR = 5.0  # DeepDiagnosis
LIVING, PERCENTILE = 1e-5, 0.95  # TheDeepChecker, of a neuron
SATURATION_INDEX = 0.85
BATCHES, PERIOD, ROWS = 10, 10, 4096
RANGES = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}

Row = dict[tuple[str, str], float]


@dataclass
class _Seen:
    """What is collected of one optimizer."""

    kernels: dict[int, tuple[str, bool]] = field(default_factory=dict)
    """By the identity of a weight matrix: its name, and whether its layer is fully connected. In the order of layers."""
    rows: list[Row] = field(default_factory=list)
    gradients: Row | None = None
    """Those of the step to come, where they were looked at before they were clipped."""
    weights: dict[int, Tensor] = field(default_factory=dict)
    batches: dict[str, deque[Tensor]] = field(default_factory=dict)


class Collector(taps.Listener):
    """Numbers for the published rules."""

    def __init__(self) -> None:
        self.seen: dict[int, _Seen] = {}
        self.owners: dict[int, tuple[str, nn.Module]] = {}
        """By the identity of a parameter: the name and the module it was first seen under, in the order of the calls."""
        self.names: dict[int, str] = {}
        self.rooted: dict[int, frozenset[int]] = {}
        """By the identity of a root: those of its parameters."""
        self.root = 0
        self.pending: dict[int, dict[tuple[str, str], list[Any]]] = {}
        """What roots have shown since their optimizer's last step; 0 stands for the script itself."""
        self.calls: dict[str, int] = {}
        self.loss = math.nan
        self.accuracies: list[float] = []

    # ---- the forward pass ----------------------------------------------------------------------------------------------

    def enters(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if id(root) not in self.rooted:
            prefix = f"{type(root).__name__}." if self.rooted else ""
            for name, module in root.named_modules():
                self.names.setdefault(id(module), (prefix + name).strip(".") or type(module).__name__)
            self.rooted[id(root)] = frozenset(id(p) for p in root.parameters())
        # a loss or an activation that the script calls by itself has no optimizer to be told by
        self.root = id(root) if self.rooted[id(root)] else 0
        self.calls.clear()

    def leaves(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.root = 0

    def layer(self, path: tuple[nn.Module, ...], output: Any) -> None:
        for module in path:
            for name, parameter in module.named_parameters(recurse=False):
                self.owners.setdefault(id(parameter), (f"{self._name(module)}.{name}", module))
        if isinstance(output, tuple) and output:
            output = output[0]
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            self._note(self._name(path[-1]), "output", float(output.detach().float().mean()))

    def activation(self, path: tuple[nn.Module, ...], name: str, before: Tensor, after: Tensor) -> None:
        if not after.numel():
            return
        within = self._name(path[-1]) if path else "script"
        is_module = bool(path) and name.replace("_", "") == type(path[-1]).__name__.lower()
        site = within if is_module else f"{within} > {name}"
        self.calls[site] = count = self.calls.get(site, 0) + 1
        site = site if count == 1 else f"{site} #{count}"
        after = after.float()
        if name == "relu":
            self._note(site, "closed", float((after <= 0).float().mean()))
        if name in RANGES:
            self._note(site, "far", float((before.float().abs() >= FAR).float().mean()))
        if not is_module:
            self._note(site, "output", float(after.mean()))
        self._note(site, f"batch {name}", _neurons(after))

    def _name(self, module: nn.Module) -> str:
        return self.names.get(id(module), type(module).__name__)

    def _note(self, site: str, what: str, value: Any) -> None:
        self.pending.setdefault(self.root, {}).setdefault((site, what), []).append(value)

    # ---- the backward pass and the step --------------------------------------------------------------------------------

    def accuracy(self, value: float) -> None:
        self.accuracies.append(value)

    def backward(self, loss: float) -> None:
        self.loss = loss

    def clips(self, parameters: list[Tensor]) -> None:
        held = {id(p) for p in parameters}
        for optimizer in taps.optimizers:
            own = taps.parameters(optimizer)
            if any(id(p) in held for p in own):
                seen = self._of(optimizer)
                seen.gradients = seen.gradients or self._gradients(seen, own)

    def steps(self, optimizer: Optimizer) -> None:
        seen, own = self._of(optimizer), taps.parameters(optimizer)
        seen.gradients = seen.gradients or self._gradients(seen, own)
        seen.weights = {id(p): p.detach().clone() for p in own if id(p) in seen.kernels}

    def stepped(self, optimizer: Optimizer) -> None:
        seen, own = self._of(optimizer), taps.parameters(optimizer)
        row = seen.gradients or {}
        for p in own:
            if id(p) not in seen.kernels:
                continue
            name, old, new = seen.kernels[id(p)][0], seen.weights[id(p)].float(), p.detach().float()
            row[name, "weight size"] = float(old.abs().mean())
            row[name, "weight mean"] = float(new.mean())
            row[name, "update size"] = float((new - old).abs().mean())
        row["", "loss"] = self.loss
        if self.accuracies:
            row["", "accuracy"] = float(np.mean(self.accuracies))
        row["", "finite"] = float(all(math.isfinite(row.get((n, "weight mean"), 0.0)) for n, _ in seen.kernels.values()))
        ids = {id(p) for p in own}
        for root in [r for r, held in self.rooted.items() if held & ids] + [0]:
            self._activations(seen, row, self.pending.pop(root, {}))
        seen.rows.append(row)
        seen.gradients, seen.weights = None, {}
        self.loss, self.accuracies = math.nan, []

    def _of(self, optimizer: Optimizer) -> _Seen:
        seen = self.seen.setdefault(id(optimizer), _Seen())
        if not seen.kernels:
            own = {id(p): p for p in taps.parameters(optimizer)}
            ordered = [i for i in self.owners if i in own] + [i for i in own if i not in self.owners]
            for count, i in enumerate(ordered):
                name, module = self.owners.get(i, (f"parameter {count}", None))
                if own[i].ndim >= 2:
                    seen.kernels[i] = (name, isinstance(module, nn.Linear))
        return seen

    def _gradients(self, seen: _Seen, own: Iterable[Tensor]) -> Row:
        row: Row = {}
        zeros = entries = 0
        finite = True
        for p in own:
            if p.grad is None:
                continue
            g = p.grad.detach()
            g = (g.to_dense() if g.is_sparse else g).float()
            zeros, entries = zeros + int((g == 0).sum()), entries + g.numel()
            finite = finite and bool(torch.isfinite(g).all())
            if id(p) in seen.kernels:
                name = seen.kernels[id(p)][0]
                row[name, "gradient norm"] = float(g.norm())
                row[name, "gradient mean"] = float(g.mean())
                row[name, "gradient size"] = float(g.abs().mean())
        row["", "zeros"] = zeros / entries if entries else math.nan
        row["", "finite gradients"] = float(finite)
        return row

    def _activations(self, seen: _Seen, row: Row, pending: dict[tuple[str, str], list[Any]]) -> None:
        is_check = len(seen.rows) >= PERIOD and len(seen.rows) % PERIOD == 0
        for (site, what), values in pending.items():
            if not what.startswith("batch "):
                row[site, what] = float(np.mean(values))
                continue
            kept = seen.batches.setdefault(site, deque(maxlen=BATCHES))
            kept.append(torch.cat([v for v in values if v.shape[1] == values[0].shape[1]]))
            if is_check:
                for name, value in _look(kept, what.removeprefix("batch ")).items():
                    row[site, name] = value

    # ---- what is handed on ---------------------------------------------------------------------------------------------

    def trainings(self) -> list[Training]:
        """One for every optimizer that has stepped."""
        return [_training(seen) for seen in self.seen.values() if seen.rows]


def _neurons(after: Tensor) -> Tensor:
    """A row per sample and place, a column per neuron; of many rows some, evenly."""
    if after.ndim == 4:
        after = after.movedim(1, -1)
    flat = after.reshape(-1, after.shape[-1] if after.ndim > 1 else 1)
    return flat[:: max(1, len(flat) // (ROWS // BATCHES))].clone()


def _look(batches: Iterable[Tensor], name: str) -> dict[str, float]:
    """TheDeepChecker's numbers of an activation over its last batches."""
    width = next(reversed(list(batches))).shape[1]
    values = torch.cat([b for b in batches if b.shape[1] == width])
    if not torch.isfinite(values).all():
        return {}
    looked = {"spread": float(values.std(correction=0))}
    if name in RANGES:
        low, high = RANGES[name]
        # the tool bins the outputs and weighs |bin's mean|: within a bin all are on one side of the middle, so it is this
        index = (2 * (values - low) / (high - low) - 1).abs().mean(0)
        looked["saturated"] = float((index > SATURATION_INDEX).float().mean())
    else:
        majority = torch.quantile(values.abs(), PERCENTILE, dim=0)
        looked["dead"] = float((majority < LIVING).float().mean())
    return looked


def _training(seen: _Seen) -> Training:
    rows = seen.rows
    names = [name for name, _ in seen.kernels.values()]

    def column(site: str, what: str) -> Any:
        return np.array([row.get((site, what), math.nan) for row in rows], np.float64)

    def matrix(what: str) -> Any:
        return np.stack([column(name, what) for name in names], 1) if names else np.empty((len(rows), 0))

    def sites(what: str) -> dict[str, Any]:
        found = dict.fromkeys(site for row in rows for site, w in row if w == what)
        return {site: column(site, what) for site in found}

    outputs = sites("output")
    return Training(
        kernels=tuple(names),
        dense=tuple(dense for _, dense in seen.kernels.values()),
        loss=column("", "loss"),
        accuracy=column("", "accuracy"),
        finite=(column("", "finite") == 1) & (column("", "finite gradients") != 0),
        zero_share=column("", "zeros"),
        seen=np.stack([[(n, "gradient norm") in row for row in rows] for n in names], 1).astype(np.bool_)
        if names
        else np.empty((len(rows), 0), np.bool_),
        gradient_norm=matrix("gradient norm"),
        gradient_mean=matrix("gradient mean"),
        gradient_size=matrix("gradient size"),
        weight_size=matrix("weight size"),
        update_size=matrix("update size"),
        weight_mean=matrix("weight mean"),
        outputs=outputs,
        ran={site: np.array([(site, "output") in row for row in rows]) for site in outputs},
        closed=sites("closed"),
        far_inputs=sites("far"),
        spread=sites("spread"),
        dead_neurons=sites("dead"),
        saturated_neurons=sites("saturated"),
    )
