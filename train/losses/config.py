"""Weights of the loss terms."""

from dataclasses import asdict, dataclass


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """Weight of each term; 0 switches it off."""

    joints_abs: float = 1.0
    """Joints in the camera frame, L1, metres."""
    joints_rel: float = 10.0
    """Joints relative to the wrist, L1, metres."""
    joints_2d: float = 1.0
    """Reprojected joints, L1, fraction of the input side."""
    theta: float = 0.1
    """MANO pose, squared chordal distance."""
    beta: float = 0.005
    """MANO shape, squared difference."""
    vertices: float = 10.0
    """Vertices relative to the wrist, L1, metres."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name, weight in asdict(self).items():
            if not 0.0 <= weight < float("inf"):
                raise ValueError(f"loss.{name} must be finite and not negative, got {weight}")
