"""Pinhole camera projection in NumPy. OpenCV axes, metres and pixels.

``model.geometry.camera`` is the torch counterpart. No build process imports torch: it would cost
every worker seconds at start-up and half a gigabyte of memory.

Shape legend: ``*b`` = any leading dimensions (``*#b``: they broadcast), p = points.
"""

import numpy as np
from jaxtyping import Float


def pixels(
    points: Float[np.ndarray, "*#b p 3"], K: Float[np.ndarray, "*#b 3 3"]
) -> Float[np.ndarray, "*b p 2"]:
    """Project camera-frame points to pixels; points behind the camera come out mirrored."""
    image = points @ K.mT
    return np.asarray(image[..., :2] / image[..., 2:])


def project(
    points: Float[np.ndarray, "*#b p 3"], K: Float[np.ndarray, "*#b 3 3"]
) -> Float[np.ndarray, "*b p 2"]:
    """Project camera-frame points to pixels; NaN on and behind the camera plane."""
    return pixels(np.where(points[..., 2:] > 0, points, np.nan), K)
