"""Measuring the mean of the training set."""

import functools
import operator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from model.geometry.align import procrustes
from model.geometry.camera import place_in_crop
from model.geometry.rotation import rot6d_to_rotmat, rotmat_to_rot6d
from model.hand import NUM_BETAS, RIGHT, ROOT, JointSet
from model.mano.layer import regress_joints
from model.mean_pose import MeanPose
from model.network import Network
from model.parts.hand_decoder import HandDecoder
from pipeline.batch import Batch
from pipeline.labels.joints_2d import Joints2DLabels
from pipeline.loader import Loader
from train.device.distributed import ALONE, Ranks, all_gather
from train.step.mesh import decode_hands


@dataclass(slots=True)
class _Sums:
    """Sums of named values and how many they are, in float64 on the host."""

    total: dict[str, Float64[Tensor, "..."]] = field(default_factory=dict)
    count: dict[str, Float64[Tensor, "..."]] = field(default_factory=dict)

    def add(self, name: str, values: Float[Tensor, "b ..."], valid: Bool[Tensor, "b ..."]) -> None:
        """Add the rows of a batch; ``valid`` has the leading axes of ``values``."""
        mask = valid.reshape(*valid.shape, *[1] * (values.ndim - valid.ndim))
        total = values.where(mask, 0.0).double().sum(0).cpu()
        count = mask.sum(0).double().cpu()
        self.total[name] = self.total[name] + total if name in self.total else total
        self.count[name] = self.count[name] + count if name in self.count else count

    def mean(self, name: str) -> Float[Tensor, "..."] | None:
        """Return the mean, 0 for a hand that has none; None if no hand has one."""
        if name not in self.total or not bool(self.count[name].any()):
            return None
        return (self.total[name] / self.count[name].clamp_min(1)).float()


def measure_mean_pose(loader: Loader, model: Network, ranks: Ranks = ALONE) -> MeanPose:
    """Average the labels of every training sample of all ranks, without touching an image.

    Meshes are decoded with the model's own MANO layer, if it has one. Frames count in every window
    that has them.

    Raises:
        ValueError: If no hand has a valid wrist.
    """
    sums = _Sums()
    for windows in loader.label_batches():
        _add(sums, windows.frames(), model)
    everywhere = all_gather((sums.total, sums.count), ranks)
    whole = _Sums(
        total=_added([total for total, _ in everywhere]),
        count=_added([count for _, count in everywhere]),
    )
    joints, place = whole.mean("joints_rel"), whole.mean("place")
    if joints is None or place is None:
        place = whole.mean("place_2d")
        if place is None:
            raise ValueError(
                f"split {loader.config.split!r} of {loader.config.store} has no hand with a valid "
                "wrist; nothing to train on"
            )
        joints = _rest_joints(model.decoder, len(place))
        if joints is None:
            raise ValueError(
                f"split {loader.config.split!r} of {loader.config.store} has 2D joints only, from "
                "which depth cannot be learned without a hand model; use model.head=mano, or add a "
                "store with 3D joints by pipeline.mix"
            )
    theta = whole.mean("theta_rot6d")
    if theta is None and model.decoder is not None:
        theta = _theta_of_joints(model.decoder, joints)
    state = [whole.mean(name) for name in ("object_rot6d", "object_arti", "object_place")]
    missing = [torch.tensor([1.0, 0, 0, 0, 1, 0]), torch.zeros(1), torch.zeros(3)]
    known = [none if one is None else one for one, none in zip(state, missing, strict=True)]
    return MeanPose(
        joints_rel=joints,
        vertices_rel=whole.mean("vertices_rel"),
        theta_rot6d=theta,
        beta=whole.mean("beta"),
        place=place,
        object_state=torch.cat(known) if model.has_object else None,
        num_hands=int(whole.count["place" if whole.count["place"].any() else "place_2d"].sum()),
    )


def _rest_joints(decoder: HandDecoder | None, num_hands: int) -> Float[Tensor, "h 21 3"] | None:
    """Return the joints of MANO's mean pose relative to the wrist; None without MANO."""
    if decoder is None or decoder.mano is None or decoder.rest_rot6d is None:
        return None
    _, joints = _rest_hands(decoder, decoder.rest_rot6d[:num_hands])
    return (joints - joints[:, ROOT : ROOT + 1]).cpu()


