"""ARCTIC metrics: two hands and an articulated object, one sequence and view at a time.

``score_pose`` is the pose task, ``score_field`` the interaction field task, both per frame;
``ArcticAccumulator`` averages over all frames. A hand counts where ``right_valid * is_valid``
(``left_valid * is_valid``) is set, the object where ``is_valid`` is.

- ``aae`` (deg): articulation angle, absolute difference.
- ``mpjpe/ra/h`` (mm): joints, each hand minus its own joint 0; mean over joints, then valid hands.
- ``mrrpe/r/l`` (mm): the left wrist relative to the right one; both hands valid.
- ``mrrpe/r/o`` (mm): the object's root (mean of its bottom vertices) relative to the right wrist.
- ``cdev/ho`` (mm): contact deviation, mean over hands (``train.evaluate.metrics.arctic_contact``).
- ``mdev/h`` (mm): motion deviation, one value per contact window, right hand first.
- ``success_rate/0.05`` (%): object vertices minus the object's root with an error strictly below
  5% of the diameter.
- ``acc/h``, ``acc/o`` (m/s^2): acceleration of vertices minus their root, 30 frames/s; mean over
  vertices, then valid hands.
- ``avg/ho``, ``avg/oh`` (mm): distance fields, hand to object and back; mean over vertices, then
  hands.
- ``acc/ho``, ``acc/oh`` (m/s^2): acceleration of these distances.

A score is the mean over all values of all sequences and views that are not NaN: frames count, not
sequences.

Quirks of the official tool, kept by default, and what ``strict=True`` does instead:

- Validity in (0, 1): most scores take it as valid, but ``cdev/ho`` and the accelerations demand
  exactly 1; strict: valid where > 0, everywhere.
- ``aae`` does not wrap around: 359 degrees against 1 degree is 358; strict: 2.
- ``mdev/h`` drops contacts that are open at the last frame and weights the pairs of a window
  unevenly (``train.evaluate.metrics.arctic_contact``); strict: neither.
- ``avg/ho`` ignores the validity of the hands (strict too: a choice, not an error).
- A sequence without a contact window stops the official tool; here it adds no value to ``mdev/h``.

Source:
    Fan et al. 2023, ARCTIC: A Dataset for Dexterous Bimanual Hand-Object Manipulation, and the
    published evaluation (src/utils/eval_modules.py), from its formulas.

Shape legend: f = frames in order, v = object vertices, k = points.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64, Int64, Integer
from torch import Tensor

from model.hand import LEFT, RIGHT, ROOT
from train.evaluate.metrics.arctic_contact import (
    contact_deviation_mm,
    contact_windows,
    motion_deviation_mm,
    nearest_vertices,
)
from train.evaluate.metrics.errors import distance, require_finite

BOTTOM: Final = 2
"""Part id of the vertices whose mean is the object's root."""
FRAMES_PER_S: Final = 30
SUCCESS_SHARE: Final = 0.05
"""Of the object's diameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArcticPose:
    """Hands and object of one sequence in one view; camera frame, metres."""

    joints_right: Float[Tensor, "f 21 3"]
    joints_left: Float[Tensor, "f 21 3"]
    vertices_right: Float[Tensor, "f 778 3"]
    vertices_left: Float[Tensor, "f 778 3"]
    object_vertices: Float[Tensor, "f v 3"]
    arti_rad: Float[Tensor, " f"]

    def __post_init__(self) -> None:
        """Check that all parts have the same frames."""
        _require_same_frames(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArcticField:
    """Distance of each vertex to the nearest of the other mesh, metres; truth clamped to 0.1."""

    right_to_object: Float[Tensor, "f 778"]
    left_to_object: Float[Tensor, "f 778"]
    object_to_right: Float[Tensor, "f v"]
    object_to_left: Float[Tensor, "f v"]

    def __post_init__(self) -> None:
        """Check that all parts have the same frames."""
        _require_same_frames(self)


Nearest = tuple[ArcticField, Int64[Tensor, "f 778"], Int64[Tensor, "f 778"]]
"""The field and the nearest object vertex of each vertex of the right and left hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArcticTruth:
    """Ground truth of one sequence in one view.

    NaN is allowed where not valid, except for the object in the first frame; the field needs both
    hands where ``is_valid``. Contacts are searched in every frame, valid or not; NaN ends them.
    """

    pose: ArcticPose
    is_valid: Float[Tensor, " f"]
    """0 to 1: the frame."""
    right_valid: Float[Tensor, " f"]
    left_valid: Float[Tensor, " f"]
    part_ids: Integer[Tensor, " v"]
    """1 top, 2 bottom."""
    diameter_m: float

    def __post_init__(self) -> None:
        """Check the values. Waits for the device."""
        num_frames, num_vertices = self.pose.object_vertices.shape[:2]
        if num_frames == 0:
            raise ValueError("ARCTIC truth: the sequence has no frame")
        for name in ("is_valid", "right_valid", "left_valid"):
            valid = getattr(self, name)
            if valid.shape != (num_frames,):
                raise ValueError(
                    f"ARCTIC truth: {name} must have shape ({num_frames},) like the pose, "
                    f"got {tuple(valid.shape)}"
                )
            if not bool(((valid >= 0) & (valid <= 1)).all()):
                raise ValueError(f"ARCTIC truth: {name} must lie in [0, 1]")
        if self.part_ids.shape != (num_vertices,):
            raise ValueError(
                f"ARCTIC truth: part_ids must have shape ({num_vertices},) like the object, "
                f"got {tuple(self.part_ids.shape)}"
            )
        if not bool((self.part_ids == BOTTOM).any()):
            raise ValueError(
                f"ARCTIC truth: part_ids has no vertex of the bottom part ({BOTTOM}), "
                "so the object has no root"
            )
        if not 0 < self.diameter_m < math.inf:
            raise ValueError(
                f"ARCTIC truth: diameter_m must be positive and finite, got {self.diameter_m}"
            )


