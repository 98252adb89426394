"""Loss terms on contact between hand vertices and objects.

Shape legend: b = samples, h = hands, v = vertices, p, q = points.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.losses.terms.objects import nearest
from train.losses.terms.reduce import length, mean_valid, over_trailing, select

TAU_M: Final = 0.005
"""Scale tau of the soft contact target, which is 0.61 at this distance."""
ALPHA: Final = 0.25
"""Weight of contact; no contact weighs 1 - ALPHA. RetinaNet's value."""
FAR_M: Final = 0.0635
"""Largest contact distance in stores (254 steps of 0.25 mm); beyond, only "farther" is known."""


def soft_contact(
    distance_m: Float[Tensor, "b h v"], tau_m: float = TAU_M
) -> Float[Tensor, "b h v"]:
    """Return the soft contact target ``exp(-d^2 / (2 tau^2))`` of a vertex at distance d."""
    return (-(distance_m.square()) / (2 * tau_m**2)).exp()


def contact_focal(
    logits: Float[Tensor, "b h v"],
    target: Float[Tensor, "b h v"],
    valid: Bool[Tensor, "b h"],
    alpha: float = ALPHA,
) -> Float[Tensor, " b"]:
    """Return the mean focal cross entropy of contact, for targets in [0, 1].

    ``a (t - p)^2 [-t log p - (1 - t) log(1 - p)]`` with ``p = sigmoid(logit)`` and
    ``a = alpha t + (1 - alpha)(1 - t)``; for t = 0 or 1 the focal loss with gamma = 2.

    Args:
        logits: Contact logits per vertex.
        target: Hard labels, or from ``soft_contact``.
        valid: Hands whose contact is known.
        alpha: Weight of contact.

    Source:
        Lin et al. 2017, Focal loss for dense object detection; for soft targets Li et al. 2020,
        Generalized focal loss, equation 5.
    """
    x, t = select(valid, logits), select(valid, target)
    entropy = torch.nn.functional.softplus(x) - t * x
    weight = alpha * t + (1 - alpha) * (1 - t)
    focal = weight * (t - x.sigmoid()).square() * entropy
    return mean_valid(focal, valid[..., None].expand_as(focal))


def contact_distance(
    pred_m: Float[Tensor, "b h v"],
    target_m: Float[Tensor, "b h v"],
    valid: Bool[Tensor, "b h"],
    far_m: float = FAR_M,
) -> Float[Tensor, " b"]:
    """Return the mean of ``|d - g|`` where g < far, else of ``max(far - d, 0)``, metres.

    Args:
        pred_m: Predicted distance of each vertex to the object.
        target_m: True distance; from ``far_m`` on only known to be at least that.
        valid: Hands whose contact is known.
        far_m: Largest labelled distance, metres.
    """
    d, g = select(valid, pred_m), select(valid, target_m)
    off = torch.where(g < far_m, (d - g).abs(), (far_m - d).clamp_min(0))
    return mean_valid(off, valid[..., None].expand_as(off))


def contact_points(
    pred: Float[Tensor, "b p 3"], target: Float[Tensor, "b q 3"], valid: Bool[Tensor, "b q"]
) -> Float[Tensor, " b"]:
    """Return the Chamfer distance of predicted and true contact points, metres.

    ``mean_q min_p |p - q| + mean_p min_q |p - q|`` over the valid q; 0 in samples without one.
    """
    any_valid = valid.any(1)
    away = torch.full_like(target, 1e3)  # farther than anything in a picture, so never the nearest
    target = target.where(over_trailing(valid, target), away)
    pred = select(any_valid, pred)
    to_pred = length(nearest(target, pred) - target)
    to_target = length(pred - nearest(pred, target))
    return mean_valid(to_pred, valid) + mean_valid(
        to_target, any_valid[:, None].expand_as(to_target)
    )
