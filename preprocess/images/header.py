"""Parse JPEG and PNG headers without decoding: size, coding process and whether the file is whole.

Walks the segments of a JPEG to its first scan, or the chunks of a PNG to the last one, in a few
microseconds. Damage inside the coded pixels goes unnoticed; the decoder finds it.

Pillow reads headers too, but does not report the frame type: extended, lossless and arithmetic
coding look like baseline, and none of the decoders used here supports the last two. It also skips
junk between segments, warns about odd EXIF, and takes three times as long.

Source: ITU-T T.81, annex B; PNG specification (third edition), clause 5.
"""

import struct
from dataclasses import dataclass, field, replace
from typing import Final

_SOI: Final = b"\xff\xd8"
_EOI: Final = b"\xff\xd9"
_SOS: Final = 0xDA
_DHT: Final = 0xC4
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM, RST0-7: no length follows
_PROCESSES: Final = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_OTHER_FRAMES: Final = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}  # DHT, JPG, DAC
_SEGMENT: Final = struct.Struct(">BBH")  # ff, marker, length
_FRAME: Final = struct.Struct(">BHHB")  # precision, height, width, components

_END_OF_BLOCK: Final = 0x00
_ZERO_RUN: Final = 0xF0
"""Symbols of AC coefficients: the rest of the block is zero; 16 coefficients are."""

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_IHDR_BYTES: Final = 13
_SIZE: Final = struct.Struct(">II")  # width, height: how IHDR begins
_LONGEST_SIDE: Final = 65_500
"""Largest image side that libjpeg encodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegHeader:
    """Header of a JPEG that all decoders used here support."""

    height: int
    width: int
    components: int
    """1 grey, 3 colour, 4 CMYK."""
    process: str
    """``baseline``, ``extended`` or ``progressive``."""
    scan_byte: int = field(default=0, compare=False)
    """Where the first scan begins."""
    zero_runs: bool = field(default=True, compare=False)
    """Whether flat areas may be coded as zero bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PngHeader:
    """Header of a PNG, which is recoded to JPEG."""

    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageProblem:
    """Reason why a store cannot hold an image."""

    flag: str
    """Key of ``pipeline.store.schema.FLAGS`` that starts with ``image_``."""
    reason: str
    """Completes "the image ...": ``is cut off: ...``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeLimit:
    """Largest image that is decoded: a damaged header may claim gigabytes of pixels."""

    side_px: int = 16_384
    megapixels: float = 200.0

    def problem(self, header: JpegHeader | PngHeader) -> ImageProblem | None:
        """Return the problem with an image beyond the limit, else None."""
        height, width = header.height, header.width
        if max(height, width) <= self.side_px and height * width <= self.megapixels * 1e6:
            return None
        return ImageProblem(
            flag="image_not_jpeg",
            reason=f"claims {width} x {height} pixels, expected at most {self.side_px} a side "
            f"(image.limit_side_px) and {self.megapixels:g} million (image.limit_megapixels)",
        )


def read_header(data: bytes) -> JpegHeader | PngHeader | ImageProblem:
    """Return the header of a complete PNG or JPEG file, or the problem with it."""
    return read_png_header(data) if data.startswith(PNG_SIGNATURE) else read_jpeg_header(data)


def read_jpeg_header(data: bytes) -> JpegHeader | ImageProblem:
    """Return the header of a complete JPEG file, or the problem with it."""
    if not data:
        return _truncated("is empty")
    if data == _SOI[:1]:
        return _truncated("is cut off after 1 byte")
    if not data.startswith(_SOI):
        return _not_jpeg(f"starts with {data[:4].hex(' ')}, a JPEG with ff d8")
    header: JpegHeader | None = None
    first_ac = dict[int, int]()
    position = len(_SOI)
    while position + _SEGMENT.size <= len(data):
        prefix, marker, length = _SEGMENT.unpack_from(data, position)
        if prefix != 0xFF:
            return _not_jpeg(f"has no marker at byte {position}")
        if marker == 0xFF or marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2  # the former is a fill byte
            continue
        if marker == _EOI[1]:
            return _not_jpeg("ends before its first scan")
        if length < 2:
            return _not_jpeg(f"has a broken segment at byte {position}")
        if marker == _SOS:
            if header is None:
                return _not_jpeg("has a scan but no frame header")
            # In coded pixels every ff is stuffed with 00, so ff d9 after SOS is a real end marker;
            # bytes that a camera or a file system appended to it do no harm.
            if data.rfind(_EOI, position) < 0:
                return _truncated(f"is cut off: no end-of-image marker in {len(data)} bytes")
            scan = data[position + 4 : position + 2 + length]
            return replace(header, scan_byte=position, zero_runs=_zero_runs(header, scan, first_ac))
        segment = data[position + 4 : position + 2 + length]
        if len(segment) < length - 2:
            break
        if marker == _DHT:
            first_ac |= _first_ac_symbols(segment)
        if marker in _OTHER_FRAMES:
            return _not_jpeg(f"uses the coding process SOF{marker - 0xC0}, which no decoder takes")
        if marker in _PROCESSES:
            found = _frame_header(segment, _PROCESSES[marker])
            if isinstance(found, ImageProblem):
                return found
            header = found
        position += 2 + length
    return _truncated(f"is cut off in the header, after {len(data)} bytes")


def _frame_header(segment: bytes, process: str) -> JpegHeader | ImageProblem:
    """Parse the content of a SOF segment: ``_FRAME``, then 3 bytes per component."""
    if len(segment) < _FRAME.size or len(segment) < _FRAME.size + 3 * segment[5]:
        return _not_jpeg("has a broken frame header")
    precision, height, width, components = _FRAME.unpack_from(segment)
    if precision != 8 or height == 0 or width == 0 or components not in (1, 3, 4):
        return _not_jpeg(
            f"has {width} x {height} pixels, {components} components of {precision} bits; "
            "expected a size, 1, 3 or 4 components and 8 bits"
        )
    return JpegHeader(height=height, width=width, components=components, process=process)


def _first_ac_symbols(segment: bytes) -> dict[int, int]:
    """Return the symbol that is coded as zero bits by each AC table of a DHT segment."""
    found: dict[int, int] = {}
    position = 0
    while position + 17 < len(segment):  # class and number, 16 counts, symbols
        kind, number = divmod(segment[position], 16)
        if kind == 1:
            found[number] = segment[position + 17]
        position += 17 + sum(segment[position + 1 : position + 17])
    return found


def _zero_runs(header: JpegHeader, scan: bytes, first_ac: dict[int, int]) -> bool:
    """Return whether long runs of zero bytes may be coded pixels.

    Zero bits are the code of some symbol, over and over. If that is the end of a block or a run of
    zero coefficients, the area is flat; any other symbol gives each of 63 coefficients of each
    block the same value other than zero, which no image has. Known for a single sequential scan of
    all components.
    """
    if header.process == "progressive" or len(scan) < 3 or scan[0] != header.components:
        return True
    return first_ac.get(scan[2] & 15, _END_OF_BLOCK) in (_END_OF_BLOCK, _ZERO_RUN)


def read_png_header(data: bytes) -> PngHeader | ImageProblem:
    """Return the header of a complete PNG file, or the problem with it."""
    if not data.startswith(PNG_SIGNATURE):
        return _not_png("lacks the signature")
    height = width = 0
    position, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        length = int.from_bytes(data[position : position + 4])
        kind, content = data[position + 4 : position + 8], position + 8
        if content + length + 4 > len(data):  # the last 4 are the CRC
            return _truncated(f"is cut off: no IEND chunk in {len(data)} bytes")
        if position == len(PNG_SIGNATURE):
            if kind != b"IHDR" or length != _IHDR_BYTES:
                return _not_png(f"begins with a chunk {kind!r} of {length} bytes, not IHDR")
            width, height = _SIZE.unpack_from(data, content)
            if not (0 < width <= _LONGEST_SIDE and 0 < height <= _LONGEST_SIDE):
                return _not_png(f"has {width} x {height} pixels; expected 1 to {_LONGEST_SIDE}")
        position = content + length + 4
    return PngHeader(height=height, width=width)


def _truncated(reason: str) -> ImageProblem:
    return ImageProblem(flag="image_truncated", reason=reason)


def _not_jpeg(reason: str) -> ImageProblem:
    return ImageProblem(flag="image_not_jpeg", reason=f"is not a JPEG we can use: it {reason}")


def _not_png(reason: str) -> ImageProblem:
    return ImageProblem(flag="image_not_jpeg", reason=f"is not a PNG we can use: it {reason}")
