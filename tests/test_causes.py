"""Root causes: which of the findings of a run comes first, and what is listed under it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gradiometer.rules import RULES
from gradiometer.rules.causes import CAUSES, in_order
from gradiometer.types import Finding, Severity

RANK = {rule.name: i for i, rule in enumerate(RULES)}
NAMES = list(RANK)


def finding(rule: str, first: int = 0, severity: Severity = Severity.ERROR) -> Finding:
    return Finding(rule, severity, 0.9, (), (first, 100), f"{rule}.", (), ())


def said(*findings: Finding) -> list[tuple[str, str]]:
    return [(f.rule, f.because) for f in in_order(findings, RANK)]


def test_the_table_knows_every_rule_and_no_other() -> None:
    assert {name for causes in CAUSES.values() for name in causes} | set(CAUSES) <= set(NAMES)


def test_the_earlier_one_is_the_cause() -> None:
    explosion_first = said(finding("saturated-units", 30), finding("exploding-gradient", 0))
    assert explosion_first == [("exploding-gradient", ""), ("saturated-units", "exploding-gradient")]
    saturation_first = said(finding("saturated-units", 0), finding("exploding-gradient", 30))
    assert saturation_first == [("saturated-units", ""), ("exploding-gradient", "saturated-units")]


def test_of_two_that_begin_together_the_table_of_rules_decides() -> None:
    together = said(finding("vanishing-gradient"), finding("poor-initialization"))
    assert together == [("poor-initialization", ""), ("vanishing-gradient", "poor-initialization")]


def test_what_step_0_shows_was_there_before_any_step() -> None:
    both = said(finding("learning-rate-too-high", 0), finding("signal-explosion", 0))
    assert both == [("signal-explosion", ""), ("learning-rate-too-high", "signal-explosion")]
    later = said(finding("learning-rate-too-high", 0), finding("signal-explosion", 2))
    assert later == [("learning-rate-too-high", ""), ("signal-explosion", "learning-rate-too-high")]


def test_a_symptom_of_a_symptom_stands_under_the_root() -> None:
    chain = said(
        finding("plateau", 50),
        finding("vanishing-gradient", 10),
        finding("dead-units", 4),
        finding("learning-rate-too-high", 1),
    )
    assert chain[0] == ("learning-rate-too-high", "")
    assert {because for _, because in chain[1:]} == {"learning-rate-too-high"}


def test_two_diseases_stay_two() -> None:
    assert [b for _, b in said(finding("disconnected-parameters"), finding("attention-collapse"))] == ["", ""]


def test_a_note_explains_nothing_and_a_warning_no_steps() -> None:
    note = said(finding("poor-initialization", 0, Severity.INFO), finding("vanishing-gradient"))
    assert dict(note)["vanishing-gradient"] == ""
    warning = said(finding("exploding-gradient", 0, Severity.WARNING), finding("learning-rate-too-high"))
    assert dict(warning)["learning-rate-too-high"] == ""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 40), st.sampled_from(Severity)), unique_by=lambda t: t[0]))
def test_whatever_is_found_the_order_holds(parts: list[tuple[str, int, Severity]]) -> None:
    findings = [finding(*part) for part in parts]
    ordered = in_order(findings, RANK)
    assert sorted(f.rule for f in ordered) == sorted(f.rule for f in findings)
    roots = {f.rule: f for f in ordered if not f.because}
    before = {f.rule: f.severity for f in findings}
    for place, f in enumerate(ordered):
        if f.because:  # under a root that stands before it and is no less severe
            assert f.severity.rank >= roots[f.because].severity.rank
            assert f.because in {g.rule for g in ordered[:place]}
            assert f.severity is before[f.rule]
        else:
            assert f.severity.rank <= before[f.rule].rank
    assert (min((s.rank for s in before.values()), default=None)) == min((f.severity.rank for f in ordered), default=None)
    assert [f.severity.rank for f in roots.values()] == sorted(f.severity.rank for f in roots.values())
    assert [f.rule for f in in_order(list(reversed(findings)), RANK)] == [f.rule for f in ordered]
