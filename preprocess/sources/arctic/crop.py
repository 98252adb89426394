"""Affine maps from official pixels to pixels of ARCTIC's ``cropped_images``.

A static camera's file is the square around the object, enlarged by 1.5, cropped with black padding
and scaled to 1000 x 1000. The egocentric camera's file is the whole image scaled by 0.3, still
distorted. Both were made with PIL, which rounds each crop edge to a whole pixel (halves to even),
so that the crop need not be square, and maps edges to edges, half a pixel outside pixel centres.

The official squares are float32. Ours are rounded to float32 too, but an edge very close to a half
may still round the other way and be one pixel off, in about one image of two thousand.

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
    """Return the affine maps from official pixels to those of a static camera's cropped files.

    Args:
        squares: Squares around the object (centre x, centre y, side), official pixels.
    """
    middle, side = squares[:, :2].astype(np.float32), squares[:, 2:].astype(np.float32)
    half = side * _AROUND / 2
    low, high = np.rint(middle - half), np.rint(middle + half)
    return _edges_to_edges(low.astype(float), high.astype(float), np.full(2, float(_SIDE_PX)))


def ego_affine(size_wh: Float64[np.ndarray, " 2"]) -> Float64[np.ndarray, "2 3"]:
    """Return the affine map from official egocentric pixels to those of the cropped files."""
    scaled = np.array([int(side * _EGO_SCALE) for side in size_wh.tolist()], float)
    return np.asarray(_edges_to_edges(np.zeros((1, 2)), size_wh[None], scaled)[0])


def _edges_to_edges(
    low: Float64[np.ndarray, "n 2"],
    high: Float64[np.ndarray, "n 2"],
    size_wh: Float64[np.ndarray, " 2"],
) -> Float64[np.ndarray, "n 2 3"]:
    """Return the affine maps from pixels ``low`` to ``high - 1`` of an image to its scaled crop."""
    scale = size_wh / (high - low)
    A = np.zeros((len(low), 2, 3))
    A[:, [0, 1], [0, 1]] = scale
    A[:, :, 2] = (0.5 - low) * scale - 0.5
    return A
