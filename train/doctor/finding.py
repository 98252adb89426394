"""What a check of ``python -m train doctor`` says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """How bad it is."""

    ok = "ok"
    warning = "warning"
    """It works, but slower or not all of it."""
    error = "error"
    """Training will fail, or be wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One row of the table."""

    found: str
    verdict: Verdict = Verdict.ok
    cure: str = ""
    """What to do; empty if all is well."""
    values: Mapping[str, object] = field(default_factory=dict)
    """The same for machines: names with units."""


def warning(found: str, cure: str, **values: object) -> Finding:
    """Return a finding that training survives."""
    return Finding(found=found, verdict=Verdict.warning, cure=cure, values=values)


def error(found: str, cure: str, **values: object) -> Finding:
    """Return a finding that training does not survive."""
    return Finding(found=found, verdict=Verdict.error, cure=cure, values=values)


def ok(found: str, **values: object) -> Finding:
    """Return a finding without fault."""
    return Finding(found=found, values=values)
