"""The synthetic hand as MANO arrays: a procedural hand in MANO's layout, with its own geometry.

778 vertices, 1538 triangles, 16 joints in MANO's order, the nine arrays of a MANO file. Nothing in
it comes from the licensed model; results obtained with it test the code, not anatomy.
The left hand is the exact mirror image ``x -> -x`` of the right one.

Shape components (standard deviation 1 is a plausible spread of adults): the lengths of thumb,
index, middle, ring and little finger, palm length, palm width, palm thickness, finger girth,
overall size.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from model.hand import FINGERS, MANO_PARENTS, NUM_BETAS
from model.mano.files import ManoArrays
from preprocess.sample.hand.placement import neighbour_mean, place_vertices
from preprocess.sample.hand.rig import (
    MANO_FIRST_JOINT,
    direction_to_mano_frame,
    joint_axes,
    mano_joints,
    mean_pose,
    pose_components,
    pose_correctives,
    skinning_weights,
    sparse_regressor,
    to_mano_frame,
)
from preprocess.sample.hand.shape import (
    Measures,
    Skeleton,
    skeleton,
    surface_distance,
    surface_gradient,
)
from preprocess.sample.hand.topology import HandTopology, build_topology

MIRROR: Final = np.array([-1.0, 1.0, 1.0])
"""Reflection from right to left hand, as a diagonal."""
_SPREAD: Final = {
    "finger": 0.050,
    "palm_length": 0.035,
    "palm_width": 0.045,
    "thickness": 0.060,
    "girth": 0.055,
    "size": 0.045,
}
"""Standard deviation of each measure, as a fraction."""

Arrays = dict[str, np.ndarray]


@lru_cache(maxsize=1)
def stand_in_mano() -> dict[str, Arrays]:
    """Return the arrays of both hands, ``{"right": ..., "left": ...}``; built once per process.

    Keys as in a MANO file: ``v_template`` [778, 3] metres, ``f`` [1538, 3] uint32, ``J_regressor``
    [16, 778], ``kintree_table`` [2, 16], ``weights`` [778, 16], ``posedirs`` [778, 3, 135],
    ``shapedirs`` [778, 3, 10], ``hands_mean`` [45] and ``hands_components`` [45, 45] in radians.
    The arrays are shared and read-only.
    """
    right = _right_hand()
    hands = {"right": right, "left": mirrored(right)}
    for arrays in hands.values():
        for array in arrays.values():
            array.setflags(write=False)
    return hands


@lru_cache(maxsize=2)
def stand_in_model(side: str) -> ManoArrays:
    """Return one side, ``"right"`` or ``"left"``, in the form ``mano_forward`` expects."""
    arrays = dict(stand_in_mano()[side])
    arrays["f"] = arrays["f"].astype(np.int64)
    return ManoArrays(**arrays)


@lru_cache(maxsize=1)
def stand_in_topology() -> HandTopology:
    """Return the connectivity of the synthetic hand."""
    return build_topology()


@lru_cache(maxsize=1)
def stand_in_axes() -> np.ndarray:
    """Return flexion, abduction and twist axes of the right hand's joints, [16, 3, 3]."""
    return joint_axes(skeleton(Measures()))


def _right_hand() -> Arrays:
    """Build the right hand's arrays."""
    topology = stand_in_topology()
    bones = skeleton(Measures())
    points = place_vertices(topology, Measures())
    # The design frame is left-handed, so the faces are flipped for MANO's frame.
    faces = topology.faces[:, ::-1]
    weights = skinning_weights(points, bones, topology, neighbour_mean(topology.faces, len(points)))
    normals = surface_gradient(points, bones, Measures())
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    shapedirs, joint_dirs = _shape_basis(points, bones, weights)
    mano_points = to_mano_frame(points)
    regressor = sparse_regressor(
        mano_points, shapedirs, to_mano_frame(mano_joints(bones)), joint_dirs, 40
    )
    axes = stand_in_axes()
    parents = np.array(MANO_PARENTS, dtype=np.int64)
    parents[0] = 2**32 - 1
    return {
        "v_template": mano_points,
        "f": faces.astype(np.uint32),
        "J_regressor": regressor,
        "kintree_table": np.stack([parents, np.arange(len(parents))]),
        "weights": weights,
        "posedirs": pose_correctives(points, normals, bones, weights),
        "shapedirs": shapedirs,
        "hands_mean": mean_pose(axes),
        "hands_components": pose_components(axes),
    }


def _varied(component: int, amount: float) -> Measures:
    """Measures with one shape component moved by ``amount`` standard deviations."""
    finger = dict.fromkeys(FINGERS, 1.0)
    if component < len(FINGERS):
        finger[FINGERS[component]] += amount * _SPREAD["finger"]
        return Measures(finger=finger)
    name = ("palm_length", "palm_width", "thickness", "girth", "size")[component - len(FINGERS)]
    change: dict[str, Any] = {name: 1.0 + amount * _SPREAD[name]}
    return replace(Measures(), **change)


