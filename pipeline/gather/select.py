"""The gather: one function, implemented by Triton on a GPU and by C or plain torch on a CPU.

Shape legend: *b = batch [b] or windows [b, t], s = side of the input.
"""

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pipeline.decode.codec import Pixels
from pipeline.gather import cpu
from pipeline.gather.params import GatherParams, InputFormat
from pipeline.gather.reference import gather_eager


def gather(
    pixels: Pixels,
    index: Int64[Tensor, "*b"],
    params: GatherParams,
    form: InputFormat,
    *,
    out: Tensor | None = None,
) -> Float[Tensor, "*b 3 s s"] | UInt8[Tensor, "*b 3 s s"]:
    """Return the network's input for the cached samples at ``index``: [b] or windows [b, t].

    On a GPU this is one kernel that allocates only the output and never synchronises.

    Args:
        pixels: The cache.
        index: Rows of the cache.
        params: Per sample, or [b] for windows [b, t]: the frames of a window share theirs.
        form: Size, normalisation, type and memory format of the output.
        out: Tensor of that size, type and memory format to write to; None makes one.

    Raises:
        ValueError: If the shapes of ``index``, ``params`` and ``out`` do not match.
    """
    if pixels.device.type == "cuda":
        from pipeline.gather import triton  # needs a CUDA device or the interpreter

        return triton.gather(pixels, index, params, form, out=out)
    if cpu.available():
        return cpu.gather(pixels, index, params, form, out=out)
    return gather_eager(pixels, index, params, form, out=out)
