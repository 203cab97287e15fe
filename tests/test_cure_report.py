"""What is said of a cure: text, live table, page and figures, for every outcome and for hostile names."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gradiometer.figures import cure as figures
from gradiometer.report.cure import line, live, print_cure, render_html, run_with, shown_arm
from gradiometer.trial.race import BUDGET, Board, Plan, Raced, race
from gradiometer.trial.result import Candidate, Cure, Edit, Ending, NotTried, Outcome, Prediction, Promise
from gradiometer.types import Prescription, Safety, Treatment
from traces import make, stack
from trials import Course, Theatre, candidate, sick, trial

SICK = Course(2.3, ("vanishing-gradient",))
HOSTILE = "<script>alert(1)</script>\x1b[31m"


def raced(courses: dict[str, Course], *candidates: Candidate) -> Raced:
    theatre = Theatre({"": SICK, **courses}, 300)
    return race(Plan(budget=BUDGET * 300), theatre, sick, lambda _: (candidates, [NotTried("clip", "It keeps the ratio.")]))


def cure(found: Raced, **fields: object) -> Cure:
    made = Cure(
        outcome=found.outcome,
        sentence=found.sentence,
        command=("python", "train.py"),
        cwd="/home/me",
        steps=found.steps,
        budget=6000,
        spent=found.spent,
        seeds=3,
        control=found.control,
        arms=found.arms,
        not_tried=found.not_tried,
        best=found.best,
        folder="/home/me/cures/a",
        version="0.1.0",
    )
    return replace(made, **fields)  # type: ignore[arg-type]


CURED = raced({"a": Course(0.05), "b": Course(ending=Ending.REFUSED)}, candidate("a"), candidate("b"))
NONE = raced({"a": Course(1.9, ("plateau",)), "b": Course(9.0)}, candidate("a"), candidate("b"))


def text(what: Cure, width: int = 100) -> str:
    console = Console(width=width, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    print_cure(what, console)
    console.file.close()
    return console.export_text()


def test_a_cure_in_words() -> None:
    edit = Edit("--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-old\n+new\n", ("Write more.",))
    said = text(cure(CURED, edit=edit, notes=("Mind this.",)))
    assert "CURED" in said
    assert "`a` cures it: after 300 steps" in said
    for part in ("untreated", "ill:", "3 x 300", "+new", "Write more.", "Mind this.", "It keeps the ratio."):
        assert part in said
    assert "failed: It does not fit." in " ".join(said.split())
    assert "gradiometer run --with cures/a/prescription.json -- python train.py" in said
    assert "trials took" in said


def test_no_cure_in_words() -> None:
    said = text(cure(NONE))
    assert "NO CURE" in said
    assert "helps: plateau" in " ".join(said.split())
    assert "prescription.json" not in said


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_width_shows_the_whole_name(width: int) -> None:
    long = candidate("initialise-with-a-very-long-name-that-is-more-than-a-column")
    name = long.prescription.label
    said = text(cure(raced({name: Course(0.05)}, long)), width)
    assert name in "".join(said.split())


def test_names_are_untrusted() -> None:
    hostile = Candidate(
        Prescription((Treatment("a", {"to": HOSTILE}),), HOSTILE),
        Safety.CHANGES_MODEL,
        Prediction(Promise.MAY_HELP, 1.0, -1.0, 0.0, HOSTILE),
    )
    found = raced({hostile.prescription.label: Course(0.05)}, hostile)
    made = cure(found, edit=Edit(HOSTILE, (HOSTILE,)), command=("python", HOSTILE), notes=(HOSTILE,))
    assert "\x1b" not in text(made)
    assert "<script>alert" not in render_html(made)


def test_the_page_of_every_outcome() -> None:
    for found in (
        CURED,
        NONE,
        replace(NONE, outcome=Outcome.INTERRUPTED),
        replace(CURED, outcome=Outcome.WELL, arms=(), best=-1),
    ):
        page = render_html(cure(found))
        assert "Content-Security-Policy" in page
        assert found.outcome is not Outcome.CURED or "prescription.json" in page
    none = render_html(cure(NONE))
    assert "No cure: the loss ends at" in none, "a figure never pretends"
    assert "What came closest: a" in render_html(cure(replace(NONE, arms=NONE.arms), edit=Edit("", ("x",))))


def test_what_is_shown_beside_the_control() -> None:
    cured, closest = shown_arm(cure(CURED)), shown_arm(cure(NONE))
    assert cured is not None
    assert closest is not None
    assert (cured.label, closest.label) == ("a", "a")
    assert shown_arm(cure(replace(CURED, arms=(), best=-1))) is None


def test_where_the_prescription_is() -> None:
    assert run_with(cure(CURED)) == "gradiometer run --with cures/a/prescription.json -- python train.py"
    assert run_with(cure(CURED, folder="/tmp/my cure")).startswith("gradiometer run --with '/tmp/my cure/prescription.json'")


def test_the_live_table(tmp_path: Path) -> None:
    board = Board()
    shown: list[str] = []

    def look(_: object) -> None:
        console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(live(board, tmp_path))
        console.file.close()
        shown.append(console.export_text())

    board.back = look
    look(None)
    assert "curing: the untreated run" in shown[0]
    theatre = Theatre({"": SICK, "a": Course(0.05), "b": SICK}, 300)
    race(Plan(), theatre, sick, lambda _: ([candidate("a"), candidate("b")], []), board)
    assert any("racing 2 of 2 candidates" in s for s in shown)
    assert any("0/75" in s for s in shown), "what runs"
    assert "vanishing-gradient" in shown[-1]
    assert "steps spent" in shown[-1]


def test_a_line_for_every_trial() -> None:
    assert line(trial(2.3, 1.0, treated=False, errors=("plateau",))) == "untreated, 2 steps: loss 1, ill: plateau."
    assert line(trial(2.3, math.nan, seed=2)) == "clip, 2 steps, seed 2: loss no number, nothing ill."
    assert line(trial(ending=Ending.REFUSED)) == "clip, 0 steps: refused. It crashed."


# ---- figures ---------------------------------------------------------------------------------------------------------------


def test_layers_are_paired_by_their_order_though_the_treatment_renamed_them() -> None:
    before = make(6, gradient=np.linspace(-8.0, 0.0, 13))
    after = make(stack(6, prefix="wrapped."), gradient=0.0)
    names, left, right = figures.profiles(before, after)
    assert names == ["fc0", "fc1", "fc2", "fc3", "fc4", "fc5", "head"]
    assert left == pytest.approx(np.linspace(-8.0, 0.0, 13)[::2])
    assert right == pytest.approx(np.zeros(7))
    fewer = make(stack(4), gradient=0.0)
    assert figures.profiles(before, fewer)[0] == ["fc0", "fc1", "fc2", "fc3", "head"]


def test_the_dumbbell() -> None:
    before = make(6, gradient=np.linspace(-8.0, 0.0, 13))
    after = make(6, gradient=np.linspace(-1.0, 0.0, 13))
    drawn = figures.dumbbell(before, after)
    assert drawn.layout.meta["title"] == "The gradient of the first layer is 1 decade from the last one's, untreated 8 decades"
    ways, untreated, treated = drawn.data
    assert len([x for x in ways.x if x is None]) == 6, "the last layer does not move"
    assert untreated.x[0] == pytest.approx(-8.0)
    assert treated.x[0] == pytest.approx(-1.0)
    assert figures.dumbbell(before, after, cured=False).layout.meta["title"].startswith("No cure: the gradient")
    zero = make(6, gradient=np.where(np.arange(13) < 4, -np.inf, 0.0))
    shown = figures.dumbbell(zero, after)
    assert "exact zero" in shown.layout.meta["note"]
    assert "untreated nothing" in shown.layout.meta["title"]
    assert figures.dumbbell(make([]), make([])).layout.meta["empty"]
    table = figures.dumbbell_table(zero, after)
    assert table.lines[0] == ("fc0", "exactly 0", "-1.00")


def test_the_losses() -> None:
    arm = CURED.arms[0]
    drawn = figures.losses(CURED.control, arm, 300)
    assert [t.name for t in drawn.data if t.showlegend is not False] == ["untreated", "treated"]
    assert len(drawn.data) == 4, "two bands, two lines"
    assert drawn.layout.yaxis.type == "log"
    assert "ends at" in drawn.layout.meta["title"]
    broken = replace(arm, trials=(replace(arm.trials[0], curve=(math.nan,) * 3),))
    assert figures.losses((replace(CURED.control[0], curve=()),), broken, 300).layout.meta["empty"]


def test_the_table_of_the_race() -> None:
    table = figures.race_table(CURED.arms)
    assert table.lines[0][0] == "a"
    assert table.lines[0][3] == "3 x 300"
    assert table.lines[0][-1] == "cured"
    assert table.lines[1][-1] == "failed"
    assert "(0.0" in table.lines[0][5]


def test_a_record_that_is_gone_leaves_the_rest(tmp_path: Path) -> None:
    page = render_html(cure(CURED, folder=str(tmp_path)))
    assert "figure-losses" in page
    assert "figure-before" not in page
