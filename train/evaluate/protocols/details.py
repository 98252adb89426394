"""Scores in detail: per sample and per point, PCK curves, means and medians, as a long table.

Columns: ``metric``, ``kind`` (mean, median, sample, point, pck), ``sample``, ``point``,
``threshold`` and ``value``; what a kind does not have is empty. The unit is the metric's, ``_mm``
in its name being millimetres. ``mean`` is over the samples for each point, then over the points;
``median`` is over all values. ``pck`` is the fraction of errors up to the threshold, averaged
over the points.
"""

import csv
import importlib.util
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pipeline.app.files import replace_file
from train.evaluate.metrics.errors import distance

COLUMNS: Final = ("metric", "kind", "sample", "point", "threshold", "value")
ENDINGS: Final = (".csv", ".parquet")
AUC_MAX_MM: Final = 50.0
_STEPS: Final = 100
Points = Float64[np.ndarray, "n k 3"]
Align = Callable[[Tensor, Tensor], Tensor]
Cells = tuple[str, str, int | None, int | None, float | None, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Detail:
    """The values of one metric."""

    name: str
    errors: Float64[np.ndarray, "n k"]
    """By sample and point; NaN where not scored."""
    max_error: float | None = None
    """Last threshold of the PCK curve; None: no curve."""
    samples: Sequence[int] | None = None
    """Numbers of the samples; None counts them."""


def require_details(path: str) -> None:
    """Reject a file of details that cannot be written, before anything is scored.

    Raises:
        ValueError: With the cause.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"details={path!r} must end in {' or '.join(ENDINGS)}, got {ending!r}")
    if Path(path).expanduser().is_dir():
        raise ValueError(f"details={path!r} is a folder, expected a file")
    if ending == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"details={path!r} needs pyarrow, which is not installed: pip install pyarrow, or "
            "write .csv"
        )


def joint_details(
    points: Points,
    target: Points,
    aligned: Mapping[str, Align | None],
    *,
    per_metre: float = 1,
    samples: Sequence[int] | None = None,
) -> list[Detail]:
    """Return point errors in millimetres, after each of several alignments.

    Args:
        points: Predicted points.
        target: True points.
        aligned: Alignment of points to the target by name of the metric; None: as they are.
        per_metre: Units of the points in a metre: 1 or 1000.
        samples: As in ``Detail``.
    """
    pred, true = (torch.from_numpy(np.asarray(p, np.float64)) for p in (points, target))
    found = []
    for name, align in aligned.items():
        moved = pred if align is None else align(pred, true)
        errors = (distance(moved, true) * (1000 / per_metre)).numpy()
        found.append(Detail(name=name, errors=errors, max_error=AUC_MAX_MM, samples=samples))
    return found


def write_details(path: Path, details: Sequence[Detail]) -> None:
    """Write the table as CSV or Parquet, by the ending, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for detail in details:
            writer.writerows(_rows(detail))
        replace_file(path, text.getvalue().encode())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = (pa.string(), pa.string(), pa.int64(), pa.int64(), pa.float64(), pa.float64())
    rows = [row for detail in details for row in _rows(detail)]
    arrays = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds)]
    content = io.BytesIO()
    pq.write_table(pa.table(arrays, names=list(COLUMNS)), content)
    replace_file(path, content.getbuffer())


def _rows(detail: Detail) -> Iterator[Cells]:
    errors, name = np.asarray(detail.errors, np.float64), detail.name
    seen = ~np.isnan(errors)
    per_sample, per_point = (_mean(errors, seen, axis) for axis in (1, 0))
    known = errors[seen]
    if len(known):
        points = per_point[~np.isnan(per_point)]
        yield name, "mean", None, None, None, float(points.mean())
        yield name, "median", None, None, None, float(np.median(known))
    numbers = range(len(errors)) if detail.samples is None else detail.samples
    for sample, value in zip(numbers, per_sample.tolist(), strict=True):
        if value == value:  # not NaN
            yield name, "sample", int(sample), None, None, value
    if errors.shape[1] > 1:
        for point, value in enumerate(per_point.tolist()):
            if value == value:
                yield name, "point", None, point, None, value
    if detail.max_error is not None and len(known):
        for limit in np.linspace(0, detail.max_error, _STEPS):
            hits = ((errors <= limit) & seen).sum(0)[seen.any(0)] / seen.sum(0)[seen.any(0)]
            yield name, "pck", None, None, float(limit), float(hits.mean())


def _mean(
    errors: Float64[np.ndarray, "n k"], seen: np.ndarray, axis: int
) -> Float64[np.ndarray, " _"]:
    """Return means over an axis; NaN where nothing is known."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(seen, errors, 0).sum(axis) / seen.sum(axis))
