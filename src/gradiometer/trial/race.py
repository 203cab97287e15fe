"""The race: experiment disposes. An untreated control, candidates by successive halving, finalists over several seeds.

Candidates come in an order, the most promising and least invasive first, and are taken in small waves: a quarter of the
steps for all of a wave, half of them for the better half, all of them for what is left (successive halving, Jamieson &
Talwalkar 2016). As soon as one leaves no doubt and nothing less invasive is left to try, no further wave begins. What won
is then held against the control over several seeds; only that makes it a cure.

No decision depends on a clock or on the order in which trials end, so one process, loky and a cluster come to the same
verdict. Trials are run by `joblib.Parallel`: whatever backend `joblib.parallel_config` names runs them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, cast

import joblib

from gradiometer.errors import GradiometerError
from gradiometer.record.trace import Trace
from gradiometer.rules.diagnosis import examine
from gradiometer.trial import verdict
from gradiometer.trial.reading import bin_steps
from gradiometer.trial.result import Arm, Candidate, Ending, NotTried, Outcome, Promise, Trial, Verdict, Word, plain
from gradiometer.trial.scratch import GRACE, PATIENCE, Order
from gradiometer.types import Finding, Prescription, Severity, VerdictWord

if TYPE_CHECKING:
    from gradiometer.remedies.base import Symptoms  # needs torch

STEPS: Final = 300
"""Optimizer steps of a trial: beyond the 200 after which a loss that has not fallen is a failure (`record.trace.PATIENCE`)."""
BUDGET: Final = 20
"""Steps of all trials together, in full trials."""
SEEDS: Final = 3
WAVE: Final = 4
"""Candidates that race each other at a time."""
RUNGS: Final = (0.25, 0.5, 1.0)
LEAST_RUNG: Final = 20
"""Steps of the shortest trial: fewer show nothing but the first batches."""
FINALISTS: Final = 2
EARNS: Final = 0.2
"""How much lower (as a logarithm) the loss must be for each level that a treatment is more invasive than another (ours)."""
ENOUGH: Final = 0.05
"""Share of the untreated loss below which a training works: what goes lower still is no reason to cut deeper (ours)."""

Perform = Callable[[Order], Trial]
Propose = Callable[["Symptoms"], tuple[Sequence[Candidate], Sequence[NotTried]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a race may cost.

    Attributes:
        steps: optimizer steps of a full trial.
        budget: of all trials together.
        seeds: of the finalists and their controls.
        jobs: trials at a time; None leaves it to `joblib.parallel_config`.
        wave: candidates that race each other at a time; with one, each is a full trial.
        any_cure: whether the first cure ends the race, however invasive.
    """

    steps: int = STEPS
    budget: int = BUDGET * STEPS
    seeds: int = SEEDS
    jobs: int | None = None
    wave: int = WAVE
    any_cure: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            GradiometerError: a number is out of range, or the budget too small to prove anything.
        """
        if self.steps < LEAST_RUNG:
            raise GradiometerError(f"--steps is {self.steps}.", f"Give at least {LEAST_RUNG}: fewer show nothing.")
        if self.seeds < 1:
            raise GradiometerError(f"--seeds is {self.seeds}.", "Give at least 1.")
        if self.jobs == 0:
            raise GradiometerError("--jobs is 0.", "Give at least 1.")
        least = self.steps * (2 * self.seeds)
        if self.budget < least:
            raise GradiometerError(
                f"A budget of {self.budget} steps is too small for trials of {self.steps} steps and {self.seeds} seeds.",
                f"Give at least {least}, fewer --steps, or fewer --seeds.",
            )


@dataclass
class Board:
    """The state of a race, for whoever shows it while it runs.

    Attributes:
        phase: what is going on, in a few words.
        spent, budget: optimizer steps.
        rows: label to what is known of it, in the order of trying.
        running: trials that were handed out and are not back.
        control: the untreated run; None before it is there.
        back: called with every trial that comes back.
    """

    phase: str = "the untreated run"
    spent: int = 0
    budget: int = 0
    rows: dict[str, Row] = field(default_factory=dict[str, "Row"])
    running: dict[str, Order] = field(default_factory=dict[str, Order])
    control: Trial | None = None
    back: Callable[[Trial], object] | None = None


@dataclass
class Row:
    """A candidate on the board.

    Attributes:
        candidate: itself.
        steps: of its longest trial.
        loss: at the end of that.
        state: in a word or two.
        verdict: once there is one.
    """

    candidate: Candidate
    steps: int = 0
    loss: float = math.nan
    state: str = "waits"
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Raced:
    """What a race showed.

    Attributes:
        outcome: in a word.
        sentence: in one or two sentences.
        control: untreated runs, one for each seed.
        arms: candidates that were tried, the best first.
        not_tried: what was not, and why.
        best: position of the cure in ``arms``; -1 without one.
        spent: optimizer steps.
        steps: of a full trial: fewer than planned where the training is shorter.
    """

    outcome: Outcome
    sentence: str
    control: tuple[Trial, ...]
    arms: tuple[Arm, ...]
    not_tried: tuple[NotTried, ...]
    best: int
    spent: int
    steps: int


def race(
    plan: Plan,
    perform: Perform,
    trace_of: Callable[[str], Trace],
    propose: Propose,
    board: Board | None = None,
) -> Raced:
    """Find the smallest treatment that cures a training.

    An interruption (Ctrl-C) ends it with what is known by then.

    Args:
        plan: what it may cost.
        perform: runs a trial; joblib carries it to wherever trials are run.
        trace_of: the record of a finished trial, by its name.
        propose: candidates in the order in which they should be tried, and what is not tried.
        board: kept up to date.

    Raises:
        GradiometerError: the untreated run says nothing (it crashed, or trained nothing), or the budget is too small.
    """
    plan.check()
    run = _Race(plan, perform, trace_of, propose, board if board is not None else Board())
    run.board.budget = plan.budget
    try:
        return run.whole()
    except KeyboardInterrupt:
        return run.result(Outcome.INTERRUPTED, "Interrupted; the same command with the same --out goes on from here.")


class _Race:
    def __init__(self, plan: Plan, perform: Perform, trace_of: Callable[[str], Trace], propose: Propose, board: Board) -> None:
        self.plan = plan
        self.steps = plan.steps
        self.width = bin_steps(plan.steps)
        self.perform = perform
        self.trace_of = trace_of
        self.propose = propose
        self.board = board
        self.spent = 0
        self.limit: float | None = None
        self.controls: list[Trial] = []
        self.candidates: list[Candidate] = []
        self.not_tried: tuple[NotTried, ...] = ()
        self.trials: dict[str, list[Trial]] = {}
        self.disproved: set[str] = set()

    # ---- the course of it ------------------------------------------------------------------------------------------

    def whole(self) -> Raced:
        control = self.first_control()
        trace = self.trace_of(control.name)
        diagnosis = examine(trace)
        if diagnosis.verdict is VerdictWord.UNKNOWN:
            raise GradiometerError(diagnosis.sentence, "Give more --steps, or check that the command trains.")
        findings = diagnosis.findings
        if diagnosis.unexplained:
            findings = (_standstill(diagnosis.sentence, trace), *findings)
        elif diagnosis.verdict is VerdictWord.WELL:
            return self.result(Outcome.WELL, diagnosis.sentence)
        from gradiometer.remedies.base import Symptoms

        candidates, left_out = self.propose(Symptoms(findings, trace, self.steps))
        self.candidates, self.not_tried = list(candidates), tuple(left_out)
        for candidate in self.candidates:
            self.board.rows[key(candidate.prescription)] = Row(candidate)
        while True:
            while (waiting := self.worth()) and (size := self.room_for(waiting)):
                self.board.phase = f"racing {size} of {len(self.candidates)} candidates"
                self.wave(waiting[:size])
            tried = len(self.disproved)
            best = self.finals()
            if best is not None:
                return self.result(Outcome.CURED, self.success(best), best)
            if self.second_chance():
                continue
            if len(self.disproved) == tried or not self.room_for(self.worth()):
                return self.result(Outcome.NO_CURE, self.failure())

    def first_control(self) -> Trial:
        order = self.order(None, 0, self.steps)
        control = self.run([order])[0]
        if not control.ran and not (control.ending is Ending.FAILED and control.taken and control.errors):
            raise GradiometerError(f"The untreated training could not be run: {control.trouble}", "See it run first.")
        if not control.ran:  # it fails as the disease has it (a loss that is no number, say), and shows why
            control = replace(control, ending=Ending.RAN)
        if 0 < control.taken < self.steps:
            self.steps = control.taken
        self.limit = PATIENCE * control.seconds + GRACE if math.isfinite(control.seconds) else None
        self.controls = [control]
        self.board.control = control
        return control

    def wave(self, wave: Sequence[Candidate]) -> None:
        """One wave of successive halving."""
        alive, champions = list(wave), self.sure()
        rungs = self.rungs() if len(alive) > 1 or champions else [self.steps]
        for number, steps in enumerate(rungs):
            orders = [self.order(c, 0, steps) for c in alive]
            while orders and not self.affordable(orders, keep=self.of_finals()):
                orders.pop()
            done = {t.name: t for t in self.run(orders)}
            alive = [c for c, o in zip(alive, orders, strict=False) if done[o.name].ran]
            alive.sort(key=lambda c: self.score(c, steps))
            if steps == self.steps or not alive:
                return
            sure = [c for c in alive if self.doubtless(c, steps)]
            if sure:  # nothing that is more invasive needs to go on
                alive = [sure[0], *[c for c in alive if c.invasiveness < sure[0].invasiveness][:1]]
            else:
                alive = alive[: math.ceil(len(alive) / 2)]
            # nor does what is behind an earlier wave's at the same step
            bars = [self.score(c, steps) for c in champions if self.at(c, steps) is not None]
            alive = [c for c in alive if not bars or self.score(c, steps)[:2] <= min(bars)[:2]]
            if len(alive) == 1 or sure:
                del rungs[number + 1 : -1]

    def rungs(self) -> list[int]:
        """Steps of the trials of a wave, the last ones being full."""
        return sorted({min(self.steps, max(LEAST_RUNG, round(share * self.steps))) for share in RUNGS})

    def sure(self) -> list[Candidate]:
        """Those whose full trial leaves no doubt, and that more seeds have not disproved."""
        return [c for c in self.standing() if self.doubtless(c, self.steps)]

    def standing(self) -> list[Candidate]:
        """Those with a full trial that may yet turn out to be the cure."""
        return [c for c in self.candidates if self.full(c) is not None and key(c.prescription) not in self.disproved]

    def worth(self) -> list[Candidate]:
        """What was not tried yet and could better that which was found: all of it as long as nothing was."""
        waiting = [c for c in self.candidates if not self.of(c)]
        sure = self.sure()
        cured = sure or [c for c in self.standing() if self.judged(c).word is Word.CURED]
        if cured and self.plan.any_cure:
            return []
        if sure:
            least = min(c.invasiveness for c in sure)
            return [c for c in waiting if c.invasiveness < least and c.prediction.promise is not Promise.CANNOT]
        if cured:
            return [c for c in waiting if c.prediction.promise in (Promise.SUFFICES, Promise.UNKNOWN)]
        return waiting

    def finals(self) -> Candidate | None:
        """Hold the best against the control over all seeds; the first that is cured wins."""
        standing = [c for c in self.standing() if (trial := self.full(c)) is not None and not trial.errors]
        standing = [c for c in standing if self.judged(c).word in (Word.CURED, Word.NO_HELP) and self.judged(c).loss.middle < 0]
        standing.sort(key=lambda c: self.score(c, self.steps))
        for candidate in standing[:FINALISTS]:
            seeds = range(1, self.plan.seeds)
            orders = [self.order(None, s, self.steps) for s in seeds if s not in {c.seed for c in self.controls}]
            controls = {o.name for o in orders}
            orders += [self.order(candidate, s, self.steps) for s in seeds]
            if not self.affordable(orders):
                break
            self.board.phase = f"{candidate.prescription.label} over {self.plan.seeds} seeds"
            done = self.run(orders)
            # an untreated run that crashes by its disease is a control all the same
            self.controls += [replace(t, ending=Ending.RAN) for t in done if t.name in controls and t.taken]
            if self.judged(candidate).word is Word.CURED and len(self.seeds_of(candidate)) >= self.plan.seeds:
                return candidate
            self.disproved.add(key(candidate.prescription))
        return None

    def second_chance(self) -> bool:
        """A full trial for the best of those that were left behind by what has been disproved; whether there was one."""
        behind = [
            c for c in self.candidates if self.full(c) is None and (ran := self.longest(c)) and self.score(c, ran)[0] == 0
        ]
        behind.sort(key=lambda c: self.score(c, self.longest(c)))
        orders = [self.order(c, 0, self.steps) for c in behind[:1]]
        if not orders or not self.affordable(orders, keep=self.of_finals()):
            return False
        self.board.phase = f"a second chance for {behind[0].prescription.label}"
        return self.run(orders)[0].ran

    # ---- money -----------------------------------------------------------------------------------------------------

    def of_finals(self) -> int:
        """Steps that are kept for one finalist and its controls."""
        return 2 * (self.plan.seeds - 1) * self.steps

    def affordable(self, orders: Sequence[Order], keep: int = 0) -> bool:
        return self.spent + sum(order.steps for order in orders) + keep <= self.plan.budget

    def room_for(self, waiting: Sequence[Candidate]) -> int:
        """How many candidates the budget lets race: all of their first trials and one of them to the end."""
        left = self.plan.budget - self.spent - self.of_finals()
        for count in range(min(self.plan.wave, len(waiting)), 1, -1):
            rungs, cost, alive = self.rungs(), 0, count
            for steps in rungs:
                cost, alive = cost + alive * steps, math.ceil(alive / 2)
            if cost <= left:
                return count
        return int(bool(waiting) and left >= self.steps)

    # ---- trials ----------------------------------------------------------------------------------------------------

    def order(self, candidate: Candidate | None, seed: int, steps: int) -> Order:
        prescription = candidate.prescription if candidate is not None else None
        return Order(
            name=f"{key(prescription)}.{steps}.s{seed}",
            prescription=prescription,
            seed=seed,
            steps=steps,
            bin_steps=self.width,
            early=steps < self.steps,
            expected=min(steps, self.controls[0].taken) if self.controls else steps,
            limit=self.limit,
        )

    def run(self, orders: Sequence[Order]) -> list[Trial]:
        """Run trials, side by side; in the order in which they were asked for."""
        if not orders:
            return []
        self.board.running = {order.name: order for order in orders}
        done: dict[str, Trial] = {}
        # one trial at a time for each worker: they are long, and their lengths differ
        parallel = joblib.Parallel(
            n_jobs=self.plan.jobs,
            return_as="generator_unordered",
            batch_size=1,  # pyright: ignore[reportArgumentType]  annotated as a text by its default
            pre_dispatch="all",
        )
        try:
            for trial in cast("Sequence[Trial]", parallel(joblib.delayed(self.perform)(order) for order in orders)):
                done[trial.name] = trial
                self.take(trial)
                if trial.ending is Ending.INTERRUPTED:
                    raise KeyboardInterrupt
        finally:
            self.board.running = {}
        return [done[order.name] for order in orders]

    def take(self, trial: Trial) -> None:
        self.spent += trial.taken
        self.board.spent = self.spent
        self.board.running.pop(trial.name, None)
        if self.board.back is not None:
            self.board.back(trial)
        if trial.prescription is None:
            return
        name = key(trial.prescription)
        self.trials.setdefault(name, []).append(trial)
        row = self.board.rows.get(name)
        if row is not None:
            row.steps = max(row.steps, trial.steps)
            row.loss = verdict.level(trial, trial.steps) if trial.ran else row.loss
            row.state = trial.ending.value if not trial.ran else "ill: " + trial.roots[0] if trial.roots else "nothing ill"
            if self.controls and trial.steps == self.steps and trial.ran:
                row.verdict = self.judged(row.candidate)

    def of(self, candidate: Candidate) -> list[Trial]:
        return self.trials.get(key(candidate.prescription), [])

    def full(self, candidate: Candidate) -> Trial | None:
        """Its full trial of the first seed; None if it did not get there."""
        return self.at(candidate, self.steps)

    def longest(self, candidate: Candidate) -> int:
        """Steps of its longest trial that ran; 0 without one."""
        return max((t.steps for t in self.of(candidate) if t.ran), default=0)

    def seeds_of(self, candidate: Candidate) -> set[int]:
        return {t.seed for t in self.of(candidate) if t.ran and t.steps == self.steps}

    def at(self, candidate: Candidate, steps: int) -> Trial | None:
        """Its trial of the first seed and so many steps; None if there is none."""
        return next((t for t in self.of(candidate) if t.ran and t.seed == 0 and t.steps == steps), None)

    # ---- judgement -------------------------------------------------------------------------------------------------

    def score(self, candidate: Candidate, steps: int) -> tuple[int, float, float]:
        """What candidates are sorted by at a rung, the best first: what is ill, then the loss, which depth of cut must earn."""
        trial = self.at(candidate, steps)
        if trial is None:
            return 4, 0.0, 0.0
        found = verdict.against(self.controls[0], trial, steps)
        group = 2 * (not found.below) + bool(trial.errors)
        middle = found.middle if not math.isnan(found.middle) else 0.0
        return group, max(middle, math.log(ENOUGH)) + EARNS * candidate.invasiveness, middle

    def doubtless(self, candidate: Candidate, steps: int) -> bool:
        trial = self.at(candidate, steps)
        return trial is not None and verdict.beyond_doubt(self.controls[0], trial, steps)

    def judged(self, candidate: Candidate) -> Verdict:
        """On the longest of its trials."""
        trials = self.of(candidate)
        steps = max((t.steps for t in trials), default=self.steps)
        return verdict.judge(self.controls, [t for t in trials if t.steps == steps], steps)

    def shown(self, candidate: Candidate) -> Verdict:
        """The same, without a word that so few trials do not bear."""
        found = self.judged(candidate)
        if found.word is Word.FAILED:
            return found
        if found.steps < self.steps:
            return replace(found, word=Word.BEHIND)
        few = found.word is Word.CURED and found.seeds < self.plan.seeds
        return replace(found, word=Word.PROMISING) if few else found

    # ---- result ----------------------------------------------------------------------------------------------------

    def result(self, outcome: Outcome, sentence: str, cure: Candidate | None = None) -> Raced:
        tried = [c for c in self.candidates if self.of(c)] if self.controls else []
        arms = [Arm(c, tuple(self.of(c)), self.shown(c)) for c in tried]
        rank = list(Word)

        def place(arm: Arm) -> tuple[bool, int, int, int, float]:
            loss, told = arm.verdict.loss.middle, arm.verdict
            return (
                arm.candidate is not cure,
                rank.index(told.word),
                -told.seeds,
                -told.steps,
                loss if not math.isnan(loss) else 0.0,
            )

        arms.sort(key=place)
        untried = [NotTried(c.prescription.label, self.why_not(c, outcome)) for c in self.candidates if not self.of(c)]
        return Raced(
            outcome=outcome,
            sentence=sentence,
            control=tuple(self.controls),
            arms=tuple(arms),
            not_tried=(*self.not_tried, *untried),
            best=0 if cure is not None else -1,
            spent=self.spent,
            steps=self.steps,
        )

    def why_not(self, candidate: Candidate, outcome: Outcome) -> str:
        """Why a candidate was not tried."""
        expected = candidate.prediction
        if expected.promise is Promise.CANNOT:
            return expected.sentence
        over = outcome in (Outcome.CURED, Outcome.WELL)
        reason = "Not needed any more." if over else "The race was over before it came to it."
        return f"{reason} {expected.sentence}".strip()

    def success(self, candidate: Candidate) -> str:
        found = self.judged(candidate)
        seeds = f"in each of {found.seeds} seeds" if found.seeds > 1 else "with one seed"
        return (
            f"`{candidate.prescription.label}` cures it: after {self.steps} steps the loss is {found.loss_end:.3g} instead of "
            f"{found.control_end:.3g}, and nothing ill is found any more, {seeds}."
        )

    def failure(self) -> str:
        waiting = [c for c in self.candidates if not self.of(c)]
        tried = [c for c in self.candidates if self.of(c)]
        if not tried:
            return "Nothing that is known was worth a trial." if not waiting else "The budget was too small for a single trial."
        sentence = f"None of the {len(tried)} treatments that were tried cures it."
        if len(tried) == 1:
            sentence = f"`{tried[0].prescription.label}`, the only treatment that was tried, does not cure it."
        # an early trial has not had the time to show what is ill
        found, closest = min(
            ((self.judged(c), c) for c in tried), key=lambda p: (-p[0].steps, len(p[0].left) + len(p[0].new), p[0].loss_end)
        )
        if found.word not in (Word.FAILED, Word.HARMFUL):
            sentence += f" Closest came `{closest.prescription.label}`. {found.sentence}"
        if waiting:
            sentence += f" The budget left {len(waiting)} untried."
        return sentence


def _standstill(sentence: str, trace: Trace) -> Finding:
    """A loss that stands still for no reason that is known: what answers a plateau is then worth trying, and trials decide."""
    first, last = int(trace.ledger.step[0]), int(trace.ledger.step[-1])
    return Finding("plateau", Severity.WARNING, 0.0, (), (first, last), sentence, (), ())


def key(prescription: Prescription | None) -> str:
    """Name of a prescription as part of a file name: readable, and its own."""
    if prescription is None:
        return "control"
    told = json.dumps(plain(prescription.treatments), sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^a-z0-9.]+', '-', prescription.label.lower())[:48].strip('-.')}-{digest}"
