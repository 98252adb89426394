"""A batch without its pixels as one Triton kernel; reference: ``pipeline.labels.prepare``.

One program is one sample, one warp wide: per-sample scalars are computed redundantly by all lanes,
joints and matrices have a lane per row. Everything is float64 in the order of the reference and
without fused multiply-add, so that the results equal the reference up to the last bit of sine and
cosine, on every GPU. Python floats arrive as float64 by annotation. Literals are float64 only as
operands of + - * /: comparisons, ``tl.where``, ``tl.maximum`` convert them to float32 first.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Int64
from torch import Tensor

from pipeline.batch import Batch
from pipeline.config import AugmentConfig, PipelineConfig, ViewKind
from pipeline.gather.augment import LUMA, MID_GREY
from pipeline.gather.params import MAX_TAPS, SLACK, UNFILTERED, GatherParams
from pipeline.labels.outputs import empty_outputs
from pipeline.labels.table import LabelTable
from pipeline.philox import Stream
from pipeline.view import ViewTable

NUM_WARPS: Final = 1
OPTIONS: Final = {"enable_fp_fusion": False}
OFF: Final = AugmentConfig(
    rotation_deg=0, scale=0, shift=0, gain=0, brightness=0, contrast=0, saturation=0
)
"""Ranges of no augmentation: the samples are multiplied by 0."""
RANGES: Final = tuple(f.name for f in fields(OFF) if f.name != "rotation_deg")
"""Ranges that are passed to the kernel unchanged."""

_FIRST_BLOCK = tl.constexpr(int(Stream.augment) << 16)
_STEP = tl.constexpr(2.0**-32)
_RED, _GREEN, _BLUE = (tl.constexpr(weight) for weight in LUMA)
_MID_GREY = tl.constexpr(MID_GREY)
_MAX_TAPS, _UNFILTERED, _SLACK = map(tl.constexpr, (MAX_TAPS, UNFILTERED, SLACK))
_TO_INTEGER = tl.constexpr(1.5 * 2.0**52)
_S1, _S2 = tl.constexpr(-1.66666666666666324348e-01), tl.constexpr(8.33333333332248946124e-03)
_S3, _S4 = tl.constexpr(-1.98412698298579493134e-04), tl.constexpr(2.75573137070700676789e-06)
_S5, _S6 = tl.constexpr(-2.50507602534068634195e-08), tl.constexpr(1.58969099521155010221e-10)


@triton.jit
def uniforms(seed, epoch, sample_id, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return samples 4 * block to 4 * block + 3 of ``pipeline.philox.uniforms``, bit for bit."""
    w0, w1, w2, w3 = tl.philox(
        seed,
        sample_id.to(tl.uint32),
        (sample_id >> 32).to(tl.uint32),
        epoch.to(tl.uint32),
        tl.full((), _FIRST_BLOCK + block, tl.uint32),
    )
    return (
        (w0.to(tl.float64) + 0.5) * _STEP,
        (w1.to(tl.float64) + 0.5) * _STEP,
        (w2.to(tl.float64) + 0.5) * _STEP,
        (w3.to(tl.float64) + 0.5) * _STEP,
    )


@triton.jit
def cosine_sine(angle):  # type: ignore[no-untyped-def]
    """Return cosine and sine of an angle in [-pi, pi], from the sine of a quarter of it.

    ``tl.sin`` handles angles of any size, which takes stack memory. Coefficients of FreeBSD's
    k_sin.c, accurate to an ulp up to pi / 4.
    """
    r = angle * 0.25
    z = r * r
    tail = _S2 + z * (_S3 + z * (_S4 + z * (_S5 + z * _S6)))
    sin = r + r * z * (_S1 + z * tail)
    cos = tl.sqrt(1.0 - sin * sin)
    sin, cos = 2.0 * sin * cos, 1.0 - 2.0 * sin * sin
    return 1.0 - 2.0 * sin * sin, 2.0 * sin * cos


@triton.jit
def _turned(cos, sin, x, y, z):  # type: ignore[no-untyped-def]
    """Return ``in_plane_rotation @ (x, y, z)``; a NaN in one is NaN in all, as in a matmul."""
    return (
        cos * x - sin * y + 0.0 * z,
        sin * x + cos * y + 0.0 * z,
        0.0 * x + 0.0 * y + z,
    )


@triton.jit
def rounded(x):  # type: ignore[no-untyped-def]
    """Return the nearest integer, ties to even, by adding and subtracting 1.5 * 2^52."""
    return ((x + _TO_INTEGER) - _TO_INTEGER).to(tl.int32)


