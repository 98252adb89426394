"""What a PNG file says about itself, without decoding it.

Walks the chunks from the signature to IEND: enough to know the size and whether the file was cut
off. Damage inside a chunk is not seen; its CRC is the decoder's to check.

Source: PNG specification (third edition), clause 5.
"""

from dataclasses import dataclass
from typing import Final

from preprocess.images.jpeg import JpegProblem

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES: Final = 13
_LONGEST_SIDE: Final = 65_500
"""What libjpeg encodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PngHeader:
    """A PNG that becomes a JPEG."""

    height: int
    width: int


def read_png_header(data: bytes) -> PngHeader | JpegProblem:
    """Return the header of a complete PNG file, or the problem with it."""
    if not data.startswith(SIGNATURE):
        return _not_png("lacks the signature")
    header: PngHeader | None = None
    position = len(SIGNATURE)
    while True:
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 12 + length  # length, kind, content, CRC
        if end > len(data):
            reason = f"is cut off: no IEND chunk in {len(data)} bytes"
            return JpegProblem(flag="image_truncated", reason=reason)
        if header is None:
            if kind != b"IHDR" or length != _HEADER_BYTES:
                return _not_png(f"begins with a chunk {kind!r} of {length} bytes, not IHDR")
            width = int.from_bytes(data[position + 8 : position + 12], "big")
            height = int.from_bytes(data[position + 12 : position + 16], "big")
            if not (0 < width <= _LONGEST_SIDE and 0 < height <= _LONGEST_SIDE):
                return _not_png(f"has {width} x {height} pixels; expected 1 to {_LONGEST_SIDE}")
            header = PngHeader(height=height, width=width)
        elif kind == b"IEND":
            return header
        position = end


def _not_png(reason: str) -> JpegProblem:
    return JpegProblem(flag="image_not_jpeg", reason=f"is not a PNG we can use: it {reason}")
