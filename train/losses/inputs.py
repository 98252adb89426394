"""Inputs and outputs of the fused groups of loss terms.

Shape legend: b = samples, h = hands, t = terms. Points are in the camera frame of the input pixels,
metres; values where a mask is False are arbitrary.
"""

from dataclasses import dataclass
from typing import Final

from jaxtyping import Bool, Float
from torch import Tensor

from train.losses.config import Distance

JOINT_TERMS: Final = (
    "joints_abs", "joints_rel", "joints_2d", "bone_length", "bone_direction", "joints_pa",
)  # fmt: skip
MESH_TERMS: Final = ("vertices", "contact")
ROTATION_TERMS: Final = ("theta", "theta_geodesic", "beta", "beta_prior", "orthogonality")
"""Terms of each group; the kernels take their output rows in this order."""
LIMIT_TERMS: Final = ("joint_limits",)
OBJECT_TERMS: Final = (
    "object_position", "object_points", "object_2d", "object_arti", "hand_object",
)  # fmt: skip
MOTION_TERMS: Final = ("velocity", "acceleration")
EAGER_TERMS: Final = (*LIMIT_TERMS, *OBJECT_TERMS, *MOTION_TERMS)
"""Terms without a kernel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointInputs:
    """Predicted and true joints, and the norm of their differences."""

    pred: Float[Tensor, "b h 21 3"]
    target: Float[Tensor, "b h 21 3"]
    valid: Bool[Tensor, "b h 21"]
    K: Float[Tensor, "b 3 3"]
    """Intrinsics of the input pixels."""
    input_px: int
    """Side of the input, pixels."""
    weight: Float[Tensor, "21"] | None = None
    """Weight of each joint in joints_abs, joints_rel and joints_2d; None: equal."""
    kind: Distance = Distance.l1
    """Norm of joints_abs and joints_rel."""
    smooth: float = 0.01
    """Threshold of ``Distance.smooth_l1``, metres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshInputs:
    """Meshes, each with the joints of its hand; the first joint is the root."""

    pred: Float[Tensor, "b h 778 3"]
    target: Float[Tensor, "b h 778 3"]
    pred_joints: Float[Tensor, "b h 21 3"]
    target_joints: Float[Tensor, "b h 21 3"]
    valid: Bool[Tensor, "b h"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContactInputs:
    """Predicted and true contact of each vertex."""

    logits: Float[Tensor, "b h 778"]
    target: Float[Tensor, "b h 778"]
    """In [0, 1]."""
    valid: Bool[Tensor, "b h"]
    alpha: float = 0.25
    """Weight of contact; no contact weighs 1 - alpha."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RotationInputs:
    """Predicted and true MANO parameters."""

    pred: Float[Tensor, "b h 16 3 3"]
    target: Float[Tensor, "b h 16 3 3"]
    valid: Bool[Tensor, "b h"]
    """Hands with a pose label."""
    pred_beta: Float[Tensor, "b h 10"]
    target_beta: Float[Tensor, "b h 10"]
    has_beta: Bool[Tensor, "b h"]
    rot6d: Float[Tensor, "b h 16 6"]
    """Predicted rotations before Gram-Schmidt."""
    present: Bool[Tensor, "b h"]
    """Hands that are present, for the terms without labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupLoss:
    """Values of a group of terms."""

    total: Float[Tensor, ""]
    """``sum_t lam_t mean_b values[t, b]``; the only part with a gradient."""
    values: Float[Tensor, "t b"]
    """Every term of every sample, unweighted, detached."""
    seen: Bool[Tensor, "t b"]
    """Whether the sample had a valid item for the term."""
