"""How a cached crop is kept on the device: as RGB bytes, or as JPEG's own planes at half the size.

Shape legend: n = cached samples, c = side of a cached crop, h = c / 2, m = crops at a time,
s = side of the input.

``rgb`` is 3 bytes per pixel. ``yuv420`` is a plane of luma and one of (Cb, Cr) pairs at half the
resolution: 1.5 bytes per pixel, and lossy. It is full-range BT.601 as in JFIF. A chroma sample
sits in the middle of its 2x2 luma pixels, as in JPEG files and unlike MPEG's left edge: the centre
of chroma sample ``i`` is at luma coordinate ``2 i + 1/2``.

All arithmetic is integer, so that every device gives the same bytes. Encoding, with ``R4`` the sum
of red over a 2x2 block::

    Y  = (19595 R + 38470 G + 7471 B + 32768) >> 16
    Cb = clamp((-11056 R4 - 21712 G4 + 32768 B4 + (128 << 18) + (1 << 17)) >> 18, 0, 255)
    Cr = clamp(( 32768 R4 - 27440 G4 -  5328 B4 + (128 << 18) + (1 << 17)) >> 18, 0, 255)

Decoding, which the gather does after blending, so on blended integers, with ``d = Cb - 128`` and
``e = Cr - 128``; shifts are arithmetic::

    R = clamp(Y + ((91881 e + 32768) >> 16), 0, 255)
    G = clamp(Y + ((-22554 d - 46802 e + 32768) >> 16), 0, 255)
    B = clamp(Y + ((116130 d + 32768) >> 16), 0, 255)

Here these run in float32, which is exact and faster on a CPU: every sum above is an integer (that
of the chroma a multiple of 16) of at most 24 bits, and the shift is a scaling and a floor.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from pipeline.config import Codec

__all__ = ["Codec", "Pixels", "allocate", "bytes_per_sample", "decode", "encode", "write"]

MIN_SIDE: Final = 4
"""Of a cached crop: the gather blends 2x2 samples, of the chroma plane too."""
_CHUNK_PX: Final = {"cpu": 1 << 17, "cuda": 1 << 23}
"""Pixels encoded at a time: within the CPU's cache; within 200 MB of the GPU's memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """Crops on a device; which planes are there depends on the codec."""

    codec: Codec
    rgb: UInt8[Tensor, "n c c 3"] | None = None
    luma: UInt8[Tensor, "n c c"] | None = None
    chroma: UInt8[Tensor, "n h h 2"] | None = None
    """Cb, Cr."""

    def __len__(self) -> int:
        return len(self._first)

    @property
    def size_px(self) -> int:
        """Side of a crop."""
        return self._first.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the planes are."""
        return self._first.device

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return len(self) * bytes_per_sample(self.codec, self.size_px)

    def planes(self) -> tuple[Tensor, ...]:
        """Return the planes that are there: ``rgb``, or ``luma`` and ``chroma``."""
        return tuple(p for p in (self.rgb, self.luma, self.chroma) if p is not None)

    @property
    def _first(self) -> Tensor:
        return self.planes()[0]


def bytes_per_sample(codec: Codec, size_px: int) -> int:
    """Return what one cached crop takes."""
    return 3 * size_px * size_px // (2 if codec is Codec.yuv420 else 1)


def allocate(num: int, size_px: int, codec: Codec, device: torch.device) -> Pixels:
    """Return ``num`` black crops.

    Raises:
        ValueError: If ``size_px`` is below 4, or odd and the codec halves it.
    """
    if size_px < MIN_SIDE or (codec is Codec.yuv420 and size_px % 2):
        even = " and even" if codec is Codec.yuv420 else ""
        raise ValueError(
            f"cache.size_px must be at least {MIN_SIDE}{even} for cache.codec={codec.value}, "
            f"got {size_px}"
        )

    def plane(*shape: int, value: int = 0) -> Tensor:
        return torch.full((num, *shape), value, dtype=torch.uint8, device=device)

    if codec is Codec.rgb:
        return Pixels(codec=codec, rgb=plane(size_px, size_px, 3))
    return Pixels(
        codec=codec,
        luma=plane(size_px, size_px),
        chroma=plane(size_px // 2, size_px // 2, 2, value=128),
    )


def write(pixels: Pixels, place: Int64[Tensor, " m"], crops: UInt8[Tensor, "m c c 3"]) -> None:
    """Encode ``crops`` and copy them to rows ``place``; does not wait for the device."""
    if pixels.rgb is not None:
        pixels.rgb.index_copy_(0, place, crops)
        return
    assert pixels.luma is not None
    assert pixels.chroma is not None
    chunk = max(1, _CHUNK_PX[pixels.device.type] // pixels.size_px**2)
    for part, some in zip(torch.split(place, chunk), torch.split(crops, chunk), strict=True):
        luma, chroma = encode(some)
        pixels.luma.index_copy_(0, part, luma)
        pixels.chroma.index_copy_(0, part, chroma)


def encode(
    crops: UInt8[Tensor, "m c c 3"],
) -> tuple[UInt8[Tensor, "m c c"], UInt8[Tensor, "m h h 2"]]:
    """Return luma and chroma: the module's first formulas."""
    m, side = crops.shape[:2]
    planar = torch.empty((3, m, side, side), dtype=torch.float32, device=crops.device)
    r, g, b = planar.copy_(crops.permute(3, 0, 1, 2))
    luma = (r * (19595 / 65536)).add_(g, alpha=38470 / 65536).add_(b, alpha=7471 / 65536)
    luma = luma.add_(0.5).floor_().to(torch.uint8)
    rows = planar[:, :, 0::2] + planar[:, :, 1::2]  # a quarter of avg_pool2d's time
    r, g, b = rows[..., 0::2] + rows[..., 1::2]
    chroma = torch.empty((m, side // 2, side // 2, 2), dtype=torch.uint8, device=crops.device)
    for k, (of_r, of_g, of_b) in enumerate(((-11056, -21712, 32768), (32768, -27440, -5328))):
        value = (r * (of_r / 2**18)).add_(g, alpha=of_g / 2**18).add_(b, alpha=of_b / 2**18)
        chroma[..., k] = value.add_(128.5).floor_().clamp_(0, 255)
    return luma, chroma


def decode(
    y: Float32[Tensor, "m s s"], cb: Float32[Tensor, "m s s"], cr: Float32[Tensor, "m s s"]
) -> Float32[Tensor, "3 m s s"]:
    """Return red, green, blue of blended integers 0..255: the module's last formulas."""
    d, e = cb - 128, cr - 128
    rgb = y.new_empty((3, *y.shape))
    torch.mul(e, 91881 / 65536, out=rgb[0])
    torch.mul(d, -22554 / 65536, out=rgb[1]).add_(e, alpha=-46802 / 65536)
    torch.mul(d, 116130 / 65536, out=rgb[2])
    return rgb.add_(0.5).floor_().add_(y).clamp_(0, 255)
