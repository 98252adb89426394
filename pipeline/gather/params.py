"""Parameters of the gather for each sample, and the format of the network's input.

Shape legend: *b = batch [b] or windows [b, t], m = all its samples, s = side of the input.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64, UInt8
from torch import Tensor

from pipeline.gather.augment import AugmentParams

MAX_TAPS: Final = 8
UNFILTERED: Final = 1.4
"""Downsampling factor up to which bilinear sampling does not alias visibly."""
SLACK: Final = 1e-6
"""Makes a factor of exactly 2 give a support of 2, regardless of the last bit of the sine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatherParams:
    """Gather parameters of each sample; windows [b, t] may share one row per window."""

    A_q16: Int32[Tensor, "*b 2 3"]
    """``A_cache_from_input``, 16 fractional bits."""
    colour: Float32[Tensor, "*b 3 4"]
    erase_xyxy: Int32[Tensor, "*b 4"]
    """Random erasing: rectangle in input pixels, half-open; empty = none."""
    taps: Int32[Tensor, "*b"]
    """Filter support: sample points per axis averaged for one input pixel, 1 to 8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFormat:
    """Format of the network's input; uint8 is not normalised."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dtype: torch.dtype
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory layout of [m, 3, s, s]."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def scale_black_white(self) -> tuple[tuple[float, float, float], ...]:
        """Return per channel the output step of one grey level, and the outputs of 0 and 255."""
        if self.dtype is torch.uint8:
            return ((1.0, 0.0, 255.0),) * 3
        pairs = zip(self.mean, self.std, strict=True)
        return tuple((1 / (255 * std), -mean / std, (1 - mean) / std) for mean, std in pairs)


def gather_params(
    A_cache_from_input: Float64[Tensor, "*b 2 3"], params: AugmentParams, input_px: int
) -> GatherParams:
    """Convert the parameters to the gather's number formats; does not synchronise."""
    a, b, c, d = A_cache_from_input[..., :2].flatten(-2).unbind(-1)
    shrink = (a * d - b * c).abs().sqrt()
    taps = (shrink - SLACK).ceil().clamp(1, MAX_TAPS)
    return GatherParams(
        A_q16=(A_cache_from_input * 65536).round().to(torch.int32),
        colour=params.colour,
        erase_xyxy=(params.erase * input_px).round().to(torch.int32),
        taps=torch.where(shrink <= UNFILTERED, 1, taps).to(torch.int32),
    )


def prepare_output(
    index: Int64[Tensor, "*b"],
    params: GatherParams,
    form: InputFormat,
    device: torch.device,
    out: Tensor | None,
) -> Float[Tensor, "*b 3 s s"] | UInt8[Tensor, "*b 3 s s"]:
    """Return ``out``, or a new tensor, once the shapes are known to fit.

    Raises:
        ValueError: If the shapes do not match.
    """
    if index.ndim not in (1, 2) or params.taps.shape not in (index.shape, index.shape[:1]):
        raise ValueError(
            "the gather's index must be [b] or [b, t] and its parameters as long or [b], got "
            f"index {list(index.shape)}, parameters {list(params.taps.shape)}"
        )
    if out is None:
        shape = (index.numel(), 3, form.size_px, form.size_px)
        image = torch.empty(
            shape, dtype=form.dtype, device=device, memory_format=form.memory_format
        )
        return image.view(*index.shape, *shape[1:])
    shape = (*index.shape, 3, form.size_px, form.size_px)
    if out.shape != shape or out.dtype != form.dtype or not _is_in_order(out, form):
        order = "channels-last" if form.channels_last else "contiguous"
        raise ValueError(
            f"the gather's out must be {list(shape)} {form.dtype} {order}, got {list(out.shape)} "
            f"{out.dtype} with strides {list(out.stride())}"
        )
    return out


def _is_in_order(out: Tensor, form: InputFormat) -> bool:
    """Return whether ``out`` is dense in the format's memory layout."""
    if form.channels_last:
        return out.movedim(-3, -1).is_contiguous()
    return out.is_contiguous()
