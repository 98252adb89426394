"""Weights -> one scalar and the named terms.

The total is the sum over terms of weight times the mean over the batch of the per-sample value.
Samples without a label count as 0 in that mean, so neither batch size nor rank count changes the
mix; the share of samples each term saw is logged beside it.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from model.hand import ROOT
from model.prediction import HandPrediction
from pipeline.batch import Batch
from train.losses import terms
from train.losses.config import LossConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """Detached, on the device: read them at log points only."""

    values: dict[str, Tensor]
    """Batch mean per term, unweighted."""
    seen: dict[str, Tensor]
    """Share of samples with a label for the term."""
    finite: Tensor
    """[b], whether every term of the sample is finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshTarget:
    """Ground-truth mesh, decoded from the labels with the same MANO layer."""

    vertices: Tensor
    """[b, h, 778, 3], input camera frame, metres; any value where has_mano & has_beta is False."""


def total_loss(
    prediction: HandPrediction, batch: Batch, mesh: MeshTarget | None, config: LossConfig
) -> tuple[Tensor, LossTerms]:
    """Return the scalar to minimise and its terms."""
    joint_valid = batch.joint_valid & batch.has_joints[..., None]
    pred_joints, joints = prediction.joints_3d, batch.joints_3d
    has_root = joint_valid & joint_valid[:, :, ROOT : ROOT + 1]
    input_px = batch.image.shape[-1]
    per_sample: dict[str, tuple[Tensor, Tensor]] = {
        "joints_abs": (terms.joints_abs(pred_joints, joints, joint_valid), joint_valid),
        "joints_rel": (terms.joints_rel(pred_joints, joints, joint_valid), has_root),
        "joints_2d": (
            terms.joints_2d(pred_joints, joints, joint_valid, batch.K, input_px),
            joint_valid,
        ),
    }
    if prediction.theta_rotmat is not None and prediction.beta is not None:
        has_beta = batch.has_mano & batch.has_beta
        per_sample["theta"] = (
            terms.theta(prediction.theta_rotmat, batch.theta_rotmat, batch.has_mano),
            batch.has_mano,
        )
        per_sample["beta"] = (terms.beta(prediction.beta, batch.beta, has_beta), has_beta)
    if prediction.vertices is not None and mesh is not None:
        has_mesh = batch.has_mano & batch.has_beta & joint_valid[:, :, ROOT]
        per_sample["vertices"] = (
            terms.vertices_rel(
                prediction.vertices,
                mesh.vertices,
                pred_joints[:, :, ROOT],
                joints[:, :, ROOT],
                has_mesh,
            ),
            has_mesh,
        )
    weights = asdict(config)
    total = torch.stack([weights[n] * value.mean() for n, (value, _) in per_sample.items()]).sum()
    return total, LossTerms(
        values={name: value.detach().mean() for name, (value, _) in per_sample.items()},
        seen={
            name: mask.flatten(1).any(1).float().mean() for name, (_, mask) in per_sample.items()
        },
        finite=torch.stack([torch.isfinite(value) for value, _ in per_sample.values()]).all(0),
    )
