"""HaWoR's scores of hands and camera in the world frame, by loops; metres in, 30 frames a second.

Each list holds one value for each scored frame of the segment: a metric is the mean over the
lists of all segments together.
"""

import numpy as np

from tests.reference import points, procrustes

CHUNK = 100


def score_segment(
    joints: np.ndarray,
    target: np.ndarray,
    root: np.ndarray,
    target_root: np.ndarray,
    *,
    strict: bool = False,
) -> dict[str, list[float]]:
    """Return the values of one segment: joints [t, j, 3] and roots [t, 3] in m, world frame.

    ``accel_m_s2`` loses its first and last value and a root that never moves gives inf or NaN in
    ``rte_percent``; ``strict`` keeps the former, leaves ``rte_percent`` empty in the latter case,
    and shrinks coincident points to one instead of NaN.
    """
    joints, target = np.asarray(joints, np.float64), np.asarray(target, np.float64)
    root, target_root = np.asarray(root, np.float64), np.asarray(target_root, np.float64)
    first_two: list[float] = []
    whole: list[float] = []
    each: list[float] = []
    for start in range(0, len(joints), CHUNK):
        mine, true = joints[start : start + CHUNK], target[start : start + CHUNK]
        fit = procrustes.similarity(_flat(mine[:2]), _flat(true[:2]), strict=strict)
        first_two += [_mean_mm(fit, a, b) for a, b in zip(mine, true, strict=True)]
        fit = procrustes.similarity(_flat(mine), _flat(true), strict=strict)
        whole += [_mean_mm(fit, a, b) for a, b in zip(mine, true, strict=True)]
        for a, b in zip(mine, true, strict=True):
            each.append(_mean_mm(procrustes.similarity(a, b, strict=strict), a, b))
    return {
        "w_mpjpe_mm": first_two,
        "wa_mpjpe_mm": whole,
        "pa_mpjpe_mm": each,
        "accel_m_s2": _acceleration(joints, target, strict=strict),
        "rte_percent": _root_error(root, target_root, strict=strict),
    }


def ate(position: np.ndarray, target: np.ndarray, *, strict: bool = False) -> tuple[float, float]:
    """Return the RMSE in mm of one trajectory [t, 3] in m after a similarity and a rigid fit."""
    position, target = np.asarray(position, np.float64), np.asarray(target, np.float64)
    s, R, t = procrustes.similarity(position, target, strict=strict)
    R_rigid, t_rigid = procrustes.rigid(position, target)
    scaled, turned = 0.0, 0.0
    for a, b in zip(position, target, strict=True):
        scaled += float(((s * R @ a + t - b) ** 2).sum()) / len(target)
        turned += float(((R_rigid @ a + t_rigid - b) ** 2).sum()) / len(target)
    return 1000 * float(np.sqrt(scaled)), 1000 * float(np.sqrt(turned))


def _flat(frames: np.ndarray) -> np.ndarray:
    """Return the joints of all frames as one set: [t, j, 3] to [t * j, 3]."""
    return np.array([joint for frame in frames for joint in frame])


def _mean_mm(
    fit: tuple[float, np.ndarray, np.ndarray], mine: np.ndarray, true: np.ndarray
) -> float:
    """Return the mean joint error in mm of one frame [j, 3] moved by s, R, t."""
    s, R, t = fit
    moved = np.array([s * R @ joint + t for joint in mine])
    return 1000 * float(points.distances(moved, true).mean())


def _acceleration(joints: np.ndarray, target: np.ndarray, *, strict: bool) -> list[float]:
    """Return the mean acceleration error over the joints of each inner frame, m/s^2."""
    errors = []
    for t in range(1, len(joints) - 1):
        mine = joints[t - 1] - 2 * joints[t] + joints[t + 1]
        true = target[t - 1] - 2 * target[t] + target[t + 1]
        errors.append(float(points.distances(mine, true).mean()) * 30**2)
    return errors if strict else errors[1:-1]


def _root_error(root: np.ndarray, target: np.ndarray, *, strict: bool) -> list[float]:
    """Return the root error of each frame after a rigid fit, in % of the true path's length."""
    R, t = procrustes.rigid(root, target)
    path = float(points.distances(target[1:], target[:-1]).sum())
    if strict and path == 0:
        return []
    errors = []
    for a, b in zip(root, target, strict=True):
        away = float(np.sqrt(((R @ a + t - b) ** 2).sum()))
        if path > 0:
            errors.append(away / path * 100)
        else:
            errors.append(float("inf") if away > 0 else float("nan"))
    return errors