def field_of(pose: ArcticPose) -> Nearest:
    """Return the distance field of a pose, and the nearest object vertex of each hand vertex.

    The same for all views of a sequence; distances in metres, cut at 0.1.
    """
    right, index_right, from_right = nearest_vertices(pose.vertices_right, pose.object_vertices)
    left, index_left, from_left = nearest_vertices(pose.vertices_left, pose.object_vertices)
    distances = ArcticField(
        right_to_object=right,
        left_to_object=left,
        object_to_right=from_right,
        object_to_left=from_left,
    )
    return distances, index_right, index_left


def score_pose(
    pred: ArcticPose, truth: ArcticTruth, *, strict: bool = False, field: Nearest | None = None
) -> dict[str, Float64[Tensor, " _"]]:
    """Return the scores of the pose task, per frame (``mdev/h``: per window); NaN = not scored.

    Waits for the device.

    Args:
        pred: Predicted pose; may be NaN where nothing is scored.
        truth: What was true, same object vertices.
        strict: Without the quirks (module docstring).
        field: ``field_of(truth.pose)``, where it is known from another view. None computes it.

    Raises:
        ValueError: If frames or vertices differ, or a value that is scored is not finite.
    """
    whole, hands = _validity(truth)
    if field is None:
        field = field_of(truth.pose)
    _require_same_shape("pred.object_vertices", pred.object_vertices[..., 0], truth)
    _require_same_shape("field.object_to_right", field[0].object_to_right, truth)
    _require_finite_pose("predicted", pred, whole, hands)
    _require_finite_pose("true", truth.pose, whole, hands)
    require_finite("true object_vertices", truth.pose.object_vertices[:1], what="first frames")

    joints, vertices, obj = _points(pred)
    true_joints, true_vertices, true_obj = _points(truth.pose)
    wrist, true_wrist = joints[:, :, ROOT], true_joints[:, :, ROOT]  # [2, f, 3]
    bottom = truth.part_ids == BOTTOM
    root, true_root = obj[:, bottom].mean(1), true_obj[:, bottom].mean(1)  # [f, 3]

    is_valid, is_hand = whole > 0, hands > 0
    angle = _angle_error_deg(pred.arti_rad.double(), truth.pose.arti_rad.double(), strict=strict)
    joint_error = distance(joints - wrist[:, :, None], true_joints - true_wrist[:, :, None])
    between_hands = distance(wrist[LEFT] - wrist[RIGHT], true_wrist[LEFT] - true_wrist[RIGHT])
    to_object = distance(root - wrist[RIGHT], true_root - true_wrist[RIGHT])
    obj_rel, true_obj_rel = obj - root[:, None], true_obj - true_root[:, None]
    is_near = distance(obj_rel, true_obj_rel) < SUCCESS_SHARE * truth.diameter_m

    deviations, motions = [], []
    for hand, (apart, index) in enumerate(
        ((field[0].right_to_object, field[1]), (field[0].left_to_object, field[2]))
    ):
        is_touch_scored = is_hand[hand] if strict else hands[hand] == 1
        deviations.append(contact_deviation_mm(vertices[hand], obj, apart, index, is_touch_scored))
        windows = contact_windows(apart, index, true_obj[0], strict=strict)
        motions.append(motion_deviation_mm(vertices[hand], obj, windows, is_hand[hand]))

    hand_acceleration = _acceleration_error(
        vertices - wrist[:, :, None], true_vertices - true_wrist[:, :, None], hands, strict=strict
    )
    return {
        "aae": _where(is_valid, angle),
        "mpjpe/ra/h": _where(is_hand, 1000 * joint_error.mean(2)).nanmean(0),
        "mrrpe/r/l": _where(is_hand.all(0), 1000 * between_hands),
        "mrrpe/r/o": _where(is_hand[RIGHT], 1000 * to_object),
        "cdev/ho": torch.stack(deviations).nanmean(0),
        "mdev/h": torch.cat(motions),
        "success_rate/0.05": _where(is_valid, 100 * is_near.double().mean(1)),
        "acc/h": hand_acceleration.nanmean(0),
        "acc/o": _acceleration_error(obj_rel, true_obj_rel, whole, strict=strict),
    }


