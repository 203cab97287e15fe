"""The rules about how a network is built, started and connected: each on its case, and on what only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import traces
from gradiometer.record.frames import Flag
from gradiometer.record.ledger import FloatArray
from gradiometer.record.trace import Trace
from gradiometer.rules import (
    attention_collapse,
    dead_output,
    disconnected_parameters,
    exploding_through_time,
    poor_initialization,
    precision_underflow,
    shattered_gradient,
    symmetric_initialization,
    vanishing_through_time,
)
from gradiometer.types import Finding, Place, Role, Severity, Site
from traces import FALLING, FLAT, LOOKS, STEPS, make, ramp

SITES, WEIGHTS = 17, 9
ALL = SITES + WEIGHTS
NAMES = [s.name for s in traces.stack(8)]
RULES = (
    disconnected_parameters,
    precision_underflow,
    dead_output,
    poor_initialization,
    symmetric_initialization,
    shattered_gradient,
    attention_collapse,
    vanishing_through_time,
    exploding_through_time,
)


def one(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


def at(index: range | list[int], value: float, other: float = np.nan, size: int = ALL) -> FloatArray:
    """``value`` at some sites."""
    y = np.full(size, other)
    y[list(index)] = value
    return y


# ---- disconnected parameters -------------------------------------------------------------------------------------------


def lost(count: int) -> np.ndarray:
    return np.arange(WEIGHTS) < count


def test_parameters_in_no_optimizer() -> None:
    finding = one(disconnected_parameters.find(make(marks={Flag.UNOWNED: lost(4)}, loss=FLAT)))
    assert finding.severity is Severity.ERROR
    assert finding.sites == tuple(f"fc{k}.weight" for k in range(4))
    assert "4 parameters (`fc0.weight` first) get a gradient but are in no optimizer" in finding.sentence
    assert "44 %" in finding.sentence
    learning = one(disconnected_parameters.find(make(marks={Flag.UNOWNED: lost(4)})))
    assert learning.severity is Severity.WARNING, "a head trained on random features learns something"
    held = make(marks={Flag.NO_GRADIENT: lost(4)}, loss=np.geomspace(1.0, 0.6, STEPS))
    assert one(disconnected_parameters.find(held)).severity is Severity.ERROR, (
        "the optimizer holds them: they were meant to move"
    )
    few = one(disconnected_parameters.find(make(marks={Flag.UNOWNED: lost(1)}, loss=FLAT)))
    assert few.severity is Severity.WARNING, "so few do not explain a failure"
    assert few.sentence.startswith("`fc0.weight` gets a gradient but is in no optimizer")


def drawn(scale: float = 1.0) -> FloatArray:
    """log10 of the rms of matrices that were drawn from PyTorch's default, uniform in 1 / sqrt(fan_in), times a scale."""
    draws = np.random.default_rng(0).uniform(-1.0, 1.0, (WEIGHTS, 4096)) / np.sqrt(64.0)
    return np.log10(scale * np.sqrt(np.mean(draws**2, axis=1)))


def unowned(weight: FloatArray, count: int = 4, names: str = "fc{}.weight", **fields: Any) -> Trace:
    """Parameters in no optimizer, of this size and with such names, in a training that learns."""
    trace = make(weight=weight, marks={Flag.UNOWNED: lost(count)}, **fields)
    renamed = {f"fc{k}.weight": names.format(k) for k in range(count)}
    return replace(trace, sites=tuple(replace(s, name=renamed.get(s.name, s.name)) for s in trace.sites))


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(unowned(drawn()), id="matrices of PyTorch's own size"),
        pytest.param(unowned(np.where(lost(4), -np.inf, 0.0), names="fc{}.bias"), id="biases that are all zero"),
    ],
)
def test_fresh_weights_that_nobody_trains_are_an_error_though_the_rest_learns(trace: Trace) -> None:
    assert trace.learned
    finding = one(disconnected_parameters.find(trace))
    assert finding.severity is Severity.ERROR
    assert finding.sentence.endswith("44 % of the weights stay the random numbers they were drawn as.")


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(unowned(drawn(1.2)), id="a fifth larger"),
        pytest.param(unowned(np.stack([drawn(), *[drawn(3.0)] * (len(LOOKS) - 1)])), id="drawn so, and trained since"),
        pytest.param(unowned(drawn(6.0**0.5)), id="of He's size"),
        pytest.param(unowned(drawn(), 4, parameter={"shape": ()}), id="no inputs to tell the size by"),
        pytest.param(unowned(np.where(lost(1), 0.0, drawn())), id="one of them is of another size"),
        pytest.param(unowned(np.where(lost(3), -np.inf, 0.0), names="fc{}.bias"), id="one bias is not zero"),
        pytest.param(unowned(np.where(lost(4), -np.inf, 0.0)), id="matrices that are zero"),
    ],
)
def test_weights_that_were_trained_and_left_are_a_warning(trace: Trace) -> None:
    finding = one(disconnected_parameters.find(trace))
    assert finding.severity is Severity.WARNING
    assert finding.sentence.endswith("44 % of the weights stay what they are.")


def test_a_few_fresh_weights_are_a_warning() -> None:
    assert one(disconnected_parameters.find(unowned(drawn(), 1))).severity is Severity.WARNING


def test_parameters_that_never_get_a_gradient() -> None:
    trace = make(marks={Flag.NO_GRADIENT: lost(3)}, weight_gradient=np.where(lost(3), np.nan, 0.0), loss=FLAT)
    finding = one(disconnected_parameters.find(trace))
    assert "are in the optimizer but never get a gradient" in finding.sentence
    assert finding.severity is Severity.ERROR


