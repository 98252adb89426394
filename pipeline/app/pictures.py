"""Image files that people look at, written whole or not at all."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from pipeline.app.files import replace_file


def write_picture(path: Path, rgb: UInt8[np.ndarray, "h w 3"], *parameters: int) -> None:
    """Write an image atomically in the format of its file extension; create the folder if needed.

    Args:
        path: The file.
        rgb: The image.
        *parameters: OpenCV's, in pairs, for example ``cv2.IMWRITE_JPEG_QUALITY, 90``.

    Raises:
        ValueError: If the extension is of no image format.
        OSError: If it cannot be written.
    """
    try:
        done, data = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), parameters)
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f"{path}: expected the ending of an image, for example .png or .jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data.data, durable=False)
