"""Loss terms on hands by loops: joints, bones, meshes, rotations, shape.

Arguments, their order and shapes are those of ``train.losses.terms``, in float64 and bool; a
distance is named by its word. Values of items that are not valid are never read.
"""

import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.spatial.transform import Rotation
from scipy.special import huber

from tests.reference.procrustes import similarity

Z_MIN_M = 0.05
MIN_BONE_M = 0.001
MIN_SPREAD_M = 0.001
MIN_COSINE = 1e-6
FINGERS = ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12), (13, 14, 15, 16), (17, 18, 19, 20))


def mean_or_zero(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Return the weighted mean, 0 if there is nothing or nothing has weight."""
    weights = [1.0] * len(values) if weights is None else weights
    total = math.fsum(weights)
    if total == 0:
        return 0.0
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total


def size(difference: np.ndarray, kind: str = "l1", smooth: float = 0.01) -> float:
    """Return the size of one difference [c], measured as ``kind`` says."""
    if kind == "l1":
        return math.fsum(abs(float(x)) for x in difference)
    if kind == "l2":
        return math.hypot(*(float(x) for x in difference))
    if kind == "smooth_l1":
        return math.fsum(float(huber(smooth, float(x))) / smooth for x in difference)
    raise ValueError(kind)


def turn(pred: np.ndarray, target: np.ndarray) -> float:
    """Return the angle between two rotations [3, 3]."""
    return float((Rotation.from_matrix(target) * Rotation.from_matrix(pred).inv()).magnitude())


def joints_abs(
    pred: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray,
    weight: np.ndarray | None = None,
    kind: str = "l1",
    smooth: float = 0.01,
) -> np.ndarray:
    """Return the weighted mean distance of the valid joints of each sample."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        sizes, weights = [], []
        for h, j in np.ndindex(ok.shape):
            if not ok[h, j]:
                continue
            sizes.append(size(p[h, j] - g[h, j], kind, smooth))
            weights.append(1.0 if weight is None else float(weight[j]))
        out.append(mean_or_zero(sizes, weights))
    return np.array(out)


def joints_rel(
    pred: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray,
    weight: np.ndarray | None = None,
    kind: str = "l1",
    smooth: float = 0.01,
) -> np.ndarray:
    """Return the same of hands whose true wrist is laid on the predicted one."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        sizes, weights = [], []
        for h in range(len(ok)):
            if not ok[h, 0]:
                continue
            shift = p[h, 0] - g[h, 0]
            for j in range(ok.shape[1]):
                if not ok[h, j]:
                    continue
                sizes.append(size(p[h, j] - (g[h, j] + shift), kind, smooth))
                weights.append(1.0 if weight is None else float(weight[j]))
        out.append(mean_or_zero(sizes, weights))
    return np.array(out)


def pixel(point: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Return the pixel [2] of one point by homogeneous coordinates, z at least ``Z_MIN_M``."""
    ahead = np.array([point[0], point[1], max(float(point[2]), Z_MIN_M)])
    return np.asarray((K[:2] @ ahead) / ahead[2])


def joints_2d(
    pred: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray,
    K: np.ndarray,
    input_px: int,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Return the weighted mean L1 distance of projections over the side of the input."""
    out = []
    for b in range(len(pred)):
        sizes, weights = [], []
        for h, j in np.ndindex(valid[b].shape):
            if not valid[b, h, j]:
                continue
            sizes.append(size(pixel(pred[b, h, j], K[b]) - pixel(target[b, h, j], K[b])))
            weights.append(1.0 if weight is None else float(weight[j]))
        out.append(mean_or_zero(sizes, weights) / input_px)
    return np.array(out)


def bone_pairs(
    pred: np.ndarray, target: np.ndarray, valid: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each valid bone of one sample [h, 21, 3], predicted and true."""
    for h in range(len(valid)):
        for finger in FINGERS:
            for parent, child in zip((0, *finger[:-1]), finger, strict=True):
                if not (valid[h, parent] and valid[h, child]):
                    continue
                yield pred[h, child] - pred[h, parent], target[h, child] - target[h, parent]


def bone_length(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean difference of the lengths of valid bones."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        pairs = bone_pairs(p, g, ok)
        out.append(mean_or_zero([abs(size(u, "l2") - size(v, "l2")) for u, v in pairs]))
    return np.array(out)


def bone_direction(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean of ``|u - v|^2 / 2`` by the law of cosines, from the angle of the bones."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        halves = []
        for u, v in bone_pairs(p, g, ok):
            angle = math.atan2(size(np.cross(u, v), "l2"), float(u @ v))
            # The bone over its length or over the shortest length that counts.
            a, c = (min(1.0, size(bone, "l2") / MIN_BONE_M) for bone in (u, v))
            halves.append((a - c) ** 2 / 2 + 2 * a * c * math.sin(angle / 2) ** 2)
        out.append(mean_or_zero(halves))
    return np.array(out)


def joints_pa(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean over hands of the RMS distance after the best similarity (by SVD)."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        errors = []
        for h in range(len(ok)):
            chosen = [j for j in range(ok.shape[1]) if ok[h, j]]
            if not chosen:
                continue
            guess = np.array([p[h, j] for j in chosen])
            truth = np.array([g[h, j] for j in chosen])
            s, R, t = 0.0, np.eye(3), truth.mean(0)
            if rms(guess, [guess.mean(0)] * len(guess)) > MIN_SPREAD_M:
                s, R, t = similarity(guess, truth)
            errors.append(rms([s * R @ point + t for point in guess], truth))
        out.append(mean_or_zero(errors))
    return np.array(out)


def rms(
    first: Sequence[np.ndarray] | np.ndarray, second: Sequence[np.ndarray] | np.ndarray
) -> float:
    """Return the root mean square distance of pairs of points."""
    squares = [size(x - y, "l2") ** 2 for x, y in zip(first, second, strict=True)]
    return math.sqrt(mean_or_zero(squares))


def vertices_rel(
    pred: np.ndarray,
    target: np.ndarray,
    pred_root: np.ndarray,
    target_root: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Return the mean L1 distance of vertices after laying the true root on the predicted one."""
    out = []
    for b in range(len(pred)):
        sizes = []
        for h in range(valid.shape[1]):
            if not valid[b, h]:
                continue
            shift = pred_root[b, h] - target_root[b, h]
            for p, g in zip(pred[b, h], target[b, h], strict=True):
                sizes.append(size(p - (g + shift)))
        out.append(mean_or_zero(sizes))
    return np.array(out)


def theta(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean of ``8 |q_xyz|^2``, q the quaternion between two rotations."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        squares = []
        for h in range(len(ok)):
            if not ok[h]:
                continue
            for R, G in zip(p[h], g[h], strict=True):
                x, y, z, _ = Rotation.from_matrix(R.T @ G).as_quat()
                squares.append(8 * float(x * x + y * y + z * z))
        out.append(mean_or_zero(squares))
    return np.array(out)


def theta_geodesic(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean angle between rotations."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        angles = []
        for h in range(len(ok)):
            if not ok[h]:
                continue
            angles += [turn(R, G) for R, G in zip(p[h], g[h], strict=True)]
        out.append(mean_or_zero(angles))
    return np.array(out)


def geodesic(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the angle of each pair of rotations, of whatever leading axes."""
    out = np.zeros(pred.shape[:-2])
    for at in np.ndindex(out.shape):
        out[at] = turn(pred[at], target[at])
    return out


def beta(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean squared difference of shape parameters."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        squares = []
        for h in range(len(ok)):
            if not ok[h]:
                continue
            squares += [(float(x) - float(y)) ** 2 for x, y in zip(p[h], g[h], strict=True)]
        out.append(mean_or_zero(squares))
    return np.array(out)


def beta_prior(pred: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean square of shape parameters."""
    out = []
    for p, ok in zip(pred, valid, strict=True):
        squares = []
        for h in range(len(ok)):
            if not ok[h]:
                continue
            squares += [float(x) * float(x) for x in p[h]]
        out.append(mean_or_zero(squares))
    return np.array(out)


def orthogonality(rot6d: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean of ``sum (e - 1)^2`` over the eigenvalues e of ``A^T A``."""
    out = []
    for six, ok in zip(rot6d, valid, strict=True):
        squares = []
        for h in range(len(ok)):
            if not ok[h]:
                continue
            for numbers in six[h]:
                A = np.column_stack([numbers[:3], numbers[3:]])
                squares.append(sum((float(e) - 1) ** 2 for e in np.linalg.eigvalsh(A.T @ A)))
        out.append(mean_or_zero(squares))
    return np.array(out)


def joint_limits(
    theta: np.ndarray,
    frames: np.ndarray,
    low_rad: np.ndarray,
    high_rad: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Return the mean squared excess of bend, splay and twist over their limits."""
    out = []
    for b in range(len(theta)):
        squares = []
        for h in range(valid.shape[1]):
            if not valid[b, h]:
                continue
            for j in range(15):
                # The turn seen along the anatomical axes: its axis moves, its angle stays.
                rotvec = Rotation.from_matrix(theta[b, h, j + 1]).as_rotvec()
                turned = Rotation.from_rotvec(frames[b, h, j].T @ rotvec)
                angles = _euler(turned.as_matrix())
                for angle, low, high in zip(angles, low_rad[j], high_rad[j], strict=True):
                    excess = low - angle if angle < low else max(angle - high, 0.0)
                    squares.append(float(excess) ** 2)
        out.append(mean_or_zero(squares))
    return np.array(out)


def bend_splay_twist(R: np.ndarray) -> np.ndarray:
    """Return the angles about z, y, x of each rotation, of whatever leading axes."""
    out = np.zeros((*R.shape[:-2], 3))
    for at in np.ndindex(R.shape[:-2]):
        out[at] = _euler(R[at])
    return out


def _euler(R: np.ndarray) -> tuple[float, float, float]:
    """Return the angles of one rotation; about z and x they are 0 where they are one turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        bend, splay, twist = Rotation.from_matrix(R).as_euler("ZYX")
    if math.hypot(R[0, 0], R[1, 0]) < MIN_COSINE:
        return 0.0, float(splay), 0.0
    return float(bend), float(splay), float(twist)
