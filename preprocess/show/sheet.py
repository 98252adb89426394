"""Contact sheet parts beside the frames: depth, segmentation and the legend."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import UInt8, UInt16

from preprocess.show.objects import AXIS_RGB, GRASPED_RGB, OTHER_RGB, contact_rgb

if TYPE_CHECKING:
    from pipeline.store.reader import Store

GREY: Final = 48
FONT: Final = 0
"""``cv2.FONT_HERSHEY_SIMPLEX``; OpenCV is imported late because the CLI imports this module."""
RIGHT_RGB: Final = (70, 130, 255)
LEFT_RGB: Final = (255, 70, 70)
_LINE_PX: Final = 20
_SWATCH_PX: Final = 26
_INK: Final = (235, 235, 235)
_SEGMENT_RGB: Final = (
    (255, 214, 64), (120, 220, 230), (220, 130, 220), (140, 220, 120), (240, 160, 110),
    (150, 150, 240), (200, 200, 120), (110, 180, 160), (210, 140, 150), (170, 170, 170),
)  # fmt: skip
"""Colours by object slot."""


def write(canvas: UInt8[np.ndarray, "h w 3"], y: int, text: str, x: int = 4) -> None:
    """Draw one line of text in place, shortened in the middle to fit."""
    import cv2

    most = (canvas.shape[1] - x - 4) // 7  # this font is about 7 px wide
    if len(text) > most:
        text = f"{text[: most // 2 - 1]}..{text[-(most - most // 2 - 1) :]}"
    cv2.putText(canvas, text, (x, y), FONT, 0.38, _INK, 1, cv2.LINE_AA)


def picture_strip(store: "Store", row: int, tile_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """Return depth and segmentation of a row side by side; zero height if the store has neither."""
    from pipeline.store.pictures import picture_names, read_picture

    colour = {"depth_mm": depth_rgb, "segmentation": segmentation_rgb}
    pictures = [
        colour[name](read_picture(store.path, name, row)) for name in picture_names(store.path)
    ]
    if not pictures:
        return np.empty((0, tile_px, 3), np.uint8)
    half = tile_px // 2
    size = [max(1, round(half * side / max(pictures[0].shape))) for side in pictures[0].shape[:2]]
    strip = np.full((size[0], tile_px, 3), GREY, np.uint8)
    for i, picture in enumerate(pictures):
        ys, xs = (
            ((np.arange(n) + 0.5) * picture.shape[axis] / n).astype(int)
            for axis, n in enumerate(size)
        )
        strip[:, i * half : i * half + size[1]] = picture[ys[:, None], xs]  # nearest: ids
    return strip


def depth_rgb(depth_mm: UInt16[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return depth as colours, near = warm, over the range of this image; black = unknown."""
    import cv2

    known = depth_mm > 0
    if not known.any():
        return np.zeros((*depth_mm.shape, 3), np.uint8)
    near, far = np.percentile(depth_mm[known], [1, 99])
    share = np.clip((far - depth_mm) / max(far - near, 1.0), 0.0, 1.0)
    coloured = cv2.applyColorMap(np.rint(255 * share).astype(np.uint8), cv2.COLORMAP_TURBO)
    return np.where(known[..., None], coloured[..., ::-1], 0).astype(np.uint8)


def segmentation_rgb(segmentation: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return segmentation as colours, one per object slot and hand; black = background."""
    table = np.zeros((256, 3), np.uint8)
    table[1 : 1 + len(_SEGMENT_RGB)] = _SEGMENT_RGB
    table[254], table[255] = LEFT_RGB, RIGHT_RGB
    coloured: UInt8[np.ndarray, "h w 3"] = table[segmentation]
    return coloured


def legend(
    width: int, *, objects: bool, contact: bool, pictures: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a legend of what is drawn, as wide as the sheet and as high as needed."""
    near_to_far = contact_rgb(np.linspace(0, 255, _SWATCH_PX).astype(np.uint8))
    items = [(_flat(RIGHT_RGB), "right hand"), (_flat(LEFT_RGB), "left hand")]
    if objects:
        items += [(_flat(GRASPED_RGB), "grasped object"), (_flat(OTHER_RGB), "other object")]
        items += [(_flat(rgb), axis) for rgb, axis in zip(AXIS_RGB, "xyz", strict=True)]
    if contact:
        items.append((near_to_far, "distance to contact, 0 to 64 mm"))
    if "depth_mm" in pictures:
        turbo = depth_rgb(np.linspace(1000, 2000, _SWATCH_PX).astype(np.uint16)[None])[0]
        items.append((turbo, "depth, near to far"))
    lines: list[list[tuple[int, UInt8[np.ndarray, "n 3"], str]]] = [[]]
    x = 4
    for swatch, text in items:
        needed = _SWATCH_PX + 6 + 7 * len(text) + 14
        if x > 4 and x + needed > width:
            lines.append([])
            x = 4
        lines[-1].append((x, swatch, text))
        x += needed
    strip = np.full((len(lines) * _LINE_PX + 6, width, 3), GREY, np.uint8)
    for i, line in enumerate(lines):
        y = 3 + i * _LINE_PX
        for x, swatch, text in line:
            strip[y + 4 : y + _LINE_PX - 4, x : x + _SWATCH_PX] = swatch[: width - x]
            write(strip, y + 14, text, x + _SWATCH_PX + 6)
    return strip


def _flat(rgb: tuple[int, int, int]) -> UInt8[np.ndarray, "n 3"]:
    return np.full((_SWATCH_PX, 3), rgb, np.uint8)
