"""Words that reports and figures share."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """``1 step``, ``1,400 steps``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
