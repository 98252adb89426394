"""Visibility rule of ARCTIC's official protocol: which hands and objects are in view.

A hand is in view if its wrist and at least three joints lie inside the object's box, clipped to the
image; the object if the mean of its projected vertices does. For the egocentric camera the box is
the whole image, and projection includes lens distortion.

Source:
    The dataset's src/arctic/processing.py: compute_bbox_batch, forward_define_bbox, forward_valid
    (described in the dataset notes, 5.4).
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64

from preprocess.camera import pixels
from preprocess.records import Lens

_AROUND: Final = 1.1 + 0.6
"""Side of the box as a multiple of the longer extent of the object."""
_SMALLEST_PX: Final = 600.0
_MIN_JOINTS: Final = 3


def square_of(object_px: Float64[np.ndarray, "n v 2"]) -> Float64[np.ndarray, "n 3"]:
    """Return the square (centre x, y, side) around vertices in a static camera, not clipped."""
    low, high = object_px.min(1), object_px.max(1)
    side = np.maximum((high - low).max(-1, keepdims=True) * _AROUND, _SMALLEST_PX)
    return np.concatenate([(low + high) / 2, side], axis=-1)


def box_of(
    object_px: Float64[np.ndarray, "n v 2"], size_wh: Float64[np.ndarray, " 2"]
) -> Float64[np.ndarray, "n 4"]:
    """Return the box (x0, y0, x1, y1) around projected vertices, clipped to pixels from 1 on."""
    middle, half = np.split(square_of(object_px) / [1.0, 1.0, 2.0], [2], axis=-1)
    return np.concatenate(
        [np.maximum(middle - half, 1.0), np.minimum(middle + half, size_wh)], axis=-1
    )


def in_view(
    joints: Float64[np.ndarray, "n 2 21 3"],
    vertices: Float64[np.ndarray, "n v 3"],
    K: Float64[np.ndarray, "3 3"],
    size_wh: Float64[np.ndarray, " 2"],
    lens: Lens | None,
    *,
    slack_px: float = 0.0,
) -> Bool[np.ndarray, "n 3"]:
    """Return whether right hand, left hand and object are in view; NaN joints are not.

    Args:
        joints: Hand joints, camera frame, metres.
        vertices: All object vertices in their pose, camera frame, metres.
        K: Intrinsics of a static camera, used if ``lens`` is None.
        size_wh: Width and height of the image, pixels.
        lens: Lens of the egocentric camera, whose image is the box.
        slack_px: Expands the box beyond the rule, pixels.
    """
    if lens is None:
        object_px, joints_px = pixels(vertices, K), pixels(joints, K)
        box = box_of(object_px, size_wh)
    else:
        object_px = pixels(distorted(vertices, lens), lens.K)
        joints_px = pixels(distorted(joints, lens), lens.K)
        box = np.tile([1.0, 1.0, *size_wh], (len(vertices), 1))
    box = box + slack_px * np.array([-1.0, -1.0, 1.0, 1.0])
    hands = _inside(joints_px, box[:, None, None])  # [n, 2, 21]
    held = hands[..., 0] & (hands.sum(-1) >= _MIN_JOINTS)
    return np.concatenate([held, _inside(object_px.mean(1), box)[:, None]], axis=1)


def distorted(points: Float64[np.ndarray, "*n 3"], lens: Lens) -> Float64[np.ndarray, "*n 3"]:
    """Apply lens distortion to points: a pinhole camera then projects them where the lens does."""
    k1, k2, p1, p2, k3, k4, k5, k6 = lens.dist8
    z = points[..., 2]
    x, y = points[..., 0] / z, points[..., 1] / z
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    radial = radial / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.stack([u * z, v * z, z], axis=-1)


def _inside(
    seen: Float64[np.ndarray, "*n 2"], box: Float64[np.ndarray, "*#n 4"]
) -> Bool[np.ndarray, "*n"]:
    inside = (seen >= box[..., :2]) & (seen <= box[..., 2:])
    return np.asarray(inside.all(-1))
