"""L7, the doctor game: a hidden network, sick or well; name what ails it, choose a cure, and see what really happens."""

from __future__ import annotations

from typing import Final

from gradiometer.app.scene import Choice, Exhibit, LabPage, Preset, Question, Scene, Slider, State, Toggle
from gradiometer.figures.activation_health import activation_health
from gradiometer.figures.depth_profile import depth_profile
from gradiometer.figures.heatmap import heatmap
from gradiometer.figures.lab import doctor as figures
from gradiometer.figures.layer_gain import layer_gain
from gradiometer.figures.loss_curve import loss_curve
from gradiometer.figures.scale import nothing
from gradiometer.figures.tables import TABLES, Table
from gradiometer.lab import doctor
from gradiometer.lab.doctor import CASES, CURES, DISEASES, EVERY, FULL, STEPS, Examination, Score
from gradiometer.record.trace import Trace

NOT_YET: Final = "not-yet"


def show(state: State) -> Scene:
    """The evidence; with a diagnosis and a cure also the score and what the cure did."""
    number, named, chosen, hint = int(state["case"]), str(state["diagnosis"]), str(state["cure"]), bool(state["hint"])
    seen = doctor.examination(number)
    both = NOT_YET not in (named, chosen)
    score = doctor.score(number, named, chosen, hint=hint) if both else None
    name = doctor.disease(named).label if named != NOT_YET else ""
    cure = doctor.cure(chosen).label if chosen != NOT_YET else ""
    trace = seen.record.trace
    return Scene(
        exhibits=(
            Exhibit(
                "gradient",
                "gradient of each layer over the training",
                heatmap(trace),
                TABLES["heatmap"](trace, None),
                "A row is a layer, a column is one look at the training; what is far from the median layer is coloured.",
            ),
            Exhibit(
                "profile",
                "gradient and signal along depth",
                depth_profile(trace),
                TABLES["depth-profile"](trace, None),
                "At the last look that saw a gradient; the band is what the others saw.",
                half=True,
            ),
            Exhibit(
                "gain",
                "gain of each layer",
                layer_gain(trace),
                TABLES["layer-gain"](trace, None),
                "What one layer multiplies the gradient by, at the same look.",
                half=True,
            ),
            Exhibit("loss", "loss of the training", loss_curve(trace), TABLES["loss"](trace, None), half=True),
            Exhibit(
                "movement",
                "how far the weights move",
                figures.movement(trace),
                figures.movement_table(trace),
                "A weight that never moves does not learn, whatever its gradient is.",
                half=True,
            ),
            _activations(trace, hint),
            Exhibit(
                "answers",
                "your answers",
                figures.answers(name, cure, hint, score),
                figures.answers_table(name, cure, hint, score),
                half=True,
            ),
            Exhibit(
                "cured",
                "loss with your cure and without",
                figures.cure(score),
                figures.cure_table(score),
                "Both trainings begin with the same seed and see the same batches.",
                half=True,
            ),
        ),
        readings=_before(number, named, chosen) if score is None else _after(seen, score),
    )


def _activations(trace: Trace, hint: bool) -> Exhibit:
    kind = "state of the activations"
    if hint:
        last = int(trace.steps[-1])  # not the last with a gradient, as elsewhere: what is dead has none
        return Exhibit("activations", kind, activation_health(trace, step=last), TABLES["activations"](trace, last), half=True)
    closed = nothing("What the activations do is the hint", "Take the hint to see it. It costs a point.")
    return Exhibit("activations", kind, closed, Table("The hint was not taken", ("layer",), ()), half=True)


def _before(number: int, named: str, chosen: str) -> tuple[str, ...]:
    first = f"Case {number}: a network is to learn digits in {STEPS} steps of 64 images; every {EVERY}th step was looked at."
    if named == NOT_YET and chosen == NOT_YET:
        return first, "Look at the evidence. Then say what is wrong, if anything is, and choose a cure."
    missing = "a cure" if chosen == NOT_YET else "a diagnosis"
    return first, f"One answer is given. Nothing is told before you have also chosen {missing}."