def test_a_layer_that_was_replaced_after_the_optimizer_was_made() -> None:
    late = np.arange(len(LOOKS))[:, None] >= 6
    finding = one(disconnected_parameters.find(make(marks={Flag.UNOWNED: lost(4) & late}, loss=FLAT)))
    assert finding.steps == (LOOKS[6], STEPS - 1)
    assert finding.severity is Severity.ERROR


def test_a_layer_that_is_never_used_is_a_note_while_all_goes_well() -> None:
    spare = {"marks": {Flag.NO_GRADIENT: lost(3)}, "weight_gradient": np.where(lost(3), np.nan, 0.0)}
    used = make(**spare)
    names = {f"fc{k}": f"spare{k}" for k in range(3)}
    moved = tuple(replace(s, module=names.get(s.module, s.module)) if s.place is Place.PARAMETER else s for s in used.sites)
    unused = replace(used, sites=moved)
    assert one(disconnected_parameters.find(used)).severity is Severity.WARNING, "it is called, and the way back is cut"
    finding = one(disconnected_parameters.find(unused))
    assert finding.severity is Severity.INFO
    assert "their layers are never used" in finding.sentence


def test_a_gradient_that_is_cut() -> None:
    cut = np.where(np.arange(SITES) < 6, -np.inf, 0.0)
    trace = make(gradient=cut, weight_gradient=np.where(np.arange(WEIGHTS) < 3, -np.inf, 0.0), loss=FLAT)
    finding = one(disconnected_parameters.find(trace))
    assert finding.sites == ("fc0.weight", "fc1.weight", "fc2.weight")
    assert "none passes back through `fc3`" in finding.sentence


ZERO = np.where(np.arange(WEIGHTS) < 3, -np.inf, 0.0)
CUT = np.where(np.arange(SITES) < 6, -np.inf, 0.0)
EARLY = (np.arange(len(LOOKS)) < 4)[:, None]
SOME = np.arange(len(LOOKS))[:, None] % 2 == 0


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="all is well"),
        pytest.param({"marks": {Flag.UNOWNED: lost(5)}, "parameter": {"trainable": False}}, id="frozen on purpose"),
        pytest.param({"marks": {Flag.UNOWNED: lost(5)}, "weight_gradient": np.nan}, id="no gradient either: a teacher"),
        pytest.param({"marks": {Flag.NO_GRADIENT: lost(5) & SOME}}, id="an expert without examples in some looks"),
        pytest.param(
            {"marks": {Flag.UNOWNED: lost(5) & (np.arange(len(LOOKS)) < 4)[:, None]}}, id="joined the optimizer later"
        ),
        pytest.param({"marks": {Flag.NO_GRADIENT: True}, "weight_gradient": np.nan}, id="gradients kept elsewhere"),
        pytest.param(
            {
                "gradient": traces.first_looks(1, np.where(np.arange(SITES) % 2 == 0, -np.inf, 0.0), 0.0),
                "weight_gradient": traces.first_looks(1, ZERO, 0.0, WEIGHTS),
            },
            id="branches that start at zero",
        ),
        pytest.param(
            {"gradient": CUT, "weight_gradient": ZERO, "more": {"weight_between": at([SITES + 3], 0.0)}},
            id="units that are copies: what they send back cancels",
        ),
        pytest.param(
            {"gradient": CUT, "weight_gradient": ZERO, "signal": at([5], -np.inf, 0.0, SITES)}, id="a layer that died just now"
        ),
        pytest.param({"gradient": CUT, "weight_gradient": ZERO, "dead": at([5], 1.0, 0.1, SITES)}, id="a dead layer"),
        pytest.param({"gradient": CUT, "weight_gradient": ZERO, "saturated": at([5], 1.0, 0.1, SITES)}, id="a saturated layer"),
        pytest.param(
            {"gradient": np.where(np.arange(SITES) < 6, -np.inf, ramp(SITES, -20.0, 0.0)), "weight_gradient": ZERO},
            id="faded bit by bit",
        ),
        pytest.param({"gradient": 0.0, "weight_gradient": ZERO}, id="experts that were multiplied by zero"),
        pytest.param({"gradient": -np.inf, "weight_gradient": -np.inf}, id="no gradient anywhere"),
        pytest.param({"looks": (0,), "marks": {Flag.UNOWNED: True}}, id="one look"),
    ],
)
def test_connected_parameters(fields: dict[str, Any]) -> None:
    assert disconnected_parameters.find(make(loss=FLAT, **fields)) == []


# ---- precision ---------------------------------------------------------------------------------------------------------


def half(kind: str = "float16") -> list[Site]:
    return [replace(s, dtype=kind) for s in traces.stack(8)]


def narrow_gradients(tiny: float, zeros: float, sites: range = range(SITES)) -> dict[str, FloatArray]:
    count = at(sites, 1000.0)
    return {"gradient_count": count, "gradient_zeros": count * zeros, "gradient_tiny": count * (1.0 - zeros) * tiny}


def test_gradients_below_float16() -> None:
    finding = one(precision_underflow.find(make(half(), more=narrow_gradients(0.9, 0.6), loss=FLAT)))
    assert finding.severity is Severity.ERROR
    assert len(finding.sites) == SITES
    assert "float16 is too coarse" in finding.sentence
    assert "the loss is not scaled" in finding.sentence
    slow = np.geomspace(1.0, 0.4, STEPS)
    learning = one(precision_underflow.find(make(half(), more=narrow_gradients(0.9, 0.6), loss=slow)))
    assert learning.severity is Severity.WARNING
    crippled = one(precision_underflow.find(make(half(), more=narrow_gradients(0.9, 0.9), loss=slow)))
    assert crippled.severity is Severity.ERROR, "most is lost, and the loss has not fallen far"


