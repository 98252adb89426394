"""Pinhole cameras: where points are seen. OpenCV axes, metres and pixels.

``model.geometry.camera`` says the same in torch, which no process of a build loads: it takes
seconds to start and half a gigabyte of memory, and every worker would pay them.

Shape legend: ``*b`` = any leading dimensions (``*#b``: they broadcast), p = points.
"""

import numpy as np
from jaxtyping import Float


def pixels(
    points: Float[np.ndarray, "*#b p 3"], K: Float[np.ndarray, "*#b 3 3"]
) -> Float[np.ndarray, "*b p 2"]:
    """Return the pixels of camera-frame points; behind the camera they are mirrored."""
    image = points @ K.mT
    return np.asarray(image[..., :2] / image[..., 2:])


def project(
    points: Float[np.ndarray, "*#b p 3"], K: Float[np.ndarray, "*#b 3 3"]
) -> Float[np.ndarray, "*b p 2"]:
    """Return the pixels of camera-frame points; NaN at and behind the camera plane."""
    return pixels(np.where(points[..., 2:] > 0, points, np.nan), K)
