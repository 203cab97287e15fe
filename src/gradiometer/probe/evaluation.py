"""Losses that a script computes without a graph: how well the model does on data it is not trained on, most likely.

Only in trials (``GRADIOMETER_STEPS``): what a treatment does to held-out data belongs into its verdict. The loss functions
of ``torch.nn.functional`` are wrapped; the loss modules call them.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from gradiometer.probe.safety import EventLog

LOSSES: Final = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cross_entropy",
    "ctc_loss",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "margin_ranking_loss",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
)
CALLERS: Final = 3
"""Lines of the script that tell one evaluation from another: the same function may be called for two sets of data."""


@dataclass(slots=True)
class _Sum:
    total: float = 0.0
    examples: int = 0


class Evaluations:
    """Averages losses between two training steps and writes them as events ``evaluated``.

    Args:
        events: log of the run.
        step: how many training steps are over.
        quiet: whether what goes on is none of the script's own doing.
    """

    def __init__(self, events: EventLog, step: Callable[[], int], quiet: Callable[[], bool]) -> None:
        self._events = events
        self._now = step
        self._quiet = quiet
        self._step = -1
        self._sums: dict[tuple[str, str], _Sum] = {}
        self._undo: list[tuple[str, Any, Any]] = []

    def install(self) -> None:
        """Wrap the loss functions."""
        for name in LOSSES:
            original = getattr(F, name)
            wrapper = self._wrap(name, original)
            setattr(F, name, wrapper)
            self._undo.append((name, original, wrapper))

    def remove(self) -> None:
        """Take the wrappers off and write what waits."""
        for name, original, wrapper in self._undo:
            if getattr(F, name) is wrapper:
                setattr(F, name, original)
        self._undo.clear()
        self.flush()

    def flush(self) -> None:
        """Write the averages of the step that is over."""
        for (name, where), found in self._sums.items():
            mean = found.total / max(found.examples, 1)
            self._events.add_minor("evaluated", step=self._step, name=name, value=mean, where=where, examples=found.examples)
        self._sums.clear()

    def _wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def loss(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if not (torch.is_grad_enabled() or torch.compiler.is_compiling() or self._quiet()):
                self._note(name, signature.bind_partial(*args, **kwargs).arguments, result)
            return result

        return loss

    def _note(self, name: str, given: dict[str, Any], result: Any) -> None:
        first = next((v for v in given.values() if isinstance(v, Tensor)), None)
        if not isinstance(result, Tensor) or not result.numel() or result.is_meta or torch.jit.is_tracing():
            return
        if (step := self._now()) != self._step:
            self.flush()
            self._step = step
        size = int(first.shape[0]) if first is not None and first.dim() else 1
        value = float(result.detach().double().mean())
        found = self._sums.setdefault((name, _callers()), _Sum())
        found.total += value if given.get("reduction") == "sum" else value * size
        found.examples += size


def _callers() -> str:
    """The innermost lines of the script, outermost first: ``train.py:80 > train.py:52``."""
    library = os.path.dirname(torch.__file__)  # noqa: PTH120
    lines: list[str] = []
    frame = inspect.currentframe()
    while frame is not None and len(lines) < CALLERS:
        file = frame.f_code.co_filename
        if file != __file__ and not file.startswith(library):
            lines.append(f"{os.path.basename(file)}:{frame.f_lineno}")  # noqa: PTH119
        frame = frame.f_back
    return " > ".join(reversed(lines))