def test_zeros_behind_tiny_gradients_are_lost_too() -> None:
    count = at(range(SITES), 1000.0)
    zeros = np.where(np.arange(ALL) < 10, 1000.0, 500.0)
    tiny = np.where(np.arange(ALL) < 10, 0.0, 400.0)
    more = {"gradient_count": count, "gradient_zeros": zeros, "gradient_tiny": tiny}
    assert len(one(precision_underflow.find(make(half(), more=more, loss=FLAT))).sites) == SITES


@pytest.mark.parametrize(
    ("sites", "tiny", "zeros", "loss"),
    [
        pytest.param(half(), 0.05, 0.5, FLAT, id="a loss that is scaled"),
        pytest.param(half(), np.nan, 1.0, FLAT, id="all zero: dead, not small"),
        pytest.param(half("float32"), 0.9, 0.6, FLAT, id="float32"),
        pytest.param(half("bfloat16"), 0.9, 0.6, FLAT, id="bfloat16 has the range of float32"),
        pytest.param(half(), 0.9, 0.6, np.geomspace(1.0, 1e-4, 12).repeat(10), id="converged"),
    ],
)
def test_no_underflow(sites: list[Site], tiny: float, zeros: float, loss: FloatArray) -> None:
    more = narrow_gradients(tiny, zeros)
    if loss is not FLAT:  # small once there is little left to learn
        late = np.array(LOOKS)[:, None] >= 40
        more = {k: np.where(late | (k == "gradient_count"), v, 0.0) for k, v in more.items()}
    assert precision_underflow.find(make(sites, more=more, loss=loss)) == []


def test_one_branch_that_carries_little_is_no_underflow() -> None:
    count = at(range(SITES), 1000.0)
    more = {"gradient_count": count, "gradient_zeros": 0.0 * count, "gradient_tiny": at([3, 4, 5], 1000.0, 0.0)}
    assert precision_underflow.find(make(half(), more=more, loss=FLAT)) == []


def unmoved(share: object) -> dict[str, Any]:
    still = np.full((len(LOOKS), ALL), np.nan)
    still[:, SITES:] = 4096.0 * np.broadcast_to(np.asarray(share, dtype=float), (len(LOOKS), WEIGHTS))
    return {"update_zeros": still, "weight_count": 4096.0, "weight_gradient_zeros": 0.0}


def rated(trace: Trace, rate: FloatArray) -> Trace:
    return replace(trace, ledger=replace(trace.ledger, values={**trace.ledger.values, "learning_rate": rate}))


def test_steps_that_are_rounded_away() -> None:
    trace = make(more=unmoved(0.99), parameter={"dtype": "bfloat16"}, loss=FLAT)
    finding = one(precision_underflow.find(trace))
    assert finding.severity is Severity.ERROR
    assert "99 % of the bfloat16 weights" in finding.sentence
    assert one(precision_underflow.find(rated(trace, np.full(STEPS, 1e-5)))).severity is Severity.ERROR
    part = make(more=unmoved(0.6), parameter={"dtype": "bfloat16"}, loss=FLAT)
    assert one(precision_underflow.find(part)).severity is Severity.WARNING


@pytest.mark.parametrize(
    ("kind", "share", "rate"),
    [
        pytest.param("float32", 0.99, np.full(STEPS, 1e-3), id="float32"),
        pytest.param("bfloat16", 0.3, np.full(STEPS, 1e-3), id="most move"),
        pytest.param("bfloat16", 0.99, np.linspace(0.0, 1e-3, STEPS), id="warm-up"),
        pytest.param(
            "bfloat16",
            np.where(np.array(LOOKS)[:, None] >= 80, 1.0, 0.1),
            1e-3 * np.cos(np.linspace(0, np.pi / 2, STEPS)) ** 8,
            id="the rate has decayed",
        ),
    ],
)
def test_weights_that_move(kind: str, share: object, rate: FloatArray) -> None:
    trace = make(more=unmoved(share), parameter={"dtype": kind}, loss=FLAT)
    assert precision_underflow.find(rated(trace, rate)) == []


# ---- dead output -------------------------------------------------------------------------------------------------------

ENDED = [*traces.stack(4), traces.output("out", Role.ACTIVATION)]
N = len(ENDED)


def test_a_rectified_output_that_has_died() -> None:
    gradient = np.where(np.arange(N) == N - 1, 0.0, -np.inf)
    signal = np.where(np.arange(N) == N - 1, -np.inf, 0.0)
    finding = one(dead_output.find(make(ENDED, gradient=gradient, signal=signal, loss=FLAT)))
    assert finding.severity is Severity.ERROR
    assert finding.starts == "out"
    assert finding.sites == ("head", "out")
    assert "No gradient gets back through the output to `head`" in finding.sentence
    assert "`out` is zero for every example" in finding.sentence


def test_a_softmax_over_one_choice() -> None:
    gradient = np.where(np.arange(N) == N - 1, 0.0, -np.inf)
    varying = np.where(np.arange(N) == N - 1, 0.0, 0.4)
    assert one(dead_output.find(make(ENDED, gradient=gradient, varying=varying, loss=FLAT))).starts == "out"


