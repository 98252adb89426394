"""Loss terms of hands, item by item: joints, bones, meshes, MANO parameters.

Arguments as in ``train.losses.terms``; values of items that are not valid are never looked at.
"""

from collections.abc import Iterator

import numpy as np
from scipy.spatial.transform import Rotation

Z_MIN_M = 0.05
MIN_BONE_M = 1e-3
MIN_SPREAD_M = 1e-3
PARENT = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)


def distance(p: np.ndarray, g: np.ndarray, kind: str, smooth: float) -> float:
    """Return how far two points are apart."""
    apart = [float(a) - float(b) for a, b in zip(p, g, strict=True)]
    if kind == "l2":
        return float(np.hypot.reduce(apart))
    if kind == "l1":
        return sum(abs(a) for a in apart)
    total = 0.0
    for a in apart:
        # The integral of a slope that rises to 1 at ``smooth``.
        total += a * a / (2 * smooth) if abs(a) < smooth else abs(a) - smooth / 2
    return total


def mean(values: list[float], weights: list[float] | None = None) -> float:
    """Return the weighted mean, 0 of nothing."""
    weights = [1.0] * len(values) if weights is None else weights
    total = sum(weights)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / total if total > 0 else 0.0


def joints_abs(
    pred: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray,
    weight: np.ndarray | None = None,
    kind: str = "l1",
    smooth: float = 0.01,
) -> np.ndarray:
    """Return the mean distance of joints per sample."""
    out = []
    for b in range(len(pred)):
        found, weights = [], []
        for h, j in np.argwhere(valid[b]):
            found.append(distance(pred[b, h, j], target[b, h, j], kind, smooth))
            weights.append(1.0 if weight is None else float(weight[j]))
        out.append(mean(found, weights))
    return np.array(out)


def joints_rel(
    pred: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray,
    weight: np.ndarray | None = None,
    kind: str = "l1",
    smooth: float = 0.01,
) -> np.ndarray:
    """Return the mean distance of joints seen from their wrists."""
    out = []
    for b in range(len(pred)):
        found, weights = [], []
        for h, j in np.argwhere(valid[b]):
            if not valid[b, h, 0]:
                continue
            p, g = pred[b, h, j] - pred[b, h, 0], target[b, h, j] - target[b, h, 0]
            found.append(distance(p, g, kind, smooth))
            weights.append(1.0 if weight is None else float(weight[j]))
        out.append(mean(found, weights))
    return np.array(out)


