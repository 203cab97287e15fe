"""Largest curvature of the loss on one batch, from Hessian-vector products (Pearlmutter 1994)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from gradiometer.record.blueprint import NAN, CurvatureFacts, OptimizerFacts

ITERATIONS: Final = 30
"""At most; each costs about one backward pass of a backward pass."""
CLOSE_ENOUGH: Final = 0.002
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
    """Largest eigenvalue, iterations, relative change in the last one.

    Lanczos' method: as many products as the power method needs for a rough value give a close one, and the largest
    eigenvalue is found also where a negative one is larger in size. Three vectors are kept; the copies of eigenvalues that
    come without orthogonalising again do not move the extreme ones (Paige 1980).
    """
    # a generator of our own: the training's random numbers stay as they are
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.device, p.dtype) for p in like]
    norm = _norm(vector)
    vector = [v / norm for v in vector]
    before = [torch.zeros_like(v) for v in vector]
    diagonal: list[float] = []
    beside: list[float] = []
    value, change, steady, beta = 0.0, NAN, 0, 0.0
    for count in range(1, ITERATIONS + 1):
        made = product(vector)
        alpha = float(sum(torch.sum(h.double() * v.double()) for h, v in zip(made, vector, strict=True)))
        diagonal.append(alpha)
        now = _top(diagonal, beside)
        change = abs(now - value) / abs(now) if now else 0.0
        value = now
        steady = steady + 1 if change < CLOSE_ENOUGH else 0
        rest = [h.detach() - alpha * v - beta * b for h, v, b in zip(made, vector, before, strict=True)]
        beta = _norm(rest)
        if steady == 2 or not beta > 1e-12 * max(abs(value), 1e-30) or time.perf_counter() > until:
            return value, count, change
        beside.append(beta)
        before, vector = vector, [r / beta for r in rest]
    return value, ITERATIONS, change


def _top(diagonal: Sequence[float], beside: Sequence[float]) -> float:
    """Largest eigenvalue of a small symmetric tridiagonal matrix; NaN if it has no numbers."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, beta in enumerate(beside):
        matrix[i, i + 1] = matrix[i + 1, i] = beta
    return float(torch.linalg.eigvalsh(matrix)[-1]) if bool(torch.isfinite(matrix).all()) else NAN


def _norm(vector: Sequence[Tensor]) -> float:
    return float(torch.sqrt(sum((torch.sum(v.double() ** 2).cpu() for v in vector), torch.zeros((), dtype=torch.float64))))
