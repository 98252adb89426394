"""Skeletons over images: no GL, no window, works in any container."""

from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from model.hand import BONES

FINGER_RGB: Final = ((214, 96, 77), (244, 165, 28), (70, 170, 80), (60, 120, 216), (150, 85, 190))
"""Thumb, index, middle, ring, little."""
_SHIFT: Final = 4  # OpenCV draws with 4 fractional bits, so a joint is not moved to a whole pixel


def draw_skeleton(
    image: UInt8[np.ndarray, "h w 3"],
    joints_2d: Float[np.ndarray, "21 2"],
    valid: Bool[np.ndarray, "21"],
    *,
    rgb: tuple[int, int, int] | None = None,
    thickness: int = 2,
) -> None:
    """Draw one hand into an RGB image, in place.

    Args:
        image: RGB, changed in place.
        joints_2d: Pixels (x, y), standard order.
        valid: Joints that exist; a bone needs both ends.
        rgb: One colour for the whole hand; None gives each finger its own.
        thickness: Line width, pixels.
    """
    usable = valid & np.isfinite(joints_2d).all(-1) & (np.abs(joints_2d) < 1e5).all(-1)
    fixed = np.where(usable[:, None], joints_2d, 0.0) * (1 << _SHIFT)
    points = [(x, y) for x, y in fixed.round().astype(int).tolist()]
    for bone, (parent, child) in enumerate(BONES):
        if usable[parent] and usable[child]:
            colour = rgb or FINGER_RGB[bone // 4]
            cv2.line(image, points[parent], points[child], colour, thickness, cv2.LINE_AA, _SHIFT)
    for joint in np.flatnonzero(usable):
        colour = rgb or FINGER_RGB[max(int(joint) - 1, 0) // 4]
        cv2.circle(image, points[joint], (thickness + 1) << _SHIFT, colour, -1, cv2.LINE_AA, _SHIFT)


def draw_points(
    image: UInt8[np.ndarray, "h w 3"],
    points_2d: Float[np.ndarray, "n 2"],
    rgb: tuple[int, int, int],
) -> None:
    """Draw dots into an RGB image, in place; points that are NaN or far outside are left out."""
    usable = np.isfinite(points_2d).all(-1) & (np.abs(points_2d) < 1e5).all(-1)
    for x, y in (points_2d[usable] * (1 << _SHIFT)).round().astype(int).tolist():
        cv2.circle(image, (x, y), 1 << _SHIFT, rgb, -1, cv2.LINE_AA, _SHIFT)


def tile(images: list[UInt8[np.ndarray, "h w 3"]], columns: int) -> UInt8[np.ndarray, "H W 3"]:
    """Return equally sized images as one grid, row by row; empty cells are black."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.zeros((rows * height, min(columns, len(images)) * width, 3), np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] = image
    return sheet
