"""Frames of a window look at each other: a transformer that refines each frame's features."""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

HEAD_WIDTH: Final = 64
CAMERA_WIDTH: Final = 3


class TemporalEncoder(nn.Module):
    """``features + update(features of all frames)``; the update is 0 before training.

    So a network that has learned from single images predicts the same with a fresh encoder, and
    fine-tuning on windows begins where it stands. Pre-norm layers, sinusoidal positions, any number
    of frames. Each frame also says which camera its pixels have: crops of one scene differ.
    """

    def __init__(self, width: int, inner: int, layers: int) -> None:
        """Build ``layers`` layers of width ``inner`` for features of ``width``."""
        super().__init__()
        self.inner = inner
        self.enter = nn.Linear(width + CAMERA_WIDTH, inner)
        layer = nn.TransformerEncoderLayer(
            inner,
            max(1, inner // HEAD_WIDTH),
            4 * inner,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(inner), enable_nested_tensor=False
        )
        self.leave = nn.Linear(inner, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, features: Float[Tensor, "b t c"], camera: Float[Tensor, "b t 3"]
    ) -> Float[Tensor, "b t c"]:
        """Return the refined features of every frame; ``camera``: of ``camera_of_crop``."""
        entered = self.enter(torch.cat((features, camera.to(features.dtype)), -1))
        position = positions(features.shape[1], self.inner).to(entered)
        update: Tensor = self.leave(self.layers(entered + position))
        return features + update


def camera_of_crop(K: Float[Tensor, "*b 3 3"], input_px: int) -> Float[Tensor, "*b 3"]:
    """Return log of the focal length and the principal point from the middle, in input sides."""
    focal = (K[..., 0, 0] * K[..., 1, 1] - K[..., 0, 1] * K[..., 1, 0]).abs().sqrt()
    middle = (input_px - 1) / 2
    x, y = K[..., 0, 2] - middle, K[..., 1, 2] - middle
    return torch.stack(((focal / input_px).log(), x / input_px, y / input_px), -1)


def positions(num: int, width: int) -> Float[Tensor, "t c"]:
    """Return sines, then cosines, of the frame number at wavelengths from 2 pi to 20,000 pi.

    Source:
        Vaswani et al. 2017, Attention is all you need, 3.5.
    """
    half = width // 2
    speed = torch.exp(torch.arange(half) * (-math.log(1e4) / half))
    angle = torch.arange(num)[:, None] * speed
    return torch.cat((angle.sin(), angle.cos()), -1)
