"""The one DALI graph: encoded images to crops of one size, handed to torch without a copy.

Measured on 2 cores, frames of 640x480 to 160 px: decode and ``fn.resize`` with a region of interest
725 images/s; DALI's CPU ``warp_affine`` alone does 430. The crop has no turn, so nothing is lost:
``fn.resize`` filters when it shrinks (a triangle as wide as the step, Pillow's BILINEAR), is plain
bilinear when it enlarges, and repeats the border pixel outside the frame.
"""

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any

import torch
from jaxtyping import UInt8
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.backend import ReleaseUnusedMemory
from torch import Tensor

from pipeline.config import CacheConfig
from pipeline.decode.buffers import KEPT_DECODED, PREFETCH, READ_AHEAD
from pipeline.decode.read_ahead import read_ahead
from pipeline.decode.source import EncodedBatch
from pipeline.decode.threads import decoder_threads


def decode_crops(
    batches: Iterator[EncodedBatch],
    config: CacheConfig,
    *,
    num_crops: int,
    batch_size: int,
    device: torch.device,
    frame_hw: tuple[int, int] = (0, 0),
    whole_frames: bool = False,
) -> Generator[list[UInt8[Tensor, "b s s 3"]]]:
    """Decode batches in order; yield the ``num_crops`` crops of every image of a batch.

    On a GPU the tensors are ordered on torch's current stream, and what is queued there before the
    next batch is asked for may use them. Threads and memory of the decoder are given back when the
    iterator ends, is closed or fails.

    Args:
        batches: Encoded images and the squares to cut from them; read ahead in a thread.
        config: Size of a crop, threads, share of the hardware decoder.
        num_crops: Crops of every image.
        batch_size: Most images of a batch.
        device: Of the crops.
        frame_hw: Largest image, for which a GPU's decoder makes room at once; 0 = when it comes.
        whole_frames: Every frame is its one crop: nothing is resized, which is a fifth of the time.

    Raises:
        RuntimeError: If an image of the batch cannot be decoded; the iterator is then over.
    """
    on_gpu = device.type == "cuda"
    device_id = None
    if on_gpu:  # "cuda" has no index yet
        device_id = torch.cuda.current_device() if device.index is None else device.index
    ahead = read_ahead(batches, READ_AHEAD)
    hardware = {}
    if on_gpu:
        hardware = {
            "hw_decoder_load": config.hw_decoder_load,
            "preallocate_height_hint": frame_hw[0],
            "preallocate_width_hint": frame_hw[1],
        }
    pipe: Pipeline = _graph(
        ((encoded,) for encoded, *_ in ahead) if whole_frames else ahead,
        config.size_px,
        0 if whole_frames else num_crops,
        "mixed" if on_gpu else "cpu",
        hardware,
        batch_size=batch_size,
        num_threads=decoder_threads(config, device),
        device_id=device_id,
        prefetch_queue_depth=PREFETCH,
    )
    in_use: deque[tuple[torch.Event, list[Tensor]]] = deque()
    try:
        pipe.build()
        while True:
            stream = torch.cuda.current_stream(device) if on_gpu else None
            try:
                crops = [torch.from_dlpack(crop.as_tensor()) for crop in pipe.run(stream)]
            except StopIteration:
                return
            try:
                yield crops
            finally:  # also where the reader ends here: it may have queued something before
                if on_gpu:
                    in_use.append((torch.cuda.current_stream(device).record_event(), crops))
                del crops
            if len(in_use) > KEPT_DECODED:
                _free(in_use)
    finally:
        while in_use:
            _free(in_use)
        del pipe
        ahead.close()
        ReleaseUnusedMemory()


def _free(in_use: deque[tuple[torch.Event, list[Tensor]]]) -> None:
    """Let go of the oldest batch once what was queued with it is done, and not before."""
    event, crops = in_use.popleft()
    event.synchronize()
    del crops


@pipeline_def
def _graph(
    batches: Iterator[tuple[Any, ...]],
    size_px: int,
    num_crops: int,
    decoder: str,
    hardware: dict[str, Any],
) -> Any:
    encoded, *corners = fn.external_source(
        source=batches,
        num_outputs=1 + 2 * num_crops,
        batch=True,
        no_copy=True,
        dtype=[types.UINT8] + [types.FLOAT] * (2 * num_crops),
        ndim=1,
    )
    # Fancy upsampling is what CPU decoders do; without it colours differ between CPU and GPU.
    image = fn.decoders.image(
        encoded,
        device=decoder,
        output_type=types.RGB,
        adjust_orientation=False,  # labels are in the pixels as stored
        jpeg_fancy_upsampling=True,
        **hardware,
    )
    if not num_crops:
        return image
    return tuple(
        fn.resize(image, size=[size_px, size_px], roi_start=start, roi_end=end)
        for start, end in zip(corners[::2], corners[1::2], strict=True)
    )
