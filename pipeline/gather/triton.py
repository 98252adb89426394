"""The gather as one Triton kernel; formulas: ``pipeline.gather.reference``.

One program computes a tile of one sample's input. Tuned without a GPU, from the machine code for
sm_90 (some 150 instructions per pixel: expected to be compute-bound, not memory-bound):

- A warp covers patches of 8 x 4 pixels. Where the crop is rotated by up to 30 degrees, a load
  reads 7.3 sectors of 32 bytes on average (16 x 2: 7.6, a row of 32: 10.5), and at any rotation
  at most 9.2 (16 x 2: 15.9, a row of 32: 29): ``benchmarks.coalescing`` counts them.
- Lanes are one-dimensional, so that the compiler has no layout to choose: Triton 3.6 lays a warp of
  a two-dimensional tile down 32 rows, which reads 28 sectors.
- A lane holds one pixel at a time and its neighbour the next pixel: a load instruction then reads
  about 100 neighbouring bytes. Wider stores would spread each load over four times that.
- Bytes are loaded one by one: 12 per pixel (rgb) or 4 and 4 pairs (yuv420). Picked from aligned
  words, rgb takes 6 loads per pixel but 15 % more instructions, yuv420 as many loads as now.
- 4 pixels per thread share the per-sample computation; 8 spill registers.
"""

import math
from typing import Final

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pipeline.decode.codec import Codec, Pixels
from pipeline.gather.params import GatherParams, InputFormat, prepare_output

BLOCK_U: Final = 16
BLOCK_V: Final = 32
NUM_WARPS: Final = 4
MAX_SAMPLES: Final = 65535
"""CUDA's limit of a grid's third axis."""


@triton.jit
def pixel_of(lane, block_u):  # type: ignore[no-untyped-def]
    """Return column and row in its tile of a lane's pixel: 32 lanes are a patch of 8 x 4."""
    patch, across = lane // 32, block_u // 8
    return patch % across * 8 + lane % 8, patch // across * 4 + lane // 8 % 4


@triton.jit
def _corner(position, side):  # type: ignore[no-untyped-def]
    """Return the first of two neighbouring pixels and the second's weight, 0 .. 256.

    A position beyond the border is clamped; on the last pixel all weight is on the second.
    """
    position = tl.minimum(tl.maximum((position + 128) >> 8, 0), (side - 1) * 256)
    first = tl.minimum(position >> 8, side - 2)
    return first, position - first * 256


