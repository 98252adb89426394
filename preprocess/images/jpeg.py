"""What a JPEG file says about itself, without decoding it.

Walks the marker segments from SOI to the first scan and looks for EOI behind it: enough to know
the size, the coding process and whether the file was cut off, at microseconds per file. Damage
inside the entropy-coded data is not seen; that is the decoder's to find.

Source: ITU-T T.81, annex B.
"""

from dataclasses import dataclass
from typing import Final

_SOI: Final = b"\xff\xd8"
_EOI: Final = b"\xff\xd9"
_SOS: Final = 0xDA
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM, RST0-7: no length follows
_FRAMES: Final = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_OTHER_FRAMES: Final = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}  # DHT, JPG, DAC


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegHeader:
    """A JPEG that every decoder of ours takes."""

    height: int
    width: int
    components: int
    """1 grey, 3 colour, 4 CMYK."""
    process: str
    """``baseline``, ``extended`` or ``progressive``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegProblem:
    """Why the bytes are not a usable JPEG."""

    flag: str
    """Key of ``pipeline.store.schema.FLAGS``: ``image_truncated`` or ``image_not_jpeg``."""
    reason: str
    """Completes "the image ...": ``is cut off: ...``."""


def read_header(data: bytes) -> JpegHeader | JpegProblem:
    """Return the header of a complete JPEG file, or the problem with it."""
    if not data:
        return _truncated("is empty")
    if not data.startswith(_SOI):
        if len(data) < len(_SOI) and _SOI.startswith(data):
            return _truncated(f"is cut off after {len(data)} byte")
        return _not_jpeg(f"starts with {data[:4].hex(' ')}, a JPEG with ff d8")
    header: JpegHeader | None = None
    position = len(_SOI)
    while True:
        if position + 4 > len(data):
            return _truncated(f"is cut off in the header, after {len(data)} bytes")
        if data[position] != 0xFF:
            return _not_jpeg(f"has no marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _STANDALONE:
            position += 2
            continue
        if marker == _EOI[1]:
            return _not_jpeg("ends before its first scan")
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if length < 2:
            return _not_jpeg(f"has a broken segment at byte {position}")
        if marker == _SOS:
            break
        segment = data[position + 4 : position + 2 + length]
        if len(segment) < length - 2:
            return _truncated(f"is cut off in the header, after {len(data)} bytes")
        if marker in _FRAMES:
            found = _parse_frame(segment, _FRAMES[marker])
            if isinstance(found, JpegProblem):
                return found
            header = found
        elif marker in _OTHER_FRAMES:
            return _not_jpeg(f"uses the coding process SOF{marker - 0xC0}, which no decoder takes")
        position += 2 + length
    if header is None:
        return _not_jpeg("has a scan but no frame header")
    # Entropy-coded data stuffs every ff with 00, so ff d9 behind SOS is the end, not chance; bytes
    # that a camera or a file system put behind it do no harm.
    if data.rfind(_EOI, position) < 0:
        return _truncated(f"is cut off: no end-of-image marker in {len(data)} bytes")
    return header


def _parse_frame(segment: bytes, process: str) -> JpegHeader | JpegProblem:
    """Return the header in the payload of a SOF segment: P, Y, X, Nf, 3 bytes per component."""
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        return _not_jpeg("has a broken frame header")
    precision, components = segment[0], segment[5]
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    if precision != 8 or height == 0 or width == 0 or components not in (1, 3, 4):
        return _not_jpeg(
            f"has {width} x {height} pixels, {components} components of {precision} bits; "
            "expected a size, 1, 3 or 4 components and 8 bits"
        )
    return JpegHeader(height=height, width=width, components=components, process=process)


def _truncated(reason: str) -> JpegProblem:
    return JpegProblem(flag="image_truncated", reason=reason)


def _not_jpeg(reason: str) -> JpegProblem:
    return JpegProblem(flag="image_not_jpeg", reason=f"is not a JPEG we can use: it {reason}")