def pixel(point: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Return where a camera sees a point; nearer ones as if at ``Z_MIN_M``."""
    x, y, z = (float(value) for value in point)
    z = max(z, Z_MIN_M)
    return np.array([K[i, 0] * x / z + K[i, 1] * y / z + K[i, 2] for i in (0, 1)])


def joints_2d(
    pred: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray,
    K: np.ndarray,
    input_px: int,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Return the mean distance in the picture, in sides of it."""
    out = []
    for b in range(len(pred)):
        found, weights = [], []
        for h, j in np.argwhere(valid[b]):
            u, v = pixel(pred[b, h, j], K[b]) - pixel(target[b, h, j], K[b])
            found.append((abs(u) + abs(v)) / input_px)
            weights.append(1.0 if weight is None else float(weight[j]))
        out.append(mean(found, weights))
    return np.array(out)


def bones(joints: np.ndarray, valid: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the bones of one hand whose ends are both valid."""
    for j in range(1, 21):
        if valid[j] and valid[PARENT[j]]:
            yield joints[j] - joints[PARENT[j]]


def bone_length(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean difference of lengths."""
    out = []
    for b in range(len(pred)):
        found = []
        for h in range(pred.shape[1]):
            pairs = zip(
                bones(pred[b, h], valid[b, h]), bones(target[b, h], valid[b, h]), strict=True
            )
            found += [abs(np.hypot.reduce(p) - np.hypot.reduce(g)) for p, g in pairs]
        out.append(mean(found))
    return np.array(out)


def bone_direction(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean of 1 - cosine; of bones of a decent length."""
    out = []
    for b in range(len(pred)):
        found = []
        for h in range(pred.shape[1]):
            pairs = zip(
                bones(pred[b, h], valid[b, h]), bones(target[b, h], valid[b, h]), strict=True
            )
            for p, g in pairs:
                assert min(np.hypot.reduce(p), np.hypot.reduce(g)) > MIN_BONE_M
                found.append(1 - float(p @ g) / float(np.hypot.reduce(p) * np.hypot.reduce(g)))
        out.append(mean(found))
    return np.array(out)


def joints_pa(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the root mean square distance after the best similarity, found by SVD (Umeyama)."""
    out = []
    for b in range(len(pred)):
        found = []
        for h in range(pred.shape[1]):
            if not valid[b, h].any():
                continue
            p, g = pred[b, h][valid[b, h]], target[b, h][valid[b, h]]
            p, g = p - p.mean(0), g - g.mean(0)
            U, S, Vt = np.linalg.svd(g.T @ p)
            flip = np.array([1, 1, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
            spread = (p**2).sum()
            is_point = spread / len(p) <= MIN_SPREAD_M**2
            scale = 0.0 if is_point else (S * flip).sum() / spread
            aligned = scale * p @ (U @ np.diag(flip) @ Vt).T
            found.append(float(np.sqrt(((aligned - g) ** 2).sum() / len(p))))
        out.append(mean(found))
    return np.array(out)


def vertices_rel(
    pred: np.ndarray,
    target: np.ndarray,
    pred_root: np.ndarray,
    target_root: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Return the mean distance of vertices seen from their roots."""
    out = []
    for b in range(len(pred)):
        found = []
        for h in np.flatnonzero(valid[b]):
            for p, g in zip(
                pred[b, h] - pred_root[b, h], target[b, h] - target_root[b, h], strict=True
            ):
                found.append(distance(p, g, "l1", 0.0))
        out.append(mean(found))
    return np.array(out)


def _angles(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> list[list[float]]:
    """Return the angles between rotations of valid hands, by scipy."""
    out = []
    for b in range(len(pred)):
        found: list[float] = []
        for h in np.flatnonzero(valid[b]):
            one, other = Rotation.from_matrix(pred[b, h]), Rotation.from_matrix(target[b, h])
            found += np.atleast_1d((one.inv() * other).magnitude()).tolist()
        out.append(found)
    return out


def theta(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean of 4 (1 - cos angle) = 8 sin^2 (angle / 2)."""
    angles = _angles(pred, target, valid)
    return np.array([mean([8 * np.sin(a / 2) ** 2 for a in found]) for found in angles])


def theta_geodesic(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean angle."""
    return np.array([mean(found) for found in _angles(pred, target, valid)])


def beta(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean squared difference."""
    out = []
    for b in range(len(pred)):
        found: list[float] = []
        for h in np.flatnonzero(valid[b]):
            found += [
                (float(p) - float(g)) ** 2 for p, g in zip(pred[b, h], target[b, h], strict=True)
            ]
        out.append(mean(found))
    return np.array(out)


def beta_prior(pred: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean square."""
    return beta(pred, np.zeros_like(pred), valid)


def orthogonality(rot6d: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean of |A^T A - I|^2 by its singular values: sum of (s^2 - 1)^2."""
    out = []
    for b in range(len(rot6d)):
        found = []
        for h in np.flatnonzero(valid[b]):
            for six in rot6d[b, h]:
                s = np.linalg.svd(np.stack([six[:3], six[3:]], 1), compute_uv=False)
                found.append(float(((s**2 - 1) ** 2).sum()))
        out.append(mean(found))
    return np.array(out)


def joint_limits(
    theta: np.ndarray,
    frames: np.ndarray,
    low_rad: np.ndarray,
    high_rad: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Return the mean squared excess of Euler angles, by scipy."""
    out = []
    for b in range(len(theta)):
        found: list[float] = []
        for h in np.flatnonzero(valid[b]):
            for j in range(15):
                axes = Rotation.from_matrix(frames[b, h, j])
                local = axes.inv() * Rotation.from_matrix(theta[b, h, j + 1]) * axes
                for angle, low, high in zip(
                    local.as_euler("ZYX"), low_rad[j], high_rad[j], strict=True
                ):
                    found.append(float(angle - np.clip(angle, low, high)) ** 2)
        out.append(mean(found))
    return np.array(out)
