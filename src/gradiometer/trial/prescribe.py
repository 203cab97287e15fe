"""Prescribing: theory proposes. Which treatments are worth a trial, in which order, and which are not tried, and why.

Every remedy says what of it answers the findings (its ``plan``); this adds pairs that belong together, asks theory what the
network would look like after each (`gradiometer.trial.outlook`), and puts them in order: what theory expects to suffice
first, the least invasive of it at the front, then what it does not cover, then what may help, and last what it says cannot
help, with the reason. Within each of these groups every remedy gets its first turn before any gets its second, so that a
wave of the race is never four shades of one idea.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gradiometer.errors import GradiometerError
from gradiometer.trial.outlook import Outlook, Stack, outlook, stack_of, treated
from gradiometer.trial.result import Candidate, NotTried, Prediction, Promise
from gradiometer.types import Prescription, Severity, Treatment

if TYPE_CHECKING:
    from gradiometer.remedies.base import Option, Remedy, Symptoms  # needs torch

LOST: Final = 1.5
"""Decades over the whole depth that a gradient may change by and still train evenly: the level of exploding gradient."""
ALIKE: Final = 2.0
"""-log10 of what is left of the difference between inputs, or of the likeness of their gradients, that still trains (half of
the four decades at which a network is blind to its input)."""
GONE: Final = 6.0
"""Decades beyond which no training finds its way: below what half precision resolves (as in vanishing-gradient)."""
MOST_PAIRED: Final = 2
"""Treatments of each remedy that go into pairs."""
PAIRS: Final = (
    ("activation", "initialise"),
    ("normalise", "initialise"),
    ("normalise", "activation"),
    ("residual", "initialise"),
    ("optimizer", "clip"),
    ("initialise", "optimizer"),
    ("normalise", "optimizer"),
    ("initialise", "clip"),
)
"""Remedies that complete each other, by name: another function needs other weights, another start another step."""

_DEPTH_LOST: Final = ("initialise", "normalise", "residual", "activation", "fewer-layers", "pretrain", "optimizer")
_DEPTH_GROWN: Final = ("initialise", "normalise", "clip", "optimizer", "residual", "activation")
_STEPS: Final = ("optimizer", "clip", "initialise", "normalise", "regularise")
_UNITS: Final = ("initialise", "activation", "optimizer", "normalise", "residual")
_TIME: Final = ("initialise", "clip", "activation", "optimizer", "normalise")

ANSWERS: Final[Mapping[str, tuple[str, ...]]] = {
    "vanishing-gradient": _DEPTH_LOST,
    "input-blindness": _DEPTH_LOST,
    "signal-collapse": _DEPTH_LOST,
    "shattered-gradient": ("residual", "initialise", "fewer-layers", "activation"),
    "poor-initialization": ("initialise", "normalise", "activation", "residual", "optimizer"),
    "symmetric-initialization": ("initialise",),
    "exploding-gradient": _DEPTH_GROWN,
    "signal-explosion": _DEPTH_GROWN,
    "dead-units": _UNITS,
    "dead-output": _UNITS,
    "saturated-units": _UNITS,
    "learning-rate-too-high": _STEPS,
    "divergence": _STEPS,
    "loss-spike": _STEPS,
    "oscillation": _STEPS,
    "nonfinite": _STEPS,
    "stale-second-moment": _STEPS,
    "learning-rate-too-low": ("optimizer", "normalise"),
    "plateau": ("optimizer", "initialise", "normalise", "residual", "activation"),
    "precision-underflow": ("optimizer", "initialise", "normalise"),
    "skipped-steps": ("optimizer", "clip", "initialise"),
    "clipping-always-on": ("optimizer", "clip"),
    "vanishing-through-time": _TIME,
    "exploding-through-time": _TIME,
    "attention-collapse": ("initialise", "normalise", "optimizer"),
}
"""Root cause to the remedies that act on it, the most promising first (docs/theory.md; ours). Others are tried after these."""

OF_THE_RATE: Final = ("learning-rate-too-high", "learning-rate-too-low", "divergence", "nonfinite")
"""Rules whose cause is the learning rate itself, most likely."""
_DOWN: Final = (0.1, 0.01, 0.001)
DOSES: Final[Mapping[str, tuple[float, ...]]] = {
    **dict.fromkeys(("learning-rate-too-high", "divergence", "nonfinite"), _DOWN),
    **dict.fromkeys(("oscillation", "loss-spike", "dead-units", "saturated-units", "stale-second-moment"), _DOWN[:2]),
    "learning-rate-too-low": (10.0, 100.0, 1000.0),
    "plateau": (10.0, 0.1),
}
"""Root cause to factors of the learning rate that are tried beside what `optimizer` itself proposes."""
SAME_DOSE: Final = 2.0
"""Factors that differ by less are one dose."""

DEPTH: Final = (
    *("vanishing-gradient", "exploding-gradient", "input-blindness", "signal-collapse", "signal-explosion"),
    *("poor-initialization", "shattered-gradient", "saturated-units", "dead-units"),
)
"""Rules whose cause lies in how signals go along depth, which is what theory predicts."""
STEP_REMEDIES: Final = ("clip", "optimizer", "regularise")
"""Remedies that change steps and leave the profile along depth as it is."""

_NOT_AGAINST: Final = {
    "clip": "Clipping shortens steps that are too long; nothing that was found makes steps too long.",
    "regularise": "Dropout and weight decay answer overfitting, which is not what ails it.",
    "pretrain": "Layer-wise pre-training is for deep plain networks of saturating activations.",
    "fewer-layers": "No hidden layer of it can be spared, or its depth is not what ails it.",
    "residual": "Shortcuts answer depth, which is not what ails it.",
    "normalise": "Normalisation answers signals that change along depth, which is not what ails it.",
    "activation": "Its activations are not what ails it.",
    "initialise": "Its weights are not what ails it.",
    "optimizer": "Its steps are not what ails it.",
}
"""Why a remedy has no plan for the findings."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is tried, in order, and what is not."""

    candidates: tuple[Candidate, ...]
    not_tried: tuple[NotTried, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which remedies may be used.

    Attributes:
        only: names; empty for all.
        without: names.
    """

    only: tuple[str, ...] = field(default=())
    without: tuple[str, ...] = field(default=())

    def check(self, known: Sequence[str]) -> None:
        """Refuse names that do not exist, and choices that leave nothing.

        Raises:
            GradiometerError: one of those.
        """
        for name in (*self.only, *self.without):
            if name not in known:
                raise GradiometerError(f"There is no remedy {name!r}.", "The remedies are: " + ", ".join(known) + ".")
        if not any(self.allows(name) for name in known):
            raise GradiometerError("No remedy is left to try.", "Leave out --only or --without.")

    def allows(self, name: str) -> bool:
        """Whether a remedy may be used."""
        return (not self.only or name in self.only) and name not in self.without


def propose(symptoms: Symptoms, choice: Choice = Choice(), remedies: Sequence[Remedy] | None = None) -> Proposal:
    """Candidates for a sick training, in the order in which they should be tried.

    Args:
        symptoms: of the untreated run.
        choice: which remedies may be used.
        remedies: those there are; the table by default.
    """
    known = _table(remedies)
    choice.check(tuple(known))
    allowed = {name: remedy for name, remedy in known.items() if choice.allows(name)}
    plans = {name: remedy.plan(symptoms) for name, remedy in allowed.items()}
    stack = stack_of(symptoms.trace, symptoms.findings) if _root(symptoms) in DEPTH else None
    now = outlook(stack) if stack is not None else None
    tried: list[tuple[tuple[Treatment, ...], int]] = []
    for plan in plans.values():
        tried += [((treatment,), turn) for turn, treatment in enumerate(plan)]
    tried += [((treatment,), turn) for turn, treatment in _doses(_root(symptoms), plans.get("optimizer", ()))]
    # pairs wait for the first turn of every single treatment of their group
    tried += [(treatments, 1) for treatments in _pairs(plans, allowed)]
    different = {_key(treatments): (treatments, turn) for treatments, turn in tried}
    found: list[tuple[tuple[float, ...], Candidate]] = []
    for number, (treatments, turn) in enumerate(different.values()):
        outcome = _predict(treatments, stack, now)
        candidate = _candidate(treatments, outcome, known)
        rank = _ORDER.index(outcome.promise)
        strain = _strain_of(outcome)
        place = max(_place(symptoms, t.remedy, tuple(known)) for t in treatments)
        weight = candidate.invasiveness + strain if outcome.covered else place
        found.append(((rank, turn, weight, place, number), candidate))
    found.sort(key=lambda pair: pair[0])
    not_tried = [_not_against(name, symptoms, stack) for name, plan in plans.items() if not plan]
    not_tried += [NotTried(name, "Left out by --only or --without.") for name in known if name not in allowed]
    return Proposal(tuple(c for _, c in found), tuple(not_tried))


_ORDER: Final = (Promise.SUFFICES, Promise.UNKNOWN, Promise.MAY_HELP, Promise.CANNOT)


def _table(remedies: Sequence[Remedy] | None) -> dict[str, Remedy]:
    if remedies is None:
        from gradiometer.remedies import REMEDIES

        remedies = REMEDIES
    return {remedy.name: remedy for remedy in remedies}


def _root(symptoms: Symptoms) -> str:
    return symptoms.rules[0] if symptoms.rules else ""


def _place(symptoms: Symptoms, remedy: str, known: tuple[str, ...]) -> int:
    """Position of a remedy among those that answer the root cause; what answers another finding, and the rest, come after."""
    answers = dict.fromkeys(
        name for f in symptoms.findings if f.severity is not Severity.INFO for name in ANSWERS.get(f.rule, ())
    )
    order = list(answers)
    return order.index(remedy) if remedy in answers else len(order) + known.index(remedy)


def _candidate(treatments: tuple[Treatment, ...], outcome: Prediction, known: Mapping[str, Remedy]) -> Candidate:
    safety = max((known[t.remedy].safety for t in treatments), key=lambda s: s.rank)
    return Candidate(Prescription(treatments, outcome.sentence), safety, outcome)


def _doses(root: str, plan: Sequence[Treatment]) -> list[tuple[int, Treatment]]:
    """Learning rates by powers of ten, with their turn: how far off one is cannot be told from a training that it ruins.

    Args:
        root: rule of the root cause.
        plan: what the remedy itself would try.
    """
    if not plan or root not in DOSES:
        return []
    known = [float(t.settings.get("value", 0.0)) for t in plan if t.settings.get("change") == "lr"]
    factors = [f for f in DOSES[root] if all(not 1.0 / SAME_DOSE < f / k < SAME_DOSE for k in known if k > 0.0)]
    turn = 0 if root in OF_THE_RATE else 1
    return [(turn, Treatment("optimizer", {"change": "lr", "value": factor})) for factor in factors]


# ---- pairs -----------------------------------------------------------------------------------------------------------------


def _pairs(plans: Mapping[str, Sequence[Treatment]], allowed: Mapping[str, Remedy]) -> list[tuple[Treatment, ...]]:
    """Two remedies at a time, in the order of `PAIRS`."""
    made: list[tuple[Treatment, ...]] = []
    for first, second in PAIRS:
        if first not in plans or second not in plans:
            continue
        if (first, second) == ("activation", "initialise"):
            made += [
                (t, suited) for t in plans[first][: MOST_PAIRED + 1] if (suited := _suited(t, allowed[second])) is not None
            ]
            continue
        made += [(one, other) for one in plans[first][:MOST_PAIRED] for other in plans[second][:1]]
    return made


def _suited(activation: Treatment, initialise: Remedy) -> Treatment | None:
    """The initialisation that another activation asks for: critical for the layer's own, whatever that is by then."""
    if activation.settings.get("to") == "selu":  # brings its own
        return None
    option = next((o for o in initialise.options if o.name == "scheme"), None)
    wanted = "he" if "relu" in str(activation.settings.get("to", "")) else "critical"
    return Treatment("initialise", {"scheme": wanted}) if option is not None and wanted in option.choices else None


# ---- what theory says --------------------------------------------------------------------------------------------------------


def _predict(treatments: tuple[Treatment, ...], stack: Stack | None, now: Outlook | None) -> Prediction:
    """What theory expects after these treatments."""
    if stack is None or now is None or _strain(now) <= 1.0:  # not a stack, or its depth is in order as it is
        return Prediction(Promise.UNKNOWN)
    after = treated(stack, treatments)
    if after is None:
        return Prediction(Promise.UNKNOWN)
    then = outlook(after)
    strain = _strain(then)
    steps_only = all(t.remedy in STEP_REMEDIES for t in treatments)
    if strain <= 1.0:
        promise = Promise.SUFFICES
    elif steps_only and now.decades > -LOST and now.apart > -GONE:  # what grows can be cut short
        promise = Promise.MAY_HELP
    elif abs(then.decades) >= GONE or then.apart <= -GONE:
        promise = Promise.CANNOT
    else:
        promise = Promise.MAY_HELP
    return Prediction(promise, then.decades, then.apart, then.alike, _why(treatments, then, promise, steps_only))


def _strain(expected: Outlook) -> float:
    """How far a network is from what trains: above 1 too far."""
    return max(abs(expected.decades) / LOST, -expected.apart / ALIKE, -expected.alike / ALIKE)


def _strain_of(prediction: Prediction) -> float:
    return _strain(Outlook(prediction.decades, prediction.apart, prediction.alike)) if prediction.covered else 0.0


def _why(treatments: tuple[Treatment, ...], then: Outlook, promise: Promise, steps_only: bool) -> str:
    gradient = (
        f"the gradient {'loses' if then.decades < 0 else 'gains'} {abs(then.decades):.1f} decades on its way to the input"
    )
    if abs(then.decades) < 0.1:
        gradient = "the gradient keeps its size"
    sentence = f"Theory expects: {gradient}, and at the end {_differs(then.apart)} of the signal differs between inputs."
    if promise is Promise.CANNOT and steps_only:
        return f"It changes steps, and leaves the profile along depth as it is. {sentence}"
    if promise is Promise.CANNOT and any(_keeps_the_mean(t) for t in treatments):
        return (
            f"{sentence} Normalising over the units of one example keeps what all examples have in common; "
            "over the batch it is taken out."
        )
    return sentence


def _differs(apart: float) -> str:
    share = 100.0 * 10.0**apart
    return "all" if share >= 99.5 else f"{share:.2g} %" if share >= 0.01 else f"only 10^{apart:.0f}"


def _keeps_the_mean(treatment: Treatment) -> bool:
    kind = str(treatment.settings.get("kind", ""))
    return treatment.remedy == "normalise" and "batch" not in kind and not kind.startswith("weight")


def _not_against(name: str, symptoms: Symptoms, stack: Stack | None) -> NotTried:
    rules = ", ".join(dict.fromkeys(f.rule for f in symptoms.findings if not f.because)) or "nothing"
    if name == "clip" and stack is not None and outlook(stack).decades < -LOST:
        lost = f"{abs(outlook(stack).decades):.0f} decades"
        return NotTried(name, f"Clipping shortens gradients; here the first layers get {lost} too little, which it leaves so.")
    return NotTried(name, _NOT_AGAINST.get(name, f"It has no answer to {rules}."))


# ---- others to compare with --------------------------------------------------------------------------------------------------


def random_candidates(seed: int, count: int = 64, remedies: Sequence[Remedy] | None = None) -> tuple[Candidate, ...]:
    """Treatments drawn at random from the same remedies, one or two at a time: what this order must be better than.

    Args:
        seed: of the draw.
        count: how many.
        remedies: those there are; the table by default.
    """
    known = _table(remedies)
    rng = random.Random(seed)
    found: dict[str, Candidate] = {}
    for _ in range(20 * count):
        names = rng.sample(list(known), min(rng.choice((1, 2)), len(known)))
        treatments = tuple(Treatment(name, {o.name: _drawn(o, rng) for o in known[name].options}) for name in names)
        outcome = Prediction(Promise.UNKNOWN, sentence="Drawn at random.")
        found.setdefault(_key(treatments), _candidate(treatments, outcome, known))
        if len(found) == count:
            break
    return tuple(found.values())


def _drawn(option: Option, rng: random.Random) -> str | float | bool:
    """A value of an option: one of its choices, or within a factor of ten of its default."""
    if option.choices:
        return rng.choice(option.choices)
    if isinstance(option.default, bool):
        return rng.random() < 0.5
    if isinstance(option.default, str) or option.default <= 0.0:
        return option.default
    value = option.default * 10.0 ** rng.uniform(-1.0, 1.0)
    return max(1, round(value)) if isinstance(option.default, int) else float(f"{value:.3g}")


_SELU: Final = (Treatment("activation", {"to": "selu", "replace": "all"}),)
_BATCH_NORM: Final = (Treatment("normalise", {"kind": "batch"}),)
_RELU_HE: Final = (Treatment("activation", {"to": "relu", "replace": "all"}), Treatment("initialise", {"scheme": "he"}))
_AGAIN: Final = (Treatment("initialise", {"scheme": "default"}),)

AUTOTRAINER: Final[Mapping[str, tuple[tuple[Treatment, ...], ...]]] = {
    "vanish": (_SELU, _RELU_HE, _BATCH_NORM),
    "explode": (
        _SELU,
        (Treatment("activation", {"to": "relu", "replace": "all"}),),
        (Treatment("clip", {"kind": "value"}),),
        (Treatment("activation", {"to": "tanh", "replace": "all"}),),
        _BATCH_NORM,
    ),
    "dying": (_SELU, _BATCH_NORM, _AGAIN, _AGAIN, _AGAIN, (Treatment("activation", {"to": "leaky-relu", "replace": "all"}),)),
}
"""The fixed lists of AUTOTRAINER (Zhang et al., ICSE 2021), its order, for the problems that it knows of depth and units."""

_AS_AUTOTRAINER: Final = {
    "vanish": ("vanishing-gradient", "input-blindness", "signal-collapse", "vanishing-through-time", "saturated-units"),
    "explode": ("exploding-gradient", "signal-explosion", "exploding-through-time", "nonfinite", "divergence"),
    "dying": ("dead-units", "dead-output"),
}


def autotrainer_candidates(symptoms: Symptoms, remedies: Sequence[Remedy] | None = None) -> tuple[Candidate, ...]:
    """What AUTOTRAINER would try for these symptoms, in its order; of what it does not know, its list for vanishing."""
    known = _table(remedies)
    rules = symptoms.rules
    problem = next((name for rule in rules for name, own in _AS_AUTOTRAINER.items() if rule in own), "")
    if not problem:
        weights = [f for f in symptoms.findings if f.rule == "poor-initialization"]
        problem = "explode" if weights and "too large" in weights[0].sentence else "vanish"
    outcome = Prediction(Promise.UNKNOWN, sentence="From AUTOTRAINER's list.")
    different = {_key(treatments): treatments for treatments in AUTOTRAINER[problem]}
    return tuple(_candidate(t, outcome, known) for t in different.values() if all(one.remedy in known for one in t))


def _key(treatments: tuple[Treatment, ...]) -> str:
    """What tells treatments apart, whatever the order of their settings."""
    return repr([(t.remedy, sorted(t.settings.items()), t.sites) for t in treatments])


Proposer = Callable[["Symptoms"], tuple[Sequence[Candidate], Sequence[NotTried]]]


def proposer(choice: Choice) -> Proposer:
    """`propose` as a race calls it."""

    def of(symptoms: Symptoms) -> tuple[Sequence[Candidate], Sequence[NotTried]]:
        found = propose(symptoms, choice)
        return found.candidates, found.not_tried

    return of
