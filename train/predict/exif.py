"""Focal length that a camera wrote into an image's EXIF."""

import io
import math
from typing import Any, Final

FILM_DIAGONAL_MM: Final = math.hypot(36, 24)
FOCAL_35MM: Final = 0xA405
"""FocalLengthIn35mmFilm: equal field of view over the diagonal."""
EXIF_FOLDER: Final = 0x8769


def focal_px_of(data: bytes, size_wh: tuple[int, int]) -> float | None:
    """Return the focal length in pixels of an image file, None where it says none.

    From the focal length in terms of 35 mm film, which zoomed, cropped sensors and telephone lenses
    give alike; that in millimetres means nothing without the sensor's size.
    """
    from PIL import Image  # only where an image has EXIF data at all

    if b"Exif" not in data[:65536] and b"eXIf" not in data[:65536]:
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            value: Any = image.getexif().get_ifd(EXIF_FOLDER).get(FOCAL_35MM)
        millimetres = float(value)
    except Exception:
        return None
    if not 1 <= millimetres <= 5000:
        return None
    return millimetres / FILM_DIAGONAL_MM * math.hypot(*size_wh)
