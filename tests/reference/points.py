"""Mean error, area under the curve and F-score of point sets; the unit is that of the inputs."""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the distance of each pair of points, [k, d] twice to [k]."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    pairs = zip(first, second, strict=True)
    return np.array([np.sqrt(((a - b) ** 2).sum()) for a, b in pairs])


def mean_and_auc(errors: Sequence[np.ndarray], limits: np.ndarray) -> tuple[float, float]:
    """Return the mean error and the area under the share of errors <= limit.

    ``errors`` holds one [k] for each sample, NaN where a point has no error. Both numbers are
    taken for each point over the samples that have it, then averaged over the points seen; both
    are NaN if there is none. The area is by trapezoids, over the width of ``limits`` [t].
    """
    means, areas = [], []
    for point in range(len(errors[0])):
        seen = np.array([sample[point] for sample in errors if not np.isnan(sample[point])])
        if len(seen) == 0:
            continue
        means.append(float(seen.sum()) / len(seen))
        share = (seen[:, None] <= limits).sum(0) / len(seen)
        area = width = 0.0
        for i in range(len(limits) - 1):
            step = float(limits[i + 1] - limits[i])
            area += step * float(share[i] + share[i + 1]) / 2
            width += step
        areas.append(area / width)
    return average(means), average(areas)


def average(values: Sequence[float]) -> float:
    """Return the mean of the values, NaN if there is none."""
    return float(sum(values)) / len(values) if len(values) else float("nan")


def f_score(truth: np.ndarray, guess: np.ndarray, threshold: float) -> float:
    """F-score of two sets [n, 3] and [m, 3] by nearest neighbours strictly under ``threshold``."""
    to_truth, _ = KDTree(truth).query(guess)
    to_guess, _ = KDTree(guess).query(truth)
    precision = sum(d < threshold for d in np.atleast_1d(to_truth)) / len(guess)
    recall = sum(d < threshold for d in np.atleast_1d(to_guess)) / len(truth)
    if precision + recall == 0:
        return 0.0
    return float(2 * precision * recall / (precision + recall))
