"""Rig of the synthetic hand: skinning weights, joint regressors, pose correctives, pose space.

Design frame (``hand_shape``), metres, until ``to_mano_frame``; rotations and axes are in the MANO
frame: fingers along -x, back of the hand along +y, thumb side along +z for the right hand.
"""

from typing import Final

import numpy as np
from scipy.optimize import nnls

from model.hand import FINGERS, NUM_MANO_JOINTS
from preprocess.sample.hand.shape import Skeleton
from preprocess.sample.hand.topology import SLOTS, HandTopology

MANO_FIRST_JOINT: Final = {"index": 1, "middle": 4, "little": 7, "ring": 10, "thumb": 13}
"""MANO joint at the root of each finger; the next two follow."""
_ORIGIN: Final = np.array([0.095, 0.006, 0.006])
_AXES: Final = np.array([-1.0, 1.0, 1.0])


def to_mano_frame(points: np.ndarray) -> np.ndarray:
    """Design frame to MANO's right-hand rest frame, positions [*, 3]."""
    return np.asarray(_ORIGIN + points * _AXES)


def direction_to_mano_frame(vectors: np.ndarray) -> np.ndarray:
    """Design frame to MANO's right-hand rest frame, directions [*, 3]."""
    return np.asarray(vectors * _AXES)


def mano_joints(bones: Skeleton) -> np.ndarray:
    """The 16 joints in MANO order, design frame, [16, 3]."""
    joints = np.zeros((NUM_MANO_JOINTS, 3))
    joints[0] = bones.wrist
    for finger, first in MANO_FIRST_JOINT.items():
        joints[first : first + 3] = bones.chain[finger][:3]
    return joints


def joint_axes(bones: Skeleton) -> np.ndarray:
    """Axes of every joint in the MANO frame, [16, 3 axes, 3]: flexion, abduction, twist.

    A positive flexion bends towards the palm, a positive abduction rotates towards the thumb's side
    (the thumb: away from the palm's plane), twist is about the bone.
    """
    axes = np.tile(np.eye(3)[[2, 1, 0]], (NUM_MANO_JOINTS, 1, 1))
    for finger, first in MANO_FIRST_JOINT.items():
        chain = bones.chain[finger]
        for i in range(3):
            bone = chain[i + 1] - chain[i]
            along = direction_to_mano_frame(bone / np.linalg.norm(bone))
            nail = direction_to_mano_frame(bones.nail[finger])
            nail = nail - along * (nail @ along)
            nail /= np.linalg.norm(nail)
            axes[first + i] = [np.cross(nail, along), nail, along]
    return axes


