"""Loss terms on the 21 hand joints: positions, projections, bones, Procrustes-aligned error.

Points are in the camera frame of the input pixels, metres.

Shape legend: b = samples, h = hands, j = 21 joints in the standard order.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.geometry.align import apply_similarity
from model.geometry.rotation import matmul_small, quat_wxyz_to_rotmat, rotate
from model.hand import ROOT
from train.losses.config import Distance
from train.losses.terms.reduce import distance, length, mean_valid, select

Z_MIN_M: Final = 0.05
"""Minimum depth in projections; nearer points are clamped to it, without a depth gradient."""
MIN_BONE_M: Final = 1e-3
"""Bones shorter than this are divided by it instead of by their length."""
MIN_SPREAD_M: Final = 1e-3
"""Predicted joints whose RMS distance from their centre is less are not scaled."""
SQUARINGS: Final = 16
"""Squarings of the matrix whose largest eigenvector is the best rotation: 2^16 power iterations."""

_FINGERS: Final = (5, 4)
"""The joints after the wrist: five fingers, four joints from base to tip."""


def joints_abs(
    pred: Float[Tensor, "b h j 3"],
    target: Float[Tensor, "b h j 3"],
    valid: Bool[Tensor, "b h j"],
    weight: Float[Tensor, " j"] | None = None,
    kind: Distance = Distance.l1,
    smooth: float = 0.01,
) -> Float[Tensor, " b"]:
    """Return the weighted mean distance of valid joints, metres: ``sum_j w_j d_j / sum_j w_j``.

    Args:
        pred: Predicted joints.
        target: True joints.
        valid: Joints that have a label.
        weight: Weight of each joint, not negative; None weighs them equally.
        kind: Norm of the difference.
        smooth: Threshold of ``Distance.smooth_l1``, metres.
    """
    difference = select(valid, pred) - select(valid, target)
    return mean_valid(distance(difference, kind, smooth), valid, weight)


def joints_rel(
    pred: Float[Tensor, "b h j 3"],
    target: Float[Tensor, "b h j 3"],
    valid: Bool[Tensor, "b h j"],
    weight: Float[Tensor, " j"] | None = None,
    kind: Distance = Distance.l1,
    smooth: float = 0.01,
) -> Float[Tensor, " b"]:
    """Return ``joints_abs`` after moving both wrists of a hand to the origin, metres.

    A hand whose wrist is not valid has no root-relative joints. The wrist itself counts, with
    distance 0.
    """
    valid = valid & valid[:, :, ROOT : ROOT + 1]
    pred, target = select(valid, pred), select(valid, target)
    root = slice(ROOT, ROOT + 1)
    difference = (pred - pred[:, :, root]) - (target - target[:, :, root])
    return mean_valid(distance(select(valid, difference), kind, smooth), valid, weight)


def joints_2d(
    pred: Float[Tensor, "b h j 3"],
    target: Float[Tensor, "b h j 3"],
    valid: Bool[Tensor, "b h j"],
    K: Float[Tensor, "b 3 3"],
    input_px: int,
    weight: Float[Tensor, " j"] | None = None,
) -> Float[Tensor, " b"]:
    """Return the weighted mean L1 distance of projections, as a fraction of the input side.

    ``(u, v) = K[:2] @ (x / z, y / z, 1)`` with z of at least ``Z_MIN_M``.

    Args:
        pred: Predicted joints.
        target: True joints; they are projected with the same camera.
        valid: Joints that have a label.
        K: Intrinsics of the input pixels; used in samples with a valid joint.
        input_px: Side of the input, pixels.
        weight: Weight of each joint, not negative; None weighs them equally.
    """
    K = select(valid.flatten(1).any(1), K)
    difference = project_clamped(select(valid, pred), K) - project_clamped(select(valid, target), K)
    return mean_valid(select(valid, difference / input_px).abs().sum(-1), valid, weight)


def bone_length(
    pred: Float[Tensor, "b h j 3"], target: Float[Tensor, "b h j 3"], valid: Bool[Tensor, "b h j"]
) -> Float[Tensor, " b"]:
    """Return the mean over bones of ``| |p_child - p_parent| - |g_child - g_parent| |``, metres.

    A bone is valid where both of its ends are.
    """
    valid = bones_valid(valid)
    difference = length(_bones(pred, valid)) - length(_bones(target, valid))
    return mean_valid(difference.abs(), valid)


def bone_direction(
    pred: Float[Tensor, "b h j 3"], target: Float[Tensor, "b h j 3"], valid: Bool[Tensor, "b h j"]
) -> Float[Tensor, " b"]:
    """Return the mean over bones of ``|u - v|^2 / 2 = 1 - cos(angle)``, no unit.

    u and v are the bones divided by their lengths, or by ``MIN_BONE_M`` if shorter. A bone is valid
    where both of its ends are.
    """
    valid = bones_valid(valid)
    difference = _direction(_bones(pred, valid)) - _direction(_bones(target, valid))
    return mean_valid(difference.square().sum(-1) / 2, valid)


def joints_pa(
    pred: Float[Tensor, "b h j 3"], target: Float[Tensor, "b h j 3"], valid: Bool[Tensor, "b h j"]
) -> Float[Tensor, " b"]:
    """Return the root mean square distance after Procrustes alignment of each hand, metres.

    ``sqrt(mean_j |s R p_j + t - g_j|^2)`` over the valid joints of a hand, with the scale, rotation
    and translation that minimise it; then the mean over hands with a valid joint. No reflections.
    The alignment is held constant in the gradient, which is exact: it minimises the same sum
    (envelope theorem).

    Source:
        Horn 1987, Closed-form solution of absolute orientation using unit quaternions. The
        eigenvector comes from ``SQUARINGS`` squarings of the matrix: a singular value decomposition
        synchronises with the device.
    """
    pred, target = select(valid, pred), select(valid, target)
    share = valid.to(pred.dtype)
    share = share / share.sum(-1, keepdim=True).clamp_min(1)
    with torch.no_grad():
        scale, R, t = _similarity(pred, target, share)
    residual = apply_similarity(scale, R, t, pred) - target
    mean = (share * residual.square().sum(-1)).sum(-1)
    is_zero = mean == 0
    return mean_valid(mean.where(~is_zero, 1.0).sqrt().where(~is_zero, 0.0), valid.any(-1))


def bones_valid(valid: Bool[Tensor, "b h j"]) -> Bool[Tensor, "b h 20"]:
    """Return which bones have both ends, in the order of the joints after the wrist."""
    return valid[:, :, ROOT + 1 :] & _of_parents(valid)


def project_clamped(
    points: Float[Tensor, "b h j 3"], K: Float[Tensor, "b 3 3"]
) -> Float[Tensor, "b h j 2"]:
    """Return pixels ``K[:2] @ (x / z, y / z, 1)`` with z of at least ``Z_MIN_M``."""
    z = points[..., 2:].clamp_min(Z_MIN_M)
    homogeneous = torch.cat([points[..., :2] / z, torch.ones_like(z)], dim=-1)
    return (K[:, None, None, :2] * homogeneous[..., None, :]).sum(-1)


def _bones(joints: Tensor, valid: Tensor) -> Tensor:
    """Joint minus parent [b, h, 20, 3], 0 where not valid."""
    return select(valid, joints[:, :, ROOT + 1 :]) - select(valid, _of_parents(joints))


def _of_parents(values: Tensor) -> Tensor:
    """Return the value of each joint's parent [b, h, 20, ...]."""
    # By slices: an index would have to be copied to the device.
    fingers = torch.unflatten(values[:, :, ROOT + 1 :], 2, _FINGERS)
    root = values[:, :, ROOT : ROOT + 1, None].expand_as(fingers[:, :, :, :1])
    return torch.cat((root, fingers[:, :, :, :-1]), 3).flatten(2, 3)


