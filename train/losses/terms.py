"""Loss terms: eager, unreduced over the batch, masked by selection before any maths.

Every term returns one value per sample [b]: the mean over its valid items, exactly 0 (with zero
gradient) where nothing is valid. A NaN label under a mask therefore costs neither value nor
gradient. Points are in the camera frame of the input pixels, metres.

Shape legend: b = batch, h = hands, j = points.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.hand import ROOT

Z_MIN_M: Final = 0.05
"""Nearer points (and those behind the camera) project as if here; depth then has no gradient."""


def joints_abs(
    pred: Float[Tensor, "b h j 3"], target: Float[Tensor, "b h j 3"], valid: Bool[Tensor, "b h j"]
) -> Float[Tensor, " b"]:
    """Return the mean L1 distance (summed over axes) of points, metres."""
    return _mean_l1(pred, target, valid)


def joints_rel(
    pred: Float[Tensor, "b h j 3"], target: Float[Tensor, "b h j 3"], valid: Bool[Tensor, "b h j"]
) -> Float[Tensor, " b"]:
    """Return the mean L1 distance after moving both roots to the origin, metres.

    A hand whose root is not valid has no root-relative points.
    """
    valid = valid & valid[:, :, ROOT : ROOT + 1]
    root = ROOT
    return _mean_l1(
        pred - pred[:, :, root : root + 1], target - target[:, :, root : root + 1], valid
    )


def joints_2d(
    pred: Float[Tensor, "b h j 3"],
    target: Float[Tensor, "b h j 3"],
    valid: Bool[Tensor, "b h j"],
    K: Float[Tensor, "b 3 3"],
    input_px: int,
) -> Float[Tensor, " b"]:
    """Return the mean L1 reprojection distance as a fraction of the input side."""
    return _mean_l1(_to_pixels(pred, K) / input_px, _to_pixels(target, K) / input_px, valid)


def theta(
    pred: Float[Tensor, "b h 16 3 3"],
    target: Float[Tensor, "b h 16 3 3"],
    valid: Bool[Tensor, "b h"],
) -> Float[Tensor, " b"]:
    """Return the mean squared chordal distance |R - G|_F^2 = 4 (1 - cos angle) of 16 rotations."""
    mask = valid[..., None, None, None]
    squared = (pred - target).where(mask, 0.0).square().sum((-2, -1))
    return _mean_valid(squared, valid[..., None].expand_as(squared))


def beta(
    pred: Float[Tensor, "b h 10"], target: Float[Tensor, "b h 10"], valid: Bool[Tensor, "b h"]
) -> Float[Tensor, " b"]:
    """Return the mean squared difference of shape parameters."""
    squared = (pred - target).where(valid[..., None], 0.0).square()
    return _mean_valid(squared, valid[..., None].expand_as(squared))


def vertices_rel(
    pred: Float[Tensor, "b h v 3"],
    target: Float[Tensor, "b h v 3"],
    pred_root: Float[Tensor, "b h 3"],
    target_root: Float[Tensor, "b h 3"],
    valid: Bool[Tensor, "b h"],
) -> Float[Tensor, " b"]:
    """Return the mean L1 distance of vertices, each mesh relative to its own root, metres."""
    mask = valid[..., None].expand(pred.shape[:-1])
    return _mean_l1(pred - pred_root[:, :, None], target - target_root[:, :, None], mask)


def _to_pixels(points: Tensor, K: Tensor) -> Tensor:
    z = points[..., 2:].clamp_min(Z_MIN_M)
    homogeneous = torch.cat([points[..., :2] / z, torch.ones_like(z)], dim=-1)
    return torch.einsum("bkc,bhjc->bhjk", K[:, :2], homogeneous)


def _mean_l1(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    distance = (pred - target).where(valid[..., None], 0.0).abs().sum(-1)
    return _mean_valid(distance, valid)


def _mean_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over everything but the batch, counting valid items only; ``values`` are 0 elsewhere."""
    count = valid.flatten(1).sum(1).clamp_min(1)
    return values.flatten(1).sum(1) / count
