"""``gradiometer.check``: a network's first step in this process, measured, forecast and judged, and nothing of it kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradiometer.preflight import Preflight, read

if TYPE_CHECKING:
    import torch


def check(
    model: torch.nn.Module,
    batch: Any,
    loss_fn: Callable[..., Any] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    curvature: bool = False,
) -> Preflight:
    """Forecast, before training, what vanishes or explodes in a model, from its weights and one batch.

    One forward and one backward pass are made. Parameters, gradients, buffers (running statistics), plain attributes of
    the modules and random numbers are afterwards what they were before.

    Args:
        model: the network, in the mode in which it will train.
        batch: ``(inputs, target)``, or the inputs alone. A tuple of inputs becomes arguments, a mapping keyword arguments.
        loss_fn: called with the output, and the target if there is one; returns one number. None where the output is the
            loss itself or has one in its ``loss``.
        optimizer: the one that will train it; its learning rate is compared with the largest stable one.
        curvature: whether to measure the largest curvature on the batch (some thirty more backward passes).

    Returns:
        A `Preflight`; ``raise_if_sick()`` makes it a test.

    Raises:
        GradiometerError: there is no model, no weight, no loss or no gradient to check.
    """
    from gradiometer.probe.checking import measure

    with tempfile.TemporaryDirectory(prefix="gradiometer-") as folder:
        measure(model, batch, loss_fn, optimizer, Path(folder), with_curvature=curvature)
        return read(Path(folder))
