"""Decode, crop and downscale an image and encode it as baseline JPEG 4:2:0.

Pixel (0, 0) is the centre of the top-left pixel. A crop is a slice, so it shifts coordinates by
whole pixels; downscaling uses area averaging. ``A_stored_from_file`` is exact in both cases.

simplejpeg decodes and encodes: of simplejpeg, OpenCV and PyTurboJPEG it is the fastest at decode,
crop, encode (``python -m benchmarks preprocess``). The same bytes give the same JPEG.
"""

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8

from preprocess.images.check import decode_strictly, find_hole, is_flat, undecodable
from preprocess.images.header import ImageProblem, JpegHeader, PngHeader
from preprocess.images.undistort import straightened
from preprocess.records import Lens

BLOCK_PX: Final = 16
"""Side of a JPEG 4:2:0 coding block (MCU), pixels. A crop aligned to the source's block grid is
quantised like the source: 4.7 dB closer to it and 10 % smaller on four frames of InterHand2.6M than
an unaligned crop; aligning to 2 pixels gains nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Columns ``left`` to ``right - 1`` and rows ``top`` to ``bottom - 1`` of the raw image."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """Return the number of rows and of columns."""
        return self.bottom - self.top, self.right - self.left


@dataclass(frozen=True, kw_only=True, slots=True)
class Recoded:
    """A recoded image as written to the store."""

    data: bytes
    size_hw: tuple[int, int]
    A_stored_from_file: Float[np.ndarray, "2 3"]
    is_flat: bool
    """The whole file is of one colour."""


def crop_window(
    region_xyxy: Float[np.ndarray, " 4"] | None,
    size_hw: tuple[int, int],
    *,
    margin: float,
    max_px: int,
    on_blocks: bool,
) -> Window:
    """Return the crop window: the region with its margin, clipped to the image.

    Args:
        region_xyxy: Box that must be visible, raw pixels. None, NaN, or a box outside the image:
            the whole image.
        size_hw: Height and width of the image, pixels.
        margin: Side length of the crop as a multiple of the box; both have the same centre.
        max_px: Longest side of the stored image, pixels; 0 = any.
        on_blocks: Expand the crop to the grid of ``BLOCK_PX``, for a JPEG. A crop that exceeds
            ``max_px`` only because of the grid is not downscaled.
    """
    height, width = size_hw
    whole = Window(left=0, top=0, right=width, bottom=height)
    if region_xyxy is None:
        return whole
    x0, y0, x1, y1 = region_xyxy.tolist()
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return whole
    half_w, half_h = max(x1 - x0, 0.0) * margin / 2, max(y1 - y0, 0.0) * margin / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    # Pixel i covers i - 0.5 to i + 0.5.
    left, right = math.floor(x - half_w + 0.5), math.ceil(x + half_w + 0.5)
    top, bottom = math.floor(y - half_h + 0.5), math.ceil(y + half_h + 0.5)
    window = _clip(left, top, max(right, left + 1), max(bottom, top + 1), size_hw)
    if window is None:
        return whole
    if not on_blocks:
        return window
    grid = _clip(
        window.left // BLOCK_PX * BLOCK_PX,
        window.top // BLOCK_PX * BLOCK_PX,
        -(-window.right // BLOCK_PX) * BLOCK_PX,
        -(-window.bottom // BLOCK_PX) * BLOCK_PX,
        size_hw,
    )
    return grid if grid is not None and not _shrinks(grid, max_px) else window


def stored_size(window: Window, max_px: int) -> tuple[int, int]:
    """Return (height, width) of the stored image; never larger than its window."""
    if not _shrinks(window, max_px):
        return window.size_hw
    height, width = window.size_hw
    scale = max_px / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def stored_from_raw(window: Window, size_hw: tuple[int, int]) -> Float[np.ndarray, "2 3"]:
    """Return the affine map from raw pixels to those of the ``window`` scaled to ``size_hw``.

    Edges of the window map to edges of the stored image, half a pixel outside the pixel centres.
    """
    scale_y, scale_x = size_hw[0] / window.size_hw[0], size_hw[1] / window.size_hw[1]
    return np.array(
        [
            [scale_x, 0.0, (0.5 - window.left) * scale_x - 0.5],
            [0.0, scale_y, (0.5 - window.top) * scale_y - 0.5],
        ]
    )


def recode(
    data: bytes,
    header: JpegHeader | PngHeader,
    window: Window,
    *,
    max_px: int,
    quality: int,
    buffer: UInt8[np.ndarray, " n"],
    lens: Lens | None = None,
) -> Recoded | ImageProblem:
    """Encode the ``window`` of an image as baseline JPEG 4:2:0, or return the problem with it.

    EXIF orientation is ignored throughout: labels refer to the pixels as stored. Greyscale is
    converted to colour.

    Args:
        data: A JPEG or PNG file.
        header: Its parsed header.
        window: The part to keep.
        max_px: Longest side of the result, pixels; 0 = any.
        quality: JPEG quality.
        buffer: Buffer to decode a JPEG into, at least 3 bytes per pixel.
        lens: Lens of the image, used to undistort it; the window is in undistorted pixels.
    """
    frame = decode(data, header, buffer)
    if isinstance(frame, ImageProblem):
        return frame
    rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
    pixels = frame[rows, columns] if lens is None else straightened(frame, lens, rows, columns)
    size_hw = stored_size(window, max_px)
    if size_hw != window.size_hw:
        pixels = cv2.resize(pixels, size_hw[::-1], interpolation=cv2.INTER_AREA)
    encoded = simplejpeg.encode_jpeg(
        pixels,
        quality=quality,
        colorspace="BGR" if isinstance(header, PngHeader) else "RGB",
        colorsubsampling="420",
    )
    return Recoded(
        data=encoded,
        size_hw=size_hw,
        A_stored_from_file=stored_from_raw(window, size_hw),
        is_flat=is_flat(frame),
    )


def decode(
    data: bytes, header: JpegHeader | PngHeader, buffer: UInt8[np.ndarray, " n"]
) -> UInt8[np.ndarray, "h w 3"] | ImageProblem:
    """Decode a file to pixels (RGB for JPEG, BGR for PNG), or return the problem with it."""
    if isinstance(header, PngHeader):
        # The high 8 bits of 16, without alpha.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if frame is None:
            return undecodable("OpenCV finds its PNG data damaged")
        return frame.astype(np.uint8, copy=False)
    if header.components == 4:
        return ImageProblem(
            flag="image_not_jpeg",
            reason="has the four colours of CMYK, whose meaning as red, green and blue it does not "
            "say; convert it to RGB",
        )
    return find_hole(data, header) or decode_strictly(data, buffer=buffer)


def _shrinks(window: Window, max_px: int) -> bool:
    return 0 < max_px < max(window.size_hw)


def _clip(left: int, top: int, right: int, bottom: int, size_hw: tuple[int, int]) -> Window | None:
    """Clip a window to the image; None if nothing is left."""
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, size_hw[1]), min(bottom, size_hw[0])
    if left >= right or top >= bottom:
        return None
    return Window(left=left, top=top, right=right, bottom=bottom)
