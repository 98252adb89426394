"""Errors of one object's pose, by loops (Hinterstoisser et al. 2012; Xiang et al. 2018).

Points [n, 3] in m in the object's frame; R [3, 3] camera from object, t [3] in m.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from tests.reference.points import average


def add(
    points: np.ndarray, R: np.ndarray, t: np.ndarray, true_R: np.ndarray, true_t: np.ndarray
) -> float:
    """Return the mean distance in mm of the same points under the guessed and the true pose."""
    gaps = [(R @ point + t) - (true_R @ point + true_t) for point in points]
    return 1000 * average([float(np.sqrt((gap**2).sum())) for gap in gaps])


def add_s(
    points: np.ndarray, R: np.ndarray, t: np.ndarray, true_R: np.ndarray, true_t: np.ndarray
) -> float:
    """Return the mean distance in mm of each true point to the nearest guessed point."""
    guess = np.array([R @ point + t for point in points])
    truth = np.array([true_R @ point + true_t for point in points])
    distance, _ = KDTree(guess).query(truth)
    return 1000 * average([float(value) for value in np.atleast_1d(distance)])


def rotation_deg(R: np.ndarray, true_R: np.ndarray, symmetries: np.ndarray | None = None) -> float:
    """Return the smallest angle in degrees to ``true_R`` times any of ``symmetries`` [s, 3, 3]."""
    if symmetries is None:
        symmetries = np.eye(3)[None]
    turns = [Rotation.from_matrix(R.T @ true_R @ S) for S in symmetries]
    return min(float(np.degrees(turn.magnitude())) for turn in turns)


def translation(t: np.ndarray, true_t: np.ndarray) -> float:
    """Return the distance of the two origins in mm."""
    gap = np.asarray(t, np.float64) - np.asarray(true_t, np.float64)
    return 1000 * float(np.sqrt((gap**2).sum()))


def score(samples: Sequence[Mapping[str, Any]]) -> dict[str, float | int]:
    """Return the scores under the names of ``ObjectScores``.

    Each sample holds ``points``, ``pred_R``, ``pred_t``, ``true_R``, ``true_t``, ``diameter_m``,
    ``symmetric`` and, where there are any, ``symmetries`` [s, 3, 3].
    """
    adds, add_ss, near, near_s, near_either, angles, moves = [], [], [], [], [], [], []
    for one in samples:
        pose = (one["points"], one["pred_R"], one["pred_t"], one["true_R"], one["true_t"])
        adds.append(add(*pose))
        add_ss.append(add_s(*pose))
        limit_mm = 0.1 * float(one["diameter_m"]) * 1000
        near.append(adds[-1] < limit_mm)
        near_s.append(add_ss[-1] < limit_mm)
        near_either.append(near_s[-1] if one["symmetric"] else near[-1])
        angles.append(rotation_deg(one["pred_R"], one["true_R"], one.get("symmetries")))
        moves.append(translation(one["pred_t"], one["true_t"]))
    return {
        "num": len(samples),
        "add_mm": average(adds),
        "add_s_mm": average(add_ss),
        "add_01d": average(near),
        "add_s_01d": average(near_s),
        "add_or_s_01d": average(near_either),
        "rotation_deg": average(angles),
        "translation_mm": average(moves),
    }
