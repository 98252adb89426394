"""Temporal self-attention over a window: a transformer that refines each frame's features.

Its tokens yield two things per frame: mixing weights over the features of every other frame, and
an additive update of its own. The first is an average, which removes frame-to-frame jitter; a
transformer with additive updates only had not learned it after 1,000 steps on synthetic ARCTIC.

Shape legend: b = windows, t = frames, c = width of the features, h = heads.
"""

import math
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.geometry.camera import focal_px

HEAD_WIDTH: Final = 64
"""Width of one attention head of the transformer."""
MIX_HEADS: Final = 8
"""Groups of features that share averaging weights."""
MIX_WIDTH: Final = 32
FARTHEST: Final = 16
"""Largest frame distance with a bias of its own; larger ones share it."""
CAMERA_WIDTH: Final = 3


class TemporalEncoder(nn.Module):
    """``x + gate (A x - x) + update``; gate and update are 0 before training.

    So a network trained on single images predicts the same with a newly initialised encoder, and
    fine-tuning on windows starts from its accuracy. ``A`` are ``MIX_HEADS`` matrices over the
    frames, from the tokens and a learned bias per frame distance. Pre-norm layers, sinusoidal
    positions, any number of frames. Each token also encodes the camera of its crop: crops of one
    scene differ.
    """

    def __init__(self, width: int, inner: int, layers: int) -> None:
        """Build ``layers`` layers of width ``inner`` for features of ``width``.

        Raises:
            ValueError: If ``width`` is not a multiple of ``MIX_HEADS``.
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
            features: Features of every frame.
            camera: Camera of each frame's crop, ``camera_of_crop``.
            is_real: False: the frame is padding and is masked out of the attention.
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
        """Return each frame's averaging weights over the real frames; rows sum to 1."""
        query, key = _heads(self.query(tokens)), _heads(self.key(tokens))
        frame = torch.arange(tokens.shape[1], device=tokens.device)
        apart = (frame[:, None] - frame).clamp(-FARTHEST, FARTHEST) + FARTHEST
        score = query @ key.mT / math.sqrt(MIX_WIDTH) + self.distance[:, apart]
        return score.masked_fill(~is_real[:, None, None], -math.inf).softmax(-1)


def _heads(values: Float[Tensor, "b t c"]) -> Float[Tensor, "b h t d"]:
    return values.view(*values.shape[:2], MIX_HEADS, -1).transpose(1, 2)


def camera_of_crop(K: Float[Tensor, "*b 3 3"], input_px: int) -> Float[Tensor, "*b 3"]:
    """Return log focal length and principal point offset from the centre, over the input side."""
    middle = (input_px - 1) / 2
    x, y = K[..., 0, 2] - middle, K[..., 1, 2] - middle
    return torch.stack(((focal_px(K) / input_px).log(), x / input_px, y / input_px), -1)


def positions(num: int, width: int, device: torch.device) -> Float[Tensor, "t c"]:
    """Return sinusoidal position encodings: sines, then cosines, wavelengths 2 pi to 20,000 pi.

    Source:
        Vaswani et al. 2017, Attention is all you need, 3.5.
    """
    half = width // 2
    speed = torch.exp(torch.arange(half, device=device) * (-math.log(1e4) / half))
    angle = torch.arange(num, device=device)[:, None] * speed
    return torch.cat((angle.sin(), angle.cos()), -1)
