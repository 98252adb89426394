"""DexYCB's scores of the hand, by loops; millimetres in and out."""

import numpy as np

from tests.reference import points, procrustes


def score(
    truth_mm: np.ndarray, guess_mm: np.ndarray, *, strict: bool = False
) -> dict[str, tuple[float, float]]:
    """Return (mean error in mm, area up to 50 mm) for each way of aligning [n, 21, 3].

    ``strict``: the alignment turns and never mirrors.
    """
    truth_mm, guess_mm = np.asarray(truth_mm, np.float64), np.asarray(guess_mm, np.float64)
    limits = np.linspace(0, 50, 100)
    align = procrustes.align_proper if strict else procrustes.align_w_scale
    absolute, relative, aligned = [], [], []
    for truth, guess in zip(truth_mm, guess_mm, strict=True):
        absolute.append(points.distances(guess, truth))
        relative.append(points.distances(guess - guess[0], truth - truth[0]))
        aligned.append(points.distances(align(truth, guess), truth))
    return {
        "absolute": points.mean_and_auc(absolute, limits),
        "root-relative": points.mean_and_auc(relative, limits),
        "procrustes": points.mean_and_auc(aligned, limits),
    }
