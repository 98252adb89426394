"""Objects of two parts: the second turns about the first.

ARCTIC's rule: a point p of the moving part is at ``turn(angle) p`` in the object's frame, a
rotation by the angle about -z through the origin; ``[R | t]`` then moves both parts alike.

``model.geometry.articulation`` says the same in torch, for batches and with gradients. No process
of a build loads torch: it takes seconds to start and half a gigabyte of memory in every worker.
"""

from typing import Final

import numpy as np
from jaxtyping import Float, Float64, Int8

FIXED_PART: Final = 0
MOVING_PART: Final = 1


def turn(arti_rad: Float[np.ndarray, " m"]) -> Float64[np.ndarray, "m 3 3"]:
    """Return the rotations of the moving part; an angle of NaN (a rigid object) turns nothing."""
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
    """Return the points of an object at some angles, object frame."""
    points = np.asarray(points, np.float64)
    turned = np.einsum("mij,pj->mpi", turn(arti_rad), points)
    return np.where((part == MOVING_PART)[:, None], turned, points)
