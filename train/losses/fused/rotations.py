"""Rotation and shape terms as one Triton kernel: values and gradients in one pass.

One program is one sample, one warp wide: a lane per rotation, 16 per hand. Computes in float32 for
any input dtype.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from model.hand import NUM_BETAS, NUM_MANO_JOINTS
from train.losses.fused.autograd import gradients_like, keep, room, rows_of, scaled
from train.losses.fused.math import atan2_upper, count_hands, load3, put, reciprocal_length
from train.losses.inputs import ROTATION_TERMS, GroupLoss, RotationInputs

NUM_WARPS: Final = 1

_ROTATIONS, _BETAS = tl.constexpr(NUM_MANO_JOINTS), tl.constexpr(NUM_BETAS)


@triton.jit
def _mean_over(valid, sample, hand, HANDS: tl.constexpr, ITEMS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the weight of each valid hand's item in the mean, per lane, and if any is valid."""
    count = count_hands(valid, sample, HANDS)
    is_valid = tl.load(valid + sample * HANDS + hand) != 0
    share = tl.where(is_valid, 1.0 / (tl.where(count > 0, count, 1.0) * ITEMS), 0.0)
    return is_valid, share, count > 0


@triton.jit
def _store3(at, x, y, z):  # type: ignore[no-untyped-def]
    tl.store(at, x)
    tl.store(at + 1, y)
    tl.store(at + 2, z)


