"""``gradiometer.cure``: the same race within this process, for notebooks and for code that is no command."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import joblib

from gradiometer.errors import GradiometerError
from gradiometer.record.run import load
from gradiometer.record.trace import Trace
from gradiometer.trial import scratch
from gradiometer.trial.command import conclude, full_trial
from gradiometer.trial.edit import edit_for
from gradiometer.trial.prescribe import Choice, proposer
from gradiometer.trial.race import BUDGET, SEEDS, STEPS, Board, Plan, race
from gradiometer.trial.reading import as_trial
from gradiometer.trial.result import TRIAL_FILE, Cure, Edit, Ending, Given, Trial, write
from gradiometer.trial.scratch import Order

if TYPE_CHECKING:
    import torch

Build: TypeAlias = "Callable[[], tuple[torch.nn.Module, torch.optim.Optimizer]]"
Batches: TypeAlias = "Iterable[Any] | Callable[[], Iterable[Any]]"

SEED: Final = 20_240_001
"""Of the first trial; the others count on from it."""


def cure(
    build: Build,
    batches: Batches,
    loss_fn: Callable[..., Any] | None = None,
    *,
    steps: int = STEPS,
    budget: int | None = None,
    seeds: int = SEEDS,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    out: str | Path | None = None,
    board: Board | None = None,
) -> Cure:
    """Find the smallest treatment that cures a training, and prove it beside untreated runs, in this process.

    Every trial begins with ``build()`` after the global seeds have been set, so that all trials of a seed start alike; the
    streams of random numbers of the caller go on afterwards where they were.

    Args:
        build: makes a model and its optimizer anew.
        batches: batches in order, gone through again when they are over: something that can be iterated over several
            times (a list, a DataLoader), or a function that returns an iterable. A batch is ``(inputs, target)``, or the
            inputs alone; a tuple of inputs becomes arguments, a mapping keyword arguments.
        loss_fn: called with the output, and the target if there is one; returns one number. None where the output is the
            loss itself or has one in its ``loss``.
        steps: optimizer steps of a full trial.
        budget: of all trials together; twenty full trials by default.
        seeds: over which the cure must hold.
        only: remedies that may be used; all by default.
        without: remedies that may not.
        out: folder for the records; a temporary one by default, gone afterwards.
        board: kept up to date while it runs.

    Returns:
        A `Cure`; apply ``cure.prescription`` with `gradiometer.treat`.

    Raises:
        GradiometerError: an argument makes no sense, or the untreated training says nothing.
    """
    plan = Plan(steps=steps, budget=BUDGET * steps if budget is None else budget, seeds=seeds, jobs=1)
    plan.check()
    choice = Choice(tuple(only), tuple(without))
    with _folder(out) as folder, joblib.parallel_config(backend="sequential"):

        def perform(order: Order) -> Trial:
            return _perform(order, folder, build, batches, loss_fn)

        def trace_of(name: str) -> Trace:
            return load(scratch.trial_folder(folder, name) / scratch.RUN_FOLDER).trace

        raced = race(plan, perform, trace_of, proposer(choice), board)
        trial = full_trial(raced)
        found = conclude(raced, plan, folder, (), edit_for(trial, str(Path.cwd())) if trial is not None else Edit())
        return found if out is not None else replace(found, folder="")


@contextmanager
def _folder(out: str | Path | None) -> Generator[Path]:
    if out is not None:
        folder = Path(out).absolute()
        scratch.claim(folder, {"command": [], "folder": "a notebook"})
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="gradiometer-cure-") as folder:
        yield Path(folder)


# ---- one trial ---------------------------------------------------------------------------------------------------------


def _perform(order: Order, folder: Path, build: Build, batches: Batches, loss_fn: Callable[..., Any] | None) -> Trial:
    from gradiometer.probe.attach import watch

    here = scratch.trial_folder(folder, order.name)
    began = time.monotonic()
    given: list[Given] = []
    trouble, ending = "", Ending.RAN
    with _seeded(SEED + order.seed):
        model, optimizer = _built(build)
        stream = _stream(batches)
        first = next(stream)
        if order.prescription is not None:
            given, trouble = _treat(model, optimizer, order, first)
            ending = Ending.REFUSED if trouble else Ending.RAN
        with watch(model, optimizer, out=here / scratch.RUN_FOLDER, overhead=scratch.OVERHEAD):
            if not trouble:
                try:
                    _train(model, optimizer, first, stream, loss_fn, order.steps)
                except Exception as error:  # a treatment may make any code fail
                    if order.prescription is None and not _diverged(error):
                        raise
                    ending, trouble = Ending.FAILED, f"{type(error).__name__}: {error}"
    trace = load(here / scratch.RUN_FOLDER).trace
    trial = as_trial(order.name, order.prescription, order.seed, order.steps, order.bin_steps, trace, order.early)
    trial = replace(trial, ending=ending, trouble=trouble, given=tuple(given), seconds=time.monotonic() - began)
    write(here / TRIAL_FILE, trial)
    return trial


def _diverged(error: Exception) -> bool:
    """Whether an exception says that numbers are none any more, which is a disease and no mistake."""
    return any(word in str(error).lower() for word in ("nan", "inf", "finite"))


def _built(build: Build) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    import torch

    made: Any = build()
    if not (isinstance(made, tuple) and len(made) == 2):
        raise GradiometerError("build() returned no pair.", "It must return (model, optimizer), made anew each time.")
    model, optimizer = made
    if not isinstance(model, torch.nn.Module) or not isinstance(optimizer, torch.optim.Optimizer):
        kinds = f"{type(model).__name__} and {type(optimizer).__name__}"
        raise GradiometerError(f"build() returned {kinds}.", "It must return (model, optimizer), made anew each time.")
    return model, optimizer


def _treat(model: torch.nn.Module, optimizer: torch.optim.Optimizer, order: Order, batch: Any) -> tuple[list[Given], str]:
    """Give a prescription; what was done, and why not where it does not fit."""
    from gradiometer.probe.sites import unwrap
    from gradiometer.remedies.base import CannotTreatError, Patient
    from gradiometer.remedies.bedside import Bed, give, in_order, refusal, undisturbed

    assert order.prescription is not None
    inputs, _ = _parts(batch)
    patient = Patient(unwrap(model), [optimizer], _arguments(inputs))
    done: list[Given] = []
    with undisturbed(patient.model):
        for treatment in in_order(order.prescription.treatments):
            try:
                made = give(patient, treatment)
            except CannotTreatError as error:
                return done, refusal(treatment, error)
            done.append(Given(treatment.remedy, made.settings, made.changes))
    patient.inputs = None
    bed = Bed(patient)
    bed.make(patient.model, patient.on_forward)
    for each in patient.optimizers:
        bed.take_in(each)
    return done, ""


def _train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    first: Any,
    stream: Iterator[Any],
    loss_fn: Callable[..., Any] | None,
    steps: int,
) -> None:
    batch = first
    for step in range(steps):
        batch = batch if step == 0 else next(stream)
        inputs, target = _parts(batch)
        positional, named = _arguments(inputs)
        output = model(*positional, **named)
        if loss_fn is None:
            loss = getattr(output, "loss", output)
        else:
            loss = loss_fn(output, target) if _is_pair(batch) else loss_fn(output)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2


def _parts(batch: Any) -> tuple[Any, Any]:
    """Inputs and target of a batch, as `gradiometer.check` takes them."""
    return (batch[0], batch[1]) if _is_pair(batch) else (batch, None)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _stream(batches: Batches) -> Iterator[Any]:
    """Batches without end."""
    while True:
        count = 0
        for batch in batches() if callable(batches) else batches:
            count += 1
            yield batch
        if not count:
            raise GradiometerError(
                "There is no batch.", "Give what can be iterated over several times, or a function that returns an iterable."
            )


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """While the block runs the global streams of random numbers start at a seed; afterwards they go on where they were."""
    import torch

    numpy = sys.modules.get("numpy.random")
    before = random.getstate(), numpy.get_state() if numpy is not None else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.seed(seed % (1 << 32))
        try:
            yield
        finally:
            random.setstate(before[0])
            if numpy is not None and before[1] is not None:
                numpy.set_state(before[1])
