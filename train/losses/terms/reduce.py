"""Shared by all terms: masking, means over valid items, lengths with a gradient everywhere."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.losses.config import Distance


def select(valid: Bool[Tensor, "*b"], values: Tensor, fill: float = 0.0) -> Tensor:
    """Return ``values`` with invalid items replaced by ``fill``."""
    return values.where(over_trailing(valid, values), fill)


def over_trailing(valid: Bool[Tensor, "*b"], values: Tensor) -> Tensor:
    """Return ``valid`` with trailing singleton axes, so that it broadcasts over ``values``."""
    return valid[(...,) + (None,) * (values.ndim - valid.ndim)]


def mean_valid(
    values: Float[Tensor, "b ..."],
    valid: Bool[Tensor, "b ..."],
    weight: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, " b"]:
    """Return the mean over the valid items of each sample, 0 where there are none.

    Args:
        values: One per item, finite where valid.
        valid: Of the same shape.
        weight: Not negative, broadcasts over the items; None weighs them equally.
    """
    share = valid.to(values.dtype) if weight is None else select(valid, weight.expand(valid.shape))
    share, values = share.flatten(1), values.where(valid, 0.0).flatten(1)
    total = share.sum(1)
    return (share * values).sum(1) / total.where(total > 0, 1.0)


def length(vectors: Float[Tensor, "*b c"]) -> Float[Tensor, "*b"]:
    """Return Euclidean lengths; the gradient of a zero vector is 0."""
    squared = vectors.square().sum(-1)
    is_zero = squared == 0
    return squared.where(~is_zero, 1.0).sqrt().where(~is_zero, 0.0)


def distance(
    difference: Float[Tensor, "*b c"], kind: Distance, smooth: float
) -> Float[Tensor, "*b"]:
    """Return the norm of differences.

    Args:
        difference: Prediction minus target.
        kind: Which norm.
        smooth: Where ``smooth_l1`` changes from quadratic to linear, in the unit of the points.
    """
    if kind is Distance.l2:
        return length(difference)
    size = difference.abs()
    if kind is Distance.smooth_l1:
        size = torch.where(size < smooth, size.square() / (2 * smooth), size - smooth / 2)
    return size.sum(-1)
