"""Gather: read cached crops, warp, colour jitter, random erasing, normalise, in one pass.

Shape legend: n = cached samples, c = side of the cached crops, *b = batch [b] or windows [b, t],
m = all its samples, s = side of the input, ch = channels of a plane.

``gather_eager`` is the reference; ``pipeline.gather.triton`` is the same as one kernel for a GPU,
``pipeline.gather.cpu`` as machine code for a CPU. Up to the blend everything is integer, so that
any implementation of these formulas gives the same bits. For sample ``k`` of the batch, with
``P = pixels[index[k]]``, ``A = A_q16[k]``, ``n = taps[k]`` and input pixel ``(u, v)`` (column, row;
from 0)::

    X = A[0,0] * u + A[0,1] * v + A[0,2]        int32, 16 fractional bits; Y with A[1,:]
    X8 = (X + 128) >> 8                         8 fractional bits; arithmetic shift
    x, fx = X8 >> 8, X8 & 255                   arithmetic shift: x = floor, also below zero
    x0, x1 = clamp(x, 0, c-1), clamp(x+1, 0, c-1)    beyond the crop the border pixel repeats
    value = (256-fx)(256-fy) P[y0,x0] + fx(256-fy) P[y0,x1] + (256-fx)fy P[y1,x0] + fx fy P[y1,x1]
    p = (value + 32768) >> 16                   0..255, per channel

That is ``n = 1``. Where the warp downsamples, ``n * n`` points spaced evenly over the input pixel's
footprint are averaged, ``i`` and ``j`` from 0 to n-1; ``//`` rounds down::

    X_ij = X + ((2i + 1 - n) * A[0,0]) // (2n) + ((2j + 1 - n) * A[0,1]) // (2n)
    p = (sum of value_ij + n * n * 32768) // (n * n * 65536)

The filter support ``taps`` is 1 up to a downsampling factor ``s`` of 1.4 cache pixels per input
pixel, then ``s`` rounded up, at most 8, so that neighbouring points are at most one cache pixel
apart.

yuv420: luma at (X, Y); chroma at ``((X - 32768) >> 1, (Y - 32768) >> 1)`` with c/2 for c: the same
position in the crop, see ``pipeline.decode.codec``. There ``p`` is computed from the blended
integers.

``A_q16 = round_half_even(A_cache_from_input * 65536)``. Configuration keeps positions within int32
(tested at the extreme); the sum of 64 values is at most 64 * 255 * 65536 + 64 * 32768 < 2^30.01.
The identity returns the stored bytes. From here float32, in any order of summation, with or
without fused multiply-add::

    q[i] = clamp(M[i,0] * p[0] + M[i,1] * p[1] + M[i,2] * p[2] + M[i,3], 0, 255)
    out[i] = (q[i] / 255 - mean[i]) / std[i]                  then 0 where erased, then the cast
    out[i] = floor(q[i] + 1/2)                                if the output is uint8, the same

A pixel is erased if ``x0 <= u < x1`` and ``y0 <= v < y1`` of ``erase_xyxy[k]``.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from typing import Final

import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor

from pipeline.decode.codec import Pixels, decode
from pipeline.gather.params import GatherParams, InputFormat, prepare_output
from pipeline.host_pool import HostPool

HOST_CHUNK_PX: Final = 1 << 16
"""Input pixels at a time on the CPU, so that intermediates stay in its cache."""


def gather_eager(
    pixels: Pixels,
    index: Int64[Tensor, "*b"],
    params: GatherParams,
    form: InputFormat,
    *,
    out: Tensor | None = None,
) -> Float[Tensor, "*b 3 s s"] | UInt8[Tensor, "*b 3 s s"]:
    """Return what ``gather`` does, in plain torch; on a GPU it waits for the device."""
    image = prepare_output(index, params, form, pixels.device, out)
    flat_index, params = index.flatten(), _per_sample(params, index)
    flat = image.view(-1, 3, form.size_px, form.size_px)
    on_cpu = pixels.device.type == "cpu"
    chunk = max(1, HOST_CHUNK_PX // form.size_px**2) if on_cpu else len(flat)
    for taps, part in _runs_of_equal(params.taps.tolist(), chunk):
        warped = warp(pixels, flat_index[part], params.A_q16[part], form.size_px, taps=taps)
        recolour(warped, params.colour[part], params.erase_xyxy[part], form, out=flat[part])
    return image


def warp(
    pixels: Pixels,
    index: Int64[Tensor, " m"],
    A_q16: Int32[Tensor, "m 2 3"],
    input_px: int,
    *,
    taps: int = 1,
) -> Float32[Tensor, "3 m s s"]:
    """Return the blended pixels, integers 0..255: the integer half of the module's formulas.

    Blends in float32, which is exact: a value has 8 integer and 16 fractional bits.
    """
    u = torch.arange(input_px, dtype=torch.int32, device=A_q16.device)
    a, b, t = A_q16[..., None, None].unbind(2)  # [m, 2, 1, 1] each
    position = a * u + (b * u[:, None] + t)  # [m, 2, s, s]; 16 fractional bits
    if pixels.rgb is not None:
        return _filtered(pixels.rgb, index, position, a, b, taps)
    assert pixels.luma is not None
    assert pixels.chroma is not None
    (y,) = _filtered(pixels.luma[..., None], index, position, a, b, taps)
    cb, cr = _filtered(pixels.chroma, index, position, a, b, taps, half=True)
    return decode(y, cb, cr)


def recolour(
    warped: Float32[Tensor, "3 m s s"],
    colour: Float32[Tensor, "m 3 4"],
    erase_xyxy: Int32[Tensor, "m 4"],
    form: InputFormat,
    *,
    out: Float[Tensor, "m 3 s s"] | UInt8[Tensor, "m 3 s s"],
) -> None:
    """Write the normalised pixels to ``out``: the float half of the module's formulas.

    Multiply and add instead of a matmul, which would be rounded to TF32 where allowed.
    """
    scale, black, white = _channels(form, out.device)
    m0, m1, m2, m3 = (colour * scale)[..., None, None].unbind(2)  # [m, 3, 1, 1] each
    r, g, b = (channel[:, None] for channel in warped)
    in_place = form.dtype is torch.float32 and not form.channels_last  # an eighth faster
    value = out if in_place else _scratch(out.shape, r)
    torch.addcmul(m3 + black, m0, r, out=value).addcmul_(m1, g).addcmul_(m2, b)
    value.clamp_(black, white)
    if form.dtype is torch.uint8:
        value.add_(0.5)  # the cast rounds down
    if not in_place:
        out.copy_(value)
    for image, box in zip(out, erase_xyxy.tolist(), strict=True):
        x0, y0, x1, y1 = (max(0, edge) for edge in box)
        image[:, y0:y1, x0:x1] = 0


@cache
def _channels(form: InputFormat, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``scale_black_white`` as tensors [3, 1, 1], the scale as [3, 1]."""
    rows = torch.tensor(form.scale_black_white(), device=device)
    return rows[:, :1], rows[:, 1, None, None], rows[:, 2, None, None]


