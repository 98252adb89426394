"""Alignment of point sets: Procrustes with scale.

Shape legend: ``*b`` = any leading dimensions (``*#b``: they broadcast), n = points.
The result maps the source onto the target: ``target ~ scale * R @ source + t``.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.geometry.rotation import rotate


def procrustes(
    source: Float[Tensor, "*b n 3"],
    target: Float[Tensor, "*b n 3"],
    *,
    reflection: bool,
    valid: Bool[Tensor, "*b n"] | None = None,
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3"]]:
    """Return the scale, orthogonal matrix and translation that minimise the squared distance.

    Works in the dtype of the inputs; use float64 for metrics. Where the points are rank-deficient
    the matrix is one of several optima; where all source points coincide the scale is 0.

    Args:
        source: Points to align.
        target: Points to align them to, same unit.
        reflection: True allows determinant -1 (FreiHAND's rule), False forces a rotation.
        valid: Points to use; the others may be NaN. None means all.

    Returns:
        ``scale``, ``R`` and ``t`` of ``scale * R @ source + t``.

    Source:
        Umeyama 1991, Least-squares estimation of transformation parameters, equations 39-43.
    """
    if valid is None:
        valid = torch.ones_like(source[..., 0], dtype=torch.bool)
    mask = valid[..., None]
    count = mask.sum(-2).clamp(min=1)
    source_mean = torch.where(mask, source, 0.0).sum(-2) / count
    target_mean = torch.where(mask, target, 0.0).sum(-2) / count
    source_rel = torch.where(mask, source - source_mean[..., None, :], 0.0)
    target_rel = torch.where(mask, target - target_mean[..., None, :], 0.0)

    U, S, Vh = torch.linalg.svd(target_rel.mT @ source_rel)
    if not reflection:
        sign = torch.linalg.det(U @ Vh).sign()
        last = torch.stack((torch.ones_like(sign), torch.ones_like(sign), sign), -1)
        U, S = U * last[..., None, :], S * last
    R = U @ Vh
    spread = source_rel.square().sum((-2, -1))
    scale = torch.where(spread > 0, S.sum(-1) / torch.where(spread > 0, spread, 1.0), 0.0)
    t = target_mean - scale[..., None] * rotate(R, source_mean[..., None, :]).squeeze(-2)
    return scale, R, t


def apply_similarity(
    scale: Float[Tensor, "*#b"],
    R: Float[Tensor, "*#b 3 3"],
    t: Float[Tensor, "*#b 3"],
    points: Float[Tensor, "*#b n 3"],
) -> Float[Tensor, "*#b n 3"]:
    """Return ``scale * R @ p + t`` for every point."""
    return scale[..., None, None] * rotate(R, points) + t[..., None, :]
