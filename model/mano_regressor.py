"""Image to one hand: a pooled backbone, an MLP, and MANO or plain joints at the end.

The hand's place is predicted in terms of the crop and lifted with the crop's true intrinsics:
the root pixel as an offset from the crop's centre, the depth as a multiple of the depth at which
``CROP_EXTENT_M`` metres fill the crop. No weak-perspective camera, no assumed focal length.

Shape legend: b = batch, s = input side in pixels.
"""

from pathlib import Path
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from model.backbone import build_backbone
from model.config import Head, ModelConfig
from model.geometry.camera import unproject
from model.geometry.rotation import rot6d_to_rotmat
from model.hand import NUM_BETAS, NUM_JOINTS, NUM_MANO_JOINTS, ROOT
from model.mano import ManoLayer, joint_regressors, regress_joints
from model.mano_files import ManoModels
from model.prediction import HandPrediction

CROP_EXTENT_M: Final = 0.25
"""What a crop around a hand spans; only the starting point of the depth."""
_CAMERA: Final = 3


class ManoRegressor(nn.Module):
    """One hand per crop; see the module docstring."""

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
        self.input_px = input_px
        self.backbone, width = build_backbone(config, input_px, load_weights=load_weights)
        if config.head is Head.mano:
            assert mano is not None, "train.run.required_mano refuses this with a sentence"
            self.mano = ManoLayer(mano, right_only=right_only)
            self.regressors = joint_regressors(mano)
            self.sizes: tuple[int, ...] = (6 * NUM_MANO_JOINTS, NUM_BETAS, _CAMERA)
        else:
            self.sizes = (3 * NUM_JOINTS, _CAMERA)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, sum(self.sizes))
        )
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        self.register_buffer("base", torch.zeros(sum(self.sizes)))

    @classmethod
    def from_pretrained(cls, folder: Path, *, mano: ManoModels | None) -> "ManoRegressor":
        """Return a trained network; see ``model.pretrained.load_pretrained``."""
        from model.pretrained import load_pretrained

        return load_pretrained(folder, mano=mano)

    def start_from(self, mean: Float[Tensor, " n"]) -> None:
        """Predict ``mean`` before training: 96 + 10 MANO values, or 63 joint coordinates (metres).

        The camera starts at the centre of the crop.
        """
        self.base[: len(mean)].copy_(mean)

    def forward(
        self,
        image: Float[Tensor, "b 3 s s"],
        K: Float[Tensor, "b 3 3"],
        decode_right: Bool[Tensor, " b"],
        joint_set: Int64[Tensor, " b"],
        is_right: Bool[Tensor, " b"],
    ) -> HandPrediction:
        """Return the hand in the camera frame of the input pixels, metres; h = 1.

        The MANO head decodes the side ``decode_right`` and returns joints in ``joint_set``, whose
        side is the hand's as recorded, ``is_right``; the two differ where a sample is mirrored.
        """
        features = self.backbone(image.contiguous(memory_format=torch.channels_last))
        with torch.autocast(image.device.type, enabled=False):  # geometry stays in float32
            out = self.mlp(features.float()) + self.base
            *parts, camera = out.split(self.sizes, dim=-1)
            root = self._root(camera, K.float())
            if self.head is Head.joints:
                relative = parts[0].unflatten(-1, (NUM_JOINTS, 3))
                joints = relative - relative[:, ROOT : ROOT + 1] + root[:, None]
                return HandPrediction(joints_3d=joints[:, None])
            rot6d = parts[0].unflatten(-1, (NUM_MANO_JOINTS, 6))
            theta = rot6d_to_rotmat(rot6d)
            beta = parts[1]
            transl = root - self.mano.root_rest(beta, decode_right)
            vertices, skeleton = self.mano(theta, beta, transl, decode_right)
            joints = regress_joints(vertices, skeleton, self.regressors, joint_set, is_right)
        return HandPrediction(
            joints_3d=joints[:, None],
            vertices=vertices[:, None],
            theta_rotmat=theta[:, None],
            theta_rot6d=rot6d[:, None],
            beta=beta[:, None],
            transl=transl[:, None],
        )

    def _root(self, camera: Float[Tensor, "b 3"], K: Float[Tensor, "b 3 3"]) -> Tensor:
        """Lift (x, y, log depth) in crop terms to the root point, camera frame, metres [b, 3]."""
        focal = (K[:, 0, 0] * K[:, 1, 1] - K[:, 0, 1] * K[:, 1, 0]).abs().sqrt()
        depth = focal * (CROP_EXTENT_M / self.input_px) * camera[:, 2].exp()
        pixel = (self.input_px - 1) / 2 + self.input_px * camera[:, :2]
        return unproject(pixel[:, None], depth[:, None], K)[:, 0]
