"""Real pictures: what scikit-image and scikit-learn ship, and the frames of ``../shared/real``."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.conftest import REAL

Picture = NDArray[np.uint8]


OF_SKIMAGE = ("astronaut", "cat", "coffee", "hubble_deep_field", "retina", "rocket")
PHOTOGRAPHS = (*OF_SKIMAGE, "motorcycle", "china", "flower")


@cache
def photographs() -> dict[str, Picture]:
    """Return the ``PHOTOGRAPHS``, RGB; they are in the wheels, nothing is downloaded."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    found = {name: getattr(data, name)() for name in OF_SKIMAGE}
    found["motorcycle"] = data.stereo_motorcycle()[0]  # type: ignore[no-untyped-call]
    samples = load_sample_images()
    names = (Path(name).stem for name in samples.filenames)
    found |= dict(zip(names, samples.images, strict=True))
    assert tuple(found) == PHOTOGRAPHS
    return found


def real_frames() -> dict[str, Path]:
    """Return the real frames by file name; none where the folder is absent."""
    return {path.name: path for path in sorted(REAL.rglob("*.jpg"))}


def read_rgb(path: Path) -> Picture:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert picture is not None
    return picture.astype(np.uint8, copy=False)


def centre_square(picture: Picture, side: int) -> Picture:
    """Return the middle ``side`` x ``side`` pixels."""
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


def padded_square(picture: Picture) -> Picture:
    """Return the picture with its last row and column repeated up to an even square."""
    side = -(-max(picture.shape[:2]) // 2) * 2
    missing = ((0, side - picture.shape[0]), (0, side - picture.shape[1]), (0, 0))
    return np.pad(picture, missing, mode="edge")
