"""Mean pose of a training set: a network's initial prediction and the baseline to beat.

Shape legend: h = hands of a sample (one-hand crops: 1; else slot 0 right, slot 1 left).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanPose:
    """Means over the training set, in the unaugmented input frame (left hands mirrored)."""

    joints_rel: Float[Tensor, "h 21 3"]
    """Metres, relative to the wrist."""
    vertices_rel: Float[Tensor, "h 778 3"] | None
    """Metres, relative to the wrist of the regressed joints; None without MANO."""
    theta_rot6d: Float[Tensor, "h 96"] | None
    """Mean of the 6D rotations, not orthonormal; where no label has any, MANO's mean pose rotated
    to the mean joints. None without MANO."""
    beta: Float[Tensor, "h 10"] | None
    place: Float[Tensor, "h 3"]
    """Crop-relative position of the wrist, ``model.geometry.camera.place_in_crop``."""
    object_state: Float[Tensor, " 10"] | None
    """Object that the hands act on: 6D rotation, angle, position; None if not predicted."""
    num_hands: int
