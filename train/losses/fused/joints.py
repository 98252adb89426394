"""The terms of ``terms.joints`` as one Triton kernel: values and gradient in one pass.

One program is one sample, one warp wide: a lane per joint, so that every sum is a shuffle and
nothing goes through shared memory. Computes in float32 for any input dtype.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from model.hand import NUM_JOINTS
from train.losses.config import Distance
from train.losses.fused.autograd import gradients_like, keep, room, rows_of, scaled
from train.losses.fused.math import keep3, load3, put, reciprocal_length, sign
from train.losses.inputs import JOINT_TERMS, GroupLoss, JointInputs
from train.losses.terms.joints import MIN_BONE_M, MIN_SPREAD_M, SQUARINGS, Z_MIN_M

NUM_WARPS: Final = 1
OPTIONS: Final = {"maxnreg": 168}
"""Register limit; without it, ptxas spills a value rather than use more than 128 registers."""
KINDS: Final = {Distance.l1: 0, Distance.l2: 1, Distance.smooth_l1: 2}
"""``KIND`` of the kernel."""

_JOINTS, _LANES = tl.constexpr(NUM_JOINTS), tl.constexpr(32)
_Z_MIN, _MIN_BONE = tl.constexpr(Z_MIN_M), tl.constexpr(MIN_BONE_M)
_MIN_SPREAD2 = tl.constexpr(MIN_SPREAD_M**2)
_SQUARINGS = tl.constexpr(SQUARINGS)


@triton.jit
def _distance(x, y, z, smooth, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the norm of (x, y, z) as ``terms.reduce.distance`` does, and its gradient."""
    if KIND == 1:
        squared = x * x + y * y + z * z
        inverse = reciprocal_length(squared)
        size, dx, dy, dz = tl.sqrt_rn(squared), x * inverse, y * inverse, z * inverse
    elif KIND == 2:
        sx, dx = _smooth(x, smooth)
        sy, dy = _smooth(y, smooth)
        sz, dz = _smooth(z, smooth)
        size = sx + sy + sz
    else:
        size, dx, dy, dz = tl.abs(x) + tl.abs(y) + tl.abs(z), sign(x), sign(y), sign(z)
    return size, dx, dy, dz


@triton.jit
def _smooth(x, smooth):  # type: ignore[no-untyped-def]
    is_small = tl.abs(x) < smooth
    size = tl.where(is_small, x * x / (2.0 * smooth), tl.abs(x) - smooth * 0.5)
    return size, tl.where(is_small, x / smooth, sign(x))


@triton.jit
def _project(x, y, z, k00, k01, k10, k11):  # type: ignore[no-untyped-def]
    """Return pixels without the principal point, which drops out of differences, and 1 / z."""
    inverse = 1.0 / tl.where(z < _Z_MIN, _Z_MIN, z)
    a, b = x * inverse, y * inverse
    return k00 * a + k01 * b, k10 * a + k11 * b, inverse


