"""Every rule on synthetic traces: what it must find, where, since when, how bad, and what it must be silent about."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import traces
from gradiometer.errors import GradiometerError
from gradiometer.record.frames import Flag, Group
from gradiometer.record.trace import Trace
from gradiometer.rules import RULES, diagnose, rule_named
from gradiometer.rules.diagnosis import examine
from gradiometer.rules.judging import factor, size
from gradiometer.types import Finding, Role, Severity, VerdictWord
from traces import FALLING, FLAT, LOOKS, STEPS, first_looks, make, ramp

SITES = 17
"""Output sites of the default network of eight layers: fc0, act0, ..., fc7, act7, head."""
NAMES = [s.name for s in traces.stack(8)]
END = STEPS - 1


def only(trace: Trace, rule: str) -> Finding:
    """The one finding of ``rule``; the other rules must be silent."""
    findings = diagnose(trace)
    assert [f.rule for f in findings] == [rule]
    return findings[0]


def named(trace: Trace, rule: str) -> Finding:
    return next(f for f in diagnose(trace) if f.rule == rule)


def rules_of(trace: Trace) -> list[str]:
    return [f.rule for f in diagnose(trace)]


def test_a_healthy_network_is_silent() -> None:
    trace = make()
    assert diagnose(trace) == []
    assert examine(trace).verdict is VerdictWord.WELL


# ---- vanishing gradient ------------------------------------------------------------------------------------------------


def test_vanishing_by_a_steady_factor() -> None:
    finding = only(make(gradient=ramp(SITES, -10.0, 0.0), loss=FLAT), "vanishing-gradient")
    assert finding.severity is Severity.ERROR
    assert finding.steps == (0, END)
    assert finding.starts == "act7"
    assert finding.sites == finding.shows == tuple(NAMES[:12])
    assert finding.starts not in finding.shows, "the cause is not the symptom"
    assert finding.peak in LOOKS
    assert "9.4 decades" in finding.sentence
    assert "a factor of 0.046 per layer over 7 layers" in finding.sentence
    assert "from step 0 on" in finding.sentence
    assert finding.evidence[0].value == pytest.approx(9.375)


def test_vanishing_at_one_place() -> None:
    y = np.where(np.arange(SITES) < 6, -5.0, 0.0)
    finding = only(make(gradient=y, loss=FLAT), "vanishing-gradient")
    assert finding.starts == NAMES[6]
    assert finding.shows == tuple(NAMES[:6])


def test_vanishing_to_an_exact_zero() -> None:
    y = np.where(np.arange(SITES) < 8, -np.inf, 0.0)
    finding = only(make(gradient=y, loss=FLAT), "vanishing-gradient")
    assert "exactly zero before `fc4`" in finding.sentence
    assert finding.severity is Severity.ERROR


def test_vanishing_in_a_run_that_learns_is_a_warning_unless_extreme() -> None:
    assert only(make(gradient=ramp(SITES, -4.0, 0.0)), "vanishing-gradient").severity is Severity.WARNING
    assert only(make(gradient=ramp(SITES, -8.0, 0.0)), "vanishing-gradient").severity is Severity.ERROR


def test_vanishing_that_is_gone_later_is_a_warning() -> None:
    y = first_looks(7, ramp(SITES, -8.0, 0.0), 0.0)
    finding = only(make(gradient=y), "vanishing-gradient")
    assert finding.severity is Severity.WARNING
    assert finding.steps == (0, 20)
    assert "from step 0 to step 20" in finding.sentence
    assert "recovered" in finding.sentence


def test_the_peak_is_the_look_the_numbers_are_from() -> None:
    y = first_looks(10, ramp(SITES, -4.0, 0.0), 0.0)
    y[6] = ramp(SITES, -9.0, 0.0)
    finding = only(make(gradient=y, loss=FLAT), "vanishing-gradient")
    assert finding.peak == LOOKS[6]
    assert f"at step {LOOKS[6]}" in finding.evidence[0].claim


def test_hidden_outputs_leave_the_weights() -> None:
    """A compiled model shows its parameters only."""
    sites = make(8)
    hidden = {k: np.where(k.startswith("gradient_"), np.nan, v) for k, v in sites.values.items()}
    weights = replace(make(8, weight_gradient=ramp(9, -7.0, 0.0), loss=FLAT), recorded=sites.recorded)
    trace = replace(weights, values={**weights.values, **{k: v for k, v in hidden.items() if k.startswith("gradient_")}})
    finding = only(trace, "vanishing-gradient")
    assert finding.confidence < 0.7
    assert finding.sites[0] == "fc0.weight"


@pytest.mark.parametrize(
    "gradient",
    [
        pytest.param(first_looks(1, np.where(np.arange(SITES) < 15, -np.inf, 0.0), 0.0), id="zero at step 0 only"),
        pytest.param(np.where(np.arange(SITES) % 4 == 0, 0.0, -np.inf), id="residual branches that are zero"),
        pytest.param(np.where(np.arange(SITES) == 0, -12.0, 0.0), id="one odd site"),
        pytest.param(ramp(SITES, -2.5, 0.0), id="a small fall"),
        pytest.param(5.0 + ramp(SITES, -1.0, 0.0), id="a summed loss"),
        pytest.param(np.full(SITES, -np.inf), id="no gradient anywhere"),
        pytest.param(np.full(SITES, np.nan), id="nothing known"),
        pytest.param(np.where(np.arange(SITES) < 15, np.nan, 0.0), id="a frozen front"),
        pytest.param(np.linspace(0, -8, len(LOOKS))[:, None] + np.zeros(SITES), id="converged: all fall together"),
        pytest.param(np.tile([0.0, -1.2, 0.4], SITES)[:SITES], id="mixed widths"),
    ],
)
@pytest.mark.parametrize("loss", [FALLING, FLAT], ids=["learns", "flat"])
def test_no_vanishing(gradient: np.ndarray, loss: np.ndarray) -> None:
    assert "vanishing-gradient" not in rules_of(make(gradient=gradient, loss=loss))
    assert "exploding-gradient" not in rules_of(make(gradient=gradient, loss=loss))


# ---- exploding gradient ------------------------------------------------------------------------------------------------


def test_exploding_by_a_steady_factor() -> None:
    finding = only(make(gradient=ramp(SITES, 6.0, 0.0), loss=FLAT), "exploding-gradient")
    assert finding.severity is Severity.ERROR
    assert finding.starts == "act7", "it starts where it is smallest, near the output"
    assert finding.shows == ("fc0", "act0")
    assert finding.sites == tuple(NAMES[:16])
    assert "5.6 decades" in finding.sentence
    assert "factor of 6.4 per layer over 7 layers" in finding.sentence


def test_exploding_in_a_run_that_learns() -> None:
    assert only(make(gradient=ramp(SITES, 3.0, 0.0)), "exploding-gradient").severity is Severity.WARNING
    assert only(make(gradient=ramp(SITES, 6.0, 0.0)), "exploding-gradient").severity is Severity.ERROR


def test_exploding_at_first_that_heals_and_learns_is_a_warning() -> None:
    finding = only(make(gradient=first_looks(6, ramp(SITES, 6.0, 0.0), 0.0)), "exploding-gradient")
    assert finding.severity is Severity.WARNING
    assert finding.steps == (0, 10)


def test_a_disease_that_changes_its_face_keeps_its_cause() -> None:
    """Exploding at first, saturated and vanished later, never learned: the explosion leads, and both are errors."""
    y = first_looks(3, ramp(SITES, 3.0, 0.0), ramp(SITES, -9.0, 0.0))
    findings = diagnose(make(gradient=y, loss=FLAT))
    assert [(f.rule, f.severity, f.steps) for f in findings] == [
        ("exploding-gradient", Severity.ERROR, (0, 2)),
        ("vanishing-gradient", Severity.ERROR, (4, END)),
    ]


def test_growth_over_two_layers_is_no_depth() -> None:
    """Regression onto large targets: the weights of a shallow network grow, and the gradient with them."""
    assert diagnose(make(3, gradient=ramp(7, 3.0, 0.0))) == []
    assert rules_of(make(3, gradient=ramp(7, 7.0, 0.0))) == ["exploding-gradient"]


def test_exploding_only_at_the_first_two_looks_is_no_finding() -> None:
    assert diagnose(make(gradient=first_looks(2, ramp(SITES, 3.0, 0.0), 0.0), loss=FLAT)) == []


@pytest.mark.parametrize(
    "gradient",
    [
        pytest.param(ramp(SITES, 1.2, 0.0), id="a pre-norm transformer's decade"),
        pytest.param(np.where(np.arange(SITES) < 3, 2.0, 0.0), id="one step up, no steady growth"),
        pytest.param(np.where(np.arange(SITES) < 8, 3.0, -np.inf), id="exact zeros are another disease"),
    ],
)
def test_no_exploding(gradient: np.ndarray) -> None:
    assert diagnose(make(gradient=gradient)) == []


# ---- signal collapse and explosion -------------------------------------------------------------------------------------


def test_signal_collapse_with_flat_weight_gradients() -> None:
    trace = make(signal=ramp(SITES, 0.0, -8.0), weight_gradient=-6.0, loss=FLAT)
    finding = only(trace, "signal-collapse")
    assert finding.severity is Severity.ERROR
    assert finding.starts == "fc0"
    assert finding.shows == tuple(NAMES[7:16])
    assert "rms 1" in finding.sentence


def test_signal_collapse_that_is_gone_later() -> None:
    y = first_looks(7, ramp(SITES, 0.0, -8.0), 0.0)
    finding = only(make(signal=y), "signal-collapse")
    assert finding.severity is Severity.WARNING
    assert "stalled until about step 20" in finding.sentence


def test_signal_collapse_at_the_start_that_biases_hide() -> None:
    """The circle with weights of 0.05: after one step the biases carry more than the signal ever did."""
    y = first_looks(1, ramp(SITES, 0.0, -9.0), 0.0)
    finding = only(make(signal=y, loss=FLAT), "signal-collapse")
    assert finding.severity is Severity.ERROR
    assert finding.steps == (0, 0)
    assert "at step 0" in finding.sentence
    assert diagnose(make(signal=y)) == [], "a run that learns is well"


def test_a_collapse_to_nothing() -> None:
    y = np.where(np.arange(SITES) < 8, 0.0, -np.inf)
    assert "carry nothing at all" in only(make(signal=y, loss=FLAT), "signal-collapse").sentence


def test_signal_explosion() -> None:
    finding = only(make(signal=ramp(SITES, 0.0, 9.0), loss=FLAT), "signal-explosion")
    assert finding.severity is Severity.ERROR
    assert finding.starts == "fc0"
    assert finding.shows == ("fc7", "act7")
    assert only(make(signal=ramp(SITES, 0.0, 5.0)), "signal-explosion").severity is Severity.WARNING
    assert only(make(signal=ramp(SITES, 0.0, 9.0)), "signal-explosion").severity is Severity.ERROR


@pytest.mark.parametrize(
    "signal",
    [
        pytest.param(np.where(np.arange(SITES) == SITES - 1, 5.0, 0.0), id="large targets: only the head is large"),
        pytest.param(np.where(np.arange(SITES) == SITES - 1, -5.0, 0.0), id="small targets: only the head is small"),
        pytest.param(first_looks(1, np.where(np.arange(SITES) > 14, -np.inf, 0.0), 0.0), id="zero at step 0 only"),
        pytest.param(np.where(np.arange(SITES) % 3 == 1, -np.inf, 0.0), id="branches that start at zero"),
        pytest.param(ramp(SITES, 0.0, -2.0), id="a small fall"),
        pytest.param(ramp(SITES, 0.0, 2.5), id="a small rise"),
        pytest.param(np.full(SITES, np.nan), id="nothing known"),
    ],
)
@pytest.mark.parametrize("loss", [FALLING, FLAT], ids=["learns", "flat"])
def test_no_collapse_and_no_explosion(signal: np.ndarray, loss: np.ndarray) -> None:
    assert diagnose(make(signal=signal, loss=loss)) == []


def test_a_small_embedding_is_no_input_end() -> None:
    sites = [traces.output(f"embed{k}", Role.EMBEDDING) for k in range(2)] + traces.stack(8)
    assert diagnose(make(sites, signal=[-4.0] * 2 + [0.0] * SITES, loss=FLAT)) == []


# ---- input blindness ---------------------------------------------------------------------------------------------------


def test_input_blindness() -> None:
    share = 10.0 ** ramp(SITES, -0.3, -12.0)
    finding = only(make(varying=share, loss=FLAT), "input-blindness")
    assert finding.severity is Severity.ERROR
    assert finding.starts == finding.sites[0] == "fc3"
    assert finding.sites[-1] == "head"
    assert only(make(varying=share), "input-blindness").severity is Severity.WARNING


def test_blind_for_good_is_told_from_blind_in_passing() -> None:
    share = np.where(np.arange(SITES) > 10, 1e-9, 0.5)
    share[3] = 1e-9  # a constant gate in between
    finding = only(make(varying=share, loss=FLAT), "input-blindness")
    assert finding.starts == NAMES[11]
    assert NAMES[3] not in finding.sites


def test_at_chance_is_said() -> None:
    sites = [*traces.stack(8)[:-1], traces.output("head", units=10)]
    trace = make(sites, varying=10.0 ** ramp(SITES, -0.3, -12.0), loss=np.full(STEPS, math.log(10)))
    assert trace.at_chance
    assert "level of guessing" in only(trace, "input-blindness").sentence


@pytest.mark.parametrize(
    "varying",
    [
        pytest.param(np.nan, id="a batch of one"),
        pytest.param(1e-6, id="uniform data"),
        pytest.param(np.where(np.arange(SITES) == SITES - 1, 1e-9, 0.4), id="a regression onto nearly equal targets"),
        pytest.param(10.0 ** ramp(SITES, -0.1, -2.5), id="a shallow sigmoid network"),
        pytest.param(first_looks(1, np.where(np.arange(SITES) > 8, 0.0, 0.5), 0.5), id="at step 0 only"),
    ],
)
def test_no_blindness(varying: np.ndarray) -> None:
    assert diagnose(make(varying=varying, loss=FLAT)) == []


# ---- non-finite --------------------------------------------------------------------------------------------------------


def test_loss_becomes_nan() -> None:
    loss = np.where(np.arange(STEPS) < 60, 1.0, np.nan)
    event = {"event": "nonfinite", "step": 60, "what": "forward", "sites": ["fc3.weight"], "operation": "Log"}
    finding = only(make(loss=loss, events=[event]), "nonfinite")
    assert finding.severity is Severity.ERROR
    assert finding.steps == (60, END)
    assert finding.peak == 60
    assert finding.sites == ("fc3.weight",)
    assert "loss became non-finite at step 60: it was born in the forward pass in `Log` at `fc3.weight`" in finding.sentence


def test_a_step_too_large_is_blamed() -> None:
    loss = np.where(np.arange(STEPS) < 60, 1.0, np.inf)
    event = {"event": "nonfinite", "step": 60, "what": "forward", "sites": [], "operation": "the loss"}
    finding = only(make(loss=loss, update=[-3.0] * 8 + [4.0], events=[event]), "nonfinite")
    assert finding.starts == "head.weight"
    assert "the update of `head.weight` was 10,000 times its size" in finding.sentence


def test_weights_become_nan() -> None:
    weight = np.zeros((len(LOOKS), 9))
    weight[7:] = np.nan
    loss = np.where(np.arange(STEPS) < 41, 1.0, np.nan)
    finding = only(make(weight=weight, loss=loss), "nonfinite")
    assert "weights became non-finite at step 40" in finding.sentence


def test_parameters_that_are_nan_before_the_first_step() -> None:
    weight = np.zeros((len(LOOKS), 9))
    weight[:, 2] = np.nan
    finding = only(make(weight=weight, loss=np.full(STEPS, np.nan)), "nonfinite")
    assert finding.sentence == "The parameter `fc2.weight` is not finite before the first step: the training cannot start."
    assert finding.helps[0].startswith("check the initialisation")
    weight[:, 5] = np.nan
    several = only(make(weight=weight, loss=np.full(STEPS, np.nan)), "nonfinite")
    assert several.sentence.startswith("2 parameters are not finite before the first step (`fc2.weight` first)")


def test_the_first_bad_output_is_found_without_an_event() -> None:
    bad = np.zeros((len(LOOKS), SITES + 9), np.bool_)
    bad[5:, 6:SITES] = True
    signal = first_looks(5, 0.0, np.where(np.arange(SITES) >= 6, np.nan, 0.0))
    loss = np.where(np.arange(STEPS) < 10, 1.0, np.nan)
    finding = only(make(signal=signal, nonfinite={Group.OUTPUT: bad}, loss=loss), "nonfinite")
    assert finding.starts == "fc3"
    assert "the first non-finite output is that of `fc3`" in finding.sentence


def test_a_single_lost_step_is_a_warning() -> None:
    loss = FALLING.copy()
    loss[30] = np.inf
    finding = only(make(loss=loss), "nonfinite")
    assert finding.severity is Severity.WARNING
    assert "It recovered: 1 step was lost." in finding.sentence


def test_masked_attention_is_silent() -> None:
    """A mask puts -inf into scores on purpose; the loss stays finite."""
    bad = np.zeros((len(LOOKS), SITES + 9), np.bool_)
    bad[:, 4] = True
    signal = np.where(np.arange(SITES) == 4, np.nan, 0.0)
    assert diagnose(make(signal=signal, nonfinite={Group.OUTPUT: bad})) == []


def test_skipped_steps_are_silent() -> None:
    """A gradient scaler tries a scale that is too large: infinite gradients, a skipped step, nothing else."""
    weight_gradient = np.zeros((len(LOOKS), 9))
    weight_gradient[:2] = np.inf
    loss = FALLING.copy()
    loss[1] = np.inf
    trace = make(weight_gradient=weight_gradient, loss=loss, flags={0: Flag.SKIPPED, 1: Flag.SKIPPED})
    assert trace.ledger.has(Flag.NONFINITE)[1]
    assert diagnose(trace) == []


# ---- dead and saturated units ------------------------------------------------------------------------------------------


def dead_from(layer: int, share: float = 1.0) -> np.ndarray:
    return np.where(np.arange(SITES) >= 2 * layer + 1, share, 0.1)


def test_dead_units_that_cut_the_network() -> None:
    dead = np.where(np.arange(SITES) == 7, 1.0, 0.1)
    gradient = np.where(np.arange(SITES) <= 7, -np.inf, 0.0)
    finding = named(make(dead=dead, gradient=gradient, loss=FLAT), "dead-units")
    assert finding.severity is Severity.ERROR
    assert finding.sites == ("act3",)
    assert finding.starts == "act3"
    assert "100 % of the units of `act3` are dead" in finding.sentence
    assert "no gradient reaches the layers before" in finding.sentence


def test_dead_units_start_where_they_were_first() -> None:
    dead = np.stack([dead_from(6 if k < 4 else 2) for k in range(len(LOOKS))])
    finding = only(make(dead=dead, loss=FLAT), "dead-units")
    assert finding.starts == "act6"
    assert finding.shows == tuple(f"act{k}" for k in range(2, 8))
    assert finding.severity is Severity.ERROR, "most layers are dead and the training does not learn"


def test_dead_units_in_a_run_that_learns() -> None:
    assert only(make(dead=dead_from(2)), "dead-units").severity is Severity.WARNING
    few = np.where(np.arange(SITES) == 3, 0.85, 0.1)
    assert only(make(dead=few), "dead-units").severity is Severity.INFO
    assert examine(make(dead=few)).verdict is VerdictWord.WELL


HALF_WAY = np.append(np.geomspace(1.0, 0.6, 30), np.full(STEPS - 30, 0.6))
"""A loss that has fallen clearly, by less than half, and stands there."""


def test_dead_units_in_a_run_that_gets_less_than_half_way() -> None:
    trace = make(dead=dead_from(2), loss=HALF_WAY)
    assert trace.learned
    assert only(trace, "dead-units").severity is Severity.ERROR
    assert only(replace(trace, running=True), "dead-units").severity is Severity.WARNING
    few = np.where(np.arange(SITES) == 3, 0.85, 0.1)
    assert only(make(dead=few, loss=HALF_WAY), "dead-units").severity is Severity.INFO


@pytest.mark.parametrize(
    ("dead", "examples"),
    [
        pytest.param(0.6, 1000.0, id="half of a wide layer unused"),
        pytest.param(1.0, 32.0, id="too few examples to tell dead from rare"),
        pytest.param(np.nan, 1000.0, id="no rectifier"),
        pytest.param(first_looks(3, 1.0, 0.2), 1000.0, id="in the first steps only"),
    ],
)
def test_no_dead_units(dead: np.ndarray, examples: float) -> None:
    assert diagnose(make(dead=dead, examples=examples, loss=FLAT)) == []


def test_saturated_units() -> None:
    share = np.where(np.arange(SITES) < 6, 0.97, 0.1)
    finding = only(make(saturated=share, loss=FLAT), "saturated-units")
    assert finding.severity is Severity.ERROR
    assert finding.sites == ("act0", "act1", "act2")
    assert finding.starts == "act0"
    assert "97 % of `act0` is saturated, from step 0 on; 3 of 8 bounded activations" in finding.sentence


def test_saturated_gates_of_a_network_that_learns_are_a_note() -> None:
    few = np.where(np.arange(SITES) < 6, 0.97, 0.1)
    assert only(make(saturated=few), "saturated-units").severity is Severity.INFO
    assert only(make(saturated=0.97), "saturated-units").severity is Severity.WARNING


def test_saturated_units_in_a_run_that_gets_less_than_half_way() -> None:
    assert only(make(saturated=0.97, loss=HALF_WAY), "saturated-units").severity is Severity.ERROR
    assert only(replace(make(saturated=0.97, loss=HALF_WAY), running=True), "saturated-units").severity is Severity.WARNING
    first = np.where(np.arange(SITES) < 2, 0.97, 0.1)
    assert only(make(saturated=first, loss=HALF_WAY), "saturated-units").severity is Severity.ERROR, "all goes through it"
    few = np.where(np.isin(np.arange(SITES), range(4, 10)), 0.97, 0.1)
    assert only(make(saturated=few, loss=HALF_WAY), "saturated-units").severity is Severity.INFO, "gates may be shut"


def test_shut_gates_beside_rectifiers_are_a_note() -> None:
    """A highway network: every bounded activation is a gate, and half of all activations are none."""
    gates = np.where(np.arange(SITES) % 4 == 1, 0.99, np.nan)
    assert only(make(saturated=gates), "saturated-units").severity is Severity.INFO


def test_a_saturated_output_is_well() -> None:
    sites = [*traces.stack(4), traces.output("sigmoid", Role.ACTIVATION)]
    share = np.where(np.arange(len(sites)) == len(sites) - 1, 1.0, 0.1)
    assert diagnose(make(sites, saturated=share, loss=FLAT)) == []


# ---- several networks --------------------------------------------------------------------------------------------------


def two(**fields: object) -> Trace:
    """An actor of eight layers and a critic of four."""
    sites = [*traces.stack(8, chain=0, prefix="actor."), *traces.stack(4, chain=1, prefix="critic.")]
    return make(sites, **fields)  # type: ignore[arg-type]


ACTOR, CRITIC = 17, 9


@pytest.mark.parametrize("critic", [-8.0, 8.0])
@pytest.mark.parametrize("signal", ["gradient", "signal"])
def test_networks_of_very_different_scale_are_well(signal: str, critic: float) -> None:
    level = np.concatenate([np.zeros(ACTOR), np.full(CRITIC, critic)])
    assert diagnose(two(**{signal: level, "loss": FLAT})) == []


def test_a_blind_critic_beside_a_seeing_actor_is_found() -> None:
    share = np.concatenate([np.full(ACTOR, 0.5), 10.0 ** ramp(CRITIC, -0.3, -14.0)])
    finding = only(two(varying=share, loss=FLAT), "input-blindness")
    assert all(name.startswith("critic.") for name in finding.sites)


@pytest.mark.parametrize("worse", ["actor", "critic"])
@pytest.mark.parametrize(
    ("rule", "signal", "start", "end"),
    [
        ("vanishing-gradient", "gradient", -1.0, 0.0),
        ("exploding-gradient", "gradient", 1.0, 0.0),
        ("signal-collapse", "signal", 1.0, 0.0),
        ("signal-explosion", "signal", 0.0, 1.0),
    ],
)
def test_the_worst_network_is_reported(worse: str, rule: str, signal: str, start: float, end: float) -> None:
    actor, critic = (9.0, 7.0) if worse == "actor" else (7.0, 9.0)
    level = np.concatenate([actor * ramp(ACTOR, start, end), critic * ramp(CRITIC, start, end)])
    finding = only(two(**{signal: level, "loss": FLAT}), rule)
    assert all(name.startswith(worse) for name in finding.sites)


def test_networks_trained_in_turns_are_each_judged_in_their_own_looks() -> None:
    actor = np.where(np.arange(len(LOOKS))[:, None] % 2 == 0, ramp(ACTOR, -9.0, 0.0), np.nan)
    critic = np.where(np.arange(len(LOOKS))[:, None] % 2 == 1, np.zeros(CRITIC), np.nan)
    finding = only(two(gradient=np.concatenate([actor, critic], axis=1), loss=FLAT), "vanishing-gradient")
    assert finding.severity is Severity.ERROR, "it lasts to the last look at the actor"


# ---- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(traces.empty(), id="nothing"),
        pytest.param(make(0, loss=FLAT), id="one site"),
        pytest.param(make([], loss=FLAT), id="no sites"),
        pytest.param(make(1, loss=FLAT), id="three sites"),
        pytest.param(make(8, looks=(), loss=()), id="sites but no looks"),
        pytest.param(make(8, looks=(0,), gradient=ramp(SITES, -9.0, 0.0), loss=[1.0]), id="one look"),
        pytest.param(
            make(8, gradient=np.nan, signal=np.nan, varying=np.nan, weight_gradient=np.nan, loss=FLAT), id="nothing but NaN"
        ),
        pytest.param(make(8, gradient=-np.inf, signal=-np.inf, loss=FLAT), id="nothing but zero"),
    ],
)
def test_too_little_gives_no_finding(trace: Trace) -> None:
    assert diagnose(trace) == []


def any_trace(seed: int) -> Trace:
    """Whatever a record may hold, likely or not."""
    random = np.random.default_rng(seed)
    sites = [*traces.stack(int(random.integers(0, 6))), *traces.stack(int(random.integers(0, 4)), chain=1, prefix="b.")]
    sites = sites[int(random.integers(0, 3)) :]
    looks = np.flatnonzero(random.random(40) < random.choice([0.0, 0.05, 0.3]))
    weights = sum(s.role is Role.LINEAR for s in sites)

    def levels(columns: int) -> np.ndarray:
        """A slope along depth, noise, and some holes."""
        shape = (looks.size, columns)
        y = np.arange(columns) * random.normal(0, random.choice([0.0, 0.5, 5.0])) + random.normal(0, 1, shape)
        wild = random.random(shape) < random.choice([0.0, 0.1, 0.9])
        return np.where(wild, random.choice([-np.inf, np.nan, 150.0, -150.0], shape), y)

    def shares() -> np.ndarray:
        shape = (looks.size, len(sites))
        y = 10.0 ** -np.abs(np.arange(len(sites)) * random.choice([0.0, 0.1, 2.0]) + random.normal(0, 0.2, shape))
        return np.where(random.random(shape) < random.choice([0.0, 0.2, 1.0]), np.nan, y)

    loss = random.choice([1.0, -5.0, 1e300, 0.0]) * np.geomspace(1.0, random.choice([1.0, 0.1]), int(random.integers(0, 40)))
    loss = np.where(random.random(loss.size) < random.choice([0.0, 0.2]), random.choice([np.nan, np.inf], loss.size), loss)
    bad = random.random((looks.size, len(sites) + weights)) < random.choice([0.0, 0.1])
    event = {"event": "nonfinite", "step": int(random.integers(0, 40)), "what": str(random.choice(["parameter", "forward"]))}
    return make(
        sites,
        looks=looks.tolist(),
        gradient=levels(len(sites)),
        signal=levels(len(sites)),
        varying=shares(),
        saturated=shares(),
        dead=shares(),
        weight_gradient=levels(weights),
        weight=levels(weights) if random.random() < 0.3 else 0.0,
        update=levels(weights),
        loss=loss,
        flags={k: Flag.SKIPPED for k in range(loss.size) if random.random() < 0.5},
        nonfinite={Group.OUTPUT: bad, Group.GRADIENT: bad},
        events=[event],
    )


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_diagnose_never_raises_and_every_finding_is_complete(seed: int) -> None:
    trace = any_trace(seed)
    findings = diagnose(trace)
    assert len({f.rule for f in findings}) == len(findings), "at most one finding of a rule"
    names = {s.name for s in trace.sites}
    for finding in findings:
        assert finding.rule in {rule.name for rule in RULES}
        assert set(finding.sites) | set(finding.shows) | {finding.starts} <= names | {""}
        assert finding.steps[0] <= finding.steps[1]
        assert finding.peak >= 0
        assert 0.0 <= finding.confidence <= 1.0
        assert finding.sentence.endswith(".")
        assert not re.search(r"\bnan\b|\binf\b|  ", finding.sentence)
        assert finding.evidence
        assert all(e.claim for e in finding.evidence)
        assert finding.helps
    examine(trace)


def without_numbers(findings: list[Finding]) -> list[tuple[object, ...]]:
    return [(f.rule, f.severity, f.sites, f.steps, f.starts, f.shows) for f in findings]


@settings(max_examples=60, deadline=None)
@given(st.integers(-12, 12), st.floats(-9, 9), st.floats(-9, 9), st.sampled_from([0.05, 0.5, 1.0]), st.booleans())
def test_gradients_of_another_size_are_the_same_gradients(
    power: int, input_end: float, output_end: float, final_loss: float, broken: bool
) -> None:
    """Summing the loss instead of averaging it multiplies every gradient and the loss, and is no disease."""
    profile = ramp(SITES, round(input_end, 1) + 0.05, round(output_end, 1))
    gradient = first_looks(6, profile, 0.0) if broken else np.broadcast_to(profile, (len(LOOKS), SITES))
    loss = np.geomspace(1.0, final_loss, STEPS)
    plain = diagnose(make(gradient=gradient, loss=loss))
    assert without_numbers(diagnose(make(gradient=gradient + power, loss=loss))) == without_numbers(plain)
    assert without_numbers(diagnose(make(gradient=gradient, loss=loss * 2.0**power))) == without_numbers(plain)


@settings(max_examples=40, deadline=None)
@given(st.integers(-9, 9), st.floats(-9, 9))
def test_data_in_other_units_are_the_same_data(power: int, output_end: float) -> None:
    signal = ramp(SITES, 0.05, round(output_end, 1))
    plain = diagnose(make(signal=signal, loss=FLAT))
    assert without_numbers(diagnose(make(signal=signal + power, loss=FLAT))) == without_numbers(plain)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.floats(0.6, 3.0))
def test_depth_does_not_hide_a_steady_factor(layers: int, factor_per_layer: float) -> None:
    """Whatever the depth, a fall of more than three decades between the ends is found and named as what it is."""
    sites = 2 * layers + 1
    total = factor_per_layer * layers
    findings = rules_of(make(layers, gradient=ramp(sites, -total, 0.0), loss=FLAT))
    assert findings == (["vanishing-gradient"] if total * (1 - 2 / sites) > 3.3 else findings)


def test_a_root_cause_comes_first_and_is_as_severe_as_what_follows() -> None:
    saturated = np.where(np.arange(SITES) < 6, 0.8, 0.1)
    trace = make(gradient=first_looks(2, 0.0, ramp(SITES, -9.0, 0.0)), saturated=saturated, loss=FLAT)
    assert [(f.rule, f.severity, f.because) for f in diagnose(trace)] == [
        ("saturated-units", Severity.ERROR, ""),
        ("vanishing-gradient", Severity.ERROR, "saturated-units"),
    ]


def test_a_loss_that_was_not_seen_accuses_nobody() -> None:
    """Gradients given by hand leave no loss; then only what is extreme is an error."""
    unseen = np.full(STEPS, np.nan)
    trace = make(gradient=ramp(SITES, -4.0, 0.0), loss=FLAT)
    silent = replace(trace, ledger=replace(trace.ledger, values={**trace.ledger.values, "loss": unseen}))
    assert only(silent, "vanishing-gradient").severity is Severity.WARNING


# ---- the table of rules ------------------------------------------------------------------------------------------------

HEADINGS = ("What it finds:", "Why it hurts:", "How we tell:", "When it is wrong:", "What helps:", "References:")


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_every_rule_explains_itself(rule: object) -> None:
    doc = rule.doc  # type: ignore[attr-defined]
    at = [doc.find(f"\n{heading}\n") for heading in HEADINGS]
    assert -1 not in at
    assert at == sorted(at)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_no_rule_reads_another(rule: object) -> None:
    source = inspect.getsource(inspect.getmodule(rule.find))  # type: ignore[attr-defined, arg-type]
    others = [r.name.replace("-", "_") for r in RULES if r is not rule]
    assert not [o for o in others if re.search(rf"import.*\b{o}\b", source)]
    constants = re.findall(r"^([A-Z][A-Z_]+): Final = [\d.e-]+\n(.*)", source, re.MULTILINE)
    assert constants
    assert all(following.startswith('"""') for _, following in constants), "a threshold has its source beside it"


def test_a_rule_by_name() -> None:
    assert rule_named("dead-units").name == "dead-units"
    with pytest.raises(GradiometerError, match="There is no rule 'dead'"):
        rule_named("dead")


@pytest.mark.parametrize(
    ("decades", "words"),
    [(-0.85, "0.14"), (0.0, "1"), (1.0, "10"), (2.37, "234"), (4.0, "10,000"), (8.2, "10^8"), (-9, "10^-9")],
)
def test_factors_are_readable(decades: float, words: str) -> None:
    assert factor(decades) == words


@pytest.mark.parametrize(
    ("log10", "words"), [(0.0, "1"), (-1.5, "0.032"), (3.4, "2,512"), (-9.0, "1.0e-09"), (7.2, "1.6e+07"), (-math.inf, "0")]
)
def test_sizes_are_readable(log10: float, words: str) -> None:
    assert size(log10) == words
