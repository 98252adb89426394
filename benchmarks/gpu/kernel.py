"""A small Triton kernel that checks compiler, launcher and arithmetic on this machine."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor


@triton.jit
def _normalise_kernel(pixels, out, num, scale, shift, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write ``out[i] = pixels[i] * scale + shift``; both are flat."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num
    value = tl.load(pixels + at, mask=inside, other=0).to(tl.float32)
    tl.store(out + at, value * scale + shift, mask=inside)


def normalise(
    pixels: UInt8[Tensor, "*n"], scale: float, shift: float, block: int = 1024
) -> Float[Tensor, "*n"]:
    """Return ``pixels * scale + shift`` in float32."""
    out = torch.empty_like(pixels, dtype=torch.float32)
    grid = (triton.cdiv(pixels.numel(), block),)
    _normalise_kernel[grid](pixels, out, pixels.numel(), scale, shift, BLOCK=block)
    return out


def worst_error(device: str, num: int) -> float:
    """Return the largest difference from torch on random bytes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num,), dtype=torch.uint8, generator=generator).to(device)
    expected = pixels.double() / 255 - 0.5
    return float((normalise(pixels, 1 / 255, -0.5).double() - expected).abs().max())


if __name__ == "__main__":
    print(worst_error("cuda" if torch.cuda.is_available() else "cpu", 5000))
