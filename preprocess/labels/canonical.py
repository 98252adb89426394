"""Convert each dataset's hand and object parameters to the canonical form.

Canonical form: MANO ``theta`` as absolute axis-angle, ``transl`` in the smplx convention, ``beta``
of the fixed left model, object poses ``[R | t]``; OpenCV camera frame, metres. Every function takes
the numbers exactly as in the files, one row per hand or object and frame.

Shape legend: n = rows, o = objects; ``#n``: one row broadcasts to all.

Source:
    The dataset notes, 1.3 to 1.6, from the official toolkits.
"""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from jaxtyping import Float, Float64, Integer
from scipy.spatial.transform import Rotation

from model.hand import LEFT, MIDDLE_MCP, STANDARD_FROM_MANO21
from model.mano.convert import (
    add_mean,
    move_mano,
    pca_to_axis_angle,
    refit_left_betas,
    rest_root,
    transform_mano,
)
from model.mano.files import ManoArrays, ManoModels, mano_forward
from preprocess.records import Labels, LabelStack

_OPENCV_FROM_OPENGL: Final = np.diag([1.0, -1.0, -1.0])
"""Rotation by 180 degrees about x: y and z change sign."""
_CHUNK: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HandParameters:
    """MANO parameters in canonical form; ``theta`` and ``transl`` of unannotated hands are NaN."""

    theta: Float64[np.ndarray, "n 48"]
    beta: Float64[np.ndarray, "n 10"]
    beta_raw: Float64[np.ndarray, "n 10"]
    """As shipped; differs from ``beta`` on left hands fitted with the unfixed model."""
    transl: Float64[np.ndarray, "n 3"]
    root_rest: Float64[np.ndarray, "n 3"]
    """``J0(beta)``."""
    refit_error_m: Float64[np.ndarray, " n"]
    """Largest vertex error in the pose of the row, against ``beta_raw`` with the model it belongs
    to, metres; 0 without a refit, NaN where ``theta`` is."""


_FIELDS: Final = tuple(field.name for field in fields(HandParameters))


def fill_hand(labels: Labels, slot: int, hands: HandParameters, row: int) -> None:
    """Write one row of hand parameters into the labels of an image, in place."""
    for name in _FIELDS:
        getattr(labels, name)[slot] = getattr(hands, name)[row]


def fill_hands(
    labels: LabelStack, rows: Integer[np.ndarray, " n"], slot: int, hands: HandParameters
) -> None:
    """Write hand parameters into ``rows`` of a stack, in order and in place."""
    for name in _FIELDS:
        getattr(labels, name)[rows, slot] = getattr(hands, name)


def dexycb_hands(
    models: ManoModels,
    slot: int,
    pose_m: Float[np.ndarray, "n 51"],
    betas: Float[np.ndarray, "#n 10"],
) -> HandParameters:
    """Convert DexYCB's ``pose_m`` (labels, camera frame) and the subject's ``betas``.

    ``pose_m`` is root axis-angle, 45 PCA coefficients, translation; all zero means no hand. Left
    hands were fitted with the unfixed model.
    """
    own = _as_fitted(models, slot)
    root, coefficients, transl = np.split(pose_m.astype(np.float64), [3, 48], axis=1)
    theta = np.concatenate((root, pca_to_axis_angle(own, coefficients)), axis=1)
    missing = (pose_m == 0).all(axis=1)
    theta[missing], transl[missing] = np.nan, np.nan
    return _with_fixed_left(models, slot, own, theta, betas, transl)


def freihand_hands(
    models: ManoModels,
    K: Float[np.ndarray, "n 3 3"],
    parameters: Float[np.ndarray, "n 61"],
    vertices: Float[np.ndarray, "n 778 3"] | None = None,
) -> tuple[HandParameters, Float64[np.ndarray, " n"]]:
    """Convert rows of ``training_mano.json``; also return the error against official vertices.

    A row is root axis-angle, 45 angles relative to the mean pose, betas, root pixel and scale.
    FreiHAND's root is the middle MCP, regressed on the *posed* vertices, at the depth ``f/scale``.

    Args:
        models: MANO models.
        K: Intrinsics of the same rows.
        parameters: The rows.
        vertices: Official vertices, camera frame, metres; None: the error is NaN.

    Returns:
        The parameters, and the largest distance between a decoded vertex and the official one,
        metres.
    """
    own = models.right
    parameters = parameters.astype(np.float64)
    theta = np.concatenate((parameters[:, :3], add_mean(own, parameters[:, 3:48])), axis=1)
    beta, uv, scale = parameters[:, 48:58], parameters[:, 58:60], parameters[:, 60:61]
    focal = (K[:, 0, 0] + K[:, 1, 1])[:, None] / 2.0
    root = np.concatenate([uv - K[:, :2, 2], focal], axis=1) / scale
    root_regressor = own.J_regressor[STANDARD_FROM_MANO21[MIDDLE_MCP]]  # [778]
    transl = np.empty((len(theta), 3))
    check = np.full(len(theta), np.nan)
    for start in range(0, len(theta), _CHUNK):
        part = slice(start, start + _CHUNK)
        posed, _ = mano_forward(own, theta[part], beta[part], np.zeros((len(theta[part]), 3)))
        transl[part] = root[part] - root_regressor @ posed
        if vertices is not None:
            error = posed + transl[part, None] - vertices[part]
            check[part] = np.linalg.norm(error, axis=-1).max(axis=-1)
    return _as_shipped(own, theta, beta, transl), check


