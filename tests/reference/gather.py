"""One pixel at a time, with Python's unbounded integers: codecs, warp, footprint, colour, erase.

Written from the formulas in the docstrings of ``pipeline.decode.codec`` and
``pipeline.gather.reference``. Images are [c, c, ch] of bytes, affines lists of
integers with 16 fractional bits.
"""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Affine = list[list[int]]
Bytes = NDArray[np.uint8]


def clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def encode_yuv420(image: Bytes) -> tuple[Bytes, Bytes]:
    """Return luma [c, c, 1] and chroma [c/2, c/2, 2]."""
    side = image.shape[0]
    luma = np.zeros((side, side, 1), np.uint8)
    chroma = np.zeros((side // 2, side // 2, 2), np.uint8)
    for y, x in itertools.product(range(side), repeat=2):
        r, g, b = (int(value) for value in image[y, x])
        luma[y, x] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16
    for y, x in itertools.product(range(side // 2), repeat=2):
        block = image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(4, 3)
        r, g, b = (sum(int(value) for value in block[:, k]) for k in range(3))
        middle = (128 << 18) + (1 << 17)
        chroma[y, x, 0] = clamp((-11056 * r - 21712 * g + 32768 * b + middle) >> 18, 0, 255)
        chroma[y, x, 1] = clamp((32768 * r - 27440 * g - 5328 * b + middle) >> 18, 0, 255)
    return luma, chroma


def decode_yuv(y: int, cb: int, cr: int) -> tuple[int, int, int]:
    d, e = cb - 128, cr - 128
    return (
        clamp(y + ((91881 * e + 32768) >> 16), 0, 255),
        clamp(y + ((-22554 * d - 46802 * e + 32768) >> 16), 0, 255),
        clamp(y + ((116130 * d + 32768) >> 16), 0, 255),
    )


def value_at(plane: Bytes, X: int, Y: int) -> list[int]:
    """Return the blend at a position of 16 fractional bits; 16 fractional bits, per channel."""
    side = plane.shape[0]
    X8, Y8 = (X + 128) // 256, (Y + 128) // 256
    x, fx, y, fy = X8 // 256, X8 % 256, Y8 // 256, Y8 % 256
    xs = [clamp(x + step, 0, side - 1) for step in (0, 1)]
    ys = [clamp(y + step, 0, side - 1) for step in (0, 1)]
    values = []
    for k in range(plane.shape[2]):
        top = (256 - fx) * int(plane[ys[0], xs[0], k]) + fx * int(plane[ys[0], xs[1], k])
        low = (256 - fx) * int(plane[ys[1], xs[0], k]) + fx * int(plane[ys[1], xs[1], k])
        values.append((256 - fy) * top + fy * low)
    return values


def pixel_at(plane: Bytes, A: Affine, u: int, v: int, taps: int, *, half: bool) -> list[int]:
    """Return the mean of the taps of one input pixel, 0..255 per channel."""
    total = [0] * plane.shape[2]
    for i, j in itertools.product(range(taps), repeat=2):
        X, Y = (
            row[0] * u
            + row[1] * v
            + row[2]
            + ((2 * i + 1 - taps) * row[0]) // (2 * taps)
            + ((2 * j + 1 - taps) * row[1]) // (2 * taps)
            for row in A
        )
        if half:
            X, Y = (X - 32768) // 2, (Y - 32768) // 2
        assert -(2**31) <= X < 2**31 - 128
        total = [a + b for a, b in zip(total, value_at(plane, X, Y), strict=True)]
    return [(value + taps * taps * 32768) // (taps * taps * 65536) for value in total]


def warp_rgb(image: Bytes, A: Affine, size: int, taps: int) -> NDArray[np.int64]:
    """Return [size, size, 3]."""
    out = np.zeros((size, size, 3), np.int64)
    for v, u in itertools.product(range(size), repeat=2):
        out[v, u] = pixel_at(image, A, u, v, taps, half=False)
    return out


def warp_yuv420(luma: Bytes, chroma: Bytes, A: Affine, size: int, taps: int) -> NDArray[np.int64]:
    """Return [size, size, 3], red, green, blue."""
    out = np.zeros((size, size, 3), np.int64)
    for v, u in itertools.product(range(size), repeat=2):
        (y,) = pixel_at(luma, A, u, v, taps, half=False)
        cb, cr = pixel_at(chroma, A, u, v, taps, half=True)
        out[v, u] = decode_yuv(y, cb, cr)
    return out


def finish(
    warped: NDArray[np.int64],
    colour: NDArray[np.float32],
    erase: list[int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> NDArray[np.float64]:
    """Return [3, size, size]: colour, clamp, normalisation, erasing, in float64."""
    size = warped.shape[0]
    out = np.zeros((3, size, size))
    for v, u, i in itertools.product(range(size), range(size), range(3)):
        if erase[0] <= u < erase[2] and erase[1] <= v < erase[3]:
            continue
        value = sum(float(colour[i, k]) * int(warped[v, u, k]) for k in range(3))
        value = min(max(value + float(colour[i, 3]), 0.0), 255.0)
        out[i, v, u] = (value / 255 - mean[i]) / std[i]
    return out


def bilinear(image: NDArray[np.generic], A: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return the exact bilinear warp [size, size, ch] in float64, border pixels repeated."""
    v, u = np.mgrid[:size, :size].astype(np.float64)
    return bilinear_at(image, A, u, v)


def bilinear_at(
    image: NDArray[np.generic],
    A: NDArray[np.float64],
    u: NDArray[np.float64],
    v: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the interpolated image where ``A`` takes the input points ``(u, v)``."""
    last = image.shape[0] - 1
    x, y = (row[0] * u + row[1] * v + row[2] for row in A)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    total = np.zeros((*u.shape, image.shape[2]))
    for i, j in itertools.product((0, 1), repeat=2):
        weight = (1 - np.abs(x - (x0 + i))) * (1 - np.abs(y - (y0 + j)))
        texel = image[np.clip(y0 + j, 0, last), np.clip(x0 + i, 0, last)].astype(np.float64)
        total += weight[..., None] * texel
    return total


def box(
    image: NDArray[np.generic], A: NDArray[np.float64], size: int, points: int = 12
) -> NDArray[np.float64]:
    """Return the mean of the bilinear image over each input pixel's square by a dense sum."""
    v, u = np.mgrid[:size, :size].astype(np.float64)
    total = np.zeros((size, size, image.shape[2]))
    offsets = (np.arange(points) + 0.5) / points - 0.5
    for du, dv in itertools.product(offsets, repeat=2):
        total += bilinear_at(image, A, u + du, v + dv)
    return total / points**2


def taps_of(A: NDArray[np.float64]) -> int:
    """Return the taps for ``A_cache_from_input``."""
    shrink = math.sqrt(abs(A[0, 0] * A[1, 1] - A[0, 1] * A[1, 0]))
    return 1 if shrink <= 1.4 else min(math.ceil(shrink - 1e-6), 8)
