"""L6, strategies: every remedy of the subject on the same sick network, with and without it, trained when it is asked for."""

from __future__ import annotations

from typing import Final

from gradiometer.app.scene import Choice, Exhibit, LabPage, Preset, Question, Scene, State
from gradiometer.figures.lab import strategies as figures
from gradiometer.lab.strategies import PATIENTS, STRATEGIES, Arm, Board, Settings, board


def show(state: State) -> Scene:
    """One strategy beside the untreated network, and the scoreboard of all."""
    trained = board(Settings(patient=str(state["patient"])))
    arm = trained.arm(str(state["strategy"]))
    return Scene(
        exhibits=(
            Exhibit(
                "profile",
                "gradient of each layer, with and without",
                figures.profile(trained, arm),
                figures.profile_table(trained, arm),
                "A flat line is a gradient that arrives everywhere with one size; far below zero it vanishes, far above it "
                "explodes.",
                half=True,
            ),
            Exhibit(
                "loss",
                "loss, with and without",
                figures.losses(trained, arm),
                figures.loss_table(trained, arm),
                "Of ten digits that are all as likely, a guess has a loss of ln 10 = 2.3.",
                half=True,
            ),
            Exhibit(
                "scoreboard",
                "all strategies",
                figures.scoreboard(trained, arm.strategy.name),
                figures.scoreboard_table(trained),
                "The verdict needs more than a good loss: the rules must find nothing any more that stops a training.",
            ),
        ),
        readings=_readings(trained, arm),
    )


def _readings(trained: Board, arm: Arm) -> tuple[str, ...]:
    word = figures.LOOKS[arm.verdict.word.value][0]
    source = f" ({arm.strategy.source})" if arm.strategy.source else ""
    told = [f"{arm.strategy.label}: {word}. {arm.verdict.sentence}"]
    if not arm.course.ran:
        told = [f"{arm.strategy.label} does not fit: {arm.verdict.sentence}"]
    told.append(f"The idea{source}: {arm.strategy.idea}")
    told.append(f"The patient: {trained.patient.complaint} The rules find {', '.join(trained.untreated.errors) or 'nothing'}.")
    if arm.course.ran:
        told.append(f"A step takes {trained.cost(arm):.2g} times as long with it, as measured here.")
    seeds, steps, batch = trained.settings.seeds, trained.settings.steps, trained.patient.training.batch
    told.append(
        f"Nothing here was prepared: every strategy was trained on this machine when you asked, from {seeds} seeds, for "
        f"{steps} steps of {batch} images of digits. Longer trainings and other rates may rank them differently."
    )
    return tuple(told)


PAGE: Final = LabPage(
    name="strategies",
    number="L6",
    title="Every strategy on the same sick network",
    summary="Train a sick network with each remedy of the subject, and see which ones cure it and which ones cannot.",
    law=(
        "A remedy works where the disease is. A gradient that reaches layer `l` has been multiplied by every layer behind it; "
        "what changes those factors (activation, weights, normalisation, a way around, fewer layers) can cure both vanishing "
        "and exploding.",
        "What acts on the finished gradient sees only the product. Clipping can make a long gradient shorter, and never a "
        "short one longer. A larger rate multiplies all layers alike and leaves their ratio. Adam divides the size out of each "
        "layer, but not the noise: a gradient that says nothing stays so.",
        "Weight decay and dropout are for a network that learns too well. They are no cure for one that does not learn.",
    ),
    question=Question(
        text="Eight sigmoid layers do not learn at all: the first gets a ten-millionth part of the last one's gradient. Which "
        "of these four makes the network learn?",
        answers=("Clipping the gradient", "A learning rate ten times as large", "He weights", "Batch normalisation"),
        right=3,
        because="Batch normalisation takes the common part out of every layer and gives it the size at which a sigmoid is "
        "steep. Clipping lengthens nothing, a larger rate keeps the ratio between layers, and He weights are made for ReLU: "
        "with them a sigmoid layer still passes on about a third of the gradient.",
    ),
    controls=(
        Choice(
            "patient",
            "Patient",
            tuple((p.name, p.label) for p in PATIENTS),
            "vanishing",
            "The network that is sick.",
        ),
        Choice(
            "strategy",
            "Strategy",
            tuple((s.name, s.label) for s in STRATEGIES),
            "batch-norm",
            "The one that is shown beside the untreated network.",
        ),
    ),
    presets=(
        Preset(
            "clipping-vanishing",
            "Clipping against vanishing",
            {"strategy": "clip-norm"},
            "With and without clipping the two profiles are the same: no gradient here is long enough to be clipped.",
        ),
        Preset(
            "clipping-exploding",
            "Clipping through time",
            {"patient": "recurrent", "strategy": "clip-norm"},
            "Where the gradient explodes through time, clipping is what works; a rate ten times smaller is still lost.",
        ),
        Preset(
            "he-relu",
            "The right weights",
            {"patient": "exploding", "strategy": "he"},
            "The same network, drawn at the size ReLU asks for: the gradient arrives everywhere with one size.",
        ),
        Preset(
            "dropout",
            "Dropout is no cure",
            {"strategy": "dropout"},
            "The loss stays where a guess is: dropout helps a network that learns too well, not one that does not learn.",
        ),
        Preset(
            "pretraining",
            "How it began",
            {"strategy": "pretrain"},
            "Layer-wise pre-training, the remedy of 2006: it starts each layer where its units answer to their input.",
        ),
    ),
    show=show,
    slow=15.0,
    exported={"patient": tuple(p.name for p in PATIENTS), "strategy": tuple(s.name for s in STRATEGIES)},
)
