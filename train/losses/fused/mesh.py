"""Vertex and contact terms as one Triton kernel: values and gradients in one pass.

One program is one sample and holds all 778 vertices of a hand at once, four per thread: sums over
a mesh need no second pass. Computes in float32 for any input dtype.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from model.hand import NUM_JOINTS, NUM_VERTICES
from train.losses.fused.autograd import gradients_like, keep, room, rows_of, scaled
from train.losses.fused.math import count_hands, keep3, load3, log1p, put, sign
from train.losses.inputs import MESH_TERMS, ContactInputs, GroupLoss, MeshInputs

NUM_WARPS: Final = 8

_VERTICES, _LANES = tl.constexpr(NUM_VERTICES), tl.constexpr(1024)
_JOINTS, _JOINT_LANES = tl.constexpr(NUM_JOINTS), tl.constexpr(64)


@triton.jit(do_not_specialize=range(17))
def mesh_kernel(  # type: ignore[no-untyped-def]
    pred, target, pred_joints, target_joints, has_mesh,
    logits, contact, has_contact,
    lam, values, seen, weighted, grad, grad_joints, grad_logits,
    num, per_batch: tl.float32, alpha: tl.float32,
    HANDS: tl.constexpr, MESH: tl.constexpr, CONTACT: tl.constexpr,
):  # fmt: skip
    """Write ``values[t, b]``, ``sum_t lam_t values[t, b] / B`` and its gradients of one sample.

    The last two are the output row of each term, -1: off; its tensors may then be None.
    """
    sample = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, _LANES)
    is_vertex = v < _VERTICES
    total = 0.0
    if MESH >= 0:
        count = count_hands(has_mesh, sample, HANDS)
        k = 1.0 / (tl.where(count > 0, count, 1.0) * _VERTICES)
        scale = k * tl.load(lam + MESH).to(tl.float32) * per_batch
        value = 0.0
        for h in tl.static_range(HANDS):
            hand = sample * HANDS + h
            is_valid = tl.load(has_mesh + hand) != 0
            mask = is_vertex & is_valid
            at, root = hand * (_VERTICES * 3) + v * 3, hand * (_JOINTS * 3)
            x, y, z = load3(pred + at, 1, mask)
            a, b, c = load3(target + at, 1, mask)
            px, py, pz = load3(pred_joints + root, 1, is_valid)
            gx, gy, gz = load3(target_joints + root, 1, is_valid)
            x, y, z = keep3(mask, (x - px) - (a - gx), (y - py) - (b - gy), (z - pz) - (c - gz))
            value += tl.sum(tl.abs(x) + tl.abs(y) + tl.abs(z), 0)
            x, y, z = scale * sign(x), scale * sign(y), scale * sign(z)
            tl.store(grad + at, x, mask=is_vertex)
            tl.store(grad + at + 1, y, mask=is_vertex)
            tl.store(grad + at + 2, z, mask=is_vertex)
            # The root is the first joint; the others have no gradient.
            i = tl.arange(0, _JOINT_LANES)
            to_root = tl.where(i == 0, -tl.sum(x, 0), 0.0)
            to_root = tl.where(i == 1, -tl.sum(y, 0), to_root)
            to_root = tl.where(i == 2, -tl.sum(z, 0), to_root)
            tl.store(grad_joints + root + i, to_root, mask=i < _JOINTS * 3)
        put(values, seen, MESH, sample, num, value * k, count > 0)
        total += tl.load(lam + MESH).to(tl.float32) * (value * k)
    if CONTACT >= 0:
        count = count_hands(has_contact, sample, HANDS)
        k = 1.0 / (tl.where(count > 0, count, 1.0) * _VERTICES)
        scale = k * tl.load(lam + CONTACT).to(tl.float32) * per_batch
        value = 0.0
        for h in tl.static_range(HANDS):
            hand = sample * HANDS + h
            mask = is_vertex & (tl.load(has_contact + hand) != 0)
            at = hand * _VERTICES + v
            x = tl.load(logits + at, mask=mask, other=0.0).to(tl.float32)
            t = tl.load(contact + at, mask=mask, other=0.0).to(tl.float32)
            small = tl.exp(-tl.abs(x))
            entropy = tl.where(x < 0, 0.0, x) + log1p(small) - t * x
            p = tl.where(x < 0, small, 1.0) / (1.0 + small)
            weight = alpha * t + (1.0 - alpha) * (1.0 - t)
            off = t - p
            value += tl.sum(tl.where(mask, weight * off * off * entropy, 0.0), 0)
            q = tl.where(x < 0, 1.0, small) / (1.0 + small)  # 1 - p
            slope = -weight * off * (2.0 * p * q * entropy + off * off)
            tl.store(grad_logits + at, tl.where(mask, scale * slope, 0.0), mask=is_vertex)
        put(values, seen, CONTACT, sample, num, value * k, count > 0)
        total += tl.load(lam + CONTACT).to(tl.float32) * (value * k)
    tl.store(weighted + sample, total * per_batch)


def _launch(
    pred: Tensor | None,
    target: Tensor | None,
    pred_joints: Tensor | None,
    target_joints: Tensor | None,
    has_mesh: Tensor | None,
    logits: Tensor | None,
    contact: Tensor | None,
    has_contact: Tensor | None,
    lam: Tensor,
    values: Tensor,
    seen: Tensor,
    weighted: Tensor,
    grad: Tensor | None,
    grad_joints: Tensor | None,
    grad_logits: Tensor | None,
    hands: int,
    rows: Sequence[int],
    alpha: float,
) -> None:
    num = len(weighted)
    with torch.cuda.device_of(lam):
        mesh_kernel[(num,)](
            pred, target, pred_joints, target_joints, has_mesh, logits, contact, has_contact,
            lam, values, seen, weighted, grad, grad_joints, grad_logits,
            num, 1 / num, alpha,
            hands, *rows,
            num_warps=NUM_WARPS,
        )  # fmt: skip


_op = torch.library.custom_op(
    "handloom::mesh_losses",
    _launch,
    mutates_args=("values", "seen", "weighted", "grad", "grad_joints", "grad_logits"),
)
_op.register_fake(lambda *_: None)


class _MeshLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor | None,
        target: Tensor | None,
        pred_joints: Tensor | None,
        target_joints: Tensor | None,
        has_mesh: Tensor | None,
        logits: Tensor | None,
        contact: Tensor | None,
        has_contact: Tensor | None,
        lam: Tensor,
        rows: tuple[int, ...],
        alpha: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        labels = has_mesh if has_mesh is not None else has_contact
        assert labels is not None
        num, hands = labels.shape
        values, seen, weighted = room(lam, num)
        inputs = (pred, pred_joints, logits)
        grads = gradients_like(inputs)
        given = (pred, target, pred_joints, target_joints, has_mesh, logits, contact, has_contact)
        launch: Any = _op if torch.compiler.is_compiling() else _launch
        launch(
            *(None if x is None else x.contiguous() for x in given), lam, values, seen, weighted,
            *grads, hands, rows, alpha,
        )  # fmt: skip
        keep(ctx, inputs, grads, values, seen)
        return weighted.sum(), values, seen

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        mesh, joints, logits = scaled(ctx, upstream)
        return mesh, None, joints, None, None, logits, *(None,) * 5


def mesh_losses(
    mesh: MeshInputs | None,
    contact: ContactInputs | None,
    names: tuple[str, ...],
    lam: Float[Tensor, " t"],
) -> GroupLoss:
    """Compute ``groups.mesh_losses`` with the Triton kernel."""
    rows = rows_of(MESH_TERMS, names)
    meshes: tuple[Tensor | None, ...] = (None,) * 5
    contacts: tuple[Tensor | None, ...] = (None,) * 3
    alpha = 0.0
    if "vertices" in names:
        assert mesh is not None
        meshes = (mesh.pred, mesh.target, mesh.pred_joints, mesh.target_joints, mesh.valid)
    if "contact" in names:
        assert contact is not None
        contacts, alpha = (contact.logits, contact.target, contact.valid), contact.alpha
    total, values, seen = _MeshLosses.apply(*meshes, *contacts, lam, rows, alpha)
    return GroupLoss(total=total, values=values, seen=seen)
