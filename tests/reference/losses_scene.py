"""Loss terms beyond the hand by loops: objects, contact, physics, motion, regularizers.

Arguments, their order and shapes are those of ``train.losses.terms``, in float64 and bool; a
distance is named by its word. Values of items that are not valid are never read.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.special import expit, log_expit, logsumexp, rel_entr
from scipy.stats import norm

from tests.reference.losses import mean_or_zero, size, turn


def object_position(
    pred_t: np.ndarray,
    target_t: np.ndarray,
    valid: np.ndarray,
    kind: str = "l1",
    smooth: float = 0.01,
) -> np.ndarray:
    """Return the mean distance of the origins of valid objects."""
    out = []
    for p, g, ok in zip(pred_t, target_t, valid, strict=True):
        out.append(mean_or_zero([size(p[o] - g[o], kind, smooth) for o in items(ok)]))
    return np.array(out)


def items(valid: np.ndarray) -> Iterator[int]:
    """Yield the indices of the valid items of one sample."""
    for i, one in enumerate(valid):
        if not one:
            continue
        yield i


def equivalents(
    R: np.ndarray, t: np.ndarray, symmetries: np.ndarray, symmetry_valid: np.ndarray
) -> list[np.ndarray]:
    """Return the poses [4, 4] that look like one pose."""
    pose = homogeneous(np.column_stack([R, t]))
    return [pose @ homogeneous(symmetries[s]) for s in items(symmetry_valid)]


def homogeneous(T: np.ndarray) -> np.ndarray:
    """Return a pose [3, 4] as [4, 4]."""
    return np.vstack([T, [0.0, 0.0, 0.0, 1.0]])


def object_rotation(
    pred_R: np.ndarray,
    target_R: np.ndarray,
    valid: np.ndarray,
    symmetries: np.ndarray,
    symmetry_valid: np.ndarray,
) -> np.ndarray:
    """Return the mean of ``8 sin^2(a / 2)``, a the smallest angle to a pose that looks alike."""
    out = []
    for b in range(len(pred_R)):
        squares = []
        for o in items(valid[b]):
            alike = equivalents(target_R[b, o], np.zeros(3), symmetries[b, o], symmetry_valid[b, o])
            angle = min(turn(pred_R[b, o], pose[:3, :3]) for pose in alike)
            squares.append(8 * math.sin(angle / 2) ** 2)
        out.append(mean_or_zero(squares))
    return np.array(out)


def nearest_equivalent(
    pred_R: np.ndarray,
    target_R: np.ndarray,
    target_t: np.ndarray,
    valid: np.ndarray,
    symmetries: np.ndarray,
    symmetry_valid: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pose alike that is nearest in angle; the identity at 0 where not valid."""
    R, t = np.zeros(target_R.shape), np.zeros(target_t.shape)
    R[...] = np.eye(3)
    for b in range(len(pred_R)):
        for o in items(valid[b]):
            alike = equivalents(
                target_R[b, o], target_t[b, o], symmetries[b, o], symmetry_valid[b, o]
            )
            angles = [turn(pred_R[b, o], pose[:3, :3]) for pose in alike]
            best = alike[angles.index(min(angles))]
            R[b, o], t[b, o] = best[:3, :3], best[:3, 3]
    return R, t


