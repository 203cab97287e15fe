"""The rules of the peers, written anew from their formulas: each fires and stays quiet on both sides of its threshold."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from peers import autotrainer, deepdiagnosis, thedeepchecker  # noqa: E402
from peers.record import Found, Training, epoch_ends, epoch_means, verdict  # noqa: E402
from peers.run import GROUPS, run_peer  # noqa: E402

STEPS = 200


def healthy(steps: int = STEPS, **changes: Any) -> Training:
    """Two layers that no rule finds anything in: everything varies a little, and the loss falls well in every window."""
    wave = 1 + 0.1 * np.sin(np.arange(steps))
    columns = np.stack([wave, wave], 1)
    training = Training(
        kernels=("first", "last"),
        dense=(True, True),
        loss=np.exp(-0.05 * np.arange(steps)),
        accuracy=np.linspace(0.5, 1, steps),
        finite=np.ones(steps, np.bool_),
        zero_share=np.full(steps, 0.1),
        seen=np.ones((steps, 2), np.bool_),
        gradient_norm=columns,
        gradient_mean=1e-3 * columns,
        gradient_size=1e-2 * columns,
        weight_size=columns,
        update_size=1e-3 * columns,
        weight_mean=0.1 * columns,
        outputs={"hidden": wave, "out": wave},
        ran={"hidden": np.ones(steps, np.bool_), "out": np.ones(steps, np.bool_)},
        closed={"relu": np.full(steps, 0.5)},
        far_inputs={"tanh": np.full(steps, 0.1)},
        spread={"relu": np.ones(steps)},
        dead_neurons={"relu": np.full(steps, 0.1)},
        saturated_neurons={"tanh": np.full(steps, 0.1)},
    )
    return replace(training, **changes)


def columns(first: float, last: float, steps: int = STEPS) -> Any:
    wave = 1 + 0.01 * np.sin(np.arange(steps))
    return np.stack([first * wave, last * wave], 1)


def rules(said: Any) -> set[str]:
    return {finding.split(":")[0] for finding in said.findings}


@pytest.mark.parametrize("module", [autotrainer, deepdiagnosis, thedeepchecker])
def test_a_healthy_training_is_not_flagged(module: Any) -> None:
    said = module.judge(healthy())
    assert not said.flagged, said.findings
    assert said.first_step is None


@pytest.mark.parametrize("module", [autotrainer, deepdiagnosis, thedeepchecker])
def test_short_trainings_and_those_without_weights_are_no_trouble(module: Any) -> None:
    for steps in (1, 2, 7):
        module.judge(healthy(steps))
    empty = np.empty((5, 0))
    names = ("gradient_norm", "gradient_mean", "gradient_size", "weight_size", "update_size", "weight_mean")
    bare = dict.fromkeys(names, empty)
    module.judge(healthy(5, kernels=(), dense=(), seen=np.empty((5, 0), np.bool_), **bare))


# ---- what they are held against ----------------------------------------------------------------------------------------


def test_a_twentieth_of_the_steps_is_an_epoch() -> None:
    assert list(epoch_ends(40)) == list(range(1, 40, 2))
    assert list(epoch_ends(3)) == [0, 1, 2]
    assert epoch_means(np.array([1.0, 3.0] * 20)).tolist() == [2.0] * 20
    assert np.isnan(epoch_means(np.full(5, np.nan))).all()


def test_a_verdict_has_a_line_per_rule() -> None:
    said = verdict([Found("a", "y", 9), Found("a", "x", 3), Found("b", "x", 5)], [Found("c", "z", 1)])
    assert said.findings == ("a: x at step 3 and 1 more", "b: x at step 5")
    assert (said.flagged, said.first_step, said.warnings) == (True, 3, ("c: z at step 1",))
    assert not verdict([], [Found("c", "z", 1)]).flagged


# ---- AUTOTRAINER -------------------------------------------------------------------------------------------------------

UNCONVERGED = np.linspace(0.1, 0.69, STEPS)


@pytest.mark.parametrize(
    ("first", "last", "fires"),
    [(0.9e-4, 1.0, True), (1.1e-4, 1.0, False), (0.9e-4, 0.08, False), (0.0, 1.0, True), (0.0, 0.0, False)],
)
def test_autotrainer_vanishing(first: float, last: float, fires: bool) -> None:
    assert autotrainer.vanishing(first, last) is fires


@pytest.mark.parametrize(
    ("first", "last", "fires"), [(70.1, 1.0, True), (69.9, 1.0, False), (1.0, 0.0, True), (0.0, 0.0, False)]
)
def test_autotrainer_exploding(first: float, last: float, fires: bool) -> None:
    assert autotrainer.exploding(first, last) is fires


def test_autotrainer_dying() -> None:
    assert autotrainer.dying(0.7)
    assert not autotrainer.dying(0.699)


def test_autotrainer_oscillating() -> None:
    saw = np.tile([0.80, 0.84], 10)
    assert autotrainer.oscillating(saw)
    assert not autotrainer.oscillating(np.tile([0.80, 0.82], 10))  # too low
    assert not autotrainer.oscillating(np.concatenate([saw[:6], np.linspace(0.85, 0.95, 14)]))  # too rare


def test_autotrainer_convergence() -> None:
    assert autotrainer.unconverged(np.array([0.2, 0.69]))
    assert not autotrainer.unconverged(np.array([0.71, 0.2]))
    assert autotrainer.slow(np.array([0.5, 0.509, 0.518]))
    assert not autotrainer.slow(np.array([0.5, 0.511]))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"gradient_norm": columns(1e-5, 1.0)}, "vanish"),
        ({"gradient_norm": columns(100.0, 1.0)}, "explode"),
        ({"zero_share": np.full(STEPS, 0.8)}, "dying ReLU"),
    ],
)
def test_autotrainer_reports_gradients_only_of_what_has_not_converged(change: dict[str, Any], rule: str) -> None:
    said = autotrainer.judge(healthy(accuracy=UNCONVERGED, **change))
    assert rules(said) == {rule}
    assert said.first_step == STEPS * 6 // 20 - 1  # accuracies are judged from 30 % of the epochs on
    fine = autotrainer.judge(healthy(accuracy=np.linspace(0.8, 1, STEPS), **change))
    assert not fine.flagged
    assert fine.warnings[0].startswith(rule)
    blind = autotrainer.judge(healthy(accuracy=np.full(STEPS, np.nan), **change))
    assert rules(blind) == {rule}
    assert blind.first_step == STEPS // 20 - 1
    assert blind.notes


def test_autotrainer_needs_a_lost_loss_as_well_as_lost_weights() -> None:
    lost = np.arange(STEPS) < 100
    assert rules(autotrainer.judge(healthy(finite=lost, loss=np.where(lost, 1.0, np.nan)))) == {"explode (not finite)"}
    assert rules(autotrainer.judge(healthy(finite=lost, loss=np.where(lost, 1.0, 1e3)))) == {"explode (not finite)"}
    assert not autotrainer.judge(healthy(finite=lost)).flagged


def test_autotrainer_slow_convergence_and_oscillation() -> None:
    assert rules(autotrainer.judge(healthy(accuracy=np.full(STEPS, 0.5)))) == {"slow convergence"}
    saw = np.repeat(np.tile([0.80, 0.86], 10), STEPS // 20)
    assert rules(autotrainer.judge(healthy(accuracy=saw))) == {"oscillating accuracy"}


# ---- DeepDiagnosis -----------------------------------------------------------------------------------------------------


def test_deepdiagnosis_thresholds() -> None:
    assert deepdiagnosis.vanishing(0.99e-7)
    assert not deepdiagnosis.vanishing(1.01e-7)
    assert deepdiagnosis.dead(0.7)
    assert not deepdiagnosis.dead(0.69)
    assert deepdiagnosis.saturated(0.51)
    assert not deepdiagnosis.saturated(0.5)
    assert all(deepdiagnosis.numerical(v) for v in (np.nan, np.inf, 0.0))
    assert not deepdiagnosis.numerical(1e-30)
    assert deepdiagnosis.unchanged(np.array([9.0, 1, 1, 1, 1, 1]))
    assert not deepdiagnosis.unchanged(np.array([1.0, 1, 1, 1, 2]))
    assert not deepdiagnosis.unchanged(np.ones(4))


ALIVE = np.full(STEPS, 0.5)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"gradient_size": columns(0.9e-7, 1.0)}, "vanishing gradient"),
        ({"gradient_mean": columns(np.nan, 1.0)}, "numerical error in gradients"),
        ({"weight_mean": columns(np.inf, 1.0)}, "numerical error in weights"),
        ({"gradient_mean": np.ones((STEPS, 2))}, "unchanged gradients"),
        ({"weight_mean": np.ones((STEPS, 2))}, "unchanged weights"),
        ({"outputs": {"hidden": np.ones(STEPS), "out": ALIVE}}, "unchanged outputs"),
        ({"outputs": {"hidden": np.zeros(STEPS), "out": ALIVE}}, "numerical error in outputs"),
        ({"outputs": {"hidden": np.full(STEPS, np.nan), "out": ALIVE}}, "numerical error in outputs"),
        ({"closed": {"relu": np.full(STEPS, 0.75)}}, "dead node"),
        ({"far_inputs": {"tanh": np.full(STEPS, 0.6)}}, "saturated activation"),
        ({"loss": np.full(STEPS, np.nan)}, "invalid loss"),
        ({"loss": np.full(STEPS, 0.7)}, "loss not decreasing"),
        ({"accuracy": np.zeros(STEPS)}, "invalid accuracy"),
        ({"accuracy": np.full(STEPS, 0.5)}, "accuracy not increasing"),
    ],
)
def test_deepdiagnosis_symptoms(change: dict[str, Any], rule: str) -> None:
    assert rule in rules(deepdiagnosis.judge(healthy(**change)))


def test_deepdiagnosis_looks_at_gradients_of_dense_layers_and_at_what_ran() -> None:
    assert not deepdiagnosis.judge(healthy(dense=(False, True), gradient_size=columns(1e-9, 1.0))).flagged
    idle = np.zeros(STEPS, np.bool_)
    outputs = {"idle": np.full(STEPS, np.nan), "out": 1 + np.arange(STEPS)}
    assert not deepdiagnosis.judge(healthy(outputs=outputs, ran={"idle": idle, "out": ~idle})).flagged


def test_deepdiagnosis_looks_for_dead_nodes_at_the_end_only() -> None:
    early = np.where(np.arange(STEPS) < STEPS - 20, 0.9, 0.1)
    assert not deepdiagnosis.judge(healthy(closed={"relu": early})).flagged


# ---- TheDeepChecker ----------------------------------------------------------------------------------------------------


def test_thedeepchecker_gradients() -> None:
    assert thedeepchecker.vanishing(np.array([0.9e-6]))
    assert not thedeepchecker.vanishing(np.array([1.1e-6]))
    assert thedeepchecker.vanishing(0.5 ** np.arange(5.0))
    assert not thedeepchecker.vanishing(0.51 ** np.arange(5.0))
    assert not thedeepchecker.vanishing(0.5 ** np.arange(4.0))
    assert thedeepchecker.exploding(np.array([1.1e6]))
    assert not thedeepchecker.exploding(np.array([0.9e6]))
    assert thedeepchecker.exploding(2.0 ** np.arange(5.0))
    assert not thedeepchecker.exploding(1.9 ** np.arange(5.0))


def test_thedeepchecker_activations() -> None:
    assert thedeepchecker.dead(0.51)
    assert not thedeepchecker.dead(0.5)
    assert thedeepchecker.saturated(0.51)
    assert not thedeepchecker.saturated(0.5)
    # an F test forgives a variance 2.7 times out of bounds
    for std, fires in ((0.30, True), (0.31, False), (1.0, False), (3.28, False), (3.30, True), (0.0, True)):
        assert thedeepchecker.unstable_spread(std) is fires


def test_thedeepchecker_updates() -> None:
    weights = np.ones(10)
    for update, problem in ((0.11, "updates too large"), (0.09, ""), (1.1e-4, ""), (0.9e-4, "updates too small")):
        assert thedeepchecker.update_problem(update * weights, weights) == problem
    assert thedeepchecker.update_problem(0 * weights, weights) == "untrained weights"
    assert thedeepchecker.update_problem(weights, 0 * weights) == ""


def test_thedeepchecker_losses() -> None:
    assert thedeepchecker.stagnating(0.96 ** np.arange(5.0))
    assert not thedeepchecker.stagnating(0.94 ** np.arange(5.0))
    assert not thedeepchecker.stagnating(np.array([1.0, 1, 1, 0.9, 0.9]))
    assert thedeepchecker.diverging(2.0 ** np.arange(5.0))
    assert not thedeepchecker.diverging(1.9 ** np.arange(5.0))
    assert thedeepchecker.fluctuating(np.tile([1.0, 2.0], 10))
    assert not thedeepchecker.fluctuating(np.tile([1.0, 2.0, 3.0, 4.0], 5))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"gradient_size": columns(0.9e-6, 1.0)}, "vanishing gradient"),
        ({"gradient_size": columns(1.1e6, 1.0)}, "exploding gradient"),
        ({"gradient_size": columns(np.nan, 1.0)}, "gradient not finite"),
        ({"update_size": columns(0.2, 1e-3)}, "updates too large"),
        ({"update_size": columns(1e-5, 1e-3)}, "updates too small"),
        ({"dead_neurons": {"relu": np.full(STEPS, 0.6)}}, "dead neurons"),
        ({"saturated_neurons": {"tanh": np.full(STEPS, 0.6)}}, "saturated neurons"),
        ({"spread": {"relu": np.full(STEPS, 0.1)}}, "unstable activations"),
        ({"loss": np.ones(STEPS)}, "stagnating loss"),
        ({"loss": np.exp(0.1 * np.arange(STEPS))}, "diverging loss"),
        ({"loss": np.full(STEPS, np.inf)}, "loss not finite"),
    ],
)
def test_thedeepchecker_checks(change: dict[str, Any], rule: str) -> None:
    assert rule in rules(thedeepchecker.judge(healthy(**change)))


# ---- scripts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    script: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


def test_what_cannot_run_is_said() -> None:
    assert set(run_peer(Run("no_such_script"), 0, sys.executable, ["rules"])) == set(GROUPS["rules"])
    missing = run_peer(Run("circle_relu"), 0, "/no/such/python", ["torchlens"])
    assert "/no/such/python" in missing["torchlens"]["error"]


@pytest.mark.zoo
@pytest.mark.parametrize("seed", [0, 1])
def test_a_script_is_watched_and_keeps_its_numbers(seed: int) -> None:
    args = ("--epochs", "20")
    said = run_peer(Run("circle_relu", args), seed, sys.executable, ["rules"])
    assert set(said) == set(GROUPS["rules"])
    assert all(not v["ended"] for v in said.values())
    assert said["autotrainer"]["flagged"]
    assert rules_of(said["thedeepchecker"]) >= {"vanishing gradient", "dead neurons"}
    # a gradient of exactly zero is one, the smallest that is not the other
    assert rules_of(said["deepdiagnosis"]) & {"numerical error in gradients", "vanishing gradient"}
    if not seed:
        script = [sys.executable, str(ROOT / "zoo" / "circle_relu.py"), *args]
        alone = subprocess.run(script, capture_output=True, text=True, check=True).stdout
        assert said["autotrainer"]["last_line"] == alone.strip().splitlines()[-1]


def rules_of(said: dict[str, Any]) -> set[str]:
    return {finding.split(":")[0] for finding in said["findings"]}