def _smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Cubic ramp from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def skinning_weights(
    points: np.ndarray, bones: Skeleton, topology: HandTopology, neighbours: np.ndarray
) -> np.ndarray:
    """Return the weights [778, 16]; rows sum to one."""
    count = len(points)
    member = {f: np.zeros(count, dtype=bool) for f in FINGERS}
    for finger in FINGERS:
        member[finger][topology.rings[finger].ravel()] = True
        member[finger][topology.poles[finger]] = True
    thumb_metacarpal = _thumb_share(points, bones.chain["thumb"])
    thumb_metacarpal[member["thumb"]] = np.maximum(thumb_metacarpal[member["thumb"]], 0.97)
    weights = np.zeros((count, NUM_MANO_JOINTS))
    lateral = np.stack([_off_axis(points, bones.chain[f][:2]) for f in SLOTS], axis=1)
    closeness = np.exp(-((lateral / 0.0085) ** 2) + (lateral.min(1, keepdims=True) / 0.0085) ** 2)
    share = closeness / closeness.sum(1, keepdims=True)
    for slot, finger in enumerate(SLOTS):
        share[member[finger]] = np.eye(len(SLOTS))[slot]
    for slot, finger in enumerate(SLOTS):
        chain, first = bones.chain[finger], MANO_FIRST_JOINT[finger]
        rooted = _smoothstep(_along(points, chain[0], chain[1]), -0.010, 0.013)
        rooted = rooted * share[:, slot] * (1.0 - thumb_metacarpal)
        weights[:, first : first + 3] = _split_over_bones(
            points, chain, rooted, free=member[finger]
        )
    first = MANO_FIRST_JOINT["thumb"]
    weights[:, first : first + 3] = _split_over_bones(
        points, bones.chain["thumb"], thumb_metacarpal, free=member["thumb"]
    )
    weights[:, 0] = np.clip(1.0 - weights[:, 1:].sum(1), 0.0, 1.0)
    for _ in range(2):
        weights = 0.5 * weights + 0.5 * neighbours @ weights
    weights[weights < 1e-4] = 0.0
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _along(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Coordinate along ``start -> end``, metres."""
    axis = (end - start) / np.linalg.norm(end - start)
    return np.asarray((points - start) @ axis)


def _off_axis(points: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """Sideways distance (in the palm's plane) from the line through a segment, metres."""
    axis = (segment[1] - segment[0]) * [1.0, 0.0, 1.0]
    axis /= np.linalg.norm(axis)
    offset = (points - segment[0]) * [1.0, 0.0, 1.0]
    return np.asarray(np.linalg.norm(offset - (offset @ axis)[:, None] * axis, axis=1))


def _thumb_share(points: np.ndarray, chain: np.ndarray) -> np.ndarray:
    """Fraction by which a palm vertex moves with the thumb's metacarpal."""
    axis = (chain[1] - chain[0]) / np.linalg.norm(chain[1] - chain[0])
    along = (points - chain[0]) @ axis
    distance = np.linalg.norm(points - chain[0] - along[:, None] * axis, axis=1)
    near = 1.0 - _smoothstep(distance, 0.012, 0.030)
    return np.asarray(near * _smoothstep(along, -0.008, 0.022))


def _split_over_bones(
    points: np.ndarray, chain: np.ndarray, rooted: np.ndarray, *, free: np.ndarray
) -> np.ndarray:
    """Split a finger's weight among its bones, [n, 3]; only ``free`` vertices go past one."""
    second = _smoothstep(_along(points, chain[1], chain[2]), -0.0065, 0.0065) * free
    third = _smoothstep(_along(points, chain[2], chain[3]), -0.0055, 0.0055) * free
    second = np.maximum(second, third)
    return np.asarray(rooted[:, None] * np.stack([1.0 - second, second - third, third], axis=1))


def sparse_regressor(
    points: np.ndarray,
    shapedirs: np.ndarray,
    targets: np.ndarray,
    target_dirs: np.ndarray,
    count: int,
) -> np.ndarray:
    """Return non-negative rows [j, 778] that sum to one and give ``targets`` [j, 3] from the mesh.

    The rows also follow the shape: ``row @ shapedirs`` matches ``target_dirs`` [j, 3, 10]. Only the
    ``count`` vertices nearest to a target take part; a small ridge spreads the weight over them.
    """
    rows = np.zeros((len(targets), len(points)))
    for j, (target, moves) in enumerate(zip(targets, target_dirs, strict=True)):
        near = np.argsort(np.linalg.norm(points - target, axis=1))[:count]
        shape_rows = shapedirs[near].reshape(count, -1).T
        ridge = np.eye(count) * 2e-4
        system = np.vstack([points[near].T - target[:, None], 0.3 * shape_rows, ridge])
        wanted = np.concatenate([np.zeros(3), 0.3 * moves.ravel(), np.zeros(count)])
        # The heavy last row makes the weights sum to one.
        system = np.vstack([system, np.ones(count)])
        found, _ = nnls(system, np.append(wanted, 1.0))
        found[found < 1e-6] = 0.0
        rows[j, near] = found / found.sum()
    return rows


def pose_correctives(
    points: np.ndarray, normals: np.ndarray, bones: Skeleton, weights: np.ndarray
) -> np.ndarray:
    """Return ``posedirs`` [778, 3, 135] in the MANO frame, metres per entry of ``R - I``.

    A bent joint pushes the skin around it out, most on the nail side, by up to 2.5 mm at a right
    angle: linear skinning alone would flatten the knuckle. ``1 - cos(angle)`` is
    ``-trace(R - I) / 2``, so only the diagonal entries are used.
    """
    posedirs = np.zeros((len(points), 3, (NUM_MANO_JOINTS - 1) * 9))
    outward = direction_to_mano_frame(normals)
    for finger, first in MANO_FIRST_JOINT.items():
        chain = bones.chain[finger]
        for i in range(3):
            distance = np.linalg.norm(points - chain[i], axis=1)
            radius = 0.012 if i else 0.016
            near = np.exp(-((distance / radius) ** 2)) * np.sqrt(weights[:, first + i])
            back = 0.25 + 0.75 * np.clip(normals @ bones.nail[finger], 0.0, 1.0)
            push = 0.0025 * near * back
            for diagonal in (0, 4, 8):
                posedirs[:, :, (first + i - 1) * 9 + diagonal] += -0.5 * push[:, None] * outward
    return posedirs


def mean_pose(axes: np.ndarray) -> np.ndarray:
    """Return ``hands_mean`` [45] of the right hand: a relaxed, slightly curled hand."""
    flexion = {
        "index": (0.18, 0.34, 0.20),
        "middle": (0.26, 0.40, 0.24),
        "ring": (0.30, 0.42, 0.24),
        "little": (0.30, 0.36, 0.22),
        "thumb": (0.08, 0.16, 0.14),
    }
    spread = {"index": 0.04, "middle": 0.0, "ring": -0.02, "little": -0.06, "thumb": -0.06}
    pose = np.zeros((NUM_MANO_JOINTS, 3))
    for finger, first in MANO_FIRST_JOINT.items():
        for i, angle in enumerate(flexion[finger]):
            pose[first + i] = angle * axes[first + i, 0]
        pose[first] += spread[finger] * axes[first, 1]
    return pose[1:].ravel()


def pose_components(axes: np.ndarray) -> np.ndarray:
    """Return ``hands_components`` [45, 45] of the right hand: orthonormal, synergies first.

    Rows: all fingers curl; fingers spread; thumb flexes; thumb opposes; base against end joints;
    then each finger alone; the rest completes the basis in a fixed order.
    """
    long_fingers = ("index", "middle", "ring", "little")
    wanted: list[np.ndarray] = []

    def row(parts: dict[str, tuple[float, float, float]], *, kind: int) -> None:
        pose = np.zeros((NUM_MANO_JOINTS, 3))
        for finger, angles in parts.items():
            first = MANO_FIRST_JOINT[finger]
            for i, angle in enumerate(angles):
                pose[first + i] = angle * axes[first + i, kind]
        wanted.append(pose[1:].ravel())

    row(dict.fromkeys(long_fingers, (0.8, 1.0, 0.6)), kind=0)
    row(
        {"index": (1, 0, 0), "middle": (0.2, 0, 0), "ring": (-0.6, 0, 0), "little": (-1, 0, 0)},
        kind=1,
    )
    row({"thumb": (0.4, 0.8, 1.0)}, kind=0)
    row({"thumb": (1.0, 0.0, 0.0)}, kind=1)
    row(dict.fromkeys(long_fingers, (1.0, -0.6, -0.4)), kind=0)
    for finger in long_fingers:
        row({finger: (0.8, 1.0, 0.6)}, kind=0)
    basis = np.vstack([*wanted, np.eye(45)])
    kept: list[np.ndarray] = []
    for vector in basis:
        # Modified Gram-Schmidt, twice, so that the rows are orthonormal to rounding.
        rest = vector.copy()
        for _ in range(2):
            for other in kept:
                rest = rest - other * (other @ rest)
        length = np.linalg.norm(rest)
        if length > 0.15 * np.linalg.norm(vector) and len(kept) < 45:
            kept.append(rest / length)
    return np.stack(kept)
