"""Weights -> one scalar and the named terms.

The total is the sum over terms of weight times the mean over the batch of the per-sample value.
Samples without a label count as 0 in that mean, so neither batch size nor rank count changes the
mix; the share of samples each term saw is logged beside it.

The weights lie on the device: another schedule or stage changes numbers, not kernels or graphs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.hand import ROOT
from model.mano.anatomy import anatomical_frames, limits_rad
from model.prediction import Prediction
from pipeline.batch import Batch
from pipeline.labels.objects import ObjectModels
from train.losses.config import TERMS, Distance, Impl, LossConfig, weights_of
from train.losses.groups import joint_losses, mesh_losses, rotation_losses, weighted
from train.losses.inputs import (
    JOINT_TERMS,
    LIMIT_TERMS,
    MESH_TERMS,
    MOTION_TERMS,
    OBJECT_TERMS,
    ROTATION_TERMS,
    GroupLoss,
    JointInputs,
    MeshInputs,
    RotationInputs,
)
from train.losses.scene import Surfaces, between, motion_terms, object_terms, posed, surfaces_of
from train.losses.terms.mano import joint_limits

MAX_TERMS: Final = 63
"""Terms that a bit mask of a sample can tell apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """Detached, on the device: read them at log points only."""

    names: tuple[str, ...]
    values: Float[Tensor, "t b"]
    """Every term of every sample, unweighted."""
    seen: Bool[Tensor, "t b"]
    """Whether the sample had a label for the term."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshTarget:
    """Ground-truth mesh, decoded from the labels with the same MANO layer."""

    vertices: Tensor
    """[b, h, 778, 3], input camera frame, metres; any value where has_mano & has_beta is False."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Of the terms of one group that are on."""

    names: tuple[str, ...]
    lam: Float[Tensor, " t"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of finger joints; see ``model.mano.anatomy``."""

    frames: Float[Tensor, "s 15 3 3"]
    low_rad: Float[Tensor, "15 3"]
    high_rad: Float[Tensor, "15 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossPlan:
    """Which terms are computed and how, resolved once per stage."""

    joints: Weights
    mesh: Weights
    rotations: Weights
    limit: Weights
    objects: Weights
    motion: Weights
    joint_weight: Float[Tensor, "21"] | None
    limits: Limits | None
    """Where joint_limits is on."""
    surfaces: Surfaces | None
    """Of the run's objects, if it has any."""
    distance: Distance
    smooth_m: float
    impl: Impl


def plan_losses(
    config: LossConfig,
    device: torch.device,
    joints_rest: Float[Tensor, "s 16 3"] | None = None,
    objects: ObjectModels | None = None,
) -> LossPlan:
    """Return the plan with its weights on the device.

    ``joints_rest``: of the model's MANO layer, None without one; joint_limits needs it.
    ``objects``: of the loader; the terms of ``train.losses.scene`` need them.
    """
    weights = weights_of(config)
    limits = None
    if "joint_limits" in weights and joints_rest is not None:
        low, high = (angles.to(device) for angles in limits_rad())
        limits = Limits(frames=anatomical_frames(joints_rest), low_rad=low, high_rad=high)
    joint_weight = None
    if config.joint_weights:
        joint_weight = torch.tensor(config.joint_weights, device=device)
    return LossPlan(
        joints=weights_on(device, weights, JOINT_TERMS),
        mesh=weights_on(device, weights, MESH_TERMS),
        rotations=weights_on(device, weights, ROTATION_TERMS),
        limit=weights_on(device, weights, LIMIT_TERMS),
        objects=weights_on(device, weights, OBJECT_TERMS),
        motion=weights_on(device, weights, MOTION_TERMS),
        limits=limits,
        surfaces=None if objects is None or not objects.names else surfaces_of(objects),
        joint_weight=joint_weight,
        distance=config.distance,
        smooth_m=config.smooth_m,
        impl=config.impl,
    )


def weights_on(device: torch.device, weights: Mapping[str, float], names: Sequence[str]) -> Weights:
    """Return the weights of those of ``names`` that are not 0, in their order."""
    on = tuple(name for name in names if weights.get(name, 0.0) > 0)
    lam = torch.tensor([weights[name] for name in on], dtype=torch.float32, device=device)
    return Weights(names=on, lam=lam)


def total_loss(
    prediction: Prediction,
    batch: Batch,
    mesh: MeshTarget | None,
    plan: LossPlan,
    log_variance: Float[Tensor, " n"] | None = None,
    *,
    num_frames: int = 1,
) -> tuple[Tensor, LossTerms]:
    """Return the scalar to minimise and its terms; terms on what is not predicted are left out.

    With ``log_variance`` s, a parameter of one number for each of ``TERMS``, a sample's term v of
    weight w becomes ``w exp(-s) v + s``, where the sample has a label for it. ``num_frames``
    neighbours are a window; the terms of its motion need more than one.

    Raises:
        ValueError: If Triton is asked for where it cannot run.

    Source:
        Kendall et al. 2018, Multi-task learning using uncertainty to weigh losses; equation 7
        without its constants.
    """
    if log_variance is not None:
        plan = _balanced(plan, log_variance)
    hands, obj = prediction.hands, prediction.object
    joint_valid = batch.joint_valid & batch.has_joints[..., None]
    has_beta = batch.has_mano & batch.has_beta
    present = batch.has_joints | batch.has_mano
    groups: list[tuple[tuple[str, ...], GroupLoss]] = []
    if plan.joints.names:
        joints = JointInputs(
            pred=hands.joints_3d,
            target=batch.joints_3d,
            valid=joint_valid,
            K=batch.K,
            input_px=batch.image.shape[-1],
            weight=plan.joint_weight,
            kind=plan.distance,
            smooth=plan.smooth_m,
        )
        loss = joint_losses(joints, plan.joints.names, plan.joints.lam, plan.impl)
        groups.append((plan.joints.names, loss))
    if plan.mesh.names and hands.vertices is not None and mesh is not None:
        meshes = MeshInputs(
            pred=hands.vertices,
            target=mesh.vertices,
            pred_joints=hands.joints_3d,
            target_joints=batch.joints_3d,
            valid=has_beta & joint_valid[:, :, ROOT],
        )
        loss = mesh_losses(meshes, None, plan.mesh.names, plan.mesh.lam, plan.impl)
        groups.append((plan.mesh.names, loss))
    if plan.rotations.names and hands.theta_rotmat is not None:
        assert hands.beta is not None
        assert hands.theta_rot6d is not None
        rotations = RotationInputs(
            pred=hands.theta_rotmat,
            target=batch.theta_rotmat,
            valid=batch.has_mano,
            pred_beta=hands.beta,
            target_beta=batch.beta,
            has_beta=has_beta,
            rot6d=hands.theta_rot6d,
            present=present,
        )
        loss = rotation_losses(rotations, plan.rotations.names, plan.rotations.lam, plan.impl)
        groups.append((plan.rotations.names, loss))
    if plan.limits is not None and hands.theta_rotmat is not None:
        is_left = ~(batch.is_right | batch.mirrored[:, None]) & (len(plan.limits.frames) > 1)
        frames = plan.limits.frames[is_left.long()]
        low, high = plan.limits.low_rad, plan.limits.high_rad
        value = joint_limits(hands.theta_rotmat, frames, low, high, present)
        groups.append(eager_terms({"joint_limits": (value, present)}, plan.limit))
    shape, kind, smooth = None, plan.distance, plan.smooth_m
    if obj is not None and plan.surfaces is not None:
        shape = posed(obj, batch, plan.surfaces)
        if plan.objects.names:
            found = object_terms(obj, batch, shape, kind, smooth)
            found["hand_object"] = between(hands, obj, batch, kind, smooth)
            groups.append(eager_terms(found, plan.objects))
    if plan.motion.names and num_frames > 1:
        moved = motion_terms(hands, obj, batch, shape, num_frames)
        groups.append(eager_terms(moved, plan.motion))
    total, terms = together(groups)
    if log_variance is not None:
        own = _of_terms(log_variance, terms.names)
        total = total + (own * terms.seen.to(own.dtype).mean(1)).sum()
    return total, terms


def _balanced(plan: LossPlan, log_variance: Tensor) -> LossPlan:
    """Return the plan with weights ``w exp(-s)``, which have a gradient."""

    def scaled(weights: Weights) -> Weights:
        if not weights.names:
            return weights
        factor = (-_of_terms(log_variance, weights.names)).exp()
        return Weights(names=weights.names, lam=weights.lam * factor)

    return dataclasses.replace(
        plan,
        impl=Impl.eager,
        joints=scaled(plan.joints),
        mesh=scaled(plan.mesh),
        rotations=scaled(plan.rotations),
        limit=scaled(plan.limit),
        objects=scaled(plan.objects),
        motion=scaled(plan.motion),
    )


def _of_terms(log_variance: Tensor, names: tuple[str, ...]) -> Tensor:
    # Element by element: an index would be copied to the device.
    return torch.stack([log_variance[TERMS.index(name)] for name in names])


def together(groups: Sequence[tuple[tuple[str, ...], GroupLoss]]) -> tuple[Tensor, LossTerms]:
    """Return the sum of named groups and all of their terms.

    Raises:
        ValueError: If there is no term, or more than ``MAX_TERMS``.
    """
    names = tuple(name for group, _ in groups for name in group)
    if not 0 < len(names) <= MAX_TERMS:
        raise ValueError(
            f"between 1 and {MAX_TERMS} loss terms can be minimised, got {len(names)}; give a "
            "weight to a term that the model predicts"
        )
    total = torch.stack([loss.total for _, loss in groups]).sum()
    values = torch.cat([loss.values for _, loss in groups])
    seen = torch.cat([loss.seen for _, loss in groups])
    return total, LossTerms(names=names, values=values, seen=seen)


def eager_terms(
    found: Mapping[str, tuple[Float[Tensor, " b"], Bool[Tensor, "b ..."]]], weights: Weights
) -> tuple[tuple[str, ...], GroupLoss]:
    """Return a group for ``together`` of terms with names of one's own.

    Args:
        found: Per-sample value and mask of each term, at least those of ``weights``.
        weights: For example of ``weights_on(device, AMT, tuple(AMT))``.
    """
    return weights.names, weighted([found[name] for name in weights.names], weights.lam)