def _shape_basis(
    points: np.ndarray, bones: Skeleton, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of vertices [778, 3, 10] and joints [16, 3, 10] w.r.t. the measures, MANO frame.

    A vertex first follows its bones (shift and stretch), then one Newton step takes it to the
    surface of the changed hand; central differences over that.
    """
    step = 1e-3
    gradient = surface_gradient(points, bones, Measures())
    newton = gradient / (gradient**2).sum(1, keepdims=True)
    shapedirs = np.zeros((len(points), 3, NUM_BETAS))
    joint_dirs = np.zeros((len(MANO_PARENTS), 3, NUM_BETAS))
    for k in range(NUM_BETAS):
        moved = []
        for sign in (1.0, -1.0):
            measures = _varied(k, sign * step)
            changed = skeleton(measures)
            carried = _carried(points, bones, changed, measures, weights)
            value = surface_distance(carried, changed, measures)
            moved.append((carried - value[:, None] * newton, mano_joints(changed)))
        shapedirs[:, :, k] = (moved[0][0] - moved[1][0]) / (2 * step)
        joint_dirs[:, :, k] = (moved[0][1] - moved[1][1]) / (2 * step)
    flip = np.array([-1.0, 1.0, 1.0])[None, :, None]
    return shapedirs * flip, joint_dirs * flip


def _carried(
    points: np.ndarray,
    bones: Skeleton,
    changed: Skeleton,
    measures: Measures,
    weights: np.ndarray,
) -> np.ndarray:
    """Points moved with the bones from one skeleton to another of the same directions."""
    palm = np.array([measures.palm_length, measures.thickness, measures.palm_width]) * measures.size
    out = weights[:, :1] * points * palm
    for finger, first in MANO_FIRST_JOINT.items():
        old, new = bones.chain[finger], changed.chain[finger]
        for i in range(3):
            axis = (old[i + 1] - old[i]) / np.linalg.norm(old[i + 1] - old[i])
            factor = np.linalg.norm(new[i + 1] - new[i]) / np.linalg.norm(old[i + 1] - old[i])
            offset = points - old[i]
            along = (offset @ axis)[:, None] * axis
            girth = measures.girth * measures.size
            moved = new[i] + along * factor + (offset - along) * girth
            out = out + weights[:, first + i : first + i + 1] * moved
    return np.asarray(out)


def mirrored(right: Arrays) -> Arrays:
    """Return the left hand: geometry mirrored ``x -> -x``, faces flipped.

    With ``theta_left = theta_right * (1, -1, -1)`` per joint, the left hand's vertices are the
    mirror image of the right hand's. A rotation ``R`` becomes ``M R M``, hence the signs of
    ``posedirs``.
    """
    signs = np.outer(MIRROR, MIRROR).ravel()
    axis_angle = np.tile([1.0, -1.0, -1.0], 15)
    return {
        "v_template": right["v_template"] * MIRROR,
        "f": np.ascontiguousarray(right["f"][:, ::-1]),
        "J_regressor": right["J_regressor"].copy(),
        "kintree_table": right["kintree_table"].copy(),
        "weights": right["weights"].copy(),
        "posedirs": right["posedirs"] * MIRROR[:, None] * np.tile(signs, 15),
        "shapedirs": right["shapedirs"] * MIRROR[:, None],
        "hands_mean": right["hands_mean"] * axis_angle,
        "hands_components": right["hands_components"] * axis_angle,
    }


@lru_cache(maxsize=1)
def interhand_regressor() -> np.ndarray:
    """Return ``J_regressor_mano_ih26m``, float32 [21, 778]: each finger tip to base, wrist last.

    As in the real file, its joints lie 1-3 mm from MANO's, towards the back of the finger, and its
    fingertips are at the centre of the last phalanx's end, inside the flesh.
    """
    right = stand_in_mano()["right"]
    topology = stand_in_topology()
    bones = skeleton(Measures())
    joints = right["J_regressor"] @ right["v_template"]
    moves = np.einsum("jv,vck->jck", right["J_regressor"], right["shapedirs"])
    targets, dirs, tips = [], [], []
    for finger in FINGERS:
        first = MANO_FIRST_JOINT[finger]
        back = direction_to_mano_frame(bones.nail[finger])
        for i in (2, 1, 0):
            targets.append(joints[first + i] + 0.0015 * back)
            dirs.append(moves[first + i])
        tips.append(topology.rings[finger][-2:].ravel())
    targets.append(joints[0] + np.array([-0.004, 0.001, 0.0]))
    dirs.append(moves[0])
    found = sparse_regressor(
        right["v_template"], right["shapedirs"], np.array(targets), np.array(dirs), 40
    )
    rows = np.zeros((21, found.shape[1]))
    for slot, ring in enumerate(tips):
        rows[4 * slot, ring] = 1.0 / len(ring)
        rows[4 * slot + 1 : 4 * slot + 4] = found[3 * slot : 3 * slot + 3]
    rows[20] = found[-1]
    return rows.astype(np.float32)


def write_mano(folder: Path, *, shapedirs_bug: bool = False) -> None:
    """Write ``MANO_RIGHT.npz``, ``MANO_LEFT.npz`` and ``J_regressor_mano_ih26m.npy``.

    Args:
        folder: Created if missing.
        shapedirs_bug: Give the left hand the right hand's ``shapedirs`` x axis, as in the file
            shipped with MANO (smplx issue 48).
    """
    folder.mkdir(parents=True, exist_ok=True)
    hands = stand_in_mano()
    left = dict(hands["left"])
    if shapedirs_bug:
        left["shapedirs"] = left["shapedirs"].copy()
        left["shapedirs"][:, 0, :] = hands["right"]["shapedirs"][:, 0, :]
    for name, arrays in (("MANO_RIGHT", hands["right"]), ("MANO_LEFT", left)):
        np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)
    np.save(folder / "J_regressor_mano_ih26m.npy", interhand_regressor())
