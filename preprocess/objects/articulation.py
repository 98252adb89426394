"""Forward kinematics of articulated two-part objects with one hinge (ARCTIC).

ARCTIC's convention: a point p of the moving part is at ``turn(angle) p`` in the object frame, a
rotation by the angle about -z through the origin; ``[R | t]`` then applies to both parts.

``model.geometry.articulation`` is the torch counterpart, batched and differentiable. No build
process imports torch: it would cost every worker seconds at start-up and half a gigabyte of memory.
"""

from typing import Final

import numpy as np
from jaxtyping import Float, Float64, Int8

FIXED_PART: Final = 0
MOVING_PART: Final = 1


def turn(arti_rad: Float[np.ndarray, " m"]) -> Float64[np.ndarray, "m 3 3"]:
    """Return the rotation of the moving part per angle; NaN (a rigid object) gives the identity."""
    angle = np.nan_to_num(np.asarray(arti_rad, np.float64))
    out = np.zeros((len(angle), 3, 3))
    out[:, 0, 0] = out[:, 1, 1] = np.cos(angle)
    out[:, 0, 1], out[:, 1, 0] = np.sin(angle), -np.sin(angle)
    out[:, 2, 2] = 1.0
    return out


def articulated(
    points: Float[np.ndarray, "p 3"],
    part: Int8[np.ndarray, " p"],
    arti_rad: Float[np.ndarray, " m"],
) -> Float64[np.ndarray, "m p 3"]:
    """Return an object's points at each articulation angle, object frame."""
    points = np.asarray(points, np.float64)
    turned = np.einsum("mij,pj->mpi", turn(arti_rad), points)
    return np.where((part == MOVING_PART)[:, None], turned, points)
