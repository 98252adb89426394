"""Boxes from COCO files: detections, annotations, and COCO-WholeBody's hands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

NUM_JOINTS: Final = 21


def is_coco(record: Any) -> bool:
    """Return whether a JSON value is a list of COCO results or a COCO data set."""
    if isinstance(record, dict):
        return isinstance(record.get("annotations"), list) and isinstance(
            record.get("images"), list
        )
    return isinstance(record, list) and bool(record) and all(map(_is_result, record))


def from_coco(record: Any, names: Sequence[str] | None) -> dict[str, list[dict[str, Any]]]:
    """Return the entries by image as a file of boxes has them, in the file's order.

    A hand's 21 keypoints count more than its box. The side is that of a category named after it, or
    of COCO-WholeBody's ``lefthand`` and ``righthand``; else the entry has none.

    Args:
        record: The JSON value, for which ``is_coco`` holds.
        names: File names of the images; an ``image_id`` is one of them, with or without its ending,
            or the number in one. None: the images are frames of a video and named by numbers.

    Raises:
        ValueError: If an annotation has no image or names none; says which.
    """
    images: dict[Any, str] = {}
    sides: dict[Any, str] = {}
    annotations = record
    if isinstance(record, dict):
        annotations = record["annotations"]
        for image in record["images"]:
            if isinstance(image, dict) and isinstance(image.get("file_name"), str):
                images[_key(image.get("id"))] = Path(image["file_name"]).name
        for category in record.get("categories") or []:
            name = str(category.get("name", "")).lower() if isinstance(category, dict) else ""
            side = next((side for side in ("left", "right") if side in name), None)
            if side is not None:
                sides[_key(category.get("id"))] = side
    elif names is not None:
        images = _by_id(names)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in images.values()}
    for i, one in enumerate(annotations):
        if not isinstance(one, dict) or not isinstance(one.get("image_id"), int | str):
            raise ValueError(  # noqa: TRY004 - a file's
                f"annotation {i} has no image_id, a number or a name"
            )
        name = images.get(_key(one["image_id"]), str(one["image_id"]))
        for hand in _hands_of(one, sides.get(_key(one.get("category_id")))):
            found.setdefault(name, []).append(hand)
    return found


def _is_result(value: Any) -> bool:
    return isinstance(value, dict) and "image_id" in value


def _key(value: Any) -> str:
    return repr(value)


def _by_id(names: Sequence[str]) -> dict[Any, str]:
    """Return the names by everything that an ``image_id`` may call them."""
    found: dict[Any, str] = {}
    for name in names:
        stem = Path(name).stem
        if stem.isascii() and stem.isdecimal():
            found.setdefault(_key(int(stem)), name)
        found.setdefault(_key(stem), name)
    return found | {_key(name): name for name in names}


def _hands_of(one: dict[str, Any], side: str | None) -> list[dict[str, Any]]:
    """Return the hands of an annotation: its own, or both of a person of COCO-WholeBody."""
    if "lefthand_box" in one or "righthand_box" in one:
        return [
            _hand(one.get(f"{name}hand_box"), one.get(f"{name}hand_kpts"), name)
            for name in ("right", "left")
            if one.get(f"{name}hand_valid", True) and f"{name}hand_box" in one
        ]
    return [_hand(one.get("bbox"), one.get("keypoints"), side)]


def _hand(box_xywh: Any, keypoints: Any, side: str | None) -> dict[str, Any]:
    hand: dict[str, Any] = {} if side is None else {"side": side}
    if isinstance(keypoints, list) and len(keypoints) == 3 * NUM_JOINTS:
        points = [keypoints[i : i + 2] for i in range(0, len(keypoints), 3)]
        if all(keypoints[2::3]):
            return hand | {"joints_2d": points}
    if isinstance(box_xywh, list) and len(box_xywh) == 4:
        try:
            x, y, width, height = box_xywh
            return hand | {"box_xyxy": [x, y, x + width, y + height]}
        except TypeError:
            pass
    return hand | {"box_xyxy": box_xywh}