def test_an_output_at_the_end_of_its_range() -> None:
    saturated, gradient = at([N - 1], 1.0, 0.1, N), at([N - 1], 0.0, -4.0, N)
    finding = one(dead_output.find(make(ENDED, saturated=saturated, gradient=gradient, loss=FLAT)))
    assert "`out` is at an end of its range" in finding.sentence


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="all is well"),
        pytest.param({"saturated": at([N - 1], 1.0, 0.1, N), "loss": FALLING}, id="a sigmoid that has learned"),
        pytest.param({"gradient": -np.inf, "loss": FALLING}, id="a hinge loss that is content"),
        pytest.param({"varying": 10.0 ** ramp(N, -0.3, -15.0)}, id="blind before the output"),
        pytest.param({"varying": at([N - 1], 1e-9, 0.4, N)}, id="a regression onto nearly equal targets"),
        pytest.param({"gradient": traces.first_looks(1, -np.inf, 0.0, N)}, id="a head that starts at zero"),
        pytest.param({"saturated": at([N - 3], 1.0, 0.1, N)}, id="a hidden layer"),
        pytest.param({"saturated": at([N - 1], 1.0, 0.1, N)}, id="saturated, but the gradient gets through"),
        pytest.param({"signal": at([N - 1], -np.inf, 0.0, N)}, id="all zero, with a gradient"),
    ],
)
def test_an_output_that_lives(fields: dict[str, Any]) -> None:
    assert dead_output.find(make(ENDED, **{"loss": FLAT, **fields})) == []


# ---- poor initialisation -----------------------------------------------------------------------------------------------


def started(kind: str, sigma: float, sites: list[Site] | None = None, profile: float | None = None, **fields: Any) -> Trace:
    """A network whose initial weights have this sigma_w, and the profile of signal and gradient that theory gives it."""
    sites = sites or traces.stack(8, kind=kind)
    critical = {"ReLU": 2.0**0.5, "relu()": 2.0**0.5, "Tanh": 1.0, "GELU": 2.0}.get(kind, 1.0)
    decades = 8 * np.log10(sigma / critical) if profile is None else profile
    steady = ramp(len(sites), 0.0, decades)
    return make(
        sites,
        weight=np.log10(sigma) - 0.5 * np.log10(64.0),
        signal=fields.pop("signal", steady),
        gradient=fields.pop("gradient", steady[::-1]),
        **fields,
    )


def test_weights_too_small_for_relu() -> None:
    finding = one(poor_initialization.find(started("ReLU", 0.4, loss=FLAT)))
    assert finding.severity is Severity.ERROR
    assert finding.sites == tuple(f"fc{k}" for k in range(1, 8))
    assert "too small for ReLU, 0.28 times the size" in finding.sentence
    assert finding.evidence[0].value == pytest.approx(0.4)
    assert finding.evidence[0].threshold == pytest.approx(2.0**0.5)
    assert finding.evidence[1].value == pytest.approx(7 * np.log10(2.0**0.5 / 0.4))


def test_weights_too_large() -> None:
    finding = one(poor_initialization.find(started("relu()", 3.0, loss=FLAT)))
    assert finding.severity is Severity.ERROR
    assert "too large for ReLU" in finding.sentence
    assert finding.helps[0].startswith("scale the initial weights down")
    large = started("Tanh", 3.0, profile=1.8, signal=0.0, loss=FLAT)
    assert "too large for tanh" in one(poor_initialization.find(large)).sentence, "tanh keeps the signal, the gradient grows"


def test_weights_so_large_that_tanh_is_flat() -> None:
    flat = started("Tanh", 10.0, profile=0.5, signal=0.0, saturated=0.8, loss=np.geomspace(1.0, 0.1, STEPS))
    finding = one(poor_initialization.find(flat))
    assert finding.severity is Severity.ERROR
    assert "10 times the size" in finding.sentence
    assert "80 % of what is behind them is saturated" in finding.sentence
    well = started("Tanh", 10.0, profile=0.5, signal=0.0, saturated=0.8, loss=np.geomspace(1.0, 0.01, STEPS))
    assert one(poor_initialization.find(well)).severity is Severity.WARNING
    data = started("Tanh", 1.1, profile=0.5, signal=0.0, saturated=0.8, loss=FLAT)
    assert poor_initialization.find(data) == [], "inputs out of scale are no matter of weights"


def test_a_fall_from_a_huge_loss_is_no_excuse_for_a_flat_tanh() -> None:
    sites = [*traces.stack(8, kind="Tanh")[:-1], traces.output("head", units=10)]
    fields: dict[str, Any] = {"profile": 0.5, "signal": 0.0, "saturated": 0.8}
    back = started("Tanh", 10.0, sites, loss=np.geomspace(6.2, 0.4, STEPS), **fields)
    assert back.learning.fall > 0.9
    assert one(poor_initialization.find(back)).severity is Severity.ERROR, "ln 10 to 0.4 is less than nine tenths"
    well = started("Tanh", 10.0, sites, loss=np.geomspace(6.2, 0.1, STEPS), **fields)
    assert one(poor_initialization.find(well)).severity is Severity.WARNING


def test_a_poor_start_that_lasts_in_a_training_that_gets_less_than_half_way() -> None:
    third = started("ReLU", 0.4, loss=np.geomspace(1.0, 0.6, STEPS))
    assert third.learned
    assert one(poor_initialization.find(third)).severity is Severity.ERROR
    assert one(poor_initialization.find(replace(third, running=True))).severity is Severity.WARNING


def test_a_poor_start_that_heals_is_a_note() -> None:
    profile = 8 * np.log10(0.4 / 2.0**0.5)
    heals = started(
        "ReLU",
        0.4,
        gradient=traces.first_looks(3, ramp(SITES, profile, 0.0), 0.0),
        signal=traces.first_looks(3, ramp(SITES, 0.0, profile), 0.0),
    )
    finding = one(poor_initialization.find(heals))
    assert finding.severity is Severity.INFO
    assert finding.steps == (0, 2)
    assert one(poor_initialization.find(started("ReLU", 0.4))).severity is Severity.WARNING, "it learns, but is not rid of it"
    extreme = started("ReLU", 0.15)
    assert one(poor_initialization.find(extreme)).severity is Severity.ERROR