def _after(seen: Examination, score: Score) -> tuple[str, ...]:
    cause = seen.case.disease
    if score.name_points == FULL:
        told = f"Right: {cause.label}."
    elif score.name_points:
        told = f"Half right: the rules find “{score.named.label}” as well, but what was done is “{cause.label}”."
    else:
        told = f"It was something else: “{cause.label}”."
    if not cause.rules:
        agreed = "Gradiometer finds something" if seen.found else "Gradiometer agrees"
    else:
        agreed = "Gradiometer names it too" if set(cause.rules).intersection(seen.found) else "Gradiometer names something else"
    found = f" ({', '.join(f'`{rule}`' for rule in seen.found)})" if seen.found else ""
    treated = score.verdict.sentence if score.verdict is not None else "Nothing was done."
    return (
        f"{score.points} of 4 points. {told}",
        f"How to tell: {cause.lesson}",
        f"{agreed}{found}: {seen.diagnosis.sentence}",
        f"Your cure, {score.cure.label}: {_cure_word(score)}. {treated}",
        "Everything was trained on this machine for this page; the same link gives the same game.",
    )


def _cure_word(score: Score) -> str:
    well = not score.examination.case.disease.rules
    if score.verdict is None:
        return "right, it needs none" if well else "an untreated disease stays"
    if well and score.cure_points:
        return "no harm, but it needed none"
    word = score.verdict.word.value
    return {"failed": "it does not fit this network", "harmful": "it does harm"}.get(word, word)


PAGE: Final = LabPage(
    name="doctor",
    number="L7",
    title="The doctor game",
    summary="A hidden network, sick or well: read the evidence, name the disease, choose a cure, and see it tried.",
    law=(
        "A loss that stands still has many causes, and most of them look alike in the loss. They differ in where the gradient "
        "changes (at one layer, at all, at none), when (from the first step, or after it), and in what the signal does "
        "meanwhile.",
        "A disease is told by a ratio: of one layer to the next, of one step to the next, of an update to its weight. No size "
        "taken alone says anything.",
        "A cure is shown by a trial: the same seed and the same batches, with it and without.",
    ),
    question=Question(
        text="The loss of case 1 does not fall. Suppose that its only fault were a learning rate that is too low. What would "
        "its gradient along depth look like?",
        answers=(
            "It would shrink by many decades on its way to the first layer",
            "It would keep its size to within about a decade",
            "It would be exactly zero in every layer",
        ),
        right=1,
        because="The rate is what a gradient is multiplied by after it has been computed. In a network that is well drawn the "
        "gradient arrives in every layer, and only the steps are too short. Where the profile falls by decades, the rate is "
        "not the only fault.",
    ),
    controls=(
        Slider("case", "Case", tuple(float(n) for n in range(1, CASES + 1)), 1.0, advice="Each number is another network."),
        Choice(
            "diagnosis",
            "Your diagnosis",
            ((NOT_YET, "not yet"), *((d.name, d.label) for d in DISEASES)),
            NOT_YET,
            "What was done to this network.",
        ),
        Choice(
            "cure",
            "Your cure",
            ((NOT_YET, "not yet"), *((c.name, c.label) for c in CURES)),
            NOT_YET,
            "It is really given and trained.",
        ),
        Toggle("hint", "Hint", False, "Shows what the activations do, and costs a point."),
    ),
    presets=(
        Preset(
            "new", "A fresh case", {"case": 2.0}, "Read the evidence before you answer: where, and when, does something change?"
        ),
        Preset(
            "hinted",
            "With the hint",
            {"case": 3.0, "hint": True},
            "The share of dead and saturated units, layer by layer, often settles it.",
        ),
        Preset(
            "played",
            "A game that was played",
            {"case": 1.0, "diagnosis": "rate-low", "cure": "rate-up"},
            "A larger rate multiplies every layer alike: what is missing between the layers stays missing.",
        ),
    ),
    show=show,
    slow=1.0,
    exported={
        "case": (1.0, 2.0, 3.0),
        "diagnosis": (NOT_YET, "well", "vanishing", "rate-low"),
        "cure": (NOT_YET, "nothing", "weights", "rate-up"),
    },
)