def unit_quaternion(quat: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean of ``((|q| - 1) (|q| + 1))^2``."""
    out = []
    for q, ok in zip(quat, valid, strict=True):
        lengths = [size(q[o], "l2") for o in items(ok)]
        out.append(mean_or_zero([((n - 1) * (n + 1)) ** 2 for n in lengths]))
    return np.array(out)


def object_class(logits: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean cross entropy of the true class."""
    out = []
    for x, k, ok in zip(logits, target, valid, strict=True):
        out.append(mean_or_zero([float(logsumexp(x[o] - x[o, int(k[o])])) for o in items(ok)]))
    return np.array(out)


def _placed(points: np.ndarray, R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return points [n, 3] of one object in the camera's frame."""
    pose = homogeneous(np.column_stack([R, t]))
    return np.array([(pose @ np.append(point, 1.0))[:3] for point in points])


def add(
    points: np.ndarray,
    pred_R: np.ndarray,
    pred_t: np.ndarray,
    target_R: np.ndarray,
    target_t: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Return the mean distance of the same points under both poses."""
    out = []
    for b in range(len(points)):
        gaps = []
        for o in items(valid[b]):
            guess = _placed(points[b, o], pred_R[b, o], pred_t[b, o])
            truth = _placed(points[b, o], target_R[b, o], target_t[b, o])
            gaps += [math.dist(p, g) for p, g in zip(guess, truth, strict=True)]
        out.append(mean_or_zero(gaps))
    return np.array(out)


def add_s(
    points: np.ndarray,
    pred_R: np.ndarray,
    pred_t: np.ndarray,
    target_R: np.ndarray,
    target_t: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Return the mean distance of each true point to the nearest predicted one."""
    out = []
    for b in range(len(points)):
        gaps = []
        for o in items(valid[b]):
            tree = cKDTree(_placed(points[b, o], pred_R[b, o], pred_t[b, o]))
            truth = _placed(points[b, o], target_R[b, o], target_t[b, o])
            gaps += [float(tree.query(g)[0]) for g in truth]
        out.append(mean_or_zero(gaps))
    return np.array(out)


def soft_contact(distance_m: np.ndarray, tau_m: float = 0.005) -> np.ndarray:
    """Return a normal density of the distance, over the density at 0."""
    out = np.zeros(distance_m.shape)
    for at in np.ndindex(out.shape):
        out[at] = norm.pdf(distance_m[at], scale=tau_m) / norm.pdf(0.0, scale=tau_m)
    return out


def contact_focal(
    logits: np.ndarray, target: np.ndarray, valid: np.ndarray, alpha: float = 0.25
) -> np.ndarray:
    """Return the mean focal cross entropy over the vertices of valid hands."""
    out = []
    for x, t, ok in zip(logits, target, valid, strict=True):
        losses = []
        for h in items(ok):
            for logit, goal in zip(x[h].tolist(), t[h].tolist(), strict=True):
                entropy = -goal * log_expit(logit) - (1 - goal) * log_expit(-logit)
                share = alpha * goal + (1 - alpha) * (1 - goal)
                losses.append(float(share * (goal - expit(logit)) ** 2 * entropy))
        out.append(mean_or_zero(losses))
    return np.array(out)


def contact_distance(
    pred_m: np.ndarray, target_m: np.ndarray, valid: np.ndarray, far_m: float = 0.0635
) -> np.ndarray:
    """Return the mean error of distances; beyond ``far_m`` only being nearer is one."""
    out = []
    for p, g, ok in zip(pred_m, target_m, valid, strict=True):
        errors = []
        for h in items(ok):
            for d, true in zip(p[h].tolist(), g[h].tolist(), strict=True):
                if true >= far_m:
                    errors.append(far_m - d if d < far_m else 0.0)
                else:
                    errors.append(max(d, true) - min(d, true))
        out.append(mean_or_zero(errors))
    return np.array(out)


def contact_points(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean distance to the nearest point, from true to predicted plus back."""
    out = []
    for b in range(len(pred)):
        truth = [target[b, q] for q in items(valid[b])]
        if not truth:
            out.append(0.0)
            continue
        to_pred, to_truth = cKDTree(pred[b]), cKDTree(np.array(truth))
        there = mean_or_zero([float(to_pred.query(q)[0]) for q in truth])
        back = mean_or_zero([float(to_truth.query(p)[0]) for p in pred[b]])
        out.append(there + back)
    return np.array(out)


def signed_distance(
    points: np.ndarray, grids: np.ndarray, boxes: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Return the signed distance of points; 0 in samples whose row is negative."""
    out = np.zeros(points.shape[:2])
    for b, p in np.ndindex(out.shape):
        if row[b] < 0:
            continue
        out[b, p] = _to_surface(points[b, p], grids[row[b]], boxes[row[b]])
    return out


def _to_surface(point: np.ndarray, grid: np.ndarray, box: np.ndarray) -> float:
    """Return the signed distance of one point [3] to one object, grid [d, d, d], box [2, 3]."""
    axes = [np.linspace(box[0, c], box[1, c], grid.shape[c]) for c in range(3)]
    inside = [min(max(float(point[c]), axes[c][0]), axes[c][-1]) for c in range(3)]
    field = RegularGridInterpolator(axes, grid.astype(np.float64), method="linear")
    return float(field(inside)[0]) + math.dist(point, inside)


def sdf_penetration(
    points: np.ndarray, grids: np.ndarray, boxes: np.ndarray, row: np.ndarray, valid: np.ndarray
) -> np.ndarray:
    """Return the mean depth of valid points in the object."""
    out = []
    for b in range(len(points)):
        depths = []
        for p in items(valid[b]):
            distance = _to_surface(points[b, p], grids[row[b]], boxes[row[b]])
            depths.append(-distance if distance < 0 else 0.0)
        out.append(mean_or_zero(depths))
    return np.array(out)


def sdf_attraction(
    points: np.ndarray,
    grids: np.ndarray,
    boxes: np.ndarray,
    row: np.ndarray,
    touches: np.ndarray,
    tau_m: float = 0.005,
) -> np.ndarray:
    """Return the mean of ``2 sigmoid(2 d / tau) - 1`` over touching points, d 0 inside."""
    out = []
    for b in range(len(points)):
        pulls = []
        for p in items(touches[b]):
            distance = _to_surface(points[b, p], grids[row[b]], boxes[row[b]])
            pulls.append(2 * float(expit(2 * distance / tau_m)) - 1 if distance > 0 else 0.0)
        out.append(mean_or_zero(pulls))
    return np.array(out)


def friction_cone_forces(
    weights: np.ndarray, normals: np.ndarray, strength: np.ndarray, friction: float = 0.8
) -> np.ndarray:
    """Return the force at each anchor; x is across the normal and its least axis, y = z x x."""
    out = np.zeros(normals.shape)
    for b, a in np.ndindex(normals.shape[:2]):
        z = normals[b, a]
        axis = [0.0, 0.0, 0.0]
        axis[int(np.argmin(np.abs(z)))] = 1.0
        x = np.cross(axis, z)
        x = x / size(x, "l2")
        local = np.zeros(3)  # along x, y, z
        for i, w in enumerate(weights[b, a]):
            edge = np.exp(2j * np.pi * i / weights.shape[2])
            local += w * np.array([friction * edge.real, friction * edge.imag, 1.0])
        out[b, a] = strength[b] * np.column_stack([x, np.cross(z, x), z]) @ local
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
    """Return net force over weight, net torque over weight times size, both squared, plus reach."""
    out = np.zeros(len(forces))
    for b in items(valid):
        newtons, metres = size(weight[b], "l2"), float(size_m[b])
        net, torque, reach = weight[b] / newtons, np.zeros(3), 0.0
        for F, place, gap in zip(forces[b] / newtons, anchors[b], gap_m[b], strict=True):
            (x, y, z), (u, v, w) = (place - centre[b]) / metres, F
            net = net + F
            torque += np.array([y * w - z * v, z * u - x * w, x * v - y * u])
            reach += size(F, "l2") * float(gap) / metres
        out[b] = size(net, "l2") ** 2 + size(torque, "l2") ** 2 + reach
    return out


def velocity(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean length of the change of the error from one frame to the next."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        sizes = []
        for t, h, j in np.ndindex(ok.shape):
            if t == 0 or not (ok[t - 1, h, j] and ok[t, h, j]):
                continue
            now, before = p[t, h, j] - g[t, h, j], p[t - 1, h, j] - g[t - 1, h, j]
            sizes.append(math.dist(now, before))
        out.append(mean_or_zero(sizes))
    return np.array(out)


def acceleration(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean length of the second difference of the error."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        sizes = []
        for t, h, j in np.ndindex(ok.shape):
            if t < 2 or not (ok[t - 2, h, j] and ok[t - 1, h, j] and ok[t, h, j]):
                continue
            first, middle, last = (p[i, h, j] - g[i, h, j] for i in (t - 2, t - 1, t))
            sizes.append(2 * math.dist((first + last) / 2, middle))
        out.append(mean_or_zero(sizes))
    return np.array(out)


def camera_translation(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean distance of the cameras' places."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        out.append(mean_or_zero([math.dist(p[t], g[t]) for t in items(ok)]))
    return np.array(out)


def camera_rotation(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean angle between the cameras' rotations."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        out.append(mean_or_zero([turn(p[t], g[t]) for t in items(ok)]))
    return np.array(out)


def camera_trajectory(pred_T: np.ndarray, target_T: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean distance of steps, each solved for in its own earlier frame."""
    out = []
    for p, g, ok in zip(pred_T, target_T, valid, strict=True):
        gaps = []
        for t in range(len(ok) - 1):
            if not (ok[t] and ok[t + 1]):
                continue
            gaps.append(math.dist(_step(p[t], p[t + 1]), _step(g[t], g[t + 1])))
        out.append(mean_or_zero(gaps))
    return np.array(out)


def _step(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return where the later camera [3, 4] is in the frame of the earlier one."""
    return np.asarray(Rotation.from_matrix(before[:, :3]).inv().apply(after[:, 3] - before[:, 3]))


def world_consistency(
    pred: np.ndarray, pred_T: np.ndarray, target_world: np.ndarray, valid: np.ndarray
) -> np.ndarray:
    """Return the mean distance of joints moved to the world by the predicted cameras."""
    out = []
    for b in range(len(pred)):
        gaps = []
        for t, h, j in np.ndindex(valid[b].shape):
            if not valid[b, t, h, j]:
                continue
            moved = homogeneous(pred_T[b, t]) @ np.append(pred[b, t, h, j], 1.0)
            gaps.append(math.dist(moved[:3], target_world[b, t, h, j]))
        out.append(mean_or_zero(gaps))
    return np.array(out)


def infill(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean absolute differences of 3, 10, 6 and 90 numbers, summed."""
    out = []
    for p, g, ok in zip(pred, target, valid, strict=True):
        total = 0.0
        for first, end in ((0, 3), (3, 13), (13, 19), (19, 109)):
            errors = []
            for t, h in np.ndindex(ok.shape):
                if not ok[t, h]:
                    continue
                errors += [abs(float(p[t, h, i] - g[t, h, i])) for i in range(first, end)]
            total += mean_or_zero(errors)
        out.append(total)
    return np.array(out)


def batch_variance(features: np.ndarray, valid: np.ndarray, floor: float = 1.0) -> np.ndarray:
    """Return the mean shortfall of deviations, the same for every sample, valid or not."""
    shortfalls = []
    for d in range(features.shape[1]):
        column = [float(features[b, d]) for b in items(valid)]
        if not column:
            continue
        centre = mean_or_zero(column)
        variance = mean_or_zero([(x - centre) ** 2 for x in column])
        shortfalls.append(max(0.0, floor - math.sqrt(variance + 1e-4)))
    return np.full(len(features), mean_or_zero(shortfalls))


def attention_kl(attention: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the mean relative entropy of attention to an even one."""
    keys = attention.shape[3]
    out = np.zeros(len(attention))
    for b in items(valid):
        entropies = []
        for n, q in np.ndindex(attention.shape[1:3]):
            entropies.append(sum(float(rel_entr(a, 1 / keys)) for a in attention[b, n, q]))
        out[b] = mean_or_zero(entropies)
    return out


def spectral_excess(gamma: np.ndarray, limit: float) -> np.ndarray:
    """Return the mean squared excess of scales, 0 of none."""
    over = [abs(g) - limit for g in gamma.tolist()]
    return np.array(mean_or_zero([x * x if x > 0 else 0.0 for x in over]))