def with_norms(kind: str) -> list[Site]:
    sites = traces.stack(8, kind=kind)
    for k in range(7, -1, -1):
        sites.insert(2 * k + 1, traces.output(f"norm{k}", Role.NORM))
    return sites


def in_blocks(kind: str) -> list[Site]:
    """Residual: the sum, not the layer, is what the activation sees."""
    sites = traces.stack(8, kind=kind)
    for k in range(7, -1, -1):
        sites.insert(2 * k + 1, traces.output(f"block{k}", Role.CONTAINER))
    return sites


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(started("ReLU", 2.0**0.5, loss=FLAT), id="He under ReLU"),
        pytest.param(started("Tanh", 1.0, loss=FLAT), id="Xavier under tanh"),
        pytest.param(started("ReLU", 0.4, profile=-0.5, loss=FLAT), id="not confirmed: skip connections"),
        pytest.param(started("ReLU", 3.0, profile=-5.0, loss=FLAT), id="the other way round"),
        pytest.param(started("Sigmoid", 0.4, profile=-6.0, loss=FLAT), id="sigmoid has no right size"),
        pytest.param(started("Softplus", 0.4, profile=-6.0, loss=FLAT), id="nor has softplus"),
        pytest.param(started("ReLU", 0.4, loss=FLAT, more={"weight_between": at(range(SITES, ALL), 0.0)}), id="constants"),
        pytest.param(started("ReLU", 0.4, with_norms("ReLU"), loss=FLAT), id="normalised"),
        pytest.param(
            started("ReLU", 0.4, in_blocks("ReLU"), signal=np.tile([0.0, 0.7, 0.7], 9)[:25], gradient=-4.0, loss=FLAT),
            id="residual blocks",
        ),
        pytest.param(started("ReLU", 0.4, traces.stack(2, kind="ReLU"), profile=-4.0, loss=FLAT), id="shallow"),
        pytest.param(started("ReLU", 0.4, loss=FLAT, looks=LOOKS[3:]), id="the start was not seen"),
        pytest.param(started("ReLU", 0.4, loss=FLAT, parameter={"trainable": False}), id="frozen"),
        pytest.param(started("ReLU", 0.4, loss=FLAT, parameter={"shape": ()}), id="a record without shapes"),
    ],
)
def test_no_poor_initialisation(trace: Trace) -> None:
    assert poor_initialization.find(trace) == []


@pytest.mark.parametrize("kind", ["GELU", "SiLU", "ELU", "LeakyReLU", "Softsign", "Hardtanh", "Mish", "relu6()"])
@pytest.mark.parametrize("sigma", [0.2, 5.0])
def test_every_activation_has_a_size_that_is_too_small_or_too_large(kind: str, sigma: float) -> None:
    findings = poor_initialization.find(started(kind, sigma, profile=np.sign(np.log10(sigma)) * 5.0, loss=FLAT, signal=0.0))
    assert not findings or findings[0].severity is Severity.ERROR
    if sigma < 1.0 or kind not in ("relu6()", "Softsign"):  # these two tame large weights: a factor near one
        assert findings


# ---- symmetric initialisation ------------------------------------------------------------------------------------------


def alike(share: Any, layers: range = range(8)) -> dict[str, Any]:
    """``weight_between`` for layers whose units differ by this share of the second moment; the others differ."""
    between = np.full((len(LOOKS), ALL), np.nan)
    between[:, SITES:] = 4096.0
    between[:, [SITES + k for k in layers]] = 4096.0 * np.broadcast_to(
        np.asarray(share, dtype=float), (len(LOOKS), len(layers))
    )
    return {"weight_between": between}


def test_units_that_are_copies() -> None:
    finding = one(symmetric_initialization.find(make(more=alike(1e-15), loss=FLAT)))
    assert finding.severity is Severity.ERROR
    assert finding.sites == tuple(f"fc{k}.weight" for k in range(8))
    assert "512 units do the work of 8" in finding.sentence
    some = one(symmetric_initialization.find(make(more=alike(1e-15), loss=np.geomspace(1.0, 0.5, STEPS))))
    assert some.severity is Severity.ERROR, "it learned what one unit can"


def test_weights_that_are_all_zero() -> None:
    weight = np.where(np.arange(WEIGHTS) < 8, -np.inf, 0.0)
    finding = one(symmetric_initialization.find(make(weight=weight, more=alike(0.0), loss=FLAT)))
    assert "are all zero" in finding.sentence


def test_a_task_for_one_unit_is_a_note() -> None:
    assert one(symmetric_initialization.find(make(more=alike(1e-15)))).severity is Severity.INFO


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"more": alike(1.0)}, id="random"),
        pytest.param({"more": alike(np.where(np.array(LOOKS)[:, None] < 2, 0.0, 0.1))}, id="moves apart after the start"),
        pytest.param({"more": alike(0.0, range(8, 9))}, id="only the output layer"),
        pytest.param({"more": alike(0.0), "parameter": {"trainable": False}}, id="frozen"),
        pytest.param({"more": alike(np.nan)}, id="vectors"),
        pytest.param({"more": alike(0.0), "parameter": {"shape": (1, 64)}}, id="one unit"),
        pytest.param({"more": alike(np.where(np.array(LOOKS)[:, None] > 4, 0.0, 0.5))}, id="became alike later"),
        pytest.param({"more": alike(0.0), "looks": LOOKS[:4]}, id="a few steps"),
    ],
)
def test_units_that_differ(fields: dict[str, Any]) -> None:
    if "looks" in fields:
        fields = {**fields, "more": {k: v[: len(fields["looks"])] for k, v in fields["more"].items()}}
    assert symmetric_initialization.find(make(loss=FLAT, **fields)) == []