@triton.jit
def _load3(at, stride, mask=None):  # type: ignore[no-untyped-def]
    """Load three values ``stride`` apart."""
    return (
        tl.load(at, mask=mask).to(tl.float64),
        tl.load(at + stride, mask=mask).to(tl.float64),
        tl.load(at + 2 * stride, mask=mask).to(tl.float64),
    )


@triton.jit
def _store3(at, stride, x, y, z, mask=None):  # type: ignore[no-untyped-def]
    tl.store(at, x, mask=mask)
    tl.store(at + stride, y, mask=mask)
    tl.store(at + 2 * stride, z, mask=mask)


@triton.jit
def _store_colour(at, j, weight: tl.constexpr, saturation, contrast, gain):  # type: ignore[no-untyped-def]
    """Write column ``j`` of the colour matrix."""
    i = tl.arange(0, 4)
    linear = saturation * (i == j).to(tl.float64) + (1 - saturation) * weight
    tl.store(at + i * 4 + j, contrast * linear * gain, mask=i < 3)


# One build for any values and alignment: no specialisation on all arguments but the first two.
@triton.jit(do_not_specialize=range(2, 64))
def prepare_kernel(  # type: ignore[no-untyped-def]
    HANDS: tl.constexpr, MIRROR: tl.constexpr,
    index, epoch, is_real,
    sample_id, center_px, size_px, A_cache_from_frame,
    K, joints_3d, joint_valid, theta_rotmat, beta, transl, root_rest,
    has_joints, has_mano, has_beta, is_right,
    object_id, object_pose, object_arti_rad, has_object, joint_set,
    out_A_q16, out_colour, out_erase_xyxy, out_taps,
    out_K, out_A_input_from_frame, out_R_input_from_cam,
    out_joints_3d, out_joint_valid, out_theta_rotmat, out_beta, out_transl,
    out_has_joints, out_has_mano, out_has_beta, out_is_right,
    out_mirrored, out_object_id, out_object_pose, out_object_arti_rad, out_has_object,
    out_joint_set, out_sample_id, out_is_real,
    seed: tl.int64, frames: tl.int32, input_px: tl.int32,
    rotation_rad: tl.float64, scale: tl.float64, shift: tl.float64,
    gain: tl.float64, brightness: tl.float64, contrast: tl.float64, saturation: tl.float64,
    erase_probability: tl.float64, erase_size: tl.float64,
):  # fmt: skip
    """Write one sample of the batch; ``epoch`` and ``is_real`` may be None.

    Names are those of the reference; of each tensor, ``out_`` is what goes into the batch.
    """
    k = tl.program_id(0).to(tl.int64)
    row = tl.load(index + k)
    first = tl.load(index + k // frames * frames)
    number = tl.full((), 0, tl.int64) if epoch is None else tl.load(epoch)
    drawn_by = tl.load(sample_id + first)
    u0, u1, u2, u3 = uniforms(seed, number, drawn_by, 0)
    u4, u5, u6, u7 = uniforms(seed, number, drawn_by, 1)
    u8, u9, u10, u11 = uniforms(seed, number, drawn_by, 2)
    u12, u13, u14, _ = uniforms(seed, number, drawn_by, 3)

    # colour
    light = 1 + brightness * (2 * u7 - 1)
    strength = 1 + contrast * (2 * u8 - 1)
    vivid = 1 + saturation * (2 * u9 - 1)
    i = tl.arange(0, 4)
    colour = out_colour + k * 12
    _store_colour(colour, 0, _RED, vivid, strength, (1 + gain * (2 * u4 - 1)) * light)
    _store_colour(colour, 1, _GREEN, vivid, strength, (1 + gain * (2 * u5 - 1)) * light)
    _store_colour(colour, 2, _BLUE, vivid, strength, (1 + gain * (2 * u6 - 1)) * light)
    grey = (1 - strength) * _MID_GREY
    tl.store(colour + i * 4 + 3, grey + tl.zeros((4,), tl.float64), mask=i < 3)

    # the erased rectangle
    is_erased = u10 - erase_probability < 0
    half_w, half_h = erase_size * u11 / 2, erase_size * u12 / 2
    corner = out_erase_xyxy + k * 4
    tl.store(corner, rounded(tl.where(is_erased, (u13 - half_w) * input_px, 0)))
    tl.store(corner + 1, rounded(tl.where(is_erased, (u14 - half_h) * input_px, 0)))
    tl.store(corner + 2, rounded(tl.where(is_erased, (u13 + half_w) * input_px, 0)))
    tl.store(corner + 3, rounded(tl.where(is_erased, (u14 + half_h) * input_px, 0)))

    # A_input_from_frame = [[a, b, tx], [c, d, ty]]
    mirrored = tl.full((), 0, tl.int1)
    if MIRROR:
        mirrored = tl.load(is_right + row * HANDS).to(tl.int32) == 0
    flip = 1.0 - 2.0 * mirrored.to(tl.float64)
    cos, sin = cosine_sine(rotation_rad * (2 * u0 - 1))
    side = tl.load(size_px + row)
    x = tl.load(center_px + row * 2) + shift * (2 * u2 - 1) * side
    y = tl.load(center_px + row * 2 + 1) + shift * (2 * u3 - 1) * side
    zoom = input_px / (side * (1 + scale * (2 * u1 - 1)))
    a, b = zoom * cos * flip, -(zoom * sin)
    c, d = zoom * sin * flip, zoom * cos
    middle = (input_px - 1) * 0.5
    tx = middle - (a * x + b * y)
    ty = middle - (c * x + d * y)
    # its rows, one per lane; the third is [0, 0, 1]
    A0 = tl.where(i == 0, a, tl.where(i == 1, c, 0))
    A1 = tl.where(i == 0, b, tl.where(i == 1, d, 0))
    A2 = tl.where(i == 0, tx, tl.where(i == 1, ty, 1))
    _store3(out_A_input_from_frame + k * 6 + i * 3, 1, A0, A1, A2, i < 2)

    # A_cache_from_input, by the inverse [[i00, i01, i02], [i10, i11, i12]]
    det = a * d - b * c
    i00, i01, i02 = d / det, -b / det, (b * ty - d * tx) / det
    i10, i11, i12 = -c / det, a / det, (c * tx - a * ty) / det
    x0, x1, x2 = _load3(A_cache_from_frame + row * 6, 1)
    y0, y1, y2 = _load3(A_cache_from_frame + row * 6 + 3, 1)
    a, b, tx = x0 * i00 + x1 * i10, x0 * i01 + x1 * i11, x0 * i02 + x1 * i12 + x2
    c, d, ty = y0 * i00 + y1 * i10, y0 * i01 + y1 * i11, y0 * i02 + y1 * i12 + y2
    q16 = out_A_q16 + k * 6
    _store3(q16, 1, rounded(a * 65536), rounded(b * 65536), rounded(tx * 65536))
    _store3(q16 + 3, 1, rounded(c * 65536), rounded(d * 65536), rounded(ty * 65536))
    shrink = tl.sqrt(tl.abs(a * d - b * c))
    taps = tl.minimum(tl.maximum(tl.ceil(shrink - _SLACK), 1), _MAX_TAPS)
    tl.store(out_taps + k, tl.where(shrink - _UNFILTERED <= 0, 1, taps).to(tl.int32))

    # R_input_from_cam rotates the unit vectors; K' = A @ K @ R^T rotates the rows of A @ K
    is_row = i < 3
    e0, e1, e2 = (i == 0).to(tl.float64), (i == 1).to(tl.float64), (i == 2).to(tl.float64)
    x, y, z = _turned(cos, sin, flip * e0, e1, e2)
    _store3(out_R_input_from_cam + k * 9 + i, 3, x, y, z, is_row)
    x0, x1, x2 = _load3(K + row * 9, 1)
    y0, y1, y2 = _load3(K + row * 9 + 3, 1)
    z0, z1, z2 = _load3(K + row * 9 + 6, 1)
    x = A0 * x0 + A1 * y0 + A2 * z0
    y = A0 * x1 + A1 * y1 + A2 * z1
    z = A0 * x2 + A1 * y2 + A2 * z2
    x, y, z = _turned(cos, sin, flip * x, y, z)
    _store3(out_K + k * 9 + i * 3, 1, x, y, z, is_row)

    real = tl.full((), 1, tl.int1)
    if is_real is not None:
        real = tl.load(is_real + k).to(tl.int1)
    tl.store(out_is_real + k, real)
    tl.store(out_mirrored + k, mirrored)
    tl.store(out_sample_id + k, tl.load(sample_id + row))
    tl.store(out_joint_set + k, tl.load(joint_set + row))

    # the object, a column of [R | t] per lane
    tl.store(out_object_id + k, tl.load(object_id + row))
    tl.store(out_object_arti_rad + k, tl.load(object_arti_rad + row))
    tl.store(out_has_object + k, tl.load(has_object + row).to(tl.int1) & real)
    x, y, z = _load3(object_pose + row * 12 + i, 4)
    x, y, z = _turned(cos, sin, flip * x, y, z)
    _store3(out_object_pose + k * 12 + i, 4, x, y, z)

    for hand in tl.static_range(HANDS):
        have, to = row * HANDS + hand, k * HANDS + hand
        tl.store(out_has_joints + to, tl.load(has_joints + have).to(tl.int1) & real)
        tl.store(out_has_mano + to, tl.load(has_mano + have).to(tl.int1) & real)
        tl.store(out_has_beta + to, tl.load(has_beta + have).to(tl.int1) & real)
        tl.store(out_is_right + to, tl.load(is_right + have))
        j = tl.arange(0, 16)
        tl.store(out_beta + to * 10 + j, tl.load(beta + have * 10 + j, mask=j < 10), mask=j < 10)

        j = tl.arange(0, 32)
        inside = j < 21
        valid = tl.load(joint_valid + have * 21 + j, mask=inside).to(tl.int1) & real
        tl.store(out_joint_valid + to * 21 + j, valid, mask=inside)
        x, y, z = _load3(joints_3d + (have * 21 + j) * 3, 1, inside)
        x, y, z = _turned(cos, sin, flip * x, y, z)
        _store3(out_joints_3d + (to * 21 + j) * 3, 1, x, y, z, inside)

        # transl' = Rz (J0 + transl) - J0, both mirrored first
        x, y, z = _load3(transl + have * 3, 1)
        x0, y0, z0 = _load3(root_rest + have * 3, 1)
        x, y, z = _turned(cos, sin, flip * x0 + flip * x, y0 + y, z0 + z)
        _store3(out_transl + to * 3, 1, x - flip * x0, y - y0, z - z0)

        # the root, a column per lane: rotated, and mirrored like every joint
        x, y, z = _load3(theta_rotmat + have * 144 + i, 3, is_row)
        x *= tl.where(i == 0, 1, flip)
        y *= tl.where(i == 0, flip, 1)
        z *= tl.where(i == 0, flip, 1)
        x, y, z = _turned(cos, sin, x, y, z)
        _store3(out_theta_rotmat + to * 144 + i, 3, x, y, z, is_row)
        # all others, an entry per lane: M R M changes the sign of (0, 1), (0, 2), (1, 0), (2, 0)
        j = 9 + tl.arange(0, 256)
        entry = j % 9
        other_sign = ((entry < 3) != (entry % 3 == 0)) & mirrored
        value = tl.load(theta_rotmat + have * 144 + j, mask=j < 144)
        value = tl.where(other_sign, -value, value)
        tl.store(out_theta_rotmat + to * 144 + j, value, mask=j < 144)


def _columns(owner: type[Any], prefix: str = "") -> Callable[[Any], tuple[Any, ...]]:
    """Return what reads the kernel's arguments off ``owner``, in the order of the arguments.

    They are passed by position: by keyword 65 of them take a third of the time of a launch.
    """
    names = {f"{prefix}{f.name}": f.name for f in fields(owner)}
    return attrgetter(*(names[name] for name in prepare_kernel.arg_names if name in names))


_VIEW, _LABELS = _columns(ViewTable), _columns(LabelTable)
_PARAMS, _BATCH = _columns(GatherParams, "out_"), _columns(Batch, "out_")
_RANGES = attrgetter(*RANGES)


def prepare(
    view: ViewTable,
    labels: LabelTable,
    index: Int64[Tensor, "*b"],
    epoch: Int64[Tensor, ""] | None,
    config: PipelineConfig,
    *,
    is_real: Bool[Tensor, "*b"] | None = None,
    out: tuple[GatherParams, Batch] | None = None,
) -> tuple[GatherParams, Batch]:
    """Compute ``pipeline.labels.prepare.prepare`` with the kernel.

    Can be captured in a CUDA graph: nothing synchronises, and only the outputs are allocated. A
    replay reads ``index``, ``epoch`` and ``is_real`` again. Non-contiguous tables are copied.
    """
    hands = labels.is_right.shape[1]
    how, batch = out or empty_outputs(tuple(index.shape), hands, index.device)
    columns = [*_VIEW(view), *_LABELS(labels)]
    ranges = config.augment if epoch is not None else OFF
    with torch.cuda.device_of(index):  # type: ignore[no-untyped-call]
        prepare_kernel[(index.numel(),)](
            hands,
            config.mirror_left and config.view.kind is ViewKind.hand,
            index.contiguous(),
            epoch,
            None if is_real is None else is_real.contiguous(),
            *[column.contiguous() for column in columns],
            *_PARAMS(how),
            *_BATCH(batch),
            config.seed,
            index.shape[1] if index.ndim > 1 else 1,
            config.input_px,
            math.radians(ranges.rotation_deg),
            *map(float, _RANGES(ranges)),
            num_warps=NUM_WARPS,
            **OPTIONS,
        )
    return how, batch
