"""Inputs of ``train predict``: images, boxes, cameras; every error names its place.

Pixels are those of the decoded image. An EXIF orientation (and a video's rotation) is applied while
decoding, as every viewer does: boxes, intrinsics and results refer to the upright image. Pixel
(0, 0) is the centre of the top-left pixel.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from pipeline.app.files import existing
from train.config import Side
from train.evaluate.protocols.files import read_json

IMAGE_SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES: Final = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
LARGEST_BOX: Final = 4
"""Largest ratio of the longer sides of box and image; above, the box cannot be in its pixels."""
_SHOWN: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class InputMedia:
    """Existing images or an existing video."""

    path: Path
    names: tuple[str, ...] | None
    """File names, sorted; None for a video, whose names are its frame numbers."""
    total: int | None
    """Number of images; None where a video does not report it."""
    every: int


@dataclass(frozen=True, kw_only=True, slots=True)
class InputImage:
    """One decoded image."""

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A skipped image or hand, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HandBox:
    """Bounding box and side of a hand."""

    is_right: bool
    box_xyxy: tuple[float, float, float, float] | None
    """Pixels; None: the whole image is the crop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cameras:
    """Intrinsics of every image."""

    K: Float64[np.ndarray, "3 3"] | None = None
    by_name: Mapping[str, Float64[np.ndarray, "3 3"]] | None = None
    fov_deg: float = 60.0
    """Field of view of the longer side, where neither is given."""

    def of(self, name: str, size_wh: tuple[int, int]) -> Float64[np.ndarray, "3 3"]:
        """Return the intrinsics of one image.

        Raises:
            ValueError: If the file has no entry for it.
        """
        if self.by_name is not None:
            if name not in self.by_name:
                raise ValueError(f"intrinsics has no matrix for {name!r}")
            return self.by_name[name]
        if self.K is not None:
            return self.K
        width, height = size_wh
        focal = max(width, height) / 2 / math.tan(math.radians(self.fov_deg) / 2)
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def find_source(path: str, every: int) -> InputMedia:
    """Return the images of a folder, one image, or a video.

    Raises:
        FileNotFoundError: If there is nothing to read.
        ValueError: If the file type is unknown, or a video cannot be opened.
    """
    found = existing(path, "images")
    if found.is_dir():
        names = sorted(p.name for p in found.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not names:
            raise FileNotFoundError(
                f"images={path!r} holds no image ({' '.join(IMAGE_SUFFIXES)}); folders in it are "
                "not searched"
            )
        taken = tuple(names[::every])
        return InputMedia(path=found, names=taken, total=len(taken), every=1)
    suffix = found.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return InputMedia(path=found.parent, names=(found.name,), total=1, every=1)
    if suffix not in VIDEO_SUFFIXES:
        raise ValueError(
            f"images={path!r} must be a folder, an image ({' '.join(IMAGE_SUFFIXES)}) or a video "
            f"({' '.join(VIDEO_SUFFIXES)}), got {suffix or 'no ending'!r}"
        )
    video = cv2.VideoCapture(str(found))
    count = video.get(cv2.CAP_PROP_FRAME_COUNT) if video.isOpened() else -1
    opened = video.isOpened() and video.grab()
    video.release()
    if not opened:
        raise ValueError(
            f"images={path!r} cannot be read as a video: it is damaged or its codec is unknown to "
            "OpenCV; write it as H.264 in .mp4, or give a folder of its frames"
        )
    total = math.ceil(count / every) if count > 0 else None
    return InputMedia(path=found, names=None, total=total, every=every)


def frames(source: InputMedia) -> Iterator[InputImage | Skipped]:
    """Yield every image in order, or why it could not be read."""
    if source.names is None:
        yield from _video_frames(source)
        return
    for name in source.names:
        try:
            data = np.frombuffer((source.path / name).read_bytes(), np.uint8)
            bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
        except (OSError, cv2.error) as error:
            yield Skipped(name=name, reason=f"cannot be read: {error}")
            continue
        if bgr is None:
            yield Skipped(name=name, reason="cannot be decoded: damaged, empty or no image")
        else:
            yield InputImage(name=name, rgb=cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8))


def _video_frames(source: InputMedia) -> Iterator[InputImage | Skipped]:
    video = cv2.VideoCapture(str(source.path))
    try:
        number = 0
        while video.grab():
            if number % source.every == 0:
                read, bgr = video.retrieve()
                if read:
                    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8)
                    yield InputImage(name=str(number), rgb=rgb)
                else:
                    yield Skipped(name=str(number), reason="the frame cannot be decoded")
            number += 1
    finally:
        video.release()


def square_of(
    box: HandBox, size_wh: tuple[int, int], pad: float
) -> tuple[tuple[float, float], float]:
    """Return centre and side of the square crop, pixels; as ``pipeline.view.build_view`` does.

    Raises:
        ValueError: If the box does not fit this image.
    """
    width, height = size_wh
    if box.box_xyxy is None:
        return ((width - 1) / 2, (height - 1) / 2), float(max(size_wh))
    x0, y0, x1, y1 = box.box_xyxy
    if x0 >= width - 0.5 or y0 >= height - 0.5 or x1 <= -0.5 or y1 <= -0.5:
        raise ValueError(
            f"box_xyxy {_shown(box.box_xyxy)} lies outside the image of {width} x {height} pixels"
        )
    side = max(x1 - x0, y1 - y0)
    if side > LARGEST_BOX * max(size_wh):
        raise ValueError(
            f"box_xyxy {_shown(box.box_xyxy)} is too large for the image of {width} x {height} "
            "pixels; expected pixels of this image"
        )
    return ((x0 + x1) / 2, (y0 + y1) / 2), side * pad