# ---- shattered gradient ------------------------------------------------------------------------------------------------

DEEP = 41


def kernel(left: FloatArray, layers: int = 20) -> dict[str, Any]:
    sites = 2 * layers + 1
    cross = np.full(sites + layers + 1, np.nan)
    cross[:sites] = left
    return {"gradient_kernel_cross": cross, "gradient_kernel_head": 1.0}


def test_shattered() -> None:
    finding = one(shattered_gradient.find(make(20, more=kernel(10.0 ** ramp(DEEP, -4.0, 0.0)), loss=FLAT)))
    assert finding.severity is Severity.ERROR
    assert finding.sites[0] == "fc0"
    assert finding.starts not in finding.sites
    assert "Gradients are shattered before" in finding.sentence


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(make(20, more=kernel(10.0 ** ramp(DEEP, -4.0, 0.0))), id="plain and deep, but it learns"),
        pytest.param(make(20, more=kernel(ramp(DEEP, 0.6, 1.0)), loss=FLAT), id="skip connections"),
        pytest.param(make(8, more=kernel(10.0 ** ramp(SITES, -4.0, 0.0), 8), loss=FLAT), id="eight layers"),
        pytest.param(make(12, more=kernel(10.0 ** ramp(25, -4.0, 0.0), 12), loss=FLAT), id="twelve layers"),
        pytest.param(
            make(20, more=kernel(10.0 ** ramp(DEEP, -4.0, 0.0)), gradient=ramp(DEEP, -5.0, 0.0), loss=FLAT), id="vanishing"
        ),
        pytest.param(
            make(20, more=kernel(10.0 ** ramp(DEEP, -4.0, 0.0)), gradient=ramp(DEEP, 5.0, 0.0), loss=FLAT), id="exploding"
        ),
        pytest.param(make(20, more=kernel(10.0 ** ramp(DEEP, -4.0, 0.0)), varying=1e-6, loss=FLAT), id="blind"),
        pytest.param(make(20, more=kernel(10.0 ** ramp(DEEP, -4.0, 0.0)), loss=FLAT).until(60), id="sixty steps"),
        pytest.param(make(20, more=kernel(np.full(DEEP, 0.01)), loss=FLAT), id="nothing to shatter"),
        pytest.param(make(20, more=kernel(np.full(DEEP, np.nan)), loss=FLAT), id="not measured"),
    ],
)
def test_not_shattered(trace: Trace) -> None:
    assert shattered_gradient.find(trace) == []


# ---- attention ---------------------------------------------------------------------------------------------------------

HEADS = [Site(f"attention{k}", Place.ATTENTION, "softmax()", Role.ATTENTION, k, chain=-1) for k in range(4)]


def attending(spread: object, peaked: object = 0.0, logit: float = 5.0, **fields: Any) -> Trace:
    shape = (len(LOOKS), 4)

    def put(value: object) -> FloatArray:
        y = np.full((len(LOOKS), ALL + 4), np.nan)
        y[:, ALL:] = np.broadcast_to(np.asarray(value, dtype=float), shape)
        return y

    more = {"attention_rows": put(100.0), "attention_entropy": 100.0 * put(spread), "attention_peaked": 100.0 * put(peaked)}
    return make(others=HEADS, more={**more, "attention_logit": put(logit)}, **fields)


def test_attention_that_has_collapsed() -> None:
    finding = one(attention_collapse.find(attending(0.01, 0.99, 3e4, loss=FLAT)))
    assert finding.severity is Severity.ERROR
    assert finding.sites == tuple(s.name for s in HEADS)
    assert "Attention has collapsed in 4 of 4 layers" in finding.sentence
    undone = np.concatenate([np.geomspace(1.0, 0.1, 60), np.full(60, 0.7)])
    assert one(attention_collapse.find(attending(0.01, 0.99, loss=undone))).severity is Severity.ERROR


def test_rows_that_are_choices_before_the_first_step() -> None:
    finding = one(attention_collapse.find(attending(0.05, 0.99)))
    assert finding.severity is Severity.WARNING
    assert "Attention has collapsed" in finding.sentence
    slow = attending(0.01, 0.99, loss=np.geomspace(1.0, 0.3, STEPS))
    assert one(attention_collapse.find(slow)).severity is Severity.ERROR, "they never opened"
    assert one(attention_collapse.find(attending(0.01, 0.99, loss=np.geomspace(1.0, 0.01, STEPS)))).severity is Severity.WARNING


def test_rows_that_are_choices_from_the_first_step_in_a_training_that_gets_less_than_half_way() -> None:
    assert one(attention_collapse.find(attending(0.05, 0.99, loss=np.geomspace(1.0, 0.6, STEPS)))).severity is Severity.ERROR
    slow = attending(0.05, 0.99, loss=np.geomspace(1.0, 0.3, STEPS))
    assert one(attention_collapse.find(slow)).severity is Severity.ERROR
    assert one(attention_collapse.find(replace(slow, running=True))).severity is Severity.WARNING, "it may yet open"


def test_steep_logits_over_few_places() -> None:
    finding = one(attention_collapse.find(attending(0.4, 0.5, 60.0, loss=FLAT)))
    assert finding.severity is Severity.ERROR
    assert "Attention has collapsed in 4 of 4 layers" in finding.sentence
    assert "rows keep 40 % of the entropy they could have, and the largest logit is 60" in finding.sentence
    half = one(attention_collapse.find(attending(0.4, 0.5, [60.0, 60.0, 5.0, 5.0], loss=FLAT)))
    assert half.sites == ("attention0", "attention1")


