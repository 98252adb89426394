"""README.md and docs/ show what the rows and the code say, and nothing that was not measured."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.config import ReadmeConfig
from benchmarks.declared import object_table, store_table
from benchmarks.figures import (
    NOT_MEASURED,
    Comparison,
    Figure,
    comparison_table,
    read_rows,
    table,
    tolerance_table,
)
from benchmarks.readme import FRONT, TABLES, filled, loose_figures, pages
from benchmarks.readme import main as readme
from pipeline.store.schema import LABELS, OBJECT_ARRAYS

ROOT = Path(__file__).parent.parent.parent
PAGES = pages(ROOT)


def row(variant: str, p50: float, date: str = "2026-01-01", **params: Any) -> dict[str, Any]:
    found = {"bench": "b", "metric": "m", "variant": variant, "unit": "images/s", "p50": p50}
    spread = {name: params.pop(name, p50) for name in ("p20", "p80")} | {"n": params.pop("n", 9)}
    machine = {"cpu": "Intel(R) Xeon(R) Processor", "cores": 2, "gpu": None}
    return found | spread | {"date": date, "params": params, "machine": machine}


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
    assert text.splitlines()[2] == "| reads | 5 images/s | under 0.5 % | peer 2 |"


def test_figures_show_tolerance_and_machine() -> None:
    counted = Figure(what="kills", bench="b", variant="k", metric="m", is_exact=True)
    rows = [row("ours", 100, p20=96, p80=104), row("theirs", 2, n=1), row("k", 20)]
    assert FIGURE.tolerance(rows) == "± 4 %"
    assert OTHER.tolerance(rows) == "one run"
    assert counted.tolerance(rows) == "exact"
    lines = tolerance_table([FIGURE, OTHER], rows).splitlines()
    assert lines[2:4] == ["| reads | 100 images/s | ± 4 % |", "| peer | 2 | one run |"]
    assert lines[-1].startswith("Measured on 2 cores of an Intel Xeon. The tolerance is half the")
    with pytest.raises(ValueError, match="'reads' has no row"):
        FIGURE.tolerance([])
    elsewhere = row("theirs", 2) | {"machine": {"cpu": "AMD EPYC", "cores": 2, "gpu": None}}
    with pytest.raises(
        ValueError, match=r"several machines .2 cores of an AMD EPYC, 2 cores of an"
    ):
        comparison_table([Comparison(ours=FIGURE, beside=(OTHER,))], [row("ours", 1), elsewhere])


def test_runs_with_several_seeds_are_shown_as_such() -> None:
    days = ("2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04")
    errors = (99, 20, 18, 21)
    seeds = (0, 0, 1, 2)  # seed 0 was measured anew
    zipped = zip(errors, days, seeds, strict=True)
    rows = [row("ours", error, day, n=1, seed=seed) for error, day, seed in zipped]
    assert (FIGURE.value(rows), FIGURE.tolerance(rows)) == ("20 images/s", "± 8 %, 3 seeds")
    assert FIGURE.tolerance(rows[:2]) == "one run"
    unknown = row("ours", 5, "2026-02-01", n=1)
    assert (FIGURE.value([*rows, unknown]), FIGURE.tolerance([*rows, unknown])) == (
        "5 images/s", "one run",
    )  # fmt: skip


def test_a_figure_of_the_front_pages_without_a_row_is_seen(tmp_path: Path) -> None:
    for name in FRONT:
        assert not loose_figures((ROOT / name).read_text(encoding="utf-8")), name
    assert loose_figures("It takes 2.5 minutes and is 3x as fast.\n") == [
        "2.5 minutes and is 3x as fast."
    ]
    assert not loose_figures("Rows:\n```\n12 ms\n```\n`5 mm`; Python >= 3.11; 1,000 steps.\n")
    (tmp_path / "docs").mkdir()
    for name in FRONT:
        (tmp_path / name).write_text("reads 5,000 images/s\n")
    with pytest.raises(ValueError, match=r"3 figures have no row .README.md: '5,000 images/s'"):
        readme(ReadmeConfig(root=str(tmp_path)))


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
