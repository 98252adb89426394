"""Decodes raw network outputs to hands and objects in the camera frame; shared by all families.

Positions are predicted relative to the crop and lifted with the crop's true intrinsics
(``model.geometry.camera.lift_from_crop``). No weak-perspective camera, no assumed focal length.

Shape legend: b = images, h = hands, n = outputs per hand.
"""

from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from model.geometry.camera import lift_from_crop
from model.geometry.rotation import axis_angle_to_rotmat, rot6d_to_rotmat, rotmat_to_rot6d
from model.hand import NUM_BETAS, NUM_JOINTS, NUM_MANO_JOINTS, ROOT
from model.mano.files import ManoModels
from model.mano.layer import ManoLayer, joint_regressors, regress_joints
from model.mean_pose import MeanPose
from model.prediction import HandPrediction, ObjectPrediction

PLACE: Final = 3
"""Outputs of a crop-relative position: x, y, log depth."""
OBJECT_SIZES: Final = (6, 1, PLACE)
"""Outputs of an object: 6D rotation, articulation angle, position."""


class HandDecoder(nn.Module):
    """Decodes each hand's outputs: MANO's 96 + 10 or 63 joint coordinates, then its position.

    Has no weights and no entry in the state dict: MANO's arrays come from the user's files.
    """

    parts: tuple[tuple[int, int], ...]
    """Number of rotations or points of each part, and the outputs of one."""
    rest_rot6d: Tensor | None
    """[2, 96], MANO's mean pose of both sides, its root not rotated; None without MANO."""

    def __init__(self, *, input_px: int, mano: ManoModels | None, right_only: bool = False) -> None:
        """Decode MANO parameters with the models ``mano``, or plain joints where they are None.

        ``right_only`` is faster where left hands are mirrored.
        """
        super().__init__()
        self.input_px = input_px
        self.mano: ManoLayer | None = None
        self.register_buffer("rest_rot6d", None, persistent=False)
        self.parts = ((NUM_JOINTS, 3), (1, PLACE))
        if mano is not None:
            self.mano = ManoLayer(mano, right_only=right_only)
            self.regressors = joint_regressors(mano)
            self.rest_rot6d = _rest_rot6d(mano)
            self.parts = ((NUM_MANO_JOINTS, 6), (1, NUM_BETAS), (1, PLACE))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Outputs of each part of a hand."""
        return tuple(count * size for count, size in self.parts)

    @property
    def num_values(self) -> int:
        """Outputs per hand."""
        return sum(self.sizes)

    def start(self, mean: MeanPose) -> Float[Tensor, "h n"]:
        """Return the outputs that decode to the mean of a training set.

        Raises:
            ValueError: If MANO parameters are decoded, but the mean has none.
        """
        if self.mano is None:
            return torch.cat((mean.joints_rel.flatten(1), mean.place), -1)
        if mean.theta_rot6d is None:
            raise ValueError(
                "the mean pose has no MANO pose, which a network of MANO parameters starts from; "
                "measure it with this network: train.state.mean_pose.measure_mean_pose"
            )
        beta = torch.zeros(len(mean.place), NUM_BETAS) if mean.beta is None else mean.beta
        return torch.cat((mean.theta_rot6d, beta, mean.place), -1)

    def forward(
        self,
        numbers: Float[Tensor, "b h n"],
        K: Float[Tensor, "b 3 3"],
        decode_right: Bool[Tensor, "b h"],
        joint_set: Int64[Tensor, " b"],
        is_right: Bool[Tensor, "b h"],
    ) -> HandPrediction:
        """Return the hands; joints in each sample's convention ``joint_set``."""
        *parts, place = numbers.split_with_sizes(self.sizes, -1)
        root = lift_from_crop(place, K, self.input_px)
        if self.mano is None:
            relative = parts[0].reshape(*root.shape[:2], NUM_JOINTS, 3)
            joints = relative - relative[..., ROOT : ROOT + 1, :] + root[..., None, :]
            return HandPrediction(joints_3d=joints)
        rot6d = parts[0].reshape(*root.shape[:2], NUM_MANO_JOINTS, 6)
        theta, beta = rot6d_to_rotmat(rot6d), parts[1]
        side = decode_right.flatten()
        rest = self.mano.root_rest(beta.flatten(0, 1), side).view_as(root)
        transl = root - rest
        decoded = self.mano(*(x.flatten(0, 1) for x in (theta, beta, transl)), side)
        vertices, skeleton = (points.unflatten(0, root.shape[:2]) for points in decoded)
        sets = joint_set[:, None].expand(is_right.shape)
        return HandPrediction(
            joints_3d=regress_joints(vertices, skeleton, self.regressors, sets, is_right),
            vertices=vertices,
            theta_rotmat=theta,
            theta_rot6d=rot6d,
            beta=beta,
            transl=transl,
        )


def _rest_rot6d(mano: ManoModels) -> Float[Tensor, "2 96"]:
    """Return MANO's mean pose of the right and the left hand."""
    fingers = np.stack([side.hands_mean for side in (mano.right, mano.left)])
    theta = torch.from_numpy(np.pad(fingers, ((0, 0), (3, 0)))).view(len(fingers), -1, 3)
    return rotmat_to_rot6d(axis_angle_to_rotmat(theta)).flatten(1).float()


def decode_object(
    numbers: Float[Tensor, "b 10"], K: Float[Tensor, "b 3 3"], input_px: int
) -> ObjectPrediction:
    """Decode ``OBJECT_SIZES`` outputs per image to an object."""
    rot6d, arti_rad, place = numbers.split_with_sizes(OBJECT_SIZES, -1)
    return ObjectPrediction(
        rotmat=rot6d_to_rotmat(rot6d),
        rot6d=rot6d,
        transl=lift_from_crop(place[:, None], K, input_px)[:, 0],
        arti_rad=arti_rad[:, 0],
    )


def known_camera(K: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 3"]:
    """Return the intrinsics in float32, the identity where they are unknown (not finite).

    Such an image has no label, but 0 times NaN would reach the weights.
    """
    known = K.isfinite().all(-1).all(-1)[:, None, None]
    return torch.where(known, K.float(), torch.eye(3, device=K.device))
