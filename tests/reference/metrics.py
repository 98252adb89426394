"""Scores of one set of hands, by loops, from the published formulas; millimetres in and out.

FreiHAND's alignment: centre both sets, divide each by its Frobenius norm, turn by the orthogonal
Procrustes solution (a reflection allowed), scale by the sum of singular values and the norm of the
truth, move to the mean of the truth.
"""

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import KDTree


def align(truth: np.ndarray, guess: np.ndarray, used: np.ndarray | None = None) -> np.ndarray:
    """Return ``guess`` [k, 3] moved onto ``truth`` [k, 3]; ``used`` [k] picks the points."""
    if used is None:
        used = np.ones(len(truth), bool)
    truth_mean, guess_mean = truth[used].mean(0), guess[used].mean(0)
    truth_norm = np.linalg.norm(truth[used] - truth_mean)
    guess_norm = np.linalg.norm(guess[used] - guess_mean)
    R, s = orthogonal_procrustes(
        (truth[used] - truth_mean) / truth_norm, (guess[used] - guess_mean) / guess_norm
    )
    return np.asarray((guess - guess_mean) / guess_norm @ R.T * s * truth_norm + truth_mean)


def distances(first: np.ndarray, second: np.ndarray) -> list[float]:
    """Return the distance of each pair of points."""
    return [float(np.sqrt(((a - b) ** 2).sum())) for a, b in zip(first, second, strict=True)]


def mean_over_points(errors: list[list[float | None]]) -> float:
    """Average each point over the hands that have it, then the points that have any."""
    means = []
    for point in range(len(errors[0])):
        seen = [value for hand in errors if (value := hand[point]) is not None]
        if seen:
            means.append(sum(seen) / len(seen))
    return sum(means) / len(means)


def area(errors: list[list[float | None]], max_mm: float, steps: int) -> float:
    """Area under the share of errors <= t for each point, over the width, averaged over points."""
    areas = []
    for point in range(len(errors[0])):
        seen = [value for hand in errors if (value := hand[point]) is not None]
        if not seen:
            continue
        limits = [max_mm * i / (steps - 1) for i in range(steps)]
        share = [sum(value <= limit for value in seen) / len(seen) for limit in limits]
        total = 0.0
        for i in range(steps - 1):
            total += (limits[i + 1] - limits[i]) * (share[i] + share[i + 1]) / 2
        areas.append(total / max_mm)
    return sum(areas) / len(areas)


def f_score(truth: np.ndarray, guess: np.ndarray, threshold: float) -> float:
    """F-score of two point sets by nearest neighbours, strictly nearer than ``threshold``."""
    to_truth, _ = KDTree(truth).query(guess)
    to_guess, _ = KDTree(guess).query(truth)
    precision = sum(d < threshold for d in np.atleast_1d(to_truth)) / len(guess)
    recall = sum(d < threshold for d in np.atleast_1d(to_guess)) / len(truth)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
