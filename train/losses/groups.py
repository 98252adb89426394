"""Terms that are computed together: eager, or each group as one Triton kernel.

    loss = joint_losses(inputs, ("joints_rel", "joints_2d"), lam, Impl.auto)

Both implementations give the same numbers. ``names`` lists the active terms in order; ``lam`` holds
their weights on the device, so that they can change without a new kernel or a new graph.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.hand import ROOT
from train.losses.config import Impl
from train.losses.inputs import ContactInputs, GroupLoss, JointInputs, MeshInputs, RotationInputs
from train.losses.terms import contact as contact_terms
from train.losses.terms import joints, mano


def joint_losses(
    inputs: JointInputs, names: tuple[str, ...], lam: Float[Tensor, " t"], impl: Impl = Impl.auto
) -> GroupLoss:
    """Return the terms ``names`` of ``JOINT_TERMS``.

    Raises:
        ValueError: If Triton is asked for where it cannot run.
    """
    if _by_triton(impl, inputs.pred):
        from train.losses.fused import joints as fused_joints

        return fused_joints.joint_losses(inputs, names, lam)
    pred, target, valid = inputs.pred, inputs.target, inputs.valid
    measure = (inputs.weight, inputs.kind, inputs.smooth)
    value: dict[str, Callable[[], Tensor]] = {
        "joints_abs": lambda: joints.joints_abs(pred, target, valid, *measure),
        "joints_rel": lambda: joints.joints_rel(pred, target, valid, *measure),
        "joints_2d": lambda: joints.joints_2d(
            pred, target, valid, inputs.K, inputs.input_px, inputs.weight
        ),
        "bone_length": lambda: joints.bone_length(pred, target, valid),
        "bone_direction": lambda: joints.bone_direction(pred, target, valid),
        "joints_pa": lambda: joints.joints_pa(pred, target, valid),
    }
    with_root = valid & valid[:, :, ROOT : ROOT + 1]
    bones = joints.bones_valid(valid)
    seen = {"joints_rel": with_root, "bone_length": bones, "bone_direction": bones}
    return weighted([(value[name](), seen.get(name, valid)) for name in names], lam)


def mesh_losses(
    mesh: MeshInputs | None,
    contact: ContactInputs | None,
    names: tuple[str, ...],
    lam: Float[Tensor, " t"],
    impl: Impl = Impl.auto,
) -> GroupLoss:
    """Return the terms ``names`` of ``MESH_TERMS``; the inputs of each term must be given.

    Raises:
        ValueError: If Triton is asked for where it cannot run.
    """
    if _by_triton(impl, lam):
        from train.losses.fused import mesh as fused_mesh

        return fused_mesh.mesh_losses(mesh, contact, names, lam)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    if "vertices" in names:
        assert mesh is not None
        roots = mesh.pred_joints[:, :, ROOT], mesh.target_joints[:, :, ROOT]
        value = mano.vertices_rel(mesh.pred, mesh.target, *roots, mesh.valid)
        found["vertices"] = value, mesh.valid
    if "contact" in names:
        assert contact is not None
        value = contact_terms.contact_focal(
            contact.logits, contact.target, contact.valid, contact.alpha
        )
        found["contact"] = value, contact.valid
    return weighted([found[name] for name in names], lam)


def rotation_losses(
    inputs: RotationInputs, names: tuple[str, ...], lam: Float[Tensor, " t"], impl: Impl = Impl.auto
) -> GroupLoss:
    """Return the terms ``names`` of ``ROTATION_TERMS``.

    Raises:
        ValueError: If Triton is asked for where it cannot run.
    """
    if _by_triton(impl, inputs.pred):
        from train.losses.fused import rotations as fused_rotations

        return fused_rotations.rotation_losses(inputs, names, lam)
    pred, target, valid = inputs.pred, inputs.target, inputs.valid
    value: dict[str, Callable[[], Tensor]] = {
        "theta": lambda: mano.theta(pred, target, valid),
        "theta_geodesic": lambda: mano.theta_geodesic(pred, target, valid),
        "beta": lambda: mano.beta(inputs.pred_beta, inputs.target_beta, inputs.has_beta),
        "beta_prior": lambda: mano.beta_prior(inputs.pred_beta, inputs.present),
        "orthogonality": lambda: mano.orthogonality(inputs.rot6d, inputs.present),
    }
    seen = {"theta": valid, "theta_geodesic": valid, "beta": inputs.has_beta}
    return weighted([(value[name](), seen.get(name, inputs.present)) for name in names], lam)


def eager_terms(
    found: Mapping[str, tuple[Float[Tensor, " b"], Bool[Tensor, "b ..."]]],
    names: tuple[str, ...],
    lam: Float[Tensor, " t"],
) -> GroupLoss:
    """Compute the terms ``names`` eagerly, from the per-sample value and mask of each."""
    return weighted([found[name] for name in names], lam)


def weighted(
    found: Sequence[tuple[Float[Tensor, " b"], Bool[Tensor, "b ..."]]], lam: Float[Tensor, " t"]
) -> GroupLoss:
    """Return the weighted group of terms, from each one's value and mask."""
    values = torch.stack([value for value, _ in found])
    return GroupLoss(
        total=(lam * values.mean(1)).sum(),
        values=values.detach(),
        seen=torch.stack([mask.reshape(len(mask), -1).any(1) for _, mask in found]),
    )


def _by_triton(impl: Impl, where: Tensor) -> bool:
    if impl is Impl.triton and not where.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"loss.impl=triton needs a CUDA device, found {where.device.type}; use loss.impl=eager"
        )
    return impl is Impl.triton or (impl is Impl.auto and where.is_cuda)