def test_huge_logits_are_a_warning_while_it_learns() -> None:
    finding = one(attention_collapse.find(attending(0.5, 0.1, 2e4)))
    assert finding.severity is Severity.WARNING
    assert "Attention logits are huge" in finding.sentence


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(attending(np.where(np.array(LOOKS)[:, None] < 20, 0.9, 0.01)), id="sharp heads of a model that learns"),
        pytest.param(
            attending(np.where(np.array(LOOKS)[:, None] < 20, 0.9, 0.01), loss=np.geomspace(1.0, 0.6, STEPS)),
            id="sharp heads of a model that learns a little",
        ),
        pytest.param(attending(0.9, loss=FLAT), id="spread"),
        pytest.param(attending([0.01, 0.9, 0.9, 0.9], loss=FLAT), id="one sharp layer"),
        pytest.param(attending(np.where(np.array(LOOKS)[:, None] < 20, 0.01, 0.9), loss=FLAT), id="at the start only"),
        pytest.param(attending(np.nan, np.nan, np.nan, loss=FLAT), id="not measured"),
        pytest.param(attending(0.4, 0.5, 60.0), id="steep, and it learns"),
        pytest.param(attending(0.4, 0.5, 60.0, loss=np.geomspace(1.0, 0.6, STEPS)), id="steep, and it learns a little"),
        pytest.param(attending(0.4, 0.5, 40.0, loss=FLAT), id="logits of a usual size"),
        pytest.param(attending(0.6, 0.5, 60.0, loss=FLAT), id="steep, with most of the entropy left"),
        pytest.param(attending(0.4, 0.5, [60.0, 5.0, 5.0, 5.0], loss=FLAT), id="one steep layer"),
        pytest.param(
            attending(0.4, 0.5, np.where(np.array(LOOKS)[:, None] < 1, 5.0, 60.0), loss=FLAT), id="steep after the start"
        ),
        pytest.param(make(loss=FLAT), id="no attention"),
    ],
)
def test_attention_that_works(trace: Trace) -> None:
    assert attention_collapse.find(trace) == []


# ---- through time ------------------------------------------------------------------------------------------------------


def over_time(decades: float, steps: float = 50.0, **fields: Any) -> Trace:
    """A network whose first layer is an nn.RNN over so many steps, its gradient changing by so many decades in all."""
    sites = [traces.output("rnn", Role.RECURRENT), *traces.stack(2)]
    weights = 3
    size = len(sites) + weights
    lags = {f"time_lag_{k}": at([0], 10.0 ** (2.0 * decades * k / 8.0), size=size) for k in range(9)}
    return make(sites, more={**lags, "time_steps": at([0], steps, size=size)}, **fields)


def unrolled(gradient: FloatArray, calls: int = 20, **fields: Any) -> Trace:
    """A cell that is called in a loop."""
    cells = [replace(traces.output(f"cell #{k}", Role.RECURRENT), module="cell", call=k) for k in range(calls)]
    sites = [*cells, traces.output("head")]
    return make(sites, gradient=np.append(gradient, 0.0), **fields)


@pytest.mark.parametrize("trace", [over_time(-8.0, loss=FLAT), unrolled(ramp(20, -8.0, 0.0), loss=FLAT)])
def test_vanishing_through_time(trace: Trace) -> None:
    finding = one(vanishing_through_time.find(trace))
    assert finding.severity is Severity.ERROR
    assert "fades through time: by" in finding.sentence
    assert exploding_through_time.find(trace) == []


@pytest.mark.parametrize("trace", [over_time(8.0, loss=FLAT), unrolled(ramp(20, 8.0, 0.0), loss=FLAT)])
def test_exploding_through_time(trace: Trace) -> None:
    finding = one(exploding_through_time.find(trace))
    assert finding.severity is Severity.ERROR
    assert "grows through time: by" in finding.sentence
    assert vanishing_through_time.find(trace) == []


def mean_only(varying: float) -> Trace:
    """A regression whose loss fell by nine tenths and stands there."""
    loss = 0.1 + 0.9 * np.exp(-np.arange(STEPS) / 5.0)
    return over_time(-8.0, varying=varying, loss=loss)


def test_to_know_the_mean_of_the_targets_is_not_to_learn() -> None:
    finding = one(vanishing_through_time.find(mean_only(1e-3)))
    assert "where the mean of the targets puts it" in finding.sentence
    assert vanishing_through_time.find(mean_only(0.5)) == [], "an output that varies as the targets do"


def test_growth_that_clipping_holds_is_a_warning() -> None:
    assert one(exploding_through_time.find(over_time(4.0))).severity is Severity.WARNING


def test_growth_through_time_in_a_training_that_gets_less_than_half_way() -> None:
    third = over_time(4.0, loss=np.geomspace(1.0, 0.6, STEPS))
    assert third.learned
    assert one(exploding_through_time.find(third)).severity is Severity.ERROR
    assert one(exploding_through_time.find(replace(third, running=True))).severity is Severity.WARNING
    assert one(exploding_through_time.find(over_time(4.0, loss=np.geomspace(1.0, 0.3, STEPS)))).severity is Severity.WARNING
    passing = {k: np.where(np.array(LOOKS)[:, None] < 40, v, 1.0) for k, v in third.values.items() if k.startswith("time_lag")}
    gone = replace(third, values={**third.values, **passing})
    assert one(exploding_through_time.find(gone)).severity is Severity.WARNING, "it does not last"


