"""The cache: every sample's crop on the device, filled once by the decoder."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.config import CacheConfig
from pipeline.decode.buffers import PREFETCH
from pipeline.decode.codec import Codec, Pixels, allocate, write
from pipeline.decode.errors import first_undecodable, raise_if_out_of_memory, skip_or_raise
from pipeline.decode.graph import decode_crops
from pipeline.decode.source import (
    EncodedBatch,
    ImagePlan,
    are_whole_frames,
    describe_row,
    encoded_batches,
    largest_frame,
    plan_images,
)
from pipeline.store.reader import Store
from pipeline.view import ViewTable, upload

Progress = Callable[[int, int, int], None]
"""Told (images done, their encoded bytes, images in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resident:
    """Crops on the device; row ``i`` is sample ``i`` of the views one after another."""

    pixels: Pixels
    skipped: Int64[Tensor, " m"]
    """Samples whose image does not decode; black."""
    num_images: int
    """Images decoded; fewer than samples where a frame shows two hands."""
    num_bytes: int
    """Of their JPEGs."""
    seconds: float
    """What the fill took."""


def fill(
    views: Sequence[tuple[Store, ViewTable]],
    config: CacheConfig,
    codec: Codec,
    device: torch.device,
    *,
    progress: Progress | None = None,
) -> Resident:
    """Decode the crops of views of stores, one after another, and copy them to ``device``.

    Raises:
        StoreCorruptError: If an image's bytes changed since the build; names the sample.
        BadImageError: If an image cannot be decoded and ``on_bad_image`` is ``stop``; names it.
    """
    begin = time.perf_counter()
    pixels = allocate(sum(len(view) for _, view in views), config.size_px, codec, device)
    plans = [plan_images(store, view, config.size_px) for store, view in views]
    num_images, done, num_bytes, first = sum(len(plan.row) for plan in plans), 0, 0, 0
    skipped = [torch.empty(0, dtype=torch.int64)]
    for (store, view), plan in zip(views, plans, strict=True):
        for row, sample in _fill_view(pixels, first, store, view, plan, config):
            done += len(row)
            num_bytes += int(store.image_index.length[row].astype(np.int64).sum())
            if sample is not None:
                skipped.append(torch.from_numpy(sample) + first)
            if progress is not None:
                progress(done, num_bytes, num_images)
        first += len(view)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # once, so that the time is the fill's
    return Resident(
        pixels=pixels,
        skipped=torch.cat(skipped),
        num_images=num_images,
        num_bytes=num_bytes,
        seconds=time.perf_counter() - begin,
    )


def _fill_view(
    pixels: Pixels, first: int, store: Store, view: ViewTable, plan: ImagePlan, config: CacheConfig
) -> Iterator[tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " k"] | None]]:
    """Write the crops of a view from row ``first`` on.

    Yields:
        Rows of the store that are done, and, for an image that does not decode, its samples.
    """
    whole = are_whole_frames(store, plan.row[:, None], plan.start, plan.end, config.size_px)
    while len(plan.row):
        crops = decode_crops(
            encoded_batches(store, view, plan, config.decode_batch),
            config,
            num_crops=plan.sample.shape[1],
            batch_size=config.decode_batch,
            device=pixels.device,
            frame_hw=largest_frame(store, plan.row),
            whole_frames=whole and plan.sample.shape[1] == 1,
        )
        try:
            with closing(crops):
                for batch in crops:
                    num = len(batch[0])
                    _write(pixels, first, batch, plan.sample[:num])
                    del batch  # or the decoder could not give its memory back at the end
                    row, plan = plan.row[:num], plan[num:]
                    yield row, None
        except RuntimeError as error:
            raise_if_out_of_memory(error)
            # The decoder says neither which image nor, read ahead, exactly which batch.
            near = plan[: (1 + PREFETCH) * config.decode_batch]
            bad = _find_bad_image(store, view, near, config, pixels.device)
            if bad is None:
                raise
            skip_or_raise(describe_row(store, view, int(near.row[bad])), config, error)
            yield near.row[bad : bad + 1], near.sample[bad][near.sample[bad] >= 0]
            plan = plan[np.delete(np.arange(len(plan.row)), bad)]


def _write(
    pixels: Pixels, first: int, crops: list[Tensor], sample: Int64[np.ndarray, "m k"]
) -> None:
    """Copy decoded crops to their places; crop ``k`` of image ``i`` is sample ``sample[i, k]``."""
    for k, crop in enumerate(crops):
        there = np.flatnonzero(sample[:, k] >= 0)
        place = upload(torch.from_numpy(sample[there, k]) + first, pixels.device)
        some = len(there) < len(crop)
        kept = crop[upload(torch.from_numpy(there), crop.device)] if some else crop
        write(pixels, place, kept)


def _find_bad_image(
    store: Store, view: ViewTable, plan: ImagePlan, config: CacheConfig, device: torch.device
) -> int | None:
    """Return the first image that does not decode."""

    def batches(first: int, last: int) -> Iterator[EncodedBatch]:
        return encoded_batches(store, view, plan[first:last], config.decode_batch)

    return first_undecodable(len(plan.row), batches, config, plan.sample.shape[1], device)
