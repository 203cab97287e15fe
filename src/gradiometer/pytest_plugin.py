"""A fixture that makes a check a test. Loaded by pytest itself (an entry point); imports torch only when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from gradiometer.preflight.result import Preflight


class Check(Protocol):
    """What the fixture gives."""

    def __call__(
        self,
        model: torch.nn.Module,
        batch: Any,
        loss_fn: Callable[..., Any] | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        curvature: bool = False,
        fail_on: str = "error",
    ) -> Preflight:
        """Check a model; the arguments are those of `gradiometer.check`, and how bad a finding must be to fail the test."""
        ...


@pytest.fixture
def gradiometer_check() -> Check:
    """Fail the test if a gradient of the model vanishes or explodes before training.

    ``gradiometer_check(model, batch, loss_fn)`` returns the `gradiometer.Preflight` of a healthy model; ``fail_on="warning"``
    is stricter.
    """

    def run(
        model: torch.nn.Module,
        batch: Any,
        loss_fn: Callable[..., Any] | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        curvature: bool = False,
        fail_on: str = "error",
    ) -> Preflight:
        from gradiometer.checking import check
        from gradiometer.preflight.result import SickNetworkError
        from gradiometer.types import Severity

        found = check(model, batch, loss_fn, optimizer=optimizer, curvature=curvature)
        try:
            found.raise_if_sick(Severity(fail_on))
        except SickNetworkError as error:
            pytest.fail(f"gradiometer: {error}", pytrace=False)
        return found

    return run