def _filtered(
    plane: UInt8[Tensor, "n c c ch"],
    index: Int64[Tensor, " m"],
    position: Int32[Tensor, "m 2 s s"],
    a: Int32[Tensor, "m 2 1 1"],
    b: Int32[Tensor, "m 2 1 1"],
    taps: int,
    *,
    half: bool = False,
) -> Float32[Tensor, "ch m s s"]:
    """Return the rounded mean of ``taps`` x ``taps`` values, 0..255."""
    levels = _levels(plane, index)

    def value(position: Tensor) -> Tensor:
        return _blend(levels, (position - 32768) >> 1 if half else position)

    if taps == 1:
        return value(position).add_(0.5).floor_()
    total = torch.zeros((), dtype=torch.int32, device=plane.device)
    for i, j in itertools.product(range(taps), repeat=2):
        du, dv = (((2 * k + 1 - taps) * A) // (2 * taps) for k, A in ((i, a), (j, b)))
        total = total + value(position + (du + dv)).mul_(65536).int()
    return total.add_(taps * taps * 32768).floor_divide_(taps * taps * 65536).float()


def _levels(
    plane: UInt8[Tensor, "n c c ch"], index: Int64[Tensor, " m"]
) -> Float32[Tensor, "m c c ch"]:
    """Return crops as floats: fewer conversions than converting four pixels per input pixel."""
    shape = (len(index), *plane.shape[1:])
    crops = torch.index_select(plane, 0, index, out=_scratch(shape, plane))
    return _scratch(shape, plane, torch.float32).copy_(crops)


def _blend(
    levels: Float32[Tensor, "m c c ch"], position: Int32[Tensor, "m 2 s s"]
) -> Float32[Tensor, "ch m s s"]:
    """Return ``value / 65536``, exactly.

    The four pixels are always neighbours: a position beyond the border is clamped to it, and on the
    last pixel the blend is of the last two with all weight on the last.
    """
    num, side, _, channels = levels.shape
    position = _add(position, 128).bitwise_right_shift_(8)  # 8 fractional bits
    position.clamp_(0, (side - 1) * 256)
    corner = _scratch(position.shape, position)
    torch.bitwise_right_shift(position, 8, out=corner).clamp_(max=side - 2)
    fraction = _scratch(position.shape, position, torch.float32)
    fx, fy = fraction.copy_(position.sub_(corner, alpha=256)).mul_(1 / 256).unbind(1)
    x, y = corner.unbind(1)
    step = side * channels
    first = torch.arange(num, dtype=torch.int32, device=levels.device) * (side * step)
    left_top = _scratch(x.shape, x)
    torch.mul(y, step, out=left_top).add_(x, alpha=channels).add_(first[:, None, None])
    corners = torch.tensor((0, channels, step, step + channels), dtype=torch.int32)
    at = _scratch((4, left_top.numel()), x)
    torch.add(corners.to(x.device)[:, None], left_top.view(-1), out=at)
    found = _scratch((channels, *at.shape), levels)
    texels = levels.view(-1)
    for k in range(channels):
        torch.index_select(texels[k:], 0, at.view(-1), out=found[k].view(-1))
    first_row, second_row = found.view(channels, 2, 2, *x.shape).unbind(1)
    top: Tensor = first_row[:, 0].lerp_(first_row[:, 1], fx)
    return top.lerp_(second_row[:, 0].lerp_(second_row[:, 1], fx), fy)


def _add(left: Tensor, right: Tensor | int) -> Tensor:
    """Return the sum of tensors of one type, the first as large as both."""
    return torch.add(left, right, out=_scratch(left.shape, left))


def _scratch(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised tensor; on a CPU from reused memory."""
    dtype = dtype or like.dtype
    if like.device.type == "cpu":
        return _SCRATCH.empty(shape, dtype)
    return torch.empty(shape, dtype=dtype, device=like.device)


_SCRATCH: Final = HostPool(most_kept=16)


def _per_sample(params: GatherParams, index: Int64[Tensor, "*b"]) -> GatherParams:
    """Return ``params`` with one row per element of ``index``."""
    frames = index.numel() // max(1, params.taps.numel())
    ndim = params.taps.ndim
    rows = {f.name: getattr(params, f.name) for f in fields(params)}
    return GatherParams(
        **{
            name: row.flatten(0, ndim - 1).repeat_interleave(frames, 0)
            for name, row in rows.items()
        }
    )


def _runs_of_equal(values: Sequence[int], longest: int) -> Iterator[tuple[int, slice]]:
    """Yield runs of equal values, at most ``longest`` long, and their value."""
    begin = 0
    for value, same in itertools.groupby(values):
        end = begin + len(list(same))
        for first in range(begin, end, longest):
            yield value, slice(first, min(end, first + longest))
        begin = end
