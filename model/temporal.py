"""Frames of a window look at each other: a transformer that refines per-frame features."""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

HEAD_WIDTH: Final = 64


class TemporalEncoder(nn.Module):
    """``features + update(features of all frames)``; the update is 0 before training.

    So a network that has learned from single images predicts the same with a fresh encoder, and
    fine-tuning on windows begins where it stands. Pre-norm layers, sinusoidal positions, any number
    of frames.
    """

    def __init__(self, width: int, inner: int, layers: int) -> None:
        """Build ``layers`` layers of width ``inner`` for features of ``width``."""
        super().__init__()
        self.inner = inner
        self.enter = nn.Linear(width, inner)
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

    def forward(self, features: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Return the refined features of every frame."""
        entered = self.enter(features)
        position = positions(features.shape[1], self.inner).to(entered)
        update: Tensor = self.leave(self.layers(entered + position))
        return features + update


def positions(num: int, width: int) -> Float[Tensor, "t c"]:
    """Return sines, then cosines, of the frame number at wavelengths from 2 pi to 20,000 pi.

    Source:
        Vaswani et al. 2017, Attention is all you need, 3.5.
    """
    half = width // 2
    speed = torch.exp(torch.arange(half) * (-math.log(1e4) / half))
    angle = torch.arange(num)[:, None] * speed
    return torch.cat((angle.sin(), angle.cos()), -1)
