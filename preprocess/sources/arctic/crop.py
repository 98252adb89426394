"""Where the pixels of ARCTIC's ``cropped_images`` are in the official images.

A still camera's file is the square around the object, half as large again, cut out with black
beyond the image and scaled to 1000 x 1000; the file of the camera on the head is the whole image at
0.3 of its size, as distorted as before. Both were made with PIL: it rounds each edge of the cut to
a whole pixel (of halves to the even one), so the cut need not be a square, and scaling takes edges
to edges, half a pixel outside of centres.

The official squares are float32. Ours are rounded to float32 too, but an edge within their noise of
a half may still round the other way: it is a pixel off then, in about one image of two thousand.

Source:
    The dataset's scripts_data/crop_images.py (described in the dataset notes, 5.5).
"""

from typing import Final

import numpy as np
from jaxtyping import Float64

_SIDE_PX: Final = 1000
_AROUND: Final = np.float32(1.5)
_EGO_SCALE: Final = 0.3


def crop_affines(squares: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 2 3"]:
    """Return the maps of official pixels to those of a still camera's cropped files.

    Args:
        squares: Around the object (centre x, centre y, side), official pixels.
    """
    middle, side = squares[:, :2].astype(np.float32), squares[:, 2:].astype(np.float32)
    half = side * _AROUND / 2
    low, high = np.rint(middle - half), np.rint(middle + half)
    return _edges_to_edges(low.astype(float), high.astype(float), np.full(2, float(_SIDE_PX)))


def ego_affine(size_wh: Float64[np.ndarray, " 2"]) -> Float64[np.ndarray, "2 3"]:
    """Return the map of pixels of the camera on the head to those of its cropped files."""
    scaled = np.array([int(side * _EGO_SCALE) for side in size_wh.tolist()], float)
    return np.asarray(_edges_to_edges(np.zeros((1, 2)), size_wh[None], scaled)[0])


def _edges_to_edges(
    low: Float64[np.ndarray, "n 2"],
    high: Float64[np.ndarray, "n 2"],
    size_wh: Float64[np.ndarray, " 2"],
) -> Float64[np.ndarray, "n 2 3"]:
    """Return the maps of pixels ``low`` to ``high - 1`` of an image to all of a scaled one."""
    scale = size_wh / (high - low)
    A = np.zeros((len(low), 2, 3))
    A[:, [0, 1], [0, 1]] = scale
    A[:, :, 2] = (0.5 - low) * scale - 0.5
    return A
