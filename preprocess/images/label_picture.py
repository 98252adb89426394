"""Read depth maps and segmentation masks, which no build setting concerns."""

from pathlib import Path
from typing import Final

import cv2
import numpy as np

from preprocess.images.header import ImageProblem, SizeLimit, read_header
from preprocess.images.images import read_image_file
from preprocess.records import SourceError

_LIMIT: Final = SizeLimit(side_px=4096, megapixels=16)
"""The datasets have 640 x 480 pixels; memory for 16 bits of four channels is 134 MB at most."""


def read_label_picture(dataset: str, path: Path) -> np.ndarray:
    """Read a PNG or JPEG with the depth and channels of the file.

    Raises:
        SourceError: If it cannot be read, is neither, damaged, or too large to be such a picture.
    """
    data = read_image_file(path)
    if isinstance(data, ImageProblem):
        raise SourceError(f"{dataset}: {path} {data.reason}; copy it again")
    header = read_header(data)
    if isinstance(header, ImageProblem):
        raise SourceError(f"{dataset}: {path} {header.reason}; copy it again")
    if _LIMIT.problem(header):
        raise SourceError(
            f"{dataset}: {path} claims {header.width} x {header.height} pixels, expected at most "
            f"{_LIMIT.side_px} a side; copy it again"
        )
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise SourceError(f"{dataset}: {path} is damaged: it cannot be decoded; copy it again")
    return np.asarray(pixels)
