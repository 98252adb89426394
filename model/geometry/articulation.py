"""Articulated objects of two parts: the second rotates relative to the first.

ARCTIC's rule: a point p of the moving part is at ``turn(angle) p`` in the object's frame, a
rotation by the angle about -z through the origin; ``[R | t]`` then moves both parts.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.geometry.rotation import rotate


def turn(arti_rad: Float[Tensor, "*b"]) -> Float[Tensor, "*b 3 3"]:
    """Return the rotation of the moving part; the identity for an angle of NaN (rigid object)."""
    angle = arti_rad.nan_to_num(0.0)
    cos, sin = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = ((cos, sin, zero), (-sin, cos, zero), (zero, zero, one))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def articulated(
    points: Float[Tensor, "*b p 3"],
    moving: Bool[Tensor, "*b p"],
    arti_rad: Float[Tensor, "*b"],
) -> Float[Tensor, "*b p 3"]:
    """Return the points of an object at an articulation angle, object frame, metres.

    Args:
        points: At angle 0.
        moving: Whether a point belongs to the moving part.
        arti_rad: The articulation angle; NaN = 0.
    """
    return torch.where(moving[..., None], rotate(turn(arti_rad), points), points)
