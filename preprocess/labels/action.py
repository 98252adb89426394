"""Derived hand and object labels of n rows: palm pose, grip aperture, object boxes and motion.

Shape legend: n = rows, 2 = hands (right, left), 10 = object slots, p = points of an object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float64, Int8

from model.hand import JOINT_NAMES, ROOT, TIPS
from preprocess.objects.articulation import articulated
from preprocess.objects.shapes import hull_points
from preprocess.records import LabelStack

_INDEX_MCP: Final = JOINT_NAMES.index("index_mcp")
_LITTLE_MCP: Final = JOINT_NAMES.index("little_mcp")
_THUMB_TIP, _INDEX_TIP = TIPS[:2]
_PALMAR_SIDE: Final = np.array([1.0, -1.0])[:, None]
"""Sign of the palm normal. Seen from the palm, the little finger is counter-clockwise from the
index finger on a right hand, clockwise on a left one."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SurfacePoints:
    """Points on an object's surface; of an articulated one at angle 0."""

    points: Float[np.ndarray, "p 3"]
    """Object frame, metres."""
    part_id: Int8[np.ndarray, " p"]


def palm_pose(labels: LabelStack) -> Float64[np.ndarray, "n 2 3 4"]:
    """Return the palm pose ``[R | t]``, palm to camera frame, metres; NaN without its three joints.

    Origin: mean of the wrist and the index and little MCP joints. x: from the wrist to the midpoint
    of the two MCPs. z: normal of the three joints, towards the grasping side of either hand.
    y = z x x, so it points to the little finger of a right hand and the index finger of a left one.
    """
    joints = _annotated(labels)
    wrist, index, little = (joints[:, :, j] for j in (ROOT, _INDEX_MCP, _LITTLE_MCP))
    x = _unit((index + little) / 2 - wrist)
    z = _unit(np.cross(index - wrist, little - wrist) * _PALMAR_SIDE)
    y = np.cross(z, x)
    return np.stack([x, y, z, (wrist + index + little) / 3], axis=-1)


def aperture_m(labels: LabelStack) -> Float64[np.ndarray, "n 2"]:
    """Return the distance between thumb tip and index fingertip, metres; NaN if one is missing."""
    joints = _annotated(labels)
    return np.asarray(np.linalg.norm(joints[:, :, _THUMB_TIP] - joints[:, :, _INDEX_TIP], axis=-1))


def posed_objects(labels: LabelStack) -> Bool[np.ndarray, "n 10"]:
    """Return which slots hold an object with a pose."""
    posed: Bool[np.ndarray, "n 10"] = np.isfinite(labels.object_pose).all((-1, -2))
    return posed & (labels.object_id >= 0)


def object_flags(labels: LabelStack) -> dict[str, Bool[np.ndarray, " n"]]:
    """Return which rows violate the object rules, by the names of ``schema.FLAGS``."""
    posed = posed_objects(labels)
    return {
        "object_missing": ((labels.object_id >= 0) & ~posed).any(1),
        "object_behind_camera": (posed & (labels.object_pose[..., 2, 3] <= 0)).any(1),
    }


def object_moved_m(labels: LabelStack) -> Float64[np.ndarray, "n 10"]:
    """Return the distance of each object's origin from ``object_start``, metres; NaN if unknown.

    In the world, or in the camera frame where the row has no ``T_world_from_cam``.
    """
    origin = np.where(posed_objects(labels)[..., None], labels.object_pose[..., 3], np.nan)
    T = labels.T_world_from_cam
    has_world = np.isfinite(T).all((-1, -2))
    in_world = np.einsum("nij,nkj->nki", T[:, :3, :3], origin) + T[:, None, :3, 3]
    place = np.where(has_world[:, None, None], in_world, origin)
    return np.asarray(np.linalg.norm(place - labels.object_start, axis=-1))


def object_bbox_xyxy(
    labels: LabelStack, points: Mapping[int, SurfacePoints]
) -> Float64[np.ndarray, "n 10 4"]:
    """Return the tight bounding box (x0, y0, x1, y1) of each object's projected points, pixels.

    Not clipped to the image. NaN without a pose, ``K`` or points, and if a point lies on or behind
    the camera plane.

    Args:
        labels: The labels.
        points: Surface points by ``object_id``, object frame, metres.
    """
    boxes = np.full((*labels.object_id.shape, 4), np.nan)
    posed = posed_objects(labels)
    for object_id in np.unique(labels.object_id[posed]):
        if int(object_id) not in points:
            continue
        row, slot = np.nonzero(posed & (labels.object_id == object_id))
        angle = labels.object_arti_rad[row, slot]
        corners = _corners(points[int(object_id)], angle)  # [m, p, 3]
        P = labels.K[row] @ labels.object_pose[row, slot]  # [m, 3, 4]
        image = P[:, :, :3] @ corners.transpose(0, 2, 1) + P[:, :, 3:]  # [m, 3, p]
        before = (image[:, 2] > 0).all(1)
        pixels = image[before, :2] / image[before, 2:]
        box = np.concatenate([pixels.min(-1), pixels.max(-1)], axis=1)
        boxes[row[before], slot[before]] = box
    return boxes


def _corners(
    surface: SurfacePoints, arti_rad: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, "m p 3"]:
    """Return the convex hull vertices of the parts, which have the same projected bounding box."""
    corners, parts = [], []
    for part in np.unique(surface.part_id).tolist():
        own = hull_points(np.asarray(surface.points[surface.part_id == part], np.float64))
        corners.append(own)
        parts.append(np.full(len(own), part, np.int8))
    return articulated(np.concatenate(corners), np.concatenate(parts), arti_rad)


def _annotated(labels: LabelStack) -> Float64[np.ndarray, "n 2 21 3"]:
    """Return the joints, NaN where they are not annotated."""
    return np.where(labels.joint_valid[..., None], labels.joints_3d, np.nan)


def _unit(vectors: Float64[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
    """Return unit vectors; NaN for the zero vector, which has no direction."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, np.nan)