@triton.jit(do_not_specialize=range(17))
def rotations_kernel(  # type: ignore[no-untyped-def]
    pred, target, valid, pred_beta, target_beta, has_beta, rot6d, present,
    lam, values, seen, weighted, grad, grad_beta, grad_rot6d,
    num, per_batch: tl.float32,
    HANDS: tl.constexpr,
    CHORDAL: tl.constexpr, GEODESIC: tl.constexpr,
    BETA: tl.constexpr, PRIOR: tl.constexpr, ORTHOGONAL: tl.constexpr,
):  # fmt: skip
    """Write ``values[t, b]``, ``sum_t lam_t values[t, b] / B`` and its gradients of one sample.

    The last five are the output row of each term, -1: off; its predictions may then be None.
    """
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, HANDS * _ROTATIONS)
    hand, n = lane // _ROTATIONS, lane % _ROTATIONS
    total = 0.0
    if CHORDAL >= 0 or GEODESIC >= 0:
        is_valid, share, any_valid = _mean_over(valid, sample, hand, HANDS, _ROTATIONS)
        at = sample * (HANDS * _ROTATIONS * 9) + lane * 9
        p00, p01, p02 = load3(pred + at, 1, is_valid)
        p10, p11, p12 = load3(pred + at + 3, 1, is_valid)
        p20, p21, p22 = load3(pred + at + 6, 1, is_valid)
        g00, g01, g02 = load3(target + at, 1, is_valid)
        g10, g11, g12 = load3(target + at + 3, 1, is_valid)
        g20, g21, g22 = load3(target + at + 6, 1, is_valid)
        k = tl.zeros_like(share)
        if CHORDAL >= 0:
            squared = (p00 - g00) * (p00 - g00) + (p01 - g01) * (p01 - g01)
            squared += (p02 - g02) * (p02 - g02) + (p10 - g10) * (p10 - g10)
            squared += (p11 - g11) * (p11 - g11) + (p12 - g12) * (p12 - g12)
            squared += (p20 - g20) * (p20 - g20) + (p21 - g21) * (p21 - g21)
            squared += (p22 - g22) * (p22 - g22)
            value = tl.sum(tl.where(is_valid, squared * share, 0.0), 0)
            put(values, seen, CHORDAL, sample, num, value, any_valid)
            weight = tl.load(lam + CHORDAL).to(tl.float32)
            total += weight * value
            k = 2.0 * weight * per_batch * share
        d00, d01, d02 = k * (p00 - g00), k * (p01 - g01), k * (p02 - g02)
        d10, d11, d12 = k * (p10 - g10), k * (p11 - g11), k * (p12 - g12)
        d20, d21, d22 = k * (p20 - g20), k * (p21 - g21), k * (p22 - g22)
        if GEODESIC >= 0:
            # Skew part and trace of D = P^T G.
            x = p02 * g01 + p12 * g11 + p22 * g21 - (p01 * g02 + p11 * g12 + p21 * g22)
            y = p00 * g02 + p10 * g12 + p20 * g22 - (p02 * g00 + p12 * g10 + p22 * g20)
            z = p01 * g00 + p11 * g10 + p21 * g20 - (p00 * g01 + p10 * g11 + p20 * g21)
            trace = p00 * g00 + p10 * g10 + p20 * g20 + p01 * g01 + p11 * g11 + p21 * g21
            trace += p02 * g02 + p12 * g12 + p22 * g22
            squared = x * x + y * y + z * z
            sine, cosine = 0.5 * tl.sqrt_rn(squared), 0.5 * (trace - 1.0)
            cosine = tl.where((sine == 0) & (cosine == 0), 1.0, cosine)
            value = tl.sum(tl.where(is_valid, atan2_upper(sine, cosine) * share, 0.0), 0)
            put(values, seen, GEODESIC, sample, num, value, any_valid)
            weight = tl.load(lam + GEODESIC).to(tl.float32)
            total += weight * value
            # d angle / dD = [[e, -z, y], [z, e, -x], [-y, x, e]] =: E, d angle / dP = G E^T.
            k = weight * per_batch * share / (sine * sine + cosine * cosine)
            e = -0.5 * k * sine
            k = 0.5 * k * cosine * reciprocal_length(squared)
            x, y, z = k * x, k * y, k * z
            d00 += g00 * e - g01 * z + g02 * y
            d01 += g00 * z + g01 * e - g02 * x
            d02 += g01 * x - g00 * y + g02 * e
            d10 += g10 * e - g11 * z + g12 * y
            d11 += g10 * z + g11 * e - g12 * x
            d12 += g11 * x - g10 * y + g12 * e
            d20 += g20 * e - g21 * z + g22 * y
            d21 += g20 * z + g21 * e - g22 * x
            d22 += g21 * x - g20 * y + g22 * e
        _store3(grad + at, d00, d01, d02)
        _store3(grad + at + 3, d10, d11, d12)
        _store3(grad + at + 6, d20, d21, d22)
    if BETA >= 0 or PRIOR >= 0:
        is_beta = n < _BETAS
        at = sample * (HANDS * _BETAS) + hand * _BETAS + n
        d = tl.zeros_like(n).to(tl.float32)
        if BETA >= 0:
            is_valid, share, any_valid = _mean_over(has_beta, sample, hand, HANDS, _BETAS)
            mask = is_beta & is_valid
            off = tl.load(pred_beta + at, mask=mask, other=0.0).to(tl.float32)
            off -= tl.load(target_beta + at, mask=mask, other=0.0).to(tl.float32)
            value = tl.sum(tl.where(mask, off * off * share, 0.0), 0)
            put(values, seen, BETA, sample, num, value, any_valid)
            weight = tl.load(lam + BETA).to(tl.float32)
            total += weight * value
            d += 2.0 * weight * per_batch * share * off
        if PRIOR >= 0:
            is_valid, share, any_valid = _mean_over(present, sample, hand, HANDS, _BETAS)
            mask = is_beta & is_valid
            b = tl.load(pred_beta + at, mask=mask, other=0.0).to(tl.float32)
            value = tl.sum(tl.where(mask, b * b * share, 0.0), 0)
            put(values, seen, PRIOR, sample, num, value, any_valid)
            weight = tl.load(lam + PRIOR).to(tl.float32)
            total += weight * value
            d += 2.0 * weight * per_batch * share * b
        tl.store(grad_beta + at, d, mask=is_beta)
    if ORTHOGONAL >= 0:
        is_valid, share, any_valid = _mean_over(present, sample, hand, HANDS, _ROTATIONS)
        at = sample * (HANDS * _ROTATIONS * 6) + lane * 6
        ax, ay, az = load3(rot6d + at, 1, is_valid)
        bx, by, bz = load3(rot6d + at + 3, 1, is_valid)
        u, v = ax * ax + ay * ay + az * az - 1.0, bx * bx + by * by + bz * bz - 1.0
        w = ax * bx + ay * by + az * bz
        off = u * u + v * v + 2.0 * w * w
        value = tl.sum(tl.where(is_valid, off * share, 0.0), 0)
        put(values, seen, ORTHOGONAL, sample, num, value, any_valid)
        weight = tl.load(lam + ORTHOGONAL).to(tl.float32)
        total += weight * value
        k = 4.0 * weight * per_batch * share
        u, v, w = k * u, k * v, k * w
        _store3(grad_rot6d + at, u * ax + w * bx, u * ay + w * by, u * az + w * bz)
        _store3(grad_rot6d + at + 3, v * bx + w * ax, v * by + w * ay, v * bz + w * az)
    tl.store(weighted + sample, total * per_batch)


