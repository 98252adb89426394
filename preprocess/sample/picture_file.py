"""Write image files of samples."""

from pathlib import Path

import cv2
import numpy as np


def save_picture(path: Path, bgr: np.ndarray, options: tuple[int, ...] = ()) -> None:
    """Write an image in the format given by the file name.

    Args:
        path: Output file.
        bgr: BGR image, or one channel of any bit depth that the format supports.
        options: OpenCV's ``IMWRITE`` pairs.

    Raises:
        OSError: If it cannot be encoded or written.
    """
    encoded, data = cv2.imencode(path.suffix, bgr, options)
    if not encoded:
        raise OSError(f"{path}: OpenCV could not encode the image")
    path.write_bytes(data.tobytes())
