"""Boxes of ``train predict``: where the hands of each image are; every error names its place."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pipeline.app.files import existing
from train.config import Side
from train.evaluate.protocols.files import read_json
from train.predict.coco import NUM_JOINTS, from_coco, is_coco

LARGEST_BOX: Final = 4
"""Largest ratio of the longer sides of box and image; above, the box cannot be in its pixels."""
MOST_ASPECT: Final = 1.05
"""Largest ratio of the sides of an image that may be a crop."""
MOST_PX: Final = 1e6
"""Largest coordinate of a box; above, no image has it."""
SHOWN: Final = 4
"""Number of names or problems listed in a sentence."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class HandBox:
    """Bounding box and side of a hand."""

    is_right: bool
    box_xyxy: tuple[float, float, float, float] | None
    """Pixels; None: the whole image is the crop."""


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
            f"box_xyxy {_shown_box(box.box_xyxy)} lies outside the image of {width} x "
            f"{height} pixels"
        )
    side = max(x1 - x0, y1 - y0)
    if side > LARGEST_BOX * max(size_wh):
        raise ValueError(
            f"box_xyxy {_shown_box(box.box_xyxy)} is too large for the image of {width} x {height} "
            "pixels; expected pixels of this image"
        )
    return ((x0 + x1) / 2, (y0 + y1) / 2), side * pad


def is_crop(size_wh: tuple[int, int]) -> bool:
    """Return whether an image may be the crop of a hand: crops are square."""
    return max(size_wh) <= MOST_ASPECT * min(size_wh)


def whole_image(side: Side | None) -> tuple[HandBox, ...]:
    """Return the hands of an image without boxes: the whole image is the crop."""
    return of_sides(None, side or Side.right)


def of_sides(box: tuple[float, float, float, float] | None, side: Side) -> tuple[HandBox, ...]:
    """Return the hands that a box is taken as: one, or one of each side."""
    right, left = (HandBox(is_right=is_right, box_xyxy=box) for is_right in (True, False))
    return {Side.right: (right,), Side.left: (left,), Side.both: (right, left)}[side]


@dataclass(frozen=True, kw_only=True, slots=True)
class Boxes:
    """Content of a file of boxes."""

    by_name: dict[str, tuple[HandBox, ...]]
    num_without_side: int


def read_boxes(path: str, side: Side | None = None, names: Sequence[str] | None = None) -> Boxes:
    """Return the hands of every image listed in a file.

    Args:
        path: JSON: boxes or 21 points by image, COCO results or a COCO data set.
        side: Side of the hands whose entry has none; None takes each as both.
        names: File names of the images, for COCO's numbers; None for a video.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON or has another structure; names the places.
    """
    record = read_json(existing(path, "boxes"))
    form = '{"a.jpg": [{"box_xyxy": [x0, y0, x1, y1], "side": "left"}]}'
    if is_coco(record):
        try:
            record = from_coco(record, names)
        except ValueError as error:
            raise ValueError(f"boxes={path!r}: {error}") from error
    if not isinstance(record, dict):
        found = shown_json(record)
        raise ValueError(  # noqa: TRY004 - a file's
            f"boxes={path!r} must hold {form}, or COCO results, got {found}"
        )
    problems: list[str] = []  # the first few; their number is num_wrong
    num_wrong = num_without_side = 0
    boxes: dict[str, tuple[HandBox, ...]] = {}
    for name, hands in record.items():
        if not isinstance(hands, list):
            num_wrong += 1
            if num_wrong <= SHOWN:
                problems.append(f"{name}: expected a list of hands, got {shown_json(hands)}")
            continue
        read: list[HandBox] = []
        for i, hand in enumerate(hands):
            try:
                read += hand_boxes(hand, side)
                num_without_side += "side" not in hand
            except ValueError as error:
                num_wrong += 1
                if num_wrong <= SHOWN:
                    problems.append(f"{name}, hand {i}: {error}")
        boxes[name] = tuple(read)
    if problems:
        raise ValueError(
            f"boxes={path!r} has {num_wrong} wrong entries, expected {form}: {'; '.join(problems)}"
        )
    return Boxes(by_name=boxes, num_without_side=num_without_side)


def hand_boxes(hand: Any, side: Side | None = None) -> tuple[HandBox, ...]:
    """Return one entry of a file of boxes, ``{"box_xyxy": [x0, y0, x1, y1], "side": "left"}``.

    In the place of the box there may be 21 points, ``joints_2d``. Without a side it is a hand of
    ``side``, or one of each.

    Raises:
        ValueError: If it is not of that form.
    """
    if not isinstance(hand, dict) or not {"box_xyxy", "joints_2d"} & hand.keys():
        raise ValueError(f"needs box_xyxy or joints_2d, got {shown_json(hand)}")
    own = hand.get("side")
    if "side" in hand and own not in ("right", "left"):
        raise ValueError(f"side must be right or left, got {shown_json(own)}")
    box = hand["box_xyxy"] if "box_xyxy" in hand else _around(hand["joints_2d"])
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise ValueError(f"box_xyxy must be four finite numbers, got {shown_json(box)}")
    if max(map(abs, box)) > MOST_PX:
        raise ValueError(
            f"box_xyxy must be pixels of its image, of at most {MOST_PX:g}, got {shown_json(box)}"
        )
    x0, y0, x1, y1 = map(float, box)
    if x1 <= x0 or y1 <= y0 or min(x1 - x0, y1 - y0) < 1:
        raise ValueError(
            f"box_xyxy must be [x0, y0, x1, y1] with x1 > x0 and y1 > y0, at least 1 pixel wide "
            f"and high, in pixels, got {shown_json(box)}"
        )
    taken = side or Side.both if own is None else Side[own]
    return of_sides((x0, y0, x1, y1), taken)


def _around(points: Any) -> list[float]:
    """Return the box around 21 points.

    Raises:
        ValueError: If they are none.
    """
    is_list = isinstance(points, list) and len(points) == NUM_JOINTS
    if not is_list or not all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point))
        for point in points
    ):
        raise ValueError(f"joints_2d must be 21 points [x, y], got {shown_json(points)}")
    x, y = zip(*points, strict=True)
    return [min(x), min(y), max(x), max(y)]


def by_frame(given: Mapping[str, T], key: str) -> dict[str, T]:
    """Return the entries of a video's frames by their numbers as ``predict`` writes them.

    Programs that cut a video into frames count as 000000; other names stay as they are.

    Raises:
        ValueError: If two names are of the same frame.
    """
    found: dict[str, T] = {}
    names: dict[str, str] = {}
    for name, value in given.items():
        number = str(int(name)) if name.isascii() and name.isdecimal() and len(name) < 20 else name
        if number in found:
            raise ValueError(
                f"{key} has two entries for frame {number}: {names[number]!r} and {name!r}"
            )
        found[number], names[number] = value, name
    return found


def some(names: Any) -> str:
    """Return the first names of a list, quoted."""
    names = list(names)
    more = ", ..." if len(names) > SHOWN else ""
    return (", ".join(repr(name) for name in names[:SHOWN]) or "none") + more


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def shown_json(value: Any) -> str:
    """Return a value as JSON, cut to a line."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _shown_box(box: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
