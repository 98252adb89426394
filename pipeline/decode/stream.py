"""Crops decoded again whenever they are needed, for sets that do not fit on the device.

The decoder reads a few batches ahead in the order of the batches. Its output takes the place of the
cache: the same gather reads it. A position in the stream is a position in the order, so it resumes
like everything else.
"""

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from pipeline.config import CacheConfig
from pipeline.decode.buffers import KEPT_ENCODED
from pipeline.decode.errors import first_undecodable, raise_if_out_of_memory, skip_or_raise
from pipeline.decode.graph import decode_crops
from pipeline.decode.source import (
    EncodedBatch,
    are_whole_frames,
    describe_row,
    largest_frame,
    squares,
)
from pipeline.store.errors import StoreCorruptError
from pipeline.store.reader import Store
from pipeline.view import ViewTable, upload


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """Where the image of every sample is, views of stores one after another."""

    views: tuple[tuple[Store, ViewTable], ...]
    number: Int64[np.ndarray, " n"]
    """Of the view."""
    row: Int64[np.ndarray, " n"]
    start: Float32[np.ndarray, "n 2"]
    end: Float32[np.ndarray, "n 2"]
    whole: bool
    """Every crop is its frame as it is."""
    largest: tuple[int, int]
    """Height and width that no frame exceeds."""


def frames_of(views: Sequence[tuple[Store, ViewTable]], config: CacheConfig) -> Frames:
    """Return where the images of the views are."""
    corners = [squares(store, view, config.size_px) for store, view in views]
    rows = [view.row.numpy() for _, view in views]
    sizes = [largest_frame(store, row) for (store, _), row in zip(views, rows, strict=True)]
    return Frames(
        views=tuple(views),
        number=np.repeat(np.arange(len(views)), [len(row) for row in rows]),
        row=np.concatenate(rows),
        start=np.concatenate([start for start, _ in corners]),
        end=np.concatenate([end for _, end in corners]),
        whole=all(
            are_whole_frames(store, row, start, end, config.size_px)
            for (store, _), row, (start, end) in zip(views, rows, corners, strict=True)
        ),
        largest=(max(height for height, _ in sizes), max(width for _, width in sizes)),
    )


def stream_crops(
    frames: Frames,
    batches: Iterator[Int64[Tensor, " b"]],
    config: CacheConfig,
    batch_size: int,
    device: torch.device,
    skipped: set[int],
) -> Generator[UInt8[Tensor, "b c c 3"]]:
    """Yield the crops of each batch of samples, decoded some batches ahead.

    Args:
        frames: Where the images are.
        batches: Samples, counted through the views; read ahead of what is yielded.
        config: Size, threads, and what to do with an image that cannot be decoded.
        batch_size: Most samples of a batch.
        device: Of the crops.
        skipped: Samples whose image does not decode, black; more are added.

    Raises:
        StoreCorruptError: If an image's bytes changed since the build; names the sample.
        BadImageError: If an image cannot be decoded and ``on_bad_image`` is ``stop``; names it.
    """
    ahead: deque[Int64[Tensor, " b"]] = deque()  # given to the decoder, not yet decoded
    while True:
        crops = decode_crops(
            _encoded(frames, batches, ahead, skipped),
            config,
            num_crops=1,
            batch_size=batch_size,
            device=device,
            frame_hw=frames.largest,
            whole_frames=frames.whole,
        )
        try:
            with closing(crops):
                for (decoded,) in crops:
                    index = ahead.popleft()
                    black = [k for k, i in enumerate(index.tolist()) if i in skipped]
                    if black:
                        where = upload(torch.tensor(black), decoded.device)
                        decoded.index_fill_(0, where, 0)
                    yield decoded
                    del decoded  # or the decoder could not give its memory back at the end
        except RuntimeError as error:
            raise_if_out_of_memory(error)
            bad = _find_bad(frames, list(ahead), config, device, skipped)
            if bad is None:
                raise
            batches = itertools.chain(list(ahead), batches)
            ahead.clear()
            store, view = frames.views[frames.number[bad]]
            skip_or_raise(describe_row(store, view, int(frames.row[bad])), config, error)
            skipped.add(bad)
        else:
            return


def _encoded(
    frames: Frames,
    batches: Iterator[Int64[Tensor, " b"]],
    ahead: deque[Int64[Tensor, " b"]],
    skipped: set[int],
) -> Iterator[EncodedBatch]:
    """Yield the JPEGs of every batch, checked; those to skip are another of the batch."""
    alive: deque[EncodedBatch] = deque(maxlen=KEPT_ENCODED)
    for index in batches:
        ahead.append(index)
        chosen = index.numpy()
        if skipped:
            good = [i for i in chosen.tolist() if i not in skipped]
            if not good:
                raise StoreCorruptError("no image of a whole batch can be decoded")
            chosen = np.array([good[0] if i in skipped else i for i in chosen.tolist()])
        encoded = [_jpeg(frames, i) for i in chosen.tolist()]
        alive.append((encoded, frames.start[chosen], frames.end[chosen]))
        yield alive[-1]


def _jpeg(frames: Frames, sample: int) -> UInt8[np.ndarray, " m"]:
    store, view = frames.views[frames.number[sample]]
    row = int(frames.row[sample])
    try:
        jpeg: UInt8[np.ndarray, " m"] = store.jpeg_checked(row)
    except StoreCorruptError as error:
        raise StoreCorruptError(f"{describe_row(store, view, row)}: {error}") from None
    return jpeg


def _find_bad(
    frames: Frames,
    batches: list[Int64[Tensor, " b"]],
    config: CacheConfig,
    device: torch.device,
    skipped: set[int],
) -> int | None:
    """Return the first sample whose image does not decode."""
    samples = torch.tensor([i for batch in batches for i in batch.tolist() if i not in skipped])

    def encoded(first: int, last: int) -> Iterator[EncodedBatch]:
        parts = torch.split(samples[first:last], config.decode_batch)
        return _encoded(frames, iter(parts), deque(), set())

    bad = first_undecodable(len(samples), encoded, config, 1, device)
    return None if bad is None else int(samples[bad])
