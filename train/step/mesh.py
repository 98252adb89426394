"""The meshes of labels, decoded with the model's own MANO layer."""

import torch
from torch import Tensor

from model.mano.layer import ManoLayer
from pipeline.batch import Batch
from train.losses.plan import MeshTarget


@torch.no_grad()
def decode_hands(mano: ManoLayer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the labels' vertices [b, h, 778, 3] and posed skeleton [b, h, 16, 3], metres.

    Rows without MANO hold the rest hand.
    """
    known = batch.has_mano & batch.has_beta  # [b, h]
    identity = torch.eye(3, device=known.device)
    theta = torch.where(known[..., None, None, None], batch.theta_rotmat, identity)
    beta = batch.beta.where(known[..., None], 0.0)
    transl = batch.transl.where(known[..., None], 0.0)
    right = batch.is_right | batch.mirrored[:, None]
    vertices, skeleton = mano(
        theta.flatten(0, 1), beta.flatten(0, 1), transl.flatten(0, 1), right.flatten(0, 1)
    )
    return vertices.unflatten(0, known.shape), skeleton.unflatten(0, known.shape)


def decode_labels(mano: ManoLayer, batch: Batch) -> MeshTarget:
    """Return the ground-truth mesh of the batch; rows without MANO hold the rest hand."""
    vertices, _ = decode_hands(mano, batch)
    return MeshTarget(vertices=vertices)
