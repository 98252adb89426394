"""Writing pictures of samples."""

from pathlib import Path

import cv2
import numpy as np


def save_picture(path: Path, bgr: np.ndarray, options: tuple[int, ...] = ()) -> None:
    """Write a picture, in the format that the name says.

    Args:
        path: Its file.
        bgr: Colours in OpenCV's order, or one channel of any depth that the format takes.
        options: OpenCV's ``IMWRITE`` pairs.

    Raises:
        OSError: If it cannot be encoded or written.
    """
    encoded, data = cv2.imencode(path.suffix, bgr, options)
    if not encoded:
        raise OSError(f"{path}: OpenCV could not encode the image")
    path.write_bytes(data.tobytes())
