"""The report as JSON, for programs. The format is versioned and described in docs/report-json.md."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from gradiometer.report.summary import ProfileRow, Summary
from gradiometer.types import Evidence, Finding

SCHEMA: Final = 1


def render(summary: Summary) -> str:
    """The report as a JSON text (strict JSON: what is unknown is null, never NaN)."""
    return json.dumps(as_dict(summary), indent=1, allow_nan=False) + "\n"


def as_dict(summary: Summary) -> dict[str, Any]:
    """The report as plain dicts, lists, strings and numbers."""
    run, loss, cost = summary.run, summary.loss, summary.cost
    return {
        "schema": SCHEMA,
        "run": {
            "folder": str(run.folder),
            "command": list(run.info.get("command", [])),
            "started": run.info.get("started"),
            "seconds": run.info.get("seconds"),
            "status": run.info.get("status"),
            "ranks": summary.trace.ranks,
            "steps": cost.steps,
            "environment": dict(summary.environment),
            "notes": list(summary.notes),
            "announced": list(run.info.get("announced", ())),
        },
        "verdict": summary.diagnosis.verdict.value,
        "sentence": summary.sentence,
        "findings": [finding_dict(f) for f in summary.diagnosis.findings],
        "profile_step": summary.step if summary.step >= 0 else None,
        "profile": [_row(row) for row in summary.profile],
        "loss": {
            "steps": loss.steps,
            "start": number_or_null(loss.start),
            "end": number_or_null(loss.end),
            "best": number_or_null(loss.best),
            "fall": number_or_null(loss.fall),
            "learned": loss.learned,
            "at_chance": loss.at_chance,
            "skipped_steps": loss.skipped,
            "clipped_steps": loss.clipped,
        },
        "cost": {
            "overhead_percent": number_or_null(cost.overhead_percent),
            "own_seconds": number_or_null(cost.own_seconds),
            "seconds": number_or_null(cost.seconds),
            "looks": cost.looks,
            "bytes": cost.bytes,
        },
    }


def finding_dict(finding: Finding) -> dict[str, Any]:
    """A finding as plain values."""
    return {
        "rule": finding.rule,
        "severity": finding.severity.value,
        "confidence": finding.confidence,
        "because": finding.because or None,
        "sites": list(finding.sites),
        "starts": finding.starts or None,
        "shows": list(finding.shows),
        "steps": list(finding.steps),
        "peak": finding.peak if finding.peak >= 0 else None,
        "sentence": finding.sentence,
        "evidence": [_evidence(e) for e in finding.evidence],
        "helps": list(finding.helps),
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {
        "claim": evidence.claim,
        "value": number_or_null(evidence.value),
        "threshold": number_or_null(evidence.threshold),
        "source": evidence.source,
        "refute": evidence.refute or None,
    }


def _row(row: ProfileRow) -> dict[str, Any]:
    return {
        "site": row.site.name,
        "kind": row.site.kind,
        "depth": row.site.depth,
        "model": row.site.model or None,
        "chain": row.site.chain,
        "log10_signal": number_or_null(row.log10_signal),
        "log10_gradient": number_or_null(row.log10_gradient),
        "zero_signal": row.log10_signal == -math.inf,
        "zero_gradient": row.log10_gradient == -math.inf,
        "backward_gain": _factor(row.log10_backward_gain),
        "forward_gain": _factor(row.log10_forward_gain),
    }


def number_or_null(value: float) -> float | None:
    """A number JSON can hold; null for anything else."""
    return float(value) if math.isfinite(value) else None


def _factor(log10: float) -> float | None:
    return number_or_null(10.0**log10) if abs(log10) < 300 else None