def score_field(
    pred: ArcticField, truth: ArcticTruth, *, strict: bool = False, field: Nearest | None = None
) -> dict[str, Float64[Tensor, " _"]]:
    """Return the scores of the distance field, per frame; NaN = not scored. Waits for the device.

    Args:
        pred: Predicted distances, metres, taken as they are; may be NaN where nothing is scored.
        truth: What was true, same object vertices.
        strict: Without the quirks (module docstring).
        field: ``field_of(truth.pose)``, where it is known from another view. None computes it.

    Raises:
        ValueError: If frames or vertices differ, or a value that is scored is not finite.
    """
    whole, hands = _validity(truth)
    true = (field_of(truth.pose) if field is None else field)[0]
    _require_same_shape("pred.object_to_right", pred.object_to_right, truth)
    _require_same_shape("field.object_to_right", true.object_to_right, truth)
    for kind, distances in (("predicted", pred), ("true", true)):
        for name, values in _parts(distances).items():
            scored = (whole > 0)[:, None].expand(values.shape)
            require_finite(f"{kind} {name}", values[..., None], scored, what="frames")

    scores = {}
    for way, names, weight in (
        ("ho", ("right_to_object", "left_to_object"), hands),
        ("oh", ("object_to_right", "object_to_left"), whole.expand(2, -1)),
    ):
        mine, goal = (
            torch.stack([getattr(part, name) for name in names]).double() for part in (pred, true)
        )  # [2, f, k]
        error = (goal - mine).abs().mean(2).mean(0)
        scores[f"avg/{way}"] = _where(whole > 0, 1000 * error)
        acceleration = _acceleration_error(mine[..., None], goal[..., None], weight, strict=strict)
        scores[f"acc/{way}"] = acceleration.nanmean(0)
    return scores


