"""Image to hands, and to the object they act on: a backbone, an MLP, MANO or plain joints.

One hand per crop, or both hands of a person and their object. The frames of a window may look at
each other inside the MLP.

Places are predicted in terms of the crop and lifted with the crop's true intrinsics: the pixel as
an offset from the crop's centre, the depth as a multiple of the depth at which ``CROP_EXTENT_M``
metres fill the crop. No weak-perspective camera, no assumed focal length.

Shape legend: b = images, h = hands, s = input side in pixels.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from model.config import Family, Head, ModelConfig
from model.geometry.camera import focal_px, project, unproject
from model.geometry.rotation import rot6d_to_rotmat
from model.hand import NUM_BETAS, NUM_HANDS, NUM_JOINTS, NUM_MANO_JOINTS, ROOT
from model.mano.files import ManoModels
from model.mano.layer import ManoLayer, joint_regressors, regress_joints
from model.parts.backbone import build_backbone
from model.parts.temporal import TemporalEncoder, camera_of_crop
from model.prediction import HandPrediction, ObjectPrediction, Prediction

CROP_EXTENT_M: Final = 0.25
"""Only the unit of the depth: what a crop around a hand spans."""
_CAMERA: Final = 3
OBJECT_SIZES: Final = (6, 1, _CAMERA)
"""Rotation, angle, place."""


class ManoRegressor(nn.Module):
    """See the module docstring."""

    base: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        input_px: int,
        mano: ManoModels | None,
        right_only: bool = False,
        load_weights: bool = True,
    ) -> None:
        """Build the network.

        ``right_only`` saves MANO work where left hands are mirrored; ``load_weights`` False
        fetches no published weights, because a checkpoint follows.
        """
        super().__init__()
        self.head = config.head
        self.has_object = config.family is Family.hand_object
        self.num_hands = NUM_HANDS if self.has_object else 1
        self.input_px = input_px
        self.backbone, width = build_backbone(config, input_px, load_weights=load_weights)
        self.temporal: TemporalEncoder | None = None
        if config.temporal_layers:
            sizes = config.hidden, config.temporal_width, config.temporal_layers
            self.temporal = TemporalEncoder(*sizes)
        if config.head is Head.mano:
            assert mano is not None, "train.build.required_mano refuses this with a sentence"
            self.mano = ManoLayer(mano, right_only=right_only)
            self.regressors = joint_regressors(mano)
            self.sizes: tuple[int, ...] = (6 * NUM_MANO_JOINTS, NUM_BETAS, _CAMERA)
        else:
            self.sizes = (3 * NUM_JOINTS, _CAMERA)
        self.parts = (self.num_hands * sum(self.sizes), sum(OBJECT_SIZES) * self.has_object)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, sum(self.parts))
        )
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        self.register_buffer("base", torch.zeros(sum(self.parts)))

    def start_from(self, mean: Float[Tensor, " n"]) -> None:
        """Predict ``mean`` before training.

        Of each hand 96 + 10 MANO values or 63 joint coordinates (metres), then its place
        (``place_in_crop``); of the object six of its rotation, the angle, the place.
        """
        self.base.copy_(mean)

    def forward(
        self,
        image: Float[Tensor, "b 3 s s"],
        K: Float[Tensor, "b 3 3"],
        decode_right: Bool[Tensor, "b h"],
        joint_set: Int64[Tensor, " b"],
        is_right: Bool[Tensor, "b h"],
        is_real: Bool[Tensor, " b"] | None = None,
        num_frames: int = 1,
    ) -> Prediction:
        """Return hands and object in the camera frame of the input pixels, metres.

        The MANO head decodes the side ``decode_right`` and returns joints in ``joint_set``, whose
        side is the hand's as recorded, ``is_right``; the two differ where a sample is mirrored.
        ``num_frames`` neighbours in the batch are a window, in which frames that are not
        ``is_real`` (None: all are) are not looked at.
        """
        # An image whose camera is not known has no label, but 0 times NaN would reach the weights.
        known = K.isfinite().all(-1).all(-1)[:, None, None]
        K = torch.where(known, K.float(), torch.eye(3, device=K.device))
        features = self.backbone(image.contiguous(memory_format=torch.channels_last))
        with torch.autocast(image.device.type, enabled=False):  # geometry stays in float32
            hidden = self.mlp[:-1](features.float())
            if self.temporal is not None:
                real = torch.ones_like(joint_set, dtype=torch.bool) if is_real is None else is_real
                camera = camera_of_crop(K, self.input_px)
                windows = (x.unflatten(0, (-1, num_frames)) for x in (hidden, camera, real))
                hidden = self.temporal(*windows).flatten(0, 1)
            out = self.mlp[-1](hidden) + self.base
            return self._decode(out, K, decode_right, joint_set, is_right)

    def predict_mean(
        self,
        mean: Float[Tensor, " n"],
        K: Float[Tensor, "b 3 3"],
        decode_right: Bool[Tensor, "b h"],
        joint_set: Int64[Tensor, " b"],
        is_right: Bool[Tensor, "b h"],
    ) -> Prediction:
        """Return ``mean``, as ``start_from`` takes it, whatever the image: the baseline to beat."""
        out = mean.expand(len(K), -1)
        return self._decode(out, K.float(), decode_right, joint_set, is_right)

    def _decode(
        self, out: Tensor, K: Tensor, decode_right: Tensor, joint_set: Tensor, is_right: Tensor
    ) -> Prediction:
        of_hands, of_object = out.split_with_sizes(self.parts, -1)
        hands = of_hands.reshape(len(out), self.num_hands, -1)
        *parts, camera = hands.split_with_sizes(self.sizes, -1)
        root = lift_from_crop(camera, K, self.input_px)
        found = self._object(of_object, K) if self.has_object else None
        if self.head is Head.joints:
            relative = parts[0].reshape(*root.shape[:2], NUM_JOINTS, 3)
            joints = relative - relative[..., ROOT : ROOT + 1, :] + root[..., None, :]
            return Prediction(hands=HandPrediction(joints_3d=joints), object=found)
        rot6d = parts[0].reshape(*root.shape[:2], NUM_MANO_JOINTS, 6)
        theta, beta = rot6d_to_rotmat(rot6d), parts[1]
        side = decode_right.flatten()
        rest = self.mano.root_rest(beta.flatten(0, 1), side).view_as(root)
        transl = root - rest
        decoded = self.mano(*(x.flatten(0, 1) for x in (theta, beta, transl)), side)
        vertices, skeleton = (points.unflatten(0, root.shape[:2]) for points in decoded)
        sets = joint_set[:, None].expand(is_right.shape)
        prediction = HandPrediction(
            joints_3d=regress_joints(vertices, skeleton, self.regressors, sets, is_right),
            vertices=vertices,
            theta_rotmat=theta,
            theta_rot6d=rot6d,
            beta=beta,
            transl=transl,
        )
        return Prediction(hands=prediction, object=found)

    def _object(self, out: Tensor, K: Tensor) -> ObjectPrediction:
        rot6d, arti_rad, camera = out.split_with_sizes(OBJECT_SIZES, -1)
        return ObjectPrediction(
            rotmat=rot6d_to_rotmat(rot6d),
            rot6d=rot6d,
            transl=lift_from_crop(camera[:, None], K, self.input_px)[:, 0],
            arti_rad=arti_rad[:, 0],
        )


def lift_from_crop(
    place: Float[Tensor, "b n 3"], K: Float[Tensor, "b 3 3"], input_px: int
) -> Float[Tensor, "b n 3"]:
    """Return the points, camera frame, metres, of places (x, y, log depth) in terms of the crop."""
    pixel = (input_px - 1) / 2 + input_px * place[..., :2]
    return unproject(pixel, _unit_depth(K, input_px) * place[..., 2].exp(), K)


def place_in_crop(
    points: Float[Tensor, "b n 3"], K: Float[Tensor, "b 3 3"], input_px: int
) -> Float[Tensor, "b n 3"]:
    """Undo ``lift_from_crop``; NaN behind the camera."""
    pixel = (project(points, K) - (input_px - 1) / 2) / input_px
    depth = (points[..., 2] / _unit_depth(K, input_px)).log()
    return torch.cat((pixel, depth[..., None]), -1)


def _unit_depth(K: Tensor, input_px: int) -> Tensor:
    """Return the depth at which ``CROP_EXTENT_M`` fill the crop [b, 1], metres."""
    return focal_px(K)[:, None] * (CROP_EXTENT_M / input_px)
