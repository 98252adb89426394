"""Loss terms beyond the hand, item by item: objects, contact, physics, motion, regularizers.

Arguments as in ``train.losses.terms``; values of items that are not valid are never looked at.
"""

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.special import entr, log_expit, logsumexp

from tests.reference.losses import distance, mean


def object_position(
    pred_t: np.ndarray,
    target_t: np.ndarray,
    valid: np.ndarray,
    kind: str = "l1",
    smooth: float = 0.01,
) -> np.ndarray:
    """Return the mean distance of origins."""
    return np.array(
        [
            mean(
                [distance(pred_t[b, o], target_t[b, o], kind, smooth) for o in np.flatnonzero(own)]
            )
            for b, own in enumerate(valid)
        ]
    )


def _best(
    pred_R: np.ndarray, target_R: np.ndarray, symmetries: np.ndarray, usable: np.ndarray
) -> tuple[float, int]:
    """Return the smallest angle to an equivalent of the target, and which one it is."""
    angles = {
        int(s): float(Rotation.from_matrix(pred_R.T @ target_R @ symmetries[s, :, :3]).magnitude())
        for s in np.flatnonzero(usable)
    }
    best = min(angles, key=lambda s: angles[s])
    return angles[best], best


def object_rotation(
    pred_R: np.ndarray,
    target_R: np.ndarray,
    valid: np.ndarray,
    symmetries: np.ndarray,
    symmetry_valid: np.ndarray,
) -> np.ndarray:
    """Return the mean of 8 sin^2 (angle / 2) of the smallest angle."""
    out = []
    for b, own in enumerate(valid):
        found = []
        for o in np.flatnonzero(own):
            angle, _ = _best(pred_R[b, o], target_R[b, o], symmetries[b, o], symmetry_valid[b, o])
            found.append(8 * np.sin(angle / 2) ** 2)
        out.append(mean(found))
    return np.array(out)


