"""Prescribing: what theory expects of treatments, in which order they are tried, and why some are not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradiometer.errors import GradiometerError
from gradiometer.record.trace import Trace
from gradiometer.remedies import NAMES
from gradiometer.remedies.base import Symptoms
from gradiometer.theory.activations import activation
from gradiometer.trial.outlook import Layer, Outlook, Stack, known_activation, outlook, stack_of, treated
from gradiometer.trial.prescribe import (
    ANSWERS,
    PAIRS,
    Choice,
    Proposal,
    autotrainer_candidates,
    propose,
    random_candidates,
)
from gradiometer.trial.result import Promise
from gradiometer.types import Finding, Role, Severity, Treatment
from traces import make, output

DEFAULT = 3**-0.5


def stack(kind: str = "sigmoid", depth: int = 10, sigma_w: float = DEFAULT, width: int = 64) -> Stack:
    """Layers as PyTorch draws them."""
    bias = (3 * width) ** -0.5 if sigma_w == DEFAULT else 0.0
    return Stack(tuple(Layer(sigma_w, bias, activation(kind), "", width, width) for _ in range(depth)), 0.3, 0.5)


def after(network: Stack, *treatments: Treatment) -> Outlook:
    changed = treated(network, treatments)
    assert changed is not None
    return outlook(changed)


def treat(remedy: str, **settings: str | float | bool) -> Treatment:
    return Treatment(remedy, settings)


# ---- theory ------------------------------------------------------------------------------------------------------------

# gradient and share that differs of ten layers of width 64 on digits, measured in float64 (docs/theory.md)
MEASURED = {
    (): (-7.8, -14.0),
    (("initialise", "scheme", "xavier"),): (-5.9, None),
    (("initialise", "scheme", "he"),): (-4.8, None),
    (("normalise", "kind", "layer"),): (-3.8, -7.4),
    (("normalise", "kind", "batch"),): (0.0, 0.0),
    (("initialise", "scheme", "critical"),): (-0.8, None),
}


@pytest.mark.parametrize("treatments", MEASURED, ids=str)
def test_a_sigmoid_network_after_treatment_is_what_was_measured(treatments: tuple[tuple[str, str, str], ...]) -> None:
    expected = after(stack(), *(Treatment(r, {name: value}) for r, name, value in treatments))
    decades, apart = MEASURED[treatments]
    assert expected.decades == pytest.approx(decades, abs=0.6)
    if apart is not None:
        assert expected.apart == pytest.approx(apart, abs=0.7)


def test_layer_norm_keeps_what_all_inputs_have_in_common_and_batch_norm_does_not() -> None:
    layer, batch = after(stack(), treat("normalise", kind="layer")), after(stack(), treat("normalise", kind="batch"))
    assert layer.apart < -6.0
    assert batch.apart > -0.1


def test_relu_with_batch_norm_explodes_as_yang_says() -> None:
    deep = after(stack("relu", 41), treat("normalise", kind="batch"))
    assert deep.decades == pytest.approx(40 * 0.5 * math.log10(math.pi / (math.pi - 1)), rel=0.03)


def test_deep_relu_networks_of_hes_size_keep_the_gradient_and_lose_its_likeness() -> None:
    he = after(stack("relu", 50), treat("initialise", scheme="he"))
    assert abs(he.decades) < 0.01
    assert he.alike < -2.0
    for cure in (treat("residual", scale="depth"), treat("initialise", scheme="mirrored")):
        cured = after(stack("relu", 50), cure)
        assert abs(cured.decades) < 0.2
        assert cured.alike > -0.1


def test_what_changes_steps_leaves_the_profile_as_it_is() -> None:
    for remedy in ("clip", "optimizer", "regularise"):
        assert after(stack(), treat(remedy)) == outlook(stack())


def test_fewer_layers_lose_less() -> None:
    assert abs(after(stack("tanh", 40), treat("fewer-layers", keep=4.0)).decades) < 2.0


def test_what_theory_does_not_follow() -> None:
    assert treated(stack(), (treat("pretrain"),)) is None
    assert treated(stack(), (treat("initialise", scheme="fixup"),)) is None
    assert treated(stack(), (treat("activation", to="mystery"),)) is None
    assert treated(stack(), (Treatment("normalise", {"kind": "batch"}, ("encoder.*",)),)) is None
    assert known_activation("LeakyReLU") == known_activation("leaky_relu()")
    assert known_activation("Mystery") is None


def record(kind: str = "Sigmoid", depth: int = 10, sigma_w: float = DEFAULT, measured: float | None = None) -> Trace:
    """An untreated run of a plain network whose gradient is as theory has it, or as it is said to be."""
    sites = []
    for k in range(depth):
        sites += [output(f"fc{k}"), output(f"act{k}", Role.ACTIVATION, kind=kind)]
    sites.append(output("head", units=10))
    network = stack(kind.lower(), depth, sigma_w)
    network = Stack(tuple(Layer(la.sigma_w, 0.0, la.act, "", 64, 64) for la in network.layers), 0.3, 0.5)
    lost = outlook(network).decades if measured is None else measured
    return make(
        sites,
        gradient=np.linspace(lost, 0.0, len(sites)),
        signal=math.log10(0.3) / 2,
        varying=0.5,
        weight=math.log10(sigma_w / 8.0),
        loss=np.full(300, 2.3),
    )


def symptoms(trace: Trace, *rules: str) -> Symptoms:
    findings = tuple(
        Finding(rule, Severity.ERROR, 1.0, ("fc0",), (0, 100), "It is ill.", (), (), because=rules[0] if k else "")
        for k, rule in enumerate(rules)
    )
    return Symptoms(findings, trace, 300)


def test_the_stack_of_a_record() -> None:
    trace = record()
    found = stack_of(trace, symptoms(trace, "vanishing-gradient").findings)
    assert found is not None
    assert len(found.layers) == 10
    assert found.layers[0].act.name == "sigmoid"
    assert found.layers[0].sigma_w == pytest.approx(DEFAULT)
    assert (found.square, found.apart) == (pytest.approx(0.3), pytest.approx(0.5))


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(record(measured=0.0), id="the measured gradient is another: a shortcut"),
        pytest.param(record("Mystery".replace("Mystery", "Tanh"), 2), id="two layers"),
        pytest.param(make([output("rnn", Role.RECURRENT), *(output(f"fc{k}") for k in range(5))]), id="recurrent"),
        pytest.param(make(8, looks=(5, 10)), id="the start was not seen"),
    ],
)
def test_what_is_no_stack(trace: Trace) -> None:
    assert stack_of(trace, ()) is None


# ---- order ---------------------------------------------------------------------------------------------------------------


def labels(proposal: Proposal) -> list[str]:
    return [c.prescription.label for c in proposal.candidates]


def promises(proposal: Proposal) -> dict[str, Promise]:
    return {c.prescription.label: c.prediction.promise for c in proposal.candidates}


def test_a_deep_sigmoid_network_gets_what_takes_the_mean_out_first() -> None:
    proposal = propose(symptoms(record(), "vanishing-gradient", "input-blindness"))
    said = promises(proposal)
    first = proposal.candidates[:4]
    assert all(c.prediction.promise is Promise.SUFFICES for c in first)
    assert len({c.prescription.treatments[0].remedy for c in first}) >= 3, "not four shades of one idea"
    assert said["initialise scheme=critical"] is Promise.SUFFICES
    assert said["normalise kind=batch"] is Promise.SUFFICES
    order = [c.prediction.promise for c in proposal.candidates]
    ranks = [(Promise.SUFFICES, Promise.UNKNOWN, Promise.MAY_HELP, Promise.CANNOT).index(p) for p in order]
    assert ranks == sorted(ranks)
    reasons = {n.label: n.reason for n in proposal.not_tried}
    assert "too little, which it leaves so" in reasons["clip"]


def test_what_cannot_help_comes_last_and_says_why() -> None:
    proposal = propose(symptoms(record(depth=40), "vanishing-gradient"))
    last = proposal.candidates[-1]
    assert last.prediction.promise is Promise.CANNOT
    assert last.prediction.sentence.startswith("Theory expects: the gradient loses")
    assert last.prescription.reason == last.prediction.sentence


def test_of_equals_the_least_invasive_is_first() -> None:
    proposal = propose(symptoms(record("ReLU", 12), "poor-initialization", "vanishing-gradient"))
    assert proposal.candidates[0].prescription.treatments[0].remedy == "initialise"
    assert proposal.candidates[0].invasiveness == 0


def test_pairs_wait_for_the_first_turn_of_single_treatments() -> None:
    proposal = propose(symptoms(record(), "vanishing-gradient"))
    suffices = [c for c in proposal.candidates if c.prediction.promise is Promise.SUFFICES]
    pair = next(k for k, c in enumerate(suffices) if len(c.prescription.treatments) == 2)
    first_turns = {c.prescription.treatments[0].remedy for c in suffices[:pair]}
    assert {"initialise", "normalise"} <= first_turns
    assert "activation to=relu + initialise scheme=he" in labels(proposal)


def test_steps_that_are_too_long_are_no_matter_of_depth() -> None:
    proposal = propose(symptoms(record("ReLU", 12, 2**0.5), "learning-rate-too-high", "divergence"))
    assert all(c.prediction.promise is Promise.UNKNOWN for c in proposal.candidates)
    assert proposal.candidates[0].prescription.treatments[0].remedy == "optimizer"


def test_learning_rates_are_tried_by_powers_of_ten() -> None:
    def factors(*rules: str) -> list[float]:
        first = propose(symptoms(record("ReLU", 12, 2**0.5), *rules)).candidates
        singles = [c.prescription.treatments[0] for c in first if len(c.prescription.treatments) == 1]
        return [float(t.settings["value"]) for t in singles if t.settings.get("change") == "lr"]

    high = factors("learning-rate-too-high")
    assert {0.01, 0.001} <= set(high)
    assert all(factor < 1.0 for factor in high)
    assert max(factors("learning-rate-too-low")) >= 1000.0
    first = propose(symptoms(record("ReLU", 12, 2**0.5), "learning-rate-too-high")).candidates[:4]
    assert {t.remedy for c in first for t in c.prescription.treatments} == {"optimizer"}, "they race each other"
    assert len({round(a, 6) for a in high}) == len(high)


def test_a_network_that_theory_does_not_cover_goes_by_the_table() -> None:
    proposal = propose(symptoms(record(measured=-6.0, depth=30), "vanishing-gradient"))
    assert {c.prediction.promise for c in proposal.candidates} == {Promise.UNKNOWN}
    assert proposal.candidates[0].prescription.treatments[0].remedy == ANSWERS["vanishing-gradient"][0]


def test_only_and_without() -> None:
    ill = symptoms(record(), "vanishing-gradient")
    only = propose(ill, Choice(only=("normalise",)))
    assert {t.remedy for c in only.candidates for t in c.prescription.treatments} == {"normalise"}
    assert "Left out by --only or --without." in {n.reason for n in only.not_tried if n.label == "initialise"}
    without = propose(ill, Choice(without=("normalise", "activation")))
    assert not {t.remedy for c in without.candidates for t in c.prescription.treatments} & {"normalise", "activation"}
    with pytest.raises(GradiometerError, match="no remedy 'prayer'"):
        propose(ill, Choice(only=("prayer",)))
    with pytest.raises(GradiometerError, match="No remedy is left"):
        propose(ill, Choice(only=("clip",), without=("clip",)))


def test_candidates_are_different() -> None:
    proposal = propose(symptoms(record(), "vanishing-gradient", "saturated-units"))
    told = [repr([(t.remedy, dict(t.settings)) for t in c.prescription.treatments]) for c in proposal.candidates]
    assert len(set(told)) == len(told)


def test_every_remedy_in_the_tables_exists() -> None:
    tables = {name for names in (*ANSWERS.values(), *PAIRS) for name in names}
    assert tables <= set(NAMES)


# ---- to compare with -------------------------------------------------------------------------------------------------------


def test_random_candidates_are_drawn_from_all_remedies_the_same_for_a_seed() -> None:
    one, again, other = random_candidates(0, 60), random_candidates(0, 60), random_candidates(1, 60)
    assert [c.prescription for c in one] == [c.prescription for c in again]
    assert [c.prescription for c in one] != [c.prescription for c in other]
    assert {t.remedy for c in one for t in c.prescription.treatments} == set(NAMES)
    assert {len(c.prescription.treatments) for c in one} == {1, 2}
    from gradiometer.remedies import check

    for candidate in one:
        check(candidate.prescription)


@pytest.mark.parametrize(
    ("rules", "first", "count"),
    [
        (("vanishing-gradient",), "activation to=selu replace=all", 3),
        (("exploding-gradient", "vanishing-gradient"), "activation to=selu replace=all", 5),
        (("dead-units",), "activation to=selu replace=all", 4),
        (("learning-rate-too-high",), "activation to=selu replace=all", 3),
    ],
)
def test_the_order_of_autotrainer(rules: tuple[str, ...], first: str, count: int) -> None:
    found = autotrainer_candidates(symptoms(record(), *rules))
    assert found[0].prescription.label == first
    assert len(found) == count
    from gradiometer.remedies import check

    for candidate in found:
        check(candidate.prescription)
