"""Object pose errors: ADD, ADD-S, rotation, translation, and accuracy at 0.1 diameter.

Points are those of the object's model in its own frame, metres; poses map them to the camera:
``p_cam = R_cam_from_obj @ p + t``. A pose is correct where its error is strictly below a tenth of
the object's diameter; ``add_or_s_01d`` uses ADD-S for symmetric objects and ADD for the others.
Float64; there is no official tool to follow, hence no quirk and no ``strict``.

Source:
    Hinterstoisser et al. 2012 (ADD, and its form for symmetric objects); Xiang et al. 2018,
    PoseCNN (ADD-S).

Shape legend: b = samples, n = points of a model, s = symmetry rotations.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from model.geometry.rotation import matmul_small, rotate
from train.evaluate.metrics.errors import distance, require_finite, require_shape
from train.evaluate.metrics.fscore import nearest_distances

DIAMETER_SHARE: Final = 0.1
ROTATION_TOLERANCE: Final = 1e-3
"""Largest entry of ``R R^T - I``; a rotation in float32 has 1e-6."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectScores:
    """Means over the samples, and fractions of samples with a correct pose."""

    num: int
    add_mm: float
    add_s_mm: float
    add_01d: float
    add_s_01d: float
    add_or_s_01d: float
    rotation_deg: float
    translation_mm: float


def add_mm(
    points: Float[Tensor, "b n 3"],
    pred_R: Float[Tensor, "b 3 3"],
    pred_t: Float[Tensor, "b 3"],
    true_R: Float[Tensor, "b 3 3"],
    true_t: Float[Tensor, "b 3"],
) -> Float64[Tensor, " b"]:
    """Return ADD: the mean distance of the model's points under both poses, millimetres.

    Args:
        points: Points of the model, object frame, metres.
        pred_R: Predicted ``R_cam_from_obj``.
        pred_t: Predicted position of the object's origin in the camera frame, metres.
        true_R: True ``R_cam_from_obj``.
        true_t: True position, metres.
    """
    return 1000 * _add_m(_posed(points, pred_R, pred_t), _posed(points, true_R, true_t))


def add_s_mm(
    points: Float[Tensor, "b n 3"],
    pred_R: Float[Tensor, "b 3 3"],
    pred_t: Float[Tensor, "b 3"],
    true_R: Float[Tensor, "b 3 3"],
    true_t: Float[Tensor, "b 3"],
) -> Float64[Tensor, " b"]:
    """Return ADD-S: the mean distance of true points to the nearest predicted one, millimetres.

    Arguments as in ``add_mm``. Chunked: 155 MB at most.
    """
    return 1000 * _add_s_m(_posed(points, pred_R, pred_t), _posed(points, true_R, true_t))


def rotation_error_deg(
    R_pred: Float[Tensor, "b 3 3"],
    R_true: Float[Tensor, "b 3 3"],
    symmetries: Float[Tensor, "#b s 3 3"] | None = None,
) -> Float64[Tensor, " b"]:
    """Return the angle between two rotations, degrees in [0, 180].

    Precise near 0 and near 180 degrees, where the arc cosine of the trace is not.

    Args:
        R_pred: Predicted rotation.
        R_true: True rotation.
        symmetries: Rotations of the object frame that leave the object unchanged, the identity
            included; the smallest angle to ``R_true @ S`` counts. Repeat one to pad a batch of
            objects with different numbers of symmetries. None: the object has no symmetry.
    """
    R_true = R_true.double()[:, None]
    if symmetries is not None:
        R_true = matmul_small(R_true, symmetries.double())
    R = matmul_small(R_pred.double()[:, None].mT, R_true)
    sin_axis = torch.stack(
        (R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]), -1
    )
    trace = R[..., 0, 0] + R[..., 1, 1] + R[..., 2, 2]
    angle_rad = torch.atan2(torch.linalg.vector_norm(sin_axis, dim=-1), trace - 1)
    return angle_rad.amin(-1) * (180 / math.pi)


def translation_error_mm(
    t_pred: Float[Tensor, "b 3"], t_true: Float[Tensor, "b 3"]
) -> Float64[Tensor, " b"]:
    """Return the distance of two positions given in metres, millimetres."""
    return 1000 * distance(t_pred, t_true)


_NAMES: Final = (
    "add_mm",
    "add_s_mm",
    "add_01d",
    "add_s_01d",
    "add_or_s_01d",
    "rotation_deg",
    "translation_mm",
)