def test_a_first_step_that_explodes_is_the_cause_of_what_comes_after() -> None:
    y = np.zeros((len(LOOKS), 21))
    y[0] = ramp(21, 9.0, 0.0)
    y[1:] = np.nan
    sites = [replace(traces.output(f"cell #{k}", Role.RECURRENT), module="cell", call=k) for k in range(20)]
    trace = make([*sites, traces.output("head")], gradient=y, loss=np.append(1.0, np.full(STEPS - 1, np.nan)))
    assert one(exploding_through_time.find(trace)).severity is Severity.ERROR


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(over_time(-8.0), id="forgets, and learns"),
        pytest.param(over_time(-2.0, loss=FLAT), id="remembers"),
        pytest.param(over_time(-8.0, update=-6.0, loss=FLAT), id="steps too short to tell"),
        pytest.param(over_time(2.0, loss=FLAT), id="a little growth"),
        pytest.param(over_time(-8.0, steps=5.0, loss=FLAT), id="five steps"),
        pytest.param(unrolled(ramp(4, -8.0, 0.0), calls=4, loss=FLAT), id="a layer shared four times"),
        pytest.param(unrolled(np.full(20, -8.0), loss=FLAT), id="every step has a loss"),
        pytest.param(make(20, gradient=ramp(DEEP, -8.0, 0.0), loss=FLAT), id="depth is not time"),
    ],
)
def test_time_that_is_well(trace: Trace) -> None:
    assert vanishing_through_time.find(trace) == []
    assert exploding_through_time.find(trace) == []


# ---- laws --------------------------------------------------------------------------------------------------------------

SICK: dict[str, Callable[..., Trace]] = {
    "unowned": lambda **f: make(marks={Flag.UNOWNED: lost(4)}, **f),
    "cut": lambda **f: make(gradient=CUT + f.pop("power", 0.0), weight_gradient=ZERO, **f),
    "underflow": lambda **f: make(half(), more=narrow_gradients(0.9, 0.6), **f),
    "unmoved": lambda **f: make(more=unmoved(0.99), parameter={"dtype": "bfloat16"}, **f),
    "dead output": lambda **f: make(
        ENDED, gradient=np.where(np.arange(N) == N - 1, 0.0, -np.inf), signal=np.where(np.arange(N) == N - 1, -np.inf, 0.0), **f
    ),
    "small weights": lambda **f: started("ReLU", 0.4, **f),
    "large weights": lambda **f: started("Tanh", 3.0, profile=1.8, signal=0.0, **f),
    "copies": lambda **f: make(more=alike(1e-15), **f),
    "shattered": lambda **f: make(20, more=kernel(10.0 ** ramp(DEEP, -4.0, 0.0)), **f),
    "attention": lambda **f: attending(0.01, 0.99, 3e4, **f),
    "forgets": lambda **f: over_time(-8.0, **f),
    "explodes in time": lambda **f: over_time(8.0, **f),
    "unrolled": lambda **f: unrolled(ramp(20, -8.0, 0.0), **f),
}


def found(trace: Trace) -> list[Finding]:
    return [finding for rule in RULES for finding in rule.find(trace)]


def outline(findings: list[Finding]) -> list[tuple[object, ...]]:
    return [(f.rule, f.severity, f.sites, f.steps, f.starts, f.shows) for f in findings]


@pytest.mark.parametrize("name", SICK)
@pytest.mark.parametrize("power", [-10, 10])
def test_a_loss_in_other_units_is_the_same_disease(name: str, power: int) -> None:
    plain = SICK[name](loss=FLAT)
    assert found(plain)
    scaled = SICK[name](loss=FLAT * 2.0**power)
    values = dict(scaled.values)
    for key in ("gradient_sumsq", "weight_gradient_sumsq"):
        values[key] = values[key] * 4.0**power
    assert outline(found(replace(scaled, values=values))) == outline(found(plain))


@pytest.mark.parametrize("name", SICK)
def test_width_does_not_matter(name: str) -> None:
    """The same densities with sixteen times as many elements."""
    trace = SICK[name](loss=FLAT)
    counts = ("count", "sumsq", "varying", "zeros", "tiny", "between")
    values = {k: v * 16.0 if k.endswith(counts) else v for k, v in trace.values.items()}
    sites = tuple(replace(s, units=s.units * 16) for s in trace.sites)
    wide = replace(trace, values=values, sites=sites)
    assert [(f.rule, f.severity, f.sites) for f in found(wide)] == [(f.rule, f.severity, f.sites) for f in found(trace)]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SICK)), st.integers(-1, STEPS), st.sampled_from([FLAT, FALLING, np.full(STEPS, np.nan)]))
def test_a_training_may_be_judged_at_any_time(name: str, step: int, loss: FloatArray) -> None:
    trace = SICK[name](loss=loss).until(step)
    names = {s.name for s in trace.sites}
    for finding in found(trace):
        assert set(finding.sites) | set(finding.shows) | {finding.starts} <= names
        assert 0 <= finding.steps[0] <= finding.steps[1] <= step
        assert 0 <= finding.peak <= step
        assert finding.sentence.endswith(".")
        assert "nan" not in finding.sentence.replace("tanh", "")
        assert all(np.isfinite(e.value) for e in finding.evidence)
        assert finding.helps


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(traces.empty(), id="nothing"),
        pytest.param(make(0, loss=FLAT), id="one site"),
        pytest.param(make([], loss=FLAT), id="no sites"),
        pytest.param(make(8, looks=(), loss=()), id="sites but no looks"),
        pytest.param(make(8, gradient=np.nan, signal=np.nan, varying=np.nan, weight_gradient=np.nan, loss=FLAT), id="only NaN"),
        pytest.param(make(loss=FLAT), id="a healthy network on a hopeless task"),
    ],
)
def test_silence(trace: Trace) -> None:
    assert found(trace) == []
