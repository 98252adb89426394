"""Frames of a window look at each other: a transformer that refines each frame's features.

Its tokens say two things of a frame: how much it should take over of the features of every other
frame, and what to add to its own. The first is an average, which takes out what trembles from frame
to frame; a transformer that only adds had not learned it after 1,000 steps on the ARCTIC stand-in.

Shape legend: b = windows, t = frames, c = width of the features, h = heads.
"""

import math
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.geometry.camera import focal_px

HEAD_WIDTH: Final = 64
"""Of the transformer."""
MIX_HEADS: Final = 8
"""Groups of features that are averaged alike."""
MIX_WIDTH: Final = 32
FARTHEST: Final = 16
"""Frames; farther ones share one bias."""
CAMERA_WIDTH: Final = 3


class TemporalEncoder(nn.Module):
    """``x + gate (A x - x) + update``; gate and update are 0 before training.

    So a network that has learned from single images predicts the same with a fresh encoder, and
    fine-tuning on windows begins where it stands. ``A`` are ``MIX_HEADS`` matrices over the frames,
    by the tokens and by a learned bias for every distance. Pre-norm layers, sinusoidal positions,
    any number of frames. Each frame also says which camera its pixels have: crops of one scene
    differ.
    """

    def __init__(self, width: int, inner: int, layers: int) -> None:
        """Build ``layers`` layers of width ``inner`` for features of ``width``.

        Raises:
            ValueError: If ``width`` is no multiple of ``MIX_HEADS``.
        """
        super().__init__()
        if width % MIX_HEADS:
            raise ValueError(
                f"model.hidden must be a multiple of {MIX_HEADS} with model.temporal_layers, got "
                f"{width}"
            )
        self.inner = inner
        self.enter = nn.Linear(width + CAMERA_WIDTH, inner)
        layer = nn.TransformerEncoderLayer(
            inner,
            inner // HEAD_WIDTH,
            4 * inner,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(inner), enable_nested_tensor=False
        )
        self.query = nn.Linear(inner, MIX_HEADS * MIX_WIDTH)
        self.key = nn.Linear(inner, MIX_HEADS * MIX_WIDTH)
        self.distance = nn.Parameter(torch.zeros(MIX_HEADS, 2 * FARTHEST + 1))
        self.gate = nn.Parameter(torch.zeros(width))
        self.leave = nn.Linear(inner, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self,
        features: Float[Tensor, "b t c"],
        camera: Float[Tensor, "b t 3"],
        is_real: Bool[Tensor, "b t"],
    ) -> Float[Tensor, "b t c"]:
        """Return the refined features of every frame.

        Args:
            features: Of every frame.
            camera: Of its pixels, ``camera_of_crop``.
            is_real: False: nobody looks at the frame, it only fills up its window.
        """
        entered = self.enter(torch.cat((features, camera.to(features.dtype)), -1))
        place = positions(features.shape[1], self.inner, features.device).to(features.dtype)
        tokens = self.layers(entered + place, src_key_padding_mask=~is_real)
        mixed = (self._weights(tokens, is_real) @ _heads(features)).transpose(1, 2).flatten(2)
        update: Tensor = self.leave(tokens)
        return features + self.gate * (mixed - features) + update

    def _weights(
        self, tokens: Float[Tensor, "b t i"], is_real: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b h t t"]:
        """Return what each frame takes of every real frame; rows sum to 1."""
        query, key = _heads(self.query(tokens)), _heads(self.key(tokens))
        frame = torch.arange(tokens.shape[1], device=tokens.device)
        apart = (frame[:, None] - frame).clamp(-FARTHEST, FARTHEST) + FARTHEST
        score = query @ key.mT / math.sqrt(MIX_WIDTH) + self.distance[:, apart]
        return score.masked_fill(~is_real[:, None, None], -math.inf).softmax(-1)


def _heads(values: Float[Tensor, "b t c"]) -> Float[Tensor, "b h t d"]:
    return values.view(*values.shape[:2], MIX_HEADS, -1).transpose(1, 2)


def camera_of_crop(K: Float[Tensor, "*b 3 3"], input_px: int) -> Float[Tensor, "*b 3"]:
    """Return log of the focal length and the principal point from the middle, in input sides."""
    middle = (input_px - 1) / 2
    x, y = K[..., 0, 2] - middle, K[..., 1, 2] - middle
    return torch.stack(((focal_px(K) / input_px).log(), x / input_px, y / input_px), -1)


def positions(num: int, width: int, device: torch.device) -> Float[Tensor, "t c"]:
    """Return sines, then cosines, of the frame number at wavelengths from 2 pi to 20,000 pi.

    Source:
        Vaswani et al. 2017, Attention is all you need, 3.5.
    """
    half = width // 2
    speed = torch.exp(torch.arange(half, device=device) * (-math.log(1e4) / half))
    angle = torch.arange(num, device=device)[:, None] * speed
    return torch.cat((angle.sin(), angle.cos()), -1)
