"""The README shows what the rows say, and nothing that was not measured."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme import NOT_MEASURED, Figure, filled, read_rows, table

ROOT = Path(__file__).parent.parent.parent


def row(variant: str, p50: float, date: str = "2026-01-01", **params: Any) -> dict[str, Any]:
    found = {"bench": "b", "metric": "m", "variant": variant, "unit": "images/s", "p50": p50}
    return found | {"date": date, "params": params}


FIGURE = Figure(what="reads", bench="b", variant="ours", metric="m")


def test_the_readme_is_what_the_rows_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(text, read_rows(ROOT / "benchmarks" / "results")) == text, (
        "run: python -m benchmarks readme"
    )


def test_the_newest_row_is_shown() -> None:
    rows = [row("ours", 5, "2026-02-01"), row("ours", 1234.4, "2026-03-01"), row("theirs", 9)]
    assert FIGURE.value(rows) == "1,234 images/s"


def test_what_has_no_row_was_not_measured() -> None:
    assert FIGURE.value([row("ours, too", 7)]) == NOT_MEASURED
    assert NOT_MEASURED in table([FIGURE], [])


def test_text_may_use_what_a_row_was_measured_on() -> None:
    figure = Figure(
        what="w", bench="b", variant="o.*", metric="m", text="{p50:.1f} at {load}", aim="2"
    )
    assert table([figure], [row("ours", 1.25, load=0.5)]).splitlines() == [
        "| what | measured | aim |",
        "|---|---|---|",
        "| w | 1.2 at 0.5 | 2 |",
    ]


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="no lines '<!-- figures cpu -->'"):
        filled("# nothing\n", [])
