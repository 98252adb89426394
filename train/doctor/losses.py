"""Check of ``python -m train doctor``: loss kernels against eager terms on this device."""

from typing import Final

import torch
from torch import Tensor

from model.geometry.rotation import rot6d_to_rotmat
from train.doctor.config import DoctorConfig
from train.doctor.finding import Finding
from train.doctor.parity import difference, triton_parity
from train.losses.config import Impl
from train.losses.groups import joint_losses, mesh_losses, rotation_losses
from train.losses.inputs import (
    JOINT_TERMS,
    MESH_TERMS,
    ROTATION_TERMS,
    ContactInputs,
    JointInputs,
    MeshInputs,
    RotationInputs,
)

NUM: Final = 4


def loss_kernels(_: DoctorConfig) -> Finding:
    """Compare the values and gradients of the loss kernels with the eager terms."""
    return triton_parity(loss_error)


def loss_error(device: torch.device) -> float:
    """Return the largest difference of a value or gradient; infinite for a NaN."""
    found = [_values_and_gradients(impl, device) for impl in (Impl.triton, Impl.eager)]
    return max(difference(ours, theirs) for ours, theirs in zip(*found, strict=True))


def _values_and_gradients(impl: Impl, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn((NUM, 1, *shape), generator=generator).to(device)

    def leaf(values: Tensor) -> Tensor:
        return values.detach().requires_grad_()

    valid = torch.ones(NUM, 1, 21, dtype=torch.bool, device=device)
    hand = valid[..., 0]
    target = 0.05 * draw(21, 3) + 0.6
    pred, vertices, logits = leaf(target + 0.01 * draw(21, 3)), leaf(draw(778, 3)), leaf(draw(778))
    rot6d, beta = leaf(draw(16, 6)), leaf(draw(10))
    R = leaf(rot6d_to_rotmat(rot6d))
    K = torch.tensor([[300.0, 0.0, 112.0], [0.0, 300.0, 112.0], [0.0, 0.0, 1.0]], device=device)
    joints = JointInputs(pred=pred, target=target, valid=valid, K=K.expand(NUM, 3, 3), input_px=224)
    mesh = MeshInputs(
        pred=vertices, target=draw(778, 3), pred_joints=pred, target_joints=target, valid=hand
    )
    contact = ContactInputs(logits=logits, target=draw(778).sigmoid(), valid=hand)
    rotations = RotationInputs(
        pred=R,
        target=rot6d_to_rotmat(draw(16, 6)),
        valid=hand,
        pred_beta=beta,
        target_beta=draw(10),
        has_beta=hand,
        rot6d=rot6d,
        present=hand,
    )

    def lam(names: tuple[str, ...]) -> Tensor:
        return torch.linspace(0.5, 2.0, len(names), device=device)

    losses = (
        joint_losses(joints, JOINT_TERMS, lam(JOINT_TERMS), impl),
        mesh_losses(mesh, contact, MESH_TERMS, lam(MESH_TERMS), impl),
        rotation_losses(rotations, ROTATION_TERMS, lam(ROTATION_TERMS), impl),
    )
    total = torch.stack([loss.total for loss in losses]).sum()
    gradients = torch.autograd.grad(total, (pred, vertices, logits, R, beta, rot6d))
    return [*(loss.values for loss in losses), *gradients]