def _direction(vectors: Tensor) -> Tensor:
    return vectors / length(vectors).clamp_min(MIN_BONE_M)[..., None]


def _similarity(
    pred: Float[Tensor, "b h j 3"], target: Float[Tensor, "b h j 3"], share: Float[Tensor, "b h j"]
) -> tuple[Float[Tensor, "b h"], Float[Tensor, "b h 3 3"], Float[Tensor, "b h 3"]]:
    """Return s, R, t that minimise ``sum_j share_j |s R p_j + t - g_j|^2``; shares sum to 1."""
    pred_mean = (share[..., None] * pred).sum(-2)
    target_mean = (share[..., None] * target).sum(-2)
    p, g = pred - pred_mean[..., None, :], target - target_mean[..., None, :]
    M = (share[..., None, None] * g[..., :, None] * p[..., None, :]).sum(-3)  # [b, h, 3, 3]
    R = quat_wxyz_to_rotmat(_best_quat_wxyz(M))
    spread = (share * p.square().sum(-1)).sum(-1)
    is_spread = spread > MIN_SPREAD_M**2
    scale = ((R * M).sum((-2, -1)) / spread.where(is_spread, 1.0)).where(is_spread, 0.0)
    t = target_mean - scale[..., None] * rotate(R, pred_mean[..., None, :]).squeeze(-2)
    return scale, R, t


def _best_quat_wxyz(M: Float[Tensor, "b h 3 3"]) -> Float[Tensor, "b h 4"]:
    """Return the unit quaternion of the rotation that maximises ``<R, M>``."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = M.flatten(-2).unbind(-1)
    N = torch.stack(
        (
            xx + yy + zz, zy - yz, xz - zx, yx - xy,
            zy - yz, xx - yy - zz, xy + yx, xz + zx,
            xz - zx, xy + yx, yy - xx - zz, yz + zy,
            yx - xy, xz + zx, yz + zy, zz - xx - yy,
        ),
        -1,
    ).reshape(*xx.shape, 4, 4)  # fmt: skip
    size = length(M.flatten(-2))
    eye = torch.eye(4, dtype=M.dtype, device=M.device)
    # |eigenvalue of N| <= 2 |M|: the shifted matrix has none below 0, so its largest is N's.
    A = N / (2 * size.where(size > 0, 1.0))[..., None, None] + eye
    for _ in range(SQUARINGS):
        A = matmul_small(A, A)
        A = A / A.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    column = A.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = A.gather(-1, column[..., None, None].expand(*column.shape, 4, 1)).squeeze(-1)
    unit: Tensor = q / length(q)[..., None]
    return unit