@triton.jit
def _best_rotation(xx, xy, xz, yx, yy, yz, zx, zy, zz):  # type: ignore[no-untyped-def]
    """Return the rotation that maximises <R, M>, row by row; see ``terms.joints.joints_pa``."""
    squared = xx * xx + xy * xy + xz * xz + yx * yx + yy * yy + yz * yz
    squared += zx * zx + zy * zy + zz * zz
    h = 0.5 * reciprocal_length(squared)
    # A = N / (2 |M|) + I, its ten entries.
    a00, a11 = (xx + yy + zz) * h + 1.0, (xx - yy - zz) * h + 1.0
    a22, a33 = (yy - xx - zz) * h + 1.0, (zz - xx - yy) * h + 1.0
    a01, a02, a03 = (zy - yz) * h, (xz - zx) * h, (yx - xy) * h
    a12, a13, a23 = (xy + yx) * h, (xz + zx) * h, (yz + zy) * h
    for _ in range(_SQUARINGS):
        b00 = a00 * a00 + a01 * a01 + a02 * a02 + a03 * a03
        b11 = a01 * a01 + a11 * a11 + a12 * a12 + a13 * a13
        b22 = a02 * a02 + a12 * a12 + a22 * a22 + a23 * a23
        b33 = a03 * a03 + a13 * a13 + a23 * a23 + a33 * a33
        b01 = a00 * a01 + a01 * a11 + a02 * a12 + a03 * a13
        b02 = a00 * a02 + a01 * a12 + a02 * a22 + a03 * a23
        b03 = a00 * a03 + a01 * a13 + a02 * a23 + a03 * a33
        b12 = a01 * a02 + a11 * a12 + a12 * a22 + a13 * a23
        b13 = a01 * a03 + a11 * a13 + a12 * a23 + a13 * a33
        b23 = a02 * a03 + a12 * a13 + a22 * a23 + a23 * a33
        r = 1.0 / (b00 + b11 + b22 + b33)
        a00, a11, a22, a33 = b00 * r, b11 * r, b22 * r, b33 * r
        a01, a02, a03 = b01 * r, b02 * r, b03 * r
        a12, a13, a23 = b12 * r, b13 * r, b23 * r
    # The column with the largest diagonal, the first one if tied.
    best, w, x, y, z = a00, a00, a01, a02, a03
    is_better = a11 > best
    best, w, x, y, z = _pick(is_better, a11, best, a01, w, a11, x, a12, y, a13, z)
    is_better = a22 > best
    best, w, x, y, z = _pick(is_better, a22, best, a02, w, a12, x, a22, y, a23, z)
    is_better = a33 > best
    best, w, x, y, z = _pick(is_better, a33, best, a03, w, a13, x, a23, y, a33, z)
    n = 2.0 / (w * w + x * x + y * y + z * z)
    return (
        1.0 - n * (y * y + z * z), n * (x * y - w * z), n * (x * z + w * y),
        n * (x * y + w * z), 1.0 - n * (x * x + z * z), n * (y * z - w * x),
        n * (x * z - w * y), n * (y * z + w * x), 1.0 - n * (x * x + y * y),
    )  # fmt: skip


@triton.jit
def _pick(is_new, a, a0, b, b0, c, c0, d, d0, e, e0):  # type: ignore[no-untyped-def]
    return (
        tl.where(is_new, a, a0),
        tl.where(is_new, b, b0),
        tl.where(is_new, c, c0),
        tl.where(is_new, d, d0),
        tl.where(is_new, e, e0),
    )


@triton.jit
def _centred(x, y, z, share, is_valid):  # type: ignore[no-untyped-def]
    return keep3(
        is_valid, x - tl.sum(share * x, 0), y - tl.sum(share * y, 0), z - tl.sum(share * z, 0)
    )


@triton.jit
def _moments(a, x, y, z):  # type: ignore[no-untyped-def]
    return tl.sum(a * x, 0), tl.sum(a * y, 0), tl.sum(a * z, 0)


@triton.jit
def _of_parent(d, after, has_child, is_first, is_root):  # type: ignore[no-untyped-def]
    """Return the bone that starts at each joint; at the wrist, the sum of five."""
    from_next = tl.where(has_child, tl.gather(d, after, 0), 0.0)
    return tl.where(is_root, tl.sum(tl.where(is_first, d, 0.0), 0), from_next)


