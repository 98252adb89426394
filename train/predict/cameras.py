"""Intrinsics of ``train predict``; every error names its place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64

from train.evaluate.protocols.files import read_json
from train.predict.boxes import by_frame, is_number, shown_json
from train.predict.inputs import InputImage

FOCAL_RANGE: Final = (0.02, 200)
"""Smallest and largest focal length over the longer side of an image: 177 and 0.3 degrees."""
LARGEST: Final = 1e9
"""Above every value, in pixels, of intrinsics."""
MOST_ASPECT: Final = 4
"""Largest ratio of the two focal lengths."""
CENTER_RANGE: Final = 20
"""Largest distance of the principal point from the middle, over the longer side; an image may be a
small part of what its camera saw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cameras:
    """Intrinsics of every image."""

    K: Float64[np.ndarray, "3 3"] | None = None
    by_name: Mapping[str, Float64[np.ndarray, "3 3"]] | None = None
    fov_deg: float = 60.0
    """Field of view of the longer side, where neither is given and the file does not say."""

    def by_frame(self, key: str) -> "Cameras":
        """Return them with the names of a video's frames as ``predict`` writes them."""
        if self.by_name is None:
            return self
        return replace(self, by_name=by_frame(self.by_name, key))

    def origin(self, frame: InputImage) -> str:
        """Return where the camera of an image comes from."""
        if self.K is not None or self.by_name is not None:
            return "intrinsics"
        return "assumed" if frame.focal_px is None else "exif"

    def of(self, frame: InputImage) -> Float64[np.ndarray, "3 3"]:
        """Return the intrinsics of one image.

        Raises:
            ValueError: If the file has no entry for it, or no camera sees this image so.
        """
        name, size_wh = frame.name, frame.size_wh
        if self.by_name is not None:
            if name not in self.by_name:
                raise ValueError(f"intrinsics has no matrix for {name!r}")
            return _fitting(self.by_name[name], size_wh)
        if self.K is not None:
            return _fitting(self.K, size_wh)
        width, height = size_wh
        focal = frame.focal_px
        if focal is None:
            focal = max(width, height) / 2 / math.tan(math.radians(self.fov_deg) / 2)
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def _fitting(K: Float64[np.ndarray, "3 3"], size_wh: tuple[int, int]) -> Float64[np.ndarray, "3 3"]:
    """Return intrinsics that can be those of an image.

    Raises:
        ValueError: If they are of other units, or of another image.
    """
    width, height = size_wh
    longer = max(size_wh)
    focal, center = K[[0, 1], [0, 1]], K[:2, 2]
    low, high = (ratio * longer for ratio in FOCAL_RANGE)
    wrong = None
    if (focal < low).any() or (focal > high).any() or focal.max() > MOST_ASPECT * focal.min():
        wrong = (
            f"focal lengths from {low:g} to {high:g} pixels, one at most {MOST_ASPECT} times the "
            f"other, got fx={focal[0]:g} fy={focal[1]:g}"
        )
    elif (np.abs(center - np.array(size_wh) / 2) > CENTER_RANGE * longer).any():
        wrong = (
            f"a principal point within {CENTER_RANGE * longer:g} pixels of the image, got "
            f"cx={center[0]:g} cy={center[1]:g}"
        )
    elif abs(K[0, 1]) > focal[0]:
        wrong = f"a skew below the focal length, got {K[0, 1]:g}"
    if wrong is not None:
        raise ValueError(f"intrinsics of an image of {width} x {height} pixels: expected {wrong}")
    return K


def read_cameras(text: str | None, fov_deg: float) -> Cameras:
    """Parse ``intrinsics=``: four numbers or a JSON file.

    Raises:
        FileNotFoundError: If it is neither numbers nor a file.
        ValueError: If a matrix is not a camera's intrinsics.
    """
    if text is None:
        return Cameras(fov_deg=fov_deg)
    numbers = _numbers(text)
    if numbers is not None:
        fx, fy, cx, cy = numbers
        return Cameras(
            K=checked_camera([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], f"intrinsics={text!r}")
        )
    path = Path(text).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"intrinsics={text!r} must be four numbers fx,fy,cx,cy or a JSON file; there is no "
            "such file"
        )
    record = read_json(path)
    where = f"intrinsics={text!r}"
    if isinstance(record, dict):
        return Cameras(by_name={k: checked_camera(v, f"{where}, {k}") for k, v in record.items()})
    return Cameras(K=checked_camera(record, where))


def _numbers(text: str) -> list[float] | None:
    try:
        numbers = [float(word) for word in text.strip("[]() ").split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 else None


def _are_numbers(row: list[Any]) -> bool:
    return all(is_number(value) and abs(value) < LARGEST for value in row)


def checked_camera(matrix: Any, where: str = "intrinsics") -> Float64[np.ndarray, "3 3"]:
    """Return a camera matrix, given as nested lists or an array.

    Raises:
        ValueError: If it is not one of intrinsics; begins with ``where``.
    """
    matrix = matrix.tolist() if isinstance(matrix, np.ndarray) else matrix
    rows = matrix if isinstance(matrix, list) and len(matrix) == 3 else []
    if not rows or not all(isinstance(r, list) and len(r) == 3 and _are_numbers(r) for r in rows):
        raise ValueError(
            f"{where}: expected one 3x3 matrix, or a dict of them by image name, got "
            f"{shown_json(matrix)}"
        )
    K = np.array([[float(value) for value in row] for row in rows])
    if not np.isfinite(K).all() or K[0, 0] <= 0 or K[1, 1] <= 0 or (K[2] != (0, 0, 1)).any():
        raise ValueError(
            f"{where}: expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths "
            f"in pixels, got {K.tolist()}"
        )
    return K
