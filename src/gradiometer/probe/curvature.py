"""Largest curvature of the loss on one batch: the power method on Hessian-vector products (Pearlmutter 1994)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from gradiometer.record.blueprint import NAN, CurvatureFacts, OptimizerFacts

ITERATIONS: Final = 30
"""Of the power method, at most; each costs about one backward pass of a backward pass."""
CLOSE_ENOUGH: Final = 0.01
"""Relative change of the estimate at which it is taken for good (twice in a row)."""
SECONDS: Final = 120.0
"""The longest it may take."""

Product = Callable[[list[Tensor]], list[Tensor]]


def optimizer_facts(optimizer: torch.optim.Optimizer | None) -> OptimizerFacts | None:
    """What matters of an optimizer for the largest stable learning rate."""
    if optimizer is None:
        return None
    group = optimizer.param_groups[0]
    betas = group.get("betas")
    adam = "adam" in type(optimizer).__name__.lower() and isinstance(betas, (tuple, list))
    return OptimizerFacts(
        kind=type(optimizer).__name__,
        learning_rate=float(group.get("lr", NAN)),
        momentum=float(group.get("momentum") or 0.0),
        beta1=float(betas[0]) if adam and betas else NAN,
        eps=float(group.get("eps", NAN)) if adam else NAN,
    )


def measure(roots: Sequence[Tensor], leaves: Sequence[Tensor], optimizer: OptimizerFacts | None) -> CurvatureFacts:
    """Largest eigenvalue of the Hessian of the loss at these leaves; the graph is kept for the training's own backward.

    Args:
        roots: the loss, one number.
        leaves: trainable parameters.
        optimizer: an Adam-like one asks for the preconditioned curvature too.
    """
    wanted = [p for p in leaves if p.requires_grad]
    if len(roots) != 1 or roots[0].numel() != 1 or not wanted:
        return CurvatureFacts(NAN, trouble="the loss is no single number of trainable parameters")
    try:
        with torch.enable_grad():
            found: Any = torch.autograd.grad(roots[0], wanted, create_graph=True, allow_unused=True)
            pairs = [(p, g) for p, g in zip(wanted, found, strict=True) if g is not None and g.requires_grad]
            if not pairs:
                return CurvatureFacts(0.0, iterations=0, change=0.0)
            parameters, gradients = [p for p, _ in pairs], [g for _, g in pairs]

            def product(vector: list[Tensor]) -> list[Tensor]:
                made: Any = torch.autograd.grad(gradients, parameters, vector, retain_graph=True, allow_unused=True)
                return [torch.zeros_like(p) if h is None else h for p, h in zip(parameters, made, strict=True)]

            until = time.perf_counter() + SECONDS
            largest, count, change = _largest(product, parameters, until)
            scaled = NAN
            if optimizer is not None and optimizer.beta1 == optimizer.beta1:
                # Adam's first step divides by |g| + eps: that is the metric it descends in
                root = [(g.detach().abs() + optimizer.eps).rsqrt() for g in gradients]

                def preconditioned(vector: list[Tensor]) -> list[Tensor]:
                    inner = product([r * v for r, v in zip(root, vector, strict=True)])
                    return [r * h for r, h in zip(root, inner, strict=True)]

                scaled, more, change = _largest(preconditioned, parameters, until)
                count += more
        return CurvatureFacts(largest, scaled, count, change)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return CurvatureFacts(NAN, trouble=str(error).splitlines()[0] if str(error) else type(error).__name__)


def _largest(product: Product, like: Sequence[Tensor], until: float) -> tuple[float, int, float]:
    """Largest eigenvalue, iterations, last relative change.

    Where the largest in size is negative, a shift by it finds the other end of the spectrum.
    """
    value, count, change = _power(product, like, until, 0.0)
    if value < 0.0:
        lowest = value
        shifted, more, change = _power(product, like, until, -lowest)
        return shifted + lowest, count + more, change
    return value, count, change


def _power(product: Product, like: Sequence[Tensor], until: float, shift: float) -> tuple[float, int, float]:
    # a generator of our own: the training's random numbers stay as they are
    generator = torch.Generator().manual_seed(0)
    vector: list[Any] = [torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.device, p.dtype) for p in like]
    _normalise(vector)
    value, change, steady = 0.0, NAN, 0
    for count in range(1, ITERATIONS + 1):
        made = product(vector)
        if shift:
            made = [h + shift * v for h, v in zip(made, vector, strict=True)]
        now = float(sum(torch.sum(h * v) for h, v in zip(made, vector, strict=True)))
        change = abs(now - value) / abs(now) if now else 0.0
        value, vector = now, [h.detach() for h in made]
        steady = steady + 1 if change < CLOSE_ENOUGH else 0
        if not _normalise(vector) or steady == 2 or time.perf_counter() > until:
            return value, count, change
    return value, ITERATIONS, change


def _normalise(vector: list[Any]) -> bool:
    norm = float(torch.sqrt(sum((torch.sum(v.double() ** 2) for v in vector), torch.zeros((), dtype=torch.float64))))
    if not 0.0 < norm < float("inf"):
        return False
    for v in vector:
        v.div_(norm)
    return True
