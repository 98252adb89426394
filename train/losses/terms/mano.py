"""Loss terms on MANO: vertices, pose, shape, and regularisers that keep predictions plausible.

Points are in the camera frame of the input pixels, metres.

Shape legend: b = samples, h = hands, v = 778 vertices, n = 16 rotations (the wrist, then 15 joints
of fingers).
"""

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.geometry.rotation import matmul_small
from train.losses.terms.reduce import length, mean_valid, select

_X, _Y, _Z = range(3)
_MIN_COSINE: Final = 1e-6
"""Cosine of the splay below which bend and twist share an axis (gimbal lock)."""


def vertices_rel(
    pred: Float[Tensor, "b h v 3"],
    target: Float[Tensor, "b h v 3"],
    pred_root: Float[Tensor, "b h 3"],
    target_root: Float[Tensor, "b h 3"],
    valid: Bool[Tensor, "b h"],
) -> Float[Tensor, " b"]:
    """Return the mean L1 distance of vertices, each mesh relative to its own root, metres.

    ``mean_v sum_xyz |(p_v - p_root) - (g_v - g_root)|``.
    """
    pred, target = select(valid, pred), select(valid, target)
    pred_root, target_root = select(valid, pred_root), select(valid, target_root)
    difference = (pred - pred_root[:, :, None]) - (target - target_root[:, :, None])
    return mean_valid(difference.abs().sum(-1), valid[..., None].expand(pred.shape[:-1]))


def theta(
    pred: Float[Tensor, "b h n 3 3"],
    target: Float[Tensor, "b h n 3 3"],
    valid: Bool[Tensor, "b h"],
) -> Float[Tensor, " b"]:
    """Return the mean squared chordal distance ``|R - G|_F^2 = 4 (1 - cos angle)`` of rotations."""
    squared = (select(valid, pred) - select(valid, target)).square().sum((-2, -1))
    return mean_valid(squared, valid[..., None].expand_as(squared))


def theta_geodesic(
    pred: Float[Tensor, "b h n 3 3"],
    target: Float[Tensor, "b h n 3 3"],
    valid: Bool[Tensor, "b h"],
) -> Float[Tensor, " b"]:
    """Return the mean angle between rotations, radians in [0, pi].

    At angles of 0 and pi the gradient does not exist and is returned as 0.
    """
    angle = geodesic(select(valid, pred), select(valid, target))
    return mean_valid(angle, valid[..., None].expand_as(angle))


def geodesic(pred: Float[Tensor, "*b 3 3"], target: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b"]:
    """Return ``atan2(|vee(D - D^T)| / 2, (trace(D) - 1) / 2)`` of ``D = pred^T target``, radians.

    Precise at every angle, unlike the arc cosine of the trace, whose gradient is infinite at 0; the
    gradient is 0 where the sine is 0.
    """
    D = matmul_small(pred.mT, target)
    vee = torch.stack(
        (D[..., 2, 1] - D[..., 1, 2], D[..., 0, 2] - D[..., 2, 0], D[..., 1, 0] - D[..., 0, 1]), -1
    )
    sine = length(vee) / 2
    cosine = (D.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    nowhere = (sine == 0) & (cosine == 0)  # not a rotation; atan2 has no gradient there
    return torch.atan2(sine, cosine.where(~nowhere, 1.0))


def beta(
    pred: Float[Tensor, "b h 10"], target: Float[Tensor, "b h 10"], valid: Bool[Tensor, "b h"]
) -> Float[Tensor, " b"]:
    """Return the mean squared difference of the shape parameters."""
    squared = (select(valid, pred) - select(valid, target)).square()
    return mean_valid(squared, valid[..., None].expand_as(squared))


def beta_prior(pred: Float[Tensor, "b h 10"], valid: Bool[Tensor, "b h"]) -> Float[Tensor, " b"]:
    """Return the mean square of the shape parameters: a Gaussian prior (unit: standard deviations).

    ``valid`` marks the hands that are present; no label is needed.
    """
    squared = select(valid, pred).square()
    return mean_valid(squared, valid[..., None].expand_as(squared))


def orthogonality(
    rot6d: Float[Tensor, "b h n 6"], valid: Bool[Tensor, "b h"]
) -> Float[Tensor, " b"]:
    """Return the mean of ``|A^T A - I|_F^2`` over rotations, A = ``[a1 | a2]`` before Gram-Schmidt.

    ``(|a1|^2 - 1)^2 + (|a2|^2 - 1)^2 + 2 (a1 . a2)^2``: keeps 6D outputs where Gram-Schmidt is well
    conditioned. ``valid`` marks the hands that are present; no label is needed.
    """
    a1, a2 = torch.split(select(valid, rot6d), 3, dim=-1)
    off = (a1.square().sum(-1) - 1).square() + (a2.square().sum(-1) - 1).square()
    off = off + 2 * (a1 * a2).sum(-1).square()
    return mean_valid(off, valid[..., None].expand_as(off))


def joint_limits(
    theta: Float[Tensor, "b h n 3 3"],
    frames: Float[Tensor, "b h 15 3 3"],
    low_rad: Float[Tensor, "15 3"],
    high_rad: Float[Tensor, "15 3"],
    valid: Bool[Tensor, "b h"],
) -> Float[Tensor, " b"]:
    """Return the mean squared excess over the limits of 15 x (bend, splay, twist), radians^2.

    ``max(low - a, 0)^2 + max(a - high, 0)^2``. ``valid`` marks the hands that are present; no label
    is needed.

    Args:
        theta: Rotations of MANO's joints relative to their parents; the wrist's first, unused.
        frames: ``A_mano_from_anatomy`` of each joint, rotations: the axes of twist, splay and bend
            in MANO's rest frame as columns; see ``model.mano.anatomy``.
        low_rad: Smallest bend, splay and twist of each joint.
        high_rad: Largest bend, splay and twist of each joint.
        valid: Hands that are present.
    """
    eye = torch.eye(3, dtype=theta.dtype, device=theta.device)
    mask = valid[..., None, None, None]
    R, A = theta[:, :, 1:].where(mask, eye), frames.where(mask, eye)
    angles = bend_splay_twist(matmul_small(matmul_small(A.mT, R), A))
    excess = (low_rad - angles).clamp_min(0).square() + (angles - high_rad).clamp_min(0).square()
    return mean_valid(excess, valid[..., None, None].expand_as(excess))


def bend_splay_twist(R: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """Return the Euler angles (c, b, a) of ``R = Rz(c) Ry(b) Rx(a)``; b in [-pi/2, pi/2], radians.

    At b = +-pi/2 (gimbal lock) the other two are 0 without a gradient.
    """
    cosine = length(R[..., :2, 0])
    splay = torch.atan2(-R[..., _Z, _X], cosine)
    apart = cosine > _MIN_COSINE

    def angle(sine: Tensor, cosine: Tensor) -> Tensor:
        return torch.atan2(sine.where(apart, 0.0), cosine.where(apart, 1.0))

    bend, twist = angle(R[..., _Y, _X], R[..., _X, _X]), angle(R[..., _Z, _Y], R[..., _Z, _Z])
    return torch.stack((bend, splay, twist), -1)