@dataclass(kw_only=True, slots=True)
class ObjectAccumulator:
    """Scores of a stream of batches; the same numbers as all samples at once."""

    num: int = 0
    sums: Float64[Tensor, " 7"] | None = None
    """Sums over samples in the order of ``ObjectScores``; None before the first batch."""

    def update(
        self,
        points: Float[Tensor, "b n 3"],
        pred_R: Float[Tensor, "b 3 3"],
        pred_t: Float[Tensor, "b 3"],
        true_R: Float[Tensor, "b 3 3"],
        true_t: Float[Tensor, "b 3"],
        diameter_m: Float[Tensor, " b"],
        symmetric: Bool[Tensor, " b"],
        symmetries: Float[Tensor, "#b s 3 3"] | None = None,
    ) -> None:
        """Add a batch of samples. Waits for the device.

        Args:
            points: Points of the model, object frame, metres. Where models differ in point count,
                resample them to one count or score them in separate batches.
            pred_R: Predicted ``R_cam_from_obj``.
            pred_t: Predicted position, metres.
            true_R: True ``R_cam_from_obj``.
            true_t: True position, metres.
            diameter_m: Largest distance of two points of the model, metres.
            symmetric: Objects that ``add_or_s_01d`` scores by ADD-S.
            symmetries: As in ``rotation_error_deg``.

        Raises:
            ValueError: If a shape differs, a value is not finite, a matrix is not a rotation or a
                diameter is not positive.
        """
        num = len(points)
        for name, tensor, shape in (
            ("points", points, (num, *points.shape[1:2], 3)),
            ("pred_R", pred_R, (num, 3, 3)),
            ("pred_t", pred_t, (num, 3)),
            ("true_R", true_R, (num, 3, 3)),
            ("true_t", true_t, (num, 3)),
            ("diameter_m", diameter_m, (num,)),
            ("symmetric", symmetric, (num,)),
        ):
            require_shape(name, tensor, *shape)
        require_finite("points", points, what="objects")
        _require_rotations("pred_R", pred_R)
        _require_rotations("true_R", true_R)
        if symmetries is not None:
            _require_rotations("symmetries", symmetries.flatten(0, 1))
        require_finite("pred_t", pred_t[:, None], what="objects")
        require_finite("true_t", true_t[:, None], what="objects")
        num_bad = int((~(diameter_m.isfinite() & (diameter_m > 0))).sum())
        if num_bad:
            raise ValueError(
                f"diameter_m must be positive metres; {num_bad} of {len(diameter_m)} are not"
            )
        pred, true = _posed(points, pred_R, pred_t), _posed(points, true_R, true_t)
        add, add_s = _add_m(pred, true), _add_s_m(pred, true)
        limit = DIAMETER_SHARE * diameter_m.double()
        values = (
            1000 * add,
            1000 * add_s,
            add < limit,
            add_s < limit,
            torch.where(symmetric, add_s, add) < limit,
            rotation_error_deg(pred_R, true_R, symmetries),
            translation_error_mm(pred_t, true_t),
        )
        sums = torch.stack([value.double().sum() for value in values])
        self.sums = sums if self.sums is None else self.sums + sums
        self.num += num

    def summary(self) -> ObjectScores:
        """Return the scores of everything added so far.

        Raises:
            ValueError: If no sample was added.
        """
        if self.sums is None or self.num == 0:
            raise ValueError("no object was scored: update was given none")
        means = (self.sums / self.num).tolist()
        return ObjectScores(num=self.num, **dict(zip(_NAMES, means, strict=True)))


def _posed(points: Tensor, R: Tensor, t: Tensor) -> Tensor:
    return rotate(R.double(), points.double()) + t.double()[:, None]


def _add_m(pred: Tensor, true: Tensor) -> Tensor:
    return distance(pred, true).mean(1)


def _add_s_m(pred: Tensor, true: Tensor) -> Tensor:
    return nearest_distances(true, pred)[0].mean(1)


def _require_rotations(name: str, R: Tensor) -> None:
    R = R.double()
    identity = torch.eye(3, dtype=R.dtype, device=R.device)
    off = (matmul_small(R, R.mT) - identity).abs().amax((-2, -1))
    is_rotation = (off < ROTATION_TOLERANCE) & (torch.linalg.det(R) > 0)  # NaN is not
    num_bad = int((~is_rotation).sum())
    if num_bad:
        raise ValueError(
            f"{name} must hold rotation matrices; {num_bad} of {len(R)} are not orthogonal to "
            f"{ROTATION_TOLERANCE}, or mirror, or are not finite"
        )
