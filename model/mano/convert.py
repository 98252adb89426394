"""MANO parameters between conventions: PCA, mean pose, frames, sides, the left shape basis.

Numpy, float64, offline; imports no torch. ``theta`` is axis-angle, root first, and absolute (mean
pose added) unless a name says otherwise. The root rotates about the rest wrist ``J0(beta)``, not
about the origin: ``v = R_root (v_rest - J0) + J0 + transl``.

Shape legend: n = rows, k = PCA coefficients; ``#n``: one row serves all. Metres and radians.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float64
from scipy.spatial.transform import Rotation

from model.hand import MANO_PARENTS
from model.mano.files import ManoArrays

_FLIP_X: Final = np.array([-1.0, 1.0, 1.0])


# --- fingers --------------------------------------------------------------------------------------


def pca_to_axis_angle(
    arrays: ManoArrays, coefficients: Float[np.ndarray, "n k"]
) -> Float64[np.ndarray, "n 45"]:
    """Return absolute finger angles, ``hands_mean + c @ hands_components[:k]``; k <= 45.

    smplx does not do this for k = 45: it then reads coefficients as angles.
    """
    num = coefficients.shape[1]
    return np.asarray(arrays.hands_mean + coefficients @ arrays.hands_components[:num])


def axis_angle_to_pca(
    arrays: ManoArrays, hand_pose: Float[np.ndarray, "n 45"], num: int = 45
) -> Float64[np.ndarray, "n k"]:
    """Return the ``num`` PCA coefficients closest to absolute finger angles.

    The inverse of ``pca_to_axis_angle`` for 45 coefficients, the least-squares fit for fewer.
    """
    fit = np.linalg.lstsq(
        arrays.hands_components[:num].T, subtract_mean(arrays, hand_pose).T, rcond=None
    )
    return np.ascontiguousarray(fit[0].T)


def add_mean(
    arrays: ManoArrays, hand_pose: Float[np.ndarray, "n 45"]
) -> Float64[np.ndarray, "n 45"]:
    """Return absolute finger angles from angles about the mean pose (``flat_hand_mean=False``)."""
    return np.asarray(hand_pose + arrays.hands_mean)


def subtract_mean(
    arrays: ManoArrays, hand_pose: Float[np.ndarray, "n 45"]
) -> Float64[np.ndarray, "n 45"]:
    """Return angles about the mean pose from absolute finger angles."""
    return np.asarray(hand_pose - arrays.hands_mean)


# --- frames ---------------------------------------------------------------------------------------


def rest_root(arrays: ManoArrays, beta: Float[np.ndarray, "n 10"]) -> Float64[np.ndarray, "n 3"]:
    """Return ``J0(beta)``, the wrist of the rest pose, metres."""
    wrist = arrays.J_regressor[0]
    basis = np.einsum("v,vxk->kx", wrist, arrays.shapedirs)
    return np.asarray(wrist @ arrays.v_template + beta @ basis)


def move_mano(
    theta: Float[np.ndarray, "n 48"],
    transl: Float[np.ndarray, "n 3"],
    R_dst_from_src: Float[np.ndarray, "#n 3 3"],
    t: Float[np.ndarray, "#n 3"],
    root_rest: Float[np.ndarray, "n 3"],
) -> tuple[Float64[np.ndarray, "n 48"], Float64[np.ndarray, "n 3"]]:
    """Return ``(theta, transl)`` of the hand under the rigid transform ``R @ p + t``.

    Args:
        theta: Root first; finger angles are returned unchanged, whether absolute or not.
        transl: smplx's convention, metres, source frame.
        R_dst_from_src: Rotations.
        t: Metres, destination frame.
        root_rest: ``J0(beta)`` of the side and model that ``beta`` belongs to.

    Source:
        ``R_root' = R R_root``, ``transl' = R (transl + J0) + t - J0``; DexYCB's toolkit and
        handover-sim move their parameters the same way.
    """
    root = Rotation.from_matrix(R_dst_from_src) * Rotation.from_rotvec(theta[:, :3])
    wrist = (R_dst_from_src @ (transl + root_rest)[..., None])[..., 0] + t
    return np.concatenate((root.as_rotvec(), theta[:, 3:]), axis=1), wrist - root_rest


def transform_mano(
    theta: Float[np.ndarray, "n 48"],
    transl: Float[np.ndarray, "n 3"],
    T_dst_from_src: Float[np.ndarray, "#n 4 4"],
    root_rest: Float[np.ndarray, "n 3"],
) -> tuple[Float64[np.ndarray, "n 48"], Float64[np.ndarray, "n 3"]]:
    """Return ``(theta, transl)`` in another frame: world to camera with ``T_cam_from_world``.

    Pass its ``invert_transform`` for the inverse. See ``move_mano``.
    """
    T = T_dst_from_src
    return move_mano(theta, transl, T[:, :3, :3], T[:, :3, 3], root_rest)


def invert_transform(T_dst_from_src: Float[np.ndarray, "*b 4 4"]) -> Float64[np.ndarray, "*b 4 4"]:
    """Return ``T_src_from_dst`` of rigid transforms."""
    inverse = np.zeros(T_dst_from_src.shape)
    inverse[..., :3, :3] = np.swapaxes(T_dst_from_src[..., :3, :3], -1, -2)
    inverse[..., :3, 3] = -np.einsum(
        "...ki,...k->...i", T_dst_from_src[..., :3, :3], T_dst_from_src[..., :3, 3]
    )
    inverse[..., 3, 3] = 1.0
    return inverse


# --- sides ----------------------------------------------------------------------------------------


def mirror_mano(
    theta: Float[np.ndarray, "n 48"], transl: Float[np.ndarray, "n 3"]
) -> tuple[Float64[np.ndarray, "n 48"], Float64[np.ndarray, "n 3"]]:
    """Return the MANO parameters of the hand mirrored across x = 0, for the other side's model.

    ``beta`` is unchanged. Correct only with the fixed left model: the unfixed one is not a mirror
    image of the right one. Its own inverse.
    """
    mirrored = theta.reshape(-1, 3) * -_FLIP_X
    return mirrored.reshape(theta.shape), transl * _FLIP_X


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LeftRefit:
    """Shapes of left hands fitted with the model as shipped, refitted to the fixed model."""

    beta: Float64[np.ndarray, "n 10"]
    transl_shift: Float64[np.ndarray, "n 3"]
    """Add it to ``transl``: the posed wrist stays. Metres."""
    rms_m: Float64[np.ndarray, " n"]
    """Residual: RMS distance of the vertices in the rest pose, metres."""
    max_m: Float64[np.ndarray, " n"]
    """Largest distance of a vertex in the rest pose, for any root rotation, metres."""
    any_pose_m: Float64[np.ndarray, " n"]
    """Upper bound on the error of any vertex or joint in any pose, metres. Compare it with the
    limit above which ``beta`` is not used."""


def refit_left_betas(
    as_shipped: ManoArrays, fixed: ManoArrays, betas: Float[np.ndarray, "n 10"]
) -> LeftRefit:
    """Refit the fixed model's shape to shapes of the model as shipped.

    Least squares on the rest-pose vertices relative to the rest wrist. The root rotates about that
    wrist, so ``transl`` absorbs a shift of the whole mesh only as far as the wrist shifts; on the
    synthetic hand a fit with a free shift leaves 1.6 mm instead of 1.4 mm.

    Args:
        as_shipped: The model the dataset was fitted with, ``ManoModels.left_as_shipped``.
        fixed: The model of the result. Only its shape basis may differ from ``as_shipped``.
        betas: Shapes for ``as_shipped``; in practice one row per subject.
    """
    shipped_basis, shipped_template = _about_wrist(as_shipped)
    basis, template = _about_wrist(fixed)
    goal = betas @ shipped_basis.T + (shipped_template - template)  # [n, 778 * 3]
    beta = np.ascontiguousarray(np.linalg.lstsq(basis, goal.T, rcond=None)[0].T)

    shift = (beta @ basis.T - goal).reshape(len(betas), -1, 3)
    distance = np.linalg.norm(shift, axis=-1)  # [n, 778]
    return LeftRefit(
        beta=beta,
        transl_shift=rest_root(as_shipped, betas) - rest_root(fixed, beta),
        rms_m=np.sqrt(np.square(distance).mean(-1)),
        max_m=distance.max(-1),
        any_pose_m=_bound_in_any_pose(fixed, shift),
    )


def _about_wrist(
    arrays: ManoArrays,
) -> tuple[Float64[np.ndarray, "2334 10"], Float64[np.ndarray, " 2334"]]:
    """Return shape basis and template of the rest pose, with the rest wrist at the origin."""
    wrist = arrays.J_regressor[0]
    basis = arrays.shapedirs - np.einsum("v,vxk->xk", wrist, arrays.shapedirs)
    template = arrays.v_template - wrist @ arrays.v_template
    return basis.reshape(-1, basis.shape[-1]), template.reshape(-1)


def _bound_in_any_pose(
    arrays: ManoArrays, shift: Float64[np.ndarray, "n 778 3"]
) -> Float64[np.ndarray, " n"]:
    """Bound the distance of two posed hands whose rest vertices differ by ``shift``.

    A posed vertex is the skinning-weighted mean of its positions under each bone. Each of these
    differs by a rotation of (shift of the vertex - shift of the bone's joint), and the posed joint
    by rotations of the differences of the bones leading to it; rotations preserve lengths.
    """
    joint = arrays.J_regressor @ shift  # [n, 16, 3]
    joint_moves = np.zeros(joint.shape[:2])
    bound = np.zeros(shift.shape[:2])
    for j, parent in enumerate(MANO_PARENTS):
        if parent >= 0:
            bone = np.linalg.norm(joint[:, j] - joint[:, parent], axis=-1)
            joint_moves[:, j] = joint_moves[:, parent] + bone
        within = np.linalg.norm(shift - joint[:, j, None], axis=-1)
        bound += arrays.weights[:, j] * (within + joint_moves[:, j, None])
    worst: Float64[np.ndarray, " n"] = np.maximum(bound.max(-1), joint_moves.max(-1))
    return worst
