"""README.md and docs/ show what the rows and the code say, and nothing that was not measured."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.declared import object_table, store_table
from benchmarks.figures import (
    NOT_MEASURED,
    Comparison,
    Figure,
    comparison_table,
    read_rows,
    table,
)
from benchmarks.readme import TABLES, filled, pages
from pipeline.store.schema import LABELS, OBJECT_ARRAYS

ROOT = Path(__file__).parent.parent.parent
PAGES = pages(ROOT)


def row(variant: str, p50: float, date: str = "2026-01-01", **params: Any) -> dict[str, Any]:
    found = {"bench": "b", "metric": "m", "variant": variant, "unit": "images/s", "p50": p50}
    return found | {"date": date, "params": params}


FIGURE = Figure(what="reads", bench="b", variant="ours", metric="m")
OTHER = Figure(what="peer", bench="b", variant="theirs", metric="m", text="{p50:,.0f}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_pages_are_what_rows_and_code_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text, read_rows(ROOT / "benchmarks" / "results")) == text, (
        "run: python -m benchmarks readme"
    )


def test_every_table_is_shown_once_and_the_front_page_measured_only() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    for name in TABLES:
        assert sum(text.count(f"<!-- generated: {name} -->") for text in texts) == 1, name
    assert NOT_MEASURED not in texts[0]


def test_the_newest_row_is_shown() -> None:
    rows = [row("ours", 5, "2026-02-01"), row("ours", 1234.4, "2026-03-01"), row("theirs", 9)]
    assert FIGURE.value(rows) == "1,234 images/s"


def test_what_has_no_row_was_not_measured() -> None:
    assert FIGURE.value([row("ours, too", 7)]) == NOT_MEASURED
    assert NOT_MEASURED in table([FIGURE], [])


def test_the_front_page_refuses_what_was_not_measured() -> None:
    line = Comparison(ours=FIGURE, beside=(OTHER,))
    with pytest.raises(ValueError, match="'reads' has no row"):
        comparison_table([line], [row("ours", 5)])
    text = comparison_table([line], [row("ours", 5), row("theirs", 2)])
    assert text.splitlines()[-1] == "| reads | 5 images/s | peer 2 |"


def test_text_may_use_what_a_row_was_measured_on() -> None:
    figure = Figure(
        what="w", bench="b", variant="o.*", metric="m", text="{p50:.1f} at {load}", aim="2"
    )
    assert table([figure], [row("ours", 1.25, load=0.5)]).splitlines() == [
        "| what | measured | aim |",
        "|---|---|---|",
        "| w | 1.2 at 0.5 | 2 |",
    ]


def test_every_array_of_the_store_has_a_line() -> None:
    for spec in LABELS:
        assert f"| `labels/{spec.name}` | {spec.dtype}" in store_table()
    assert len(object_table().splitlines()) == 2 + len(OBJECT_ARRAYS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: cpu -->\n", "1 tables begin .* 0 end"),
        ("<!-- generated: cups -->\n<!-- end of cups -->\n", "no table is named 'cups'"),
    ],
)
def test_a_wrong_marker_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled(text, [])
