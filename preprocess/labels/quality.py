"""Quality rules and derived labels, as pure functions over the rows of a shard.

A rule sets a bit (``pipeline.store.schema.FLAGS``) and never removes a row. Everything here is
vectorised over rows and float64.

Shape legend: n = rows, 2 = hands (right, left), 21 = joints.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt32

from pipeline.store.schema import FLAGS
from preprocess.camera import project
from preprocess.records import LabelStack

MANO_RESIDUAL_LIMIT_M: Final = 1e-3
"""A larger error against the official vertices means that the hand belongs to another model."""
LEFT_REFIT_LIMIT_M: Final = 1e-3
"""A refitted left hand with a larger vertex error has its ``beta`` marked invalid."""
UNREADABLE: Final = sum(bit for name, bit in FLAGS.items() if name.startswith("image_"))
"""Flags of rows without an image, whose ``sample_ok`` is False."""
OUTSIDE_MARGIN: Final = 0.05
"""Distance by which a joint may leave the image, as a fraction of the longer image side."""
OUTSIDE_SHARE: Final = 0.5
"""A hand counts as outside the image if more than this fraction of its joints is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Derived:
    """Quality flags, masks and boxes derived from the labels of n rows."""

    quality: UInt32[np.ndarray, " n"]
    joint_valid: Bool[np.ndarray, "n 2 21"]
    """Annotated and finite."""
    bbox_xyxy: Float[np.ndarray, "n 2 4"]
    has_joints: Bool[np.ndarray, "n 2"]
    has_mano: Bool[np.ndarray, "n 2"]
    has_beta: Bool[np.ndarray, "n 2"]
    has_world: Bool[np.ndarray, " n"]


def derive(labels: LabelStack, size_hw: Integer[np.ndarray, "n 2"]) -> Derived:
    """Derive quality flags (all but the image flags), masks and boxes.

    Args:
        labels: The labels of the rows.
        size_hw: Height and width of the image, pixels; 0 = unknown, which skips the size rules.
    """
    from preprocess.labels.action import object_flags  # imports scipy, which the CLI does not need

    finite = np.isfinite(labels.joints_3d).all(-1)
    valid = labels.joint_valid & finite
    joints_2d = project(np.where(valid[..., None], labels.joints_3d, np.nan), labels.K[:, None])
    joints_2d = np.where(valid[..., None], joints_2d, labels.joints_2d)
    shown = valid | np.isfinite(joints_2d).all(-1)
    has_joints = valid.any(-1)
    has_mano = _all_finite(labels.theta, labels.transl, labels.root_rest)
    residual_bad = labels.vertices_check_m > MANO_RESIDUAL_LIMIT_M
    refit_bad = labels.refit_error_m > LEFT_REFIT_LIMIT_M
    rules = {
        "no_label": ~shown.any((-1, -2)),
        "no_mano": (has_joints & ~has_mano).any(-1),
        "joints_not_finite": (labels.joint_valid & ~finite).any((-1, -2)),
        "behind_camera": (valid & (labels.joints_3d[..., 2] <= 0)).any((-1, -2)),
        "outside_image": outside_image(joints_2d, shown, size_hw).any(-1),
        "mano_residual": residual_bad,
        "left_refit": refit_bad.any(-1),
        **object_flags(labels),
    }
    return Derived(
        quality=pack_flags(rules, len(valid)),
        joint_valid=valid,
        bbox_xyxy=np.where(np.isnan(labels.bbox_xyxy), joint_bbox(joints_2d), labels.bbox_xyxy),
        has_joints=has_joints,
        has_mano=has_mano,
        has_beta=_all_finite(labels.beta) & has_mano & ~residual_bad[:, None] & ~refit_bad,
        has_world=np.isfinite(labels.T_world_from_cam).all((-1, -2)),
    )


def pack_flags(rules: dict[str, Bool[np.ndarray, " n"]], num: int) -> UInt32[np.ndarray, " n"]:
    """Pack the rows of each named flag into bit masks."""
    quality = np.zeros(num, np.uint32)
    for name, hit in rules.items():
        quality[hit] |= np.uint32(FLAGS[name])
    return quality


def flag_counts(quality: UInt32[np.ndarray, " n"]) -> dict[str, int]:
    """Return how many rows carry each flag, for every flag of the format."""
    return {name: int(np.count_nonzero(quality & np.uint32(bit))) for name, bit in FLAGS.items()}


def flag_names(quality: int) -> list[str]:
    """Return the names of the bits in one mask."""
    return [name for name, bit in FLAGS.items() if quality & bit]


def joint_bbox(joints_2d: Float[np.ndarray, "n 2 21 2"]) -> Float[np.ndarray, "n 2 4"]:
    """Return the tight bounding box (x0, y0, x1, y1) of the finite joints, pixels; NaN without any.

    Not clipped to the image: a crop may extend beyond the border.
    """
    seen = np.isfinite(joints_2d).all(-1, keepdims=True)
    low = np.where(seen, joints_2d, np.inf).min(-2)
    high = np.where(seen, joints_2d, -np.inf).max(-2)
    box = np.concatenate([low, high], axis=-1)
    return np.where(seen.any(-2), box, np.nan)


def outside_image(
    joints_2d: Float[np.ndarray, "n 2 21 2"],
    valid: Bool[np.ndarray, "n 2 21"],
    size_hw: Integer[np.ndarray, "n 2"],
) -> Bool[np.ndarray, "n 2"]:
    """Return which hands have most of their joints clearly outside the image.

    Clearly: by more than ``OUTSIDE_MARGIN`` of the longer side. Joints behind the camera, which
    have no pixel, count as outside. Rows of unknown size are never outside.
    """
    size_wh = size_hw[:, None, None, ::-1].astype(np.float64)
    margin = OUTSIDE_MARGIN * size_wh.max(-1, keepdims=True)
    # Pixel (0, 0) is the centre of a pixel, so the image ends half a pixel farther out.
    inside = (joints_2d >= -0.5 - margin) & (joints_2d <= size_wh - 0.5 + margin)
    outside = valid & ~inside.all(-1)
    known = np.all(size_hw > 0, axis=-1, keepdims=True)
    num_valid = valid.sum(-1)
    gone: Bool[np.ndarray, "n 2"] = known & (outside.sum(-1) > OUTSIDE_SHARE * num_valid)
    return gone


def _all_finite(*values: Float[np.ndarray, "n 2 _"]) -> Bool[np.ndarray, "n 2"]:
    finite: Bool[np.ndarray, "n 2"] = np.isfinite(np.concatenate(values, axis=-1)).all(-1)
    return finite
