"""Point errors as streaming sums: mean error, PCK curve and its area (AUC).

The sums are plain: those of two batches, or of two ranks, add up to those of all samples. The
order of means is FreiHAND's: over the samples for each point, then over the points. All errors of
a stream and its thresholds share one unit. Float64.

Source:
    FreiHAND's published evaluation (eval.py, EvalUtil), from its formulas.

Shape legend: b = samples, k = points of a sample, t = thresholds.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorSums:
    """Sums over samples for each point, in the unit of the thresholds."""

    total: Float64[Tensor, " k"]
    count: Int64[Tensor, " k"]
    hits: Int64[Tensor, "t k"]
    """Errors ``<=`` each threshold."""
    thresholds: Float64[Tensor, " t"]


def thresholds(max_error: float, steps: int = 100) -> Float64[Tensor, " t"]:
    """Return ``steps`` thresholds from 0 to ``max_error``, bit-identical to ``numpy.linspace``.

    ``torch.linspace`` rounds differently, and an error may lie on a threshold.
    """
    return torch.from_numpy(np.linspace(0, max_error, steps))


def distance(pred: Float[Tensor, "*b d"], target: Float[Tensor, "*b d"]) -> Float64[Tensor, "*b"]:
    """Return the Euclidean distance over the last axis; exact where the points differ in one."""
    return (pred.double() - target.double()).square().sum(-1).sqrt()


def error_sums(
    errors: Float[Tensor, "b k"],
    valid: Bool[Tensor, "b k"] | None,
    limits: Float64[Tensor, " t"],
) -> ErrorSums:
    """Return the sums of a batch; errors that are not ``valid`` may be NaN. None means all."""
    if valid is None:
        valid = torch.ones_like(errors, dtype=torch.bool)
    limits, errors = limits.to(errors.device), errors.double().contiguous()
    # A histogram instead of b*k*t comparisons: an error counts from the first threshold >= it.
    steps = len(limits)
    first = torch.where(valid, torch.searchsorted(limits, errors), steps)
    hits = torch.zeros(steps + 1, errors.shape[1], dtype=torch.int64, device=errors.device)
    hits.scatter_add_(0, first, torch.ones_like(first))
    return ErrorSums(
        total=torch.where(valid, errors, 0.0).sum(0),
        count=valid.sum(0),
        hits=hits[:-1].cumsum(0),
        thresholds=limits,
    )


def zero_sums(
    num_points: int, limits: Float64[Tensor, " t"], device: torch.device | None = None
) -> ErrorSums:
    """Return the sums of no sample, on ``device`` (that of ``limits`` by default)."""
    limits = limits if device is None else limits.to(device)
    return error_sums(limits.new_zeros(0, num_points), None, limits)


def add(sums: ErrorSums, more: ErrorSums) -> None:
    """Add ``more`` to ``sums`` in place."""
    sums.total.add_(more.total)
    sums.count.add_(more.count)
    sums.hits.add_(more.hits)


def mean_error(sums: ErrorSums) -> float:
    """Return the mean over samples for each point, then over the points that were seen.

    Raises:
        ValueError: If no point was seen.
    """
    seen = _seen(sums)
    return float((sums.total[seen] / sums.count[seen]).mean())


def pck_curve(sums: ErrorSums) -> Float64[Tensor, " t"]:
    """Return the fraction of errors ``<=`` each threshold, mean over the points that were seen.

    Raises:
        ValueError: If no point was seen.
    """
    seen = _seen(sums)
    return (sums.hits[:, seen] / sums.count[seen].double()).mean(1)


def auc(sums: ErrorSums) -> float:
    """Return the area under the curve of each seen point over the full area, mean over points.

    Raises:
        ValueError: If no point was seen.
    """
    seen = _seen(sums)
    curves = sums.hits[:, seen] / sums.count[seen].double()
    areas = torch.trapezoid(curves, sums.thresholds, dim=0)
    full = torch.trapezoid(torch.ones_like(sums.thresholds), sums.thresholds)
    return float((areas / full).mean())


def require_same_shape(pred: Float[Tensor, "..."], target: Float[Tensor, "..."]) -> None:
    """Reject point sets of different shapes.

    Raises:
        ValueError: If the shapes differ or the points are not 3-D.
    """
    if pred.shape != target.shape or pred.shape[-1] != 3:
        raise ValueError(
            f"prediction and ground truth must both have shape (*b, k, 3), "
            f"got {tuple(pred.shape)} and {tuple(target.shape)}"
        )


def require_shape(name: str, tensor: Shaped[Tensor, "..."], *shape: int) -> None:
    """Reject a tensor of another shape.

    Raises:
        ValueError: If the shape differs.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def require_finite(
    name: str,
    points: Float[Tensor, "b k d"],
    valid: Bool[Tensor, "b k"] | None = None,
    *,
    what: str = "hands",
) -> None:
    """Reject NaN and infinity: dropping a NaN would improve the score.

    Raises:
        ValueError: If a point that is ``valid`` (None means all) is not finite.
    """
    finite = points.isfinite().all(-1)
    if valid is not None:
        finite = finite | ~valid
    bad = (~finite.all(-1)).nonzero()[:, 0]
    if len(bad):
        num = len(points) if valid is None else int(valid.any(-1).sum())
        raise ValueError(
            f"{name}: {len(bad)} of {num} scored {what} are not finite (first: {int(bad[0])})"
        )


def _seen(sums: ErrorSums) -> Tensor:
    seen = sums.count > 0
    if not bool(seen.any()):
        raise ValueError(f"no hand to score: all {len(seen)} points have no valid sample")
    return seen