def nearest_equivalent(
    pred_R: np.ndarray,
    target_R: np.ndarray,
    target_t: np.ndarray,
    valid: np.ndarray,
    symmetries: np.ndarray,
    symmetry_valid: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pose G S, G s + t nearest in rotation, as a product of 4 x 4 matrices."""
    R, t = np.full_like(target_R, np.nan), np.full_like(target_t, np.nan)
    for b, o in np.argwhere(valid):
        _, best = _best(pred_R[b, o], target_R[b, o], symmetries[b, o], symmetry_valid[b, o])
        G, S = np.eye(4), np.eye(4)
        G[:3, :3], G[:3, 3], S[:3] = target_R[b, o], target_t[b, o], symmetries[b, o, best]
        R[b, o], t[b, o] = (G @ S)[:3, :3], (G @ S)[:3, 3]
    return R, t


def unit_quaternion(quat: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean of (|q|^2 - 1)^2."""
    return np.array(
        [
            mean([(float(np.linalg.norm(quat[b, o])) ** 2 - 1) ** 2 for o in np.flatnonzero(own)])
            for b, own in enumerate(valid)
        ]
    )


def object_class(logits: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean cross entropy."""
    return np.array(
        [
            mean(
                [
                    float(logsumexp(logits[b, o]) - logits[b, o, target[b, o]])
                    for o in np.flatnonzero(own)
                ]
            )
            for b, own in enumerate(valid)
        ]
    )


def add(
    points: np.ndarray,
    pred_R: np.ndarray,
    pred_t: np.ndarray,
    target_R: np.ndarray,
    target_t: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Return the mean distance of the same points."""
    out = []
    for b, own in enumerate(valid):
        found = []
        for o in np.flatnonzero(own):
            for x in points[b, o]:
                apart = pred_R[b, o] @ x + pred_t[b, o] - target_R[b, o] @ x - target_t[b, o]
                found.append(float(np.hypot.reduce(apart)))
        out.append(mean(found))
    return np.array(out)


def add_s(
    points: np.ndarray,
    pred_R: np.ndarray,
    pred_t: np.ndarray,
    target_R: np.ndarray,
    target_t: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Return the mean distance of true points to the nearest predicted one."""
    out = []
    for b, own in enumerate(valid):
        found: list[float] = []
        for o in np.flatnonzero(own):
            pred = [pred_R[b, o] @ x + pred_t[b, o] for x in points[b, o]]
            true = [target_R[b, o] @ x + target_t[b, o] for x in points[b, o]]
            found += np.atleast_1d(cKDTree(pred).query(true)[0]).tolist()
        out.append(mean(found))
    return np.array(out)


def soft_contact(distance_m: np.ndarray, tau_m: float = 0.005) -> np.ndarray:
    """Return a Gaussian of the distance."""
    return np.asarray(np.exp(-0.5 * (distance_m / tau_m) ** 2))


def contact_focal(
    logits: np.ndarray, target: np.ndarray, valid: np.ndarray, alpha: float = 0.25
) -> np.ndarray:
    """Return the mean focal cross entropy, from the logarithms of both probabilities."""
    out = []
    for b, own in enumerate(valid):
        found = []
        for h in np.flatnonzero(own):
            for x, t in zip(logits[b, h], target[b, h], strict=True):
                log_p, log_q = float(log_expit(x)), float(log_expit(-x))
                weight = alpha * t + (1 - alpha) * (1 - t)
                found.append(weight * (t - np.exp(log_p)) ** 2 * -(t * log_p + (1 - t) * log_q))
        out.append(mean(found))
    return np.array(out)


def contact_distance(
    pred_m: np.ndarray, target_m: np.ndarray, valid: np.ndarray, far_m: float = 0.0635
) -> np.ndarray:
    """Return the mean difference; beyond ``far_m`` only what is too near counts."""
    out = []
    for b, own in enumerate(valid):
        found = []
        for h in np.flatnonzero(own):
            for d, g in zip(pred_m[b, h], target_m[b, h], strict=True):
                found.append(abs(d - g) if g < far_m else max(far_m - d, 0.0))
        out.append(mean(found))
    return np.array(out)


def contact_points(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the sum of the mean nearest distances both ways."""
    out = []
    for b, own in enumerate(valid):
        if not own.any():
            out.append(0.0)
            continue
        true = target[b][own]
        there, back = cKDTree(pred[b]).query(true)[0], cKDTree(true).query(pred[b])[0]
        out.append(float(np.mean(there) + np.mean(back)))
    return np.array(out)


def signed_distance(
    points: np.ndarray, grids: np.ndarray, boxes: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Return scipy's interpolation at the nearest point of the box plus the distance to it."""
    out = np.zeros(points.shape[:2])
    for b in range(len(points)):
        low, high = boxes[row[b]]
        side = grids.shape[-1]
        axes = [np.linspace(low[c], high[c], side) for c in range(3)]
        field = RegularGridInterpolator(axes, grids[row[b]].astype(np.float64), bounds_error=False)
        for p, point in enumerate(points[b]):
            inside = np.array([min(max(point[c], axes[c][0]), axes[c][-1]) for c in range(3)])
            out[b, p] = float(field(inside)[0]) + float(np.hypot.reduce(point - inside))
    return out


def _sdf_of(
    b: int,
    own: np.ndarray,
    points: np.ndarray,
    grids: np.ndarray,
    boxes: np.ndarray,
    row: np.ndarray,
) -> np.ndarray:
    return np.asarray(signed_distance(points[b : b + 1, own], grids, boxes, row[b : b + 1])[0])


def sdf_penetration(
    points: np.ndarray, grids: np.ndarray, boxes: np.ndarray, row: np.ndarray, valid: np.ndarray
) -> np.ndarray:
    """Return the mean depth."""
    out = []
    for b, own in enumerate(valid):
        depth = (
            [max(-s, 0.0) for s in _sdf_of(b, own, points, grids, boxes, row)] if own.any() else []
        )
        out.append(mean(depth))
    return np.array(out)


def sdf_attraction(
    points: np.ndarray,
    grids: np.ndarray,
    boxes: np.ndarray,
    row: np.ndarray,
    touches: np.ndarray,
    tau_m: float = 0.005,
) -> np.ndarray:
    """Return the mean of a saturating distance."""
    out = []
    for b, own in enumerate(touches):
        pulls = []
        for s in _sdf_of(b, own, points, grids, boxes, row) if own.any() else []:
            up, down = np.exp(max(s, 0.0) / tau_m), np.exp(-max(s, 0.0) / tau_m)
            pulls.append((up - down) / (up + down))
        out.append(mean(pulls))
    return np.array(out)


def friction_cone_forces(
    weights: np.ndarray, normals: np.ndarray, strength: np.ndarray, friction: float = 0.8
) -> np.ndarray:
    """Return sums of the cone's edges, each turned about the normal."""
    out = np.zeros(normals.shape)
    for b in range(len(normals)):
        for a, normal in enumerate(normals[b]):
            helper = np.eye(3)[np.abs(normal).argmin()]
            across = np.cross(helper, normal)
            across /= np.hypot.reduce(across)
            for i, weight in enumerate(weights[b, a]):
                turn = Rotation.from_rotvec(normal * 2 * np.pi * i / weights.shape[-1])
                out[b, a] += strength[b] * weight * (friction * turn.apply(across) + normal)
    return out


def grasp_stability(
    forces: np.ndarray,
    anchors: np.ndarray,
    gap_m: np.ndarray,
    centre: np.ndarray,
    weight: np.ndarray,
    size_m: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Return residual force, torque and slip over weight and size."""
    out = np.zeros(len(forces))
    for b in np.flatnonzero(valid):
        newtons = float(np.hypot.reduce(weight[b]))
        force, torque, slip = weight[b].copy(), np.zeros(3), 0.0
        for F, place, gap in zip(forces[b], anchors[b], gap_m[b], strict=True):
            force += F
            torque += np.cross(place - centre[b], F)
            slip += float(np.hypot.reduce(F)) * gap
        moment = newtons * size_m[b]
        out[b] = force @ force / newtons**2 + torque @ torque / moment**2 + slip / moment
    return out


def velocity(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean error of the step from a frame to the next."""
    out = []
    for b in range(len(pred)):
        found = []
        for t in range(pred.shape[1] - 1):
            for h, j in np.argwhere(valid[b, t] & valid[b, t + 1]):
                step = pred[b, t + 1, h, j] - pred[b, t, h, j]
                true = target[b, t + 1, h, j] - target[b, t, h, j]
                found.append(float(np.hypot.reduce(step - true)))
        out.append(mean(found))
    return np.array(out)


def acceleration(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean error of the second difference."""
    out = []
    for b in range(len(pred)):
        found = []
        for t in range(1, pred.shape[1] - 1):
            for h, j in np.argwhere(valid[b, t - 1] & valid[b, t] & valid[b, t + 1]):
                bend = [
                    x[b, t + 1, h, j] - 2 * x[b, t, h, j] + x[b, t - 1, h, j]
                    for x in (pred, target)
                ]
                found.append(float(np.hypot.reduce(bend[0] - bend[1])))
        out.append(mean(found))
    return np.array(out)


def camera_translation(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean distance of places."""
    return np.array(
        [
            mean([float(np.hypot.reduce(pred[b, t] - target[b, t])) for t in np.flatnonzero(own)])
            for b, own in enumerate(valid)
        ]
    )


def camera_rotation(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean angle."""
    return np.array(
        [
            mean(
                [
                    float(Rotation.from_matrix(pred[b, t].T @ target[b, t]).magnitude())
                    for t in np.flatnonzero(own)
                ]
            )
            for b, own in enumerate(valid)
        ]
    )


def camera_trajectory(pred_T: np.ndarray, target_T: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean error of the translation of T_t^-1 T_t+1."""

    def step(T: np.ndarray, t: int) -> np.ndarray:
        one, two = np.eye(4), np.eye(4)
        one[:3], two[:3] = T[t], T[t + 1]
        moved: np.ndarray = (np.linalg.inv(one) @ two)[:3, 3]
        return moved

    out = []
    for b, own in enumerate(valid):
        found = [
            float(np.hypot.reduce(step(pred_T[b], t) - step(target_T[b], t)))
            for t in range(len(own) - 1)
            if own[t] and own[t + 1]
        ]
        out.append(mean(found))
    return np.array(out)


def world_consistency(
    pred: np.ndarray, pred_T: np.ndarray, target_world: np.ndarray, valid: np.ndarray
) -> np.ndarray:
    """Return the mean distance in the world."""
    out = []
    for b in range(len(pred)):
        found = []
        for t, h, j in np.argwhere(valid[b]):
            world = pred_T[b, t] @ np.append(pred[b, t, h, j], 1.0)
            found.append(float(np.hypot.reduce(world - target_world[b, t, h, j])))
        out.append(mean(found))
    return np.array(out)


def infill(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean over frames of the four parts' mean absolute differences, summed."""
    out = []
    for b in range(len(pred)):
        found = []
        for t, h in np.argwhere(valid[b]):
            apart = np.abs(pred[b, t, h] - target[b, t, h])
            parts = (apart[0:3], apart[3:13], apart[13:19], apart[19:109])
            found.append(sum(float(part.sum()) / len(part) for part in parts))
        out.append(mean(found))
    return np.array(out)


def batch_variance(features: np.ndarray, valid: np.ndarray, floor: float = 1.0) -> np.ndarray:
    """Return how far deviations are under the floor, the same for every sample."""
    if not valid.any():
        return np.zeros(len(valid))
    found = [max(0.0, floor - np.sqrt(np.var(column) + 1e-4)) for column in features[valid].T]
    return np.full(len(valid), mean(found))


def attention_kl(attention: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return log k minus the mean entropy."""
    out = []
    for b, own in enumerate(valid):
        rows = attention[b].reshape(-1, attention.shape[-1]) if own else []
        out.append(mean([float(np.log(len(row)) - entr(row).sum()) for row in rows]))
    return np.array(out)


def spectral_excess(gamma: np.ndarray, limit: float) -> float:
    """Return the mean squared excess."""
    return mean([max(abs(float(g)) - limit, 0.0) ** 2 for g in gamma])