@triton.jit
def _footprint(X, Y, side, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the offset of the upper left texel in its sample, and the weights of all four."""
    x, fx = _corner(X, side)
    y, fy = _corner(Y, side)
    low_right = fx * fy
    low_left = fy * 256 - low_right
    top_right = fx * 256 - low_right
    top_left = 65536 - fx * 256 - low_left
    return (y * side + x) * CHANNELS, top_left, top_right, low_left, low_right


@triton.jit
def _offset(A, i, n):  # type: ignore[no-untyped-def]
    """Return the offset of sample point ``i`` of ``n`` from the centre along one axis, floored."""
    offset = 0
    if n > 1:  # a division costs as much as a third of a pixel
        a, b = (2 * i + 1 - n) * A, 2 * n
        offset = a // b
        offset -= (a - offset * b < 0).to(tl.int32)  # floor for either rounding of //
    return offset


@triton.jit
def _mean(total, n):  # type: ignore[no-untyped-def]
    """Return the rounded mean of n * n values of 16 fractional bits.

    The division by ``m = n * n`` is a product, exact because numerators are at most 255.5 m and
    m at most 64: the error 255.5 m * (m - 1) is below 2^20.
    """
    mean = (total + n * n * 32768) >> 16
    if n > 1:
        mean = (mean * (((1 << 20) + n * n - 1) // (n * n))) >> 20
    return mean


@triton.jit
def _normalised(colour, i, p0, p1, p2, scale, black, white, erased):  # type: ignore[no-untyped-def]
    """Return channel ``i``: the float half of the formulas, without the cast."""
    m3 = tl.load(colour + i * 4 + 3) * scale + black
    value = m3 + tl.load(colour + i * 4) * scale * p0
    value += tl.load(colour + i * 4 + 1) * scale * p1
    value += tl.load(colour + i * 4 + 2) * scale * p2
    return tl.where(erased, 0.0, tl.minimum(tl.maximum(value, black), white))


@triton.jit(
    # Known alignment would only make the compiler trade one pixel per lane for wider stores.
    do_not_specialize=["side", "size", "colour_stride"],
    do_not_specialize_on_alignment=[
        "first_plane",
        "second_plane",
        "index",
        "A_q16",
        "colour",
        "erase_xyxy",
        "taps",
        "out",
    ],
)
def gather_kernel(  # type: ignore[no-untyped-def]
    first_plane,
    second_plane,
    index,
    A_q16,
    colour,
    erase_xyxy,
    taps,
    out,
    scale_r,
    black_r,
    white_r,
    scale_g,
    black_g,
    white_g,
    scale_b,
    black_b,
    white_b,
    side,
    size,
    frames,
    colour_stride,
    YUV420: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write one tile of one sample.

    Planes: rgb is (bytes, unused), yuv420 is (luma, pairs of Cb and Cr as 16-bit words). Sample
    ``k`` takes row ``k // frames`` of the parameters, which are dense but for ``colour_stride``.
    """
    lane = tl.arange(0, BLOCK_U * BLOCK_V)
    u, v = pixel_of(lane, BLOCK_U)
    u += tl.program_id(0) * BLOCK_U
    v += tl.program_id(1) * BLOCK_V
    k = tl.program_id(2)
    row = k // frames
    sample = tl.load(index + k).to(tl.int64)
    if YUV420:
        half = side // 2
        luma = first_plane + sample * side * side
        chroma = second_plane + sample * half * half
    else:
        texels = first_plane + sample * side * side * 3

    Axu, Axv = tl.load(A_q16 + row * 6), tl.load(A_q16 + row * 6 + 1)
    Ayu, Ayv = tl.load(A_q16 + row * 6 + 3), tl.load(A_q16 + row * 6 + 4)
    X0 = (Axu * u + tl.load(A_q16 + row * 6 + 2)) + Axv * v
    Y0 = (Ayu * u + tl.load(A_q16 + row * 6 + 5)) + Ayv * v

    n = tl.load(taps + row)
    sum0 = tl.zeros((BLOCK_U * BLOCK_V,), tl.int32)
    sum1 = tl.zeros((BLOCK_U * BLOCK_V,), tl.int32)
    sum2 = tl.zeros((BLOCK_U * BLOCK_V,), tl.int32)
    # No mask: a lane beyond the input is clamped to the crop like any position beyond its border.
    for j in range(n):
        dXv = _offset(Axv, j, n)
        dYv = _offset(Ayv, j, n)
        for i in range(n):
            X = X0 + (_offset(Axu, i, n) + dXv)
            Y = Y0 + (_offset(Ayu, i, n) + dYv)
            if YUV420:
                at, w00, w01, w10, w11 = _footprint(X, Y, side, 1)
                top, low = luma + at, luma + at + side
                sum0 += w00 * tl.load(top).to(tl.int32) + w01 * tl.load(top + 1).to(tl.int32)
                sum0 += w10 * tl.load(low).to(tl.int32) + w11 * tl.load(low + 1).to(tl.int32)
                at, w00, w01, w10, w11 = _footprint((X - 32768) >> 1, (Y - 32768) >> 1, half, 1)
                top, low = chroma + at, chroma + at + half
                p00, p01 = tl.load(top).to(tl.int32), tl.load(top + 1).to(tl.int32)
                p10, p11 = tl.load(low).to(tl.int32), tl.load(low + 1).to(tl.int32)
                sum1 += w00 * (p00 & 255) + w01 * (p01 & 255)
                sum1 += w10 * (p10 & 255) + w11 * (p11 & 255)
                sum2 += w00 * (p00 >> 8) + w01 * (p01 >> 8)
                sum2 += w10 * (p10 >> 8) + w11 * (p11 >> 8)
            else:
                at, w00, w01, w10, w11 = _footprint(X, Y, side, 3)
                top, low = texels + at, texels + at + side * 3
                sum0 += w00 * tl.load(top).to(tl.int32) + w01 * tl.load(top + 3).to(tl.int32)
                sum0 += w10 * tl.load(low).to(tl.int32) + w11 * tl.load(low + 3).to(tl.int32)
                sum1 += w00 * tl.load(top + 1).to(tl.int32) + w01 * tl.load(top + 4).to(tl.int32)
                sum1 += w10 * tl.load(low + 1).to(tl.int32) + w11 * tl.load(low + 4).to(tl.int32)
                sum2 += w00 * tl.load(top + 2).to(tl.int32) + w01 * tl.load(top + 5).to(tl.int32)
                sum2 += w10 * tl.load(low + 2).to(tl.int32) + w11 * tl.load(low + 5).to(tl.int32)

    p0, p1, p2 = _mean(sum0, n), _mean(sum1, n), _mean(sum2, n)
    if YUV420:
        d, e = p1 - 128, p2 - 128
        p1 = p0 + ((-22554 * d - 46802 * e + 32768) >> 16)
        p2 = p0 + ((116130 * d + 32768) >> 16)
        p0 += (91881 * e + 32768) >> 16
        p0 = tl.minimum(tl.maximum(p0, 0), 255)
        p1 = tl.minimum(tl.maximum(p1, 0), 255)
        p2 = tl.minimum(tl.maximum(p2, 0), 255)

    x0, y0 = tl.load(erase_xyxy + row * 4), tl.load(erase_xyxy + row * 4 + 1)
    x1, y1 = tl.load(erase_xyxy + row * 4 + 2), tl.load(erase_xyxy + row * 4 + 3)
    erased = ((u >= x0) & (u < x1)) & ((v >= y0) & (v < y1))
    r, g, b = p0.to(tl.float32), p1.to(tl.float32), p2.to(tl.float32)
    colour += row * colour_stride
    red = _normalised(colour, 0, r, g, b, scale_r, black_r, white_r, erased)
    green = _normalised(colour, 1, r, g, b, scale_g, black_g, white_g, erased)
    blue = _normalised(colour, 2, r, g, b, scale_b, black_b, white_b, erased)

    if out.dtype.element_ty == tl.uint8:  # the cast rounds down
        red, green, blue = red + 0.5, green + 0.5, blue + 0.5
    inside = (u < size) & (v < size)
    out += k.to(tl.int64) * (3 * size * size)
    at = v * size + u
    if CHANNELS_LAST:
        at, plane = at * 3, 1
    else:
        plane = size * size
    tl.store(out + at, red.to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + plane, green.to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + 2 * plane, blue.to(out.dtype.element_ty), mask=inside)


def gather(
    pixels: Pixels,
    index: Int64[Tensor, "*b"],
    params: GatherParams,
    form: InputFormat,
    *,
    out: Tensor | None = None,
) -> Float[Tensor, "*b 3 s s"] | UInt8[Tensor, "*b 3 s s"]:
    """Return what ``pipeline.gather.reference.gather`` says, by the kernel.

    Can be captured in a CUDA graph: nothing synchronises, and only the output is allocated.
    """
    image = prepare_output(index, params, form, pixels.device, out)
    if index.numel() > MAX_SAMPLES:
        raise ValueError(
            f"the gather takes at most {MAX_SAMPLES} samples at a time, got {index.numel()}"
        )
    first, second = pixels.planes()[0], pixels.planes()[-1]
    if pixels.codec is Codec.yuv420:
        second = second.view(torch.uint16)
    colour = params.colour.reshape(-1, 12)  # identity parameters are one row for all: stride 0
    r, g, b = form.scale_black_white()
    grid = (
        math.ceil(form.size_px / BLOCK_U),
        math.ceil(form.size_px / BLOCK_V),
        index.numel(),
    )
    with torch.cuda.device_of(image):  # type: ignore[no-untyped-call]
        gather_kernel[grid](
            first,
            second,
            index.contiguous(),
            params.A_q16.contiguous(),
            colour,
            params.erase_xyxy.contiguous(),
            params.taps.contiguous(),
            image,
            *r,
            *g,
            *b,
            pixels.size_px,
            form.size_px,
            index.numel() // max(1, params.taps.numel()),
            colour.stride(0),
            YUV420=pixels.codec is Codec.yuv420,
            CHANNELS_LAST=form.channels_last,
            BLOCK_U=BLOCK_U,
            BLOCK_V=BLOCK_V,
            num_warps=NUM_WARPS,
            num_stages=1,
        )
    return image
