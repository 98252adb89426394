"""Loss terms on objects: position, rotation up to symmetry, class, model points (ADD, ADD-S).

Poses map the object's frame to the camera: ``p_cam = R_cam_from_obj @ p + t``, metres.

Shape legend: b = samples, o = objects, s = symmetries, n = points of a model, c = classes.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from model.geometry.rotation import matmul_small, rotate
from train.losses.config import Distance
from train.losses.terms.reduce import distance, length, mean_valid, select


def object_position(
    pred_t: Float[Tensor, "b o 3"],
    target_t: Float[Tensor, "b o 3"],
    valid: Bool[Tensor, "b o"],
    kind: Distance = Distance.l1,
    smooth: float = 0.01,
) -> Float[Tensor, " b"]:
    """Return the mean error of the objects' origins, metres.

    For symmetric objects whose origin is off the axis take ``nearest_equivalent`` as the target.
    """
    return mean_valid(
        distance(select(valid, pred_t) - select(valid, target_t), kind, smooth), valid
    )


def object_rotation(
    pred_R: Float[Tensor, "b o 3 3"],
    target_R: Float[Tensor, "b o 3 3"],
    valid: Bool[Tensor, "b o"],
    symmetries: Float[Tensor, "b o s 3 4"],
    symmetry_valid: Bool[Tensor, "b o s"],
) -> Float[Tensor, " b"]:
    """Return the mean of ``min_S |R - G S|_F^2``: squared chordal distance up to symmetry.

    Args:
        pred_R: Predicted ``R_cam_from_obj``.
        target_R: True ``R_cam_from_obj``.
        valid: Objects that have a label.
        symmetries: ``[S | s]``: symmetry transforms of the object in its own frame, including the
            identity.
        symmetry_valid: Symmetries that are not padding; at least one per valid object.
    """
    squared = _to_symmetries(pred_R, target_R, valid, symmetries, symmetry_valid)
    return mean_valid(squared.min(-1).values, valid)


@torch.no_grad()
def nearest_equivalent(
    pred_R: Float[Tensor, "b o 3 3"],
    target_R: Float[Tensor, "b o 3 3"],
    target_t: Float[Tensor, "b o 3"],
    valid: Bool[Tensor, "b o"],
    symmetries: Float[Tensor, "b o s 3 4"],
    symmetry_valid: Bool[Tensor, "b o s"],
) -> tuple[Float[Tensor, "b o 3 3"], Float[Tensor, "b o 3"]]:
    """Return the equivalent of the true pose that is nearest in rotation: ``G S, G s + t``.

    Arguments as in ``object_rotation``; the identity at 0 for objects that are not valid.
    """
    squared = _to_symmetries(pred_R, target_R, valid, symmetries, symmetry_valid)
    best = squared.argmin(-1)[..., None, None, None].expand(*valid.shape, 1, 3, 4)
    S = _or_identity(select(symmetry_valid, symmetries), symmetry_valid).gather(-3, best)[:, :, 0]
    G = _rotation_or_identity(target_R, valid)
    t = rotate(G, S[..., None, :, 3]).squeeze(-2) + select(valid, target_t)
    return matmul_small(G, S[..., :3]), select(valid, t)


def unit_quaternion(
    quat: Float[Tensor, "b o 4"], valid: Bool[Tensor, "b o"]
) -> Float[Tensor, " b"]:
    """Return the mean of ``(|q|^2 - 1)^2``, which keeps raw quaternions near unit length."""
    return mean_valid((select(valid, quat).square().sum(-1) - 1).square(), valid)


def object_class(
    logits: Float[Tensor, "b o c"], target: Int64[Tensor, "b o"], valid: Bool[Tensor, "b o"]
) -> Float[Tensor, " b"]:
    """Return the mean cross entropy ``-log softmax(logits)[target]``, nats."""
    index = target.where(valid, 0)[..., None]
    logp = torch.log_softmax(select(valid, logits), -1)
    return mean_valid(-logp.gather(-1, index).squeeze(-1), valid)


def add(
    points: Float[Tensor, "b o n 3"],
    pred_R: Float[Tensor, "b o 3 3"],
    pred_t: Float[Tensor, "b o 3"],
    target_R: Float[Tensor, "b o 3 3"],
    target_t: Float[Tensor, "b o 3"],
    valid: Bool[Tensor, "b o"],
) -> Float[Tensor, " b"]:
    """Return the mean distance of the model's points under both poses, metres.

    Source:
        Hinterstoisser et al. 2012 (ADD).
    """
    pred = _posed(points, pred_R, pred_t, valid)
    target = _posed(points, target_R, target_t, valid)
    return mean_valid(length(pred - target), valid[..., None].expand(pred.shape[:-1]))


def add_s(
    points: Float[Tensor, "b o n 3"],
    pred_R: Float[Tensor, "b o 3 3"],
    pred_t: Float[Tensor, "b o 3"],
    target_R: Float[Tensor, "b o 3 3"],
    target_t: Float[Tensor, "b o 3"],
    valid: Bool[Tensor, "b o"],
) -> Float[Tensor, " b"]:
    """Return the mean distance of each true point to the nearest predicted one, metres.

    Allocates b * o * n^2 numbers: a few hundred points are enough for a loss.

    Source:
        Xiang et al. 2018, PoseCNN (ADD-S).
    """
    pred = _posed(points, pred_R, pred_t, valid)
    target = _posed(points, target_R, target_t, valid)
    near = nearest(target, pred)
    return mean_valid(length(near - target), valid[..., None].expand(pred.shape[:-1]))


def nearest(
    queries: Float[Tensor, "*b q 3"], points: Float[Tensor, "*b n 3"]
) -> Float[Tensor, "*b q 3"]:
    """Return the point nearest to each query; the gradient goes to the points."""
    with torch.no_grad():
        apart = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")
        index = apart.argmin(-1)[..., None].expand(*apart.shape[:-1], 3)
    return points.gather(-2, index)


def _posed(points: Tensor, R: Tensor, t: Tensor, valid: Tensor) -> Tensor:
    return rotate(select(valid, R), select(valid, points)) + select(valid, t)[..., None, :]


def _to_symmetries(
    pred_R: Tensor, target_R: Tensor, valid: Tensor, symmetries: Tensor, symmetry_valid: Tensor
) -> Tensor:
    """Squared chordal distance to each equivalent of the target [b, o, s]; infinite if none."""
    S = _or_identity(select(symmetry_valid, symmetries), symmetry_valid)[..., :3]
    equivalent = matmul_small(_rotation_or_identity(target_R, valid)[:, :, None], S)
    squared = (_rotation_or_identity(pred_R, valid)[:, :, None] - equivalent).square().sum((-2, -1))
    return squared.where(symmetry_valid | ~valid[..., None], torch.inf)


def _rotation_or_identity(R: Tensor, valid: Tensor) -> Tensor:
    return R.where(valid[..., None, None], torch.eye(3, dtype=R.dtype, device=R.device))


def _or_identity(symmetries: Tensor, valid: Tensor) -> Tensor:
    eye = torch.eye(3, 4, dtype=symmetries.dtype, device=symmetries.device)
    return symmetries.where(valid[..., None, None], eye)
