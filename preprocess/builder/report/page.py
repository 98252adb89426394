"""The report page of a store: one self-contained HTML file without scripts or network access.

It describes the content of the store and not how it was built: no time, speed, machine or number of
workers, so that two builds of one store write the same page. The template ``page.html`` escapes
every value, since names and paths of a dataset may contain anything.
"""

import functools
import math
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Int64

from pipeline.store.schema import FLAG_MEANINGS, StoreAttributes
from preprocess.builder.report.facts import RejectedRow, Residuals, StoreFacts
from preprocess.labels.quality import LEFT_REFIT_LIMIT_M, MANO_RESIDUAL_LIMIT_M

if TYPE_CHECKING:
    import jinja2

PAGE_FILE: Final = "labels/quality/report.html"
"""Path of the page in a store: zarr-python warns about a foreign file in a group's folder, but not
about one in an array's folder."""
_MOST_ITEMS: Final = 200
"""Maximum number of entries that the page shows of one list or object in the source's notes."""
_BAR_PX: Final = 30
_PLOT_PX: Final = 150
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""Characters that are not valid in HTML or UTF-8; file names may contain them."""


def page(
    attributes: StoreAttributes,
    *,
    facts: StoreFacts,
    residuals: Residuals,
    flag_rows: dict[str, list[RejectedRow]],
    notes: dict[str, Any],
    max_residual_m: float = math.nan,
    max_refit_m: float = math.nan,
) -> str:
    """Render the page; a pure function of its arguments.

    Args:
        attributes: Store attributes, as written by ``finish_store``.
        facts: From ``facts.store_facts``.
        residuals: Error histograms of the whole store.
        flag_rows: The rows to list for each flag, from ``facts.rejected_rows``.
        notes: ``DatasetSource.notes``.
        max_residual_m: Largest distance between a decoded vertex and the official one, metres; NaN
            if none was compared.
        max_refit_m: Largest error of a refitted left hand, metres; NaN if none was refitted.
    """
    text = _template().render(
        a=attributes,
        facts=facts,
        splits=_splits(attributes),
        num_shards=-(-attributes.num_rows // attributes.shard_rows),
        meanings=FLAG_MEANINGS,
        histograms=[
            _Histogram.of(
                "Decoded vertices against the official ones", "rows",
                residuals.edges_mm, residuals.vertices,
                largest_m=max_residual_m, limit_m=MANO_RESIDUAL_LIMIT_M,
            ),
            _Histogram.of(
                "Refitted left hands against the hand as shipped", "hands",
                residuals.edges_mm, residuals.refit,
                largest_m=max_refit_m, limit_m=LEFT_REFIT_LIMIT_M,
            ),
        ],
        flag_rows=flag_rows,
        notes=notes,
        most_items=_MOST_ITEMS,
    )  # fmt: skip
    return _UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


@functools.cache
def _template() -> "jinja2.Template":
    """Return the compiled template; compiling takes half a second."""
    import jinja2  # the CLI imports this module's types without rendering a page

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "share": share,
        "bytes": byte_text,
        "number": "{:,}".format,
        "compact": _compact,
        "scalar": _scalar,
        "nested": _nested,
        "columns": _columns,
    }
    source = resources.files("preprocess.builder.report").joinpath("page.html").read_text("utf-8")
    return environment.from_string(source)


def share(count: int, total: int) -> str:
    """Format a fraction as text; only an exact 0 reads 0 and only an exact 1 reads 100 %."""
    if count in (0, total):
        return "100 %" if count else "0"
    percent = 100 * count / total
    if percent < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if percent > 99.9 else f"{percent:.1f} %"


def byte_text(count: int) -> str:
    """Format a number of bytes with a unit, followed by the exact number."""
    units = ("kB", "MB", "GB", "TB")
    exact = f"{count:,} bytes"
    if count < 1000:
        return exact
    power = min(len(units), (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {units[power - 1]} ({exact})"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Split:
    name: str
    found: int
    official: int | None
    verdict: str
    differs: bool


def _splits(attributes: StoreAttributes) -> list[_Split]:
    found, official = attributes.found_counts, attributes.official_counts
    splits = []
    for name in [*found, *(name for name in official if name not in found)]:
        have, expected = found.get(name, 0), official.get(name)
        verdict = "no official count" if expected is None else "complete"
        if expected is not None and have != expected:
            verdict = f"{abs(have - expected):,} {'fewer' if have < expected else 'more'}"
        differs = expected is not None and have != expected
        splits.append(
            _Split(name=name, found=have, official=expected, verdict=verdict, differs=differs)
        )
    return splits


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bar:
    x: int
    y: float
    height: float
    text: str
    """Range and count, shown by the browser on hovering."""
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Histogram:
    """Layout of a histogram for the template, in SVG pixels, y down."""

    title: str
    noun: str
    total: int
    largest: str
    """Largest value with its unit; empty if unknown."""
    bars: list[_Bar]
    ticks: list[tuple[int, str]]
    """Position and text of each axis label."""
    limit: str
    limit_x: float
    """Position of the limit beyond which ``beta`` is marked invalid."""
    width: int
    height: int = _PLOT_PX
    bar_width: int = _BAR_PX

    @classmethod
    def of(
        cls,
        title: str,
        noun: str,
        edges_mm: tuple[float, ...],
        counts: Int64[np.ndarray, " bins"],
        *,
        largest_m: float,
        limit_m: float,
    ) -> "_Histogram":
        """Lay out one bar per bin, with an axis label at each power of ten."""
        bounds = ["0", *(f"{edge:.3g}" for edge in edges_mm), "more"]
        most = max(int(counts.max()), 1)
        bars = [
            _Bar(
                x=i * _BAR_PX,
                y=round(_PLOT_PX * (1 - count / most), 2),
                height=round(_PLOT_PX * count / most, 2),
                text=f"{bounds[i]} to {bounds[i + 1]} mm: {count:,} {noun}",
                count=count,
            )
            for i, count in enumerate(counts.tolist())
        ]
        ticks = [
            ((i + 1) * _BAR_PX, f"{edge:g}")
            for i, edge in enumerate(edges_mm)
            if math.log10(edge).is_integer()
        ]
        return cls(
            title=title,
            noun=noun,
            total=int(counts.sum()),
            largest="" if math.isnan(largest_m) else f"{1000 * largest_m:.4g} mm",
            bars=bars,
            ticks=ticks,
            limit=f"{1000 * limit_m:g} mm",
            limit_x=round(_BAR_PX * (1 + _edges_below(edges_mm, 1000 * limit_m)), 2),
            width=len(bars) * _BAR_PX,
        )


def _edges_below(edges_mm: tuple[float, ...], value_mm: float) -> float:
    """Return the fractional index of a value among log-spaced edges."""
    first, last = math.log10(edges_mm[0]), math.log10(edges_mm[-1])
    return (math.log10(value_mm) - first) / (last - first) * (len(edges_mm) - 1)


def _compact(count: int) -> str:
    """Format a count to fit above a bar, in at most five characters."""
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}" if count < 999.5 * unit else f"{count // unit}{name}"
    return str(count)


def _scalar(value: Any) -> str:
    """Format one JSON scalar as text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _nested(value: list[Any]) -> bool:
    return any(isinstance(item, dict | list) for item in value)


def _columns(value: list[Any]) -> list[str] | None:
    """Return the columns of a list to show as a table: objects with the same keys."""
    if not value or not all(isinstance(item, dict) and item for item in value):
        return None
    keys = list(value[0])
    return keys if all(list(item) == keys for item in value) else None
