"""Alignments of one set of points to another; every function keeps the unit of its inputs."""

import numpy as np
from scipy.linalg import orthogonal_procrustes


def align_w_scale(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Return ``guess`` [k, 3] moved onto ``truth`` [k, 3] as FreiHAND does.

    A reflection is allowed, and 1e-8 is added to both norms.
    """
    truth, guess = np.asarray(truth, np.float64), np.asarray(guess, np.float64)
    R, scale, truth_norm, guess_norm = _freihand_fit(truth, guess)
    centred = (guess - guess.mean(0)) / guess_norm
    return np.asarray(centred @ R.T * scale * truth_norm + truth.mean(0))


def align_by_joints(
    mesh: np.ndarray, guess_joints: np.ndarray, truth_joints: np.ndarray, *, strict: bool = False
) -> np.ndarray:
    """Return ``mesh`` [n, 3] moved by the alignment of its joints [k, 3] to the true ones.

    Default: FreiHAND's way, which forgets the norm of the guessed joints and moves the mesh by
    the difference of the joints' means. ``strict``: the proper similarity of the joints.
    """
    mesh = np.asarray(mesh, np.float64)
    truth, guess = np.asarray(truth_joints, np.float64), np.asarray(guess_joints, np.float64)
    if strict:
        s, R, t = similarity(guess, truth)
        return np.array([s * R @ point + t for point in mesh])
    R, scale, truth_norm, _ = _freihand_fit(truth, guess)
    turned = (mesh - mesh.mean(0)) @ R.T * scale * truth_norm
    return np.asarray(turned + (truth.mean(0) - guess.mean(0)) + mesh.mean(0))


def align_proper(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Return ``guess`` [k, 3] moved onto ``truth`` [k, 3] by scale, rotation and translation."""
    s, R, t = similarity(guess, truth)
    return np.array([s * R @ point + t for point in np.asarray(guess, np.float64)])


def is_reflected(truth: np.ndarray, guess: np.ndarray) -> bool:
    """Say if ``align_w_scale`` mirrors ``guess`` [k, 3]; flat sets count as not mirrored."""
    truth, guess = np.asarray(truth, np.float64), np.asarray(guess, np.float64)
    a, c = truth - truth.mean(0), guess - guess.mean(0)
    U, w, Vt = np.linalg.svd(a.T @ c)
    if w[2] < 1e-9 * w[0]:
        return False
    return bool(np.linalg.det(U @ Vt) < 0)


def scale_translation(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Return ``guess`` [k, 3] with the length 0-4 and the point 0 of ``truth`` [k, 3] (HO-3D).

    Point 0 is the wrist, point 4 the root of the middle finger. A guess of length 0 is not
    divided by its length, yet multiplied by the true one.
    """
    truth, guess = np.asarray(truth, np.float64), np.asarray(guess, np.float64)
    moved = guess.copy()
    length = float(np.sqrt(((guess[4] - guess[0]) ** 2).sum()))
    if length > 0:
        moved = moved / length
    moved = moved * float(np.sqrt(((truth[4] - truth[0]) ** 2).sum()))
    return np.asarray(moved - moved[0] + truth[0])


def similarity(
    x: np.ndarray, y: np.ndarray, *, strict: bool = False
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return s, R [3, 3], t [3] with ``s R x + t`` nearest to ``y`` (Umeyama 1991), [k, 3] each.

    The rotation is proper. Where all points of ``x`` coincide, s and t are NaN; ``strict``: 0 and
    the mean of ``y``.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    R, signed = _proper_rotation(x, y)
    if coincide(x):
        if strict:
            return 0.0, R, y.mean(0)
        return float("nan"), R, np.full(3, np.nan)
    variance = 0.0
    for point in x:
        variance += float(((point - x.mean(0)) ** 2).sum()) / len(x)
    s = float(signed.sum()) / variance
    return s, R, y.mean(0) - s * R @ x.mean(0)


def rigid(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return R [3, 3] (proper), t [3] with ``R x + t`` nearest to ``y``, [k, 3] each."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    R, _ = _proper_rotation(x, y)
    return R, y.mean(0) - R @ x.mean(0)


def coincide(points: np.ndarray) -> bool:
    """Say if all points [k, 3] are the same one."""
    return all(bool((point == points[0]).all()) for point in points)


def _freihand_fit(truth: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, float, float, float]:
    a, c = truth - truth.mean(0), guess - guess.mean(0)
    truth_norm, guess_norm = float(np.linalg.norm(a)) + 1e-8, float(np.linalg.norm(c)) + 1e-8
    R, scale = orthogonal_procrustes(a / truth_norm, c / guess_norm)
    return R, float(scale), truth_norm, guess_norm


def _proper_rotation(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotation from ``x`` to ``y`` and the signed singular values of the covariance."""
    covariance = np.zeros((3, 3))
    for point, goal in zip(x, y, strict=True):
        covariance += np.outer(goal - y.mean(0), point - x.mean(0)) / len(x)
    U, w, Vt = np.linalg.svd(covariance)
    signs = np.ones(3)
    if np.linalg.det(U) * np.linalg.det(Vt) < 0:
        signs[2] = -1
    return U @ np.diag(signs) @ Vt, w * signs
