"""Report of a protocol: scores, the data they were measured on, and the rules."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.app.files import replace_file
from pipeline.app.words import say
from train.evaluate.protocols.details import Detail

PAIRED: Final = "none: the predictions came as a file"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the score table."""

    label: str
    value: float | None
    """None where the protocol has no value on this input; NaN where it divides by zero."""
    unit: str
    digits: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Scores under one protocol, with everything needed to compare them."""

    protocol: str
    definition: str
    """One sentence; in full in the docstring of ``train.evaluate.metrics.<protocol>``."""
    strict: bool
    """False: the official tool's quirks are reproduced; True: mathematically correct scores."""
    quirks: tuple[str, ...]
    """Unexpected behaviour of the official scores; each changes with ``strict``."""
    num_samples: int
    crop: str
    """Source of the crops of the predicted images."""
    camera: str
    """Source of the intrinsics."""
    rows: tuple[Row, ...]
    scores: dict[str, Any]
    official: dict[str, Any]
    """The same scores under the names and in the units of the official tool."""
    warnings: tuple[str, ...] = ()
    """Suspected problems of the input, each with its likely cause."""
    details: Callable[[], list[Detail]] | None = None
    """Computes the values behind the scores; None where there are none."""


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain JSON values, for ``write_json``."""
    return {
        "protocol": report.protocol,
        "definition": report.definition,
        "strict": report.strict,
        "quirks": list(report.quirks),
        "num_samples": report.num_samples,
        "crop": report.crop,
        "camera": report.camera,
        "warnings": list(report.warnings),
        "scores": report.scores,
        # The official tool's names are reserved for the official scores.
        "official": None if report.strict else report.official,
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record atomically, creating the folder if needed.

    JSON has no numbers for infinity and 0 / 0: they become "Infinity", "-Infinity" and "NaN", which
    ``float`` reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_writable(record), indent=2, allow_nan=False)
    replace_file(path, (text + "\n").encode())


def show(report: Report, console: Console, mean: Report | None = None) -> None:
    """Print the protocol, its sources and the table; ``mean``: report of the mean-pose baseline."""
    rules = "strict" if report.strict else "official, quirks included"
    say(
        f"protocol {report.protocol} ({rules}): {report.num_samples} samples; "
        f"crop: {report.crop}; camera: {report.camera}\n{report.definition}",
        console,
    )
    if not report.strict:
        for quirk in report.quirks:
            say(f"quirk: {quirk}", console)
    sheet = Table()
    columns = ("metric", "value", *([] if mean is None else ["training mean"]), "unit")
    for name in columns:
        sheet.add_column(name, justify="left" if name in ("metric", "unit") else "right")
    beside = {} if mean is None else {row.label: [_cell(row)] for row in mean.rows}
    for row in report.rows:
        sheet.add_row(row.label, _cell(row), *beside.get(row.label, []), row.unit)
    console.print(sheet)
    for warning in report.warnings:
        line = Text.assemble(("warning", "bold yellow"), f": {warning}")
        console.print(line, soft_wrap=True)


def _cell(row: Row) -> str:
    return "-" if row.value is None else f"{row.value:.{row.digits}f}"


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return value
