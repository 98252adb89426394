"""Read depth maps and segmentation masks of HO-3D.

Depth is an 8-bit PNG, the low byte in red and the high byte in green, in steps of 0.125 mm; some
files have an alpha channel, which the official reader drops. The rendered segmentations are a
separate download, a quarter of the image's size, with one flat colour for the hand and one for the
object; evaluation has none.

Source:
    HO-3D utils/vis_utils.py ``read_depth_img``; the release notes for the size of the
    segmentations. Their colours are from users' code: v2 hand red, object blue (JPEG); v3 hand
    blue, object green (PNG). A picture with other colours is refused.
"""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16

from preprocess.images.header import ImageProblem, SizeLimit, read_header
from preprocess.images.label_picture import read_label_picture
from preprocess.records import SourceError
from preprocess.sources.ho3d.files import NAME, SUFFIXES

_MM_PER_STEP: Final = 0.00012498664727900177 * 1000.0
_OBJECT: Final = 1
"""Class of the only object, in slot 0; see ``schema.PICTURES``."""
_RIGHT_HAND: Final = 255
_LEVEL: Final = 128
_STRAY: Final = 0.02
"""Fraction of coloured pixels that may have another colour: JPEG blurs edges."""


class Colours(NamedTuple):
    """RGB channel of the hand's and of the object's colour."""

    hand: int
    object: int


COLOURS: Final = {"v2": Colours(hand=0, object=2), "v3": Colours(hand=2, object=1)}


def read_picture(root: Path, image: str, kind: str) -> np.ndarray | None:
    """Read ``depth_mm`` or ``segmentation`` of an image; None if there is none.

    Args:
        root: Dataset root.
        image: Path of the colour image below it.
        kind: Name in ``schema.PICTURES``.

    Raises:
        SourceError: If the file is damaged or has an unexpected encoding.
    """
    path = Path(image)
    if kind == "depth_mm":
        return _read_depth(root / path.parent.parent / "depth" / f"{path.stem}.png")
    version = next(name for name, suffix in SUFFIXES.items() if suffix == path.suffix)
    segmentation = _read_segmentation(root, path, version)
    size_hw = None if segmentation is None else _size(root / path)
    if segmentation is None or size_hw is None:
        return None
    return _enlarge(root / path, segmentation, size_hw)


def _read_depth(path: Path) -> UInt16[np.ndarray, "h w"] | None:
    pixels = _read_rgb(path)
    if pixels is None:
        return None
    low, high = pixels[..., 0].astype(np.int32), pixels[..., 1].astype(np.int32)
    return np.round((low + 256 * high) * _MM_PER_STEP).astype(np.uint16)


def _read_segmentation(root: Path, image: Path, version: str) -> UInt8[np.ndarray, "h w"] | None:
    sequence = image.parent.parent  # train/ABF10
    download = f"HO3D_{version}_segmentations_rendered"
    for base in (root, root / download, root.absolute().parent / download):
        for folder in ("seg", "segr"):
            for suffix in (".png", ".jpg"):
                path = base / sequence / folder / f"{image.stem}{suffix}"
                pixels = _read_rgb(path)
                if pixels is not None:
                    return _decode(path, pixels, version)
    return None


def _decode(
    path: Path, pixels: UInt8[np.ndarray, "h w 3"], version: str
) -> UInt8[np.ndarray, "h w"]:
    """Convert colours to the store's classes."""
    lit = pixels >= _LEVEL
    colours = COLOURS[version]
    alone = lit.sum(-1) == 1
    decoded = np.zeros(pixels.shape[:2], np.uint8)
    decoded[alone & lit[..., colours.object]] = _OBJECT
    decoded[alone & lit[..., colours.hand]] = _RIGHT_HAND
    stray = lit.any(-1) & (decoded == 0)
    if stray.sum() > _STRAY * lit.any(-1).sum():
        red, green, blue = pixels[stray][0].tolist()
        names = ("red", "green", "blue")
        raise SourceError(
            f"{NAME}: {path} has {stray.sum()} pixels of other colours (first: {red}, {green}, "
            f"{blue}), expected the hand in {names[colours.hand]} and the object in "
            f"{names[colours.object]} as in {version}; build with segmentation=false"
        )
    return decoded


def _enlarge(
    image: Path, small: UInt8[np.ndarray, "h w"], size_hw: tuple[int, ...]
) -> UInt8[np.ndarray, "H W"]:
    """Upscale to the size of the image by repeating pixels."""
    height, width = small.shape
    factor = size_hw[0] // height
    if (height * factor, width * factor) != tuple(size_hw):
        raise SourceError(
            f"{NAME}: the segmentation of {image} has {width} x {height} pixels, expected a whole "
            f"fraction of the image's {size_hw[1]} x {size_hw[0]}; build with segmentation=false"
        )
    return np.repeat(np.repeat(small, factor, axis=0), factor, axis=1)


def _size(path: Path) -> tuple[int, ...] | None:
    """Return height and width of an image from its header; None if it has none."""
    if not path.is_file():
        return None
    header = read_header(path.read_bytes())
    if isinstance(header, ImageProblem) or SizeLimit().problem(header):
        return None
    return header.height, header.width


def _read_rgb(path: Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """Read an 8-bit colour image without its alpha channel; None if it does not exist."""
    if not path.is_file():
        return None
    pixels = read_label_picture(NAME, path)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise SourceError(
            f"{NAME}: {path} is {pixels.dtype} of shape {pixels.shape}, expected 8 bits and three "
            "channels, and alpha at most; copy it again"
        )
    return np.ascontiguousarray(pixels[..., 2::-1])  # BGR, and alpha, which has no meaning
