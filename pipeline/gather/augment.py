"""Random augmentation of a training sample: a pure function of (seed, epoch, sample id).

Sampled in float64 from integer Philox words on the device of the cache; the words are identical on
every device, the parameters up to the last bit of the device's sine and cosine.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from model.geometry.crop import square_crop_affine
from pipeline.config import AugmentConfig
from pipeline.philox import Stream, uniforms

NUM_DRAWS: Final = 16
LUMA: Final = (0.299, 0.587, 0.114)
"""Luma weights of red, green, blue; ITU-R BT.601."""
MID_GREY: Final = 127.5


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentParams:
    """Augmentation parameters of each sample of a batch."""

    rotation_rad: Float64[Tensor, " b"]
    """Rotation of the content, clockwise on screen."""
    scale: Float64[Tensor, " b"]
    """Factor of the crop's side; above 1 shows more."""
    shift: Float64[Tensor, "b 2"]
    """Shift of the crop's centre (x, y), as fractions of its unscaled side."""
    colour: Float32[Tensor, "b 3 4"]
    """``rgb' = colour @ [r, g, b, 1]`` in 0..255."""
    erase: Float64[Tensor, "b 4"]
    """Random erasing: rectangle (x0, y0, x1, y1) in fractions of the input side; empty = none."""


def identity(num_samples: int, device: torch.device) -> AugmentParams:
    """Return parameters that change nothing."""
    zero = torch.zeros(num_samples, dtype=torch.float64, device=device)
    return AugmentParams(
        rotation_rad=zero,
        scale=torch.ones_like(zero),
        shift=zero[:, None].expand(-1, 2),
        colour=torch.eye(3, 4, device=device).expand(num_samples, 3, 4),
        erase=zero[:, None].expand(-1, 4),
    )


def draw(
    config: AugmentConfig, seed: int, epoch: int | Tensor, sample_id: Int64[Tensor, " b"]
) -> AugmentParams:
    """Sample the augmentation parameters of each sample.

    Every parameter uses its own random number in any configuration, so that switching one off
    leaves the others unchanged.
    """
    u = uniforms(seed, Stream.augment, epoch, sample_id, NUM_DRAWS)
    either_way = 2 * u - 1  # in (-1, 1)
    gain = 1 + config.gain * either_way[:, 4:7]
    gain = gain * (1 + config.brightness * either_way[:, 7:8])
    contrast = 1 + config.contrast * either_way[:, 8]
    saturation = 1 + config.saturation * either_way[:, 9]
    size, middle = config.erase_size * u[:, 11:13], u[:, 13:15]
    rectangle = torch.cat((middle - size / 2, middle + size / 2), -1)
    is_erased = u[:, 10:11] < config.erase_probability
    return AugmentParams(
        rotation_rad=math.radians(config.rotation_deg) * either_way[:, 0],
        scale=1 + config.scale * either_way[:, 1],
        shift=config.shift * either_way[:, 2:4],
        colour=_colour(gain, contrast, saturation).float(),
        erase=torch.where(is_erased, rectangle, 0.0),
    )


def input_affine(
    params: AugmentParams,
    center_px: Float64[Tensor, "b 2"],
    size_px: Float64[Tensor, " b"],
    mirrored: Bool[Tensor, " b"],
    input_px: int,
) -> Float64[Tensor, "b 2 3"]:
    """Return ``A_input_from_frame``, which maps the augmented square crop to the network input.

    Args:
        params: The augmentation.
        center_px: Centre of the square, frame pixels.
        size_px: Side of the square, frame pixels.
        mirrored: Flip x of the content.
        input_px: Side of the input.
    """
    return square_crop_affine(
        center_px + params.shift * size_px[:, None],
        size_px * params.scale,
        input_px,
        rotation_rad=params.rotation_rad,
        mirror=mirrored,
    )


def _colour(
    gain: Float[Tensor, "b 3"], contrast: Float[Tensor, " b"], saturation: Float[Tensor, " b"]
) -> Float[Tensor, "b 3 4"]:
    """Return gain, then saturation about the pixel's grey, then contrast about mid grey."""
    saturation = saturation[:, None, None]
    eye = torch.eye(3, dtype=gain.dtype, device=gain.device)
    linear = saturation * eye + (1 - saturation) * _luma(gain.device)
    linear = contrast[:, None, None] * linear * gain[:, None, :]
    offset = ((1 - contrast) * MID_GREY)[:, None, None].expand(-1, 3, 1)
    return torch.cat((linear, offset), -1)


@cache
def _luma(device: torch.device) -> Tensor:
    """Return the luma weights, cached: a copy from the host would synchronise."""
    return torch.tensor(LUMA, dtype=torch.float64, device=device)
