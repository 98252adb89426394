"""Findings of the checks of ``python -m train doctor``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """Severity of a finding."""

    ok = "ok"
    warning = "warning"
    """It works, but slower or only in part."""
    error = "error"
    """Training will fail, or be wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One row of the table."""

    found: str
    verdict: Verdict = Verdict.ok
    cure: str = ""
    """Suggested fix; empty if there is no problem."""
    values: Mapping[str, object] = field(default_factory=dict)
    """The finding in machine-readable form: names with units."""


def warning(found: str, cure: str, **values: object) -> Finding:
    """Return a warning: training works despite it."""
    return Finding(found=found, verdict=Verdict.warning, cure=cure, values=values)


def error(found: str, cure: str, **values: object) -> Finding:
    """Return an error: training will fail, or be wrong."""
    return Finding(found=found, verdict=Verdict.error, cure=cure, values=values)


def ok(found: str, **values: object) -> Finding:
    """Return a finding without problems."""
    return Finding(found=found, values=values)