def _theta_of_joints(
    decoder: HandDecoder, joints_rel: Float[Tensor, "h 21 3"]
) -> Float[Tensor, "h 96"] | None:
    """Return MANO's mean pose, rotated to the mean joints; None without MANO.

    The start of a network that learns MANO parameters from joints alone.
    """
    if decoder.mano is None or decoder.rest_rot6d is None:
        return None
    theta, joints = _rest_hands(decoder, decoder.rest_rot6d[: len(joints_rel)])
    _, R, _ = procrustes(joints.double(), joints_rel.to(theta.device).double(), reflection=False)
    theta[:, 0] = R.float() @ theta[:, 0]
    return rotmat_to_rot6d(theta).flatten(1).cpu()


def _rest_hands(
    decoder: HandDecoder, rest_rot6d: Float[Tensor, "h 96"]
) -> tuple[Float[Tensor, "h 16 3 3"], Float[Tensor, "h 21 3"]]:
    """Return the rotations and the joints of MANO's mean pose, the right hand first."""
    assert decoder.mano is not None
    num_hands, device = len(rest_rot6d), rest_rot6d.device
    theta = rot6d_to_rotmat(rest_rot6d.view(num_hands, -1, 6))
    side = torch.arange(num_hands, device=device) == RIGHT
    beta = torch.zeros(num_hands, NUM_BETAS, device=device)
    vertices, skeleton = decoder.mano(theta, beta, None, side)
    sets = torch.full((num_hands,), int(JointSet.smplx), device=device)
    return theta, regress_joints(vertices, skeleton, decoder.regressors, sets, side)


def _added(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = {name for part in parts for name in part}
    return {
        name: functools.reduce(operator.add, [part[name] for part in parts if name in part])
        for name in names
    }


def _add(sums: _Sums, batch: Batch, model: Network) -> None:
    valid = batch.joint_valid & batch.has_joints[..., None]
    valid = valid & valid[:, :, ROOT : ROOT + 1]
    wrist = batch.joints_3d[:, :, ROOT]
    sums.add("joints_rel", batch.joints_3d - wrist[:, :, None], valid)
    place = place_in_crop(wrist, batch.K, model.input_px)
    sums.add("place", place, valid[:, :, ROOT] & (wrist[..., 2] > 0))
    flat = batch.groups.get(Joints2DLabels.NAME)
    if isinstance(flat, Joints2DLabels):
        # As far away as a hand that fills the crop.
        place = place_in_crop(flat.ray[:, :, ROOT], batch.K, model.input_px)
        place = torch.cat((place[..., :2], torch.zeros_like(place[..., 2:])), -1)
        sums.add("place_2d", place, flat.valid[:, :, ROOT])
    if model.has_object:
        t = batch.object_pose[:, :, 3]
        place = place_in_crop(t[:, None], batch.K, model.input_px)[:, 0]
        rot6d = rotmat_to_rot6d(batch.object_pose[..., :3])
        sums.add("object_rot6d", rot6d, batch.has_object)
        sums.add("object_place", place, batch.has_object & (t[:, 2] > 0))
        is_articulated = batch.has_object & ~batch.object_arti_rad.isnan()
        sums.add("object_arti", batch.object_arti_rad[:, None], is_articulated)
    decoder = model.decoder
    if decoder is None or decoder.mano is None:
        return
    # Left hands that no shape of the fixed model fits have a pose, but no shape and no mesh.
    sums.add("theta_rot6d", rotmat_to_rot6d(batch.theta_rotmat).flatten(2), batch.has_mano)
    known = batch.has_mano & batch.has_beta
    vertices, skeleton = decode_hands(decoder.mano, batch)
    sets = batch.joint_set[:, None].expand(known.shape)
    joints = regress_joints(vertices, skeleton, decoder.regressors, sets, batch.is_right)
    sums.add("vertices_rel", vertices - joints[:, :, ROOT : ROOT + 1], known)
    sums.add("beta", batch.beta, known)
