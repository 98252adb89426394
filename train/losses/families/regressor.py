"""Loss groups of networks that predict hands and the object they act on."""

import torch
from torch import Tensor

from model.hand import ROOT
from pipeline.labels.joints_2d import Joints2DLabels
from train.losses.config import Impl
from train.losses.groups import (
    eager_terms,
    joint_losses,
    mesh_losses,
    rotation_losses,
    weighted,
)
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
from train.losses.plan import Group, LossInputs, Weights
from train.losses.scene import between, motion_terms, object_terms
from train.losses.terms.joints import joints_2d
from train.losses.terms.mano import joint_limits


def joints(inputs: LossInputs, weights: Weights) -> GroupLoss | None:
    """Return the terms of the 21 joints."""
    hands, batch, settings = inputs.prediction.hands, inputs.batch, inputs.settings
    if hands is None:
        return None
    found = JointInputs(
        pred=hands.joints_3d,
        target=batch.joints_3d,
        valid=batch.joint_valid & batch.has_joints[..., None],
        K=batch.K,
        input_px=batch.image.shape[-1],
        weight=settings.joint_weight,
        kind=settings.distance,
        smooth=settings.smooth_m,
    )
    flat = batch.groups.get(Joints2DLabels.NAME)
    if isinstance(flat, Joints2DLabels) and "joints_2d" in weights.names:
        return _with_pixels(found, flat, weights, settings.impl)
    return joint_losses(found, weights.names, weights.lam, settings.impl)


def _with_pixels(
    joints: JointInputs, flat: Joints2DLabels, weights: Weights, impl: Impl
) -> GroupLoss:
    """Return the terms, joints_2d also of joints that have no label but a pixel."""
    at = weights.names.index("joints_2d")
    others = [i for i in range(len(weights.names)) if i != at]
    target = torch.where(joints.valid[..., None], joints.target, flat.ray)
    valid = joints.valid | flat.valid
    value = joints_2d(joints.pred, target, valid, joints.K, joints.input_px, joints.weight)
    own = weighted([(value, valid)], weights.lam[at : at + 1])
    if not others:
        return own
    names = tuple(weights.names[i] for i in others)
    lam = torch.cat((weights.lam[:at], weights.lam[at + 1 :]))
    rest = joint_losses(joints, names, lam, impl)

    def inserted(column: Tensor, row: Tensor) -> Tensor:
        return torch.cat((column[:at], row, column[at:]))

    return GroupLoss(
        total=rest.total + own.total,
        values=inserted(rest.values, own.values),
        seen=inserted(rest.seen, own.seen),
    )


def mesh(inputs: LossInputs, weights: Weights) -> GroupLoss | None:
    """Return the terms of the 778 vertices."""
    hands, batch = inputs.prediction.hands, inputs.batch
    if hands is None or hands.vertices is None or inputs.mesh is None:
        return None
    has_root = batch.joint_valid[:, :, ROOT] & batch.has_joints
    found = MeshInputs(
        pred=hands.vertices,
        target=inputs.mesh.vertices,
        pred_joints=hands.joints_3d,
        target_joints=batch.joints_3d,
        valid=batch.has_mano & batch.has_beta & has_root,
    )
    return mesh_losses(found, None, weights.names, weights.lam, inputs.settings.impl)


def rotations(inputs: LossInputs, weights: Weights) -> GroupLoss | None:
    """Return the terms of MANO's pose and shape parameters."""
    hands, batch = inputs.prediction.hands, inputs.batch
    if hands is None or hands.theta_rotmat is None:
        return None
    assert hands.beta is not None
    assert hands.theta_rot6d is not None
    found = RotationInputs(
        pred=hands.theta_rotmat,
        target=batch.theta_rotmat,
        valid=batch.has_mano,
        pred_beta=hands.beta,
        target_beta=batch.beta,
        has_beta=batch.has_mano & batch.has_beta,
        rot6d=hands.theta_rot6d,
        present=batch.has_joints | batch.has_mano,
    )
    return rotation_losses(found, weights.names, weights.lam, inputs.settings.impl)


def limits(inputs: LossInputs, weights: Weights) -> GroupLoss | None:
    """Return the term of finger joints beyond their anatomical limits."""
    hands, batch, known = inputs.prediction.hands, inputs.batch, inputs.settings.limits
    if hands is None or hands.theta_rotmat is None or known is None:
        return None
    is_left = ~(batch.is_right | batch.mirrored[:, None]) & (len(known.frames) > 1)
    frames = known.frames[is_left.long()]
    present = batch.has_joints | batch.has_mano
    value = joint_limits(hands.theta_rotmat, frames, known.low_rad, known.high_rad, present)
    return eager_terms({"joint_limits": (value, present)}, weights.names, weights.lam)


def acted_on_object(inputs: LossInputs, weights: Weights) -> GroupLoss | None:
    """Return the terms of the object that the hands act on."""
    obj, settings, batch = inputs.prediction.object, inputs.settings, inputs.batch
    if obj is None or inputs.posed is None:
        return None
    measure = (settings.distance, settings.smooth_m)
    found = object_terms(obj, batch, inputs.posed, *measure)
    hands = inputs.prediction.hands
    if hands is not None:
        found["hand_object"] = between(hands, obj, batch, *measure)
    return eager_terms(found, weights.names, weights.lam)


def motion(inputs: LossInputs, weights: Weights) -> GroupLoss | None:
    """Return the temporal terms within each window."""
    hands, obj = inputs.prediction.hands, inputs.prediction.object
    if hands is None or inputs.num_frames == 1:
        return None
    found = motion_terms(hands, obj, inputs.batch, inputs.posed, inputs.num_frames)
    return eager_terms(found, weights.names, weights.lam)


GROUPS = (
    Group(names=JOINT_TERMS, compute=joints),
    Group(names=MESH_TERMS, compute=mesh, needs_mesh=True),
    Group(names=ROTATION_TERMS, compute=rotations),
    Group(names=LIMIT_TERMS, compute=limits),
    Group(names=OBJECT_TERMS, compute=acted_on_object),
    Group(names=MOTION_TERMS, compute=motion),
)
"""Groups in the order in which their totals are added."""
