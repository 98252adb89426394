"""Real pictures: what scikit-image and scikit-learn ship, and the frames of ``../shared/real``."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data
from sklearn.datasets import load_sample_images

from tests.conftest import REAL

Picture = NDArray[np.uint8]


@cache
def photographs() -> dict[str, Picture]:
    """Return RGB photographs by name; they are in the wheels, nothing is downloaded."""
    found = {
        name: getattr(data, name)()
        for name in ("astronaut", "cat", "coffee", "hubble_deep_field", "retina", "rocket")
    }
    found["motorcycle"] = data.stereo_motorcycle()[0]  # type: ignore[no-untyped-call]
    samples = load_sample_images()
    names = (Path(name).stem for name in samples.filenames)
    return found | dict(zip(names, samples.images, strict=True))


def real_frames() -> dict[str, Picture]:
    """Return the real frames by file name; none where the folder is absent."""
    paths = sorted(REAL.rglob("*.jpg"))
    return {path.name: read_rgb(path) for path in paths}


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
