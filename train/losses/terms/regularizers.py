"""Regularisers without labels: batch variance, attention entropy, spectral norm of weights.

Shape legend: b = samples, d = features, n = heads, q = queries, k = keys, l = layers.
"""

import math
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.losses.terms.reduce import mean_valid, select

VARIANCE_EPS: Final = 1e-4
"""Added to a variance under the root, for a finite gradient where all samples are equal."""


def batch_variance(
    features: Float[Tensor, "b d"], valid: Bool[Tensor, " b"], floor: float = 1.0
) -> Float[Tensor, " b"]:
    """Return the mean over features of ``max(0, floor - sqrt(var + 1e-4))``, the same per sample.

    Prevents collapse to constant predictions. The variance is over the valid samples of this batch,
    divided by their number; the only term that depends on the batch.

    Args:
        features: Features of each sample.
        valid: Samples that count.
        floor: Standard deviation above which a feature has no loss.

    Source:
        Bardes et al. 2022, VICReg, equation 1 (there divided by number - 1).
    """
    features = select(valid, features)
    share = valid.to(features.dtype)
    share = share / share.sum().clamp_min(1)
    mean = (share[:, None] * features).sum(0)
    variance = (share[:, None] * (features - mean).square()).sum(0)
    value = (floor - (variance + VARIANCE_EPS).sqrt()).clamp_min(0).mean()
    return value.expand(len(valid)).where(valid.any(), 0.0)


def attention_kl(
    attention: Float[Tensor, "b n q k"], valid: Bool[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Return the mean over heads and queries of ``KL(A || uniform) = log k - H(A)``, nats.

    0 where attention is uniform, log k where it has collapsed onto one key.

    Source:
        Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy Collapse
        (they monitor the entropy; this term bounds it).
    """
    A = attention.where(valid[:, None, None, None], 1 / attention.shape[-1])
    tiny = torch.finfo(A.dtype).tiny
    kl = (A * A.clamp_min(tiny).log()).sum(-1) + math.log(A.shape[-1])
    return mean_valid(kl, valid[:, None, None].expand_as(kl))


def spectral_excess(gamma: Float[Tensor, " l"], limit: float) -> Float[Tensor, ""]:
    """Return the mean over layers of ``max(|gamma| - limit, 0)^2``.

    ``gamma`` is the scale of sigma-reparametrised layers, ``W' = (gamma / sigma(W)) W``: the
    largest singular value of the effective weight. A scalar, not per sample.

    Source:
        Zhai et al. 2023, as above, equation 1.
    """
    return (gamma.abs() - limit).clamp_min(0).square().mean()
