"""Loss terms on sequences: hand motion, camera trajectory, and both together in the world frame.

Shape legend: b = windows, t = frames, h = hands, j = joints.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.geometry.rotation import rotate
from train.losses.terms.mano import geodesic
from train.losses.terms.reduce import length, mean_valid, select

INFILL_PARTS: Final = {"transl": 3, "beta": 10, "root_rot6d": 6, "pose_rot6d": 90}
"""Parts of a hand's vector in the infiller, in this order: 109 numbers."""


def velocity(
    pred: Float[Tensor, "b t h j 3"],
    target: Float[Tensor, "b t h j 3"],
    valid: Bool[Tensor, "b t h j"],
) -> Float[Tensor, " b"]:
    """Return the mean length of ``(p_t+1 - p_t) - (g_t+1 - g_t)``, metres per frame.

    Over the joints that are valid in both frames; 0 in windows of one frame.
    """
    return _differences(pred, target, valid, order=1)


def acceleration(
    pred: Float[Tensor, "b t h j 3"],
    target: Float[Tensor, "b t h j 3"],
    valid: Bool[Tensor, "b t h j"],
) -> Float[Tensor, " b"]:
    """Return the mean length of the difference of ``p_t+1 - 2 p_t + p_t-1``, metres per frame^2.

    Over the joints that are valid in all three frames; 0 in windows of less than three.
    """
    return _differences(pred, target, valid, order=2)


def camera_translation(
    pred: Float[Tensor, "b t 3"], target: Float[Tensor, "b t 3"], valid: Bool[Tensor, "b t"]
) -> Float[Tensor, " b"]:
    """Return the mean error of the camera positions in the world, metres."""
    return mean_valid(length(select(valid, pred) - select(valid, target)), valid)


def camera_rotation(
    pred: Float[Tensor, "b t 3 3"], target: Float[Tensor, "b t 3 3"], valid: Bool[Tensor, "b t"]
) -> Float[Tensor, " b"]:
    """Return the mean angle between the cameras' rotations, radians in [0, pi]."""
    return mean_valid(geodesic(select(valid, pred), select(valid, target)), valid)


def camera_trajectory(
    pred_T: Float[Tensor, "b t 3 4"], target_T: Float[Tensor, "b t 3 4"], valid: Bool[Tensor, "b t"]
) -> Float[Tensor, " b"]:
    """Return the mean error of the frame-to-frame camera translation, metres.

    ``|R_t^T (c_t+1 - c_t) - G_t^T (d_t+1 - d_t)|`` over pairs of valid frames, each in the earlier
    camera's frame: independent of the world frame. 0 in windows of one frame.

    Args:
        pred_T: Predicted ``T_world_from_cam``, its rows [R | c].
        target_T: True ``T_world_from_cam``, [G | d].
        valid: Frames whose camera is known.
    """
    both = valid[:, 1:] & valid[:, :-1]
    steps = [_steps(select(valid, T)) for T in (pred_T, target_T)]
    return mean_valid(length(select(both, steps[0] - steps[1])), both)


def world_consistency(
    pred: Float[Tensor, "b t h j 3"],
    pred_T: Float[Tensor, "b t 3 4"],
    target_world: Float[Tensor, "b t h j 3"],
    valid: Bool[Tensor, "b t h j"],
) -> Float[Tensor, " b"]:
    """Return the mean world-frame joint error under predicted hands and cameras, metres.

    ``|T_world_from_cam p - w|``: hands and cameras must agree.

    Args:
        pred: Predicted joints, camera frame.
        pred_T: Predicted ``T_world_from_cam``.
        target_world: True joints, world frame.
        valid: Joints that have a label in the world.
    """
    T = select(valid.flatten(2).any(2), pred_T)
    points = select(valid, pred).flatten(2, 3)
    world = (rotate(T[..., :3], points) + T[..., None, :, 3]).reshape(pred.shape)
    return mean_valid(length(select(valid, world) - select(valid, target_world)), valid)


def infill(
    pred: Float[Tensor, "b t h 109"],
    target: Float[Tensor, "b t h 109"],
    valid: Bool[Tensor, "b t h"],
) -> Float[Tensor, " b"]:
    """Return the sum over ``INFILL_PARTS`` of the mean absolute difference of each.

    Args:
        pred: Infilled hands.
        target: True hands.
        valid: Frames to score: for example those that were masked.

    Source:
        HaWoR's infiller: L1 on translation, root, pose and shape.
    """
    off = (select(valid, pred) - select(valid, target)).abs()
    parts = torch.split(off, list(INFILL_PARTS.values()), dim=-1)
    return mean_valid(torch.stack([part.mean(-1) for part in parts]).sum(0), valid)


def _differences(pred: Tensor, target: Tensor, valid: Tensor, *, order: int) -> Tensor:
    off = select(valid, pred) - select(valid, target)
    for _ in range(order):
        off, valid = off[:, 1:] - off[:, :-1], valid[:, 1:] & valid[:, :-1]
    return mean_valid(length(select(valid, off)), valid)


def _steps(T: Tensor) -> Tensor:
    """Frame-to-frame translation in the earlier camera's frame [b, t - 1, 3]."""
    moved = T[:, 1:, :, 3] - T[:, :-1, :, 3]
    return rotate(T[:, :-1, :, :3].mT, moved[..., None, :]).squeeze(-2)