def whole_image(side: Side | None) -> tuple[HandBox, ...]:
    """Return the hands of an image without boxes: the whole image is the crop."""
    right, left = (HandBox(is_right=is_right, box_xyxy=None) for is_right in (True, False))
    return {Side.left: (left,), Side.both: (right, left)}.get(side or Side.right, (right,))


def read_boxes(path: str) -> dict[str, tuple[HandBox, ...]]:
    """Return the hands of every image listed in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON or has another structure; names the places.
    """
    record = read_json(existing(path, "boxes"))
    form = '{"a.jpg": [{"box_xyxy": [x0, y0, x1, y1], "side": "left"}]}'
    if not isinstance(record, dict):
        found = _json(record)
        raise ValueError(f"boxes={path!r} must hold {form}, got {found}")  # noqa: TRY004 - a file's
    problems: list[str] = []
    boxes: dict[str, tuple[HandBox, ...]] = {}
    for name, hands in record.items():
        if not isinstance(hands, list):
            problems.append(f"{name}: expected a list of hands, got {_json(hands)}")
            continue
        read = []
        for i, hand in enumerate(hands):
            try:
                read.append(hand_box(hand))
            except ValueError as error:
                problems.append(f"{name}, hand {i}: {error}")
        boxes[name] = tuple(read)
    if problems:
        raise ValueError(
            f"boxes={path!r} has {len(problems)} wrong entries, expected {form}: "
            f"{'; '.join(problems[:_SHOWN])}"
        )
    return boxes


def hand_box(hand: Any) -> HandBox:
    """Return one entry of a file of boxes, ``{"box_xyxy": [x0, y0, x1, y1], "side": "left"}``.

    Raises:
        ValueError: If it is not of that form.
    """
    if not isinstance(hand, dict) or not {"box_xyxy", "side"} <= hand.keys():
        raise ValueError(f"needs box_xyxy and side, got {_json(hand)}")
    side, box = hand["side"], hand["box_xyxy"]
    if side not in ("right", "left"):
        raise ValueError(f"side must be right or left, got {_json(side)}")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"box_xyxy must be four finite numbers, got {_json(box)}")
    x0, y0, x1, y1 = map(float, box)
    if x1 <= x0 or y1 <= y0 or max(x1 - x0, y1 - y0) < 1:
        raise ValueError(
            f"box_xyxy must be [x0, y0, x1, y1] with x1 > x0 and y1 > y0, in pixels, got "
            f"{_json(box)}"
        )
    return HandBox(is_right=side == "right", box_xyxy=(x0, y0, x1, y1))


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


def checked_camera(matrix: Any, where: str = "intrinsics") -> Float64[np.ndarray, "3 3"]:
    """Return a camera matrix.

    Raises:
        ValueError: If it is not one of intrinsics; begins with ``where``.
    """
    try:
        K = np.asarray(matrix, dtype=np.float64)
    except (ValueError, TypeError):
        K = np.empty(0)
    if K.shape != (3, 3):
        found = f"shape {list(K.shape)}" if K.size else _json(matrix)
        raise ValueError(
            f"{where}: expected one 3x3 matrix, or a dict of them by image name, got {found}"
        )
    if not np.isfinite(K).all() or K[0, 0] <= 0 or K[1, 1] <= 0 or (K[2] != (0, 0, 1)).any():
        raise ValueError(
            f"{where}: expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths "
            f"in pixels, got {K.tolist()}"
        )
    return K


def check_names(
    source: InputMedia, given: Mapping[str, Any], key: str, *, each: bool
) -> str | None:
    """Compare the names in a file with those of the images; return a warning, or None.

    Args:
        source: The images; the names of a video are not known before it is read.
        given: Entries by name.
        key: The option that gave the file.
        each: Whether every image needs an entry.

    Raises:
        ValueError: If entries are missing: any where ``each``, else all.
    """
    names = source.names
    if names is None:
        if any(name.isdecimal() for name in given):
            return None
        raise ValueError(
            f"{key}: a video's frames are named by their numbers, 0 for the first; got "
            f"{_some(given)}"
        )
    missing = [name for name in names if name not in given]
    if missing and (each or len(missing) == len(names)):
        raise ValueError(
            f"{key} has no entry for {len(missing)} of {len(names)} images ({_some(missing)}); its "
            f"names are {_some(given)}; expected file names without folder"
        )
    if missing:
        return (
            f"{len(missing)} of {len(names)} images have no entry in {key} and so no hands "
            f"({_some(missing)})"
        )
    return None


def _some(names: Any) -> str:
    names = list(names)
    more = ", ..." if len(names) > _SHOWN else ""
    return (", ".join(repr(name) for name in names[:_SHOWN]) or "none") + more


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _shown(box: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
