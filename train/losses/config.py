"""Which loss terms there are, what they weigh, and how they are computed. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Final

NUM_JOINTS: Final = 21


class Impl(Enum):
    """How the losses are computed; all ways give the same numbers."""

    auto = "auto"
    """By Triton on a GPU, else eager."""
    eager = "eager"
    triton = "triton"


class Distance(Enum):
    """How a difference of points becomes a number, metres."""

    l1 = "l1"
    """Sum of the absolute values over the axes."""
    l2 = "l2"
    """Euclidean length."""
    smooth_l1 = "smooth_l1"
    """Sum over the axes of x^2 / (2 d) below d, of |x| - d / 2 above it."""


class Preset(Enum):
    """Weights to start from; a weight that is given replaces the preset's."""

    handloom = "handloom"
    mano_simple = "mano_simple"
    """Pose, shape and a regulariser: parameters alone."""
    mano_full = "mano_full"
    """The same with joints and vertices."""
    hamer = "hamer"
    """HaMeR's, for means over joints and samples instead of sums."""


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """Weight of each term; null is the preset's, 0 switches it off."""

    preset: Preset = Preset.handloom
    """Weights to start from."""
    impl: Impl = Impl.auto
    """How they are computed."""
    uncertainty: bool = False
    """Learn a factor for every weight while training (Kendall et al. 2018); computed eagerly."""
    joints_abs: float | None = None
    """Joints in the camera frame, metres."""
    joints_rel: float | None = None
    """Joints relative to the wrist, metres."""
    joints_2d: float | None = None
    """Reprojected joints, L1, fraction of the input side."""
    bone_length: float | None = None
    """Lengths of the 20 bones, metres."""
    bone_direction: float | None = None
    """Directions of the 20 bones, 1 - cosine."""
    joints_pa: float | None = None
    """Joints after the best similarity, root mean square, metres."""
    vertices: float | None = None
    """Vertices relative to the wrist, L1, metres."""
    theta: float | None = None
    """MANO pose, squared chordal distance."""
    theta_geodesic: float | None = None
    """MANO pose, angle, radians."""
    beta: float | None = None
    """MANO shape, squared difference."""
    beta_prior: float | None = None
    """Square of the predicted MANO shape."""
    orthogonality: float | None = None
    """How far the six numbers of a predicted rotation are from two orthonormal columns, squared."""
    joint_limits: float | None = None
    """How far fingers bend, splay or twist beyond anatomy, squared radians; computed eagerly."""
    object_position: float | None = None
    """Origin of the object that the hands act on, camera frame, metres."""
    object_points: float | None = None
    """Its surface points relative to its origin, metres; symmetries are not looked at."""
    object_2d: float | None = None
    """Its reprojected surface points, L1, fraction of the input side."""
    object_arti: float | None = None
    """Angle of its moving part, radians."""
    hand_object: float | None = None
    """Vectors between right wrist, left wrist and object, metres."""
    velocity: float | None = None
    """In windows: change of joints and object points from frame to frame, metres."""
    acceleration: float | None = None
    """In windows: change of that change, metres."""
    extra: dict[str, float] = field(default_factory=dict)
    """Weights of terms that only the model family has, by name; its defaults are in
    train/losses/families."""
    distance: Distance = Distance.l1
    """How distances of points in 3D are measured."""
    smooth_m: float = 0.01
    """Where distance=smooth_l1 turns from a parabola into a line, metres."""
    joint_weights: list[float] = field(default_factory=list)
    """Weight of each of the 21 joints in joints_abs, joints_rel and joints_2d; empty = alike."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name, weight in (*((t, getattr(self, t)) for t in TERMS), *self.extra.items()):
            if weight is not None and not 0.0 <= weight < float("inf"):
                raise ValueError(f"loss.{name} must be finite and not negative, got {weight}")
        if self.uncertainty and self.impl is Impl.triton:
            raise ValueError(
                "loss.uncertainty=true needs each term's own gradient, which loss.impl=triton does "
                "not give; use loss.impl=eager or auto"
            )
        if not 0.0 < self.smooth_m < float("inf"):
            raise ValueError(f"loss.smooth_m must be positive, got {self.smooth_m}")
        if len(self.joint_weights) not in (0, NUM_JOINTS):
            raise ValueError(
                f"loss.joint_weights must have {NUM_JOINTS} numbers, the wrist's first, or none; "
                f"got {len(self.joint_weights)}"
            )
        if not all(0.0 <= weight < float("inf") for weight in self.joint_weights):
            raise ValueError("loss.joint_weights must be finite and not negative")


TERMS: Final = tuple(f.name for f in fields(LossConfig) if f.type == float | None)
"""Those that LossConfig weighs, in its order."""

FRAMES_OF: Final = {"velocity": 2, "acceleration": 3}
"""Frames that a window must have for a term."""

PRESETS: Final[dict[Preset, dict[str, float]]] = {
    Preset.handloom: {
        "joints_abs": 1.0,
        "joints_rel": 10.0,
        "joints_2d": 1.0,
        "theta": 0.1,
        "beta": 0.005,
        "vertices": 10.0,
        "object_position": 1.0,
        "object_points": 10.0,
        "object_2d": 1.0,
        "object_arti": 1.0,
        "hand_object": 5.0,
    },
    Preset.mano_simple: {
        "theta": 1.0,
        "beta": 0.05,
        "beta_prior": 0.001,
        "orthogonality": 0.01,
    },
    Preset.mano_full: {
        "theta": 1.0,
        "beta": 0.05,
        "joints_rel": 10.0,
        "vertices": 10.0,
        "beta_prior": 0.001,
        "orthogonality": 0.01,
    },
    # HaMeR sums over a batch of 8 per GPU and over joints, entries of matrices and betas, with
    # weights 0.05, 0.01, 0.001, 0.001, 0.0005. Times 8 for the mean over the batch; times 21, 16
    # (matrices, each a sum of 9 squares) and 10 for the means within a sample.
    Preset.hamer: {
        "joints_rel": 0.05 * 8 * 21,
        "joints_2d": 0.01 * 8 * 21,
        "theta": 0.001 * 8 * 16,
        "beta": 0.0005 * 8 * 10,
    },
}
"""Weights by term; terms that a preset does not name are off. But for HaMeR's, they are our own."""

