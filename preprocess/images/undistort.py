"""Undistort images, so that a pinhole camera model holds for them.

The camera matrix is unchanged: labels in undistorted space project to the pixels of the result.
Pixels that the lens did not capture are black.
"""

import functools
from typing import Final

import cv2
import numpy as np
from jaxtyping import UInt8

from preprocess.records import Lens

_KEPT: Final = 4
"""Number of remap tables cached in memory: 34 MB each for 2800 x 2000 pixels."""


def straightened(
    frame: UInt8[np.ndarray, "h w 3"], lens: Lens, rows: slice, columns: slice
) -> UInt8[np.ndarray, "r c 3"]:
    """Undistort a window (rows and columns) of a frame.

    Bilinear, with OpenCV's fixed-point weights of 1/32 pixel.
    """
    place, weights = _maps(lens.K.tobytes(), lens.dist8.tobytes(), frame.shape[1], frame.shape[0])
    out: UInt8[np.ndarray, "r c 3"] = cv2.remap(
        frame,
        place[rows, columns],
        weights[rows, columns],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
    )
    return out


@functools.lru_cache(_KEPT)
def _maps(K: bytes, dist8: bytes, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.frombuffer(K).reshape(3, 3)
    return cv2.initUndistortRectifyMap(
        matrix, np.frombuffer(dist8), None, matrix, (width, height), cv2.CV_16SC2
    )