def _launch(
    pred: Tensor | None,
    target: Tensor,
    valid: Tensor,
    pred_beta: Tensor | None,
    target_beta: Tensor,
    has_beta: Tensor,
    rot6d: Tensor | None,
    present: Tensor,
    lam: Tensor,
    values: Tensor,
    seen: Tensor,
    weighted: Tensor,
    grad: Tensor | None,
    grad_beta: Tensor | None,
    grad_rot6d: Tensor | None,
    rows: Sequence[int],
) -> None:
    num, hands = valid.shape
    with torch.cuda.device_of(valid):
        rotations_kernel[(num,)](
            pred, target, valid, pred_beta, target_beta, has_beta, rot6d, present,
            lam, values, seen, weighted, grad, grad_beta, grad_rot6d,
            num, 1 / num,
            hands, *rows,
            num_warps=NUM_WARPS,
        )  # fmt: skip


_op = torch.library.custom_op(
    "handloom::rotation_losses",
    _launch,
    mutates_args=("values", "seen", "weighted", "grad", "grad_beta", "grad_rot6d"),
)
_op.register_fake(lambda *_: None)


class _RotationLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor | None,
        pred_beta: Tensor | None,
        rot6d: Tensor | None,
        target: Tensor,
        valid: Tensor,
        target_beta: Tensor,
        has_beta: Tensor,
        present: Tensor,
        lam: Tensor,
        rows: tuple[int, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, seen, weighted = room(lam, len(valid))
        inputs = (pred, pred_beta, rot6d)
        grads = gradients_like(inputs)
        given = (pred, target, valid, pred_beta, target_beta, has_beta, rot6d, present)
        launch: Any = _op if torch.compiler.is_compiling() else _launch
        launch(
            *(None if x is None else x.contiguous() for x in given), lam, values, seen, weighted,
            *grads, rows,
        )  # fmt: skip
        keep(ctx, inputs, grads, values, seen)
        return weighted.sum(), values, seen

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled(ctx, upstream), *(None,) * 7


def rotation_losses(
    inputs: RotationInputs, names: tuple[str, ...], lam: Float[Tensor, " t"]
) -> GroupLoss:
    """Compute ``groups.rotation_losses`` with the Triton kernel."""
    rows = rows_of(ROTATION_TERMS, names)
    turned = inputs.pred if max(rows[:2]) >= 0 else None
    shape = inputs.pred_beta if max(rows[2:4]) >= 0 else None
    rot6d = inputs.rot6d if rows[4] >= 0 else None
    total, values, seen = _RotationLosses.apply(
        turned, shape, rot6d, inputs.target, inputs.valid,
        inputs.target_beta, inputs.has_beta, inputs.present, lam, rows,
    )  # fmt: skip
    return GroupLoss(total=total, values=values, seen=seen)
