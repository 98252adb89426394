"""Nearest-neighbour distances of two point sets, and the F-score.

Shape legend: b = samples, n and m = points of the two sets.
"""

from typing import Final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

MAX_DISTANCES: Final = 32 * 778 * 778
"""Entries of a distance matrix: 155 MB in float64, two hands each in a batch of 32."""


def nearest_distances(
    first: Float[Tensor, "b n 3"], second: Float[Tensor, "b m 3"]
) -> tuple[Float64[Tensor, "b n"], Float64[Tensor, "b m"]]:
    """Return the distance of every point to the nearest point of the other set.

    Chunked over samples, and over points where one pair of sets is too large.

    Raises:
        ValueError: If a set has no points.
    """
    n, m = first.shape[1], second.shape[1]
    if n == 0 or m == 0:
        raise ValueError(f"both point sets must have points, got {n} and {m} of them")
    num_samples = max(1, MAX_DISTANCES // (n * m))
    num_points = max(1, MAX_DISTANCES // m)
    to_second, to_first = [], []
    second = second.double()
    for some, others in zip(
        torch.split(first, num_samples), torch.split(second, num_samples), strict=True
    ):
        rows, columns = [], others.new_full(others.shape[:2], torch.inf)
        for points in torch.split(some.double(), num_points, 1):
            # No matrix product: its error grows to 1e-6 mm, and the comparisons are strict.
            distances = torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")
            rows.append(distances.amin(2))
            columns = torch.minimum(columns, distances.amin(1))
        to_second.append(torch.cat(rows, 1))
        to_first.append(columns)
    return torch.cat(to_second), torch.cat(to_first)


def f_score_of(
    pred_to_target: Float[Tensor, "b n"], target_to_pred: Float[Tensor, "b m"], threshold: float
) -> Float64[Tensor, " b"]:
    """Return the F-score from nearest-neighbour distances; see ``f_score``."""
    precision = (pred_to_target < threshold).double().mean(1)
    recall = (target_to_pred < threshold).double().mean(1)
    total = precision + recall
    return 2 * precision * recall / torch.where(total > 0, total, 1.0)


def f_score(
    pred: Float[Tensor, "b n 3"], target: Float[Tensor, "b m 3"], threshold: float
) -> Float64[Tensor, " b"]:
    """Return the F-score ``2 P R / (P + R)`` of each pair of point sets; 0 where P = R = 0.

    P (precision) is the fraction of predicted points strictly nearer than the threshold to their
    nearest true point, R (recall) the fraction of true points likewise. Points and threshold have
    the same unit.

    Raises:
        ValueError: If a set has no points.

    Source:
        FreiHAND's published evaluation (fh_utils, calculate_fscore), from its formula.
    """
    return f_score_of(*nearest_distances(pred, target), threshold)
