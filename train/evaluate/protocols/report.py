"""What a protocol says: the numbers, what they were measured on, and by which rules."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.app.files import replace_file
from pipeline.app.words import say

PAIRED: Final = "none: the predictions came as a file"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    label: str
    value: float | None
    """None where the protocol has no value on this input; NaN where it divides by zero."""
    unit: str
    digits: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Scores under one protocol. Everything that a reader needs to compare them stands beside."""

    protocol: str
    definition: str
    """One sentence; in full: the docstring of ``train.evaluate.metrics.<protocol>``."""
    strict: bool
    """False follows the official tool in its quirks, True the mathematics."""
    quirks: tuple[str, ...]
    """What the official numbers do that one would not expect; each changes with ``strict``."""
    num_samples: int
    crop: str
    """Where the crops of the predicted images came from."""
    camera: str
    """Where the intrinsics came from."""
    rows: tuple[Row, ...]
    scores: dict[str, Any]
    official: dict[str, Any]
    """The same numbers under the names and in the units of the official tool."""
    warnings: tuple[str, ...] = ()
    """What makes the input look wrong, each with its likely cause."""


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain JSON values; a number that is not finite becomes null."""
    return {
        "protocol": report.protocol,
        "definition": report.definition,
        "strict": report.strict,
        "quirks": list(report.quirks),
        "num_samples": report.num_samples,
        "crop": report.crop,
        "camera": report.camera,
        "warnings": list(report.warnings),
        "scores": _finite(report.scores),
        # The tool's own names stand for the tool's own numbers.
        "official": None if report.strict else _finite(report.official),
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as a whole, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def show(report: Report, console: Console, mean: Report | None = None) -> None:
    """Print the protocol, its sources and the table; ``mean``: of the training set's mean."""
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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
