"""Read cached crops, warp, recolour, erase, normalise: the eager reference of the fused kernel.

Shape legend: n = cached samples, c = side of the cached crops, b = batch, s = side of the input.

Up to the blend everything is integer, so that any implementation that follows these lines gives
the same bits. For sample ``k`` of the batch, with ``P = pixels[index[k]]``, ``A = A_q16[k]`` and
input pixel ``(u, v)`` (column, row; from 0)::

    X = A[0,0] * u + A[0,1] * v + A[0,2]        int32, 16 fractional bits; Y with A[1,:]
    X8 = (X + 128) >> 8                         8 fractional bits; arithmetic shift
    x, fx = X8 >> 8, X8 & 255                   arithmetic shift: x = floor, also below zero
    x0, x1 = clamp(x, 0, c-1), clamp(x+1, 0, c-1)    beyond the crop the border pixel repeats
    value = (256-fx)(256-fy) P[y0,x0] + fx(256-fy) P[y0,x1] + (256-fx)fy P[y1,x0] + fx fy P[y1,x1]
    p = (value + 32768) >> 16                   0..255, per channel

``A_q16 = round_half_even(A_cache_from_input * 65536)``; configuration keeps every intermediate
within int32. The identity returns the stored bytes. From here float32, in any order of summation,
with or without fused multiply-add::

    q[i] = clamp(M[i,0] * p[0] + M[i,1] * p[1] + M[i,2] * p[2] + M[i,3], 0, 255)
    out[i] = (q[i] / 255 - mean[i]) / std[i]                  then 0 where erased, then the cast

A pixel is erased if ``x0 <= u < x1`` and ``y0 <= v < y1`` of ``erase_xyxy[k]``. The output is NCHW.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64, UInt8
from torch import Tensor

from pipeline.augment import AugmentParams

HOST_CHUNK: Final = 4
"""Samples at a time on the CPU, so that intermediates stay in its cache: half the time of a whole
batch of 64 samples, 160 px to 128 px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatherParams:
    """What the gather does to each sample."""

    A_q16: Int32[Tensor, "b 2 3"]
    """``A_cache_from_input``, 16 fractional bits."""
    colour: Float32[Tensor, "b 3 4"]
    erase_xyxy: Int32[Tensor, "b 4"]
    """Input pixels, half open; empty = none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFormat:
    """What the network's input looks like."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dtype: torch.dtype


def gather_params(
    A_cache_from_input: Float64[Tensor, "b 2 3"], params: AugmentParams, input_px: int
) -> GatherParams:
    """Return the parameters in the gather's number formats."""
    return GatherParams(
        A_q16=(A_cache_from_input * 65536).round().to(torch.int32),
        colour=params.colour,
        erase_xyxy=(params.erase * input_px).round().to(torch.int32),
    )


def gather(
    pixels: UInt8[Tensor, "n c c 3"],
    index: Int64[Tensor, " b"],
    params: GatherParams,
    form: InputFormat,
) -> Float[Tensor, "b 3 s s"]:
    """Return the network's input for the cached samples at ``index``."""
    chunk = HOST_CHUNK if pixels.device.type == "cpu" else len(index)
    image = pixels.new_empty((len(index), 3, form.size_px, form.size_px), dtype=form.dtype)
    for k in range(0, len(index), chunk):
        part = slice(k, k + chunk)
        warped = warp(pixels, index[part], params.A_q16[part], form.size_px)
        recolour(warped, params.colour[part], params.erase_xyxy[part], form, out=image[part])
    return image


def warp(
    pixels: UInt8[Tensor, "n c c 3"],
    index: Int64[Tensor, " b"],
    A_q16: Int32[Tensor, "b 2 3"],
    input_px: int,
) -> Int32[Tensor, "b s s 3"]:
    """Return the blended pixels, 0..255: the fixed-point half of the module's formulas."""
    side = pixels.shape[1]
    u = torch.arange(input_px, dtype=torch.int32, device=pixels.device)
    a, b, t = A_q16[..., None, None].unbind(2)  # [b, 2, 1, 1] each
    position = (a * u + (b * u[:, None] + (t + 128))) >> 8  # [b, 2, s, s]; 8 fractional bits
    whole, fraction = position >> 8, position & 255
    x0, y0 = whole.clamp(0, side - 1).unbind(1)
    x1, y1 = (whole + 1).clamp(0, side - 1).unbind(1)
    fx, fy = fraction[..., None].unbind(1)

    texels = pixels.view(-1, 3)
    first = (index * (side * side))[:, None, None]  # int64: a cache holds more than 2^31 texels

    def blend_row(y: Tensor) -> Tensor:
        left, right = (
            texels.index_select(0, (first + y * side + x).flatten()).view(*x.shape, 3).int()
            for x in (x0, x1)
        )
        return right.sub_(left).mul_(fx).add_(left, alpha=256)  # (256 - fx) left + fx right

    top, bottom = blend_row(y0), blend_row(y1)
    return bottom.sub_(top).mul_(fy).add_(top, alpha=256).add_(32768).bitwise_right_shift_(16)


def recolour(
    warped: Int32[Tensor, "b s s 3"],
    colour: Float32[Tensor, "b 3 4"],
    erase_xyxy: Int32[Tensor, "b 4"],
    form: InputFormat,
    *,
    out: Float[Tensor, "b 3 s s"],
) -> None:
    """Write the normalised pixels to ``out``: the float half of the module's formulas.

    Multiply and add instead of a matrix product: that would be rounded to TF32 where allowed.
    """
    r, g, b = warped.float().unbind(-1)
    grid = torch.arange(form.size_px, dtype=torch.int32, device=warped.device)
    x0, y0, x1, y1 = erase_xyxy[:, :, None, None].unbind(1)
    erased = (grid >= x0) & (grid < x1) & ((grid[:, None] >= y0) & (grid[:, None] < y1))
    for i, (mean, std) in enumerate(zip(form.mean, form.std, strict=True)):
        black, white = -mean / std, (1 - mean) / std
        m0, m1, m2, m3 = (colour[:, i, :, None, None] / (255 * std)).unbind(1)
        value = torch.addcmul(m3 + black, m0, r).addcmul_(m1, g).addcmul_(m2, b)
        out[:, i] = value.clamp_(black, white).masked_fill_(erased, 0)