@dataclass(slots=True)
class ArcticAccumulator:
    """Means over all values of all sequences and views."""

    totals: dict[str, float] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    parts: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)
    """Every value that was added; NaN = not scored."""

    def update(self, values: dict[str, Float64[Tensor, " _"]]) -> None:
        """Add what ``score_pose`` or ``score_field`` returned. Waits for the device."""
        for name, value in values.items():
            seen = value[~value.isnan()]
            self.totals[name] = self.totals.get(name, 0.0) + float(seen.sum())
            self.counts[name] = self.counts.get(name, 0) + len(seen)
            self.parts.setdefault(name, []).append(value.cpu())

    def summary(self) -> dict[str, float | None]:
        """Return the mean of every score; None where no value was scored.

        Raises:
            ValueError: If nothing was added.
        """
        if not self.counts:
            raise ValueError("no ARCTIC sequence was scored")
        return {
            name: self.totals[name] / count if count else None
            for name, count in self.counts.items()
        }


def _validity(truth: ArcticTruth) -> tuple[Tensor, Tensor]:
    """Validity of the frame ``[f]`` and of the right and left hand ``[2, f]``."""
    whole = truth.is_valid.double()
    return whole, torch.stack((truth.right_valid, truth.left_valid)).double() * whole


def _points(pose: ArcticPose) -> tuple[Tensor, Tensor, Tensor]:
    """Joints ``[2, f, 21, 3]``, hand vertices ``[2, f, 778, 3]``, object ``[f, v, 3]``."""
    joints = torch.stack((pose.joints_right, pose.joints_left)).double()
    vertices = torch.stack((pose.vertices_right, pose.vertices_left)).double()
    return joints, vertices, pose.object_vertices.double()


def _where(valid: Tensor, values: Tensor) -> Tensor:
    return torch.where(valid, values, math.nan)


def _angle_error_deg(pred_rad: Tensor, true_rad: Tensor, *, strict: bool) -> Tensor:
    error = (pred_rad / math.pi * 180 - true_rad / math.pi * 180).abs()
    return torch.minimum(error % 360, 360 - error % 360) if strict else error


def _acceleration_error(pred: Tensor, true: Tensor, valid: Tensor, *, strict: bool) -> Tensor:
    """Mean over points of the acceleration error of ``[2, f, k, d]``, ``[2, f]``, unit per s^2.

    The first and last frame have none, nor have frames that are not valid or have a neighbour
    that is not.
    """
    errors = torch.full_like(valid, math.nan)
    pred, true = (
        x[..., :-2, :, :] - 2 * x[..., 1:-1, :, :] + x[..., 2:, :, :] for x in (pred, true)
    )
    around = torch.stack((valid[..., :-2], valid[..., 1:-1], valid[..., 2:]))
    is_scored = (around > 0).all(0) if strict else around.sum(0) >= 3
    errors[..., 1:-1] = _where(is_scored, distance(pred, true).mean(-1) * FRAMES_PER_S**2)
    return errors


def _parts(record: ArcticPose | ArcticField) -> dict[str, Tensor]:
    return {part.name: getattr(record, part.name) for part in dataclasses.fields(record)}


def _require_same_frames(record: ArcticPose | ArcticField) -> None:
    num_frames = {name: len(value) for name, value in _parts(record).items()}
    if len(set(num_frames.values())) > 1:
        raise ValueError(f"all parts of an ARCTIC sequence need the same frames, got {num_frames}")


def _require_same_shape(name: str, values: Tensor, truth: ArcticTruth) -> None:
    expected = tuple(truth.pose.object_vertices.shape[:2])
    if values.shape != expected:
        raise ValueError(
            f"{name} must have {expected[0]} frames of {expected[1]} object vertices like the "
            f"truth, got {values.shape[0]} of {values.shape[1]}"
        )


def _require_finite_pose(kind: str, pose: ArcticPose, whole: Tensor, hands: Tensor) -> None:
    """A NaN would be left out of the means and make the score better."""
    for name, values in _parts(pose).items():
        weight = whole
        if name.endswith("_right"):
            weight = hands[RIGHT]
        elif name.endswith("_left"):
            weight = hands[LEFT]
        flat = values[:, None].flatten(1)
        scored = (weight > 0)[:, None].expand(flat.shape)
        require_finite(f"{kind} {name}", flat[..., None], scored, what="frames")