# One build for any values and alignment: no specialisation on all arguments but the last eight.
@triton.jit(do_not_specialize=range(14))
def joints_kernel(  # type: ignore[no-untyped-def]
    pred, target, valid, K, weight, lam, values, seen, weighted, grad,
    num, per_batch: tl.float32, per_pixel: tl.float32, smooth: tl.float32,
    HANDS: tl.constexpr, KIND: tl.constexpr,
    ABS: tl.constexpr, REL: tl.constexpr, PROJECTED: tl.constexpr,
    LENGTH: tl.constexpr, DIRECTION: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write ``values[t, b]``, ``sum_t lam_t values[t, b] / B`` and its gradient of one sample.

    The last six are the output row of each term, -1: off.
    """
    sample = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, _LANES)
    is_joint = j < _JOINTS
    is_root = j == 0
    is_first = is_joint & (j % 4 == 1)  # of a finger: a child of the wrist
    is_bone = is_joint & (j > 0)
    parent = tl.where(is_first | is_root, 0, j - 1)
    has_child = is_bone & (j % 4 != 0)
    weights = is_joint.to(tl.float32)
    if weight is not None:
        weights = tl.load(weight + j, mask=is_joint, other=0.0).to(tl.float32)

    # Number of valid items of each term: the divisor of its mean.
    n_joints, n_rel, n_bones, n_hands = 0.0, 0.0, 0.0, 0.0
    for h in tl.static_range(HANDS):
        hand_valid = valid + (sample * HANDS + h) * _JOINTS
        is_valid = tl.load(hand_valid + j, mask=is_joint, other=0) != 0
        has_root = tl.load(hand_valid) != 0
        bones = is_valid & is_bone & (tl.load(hand_valid + parent, mask=is_joint, other=0) != 0)
        count = tl.sum(tl.where(is_valid, weights, 0.0), 0)
        n_joints += count
        n_rel += tl.where(has_root, count, 0.0)
        n_bones += tl.sum(bones.to(tl.float32), 0)
        n_hands += tl.max(is_valid.to(tl.float32), 0)
    per_joint = 1.0 / tl.where(n_joints > 0, n_joints, 1.0)
    per_rel = 1.0 / tl.where(n_rel > 0, n_rel, 1.0)
    per_bone = 1.0 / tl.where(n_bones > 0, n_bones, 1.0)
    per_hand = 1.0 / tl.where(n_hands > 0, n_hands, 1.0)
    if PROJECTED >= 0:
        has_any = n_hands > 0
        k00 = tl.load(K + sample * 9, mask=has_any, other=0.0).to(tl.float32) * per_pixel
        k01 = tl.load(K + sample * 9 + 1, mask=has_any, other=0.0).to(tl.float32) * per_pixel
        k10 = tl.load(K + sample * 9 + 3, mask=has_any, other=0.0).to(tl.float32) * per_pixel
        k11 = tl.load(K + sample * 9 + 4, mask=has_any, other=0.0).to(tl.float32) * per_pixel

    v_abs, v_rel, v_2d, v_length, v_direction, v_pa = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for h in range(HANDS):
        hand = sample * HANDS + h
        is_valid = tl.load(valid + hand * _JOINTS + j, mask=is_joint, other=0) != 0
        has_root = tl.load(valid + hand * _JOINTS) != 0
        row = hand * (_JOINTS * 3)
        px, py, pz = load3(pred + row + j * 3, 1, is_valid)
        gx, gy, gz = load3(target + row + j * 3, 1, is_valid)
        ox, oy, oz = tl.zeros_like(px), tl.zeros_like(px), tl.zeros_like(px)  # the gradient

        if ABS >= 0:
            k = tl.where(is_valid, weights, 0.0) * per_joint
            size, dx, dy, dz = _distance(px - gx, py - gy, pz - gz, smooth, KIND)
            v_abs += tl.sum(tl.where(is_valid, k * size, 0.0), 0)
            k *= tl.load(lam + ABS).to(tl.float32) * per_batch
            ox += k * dx
            oy += k * dy
            oz += k * dz
        if REL >= 0:
            is_rel = is_valid & has_root
            k = tl.where(is_rel, weights, 0.0) * per_rel
            rx = px - tl.sum(tl.where(is_root, px, 0.0), 0)
            ry = py - tl.sum(tl.where(is_root, py, 0.0), 0)
            rz = pz - tl.sum(tl.where(is_root, pz, 0.0), 0)
            rx -= gx - tl.sum(tl.where(is_root, gx, 0.0), 0)
            ry -= gy - tl.sum(tl.where(is_root, gy, 0.0), 0)
            rz -= gz - tl.sum(tl.where(is_root, gz, 0.0), 0)
            size, dx, dy, dz = _distance(rx, ry, rz, smooth, KIND)
            v_rel += tl.sum(tl.where(is_rel, k * size, 0.0), 0)
            k *= tl.load(lam + REL).to(tl.float32) * per_batch
            dx, dy, dz = keep3(is_rel, k * dx, k * dy, k * dz)
            ox += dx - tl.where(is_root, tl.sum(dx, 0), 0.0)
            oy += dy - tl.where(is_root, tl.sum(dy, 0), 0.0)
            oz += dz - tl.where(is_root, tl.sum(dz, 0), 0.0)
        if PROJECTED >= 0:
            k = tl.where(is_valid, weights, 0.0) * per_joint
            u, v, inverse = _project(px, py, pz, k00, k01, k10, k11)
            u_true, v_true, _ = _project(gx, gy, gz, k00, k01, k10, k11)
            du, dv = u - u_true, v - v_true
            v_2d += tl.sum(tl.where(is_valid, k * (tl.abs(du) + tl.abs(dv)), 0.0), 0)
            k *= tl.load(lam + PROJECTED).to(tl.float32) * per_batch
            su, sv = sign(du), sign(dv)
            k *= inverse
            ox += k * (su * k00 + sv * k10)
            oy += k * (su * k01 + sv * k11)
            oz -= tl.where(pz < _Z_MIN, 0.0, k * (su * u + sv * v))
        if LENGTH >= 0 or DIRECTION >= 0:
            parent_valid = tl.load(valid + hand * _JOINTS + parent, mask=is_joint, other=0) != 0
            bones = is_valid & is_bone & parent_valid
            bx, by, bz = load3(pred + row + parent * 3, 1, bones)
            bx, by, bz = keep3(bones, px - bx, py - by, pz - bz)
            cx, cy, cz = load3(target + row + parent * 3, 1, bones)
            cx, cy, cz = keep3(bones, gx - cx, gy - cy, gz - cz)
            squared, squared_true = bx * bx + by * by + bz * bz, cx * cx + cy * cy + cz * cz
            inverse = reciprocal_length(squared)
            size, size_true = tl.sqrt_rn(squared), tl.sqrt_rn(squared_true)
            dx, dy, dz = tl.zeros_like(px), tl.zeros_like(px), tl.zeros_like(px)
            if LENGTH >= 0:
                off = size - size_true
                v_length += tl.sum(tl.where(bones, tl.abs(off), 0.0), 0) * per_bone
                k = tl.load(lam + LENGTH).to(tl.float32) * per_batch * per_bone
                k = k * sign(off) * inverse
                dx += k * bx
                dy += k * by
                dz += k * bz
            if DIRECTION >= 0:
                is_short = size < _MIN_BONE
                per_size = tl.where(is_short, 1.0 / _MIN_BONE, inverse)
                ux, uy, uz = bx * per_size, by * per_size, bz * per_size
                per_true = 1.0 / tl.where(size_true < _MIN_BONE, _MIN_BONE, size_true)
                ex, ey, ez = ux - cx * per_true, uy - cy * per_true, uz - cz * per_true
                half = 0.5 * (ex * ex + ey * ey + ez * ez)
                v_direction += tl.sum(tl.where(bones, half, 0.0), 0) * per_bone
                # Only the component perpendicular to the unit vector has a gradient.
                along = tl.where(is_short, 0.0, ux * ex + uy * ey + uz * ez)
                k = tl.load(lam + DIRECTION).to(tl.float32) * per_batch * per_bone * per_size
                dx += k * (ex - along * ux)
                dy += k * (ey - along * uy)
                dz += k * (ez - along * uz)
            dx, dy, dz = keep3(bones, dx, dy, dz)
            # A bone's gradient acts on its joint and, with the opposite sign, on the parent.
            after = tl.minimum(j + 1, _LANES - 1)
            ox += dx - _of_parent(dx, after, has_child, is_first, is_root)
            oy += dy - _of_parent(dy, after, has_child, is_first, is_root)
            oz += dz - _of_parent(dz, after, has_child, is_first, is_root)
        if ALIGNED >= 0:
            count = tl.sum(is_valid.to(tl.float32), 0)
            share = tl.where(is_valid, 1.0 / tl.where(count > 0, count, 1.0), 0.0)
            x, y, z = _centred(px, py, pz, share, is_valid)
            a, b, c = _centred(gx, gy, gz, share, is_valid)
            xx, xy, xz = _moments(share * a, x, y, z)
            yx, yy, yz = _moments(share * b, x, y, z)
            zx, zy, zz = _moments(share * c, x, y, z)
            r0, r1, r2, r3, r4, r5, r6, r7, r8 = _best_rotation(xx, xy, xz, yx, yy, yz, zx, zy, zz)
            spread = tl.sum(share * (x * x + y * y + z * z), 0)
            fit = r0 * xx + r1 * xy + r2 * xz + r3 * yx + r4 * yy + r5 * yz
            fit += r6 * zx + r7 * zy + r8 * zz
            is_point = spread <= _MIN_SPREAD2
            scale = tl.where(is_point, 0.0, fit / tl.where(is_point, 1.0, spread))
            ex = scale * (r0 * x + r1 * y + r2 * z) - a
            ey = scale * (r3 * x + r4 * y + r5 * z) - b
            ez = scale * (r6 * x + r7 * y + r8 * z) - c
            mean = tl.sum(share * (ex * ex + ey * ey + ez * ez), 0)
            inverse = reciprocal_length(mean)
            v_pa += tl.sqrt_rn(mean) * per_hand
            k = tl.load(lam + ALIGNED).to(tl.float32) * per_batch * per_hand
            k = share * (k * inverse * scale)
            ox += k * (r0 * ex + r3 * ey + r6 * ez)
            oy += k * (r1 * ex + r4 * ey + r7 * ez)
            oz += k * (r2 * ex + r5 * ey + r8 * ez)

        out = grad + row + j * 3
        tl.store(out, tl.where(is_valid, ox, 0.0), mask=is_joint)
        tl.store(out + 1, tl.where(is_valid, oy, 0.0), mask=is_joint)
        tl.store(out + 2, tl.where(is_valid, oz, 0.0), mask=is_joint)

    total = 0.0
    if ABS >= 0:
        put(values, seen, ABS, sample, num, v_abs, n_hands > 0)
        total += tl.load(lam + ABS).to(tl.float32) * v_abs
    if REL >= 0:
        put(values, seen, REL, sample, num, v_rel, n_rel > 0)
        total += tl.load(lam + REL).to(tl.float32) * v_rel
    if PROJECTED >= 0:
        put(values, seen, PROJECTED, sample, num, v_2d, n_hands > 0)
        total += tl.load(lam + PROJECTED).to(tl.float32) * v_2d
    if LENGTH >= 0:
        put(values, seen, LENGTH, sample, num, v_length, n_bones > 0)
        total += tl.load(lam + LENGTH).to(tl.float32) * v_length
    if DIRECTION >= 0:
        put(values, seen, DIRECTION, sample, num, v_direction, n_bones > 0)
        total += tl.load(lam + DIRECTION).to(tl.float32) * v_direction
    if ALIGNED >= 0:
        put(values, seen, ALIGNED, sample, num, v_pa, n_hands > 0)
        total += tl.load(lam + ALIGNED).to(tl.float32) * v_pa
    tl.store(weighted + sample, total * per_batch)


def _launch(
    pred: Tensor,
    target: Tensor,
    valid: Tensor,
    K: Tensor,
    weight: Tensor | None,
    lam: Tensor,
    values: Tensor,
    seen: Tensor,
    weighted: Tensor,
    grad: Tensor,
    rows: Sequence[int],
    kind: int,
    smooth: float,
    input_px: int,
) -> None:
    num, hands = pred.shape[:2]
    with torch.cuda.device_of(pred):
        joints_kernel[(num,)](
            pred, target, valid, K, weight, lam, values, seen, weighted, grad,
            num, 1 / num, 1 / input_px, smooth,
            hands, kind, *rows,
            num_warps=NUM_WARPS, **OPTIONS,
        )  # fmt: skip


_op = torch.library.custom_op(
    "handloom::joint_losses", _launch, mutates_args=("values", "seen", "weighted", "grad")
)
_op.register_fake(lambda *_: None)


class _JointLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor,
        target: Tensor,
        valid: Tensor,
        K: Tensor,
        weight: Tensor | None,
        lam: Tensor,
        rows: tuple[int, ...],
        kind: int,
        smooth: float,
        input_px: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, seen, weighted = room(lam, len(pred))
        grads = gradients_like([pred])
        # Under torch.compile the launch is an opaque operator; otherwise a plain call.
        launch: Any = _op if torch.compiler.is_compiling() else _launch
        launch(
            pred.contiguous(), target.contiguous(), valid.contiguous(), K.contiguous(), weight, lam,
            values, seen, weighted, *grads, rows, kind, smooth, input_px,
        )  # fmt: skip
        keep(ctx, [pred], grads, values, seen)
        return weighted.sum(), values, seen

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled(ctx, upstream), *(None,) * 9


def joint_losses(
    inputs: JointInputs, names: tuple[str, ...], lam: Float[Tensor, " t"]
) -> GroupLoss:
    """Compute ``groups.joint_losses`` with the Triton kernel."""
    rows = rows_of(JOINT_TERMS, names)
    total, values, seen = _JointLosses.apply(
        inputs.pred, inputs.target, inputs.valid, inputs.K, inputs.weight, lam,
        rows, KINDS[inputs.kind], inputs.smooth, inputs.input_px,
    )  # fmt: skip
    return GroupLoss(total=total, values=values, seen=seen)