AMT: Final = {
    "hand_coarse": 1.326,
    "hand_refined": 1.189,
    "object_position": 0.822,
    "object_rotation": 0.463,
    "contact": 0.359,
    "physics": 0.086,
    "diversity": 0.060,
    "reprojection": 0.553,
    "kl": 0.001,
}
"""Weights of the unified hand-object transformer's terms."""

HAWOR: Final = {
    "keypoint": 0.05 * 8 * 21,
    "mano": 0.001 * 8 * 16,
    "temporal": 1.0,
    "camera": 1.0,
    "reprojection": 0.01 * 8 * 21,
}
"""Weights of an egocentric video model's terms: HaMeR's where it has them, else our own."""


def weights_of(config: LossConfig, own: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the weight of every term that is on, by name: of ``TERMS``, then of ``own``.

    ``own``: default weights of the terms that only the model family has; None: ``loss.extra`` has
    all of them, as in a ``Stage``.

    Raises:
        ValueError: If ``loss.extra`` has a term that is not the family's.
    """
    preset = PRESETS[config.preset]
    given = {name: getattr(config, name) for name in TERMS}
    weights = {name: preset.get(name, 0.0) if w is None else w for name, w in given.items()}
    if own is None:
        weights |= config.extra
    else:
        unknown = sorted(config.extra.keys() - own.keys())
        if unknown:
            there = ", ".join(own) or "none"
            raise ValueError(
                f"loss.extra has {unknown[0]!r}, but the model family's own terms are: {there}"
            )
        weights |= {name: config.extra.get(name, weight) for name, weight in own.items()}
    return {name: weight for name, weight in weights.items() if weight > 0}
