"""The mean hand of the training set: where the network starts, and the baseline to beat."""

import functools
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import Head
from model.geometry.rotation import rotmat_to_rot6d
from model.hand import NUM_JOINTS, NUM_VERTICES, ROOT
from model.mano import regress_joints
from model.mano_regressor import ManoRegressor
from pipeline.loader import Loader
from train.distributed import ALONE, Ranks, gathered
from train.mesh import decode_hands


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanPose:
    """Means over the training set, in the unaugmented input frame (left hands mirrored)."""

    joints_rel: Tensor
    """[21, 3], metres, relative to the wrist."""
    vertices_rel: Tensor | None
    """[778, 3], metres, relative to the wrist of the regressed joints; None without MANO."""
    theta_rot6d: Tensor | None
    """[96], mean of the 6D rotations, not orthonormal."""
    beta: Tensor | None
    """[10]."""
    num_hands: int

    def network_start(self, head: Head) -> Tensor:
        """Return what a network of this head predicts before training."""
        if head is Head.joints:
            return self.joints_rel.flatten()
        if self.theta_rot6d is None or self.beta is None:
            raise ValueError(
                "model.head=mano learns from MANO labels, but no training row has them; build the "
                "store with mano=FOLDER, or use model.head=joints"
            )
        return torch.cat([self.theta_rot6d, self.beta])


def measure_mean_pose(loader: Loader, model: ManoRegressor, ranks: Ranks = ALONE) -> MeanPose:
    """Average the labels of every training hand of all ranks, without touching an image.

    Meshes are decoded with the model's own MANO layer; a joint-head model has none.
    """
    with_mesh = model.head is Head.mano
    joints_sum = torch.zeros(NUM_JOINTS, 3, dtype=torch.float64)
    joints_count = torch.zeros(NUM_JOINTS, dtype=torch.float64)
    vertices_sum = torch.zeros(NUM_VERTICES, 3, dtype=torch.float64)
    theta_sum, beta_sum = torch.zeros(96, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
    num_hands, num_mano = 0, 0
    for batch in loader.label_batches():
        valid = batch.joint_valid & batch.has_joints[..., None]
        valid = valid & valid[:, :, ROOT : ROOT + 1]
        relative = batch.joints_3d - batch.joints_3d[:, :, ROOT : ROOT + 1]
        joints_sum += relative.where(valid[..., None], 0.0).double().sum((0, 1)).cpu()
        joints_count += valid.sum((0, 1)).double().cpu()
        num_hands += int(valid[:, :, ROOT].sum())
        known = batch.has_mano & batch.has_beta
        if not with_mesh or not bool(known.any()):
            continue
        vertices, skeleton = decode_hands(model.mano, batch)
        sets = batch.joint_set[:, None].expand(known.shape)
        joints = regress_joints(vertices, skeleton, model.regressors, sets, batch.is_right)
        root = joints[:, :, ROOT : ROOT + 1]
        vertices_sum += (vertices - root)[known].double().sum(0).cpu()
        theta_sum += rotmat_to_rot6d(batch.theta_rotmat)[known].flatten(1).double().sum(0).cpu()
        beta_sum += batch.beta[known].double().sum(0).cpu()
        num_mano += int(known.sum())
    sums = (joints_sum, joints_count, vertices_sum, theta_sum, beta_sum, num_hands, num_mano)
    joints_sum, joints_count, vertices_sum, theta_sum, beta_sum, num_hands, num_mano = (
        functools.reduce(operator.add, parts) for parts in zip(*gathered(sums, ranks), strict=True)
    )
    if num_hands == 0:
        raise ValueError(
            f"split {loader.config.split!r} of {loader.config.store} has no hand with a valid "
            "wrist; nothing to train on"
        )
    return MeanPose(
        joints_rel=(joints_sum / joints_count.clamp_min(1)[:, None]).float(),
        vertices_rel=(vertices_sum / num_mano).float() if num_mano else None,
        theta_rot6d=(theta_sum / num_mano).float() if num_mano else None,
        beta=(beta_sum / num_mano).float() if num_mano else None,
        num_hands=num_hands,
    )
