"""Loss terms on physical plausibility: penetration, attraction, grasp stability.

Shape legend: b = samples, p = points, a = contact anchors, k = edges of a friction cone, m =
objects, d = cells along a side of a grid.
"""

import math
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from train.losses.terms.reduce import length, mean_valid, select

TAU_M: Final = 0.005
"""Distance scale at which attraction saturates."""
FRICTION: Final = 0.8
"""Friction coefficient of skin on objects; a common choice in grasp simulation."""


def signed_distance(
    points: Float[Tensor, "b p 3"],
    grids: Float[Tensor, "m d d d"],
    boxes: Float[Tensor, "m 2 3"],
    row: Int64[Tensor, " b"],
) -> Float[Tensor, "b p"]:
    """Return the signed distance of points to an object, metres, negative inside.

    Trilinear between the cells' centres. Outside the grid, the value at the nearest point of the
    box plus the distance to that point.

    Args:
        points: In the object's frame, metres.
        grids: Signed distances at cell centres, indexed (x, y, z); float16 is fine.
        boxes: Centres of the first and last cell.
        row: Object index of each sample.
    """
    side = grids.shape[-1]
    low, high = boxes[row].to(points.dtype)[:, :, None].unbind(1)  # [b, 1, 3] each
    inside = points.clamp(min=low, max=high)
    place = (inside - low) / (high - low) * (side - 1)
    corner = place.detach().floor().clamp(0, side - 2)
    share = place - corner  # [b, p, 3]
    cell = corner.nan_to_num().long()  # NaN is not an index; the weights propagate it
    flat, start = grids.flatten(), row[:, None] * side**3
    value = torch.zeros_like(points[..., 0])
    for i in (0, 1):
        for j in (0, 1):
            for k in (0, 1):
                x, y, z = ((cell[..., c] + o) for c, o in enumerate((i, j, k)))
                corner_value = flat[start + (x * side + y) * side + z].to(points.dtype)
                weights = ((share if o else 1 - share)[..., c] for c, o in enumerate((i, j, k)))
                value = value + corner_value * math.prod(weights)
    return value + length(points - inside)


def sdf_penetration(
    points: Float[Tensor, "b p 3"],
    grids: Float[Tensor, "m d d d"],
    boxes: Float[Tensor, "m 2 3"],
    row: Int64[Tensor, " b"],
    valid: Bool[Tensor, "b p"],
) -> Float[Tensor, " b"]:
    """Return the mean penetration depth ``max(-sdf, 0)`` of hand points, metres.

    Arguments as in ``signed_distance``; ``valid``: points to test, in samples with an object.
    """
    sdf = signed_distance(select(valid, points), grids, boxes, _row(row, valid))
    return mean_valid((-sdf).clamp_min(0), valid)


def sdf_attraction(
    points: Float[Tensor, "b p 3"],
    grids: Float[Tensor, "m d d d"],
    boxes: Float[Tensor, "m 2 3"],
    row: Int64[Tensor, " b"],
    touches: Bool[Tensor, "b p"],
    tau_m: float = TAU_M,
) -> Float[Tensor, " b"]:
    """Return the mean of ``tanh(max(sdf, 0) / tau)`` over points that should touch, no unit.

    Arguments as in ``signed_distance``; ``touches``: points in contact by the labels.

    Source:
        Hasson et al. 2019, Learning joint reconstruction of hands and manipulated objects
        (attraction).
    """
    sdf = signed_distance(select(touches, points), grids, boxes, _row(row, touches))
    return mean_valid((sdf.clamp_min(0) / tau_m).tanh(), touches)


def friction_cone_forces(
    weights: Float[Tensor, "b a k"],
    normals: Float[Tensor, "b a 3"],
    strength: Float[Tensor, " b"],
    friction: float = FRICTION,
) -> Float[Tensor, "b a 3"]:
    """Return the force at each anchor, newtons: ``F = strength sum_i w_i v_i``.

    ``v_i = mu (cos f_i x + sin f_i y) + z``, f_i = 2 pi i / k: the edges of the cone around the
    normal z, with x and y perpendicular to it. Non-negative weights keep the force in the cone.

    Args:
        weights: Weights of the k edges, not negative.
        normals: Unit normals at the anchors, into the object.
        strength: Newtons.
        friction: The coefficient mu.

    Source:
        The Coulomb cone, linearised; as in VPHO's grasp stability.
    """
    z = normals
    # The axis least aligned with the normal gives a tangent that is never short.
    helper = torch.nn.functional.one_hot(z.abs().argmin(-1), 3).to(z.dtype)
    x = torch.linalg.cross(helper, z)
    x = x / length(x)[..., None]
    y = torch.linalg.cross(z, x)
    k = weights.shape[-1]
    angle = torch.arange(k, dtype=z.dtype, device=z.device) * (2 * math.pi / k)
    across = angle.cos()[:, None] * x[..., None, :] + angle.sin()[:, None] * y[..., None, :]
    edges = friction * across + z[..., None, :]  # [b, a, k, 3]
    force: Tensor = strength[:, None, None] * (weights[..., None] * edges).sum(-2)
    return force


def grasp_stability(
    forces: Float[Tensor, "b a 3"],
    anchors: Float[Tensor, "b a 3"],
    gap_m: Float[Tensor, "b a"],
    centre: Float[Tensor, "b 3"],
    weight: Float[Tensor, "b 3"],
    size_m: Float[Tensor, " b"],
    valid: Bool[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Return how far contact forces are from static equilibrium of the object, no unit.

    ``|sum F + W|^2 / |W|^2 + |sum (a - c) x F|^2 / (|W| l)^2 + sum |F| gap / (|W| l)``: net force,
    net torque, and forces where nothing touches. Forces have no labels; this is their only
    supervision.

    Args:
        forces: Forces at the anchors, newtons; for example from ``friction_cone_forces``.
        anchors: Positions of the anchors, metres.
        gap_m: Distance of each anchor to the object's surface, metres, not negative.
        centre: Centre of mass of the object, metres, same frame.
        weight: Gravity on the object, newtons, same frame; not zero.
        size_m: Size l of the object, metres, positive.
        valid: Samples in which the hand alone holds the object.

    Source:
        VPHO's stability terms; here divided by weight and size, hence dimensionless.
    """
    forces, anchors, gap_m = select(valid, forces), select(valid, anchors), select(valid, gap_m)
    weight = weight.where(valid[:, None], torch.ones_like(weight))
    size_m, centre = select(valid, size_m, 1.0), select(valid, centre)
    newtons = length(weight)
    force = forces.sum(1) + weight
    torque = torch.linalg.cross(anchors - centre[:, None], forces).sum(1)
    slip = (length(forces) * gap_m).sum(1)
    value = force.square().sum(-1) / newtons.square()
    value = (
        value + torque.square().sum(-1) / (newtons * size_m).square() + slip / (newtons * size_m)
    )
    stable: Tensor = value.where(valid, 0.0)
    return stable


def _row(row: Tensor, valid: Tensor) -> Tensor:
    """Return the object index of samples with a valid point, else 0: -1 is not an index."""
    return row.where(valid.any(1), 0)