def ho3d_hands(
    models: ManoModels,
    hand_pose: Float[np.ndarray, "n 48"],
    hand_trans: Float[np.ndarray, "n 3"],
    hand_beta: Float[np.ndarray, "n 10"],
) -> HandParameters:
    """Convert HO-3D's ``handPose`` (absolute), ``handTrans`` and ``handBeta`` from OpenGL axes."""
    rest = rest_root(models.right, hand_beta)
    theta, transl = move_mano(
        hand_pose, hand_trans, _OPENCV_FROM_OPENGL[None], np.zeros((1, 3)), rest
    )
    return _as_shipped(models.right, theta, hand_beta, transl)


def arctic_hands(
    models: ManoModels,
    slot: int,
    rot: Float[np.ndarray, "n 3"],
    pose: Float[np.ndarray, "n 45"],
    trans: Float[np.ndarray, "n 3"],
    shape: Float[np.ndarray, "#n 10"],
    T_cam_from_world: Float[np.ndarray, "#n 4 4"],
) -> HandParameters:
    """Convert one hand of ARCTIC's ``.mano.npy`` (world frame, angles relative to the mean pose).

    Left hands were fitted with the unfixed model.
    """
    own = _as_fitted(models, slot)
    theta = np.concatenate((rot, add_mean(own, pose)), axis=1)
    rest = np.broadcast_to(rest_root(own, shape), trans.shape)
    theta, transl = transform_mano(theta, trans, T_cam_from_world, rest)
    return _with_fixed_left(models, slot, own, theta, shape, transl)


def interhand26m_hands(
    models: ManoModels,
    slot: int,
    pose: Float[np.ndarray, "n 48"],
    shape: Float[np.ndarray, "n 10"],
    trans: Float[np.ndarray, "n 3"],
    camrot: Float[np.ndarray, "#n 3 3"],
    campos: Float[np.ndarray, "#n 3"],
) -> HandParameters:
    """Convert NeuralAnnot parameters (world frame, metres, angles relative to the mean pose).

    ``X_cam = camrot (X_world - campos)`` with ``campos`` in millimetres, as in ``camera.json``.
    """
    own = models.left if slot == LEFT else models.right
    theta = np.concatenate((pose[:, :3], add_mean(own, pose[:, 3:])), axis=1)
    t = -(camrot @ (campos / 1000.0)[..., None])[..., 0]
    theta, transl = move_mano(theta, trans, camrot, t, rest_root(own, shape))
    return _as_shipped(own, theta, shape, transl)


def folder_hands(
    models: ManoModels,
    slot: int,
    theta: Float[np.ndarray, "n 48"],
    beta: Float[np.ndarray, "n 10"],
    transl: Float[np.ndarray, "n 3"],
    *,
    opengl: bool,
    relative: bool,
    as_shipped: bool,
) -> HandParameters:
    """Convert parameters of the folder format, metres.

    Args:
        models: MANO models.
        slot: Hand.
        theta: Axis-angle, root first.
        beta: Shape.
        transl: smplx's convention.
        opengl: The camera axes are OpenGL's, not OpenCV's.
        relative: Finger angles are relative to the mean pose.
        as_shipped: Left hands were fitted with the unfixed model.
    """
    own = _as_fitted(models, slot) if as_shipped or slot != LEFT else models.left
    if relative:
        theta = np.concatenate((theta[:, :3], add_mean(own, theta[:, 3:])), axis=1)
    R = _OPENCV_FROM_OPENGL if opengl else np.eye(3)
    theta, transl = move_mano(theta, transl, R[None], np.zeros((1, 3)), rest_root(own, beta))
    if as_shipped:
        return _with_fixed_left(models, slot, own, theta, beta, transl)
    return _as_shipped(own, theta, beta, transl)


