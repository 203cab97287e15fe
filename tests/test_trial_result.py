"""Results on disk: what is written is read back, as strict JSON, without torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from gradiometer.errors import GradiometerError
from gradiometer.trial.result import (
    Arm,
    Candidate,
    Cure,
    Edit,
    Ending,
    Given,
    Interval,
    Mark,
    NotTried,
    Outcome,
    Place,
    Prediction,
    Promise,
    Trial,
    Verdict,
    Word,
    plain,
    read,
    write,
)
from gradiometer.types import Prescription, Safety, Severity, Treatment

PRESCRIPTION = Prescription((Treatment("clip", {"kind": "norm", "threshold": 2.0, "on": True}, ("encoder.*",)),), "because")
TRIAL = Trial(
    name="clip.300.s1",
    prescription=PRESCRIPTION,
    seed=1,
    steps=300,
    ending=Ending.RAN,
    taken=300,
    bin_steps=5,
    curve=(2.3, math.nan, 0.5),
    learned=True,
    findings=(Mark("plateau", Severity.ERROR, "dead-units", "It stands still."),),
    metrics={"accuracy": 0.5},
    seconds=3.5,
    given=(Given("clip", {"kind": "norm", "threshold": 2.0}, ("The norm is clipped.",)),),
    places=(Place("optimizer", "train.py", 3, 3, 4, 30, 3, 3, ("model",), "SGD"),),
)
CURE = Cure(
    outcome=Outcome.CURED,
    sentence="`clip` cures it.",
    command=("python", "train.py"),
    cwd="/x",
    steps=300,
    budget=6000,
    spent=900,
    seeds=3,
    control=(Trial("control.300.s0", None, 0, 300, Ending.RAN),),
    arms=(
        Arm(
            Candidate(PRESCRIPTION, Safety.CHANGES_TRAINING, Prediction(Promise.SUFFICES, -0.5, -0.1, 0.0, "It is enough.")),
            (TRIAL,),
            Verdict(Word.CURED, "Loss.", Interval(-1.0, -1.2, -0.8, 3), 3, 300, 0.5, 2.3, True, cost=1.1),
        ),
    ),
    not_tried=(NotTried("residual", "no"),),
    best=0,
    edit=Edit("--- a\n", ("note",)),
)


def same(a: object, b: object) -> bool:
    """Equal, with unknown numbers equal to each other."""
    return json.dumps(plain(a)) == json.dumps(plain(b)) and repr(a) == repr(b)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert same(read(Trial, write(tmp_path / "trial.json", TRIAL)), TRIAL)
    again = read(Cure, write(tmp_path / "cure.json", CURE))
    assert same(again, CURE)
    assert again.prescription == PRESCRIPTION
    assert again.cure is not None
    assert again.cure.verdict.word is Word.CURED
    assert isinstance(again.arms[0].candidate.safety, Safety)


def test_it_is_strict_json(tmp_path: Path) -> None:
    text = write(tmp_path / "trial.json", TRIAL).read_text()
    data = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert data["curve"] == [2.3, None, 0.5]
    assert data["ending"] == "ran"
    assert data["seconds_per_step"] is None


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 99}', '{"name": 1, "ending": "odd"}', "nonsense"])
def test_what_is_damaged_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "cure.json").write_text(text)
    with pytest.raises(GradiometerError, match="cannot be read"):
        read(Cure, tmp_path / "cure.json")
    with pytest.raises(GradiometerError, match="cannot be read"):
        read(Cure, tmp_path / "none.json")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(GradiometerError, match="cannot be written"):
        write(tmp_path / "none" / "cure.json", CURE)


def test_deeper_cuts_and_more_of_them_are_more_invasive() -> None:
    one = Candidate(PRESCRIPTION, Safety.SAME_FUNCTION, Prediction(Promise.UNKNOWN))
    two = Candidate(
        Prescription((*PRESCRIPTION.treatments, Treatment("initialise"))), Safety.CHANGES_TRAINING, Prediction(Promise.UNKNOWN)
    )
    assert (one.invasiveness, two.invasiveness) == (0, 2)


def test_results_are_read_and_shown_without_torch() -> None:
    code = (
        "import sys, gradiometer.report.cure, gradiometer.figures.cure, gradiometer.trial.scratch, gradiometer.cli\n"
        "assert 'torch' not in sys.modules and 'joblib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
