"""What a look measures of parameters: before the step, of the step itself, and of the slope that the next step finds.

Large parameters are measured on a regular subsample (`signals.UPDATE_LIMIT` elements), but for their sums of squares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from gradiometer.probe import signals
from gradiometer.probe.recorder import Recorder
from gradiometer.probe.signals import NAN, Scalar
from gradiometer.probe.sites import MAX_SITES, Names
from gradiometer.record.frames import Flag, Group

# columns of a PARAMETER row (`frames.SIGNALS`)
_WEIGHT, _GRADIENT, _UPDATE, _ZEROS, _TINY, _UNMOVED, _BETWEEN, _MOMENT = range(1, 9)
_COLUMNS: Final = 9

_NARROW: Final = (torch.float16, torch.bfloat16)
"""Formats whose smallest normal number a gradient may reach in practice."""


@dataclass(slots=True)
class ParameterRow:
    """What one parameter gathered in this look, and what is kept of it until the step is over.

    Attributes:
        parameter: the tensor.
        index: number of its site.
        flags: of the row.
        values: columns of the row.
        before: a copy (or a regular subsample) from before the step; None once the update is known.
        has_gradient: where in that copy the gradient was not zero.
        factor: elements of the parameter for each one of the copy.
    """

    parameter: Tensor
    index: int
    flags: int
    values: list[Scalar]
    before: Tensor | None
    has_gradient: Tensor | None
    factor: float


@dataclass(slots=True)
class Trail:
    """A step just taken, to be held against the gradient that the next one finds.

    Attributes:
        step: number of the step.
        moves: parameters, how far (a subsample of) each moved, and the factor of the subsample.
        slope: inner product of the gradient before the step with the step, unclipped.
    """

    step: int
    moves: list[tuple[Tensor, Tensor, float]]
    slope: Scalar

    def overshoot(self, clipped: Scalar) -> Scalar:
        """Slope along the step at the parameters' present gradients, against the slope before it.

        Args:
            clipped: factor by which the present gradients were clipped (1 for none).
        """
        after = _slope([(p.grad, move, factor) for p, move, factor in self.moves]) / clipped
        if isinstance(after, float) and isinstance(self.slope, float):
            return after / self.slope if self.slope and math.isfinite(self.slope) else NAN
        return after / self.slope


def _slope(terms: Sequence[tuple[Tensor | None, Tensor, float]]) -> Scalar:
    total: Scalar = 0.0
    for gradient, move, factor in terms:
        if gradient is None:
            continue
        part, _ = signals.strided(gradient)
        if part.shape == move.shape:
            dot = torch.dot(part.to(move.dtype), move) * factor
            total = total + (float(dot) if dot.device.type == "cpu" else dot)
    return total


class ParameterRows:
    """The parameters of one look.

    Args:
        names: names of parameters.
        recorder: where rows go.
    """

    def __init__(self, names: Names, recorder: Recorder) -> None:
        self._names = names
        self._recorder = recorder
        self._rows: dict[int, ParameterRow] = {}

    @property
    def tensors(self) -> list[Tensor]:
        """Every parameter measured so far."""
        return [row.parameter for row in self._rows.values()]

    def measure(
        self,
        parameters: Sequence[Tensor],
        scale: float,
        gradients: Sequence[Tensor | None] | None = None,
        flag: Flag = Flag.NONE,
    ) -> None:
        """Weights and gradients of parameters before the step, and a copy to tell the update by; once per parameter.

        Args:
            parameters: leaf tensors.
            scale: loss scale still in the gradients (1 when they are unscaled).
            gradients: their gradients; None takes ``.grad``.
            flag: what else is to be said of them.
        """
        fresh = [p for p in parameters if id(p) not in self._rows]
        self._names.name_all(fresh)
        given = {id(p): g for p, g in zip(parameters, gradients, strict=True)} if gradients is not None else None
        rows: list[ParameterRow] = []
        found: list[Tensor] = []
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for parameter in fresh:
                known = self._names.parameter(parameter)
                if known is None or self._recorder.site_count > MAX_SITES:
                    continue
                gradient = parameter.grad if given is None else given[id(parameter)]
                row = self._row(parameter, self._site(parameter, known), gradient, int(flag))
                rows.append(row)
                self._rows[id(parameter)] = row
                if gradient is not None:
                    found.append(signals.plain(gradient))
            weights = signals.sums_of_squares([signals.plain(row.parameter) for row in rows])
            squares = signals.sums_of_squares(found)
            for row, weight in zip(rows, weights, strict=True):
                row.values[_WEIGHT] = weight
            with_gradient = [row for row in rows if not row.flags & Flag.NO_GRADIENT]
            for row, square in zip(with_gradient, squares, strict=True):
                row.values[_GRADIENT] = square / scale**2

    def _row(self, parameter: Tensor, index: int, gradient: Tensor | None, flags: int) -> ParameterRow:
        before, factor = signals.strided(parameter)
        values: list[Scalar] = [float(parameter.numel()), *[NAN] * (_COLUMNS - 1)]
        row = ParameterRow(parameter, index, flags, values, before, None, factor)
        if parameter.ndim > 1:
            values[_BETWEEN] = signals.between_rows(parameter)
        if gradient is None:
            row.flags |= int(Flag.NO_GRADIENT)
            return row
        if gradient.is_sparse:
            return row  # its values are those of the rows that were touched: nothing to count per element
        part, times = signals.strided(gradient)
        row.has_gradient = part != 0
        values[_ZEROS] = (part.numel() - signals.read(row.has_gradient.sum())) * times
        if gradient.dtype in _NARROW:
            small = (part.abs() < torch.finfo(gradient.dtype).smallest_normal) & row.has_gradient
            values[_TINY] = signals.read(small.sum()) * times
        return row

    def _site(self, parameter: Tensor, known: tuple[str, str, str]) -> int:
        model, module, name = known
        facts = {"kind": f"{parameter.ndim}-d", "module": module, "units": parameter.numel()}
        facts |= {"dtype": signals.format_of(parameter), "shape": list(parameter.shape)}
        return self._recorder.site(model, "parameter", name, trainable=parameter.requires_grad, **facts)

    def gradient_norm(self) -> Scalar:
        """Global norm of the gradients measured in this look; NaN without any."""
        squares = [r.values[_GRADIENT] for r in self._rows.values() if not r.flags & Flag.NO_GRADIENT]
        if not squares or any(isinstance(s, Tensor) for s in squares):
            return NAN
        return math.sqrt(math.fsum(float(s) for s in squares)) if all(math.isfinite(float(s)) for s in squares) else NAN

    def measure_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """How the gradients that are about to be used compare with the second moments an Adam-like optimizer holds.

        With the moment that this step makes of them, as in RMS_t of Wortsman et al. 2023.
        """
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for group in optimizer.param_groups:
                betas = group.get("betas")
                if not isinstance(betas, tuple) or len(betas) != 2:  # pyright: ignore[reportUnknownArgumentType]
                    continue
                for parameter in group["params"]:
                    row, state = self._rows.get(id(parameter)), optimizer.state.get(parameter)
                    if row is not None and parameter.grad is not None and state and "exp_avg_sq" in state:
                        row.values[_MOMENT] = _moment_ratio(parameter.grad, state, float(betas[1]), group.get("eps", 1e-8))

    def measure_updates(self, parameters: Sequence[Tensor], step: int, clipped: Scalar) -> Trail | None:
        """How far the step moved the parameters that were measured before it.

        Args:
            parameters: those that were stepped.
            step: its number.
            clipped: factor by which their gradients were clipped before it (1 for none).

        Returns:
            What the next step needs to tell an overshoot; None where no gradient is left to tell it by.
        """
        rows = [r for p in parameters if (r := self._rows.get(id(p))) is not None and r.before is not None]
        with torch.no_grad(), torch._C.DisableTorchFunction():
            moved: list[Tensor] = []
            for row in rows:
                now, _ = signals.strided(row.parameter)
                assert row.before is not None
                moved.append(now.sub_(row.before) if now.shape == row.before.shape else now.zero_())
                row.before = None
                if row.has_gradient is not None and row.has_gradient.shape == now.shape:
                    row.values[_UNMOVED] = signals.read(((now == 0) & row.has_gradient).sum()) * row.factor
                row.has_gradient = None
            for row, square in zip(rows, signals.sums_of_squares(moved), strict=True):
                row.values[_UPDATE] = square * row.factor
                row.flags |= int(Flag.ESTIMATED) if row.factor != 1.0 else 0
            if all(row.parameter.grad is None for row in rows):
                return None
            moves = [(row.parameter, move, row.factor) for row, move in zip(rows, moved, strict=True)]
            return Trail(step, moves, _slope([(p.grad, move, factor) for p, move, factor in moves]) / clipped)

    def write(self, step: int, parameters: Sequence[Tensor] | None = None) -> None:
        """Queue the rows of parameters (None: all measured)."""
        chosen = list(self._rows) if parameters is None else [id(p) for p in parameters if id(p) in self._rows]
        for key in chosen:
            row = self._rows[key]
            self._recorder.row(step, row.index, Group.PARAMETER, row.flags, list(row.values))


def _moment_ratio(gradient: Tensor, state: Mapping[str, Any], beta: float, eps: float) -> Scalar:
    g, factor = signals.strided(gradient)
    moment, _ = signals.strided(state["exp_avg_sq"])
    if g.shape != moment.shape:
        return NAN
    taken = state.get("step", 0)
    taken = float(taken) if not isinstance(taken, Tensor) or taken.device.type == "cpu" else taken
    square = g.to(moment.dtype).square_()
    moment = moment.mul_(beta).add_(square, alpha=1.0 - beta) / (1.0 - beta ** (taken + 1.0))
    return signals.read((square / moment.clamp_(min=eps**2)).sum()) * factor
