"""Loss terms, their weights and how they are computed. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Final

from model.fields import check_fields

NUM_JOINTS: Final = 21


class Impl(Enum):
    """Implementation of the losses; all give the same numbers."""

    auto = "auto"
    """Triton on a GPU, else eager."""
    eager = "eager"
    triton = "triton"


class Distance(Enum):
    """Norm of the difference of two points, metres."""

    l1 = "l1"
    """L1: sum of the absolute values over the axes."""
    l2 = "l2"
    """L2: Euclidean length."""
    smooth_l1 = "smooth_l1"
    """Huber: sum over the axes of x^2 / (2 d) below d, of |x| - d / 2 above it."""


class Preset(Enum):
    """Default weights; a weight that is set explicitly overrides the preset's."""

    handloom = "handloom"
    mano_simple = "mano_simple"
    """MANO pose, shape and a regulariser: parameters only."""
    mano_full = "mano_full"
    """MANO parameters, joints and vertices."""
    hamer = "hamer"
    """HaMeR's weights, converted from sums to means over joints and samples."""


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """Weight of each loss term; null takes the preset's weight, 0 switches the term off."""

    preset: Preset = Preset.handloom
    """Default weights of all terms; override single ones with loss.TERM=WEIGHT."""
    impl: Impl = Impl.auto
    """Implementation; change it only to debug or to compare: all give the same numbers."""
    uncertainty: bool = False
    """Learn a factor of every weight during training (Kendall et al. 2018); computed eagerly."""
    joints_abs: float | None = None
    """Joint positions in the camera frame, metres."""
    joints_rel: float | None = None
    """Joint positions relative to the wrist, metres."""
    joints_2d: float | None = None
    """Reprojected joints, L1, fraction of the input side."""
    bone_length: float | None = None
    """Lengths of the 20 bones, metres."""
    bone_direction: float | None = None
    """Directions of the 20 bones, 1 - cosine."""
    joints_pa: float | None = None
    """Joints after Procrustes alignment (similarity), root mean square, metres."""
    vertices: float | None = None
    """Vertices relative to the wrist, L1, metres."""
    theta: float | None = None
    """MANO pose, squared chordal distance."""
    theta_geodesic: float | None = None
    """MANO pose, geodesic angle, radians."""
    beta: float | None = None
    """MANO shape, squared difference."""
    beta_prior: float | None = None
    """Square of the predicted MANO shape: a prior towards the mean hand."""
    orthogonality: float | None = None
    """Deviation of a predicted 6D rotation from two orthonormal columns, squared."""
    joint_limits: float | None = None
    """Finger bend, splay or twist beyond anatomical limits, squared radians; computed eagerly."""
    object_position: float | None = None
    """Origin of the object that the hands act on, camera frame, metres."""
    object_points: float | None = None
    """Object surface points relative to its origin, metres; symmetries are ignored."""
    object_2d: float | None = None
    """Reprojected object surface points, L1, fraction of the input side."""
    object_arti: float | None = None
    """Articulation angle of the object, radians."""
    hand_object: float | None = None
    """Relative positions of right wrist, left wrist and object, metres."""
    velocity: float | None = None
    """In windows: velocity of joints and object points, metres per frame."""
    acceleration: float | None = None
    """In windows: acceleration of joints and object points, metres per frame^2."""
    extra: dict[str, float] = field(default_factory=dict)
    """Weights of terms specific to the model family, by name; defaults are in
    train/losses/families."""
    distance: Distance = Distance.l1
    """Norm of 3D point errors: l2 does not depend on the axes, smooth_l1 damps small errors."""
    smooth_m: float = 0.01
    """Error at which distance=smooth_l1 changes from quadratic to linear, metres."""
    joint_weights: list[float] = field(default_factory=list)
    """Weight of each of the 21 joints in joints_abs, joints_rel and joints_2d; empty = equal."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "loss")
        for name, weight in (*((t, getattr(self, t)) for t in TERMS), *self.extra.items()):
            if weight is not None and weight < 0:
                raise ValueError(f"loss.{name} must be finite and not negative, got {weight}")
        if self.uncertainty and self.impl is Impl.triton:
            raise ValueError(
                "loss.uncertainty=true needs each term's own gradient, which loss.impl=triton does "
                "not give; use loss.impl=eager or auto"
            )
        if self.smooth_m <= 0:
            raise ValueError(f"loss.smooth_m must be positive, got {self.smooth_m}")
        if len(self.joint_weights) not in (0, NUM_JOINTS):
            raise ValueError(
                f"loss.joint_weights must have {NUM_JOINTS} numbers, the wrist's first, or none; "
                f"got {len(self.joint_weights)}"
            )
        if min(self.joint_weights, default=0) < 0:
            raise ValueError("loss.joint_weights must be finite and not negative")


TERMS: Final = tuple(f.name for f in fields(LossConfig) if f.type == float | None)
"""Terms with a weight in LossConfig, in its order."""

FRAMES_OF: Final = {"velocity": 2, "acceleration": 3}
"""Minimum frames per window for a term."""

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
"""Weights by term; terms that a preset omits are off. All but HaMeR's are our own choice."""

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
"""Weights of an egocentric video model's terms: HaMeR's where available, else our own."""


def weights_of(config: LossConfig, own: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the weight of every active term, by name: ``TERMS`` first, then ``own``.

    ``own``: default weights of the terms that only the model family has; None: ``loss.extra`` has
    all of them, as in a ``Stage``.

    Raises:
        ValueError: If ``loss.extra`` has a term that the family does not have.
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
