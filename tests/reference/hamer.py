"""HaMeR's scores by loops: joint errors in metres in, millimetres out; 2D joints in pixels."""

import numpy as np

from tests.reference import points, procrustes


def pose(truth: np.ndarray, guess: np.ndarray, *, strict: bool = False) -> tuple[float, float]:
    """Return (mpjpe_mm, pa_mpjpe_mm) of joints [n, 21, 3] in m.

    The mean over the joints of a frame, then over frames; the first after both wrists are moved to
    0, the second after a similarity with a proper rotation. A frame whose guessed joints coincide
    makes the second NaN; ``strict`` leaves it out of the second, NaN if no frame is left.
    """
    relative, aligned = [], []
    for true, mine in zip(truth, guess, strict=True):
        relative.append(float(points.distances(mine - mine[0], true - true[0]).mean()) * 1000)
        if strict and procrustes.coincide(mine):
            continue
        moved = procrustes.align_proper(true, mine)
        aligned.append(float(points.distances(moved, true).mean()) * 1000)
    return points.average(relative), points.average(aligned)


def pck(
    guess: np.ndarray,
    truth: np.ndarray,
    confidence: np.ndarray,
    scale: np.ndarray,
    threshold: float,
    *,
    strict: bool = False,
) -> tuple[np.ndarray, float]:
    """Return the share of right joints [21], and its mean over the joints.

    ``guess`` and ``truth`` [n, 21, 2] px, ``confidence`` [n, 21] (counted over 0.5), ``scale`` [n]
    px: the side of the box. Right: no farther than ``scale * threshold``. A joint that is never
    counted is NaN and so is the mean; ``strict``: the mean is over the joints that are counted.
    """
    shares = []
    for joint in range(np.shape(truth)[1]):
        counted = right = 0
        for i in range(len(truth)):
            if confidence[i][joint] > 0.5:
                counted += 1
                away = points.distances(guess[i][joint][None], truth[i][joint][None])[0]
                right += bool(away <= float(scale[i]) * threshold)
        shares.append(right / counted if counted else float("nan"))
    seen = [share for share in shares if not np.isnan(share)] if strict else shares
    return np.array(shares), points.average(seen)
