"""Alignments of a prediction to the ground truth, as the official tools compute them.

Each works in float64, per sample, in any unit. Shape legend: b = samples, k = corresponding points
(joints or vertices), n = points of a mesh.
"""

from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from model.geometry.align import apply_similarity, procrustes
from model.geometry.rotation import rotate
from train.evaluate.metrics.errors import distance

EPSILON: Final = 1e-8
"""Added to both norms by ``align_w_scale``; part of the official scores: some 1e-6 mm on a hand
in metres."""
RANK_TOLERANCE: Final = 1e-9
MIDDLE_MCP_MANO: Final = 4
"""Middle finger's base in MANO's joint order; ``model.hand.MIDDLE_MCP`` is the standard order's."""


class _Fit(NamedTuple):
    """``aligned = (points - pred_mean) R^T * scale + target_mean`` once divided by pred_norm."""

    R: Tensor
    singular_values: Tensor
    target_mean: Tensor
    target_norm: Tensor
    pred_mean: Tensor
    pred_norm: Tensor


def align_w_scale(
    pred: Float[Tensor, "b k 3"], target: Float[Tensor, "b k 3"]
) -> Float64[Tensor, "b k 3"]:
    """Return ``pred`` aligned to ``target`` by FreiHAND's ``align_w_scale``.

    Translation, scale and the best orthogonal matrix: a reflection is allowed, so a mirrored hand
    has no error. Coincident predicted points map to the mean of the target.

    Source:
        FreiHAND's published evaluation (eval.py, align_w_scale), from its formula: both sets are
        centred and divided by their Frobenius norm + 1e-8, ``U w V^T = svd(target^T pred)``,
        ``R = U V^T``, ``s = sum(w)``.
    """
    fit = _fit(pred, target)
    unit = (pred.double() - fit.pred_mean) / fit.pred_norm
    scale = fit.singular_values.sum(-1)[:, None, None] * fit.target_norm
    return rotate(fit.R, unit) * scale + fit.target_mean


def align_proper(
    pred: Float[Tensor, "b k 3"], target: Float[Tensor, "b k 3"]
) -> Float64[Tensor, "b k 3"]:
    """Return ``pred`` aligned to ``target`` by the best similarity with a proper rotation."""
    pred = pred.double()
    return apply_similarity(*procrustes(pred, target.double(), reflection=False), pred)


def align_by_joints(
    mesh: Float[Tensor, "b n 3"],
    pred_joints: Float[Tensor, "b k 3"],
    target_joints: Float[Tensor, "b k 3"],
    *,
    strict: bool = False,
) -> Float64[Tensor, "b n 3"]:
    """Return a mesh of any vertex count, aligned by the transform of its joints.

    Quirk: FreiHAND's tool omits the division by the predicted joints' norm, so the size is wrong,
    rotates the mesh about its own mean and shifts it by the difference of the joints' means:
    ``(mesh - m) R^T * s * s1 + (t1 - t2) + m``. For coplanar joints the side of the mesh is
    ambiguous, there and here.

    Args:
        mesh: Predicted mesh.
        pred_joints: Predicted joints, same unit and frame.
        target_joints: True joints.
        strict: Apply the joints' similarity, with a proper rotation, to the mesh instead.
    """
    mesh = mesh.double()
    if strict:
        return apply_similarity(
            *procrustes(pred_joints.double(), target_joints.double(), reflection=False), mesh
        )
    fit = _fit(pred_joints, target_joints)
    mean = mesh.mean(1, keepdim=True)
    scale = fit.singular_values.sum(-1)[:, None, None] * fit.target_norm
    return rotate(fit.R, mesh - mean) * scale + (fit.target_mean - fit.pred_mean) + mean


def align_scale_translation(
    pred: Float[Tensor, "b k 3"], target: Float[Tensor, "b k 3"]
) -> Float64[Tensor, "b k 3"]:
    """Return ``pred`` with the target's wrist and palm length, HO-3D's second alignment.

    The palm runs from joint 0 (wrist) to joint 4 (middle MCP in MANO's order). Quirk: where the
    predicted palm has zero length the prediction is still multiplied by the target's length.
    """
    pred, target = pred.double(), target.double()
    length, target_length = palm_length(pred), palm_length(target)
    unit = torch.where(length > 0, length, 1.0)[:, None, None]
    scaled: Tensor = pred / unit * target_length[:, None, None]
    return scaled - scaled[:, :1] + target[:, :1]


def palm_length(joints: Float[Tensor, "b k 3"]) -> Float64[Tensor, " b"]:
    """Return the distance from the wrist to the middle MCP of joints in MANO's order."""
    return distance(joints[:, MIDDLE_MCP_MANO], joints[:, 0])


def is_reflected(
    pred: Float[Tensor, "b k 3"], target: Float[Tensor, "b k 3"]
) -> Bool[Tensor, " b"]:
    """Return the samples that ``align_w_scale`` mirrors.

    Their score with a proper rotation differs. A coplanar or coincident set counts as not
    reflected: its third singular value is below 1e-9 of the first, both matrices are optimal, and
    the errors are equal.
    """
    fit = _fit(pred, target)
    values = fit.singular_values
    determinant: Tensor = torch.linalg.det(fit.R)
    return (determinant < 0) & (values[:, 2] > RANK_TOLERANCE * values[:, 0])


def _fit(pred: Tensor, target: Tensor) -> _Fit:
    pred, target = pred.double(), target.double()
    target_mean, pred_mean = target.mean(1, keepdim=True), pred.mean(1, keepdim=True)
    centred, pred_centred = target - target_mean, pred - pred_mean
    target_norm = torch.linalg.matrix_norm(centred, keepdim=True) + EPSILON
    pred_norm = torch.linalg.matrix_norm(pred_centred, keepdim=True) + EPSILON
    U, S, Vh = torch.linalg.svd((centred / target_norm).mT @ (pred_centred / pred_norm))
    return _Fit(U @ Vh, S, target_mean, target_norm, pred_mean, pred_norm)