# --- objects and points ---------------------------------------------------------------------------


def dexycb_objects(pose_y: Float[np.ndarray, "*n 3 4"]) -> Float64[np.ndarray, "*n 3 4"]:
    """Return ``[R | t]``, object to camera, of DexYCB's ``pose_y``; all zero: missing, NaN."""
    missing = (pose_y == 0).all(axis=(-2, -1), keepdims=True)
    return np.asarray(np.where(missing, np.nan, pose_y.astype(np.float64)))


def ho3d_objects(
    obj_rot: Float[np.ndarray, "n 3"], obj_trans: Float[np.ndarray, "n 3"]
) -> Float64[np.ndarray, "n 3 4"]:
    """Return ``[R | t]``, object to camera, of HO-3D's ``objRot`` (axis-angle) and ``objTrans``."""
    R = Rotation.from_rotvec(obj_rot).as_matrix()
    return np.asarray(_OPENCV_FROM_OPENGL @ np.concatenate((R, obj_trans[..., None]), axis=-1))


def arctic_objects(
    parameters: Float[np.ndarray, "n 7"], T_cam_from_world: Float[np.ndarray, "#n 4 4"]
) -> tuple[Float64[np.ndarray, "n 3 4"], Float64[np.ndarray, " n"]]:
    """Return ``[R | t]``, object to camera, and articulation angles of rows of ``.object.npy``.

    A row is the articulation angle (radians), the object's axis-angle and its translation in
    millimetres. The top part rotates about -z of the object frame by the angle, before ``[R | t]``.
    """
    R = Rotation.from_rotvec(parameters[:, 1:4]).as_matrix()
    T = np.concatenate((R, parameters[:, 4:, None] / 1000.0), axis=-1)
    moved = T_cam_from_world[:, :3, :3] @ T
    moved[..., 3] += T_cam_from_world[:, :3, 3]
    return moved, parameters[:, 0].astype(np.float64)


def opencv_from_opengl(points: Float[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
    """Convert HO-3D's points (``handJoints3D``) to OpenCV axes; intrinsics are unchanged."""
    return np.asarray(points @ _OPENCV_FROM_OPENGL)


# --- shapes ---------------------------------------------------------------------------------------


def _as_fitted(models: ManoModels, slot: int) -> ManoArrays:
    """Return the model that DexYCB and ARCTIC were fitted with."""
    return models.left_as_shipped if slot == LEFT else models.right


def _as_shipped(
    own: ManoArrays,
    theta: Float[np.ndarray, "n 48"],
    beta: Float[np.ndarray, "n 10"],
    transl: Float[np.ndarray, "n 3"],
) -> HandParameters:
    beta = beta.astype(np.float64)
    return HandParameters(
        theta=theta,
        beta=beta,
        beta_raw=beta,
        transl=transl,
        root_rest=rest_root(own, beta),
        refit_error_m=np.where(np.isfinite(theta).all(1), 0.0, np.nan),
    )


def _with_fixed_left(
    models: ManoModels,
    slot: int,
    own: ManoArrays,
    theta: Float[np.ndarray, "n 48"],
    beta: Float[np.ndarray, "#n 10"],
    transl: Float[np.ndarray, "n 3"],
) -> HandParameters:
    """Refit the shapes of left hands, each distinct one once; right hands are unchanged."""
    beta = np.broadcast_to(beta, (len(theta), 10))
    if slot != LEFT:
        return _as_shipped(own, theta, beta, transl)
    distinct, row = np.unique(beta, axis=0, return_inverse=True)
    row = row.reshape(-1)
    refit = refit_left_betas(own, models.left, distinct)
    hands = HandParameters(
        theta=theta,
        beta=refit.beta[row],
        beta_raw=beta.astype(np.float64),
        transl=transl + refit.transl_shift[row],
        root_rest=rest_root(models.left, refit.beta)[row],
        refit_error_m=np.full(len(theta), np.nan),
    )
    seen = np.flatnonzero(np.isfinite(theta).all(1) & np.isfinite(transl).all(1))
    for start in range(0, len(seen), _CHUNK):
        part = seen[start : start + _CHUNK]
        shipped, _ = mano_forward(own, theta[part], hands.beta_raw[part], transl[part])
        fixed, _ = mano_forward(models.left, theta[part], hands.beta[part], hands.transl[part])
        hands.refit_error_m[part] = np.linalg.norm(fixed - shipped, axis=-1).max(-1)
    return hands
